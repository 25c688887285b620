"""The voxel grid of a volume, without its voxels."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

MAX_SHIFT = 0.01  # of a voxel's shortest edge, for every voxel of grids that are the same up to rounding in headers,
MAX_SHIFT_MM = 0.01  # but no more than this


@dataclass(frozen=True)
class Grid:
    """Size in voxels, spacing and origin in mm, and direction cosines row by row, axes in the order x, y, z."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> "Grid":
        """Return the grid of a volume."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    def empty_image(self) -> sitk.Image:
        """Return a uint8 volume of zeros on this grid."""
        image = sitk.Image(list(self.size), sitk.sitkUInt8)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image

    def matches(self, other: "Grid") -> bool:
        """Return whether both grids are the same up to rounding in file headers, for every voxel."""
        return self.size == other.size and self._shift(other) <= min(MAX_SHIFT * min(other.spacing), MAX_SHIFT_MM)

    def unlike(self, other: "Grid") -> str:
        """Return this grid and the other one that was expected, in words."""
        words = f"{self}, expected {other}"
        return f"{words}, up to {self._shift(other):.2g} mm away" if self.size == other.size else words

    def _shift(self, other: "Grid") -> float:
        """Return how far apart in mm the same voxel of two grids of one size is at most, which is at a corner."""
        return float(np.linalg.norm(self._corners() - other._corners(), axis=1).max())

    def _corners(self) -> NDArray[np.float64]:
        """Return the places (8, 3) of the voxels in the corners, in mm."""
        voxels = np.array(list(product(*((0, extent - 1) for extent in self.size))), dtype=np.float64)
        axes = np.reshape(self.direction, (3, 3)) * np.array(self.spacing)
        return voxels @ axes.T + np.array(self.origin)

    @property
    def orientation(self) -> str:
        """Where the axes run to, rounded to the main directions of the body, as ``LPS``."""
        return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(self.direction)

    def __str__(self) -> str:
        size = " x ".join(map(str, self.size))
        return (
            f"{size} voxels of {_rounded(self.spacing)} mm, origin {_rounded(self.origin)}, "
            f"direction {_rounded(self.direction)}"
        )


def on_grid(image: sitk.Image, grid: Grid) -> sitk.Image:
    """Return a volume with exactly the geometry of a grid that it matches."""
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


def _rounded(numbers: Sequence[float]) -> str:
    return "(" + ", ".join(f"{round(number, 4) + 0.0:g}" for number in numbers) + ")"
