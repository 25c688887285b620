"""Frames of 4-D NIfTI files as 3-D volumes, also where SimpleITK refuses the header.

SimpleITK reads no NIfTI file whose direction cosines are not orthonormal, so the files are read with nibabel. The
closest orthonormal directions take the place of the stored ones, spacing and centre of the volume stay.
"""

import gzip
import zlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from nnunet_ad.conversion.errors import ConversionError

ORTHONORMALITY_TOLERANCE = 1e-4  # of the scalar products of direction cosines; SimpleITK refuses larger deviations
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])  # NIfTI's axes point right, anterior, superior, those of SimpleITK opposite
_READ_ERRORS = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    zlib.error,
)
_DAMAGED = "the file cannot be read, it may be truncated or no compressed NIfTI-1; get it again from its source"


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


@dataclass(frozen=True)
class FrameSeries:
    """What the header of a 4-D file says.

    Attributes:
        path: The file.
        shape: Voxels along x, y and z.
        num_frames: Extent of the fourth axis.
        geometry: The geometry of every frame.
    """

    path: Path
    shape: tuple[int, ...]
    num_frames: int
    geometry: Geometry

    def read(self, frame: int) -> sitk.Image:
        """Read one frame.

        Args:
            frame: Number of the frame, the first is 0.

        Returns:
            A float32 volume.

        Raises:
            ConversionError: The file is damaged, or has no such frame.
        """
        self.check_frame(frame)
        stat = self.path.stat()
        try:
            image = nib.Nifti1Image.from_bytes(_decompressed(self.path, stat.st_mtime_ns, stat.st_size))
            values = np.asarray(image.dataobj[..., frame], dtype=np.float32)
        except _READ_ERRORS:
            raise ConversionError(_DAMAGED) from None
        volume = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
        volume.SetSpacing(self.geometry.spacing)
        volume.SetOrigin(self.geometry.origin)
        volume.SetDirection(self.geometry.direction)
        return volume

    def check_frame(self, frame: int) -> None:
        """Check that there is a frame of this number.

        Raises:
            ConversionError: There is not.
        """
        if not 0 <= frame < self.num_frames:
            raise ConversionError(
                f"frame {frame} was asked for, but the file has {self.num_frames} frames, numbered from 0; "
                "get the file again, or the table that states the frame"
            )


def read_series(path: Path) -> FrameSeries:
    """Read the header of a gzip-compressed 4-D NIfTI file.

    Raises:
        ConversionError: There is no such file, it is damaged, it does not hold a series of scalar 3-D volumes, or its
            header states no usable geometry.
    """
    if not path.is_file():
        raise ConversionError("there is no such file; add it")
    try:
        image = nib.load(path)
    except _READ_ERRORS:
        raise ConversionError(_DAMAGED) from None
    if not isinstance(image, nib.Nifti1Image):
        raise ConversionError(_DAMAGED)
    if image.get_data_dtype().kind not in "iuf":
        raise ConversionError(
            f"found voxels of the type {image.get_data_dtype()}, expected real numbers; get the file again from its "
            "source"
        )
    if image.ndim != 4 or 0 in image.shape:
        raise ConversionError(
            f"found the shape {_by(image.shape)}, expected x, y, z and frames; get the 4-D file from its source"
        )
    return FrameSeries(path, image.shape[:3], image.shape[3], _geometry(image.affine, image.shape[:3]))


def check_same_shape(series: FrameSeries, reference: FrameSeries, what_reference: str) -> None:
    """Check that two series have the same voxels and frames.

    Raises:
        ConversionError: They have not.
    """
    found, expected = ((*each.shape, each.num_frames) for each in (series, reference))
    if found != expected:
        raise ConversionError(
            f"found the shape {_by(found)}, but {what_reference} has {_by(expected)}; find the right partner"
        )


def _geometry(affine: np.ndarray, shape: tuple[int, ...]) -> Geometry:
    """Return the orthonormal geometry closest to a NIfTI affine, with the same spacing and centre."""
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


@lru_cache(maxsize=2)  # image and label of a subject, whose frames are read one after the other
def _decompressed(path: Path, mtime_ns: int, size: int) -> bytes:
    """Return the content of a gzip file, read to its end so that its checksum is compared.

    Args:
        path: The file.
        mtime_ns: Its time of change; with the size, so that a changed file is read again.
        size: Its size.
    """
    with gzip.open(path) as file:
        return file.read()


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(extent) for extent in shape)
