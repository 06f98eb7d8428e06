"""The phantom's anatomy: a head as implicit surfaces, painted tissue over tissue in three MR contrasts.

A surface is a field that is positive inside; fields are smooth, so that edges blend over a pixel. Irregular shapes come
from smooth noise: the folds of the cortex are its zero crossings, and the outline of the lesion is bent by it.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

# Signal before contrast, on FLAIR and after contrast; 1 is fat on T1.
SKIN_FAT = (0.92, 0.70, 0.82)
SOFT_TISSUE = (0.44, 0.36, 0.50)
BONE = (0.06, 0.05, 0.06)
MARROW = (0.45, 0.24, 0.42)
FLUID = (0.16, 0.07, 0.17)
GREY_MATTER = (0.42, 0.49, 0.46)
WHITE_MATTER = (0.57, 0.40, 0.60)
DEEP_GREY = (0.48, 0.47, 0.52)
VESSEL = (0.20, 0.12, 1.05)
LESION = (0.39, 0.80, 0.41)
CORE = (0.24, 0.58, 0.26)
ENHANCEMENT = (0.42, 0.80, 1.05)


class Grid(NamedTuple):
    """Axes of a volume, float32: x and y from -1 to 1 over the frame, z upwards with the vertex of the head at 1."""

    z: np.ndarray
    y: np.ndarray
    x: np.ndarray


class Head(NamedTuple):
    """Coordinates that follow a head and broadcast to (S, H, W). All lengths are shares of its half-axes.

    `u` runs to the image's right, `v` to the back, `w` up; `depth` is the distance below the skin, `brain` the distance
    below the surface of the brain.
    """

    u: np.ndarray
    v: np.ndarray
    w: np.ndarray
    depth: np.ndarray
    brain: np.ndarray


class Signal:
    """Signal of the three contrasts in `values`, (3, S, H, W) float32, painted tissue over tissue.

    `edge` is the width of a pixel in head coordinates, over which neighbouring tissues blend.
    """

    def __init__(self, grid: Grid, edge: float):
        self.values = np.zeros((3, *(len(axis) for axis in grid)), dtype=np.float32)
        self.edge = edge

    def paint(self, inside: np.ndarray, tissue: tuple[float, float, float], softness: float = 1.0) -> None:
        """Paint where `inside` is positive, blending over an edge of about `softness` pixels."""
        self.blend(np.clip(inside / (self.edge * softness) + 0.5, 0, 1), tissue)

    def blend(self, weight: np.ndarray, tissue: tuple[float, float, float]) -> None:
        """Mix a tissue in with a weight from 0 to 1, (S, H, W)."""
        for channel, value in zip(self.values, tissue, strict=True):
            channel += weight * (np.float32(value) - channel)


def smooth_noise(rng: np.random.Generator, grid: Grid, scale: float, z_scale: float | None = None) -> np.ndarray:
    """Random field (S, H, W) float32 of mean 0 and variance about 1: a cubic B-spline with random coefficients.

    `scale` is the distance of its knots in units of the grid (`z_scale` along z). The coefficients do not depend on the
    grid, so the same field is sampled at any resolution.
    """
    weights = []
    for axis, step in zip(grid, (z_scale or scale, scale, scale), strict=True):
        knots = np.arange(int(2.5 / step) + 4, dtype=np.float32) - 1
        distance = np.abs((axis[:, None] + 1.25) / step - knots)
        near = 2 / 3 - distance**2 + distance**3 / 2
        far = np.clip(2 - distance, 0, None) ** 3 / 6
        weights.append(np.where(distance < 1, near, far).astype(np.float32))
    field = rng.standard_normal([weight.shape[1] for weight in weights], dtype=np.float32)
    for axis, weight in enumerate(weights):
        field = np.moveaxis(np.tensordot(weight, field, axes=(1, axis)), 0, axis)
    return field * np.float32((315 / 151) ** 1.5)  # 151/315 is the mean squared sum of the spline's weights


def _ramp(values: np.ndarray, start: float, stop: float) -> np.ndarray:
    """0 up to `start`, 1 from `stop` on, linear between; `start` may be the larger."""
    return np.clip((values - start) / (stop - start), 0, 1)


def _union(*fields: np.ndarray) -> np.ndarray:
    return functools.reduce(np.maximum, fields)


def _intersection(*fields: np.ndarray) -> np.ndarray:
    return functools.reduce(np.minimum, fields)


def _ellipsoid(head: Head, center: tuple[float, float, float], axes: tuple[float, float, float]) -> np.ndarray:
    """Positive inside, 0 on the surface, 1 in the center."""
    offsets = ((c - m) / a for c, m, a in zip((head.u, head.v, head.w), center, axes, strict=True))
    return 1 - np.sqrt(sum(offset**2 for offset in offsets))


def make_head(rng: np.random.Generator, grid: Grid) -> Head:
    """Draw a head's size, place, tilt and slight asymmetry."""
    angle = rng.uniform(-0.1, 0.1)
    shift_x, shift_y = rng.uniform(-0.04, 0.04, 2).tolist()
    half_width, half_length = rng.uniform(0.57, 0.64), rng.uniform(0.72, 0.79)

    cos, sin = math.cos(angle), math.sin(angle)
    y, x = (grid.y - shift_y)[None, :, None], (grid.x - shift_x)[None, None, :]
    u = (cos * x + sin * y) / half_width
    v = (cos * y - sin * x) / half_length
    w = grid.z[:, None, None]
    wobble = 0.025 * smooth_noise(rng, grid, 0.7)

    # Below the brow the head goes on as face and neck, narrower in front.
    below = np.clip(-w, 0, None)
    narrowing = 1 + 0.5 * below * _ramp(v, 0.0, -1.0)
    radius = np.sqrt((u * narrowing) ** 2 + (v * (1 - 0.08 * below)) ** 2 + np.where(w > 0, w, 0.3 * w) ** 2)
    brain_radius = np.sqrt(
        (u / 0.84) ** 2 + ((v - 0.02 - 0.3 * below) / 0.85) ** 2 + np.where(w > 0, w / 0.88, w / 0.74) ** 2
    )
    return Head(u, v, w, 1 - radius + wobble, 1 - brain_radius + wobble)


def paint_skull(signal: Signal, rng: np.random.Generator, grid: Grid, head: Head) -> None:
    """Paint skin, fat and skull, and in the lower slices face and orbits."""
    texture = smooth_noise(rng, grid, 0.10, 0.2)
    signal.paint(head.depth, SOFT_TISSUE)
    signal.paint(head.depth - 0.012, SKIN_FAT)
    signal.paint(head.depth - 0.065 - 0.008 * texture, BONE)

    face = _ramp(head.w, -0.12, -0.30) * _ramp(head.v, 0.25, 0.05)
    inner = _ramp(head.depth, 0.06, 0.09) * face
    signal.blend(inner, SOFT_TISSUE)
    signal.blend(inner * _ramp(texture, 0.5, 0.9), SKIN_FAT)
    signal.blend(inner * _ramp(texture, -0.3, -0.6), BONE)
    for side in (-1, 1):
        orbit = 0.2 * _ellipsoid(head, (0.34 * side, -0.62, -0.40), (0.25, 0.30, 0.20))
        signal.paint(_intersection(orbit, head.depth - 0.02), SKIN_FAT)
        signal.paint(0.2 * _ellipsoid(head, (0.36 * side, -0.70, -0.40), (0.17, 0.16, 0.14)), FLUID)

    signal.paint(head.brain + 0.11, BONE)
    signal.blend(_ramp(0.022 - np.abs(head.depth - 0.105 - 0.006 * texture), 0, 0.012) * (1 - face), MARROW)


def paint_brain(signal: Signal, rng: np.random.Generator, grid: Grid, head: Head) -> np.ndarray:
    """Paint all inside the skull and return the field that is positive in the ventricles."""
    u, v, w, _, brain = head
    lateral = np.abs(u)
    folds = np.abs(smooth_noise(rng, grid, 0.062, 0.09))
    folia = np.abs(smooth_noise(rng, grid, 0.035, 0.06))
    fine = smooth_noise(rng, grid, 0.05, 0.1)
    midline = np.abs(u + 0.012 * smooth_noise(rng, grid, 0.25))

    cerebellum = _ramp(w, -0.24, -0.30) * _ramp(v, 0.10, 0.16)
    folds += cerebellum * (folia - folds)
    cortex = 1 - brain / 0.33
    fissure = 0.013 - midline + 0.01 * _ramp(brain, 0.15, 0.0)
    central = 1 - np.sqrt((v / 0.52) ** 2 + ((w - 0.12) / 0.40) ** 2)
    fissure = _intersection(fissure, -0.3 * central)
    sylvian = _intersection(
        0.022 - np.abs(v + 0.10 + 0.25 * (lateral - 0.6) + 0.015 * fine), lateral - 0.46, 0.24 - np.abs(w - 0.02)
    )

    signal.paint(brain + 0.03, FLUID)
    signal.paint(brain, WHITE_MATTER)
    ribbon = 0.10 * (0.85 * np.sqrt(np.clip(cortex, 0, None)) - folds)
    ribbon = _union(ribbon, 0.05 - brain, fissure + 0.045, sylvian + 0.045)
    signal.paint(_intersection(ribbon, brain), GREY_MATTER, 2)
    sulci = _union(0.06 * (0.24 * np.clip(1 - brain / 0.22, 0, None) - folds), fissure, sylvian)
    signal.paint(_intersection(sulci, brain + 0.03), FLUID, 1.5)
    vessels = _intersection(sulci, 0.03 * (fine - 1.3), brain + 0.03)
    sinus = 0.035 - np.hypot(u, np.abs(brain + 0.012) * 1.2) - 0.2 * _ramp(v - w, 0.1, -0.4)
    signal.paint(_union(vessels, sinus), VESSEL, 1.5)

    for side in (-1, 1):
        signal.paint(_ellipsoid(head, (0.13 * side, 0.10, 0.08), (0.10, 0.15, 0.15)) * 0.1, DEEP_GREY, 2)
        signal.paint(_ellipsoid(head, (0.33 * side, -0.06, 0.08), (0.075, 0.20, 0.15)) * 0.1, DEEP_GREY, 2)
        signal.paint(_ellipsoid(head, (0.17 * side, -0.27, 0.14), (0.06, 0.10, 0.18)) * 0.1, DEEP_GREY, 2)
    stem = (
        0.2 * _ellipsoid(head, (0, 0.16, -0.56), (0.21, 0.17, 0.38)) + 0.008 * fine - 0.03 * _ramp(lateral, 0.05, 0.0)
    )
    signal.paint(_intersection(stem + 0.025 + 0.012 * fine, brain), FLUID, 2)
    signal.paint(stem, WHITE_MATTER, 2)

    # Lateral ventricles: a pair of tubes along v that part towards both ends, thickest in the middle of their height.
    width = rng.uniform(0.8, 1.35)
    course = 0.09 + 0.55 * np.clip(v - 0.08, 0, None) ** 1.3 + 0.45 * np.clip(-0.12 - v, 0, None) ** 1.2
    height = 0.20 - 0.25 * np.clip(v - 0.2, 0, None)
    tube = width * 0.075 * np.sqrt(np.clip(1 - ((v - 0.05) / 0.44) ** 2, 0, None))
    lateral_ventricle = tube - np.hypot(lateral - course, 0.35 * (w - height)) + 0.006 * fine
    third = _intersection(0.022 * width - midline, 0.06 * _ellipsoid(head, (0, 0.06, 0.03), (1, 0.17, 0.14)))
    fourth = 0.08 * _ellipsoid(head, (0, 0.38, -0.42), (0.10, 0.07, 0.16))
    ventricles = _union(lateral_ventricle, third, fourth)
    halo = _intersection(lateral_ventricle, 0.2 * (brain - 0.2))
    signal.blend(0.3 * _ramp(halo, -0.035, 0.0), LESION)  # bright on FLAIR, but no lesion
    signal.paint(ventricles, FLUID, 1.5)

    signal.values *= 1 + 0.025 * smooth_noise(rng, grid, 0.03, 0.06) + 0.03 * fine
    return ventricles


def paint_lesion(
    signal: Signal, rng: np.random.Generator, grid: Grid, head: Head, ventricles: np.ndarray
) -> np.ndarray:
    """Paint an irregular lesion of one hemisphere and return its mask (S, H, W) bool; its center lies on a slice."""
    wanted = rng.uniform(0.02, 0.45)
    w = float(grid.z[np.argmin(np.abs(grid.z - wanted))])
    angle = rng.uniform(-1.1, 1.1) + math.pi * int(rng.integers(2))
    reach = 0.5 * math.sqrt(1 - w**2)
    center = (reach * math.cos(angle), reach * math.sin(angle), w)
    axes = rng.uniform((0.20, 0.22, 0.24), (0.36, 0.42, 0.42)).tolist()
    has_core, enhances = rng.random(2) < (0.4, 0.5)

    shape = 0.6 * smooth_noise(rng, grid, 0.16, 0.2) + 0.4 * smooth_noise(rng, grid, 0.07, 0.1)
    texture = smooth_noise(rng, grid, 0.06, 0.1)
    body = _ellipsoid(head, center, axes)
    body += 0.30 * shape * _ramp(body, 1.0, 0.6)
    inside = _intersection(body, 5 * (head.brain - 0.03), -8 * ventricles)
    strength, border = rng.uniform((0.65, 0.15), (0.95, 0.35)).tolist()
    signal.blend(strength * _ramp(inside, -border / 2, border) * (1 + 0.10 * texture + 0.12 * shape), LESION)
    if has_core:
        signal.blend(0.9 * _ramp(inside - 0.12 * texture, 0.55, 0.68), CORE)
    if enhances:
        signal.blend(_ramp(np.abs(inside - 0.55 - 0.10 * texture), 0.10, 0.03) * _ramp(texture, -0.8, 0.0), ENHANCEMENT)
    mask = inside > 0
    labels, count = ndimage.label(mask)
    if count > 1:  # islands that the irregular shape cut off belong to no lesion
        mask = labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1
    return mask
