"""The voxel grid of a volume, without its voxels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from nnunet_ad.conversion.volumes import GEOMETRY_TOLERANCE


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
        """Return whether both grids are the same up to rounding in file headers."""
        return self.size == other.size and all(
            np.allclose(mine, others, rtol=0, atol=GEOMETRY_TOLERANCE)
            for mine, others in (
                (self.spacing, other.spacing),
                (self.origin, other.origin),
                (self.direction, other.direction),
            )
        )

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
