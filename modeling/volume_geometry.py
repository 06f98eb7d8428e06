"""Where an input's voxels lie: the way from its own axes to axial slices and back, by permutation and flips."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Geometry:
    """The input's own array and its relation to axial slices `(S, H, W)`.

    Axial slices run from the feet to the head, rows from front to back, columns from the patient's right to the left,
    as radiologists look at them.

    Attributes:
        shape: of the input's own array.
        affine: (4, 4) from its voxel indices to right, anterior, superior in mm; None where it is unknown.
        axes: the input's axis that becomes slice, row and column.
        flips: whether each of these runs the other way in the input.
        nifti_header: header of the NIfTI file that it came from, which holds more about its space than the affine.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray | None = None
    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)
    nifti_header: Any = field(default=None, repr=False)

    @classmethod
    def from_affine(cls, shape: tuple[int, int, int], affine: np.ndarray, nifti_header=None) -> "Geometry":
        """The geometry of an array with an affine: its axes are assigned to the closest anatomical ones.

        Raises:
            ValueError: an affine that does not span space.
        """
        from nibabel.orientations import io_orientation

        affine = np.asarray(affine, dtype=np.float64)
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise ValueError("the affine matrix does not span space")
        orientation = io_orientation(affine)  # of each input axis: the world's axis, and 1 or -1
        world = {int(axis): (index, direction > 0) for index, (axis, direction) in enumerate(orientation)}
        (column, to_right), (row, to_front), (slice_, to_head) = (world[axis] for axis in range(3))
        return cls(shape, affine, (slice_, row, column), (not to_head, to_front, to_right), nifti_header)

    def to_axial(self, array: np.ndarray) -> np.ndarray:
        """An array in the input's own axes, or with further ones behind them -> `(S, H, W, ...)`, a view."""
        further = range(3, array.ndim)
        return np.flip(array.transpose(*self.axes, *further), self._flipped)

    def from_axial(self, array: np.ndarray) -> np.ndarray:
        """`(S, H, W)` -> the input's own axes, a view; the inverse of `to_axial`."""
        return np.flip(array, self._flipped).transpose(np.argsort(self.axes))

    @property
    def _flipped(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(3) if self.flips[axis])

    @property
    def axial_shape(self) -> tuple[int, int, int]:
        return tuple(self.shape[axis] for axis in self.axes)

    @cached_property
    def axial_affine(self) -> np.ndarray | None:
        """(4, 4) from the indices (slice, row, column) to mm, None where the affine is unknown."""
        if self.affine is None:
            return None
        to_input = np.zeros((4, 4))
        to_input[3, 3] = 1
        for axial_axis, (input_axis, flipped) in enumerate(zip(self.axes, self.flips, strict=True)):
            to_input[input_axis, axial_axis] = -1 if flipped else 1
            to_input[input_axis, 3] = self.shape[input_axis] - 1 if flipped else 0
        return self.affine @ to_input

    @property
    def axial_spacing(self) -> tuple[float, float, float] | None:
        """Distance in mm between the planes of slices, rows and columns; None where the affine is unknown.

        Their product is a voxel's volume, also where the affine shears, as that of a tilted gantry does.
        """
        if self.affine is None:
            return None
        edges = self.axial_affine[:3, :3]
        rows, columns = np.linalg.norm(edges[:, 1:], axis=0)
        return float(abs(np.linalg.det(edges)) / (rows * columns)), float(rows), float(columns)

    @property
    def obliqueness(self) -> float:
        """Angle in degrees between the slices' normal and the body's axis; 0 where the affine is unknown."""
        if self.affine is None:
            return 0.0
        rows, columns = self.axial_affine[:3, 1], self.axial_affine[:3, 2]
        normal = np.cross(rows, columns)
        return float(np.degrees(np.arccos(min(abs(normal[2]) / np.linalg.norm(normal), 1.0))))

    def same_space(self, other: "Geometry", tolerance: float = 0.1) -> bool:
        """Whether two inputs have the same axial voxels, to within `tolerance` voxels at every corner.

        Where one of the affines is unknown, the shapes decide.
        """
        if self.axial_shape != other.axial_shape:
            return False
        if self.affine is None or other.affine is None:
            return True
        corners = np.array(np.meshgrid(*[(0, size - 1) for size in self.axial_shape], [1])).reshape(4, -1)
        distances = np.linalg.norm(((self.axial_affine - other.axial_affine) @ corners)[:3], axis=0)
        return bool(distances.max() <= tolerance * min(self.axial_spacing))
