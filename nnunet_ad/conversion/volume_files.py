"""One NIfTI, NRRD or MHA file: whether it is whole and undamaged, and its volumes.

The library that reads volumes stops where the voxels end, before the checksum of a compressed file. So the checksums
are compared here: a damaged file must not pass as an image.
"""

import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import acos, degrees, prod
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.geometry import Geometry, affine_in_mm, closest_geometry
from nnunet_ad.conversion.nifti_header import NiftiImage

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
MAX_COSINE = 1e-3  # between axes that are called perpendicular
GZIP_MAGIC = b"\x1f\x8b"
MAX_HEADER_BYTES = 1 << 20
_MM = {"mm", "millimeter", "millimeters", "millimetre", "millimetres"}
_NO_UNIT = {"", "?", "???", "unknown", "none", "n/a"}
_CHUNK = 1 << 20  # bytes, a multiple of every number's length
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, ImageFileError, HeaderDataError, UnicodeDecodeError, OverflowError)
DAMAGED = "the file cannot be read, it may be truncated, damaged or of another format; get it again from its source"


def image_suffix(path: Path) -> str | None:
    """Return the ending that makes a file an image file, or None."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def stem(path: Path) -> str:
    """Return a file's name without the ending of an image file, or without its last ending."""
    suffix = image_suffix(path)
    return path.name[: -len(suffix)] if suffix else path.stem


def check_intact(path: Path, rectangular: bool = True) -> None:
    """Check that a file holds all its bytes, and that they are those that were compressed.

    Args:
        path: The file.
        rectangular: Whether the axes of a NIfTI file have to be perpendicular; SimpleITK reads no others.

    Raises:
        ConversionError: The file cannot be opened, is truncated or damaged, or is a NIfTI file with values that are not
            finite, in its voxels or geometry, or axes that are not perpendicular, which the library that reads it would
            hide or refuse.
    """
    with _damage_as_error():
        match image_suffix(path):
            case ".nrrd":
                _check_nrrd(path)
            case ".mha":
                _check_mha(path)
            case _:
                _check_nifti(path, rectangular)


def num_frames(path: Path) -> int:
    """Return the number of volumes in a file by its header.

    Raises:
        ConversionError: The header cannot be read.
    """
    return prod(_size(_header(path))[3:])


def read_file(path: Path, frame: int | None) -> sitk.Image:
    """Read one scalar 3-D volume.

    Where the axes of a NIfTI file are a little off a right angle, the closest perpendicular ones take their place.

    Args:
        path: The file.
        frame: Number of the volume, from 0; None for a file with a single one.

    Raises:
        ConversionError: The file cannot be read, holds several volumes and no frame was chosen, has no such frame, its
            voxels are no single real numbers, its axes are not perpendicular, or its lengths are not in mm.
    """
    header = _header(path)
    size = _size(header)
    if isinstance(header, nib.Nifti1Image):
        _check_frame(size, frame)
        return _read_skewed(header, frame or 0)
    reader = header
    if reader.GetNumberOfComponents() != 1 or "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise ConversionError(
            f"a voxel holds {reader.GetNumberOfComponents()} value(s) of the type "
            f"{sitk.GetPixelIDValueAsString(reader.GetPixelID())}, expected one real number; export the volume again "
            "without colours or components"
        )
    _check_frame(size, frame)
    if len(size) == 4:
        reader.SetExtractSize([*size[:3], 0])
        reader.SetExtractIndex([0, 0, 0, frame or 0])
    try:
        image = reader.Execute()
    except RuntimeError:
        raise ConversionError(DAMAGED) from None
    _check_perpendicular(np.reshape(image.GetDirection(), (3, 3)))
    if image_suffix(path) in (".nii", ".nii.gz"):
        _check_one_geometry(path, image)
    else:
        _check_unit(path)
    return image


def _check_frame(size: tuple[int, ...], frame: int | None) -> None:
    """Check that a file of this size has the volume that is wanted.

    Raises:
        ConversionError: It has not, or several where none was chosen.
    """
    frames = prod(size[3:])
    if len(size) < 3 or len(size) > 4:
        raise ConversionError(f"found {len(size)} dimensions, expected 3; give a volume")
    if frame is None and frames > 1:
        raise ConversionError(
            f"found 4 dimensions with {frames} volumes, expected one 3-D volume; choose by --frames, as in --frames 0"
        )
    if frame is not None and not 0 <= frame < frames:
        raise ConversionError(f"the file has {frames} volume(s), numbered from 0, hence no {frame}; change --frames")


@contextmanager
def _damage_as_error() -> Iterator[None]:
    try:
        yield
    except _DAMAGE:
        raise ConversionError(DAMAGED) from None
    except OSError as error:  # its words would name the path
        raise ConversionError(f"the file cannot be opened ({error.strerror}); check its permissions") from None


def _header(path: Path) -> sitk.ImageFileReader | nib.Nifti1Image:
    """Return a reader that has read the header, or the NIfTI file whose axes keep SimpleITK from reading it."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    if image_suffix(path) == ".mha":  # by itself it takes this ending in lower case only
        reader.SetImageIO("MetaImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        skewed = _skewed_nifti(path)
        if skewed is None:
            raise ConversionError(DAMAGED) from None
        return skewed
    return reader


def _size(header: sitk.ImageFileReader | nib.Nifti1Image) -> tuple[int, ...]:
    return header.shape if isinstance(header, nib.Nifti1Image) else header.GetSize()


def _skewed_nifti(path: Path) -> nib.Nifti1Image | None:
    """Return a NIfTI file if what keeps SimpleITK from reading it is that its axes are a little off a right angle.

    Raises:
        ConversionError: The axes are too far off, or it is NIfTI-2.
    """
    if image_suffix(path) not in (".nii", ".nii.gz"):
        return None
    try:
        image = _load_nifti(path)
    except ConversionError:
        return None
    if isinstance(image, nib.Nifti2Image):
        raise ConversionError("the file is NIfTI-2, which is not read; convert it to NIfTI-1")
    if not isinstance(image, nib.Nifti1Image) or image.ndim < 3:
        return None
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        return None
    _check_perpendicular(image.affine[:3, :3])
    return image if _geometry(image).moved else None


def _geometry(image: nib.Nifti1Image) -> Geometry:
    return closest_geometry(affine_in_mm(image.affine, image.header), image.shape[:3])


def _read_skewed(image: nib.Nifti1Image, frame: int) -> sitk.Image:
    """Read one volume of a NIfTI file with nibabel, on perpendicular axes."""
    with _damage_as_error():
        values = np.asarray(image.dataobj[..., frame] if image.ndim == 4 else image.dataobj)
    volume = sitk.GetImageFromArray(np.ascontiguousarray(values.T, dtype=values.dtype.newbyteorder("=")))
    _geometry(image).put_on(volume)
    return volume


def _load_nifti(path: Path) -> Any:
    """Open a NIfTI file.

    Raises:
        ConversionError: It cannot be opened, or its header holds what cannot be.
    """
    with _damage_as_error():
        try:
            is_nifti_1, _ = NiftiImage.path_maybe_image(path)
            return NiftiImage.from_filename(path) if is_nifti_1 else nib.load(path)
        except ConversionError:
            raise
        except ValueError:
            raise ConversionError(DAMAGED) from None


def _check_nifti(path: Path, rectangular: bool) -> None:
    image = _load_nifti(path)
    voxels, header = image.dataobj, image.header
    num_bytes, num_bad = 0, 0
    with path.open("rb") as file:
        is_compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        file.seek(0)
        stream: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=file) if is_compressed else file
        stream.read(voxels.offset)
        for chunk in iter(lambda: stream.read(_CHUNK), b""):
            num_bytes += len(chunk)
            num_bad += _num_not_finite(chunk, voxels.dtype)
    if num_bytes < prod(voxels.shape) * voxels.dtype.itemsize:
        raise EOFError
    if num_bad:  # the library that reads the volume would put zeros there
        raise ConversionError(
            f"the file has {num_bad} NaN or infinite value(s), expected finite ones; repair or replace the file"
        )
    if not np.isfinite(image.affine).all():  # on which the library that reads the volume may hang
        raise ConversionError(
            "the header states the geometry with NaN or infinite numbers, expected finite ones; export the file again"
        )
    if rectangular and header["sform_code"] > 0:
        _check_perpendicular(header.get_sform()[:3, :3])


def _num_not_finite(chunk: bytes, dtype: np.dtype) -> int:
    """Return how many values are not finite; what follows the last whole value is passed over."""
    if dtype.kind != "f":
        return 0
    values = np.frombuffer(chunk, dtype, len(chunk) // dtype.itemsize)
    return values.size - int(np.count_nonzero(np.isfinite(values)))


def _check_perpendicular(axes: np.ndarray) -> None:
    """Check the columns of a matrix; a tilted gantry leaves them oblique to each other.

    Raises:
        ConversionError: They are not perpendicular, or one of them is 0 or not finite.
    """
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise ConversionError("the header gives an axis no length or direction; export the file again")
    cosines = (axes / lengths).T @ (axes / lengths) - np.eye(3)
    worst = float(np.abs(cosines).max())
    if worst > MAX_COSINE:
        raise ConversionError(
            f"the axes of the grid are {degrees(acos(min(1.0, worst))):.1f} degrees apart, expected 90, as a tilted "
            "gantry or a registration leaves them; resample the volume onto a rectangular grid"
        )


def _check_one_geometry(path: Path, image: sitk.Image) -> None:
    """Check that each of a NIfTI header's statements of the geometry, qform and sform, is what was read.

    SimpleITK takes the spacing from a third statement, pixdim, also where there is an sform.

    Raises:
        ConversionError: One differs.
    """
    header = _load_nifti(path).header
    forms = [form for form in ("sform", "qform") if header[f"{form}_code"] > 0]
    read = np.column_stack([np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing(), image.GetOrigin()])
    corner = np.array([*(np.array(image.GetSize()) - 1), 1.0])
    for form in forms:
        affine = affine_in_mm(getattr(header, f"get_{form}")(), header)
        stated = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]  # NIfTI's x and y run the other way
        if np.abs((stated - read) @ corner).max() <= 0.1 * min(image.GetSpacing()):
            continue
        if len(forms) == 2:
            raise ConversionError(
                "the header states two positions of the volume that differ (qform and sform), expected one; "
                "export the file again, or remove the wrong one"
            )
        _check_lengths(form, np.linalg.norm(stated[:, :3], axis=0), np.array(image.GetSpacing()))
        raise ConversionError(
            "pixdim in the header holds a negative length, or a first number other than -1, 0 and 1, from which "
            f"readers make different things; expected what its {form} says; export the file again"
        )


def _check_lengths(form: str, lengths: np.ndarray, spacing: np.ndarray) -> None:
    """Check that voxels are as long by an affine as by the spacing beside it.

    Raises:
        ConversionError: They are not.
    """
    if not np.allclose(lengths, spacing):
        raise ConversionError(
            f"the header states two geometries that differ, voxels of {lengths.round(4).tolist()} mm by its {form} and "
            f"of {spacing.round(4).tolist()} mm by its pixdim, expected one; export the file again, or correct the "
            "wrong one"
        )


def _check_nrrd(path: Path) -> None:
    with path.open("rb") as file:
        fields = _nrrd_fields(file)
        if "data file" in fields or "datafile" in fields:
            raise ConversionError("the voxels are in another file than the header; export one NRRD file")
        if fields.get("encoding") in ("gzip", "gz"):
            _count(gzip.GzipFile(fileobj=file))


def _check_mha(path: Path) -> None:
    with path.open("rb") as file:
        fields = _mha_fields(file)
        if fields.get("elementdatafile") != "local":
            raise ConversionError("the voxels are in another file than the header; export one MHA file")
        if fields.get("compresseddata") == "true":
            _inflate(file)
        else:
            size = [int(extent) for extent in fields.get("dimsize", "").split() if extent.isdecimal()]
            types = {"char": 1, "uchar": 1, "short": 2, "ushort": 2, "int": 4, "uint": 4, "float": 4, "double": 8}
            width = types.get(fields.get("elementtype", "").removeprefix("met_"), 1)
            if path.stat().st_size - file.tell() < prod(size) * width:
                raise EOFError


def _check_unit(path: Path) -> None:
    """Check that the lengths in a NRRD or MHA file are in mm, for which SimpleITK takes all numbers.

    Raises:
        ConversionError: They are not.
    """
    with path.open("rb") as file:
        if image_suffix(path) == ".mha":
            units = [_mha_fields(file).get("distanceunits", "")]
        else:
            fields = _nrrd_fields(file)
            stated = (re.findall('"([^"]*)"', fields.get(name, "")) for name in ("space units", "units"))
            units = [unit for each in stated for unit in each[:3]]  # a fourth one is of time
    if others := [unit for unit in units if unit not in _MM | _NO_UNIT]:
        raise ConversionError(
            f"the header states lengths in {others[0]}, expected mm; export the file again with lengths in mm"
        )


def _nrrd_fields(file: BinaryIO) -> dict[str, str]:
    """Return the fields of a header in lower case; the file stands where the voxels begin."""
    fields = {}
    for line in _header_lines(file):
        if not line.strip():
            break
        key, _, value = line.partition(": ")
        fields[key.strip().lower()] = value.strip().lower()
    return fields


def _mha_fields(file: BinaryIO) -> dict[str, str]:
    """Return the fields of a header in lower case; the file stands where the voxels begin."""
    fields = {}
    for line in _header_lines(file):
        key, _, value = line.partition("=")
        fields[key.strip().lower()] = value.strip().lower()
        if key.strip().lower() == "elementdatafile":
            break
    return fields


def _header_lines(file: BinaryIO) -> Iterator[str]:
    """Yield the lines of a text header; the file stands behind the line that was yielded last."""
    while line := file.readline(MAX_HEADER_BYTES):
        yield line.decode("latin-1").rstrip("\r\n")


def _count(stream: gzip.GzipFile) -> int:
    """Read a compressed stream to its end, which compares its checksum, and return its length."""
    return sum(len(chunk) for chunk in iter(lambda: stream.read(_CHUNK), b""))


def _inflate(file: BinaryIO) -> None:
    """Read a zlib stream to its end, which compares its checksum."""
    stream = zlib.decompressobj()
    for chunk in iter(lambda: file.read(_CHUNK), b""):
        stream.decompress(chunk)
    if not stream.eof:
        raise EOFError
