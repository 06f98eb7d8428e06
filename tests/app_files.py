"""For the tests of the app: made-up slices, 16-bit colour files that Pillow cannot write, raw calls to a server."""

import socket
import struct
import zlib
from pathlib import Path

import httpx
import numpy as np


def make_slice(height: int = 90, width: int = 70, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: an ellipsoid head with a FLAIR-bright spot in it, no two channels alike."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]

    def ellipse(row, column, height_share, width_share):
        return np.hypot((rows / height - row) / height_share, (columns / width - column) / width_share) < 1

    head, lesion = ellipse(0.5, 0.5, 0.44, 0.4), ellipse(0.4, 0.62, 0.1, 0.1)
    contrasts = [90 * head - 20 * lesion, 100 * head + 90 * lesion, 110 * head]
    noisy = np.stack(contrasts, axis=-1) + generator.normal(12, 4, (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def save_png16(path: Path, pixels: np.ndarray) -> Path:
    """A 16-bit PNG of (H, W, 3) or, with alpha, (H, W, 4) uint16; Pillow cannot write one."""
    height, width, channels = pixels.shape
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    data = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    )
    return path


def save_tiff16(path: Path, pixels: np.ndarray, order: str = "<", deflate: bool = False) -> Path:
    """A 16-bit RGB TIFF of (H, W, 3) uint16 in the byte order `<` or `>`; Pillow cannot write one."""
    height, width, _ = pixels.shape
    strip = pixels.astype(f"{order}u2").tobytes()
    strip = zlib.compress(strip) if deflate else strip
    short, long = 3, 4
    bits_at = 8
    strip_at = bits_at + 6
    tags = [
        (256, short, 1, width),
        (257, short, 1, height),
        (258, short, 3, bits_at),
        (259, short, 1, 8 if deflate else 1),
        (262, short, 1, 2),
        (273, long, 1, strip_at),
        (277, short, 1, 3),
        (278, short, 1, height),
        (279, long, 1, len(strip)),
    ]
    padding = b"\0" * (len(strip) % 2)
    directory = struct.pack(f"{order}H", len(tags))
    for tag, kind, count, value in tags:
        short_value = kind == short and count == 1
        packed = struct.pack(f"{order}HH", value, 0) if short_value else struct.pack(f"{order}I", value)
        directory += struct.pack(f"{order}HHI", tag, kind, count) + packed
    magic = b"II*\0" if order == "<" else b"MM\0*"
    path.write_bytes(
        magic
        + struct.pack(f"{order}I", strip_at + len(strip) + len(padding))
        + struct.pack(f"{order}HHH", 16, 16, 16)
        + strip
        + padding
        + directory
        + struct.pack(f"{order}I", 0)
    )
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call_raw(address: str, data: list, endpoint: str = "segment_slice") -> str:
    """What the queue answers to a payload that no well-behaved client sends."""
    base = f"{address}/gradio_api/call/{endpoint}"
    response = httpx.post(base, json={"data": data})
    assert response.status_code == 200
    return httpx.get(f"{base}/{response.json()['event_id']}", timeout=60).text
