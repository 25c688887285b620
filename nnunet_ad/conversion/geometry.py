"""The geometry of NIfTI files in SimpleITK's terms, also where SimpleITK refuses the header as not orthonormal.

The closest orthonormal directions take the place of the stored ones, spacing and centre of the volume stay.
"""

from dataclasses import dataclass
from itertools import product

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from nnunet_ad.conversion.errors import ConversionError

ORTHONORMALITY_TOLERANCE = 1e-4  # of the scalar products of direction cosines; SimpleITK refuses larger deviations
_MM_PER_UNIT = {1: 1e3, 2: 1.0, 3: 1e-3}  # by NIfTI's codes
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])  # NIfTI's axes point right, anterior, superior, those of SimpleITK opposite


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a volume are, in SimpleITK's terms.

    Attributes:
        spacing: Distance of neighbouring voxels along each axis, mm.
        origin: Position of the first voxel, mm, axes pointing left, posterior and superior.
        direction: Orthonormal direction cosines, row by row.
        moved: By how many mm a voxel is at most from where the header puts it; 0 where the header's direction cosines
            were orthonormal.
    """

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    moved: float

    def put_on(self, volume: sitk.Image) -> None:
        """Give a volume this geometry."""
        volume.SetSpacing(self.spacing)
        volume.SetOrigin(self.origin)
        volume.SetDirection(self.direction)


def affine_in_mm(affine: np.ndarray, header: nib.Nifti1Header) -> np.ndarray:
    """Return an affine of a NIfTI file with lengths in mm, which the header may give in metres or micrometres.

    Args:
        affine: Maps voxels to the header's unit, (4, 4).
        header: The header.
    """
    return np.diag([*3 * [_MM_PER_UNIT.get(int(header["xyzt_units"]) % 8, 1.0)], 1.0]) @ affine


def closest_geometry(affine: np.ndarray, shape: tuple[int, ...]) -> Geometry:
    """Return the orthonormal geometry closest to a NIfTI affine, with the same spacing and centre.

    Args:
        affine: Maps voxels to mm, axes pointing right, anterior and superior, (4, 4).
        shape: Voxels along x, y and z.

    Raises:
        ConversionError: It has no spacing along an axis, or is far from orthonormal.
    """
    matrix, origin = _RAS_TO_LPS @ affine[:3, :3], _RAS_TO_LPS @ affine[:3, 3]
    spacing = np.linalg.norm(matrix, axis=0)
    if not np.isfinite(affine).all() or not spacing.all():
        raise ConversionError(
            f"the header states the affine {np.round(affine[:3], 4).tolist()}, expected finite numbers and a spacing "
            "above 0 along each axis; get the file again from its source"
        )
    cosines = matrix / spacing
    left, stretch, right = np.linalg.svd(cosines)
    if stretch.min() < 0.5:  # axes 60 degrees off, or in one plane: no rounding and no skewed scan
        raise ConversionError(
            f"the header states the direction cosines {np.round(cosines, 4).tolist()}, which are far from "
            "perpendicular; get the file again from its source"
        )
    direction = left @ right  # polar decomposition: closest in the sum of squares
    deviation = np.abs(cosines.T @ cosines - np.eye(3)).max()
    centre = (np.array(shape) - 1) / 2
    new_origin = origin + (matrix - direction * spacing) @ centre
    corners = np.array(list(product(*((0, extent - 1) for extent in shape)))).T
    moves = (direction * spacing - matrix) @ (corners - centre[:, None])
    moved = float(np.linalg.norm(moves, axis=0).max()) if deviation > ORTHONORMALITY_TOLERANCE else 0.0
    return Geometry(tuple(spacing.tolist()), tuple(new_origin.tolist()), tuple(direction.ravel().tolist()), moved)
