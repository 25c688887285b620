"""Frames of 4-D NIfTI files as 3-D volumes, also where SimpleITK refuses the header.

SimpleITK reads no NIfTI file whose direction cosines are not orthonormal, so the files are read with nibabel.
"""

import gzip
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.geometry import Geometry, affine_in_mm, closest_geometry

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
        self.geometry.put_on(volume)
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
    geometry = closest_geometry(affine_in_mm(image.affine, image.header), image.shape[:3])
    return FrameSeries(path, image.shape[:3], image.shape[3], geometry)


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
