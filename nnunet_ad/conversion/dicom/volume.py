"""Reads the volume of a series.

SimpleITK reads the voxels, so that geometry and rescaled values are those of its own series reader, and decodes what is
compressed. Before, the header of each slice is checked: the reader itself takes the geometry from the first and the
last slice, whatever lies between.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.pixels import get_decoder
from pydicom.uid import UID, AllTransferSyntaxes

from nnunet_ad.conversion.dicom.files import (
    PARSER_ERRORS,
    number_of,
    numbers_of,
    quiet,
    read_dataset,
    read_header,
    text_of,
)
from nnunet_ad.conversion.dicom.planes import Plane, order_along_normal, stack_of
from nnunet_ad.conversion.dicom.series import Series
from nnunet_ad.conversion.errors import ConversionError, SourceError
from nnunet_ad.conversion.volumes import without_metadata

DECODED = {  # transfer syntaxes that SimpleITK decodes, apart from those without compression
    "1.2.840.10008.1.2.4.50",  # JPEG baseline
    "1.2.840.10008.1.2.4.51",  # JPEG extended
    "1.2.840.10008.1.2.4.57",  # JPEG lossless
    "1.2.840.10008.1.2.4.70",  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.80",  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.81",  # JPEG-LS near lossless
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.5",  # run lengths
}
_READ_TAGS = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "ModalityLUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
)


def read_series(series: Series) -> sitk.Image:
    """Read the volume of a series.

    Returns:
        A float32 volume with rescale slope and intercept applied, and with the geometry that SimpleITK's series reader
        states.

    Raises:
        ConversionError: A file cannot be read or decoded, or the images are not one regular, upright volume of grey
            values.
    """
    if series.is_localizer:
        raise ConversionError("the series is a localizer, expected a volume; choose another series")
    headers = []
    for index, file in enumerate(series.files):
        with _naming_slice(series, index):
            header, num_bytes = read_header(file, _READ_TAGS)
            headers.append(header)
            _check_pixels(header)
            _check_bits(header)
            _scaling_of(header)
            _check_length(header, num_bytes)
    frames = [number_of(header, "NumberOfFrames") or 1 for header in headers]
    if max(frames) > 1:
        if len(frames) > 1:
            raise ConversionError(
                f"found {len(frames)} multi-frame files in one series, expected one; leave one of them in the folder "
                "of the case, or give each a case of its own"
            )
        with _naming_slice(series, 0):
            return _read_multi_frame(series.files[0])
    planes = []
    for index, header in enumerate(headers):
        with _naming_slice(series, index):
            planes.append(_plane_of(header, header, header, _size_of(header)))
    stack = stack_of(planes)
    return stack.apply(without_metadata(_read_slices(series)))


@contextmanager
def _naming_slice(series: Series, index: int) -> Iterator[None]:
    """Say in which file of a series something is wrong, by its place, and in private by name, which may identify."""
    try:
        yield
    except ConversionError as error:
        order = "counted along their normal" if series.is_along_normal else "in the order of their instance numbers"
        where = f"slice {index + 1} of {len(series.files)}, {order}: " if len(series.files) > 1 else ""
        raise SourceError(f"{where}{error}", series.files[index].name) from None


def _check_pixels(header: pydicom.Dataset) -> None:
    """Check that SimpleITK can decode the pixels, and that they are grey values."""
    stated = text_of(header.file_meta, "TransferSyntaxUID")
    if stated not in AllTransferSyntaxes:
        raise ConversionError("the header states no transfer syntax of DICOM, it may be damaged; export the file again")
    syntax = UID(stated)
    if syntax.is_compressed and syntax.is_encapsulated and syntax not in DECODED:
        raise ConversionError(
            f"the pixels are compressed by {syntax.name}, which is not decoded here; decompress the series first, for "
            "example by pydicom with the packages pylibjpeg and pylibjpeg-openjpeg"
        )
    if _size_of(header) == (0, 0):
        raise ConversionError("the file holds no pixel data, it may be truncated; get it again from its source")
    samples, kind = number_of(header, "SamplesPerPixel"), text_of(header, "PhotometricInterpretation")
    if samples not in (None, 1) or (kind and not kind.startswith("MONOCHROME")):
        raise ConversionError(
            "the image is in colour, expected grey values; choose the series that the scanner measured, not a picture "
            "made from it"
        )
    if header.get("ModalityLUTSequence"):
        raise ConversionError(
            "the header has a table of values (ModalityLUTSequence), expected RescaleSlope and RescaleIntercept, or "
            "none; export the series with its values in the pixels"
        )
    if kind == "MONOCHROME1" and (number_of(header, "NumberOfFrames") or 1) == 1:
        raise ConversionError(
            "the PhotometricInterpretation is MONOCHROME1, for which the reader would invert the values, expected "
            "MONOCHROME2; export the series again in that form, or write MONOCHROME2 into the headers, which changes "
            "how the image is displayed and no value"
        )


def _check_bits(header: pydicom.Dataset) -> None:
    """Check that the stored bits lie where GDCM and pydicom look for them; both read wrong values without a word."""
    allocated, stored, high = (number_of(header, keyword) for keyword in ("BitsAllocated", "BitsStored", "HighBit"))
    if stored is not None and high is not None and high != stored - 1:
        raise ConversionError(
            f"the header states a HighBit of {high} with {stored} stored bits, expected {stored - 1}, else values "
            "are read wrong; export the series again"
        )
    is_single = (number_of(header, "NumberOfFrames") or 1) == 1
    if is_single and allocated == 32 and stored is not None and stored < allocated:
        raise ConversionError(
            f"the pixels have {stored} stored of 32 allocated bits, which are read wrong, expected 32 of them, or "
            "pixels of 16 bits; export the series again in one of these forms"
        )


def _check_length(header: pydicom.Dataset, found: int | None) -> None:
    """Check that pixels that are not compressed are all there; SimpleITK would leave the others as its memory was."""
    rows, columns = _size_of(header)
    frames, bits = number_of(header, "NumberOfFrames") or 1, number_of(header, "BitsAllocated") or 0
    expected = rows * columns * frames * bits // 8
    if found is not None and found < expected:
        raise ConversionError(
            f"the file holds {found} bytes of pixel data, expected {expected}, it may be truncated; get it again from "
            "its source"
        )


def _size_of(header: pydicom.Dataset) -> tuple[int, int]:
    return number_of(header, "Rows") or 0, number_of(header, "Columns") or 0


def _plane_of(
    position: pydicom.Dataset, orientation: pydicom.Dataset, measures: pydicom.Dataset, size: tuple[int, int]
) -> Plane:
    """Return where a slice lies; the arguments are the datasets that state it."""
    vectors = {
        "ImagePositionPatient": numbers_of(position, "ImagePositionPatient", 3),
        "ImageOrientationPatient": numbers_of(orientation, "ImageOrientationPatient", 6),
        "PixelSpacing": numbers_of(measures, "PixelSpacing", 2),
    }
    missing = [keyword for keyword, vector in vectors.items() if vector is None]
    if missing:
        raise ConversionError(
            f"the header states no valid {' and '.join(missing)}, hence the place of the slice is unknown; choose a "
            "series of slices, or export it again"
        )
    place, axes, spacing = (vector or () for vector in vectors.values())
    return Plane(place, axes, spacing, size)


def _read_slices(series: Series) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in series.files])
    reader.SetOutputPixelType(sitk.sitkFloat32)
    with _quiet_itk():
        try:
            return reader.Execute()
        except RuntimeError:
            pass
        for index, file in enumerate(series.files):
            try:
                sitk.ReadImage(str(file))
            except RuntimeError:
                with _naming_slice(series, index):
                    raise ConversionError(_why_unreadable(file)) from None
    raise ConversionError("the slices cannot be put together to one volume; export the series again")


@contextmanager
def _quiet_itk() -> Iterator[None]:
    """Keep ITK from printing warnings, which name files."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def _why_unreadable(file: Path) -> str:
    if "PixelData" not in read_dataset(file, ("PixelData",), pixels=True):
        return "the file holds no pixel data, it may be truncated; get it again from its source"
    return "the pixel data cannot be decoded, the file may be truncated; get it again from its source"


def _read_multi_frame(file: Path) -> sitk.Image:
    """Read an enhanced multi-frame image that holds one volume."""
    dataset = read_dataset(file, pixels=True)
    if not dataset.get("PerFrameFunctionalGroupsSequence"):
        raise ConversionError(
            "the multi-frame image does not state where its frames lie, expected an enhanced image or one file a "
            "slice; export it again in one of these forms"
        )
    shared = dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
    planes, factors = [], []
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        parts = [
            _first_item(groups, keyword) or _first_item(shared[0], keyword) or pydicom.Dataset()
            for keyword in (
                "PlanePositionSequence",
                "PlaneOrientationSequence",
                "PixelMeasuresSequence",
                "PixelValueTransformationSequence",
            )
        ]
        planes.append(_plane_of(parts[0], parts[1], parts[2], _size_of(dataset)))
        factors.append(_scaling_of(parts[3] or dataset))
    num_frames = number_of(dataset, "NumberOfFrames")
    if num_frames != len(planes):
        raise ConversionError(
            f"the multi-frame image has {num_frames} frames, but states the place of {len(planes)}; export it again"
        )
    order = order_along_normal(planes)
    stack = stack_of([planes[index] for index in order])
    try:
        with quiet():
            frames = dataset.pixel_array.reshape(num_frames, *_size_of(dataset)).astype(np.float32)
    except (*PARSER_ERRORS, RuntimeError):
        syntax = UID(text_of(dataset.file_meta, "TransferSyntaxUID"))
        packages = " and ".join(_missing_packages(syntax))
        how = f"; they are compressed by {syntax.name}, whose decoder may be missing: install {packages}"
        raise ConversionError(
            "the frames of the multi-frame image cannot be decoded, the file may be truncated"
            f"{how if packages else ''}; get it again from its source, or export one file a slice"
        ) from None
    slopes, intercepts = np.array(factors, dtype=np.float32).T[..., None, None]
    return stack.apply(sitk.GetImageFromArray((frames * slopes + intercepts)[order]))


def _missing_packages(syntax: UID) -> list[str]:
    """Return the packages that are not installed here and decode a transfer syntax in pydicom."""
    try:
        missing = get_decoder(syntax).missing_dependencies
    except NotImplementedError:  # pydicom has no decoder for it
        return []
    return list(dict.fromkeys(re.findall(r"pylibjpeg[\w-]*", " ".join(missing))))


def _scaling_of(dataset: pydicom.Dataset) -> tuple[float, float]:
    """Return slope and intercept of the values, checked, since GDCM takes a slope that is no number for 1."""
    return _number(dataset, "RescaleSlope", 1.0), _number(dataset, "RescaleIntercept", 0.0)


def _number(dataset: pydicom.Dataset, keyword: str, default: float) -> float:
    try:
        number = float(text_of(dataset, keyword) or default)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConversionError(f"the header states a {keyword} that is no number; export the file again")
    return number


def _first_item(dataset: pydicom.Dataset, keyword: str) -> pydicom.Dataset | None:
    items = dataset.get(keyword)
    return items[0] if items else None
