"""How the Space holds up under many requests: its memory, the time of an answer, and whether the turns are fair.

    python -m benchmarks.space_load                                     # starts app.py on the shipped weights
    python -m benchmarks.space_load --requests 400 --clients 8
    python -m benchmarks.space_load --url http://127.0.0.1:7860 --pid 1234           # a server that runs already

First one slice and one volume by themselves, then all requests from several clients at once, each of which waits for
an answer before it asks again. Images are those of a generated patient. A request is overtaken where one that was sent
clearly later is answered before it.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import psutil
from gradio_client import Client, handle_file
from PIL import Image

from hub_dataset.phantom import MIN_SLICES, phantom_volume
from modeling.command_line import command_parser, whole_number
from modeling.image_processing_brain_mri import FLAIR, MINIMUM_SIZE

ROOT = Path(__file__).resolve().parents[1]
START_LIMIT = 600  # seconds
LOOK_EVERY = 0.02  # seconds between looks at a request's place in the queue
CLEARLY = 0.5  # seconds; requests that were sent closer together than this may change places on the way


@dataclass(frozen=True)
class Answer:
    """One request and what became of it; times in seconds on one clock."""

    client: int
    kind: str  # "slice" or "volume"
    sent: float
    answered: float
    places: tuple[int, ...]  # in the queue, as its client was told; 0 is the next
    fault: str | None
    memory: float | None  # MiB of the server right after it


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__, "benchmarks.space_load")
    parser.add_argument("--url", help="of a server that runs already; without, app.py is started on 127.0.0.1")
    parser.add_argument("--pid", type=whole_number(1), help="of the server at --url, to follow its memory")
    parser.add_argument("--model", help="a name that the server offers; without, its default")
    parser.add_argument("--requests", type=whole_number(1), default=200, help="in all, from all clients")
    parser.add_argument("--clients", type=whole_number(1), default=4, help="at once")
    parser.add_argument(
        "--volume_every", type=whole_number(0), default=10, help="one request in so many is a volume; 0 for none"
    )
    parser.add_argument(
        "--size", type=whole_number(MINIMUM_SIZE), default=256, help="pixels; height and width of all images"
    )
    parser.add_argument("--num_slices", type=whole_number(MIN_SLICES), default=40, help="of a volume")
    parser.add_argument(
        "--repeats", type=whole_number(1), default=5, help="of the slice by itself; the volume takes two"
    )
    args = parser.parse_args(argv)
    if args.requests < 5 * args.clients:
        parser.error(f"--requests is {args.requests}; give at least five for each of the {args.clients} clients")
    if args.pid and not args.url:
        parser.error("--pid goes with --url: the memory of a server that this script starts is followed anyway")
    return args


@contextmanager
def started_server(folder: Path) -> Iterator[tuple[str, int]]:
    """(address, process id) of `python app.py`, which ends with the block; what it writes goes to `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(folder)}
    log = folder / "app.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=os.environ | own, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        limit = time.monotonic() + START_LIMIT
        while not answers(port):
            if process.poll() is not None or time.monotonic() > limit:
                raise SystemExit(f"app.py did not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def write_images(folder: Path, size: int, num_slices: int) -> dict[str, Path]:
    """A slice as PNG and a volume as NIfTI of a generated patient: kind -> path."""
    slices = phantom_volume(0, num_slices=num_slices, size=size).slices
    paths = {"slice": folder / "slice.png", "volume": folder / "volume.nii.gz"}
    Image.fromarray(slices[num_slices // 2]).save(paths["slice"])
    flair = np.ascontiguousarray(slices[..., FLAIR].transpose(2, 1, 0)[::-1, ::-1])  # (S, H, W) -> (R, A, S) order
    nib.save(nib.Nifti1Image(flair, np.diag([0.9, 0.9, 5.0, 1.0])), paths["volume"])
    return paths


class Visitor:
    """One client of the server, with what it asks for."""

    def __init__(self, number: int, url: str, images: dict[str, Path], model: str | None, pid: int | None):
        self.number, self.images = number, images
        self.client = Client(url, verbose=False, download_files=False)
        self.options = {"model": model} if model else {}
        self.process = psutil.Process(pid) if pid else None

    def ask(self, kind: str) -> Answer:
        file = handle_file(self.images[kind])
        sent, places, fault = time.monotonic(), [], None
        if kind == "slice":
            job = self.client.submit(image=file, **self.options, api_name="/segment_slice")
        else:
            job = self.client.submit(files=[file], **self.options, api_name="/segment_volume")
        while not job.done():
            place = job.status().rank
            if place is not None and places[-1:] != [place]:
                places.append(place)
            time.sleep(LOOK_EVERY)
        answered = time.monotonic()
        if error := job.exception():
            fault = f"{type(error).__name__}: {error}"
        return Answer(self.number, kind, sent, answered, tuple(places), fault, self.memory())

    def memory(self) -> float | None:
        """MiB that the server holds; None where it is not followed, or has ended."""
        try:
            held = self.process.memory_info().rss if self.process else 0
        except psutil.NoSuchProcess:
            return None
        return held / 2**20 or None  # of a process that nobody has waited for yet, 0


def time_alone(visitor: Visitor, repeats: int) -> None:
    for kind, times in (("slice", repeats), ("volume", 2)):
        first, *later = (answer(visitor, kind) for _ in range(times + 1))
        print(
            f"A {kind} alone: {statistics.median(later):.2f} s, the fastest {min(later):.2f} s, the first {first:.2f} s"
        )


def answer(visitor: Visitor, kind: str) -> float:
    """Seconds of one request, which has to succeed."""
    result = visitor.ask(kind)
    if result.fault:
        raise SystemExit(f"The server refused a {kind}: {result.fault}")
    return result.answered - result.sent


def ask_at_once(visitors: Sequence[Visitor], requests: int, volume_every: int) -> list[Answer]:
    """All requests, as fast as they are answered; in the order of the answers."""
    numbers, lock, found = iter(range(1, requests + 1)), threading.Lock(), []

    def ask_on(visitor: Visitor) -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            kind = "volume" if volume_every and number % volume_every == 0 else "slice"
            found.append(visitor.ask(kind))

    with ThreadPoolExecutor(len(visitors)) as pool:
        list(pool.map(ask_on, visitors))
    return sorted(found, key=lambda result: result.answered)


def overtaken(results: Sequence[Answer]) -> int:
    """How many requests were answered after one that was sent clearly later."""
    return sum(
        any(other.sent > result.sent + CLEARLY and other.answered < result.answered for other in results)
        for result in results
    )


def growth(memory: Sequence[float]) -> float:
    """MiB for 100 requests: the slope of the straight line nearest to the memory after each of at least two."""
    return 100 * float(np.polyfit(np.arange(len(memory)), memory, 1)[0])


def report(results: Sequence[Answer], clients: int) -> None:
    faults = [result.fault for result in results if result.fault]
    print(f"\n{len(results)} requests from {clients} clients at once, {len(faults)} of them refused")
    for fault in sorted(set(faults)):
        print(f"  {fault}")
    for kind in ("slice", "volume"):
        times = [result.answered - result.sent for result in results if result.kind == kind]
        if times:
            print(
                f"A {kind}, waiting included ({len(times)}): median {statistics.median(times):.2f} s, "
                f"95 of 100 within {np.percentile(times, 95):.2f} s, the slowest {max(times):.2f} s"
            )
    behind = [result.places for result in results if result.places and max(result.places) > 0]
    falling = sum(all(a > b for a, b in pairwise(places)) for places in behind)
    print(f"Told that others are before them: {len(behind)}; of these, {falling} saw their place only get better")
    of_client = [
        statistics.median(result.answered - result.sent for result in results if result.client == number)
        for number in range(clients)
        if any(result.client == number for result in results)
    ]
    print(
        f"Overtaken by a later request: {overtaken(results)}; a client's median wait lies between "
        f"{min(of_client):.2f} and {max(of_client):.2f} s"
    )
    memory = [result.memory for result in results if result.memory is not None]
    if len(memory) < 2:
        print("Memory: unknown without the process id of a server that is there")
        return
    warm = len(memory) // 5
    places = np.linspace(warm, len(memory) - 1, 5).round().astype(int)
    line = ", ".join(f"{memory[place]:.0f} after {place + 1}" for place in places)
    print(f"Memory, MiB: {line} requests; growth {growth(memory[warm:]):+.1f} for 100 requests")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder), args.size, args.num_slices)
        if args.url:
            return run(args, args.url, args.pid, images)
        with started_server(Path(folder)) as (url, pid):
            return run(args, url, pid, images)


def run(args: argparse.Namespace, url: str, pid: int | None, images: dict[str, Path]) -> int:
    try:
        visitors = [Visitor(number, url, images, args.model, pid) for number in range(args.clients)]
        model = args.model or visitors[0].client.predict(api_name="/list_models")["default"]
    except psutil.Error as error:
        sys.exit(f"benchmarks.space_load: error: --pid {pid} cannot be followed: {error}")
    except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
        sys.exit(f"benchmarks.space_load: error: no server of app.py answers at {url}: {error}")
    print(f"{model}, images of {args.size}x{args.size}, volumes of {args.num_slices} slices, {os.cpu_count()} cores")
    time_alone(visitors[0], args.repeats)
    results = ask_at_once(visitors, args.requests, args.volume_every)
    report(results, args.clients)
    return 1 if any(result.fault for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
