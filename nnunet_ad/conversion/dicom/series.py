"""Finds the series among files, chooses one, and reads it.

SimpleITK reads the voxels, so that geometry and rescaled values are those of its own series reader, and decodes what is
compressed. Before, the header of each slice is checked: the reader itself takes the geometry from the first and the
last slice, whatever lies between.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.pixels import get_decoder
from pydicom.uid import UID, AllTransferSyntaxes, MediaStorageDirectoryStorage

from nnunet_ad.conversion.dicom.files import (
    PARSER_ERRORS,
    UNREADABLE,
    is_dicom,
    modality_of,
    number_of,
    numbers_of,
    quiet,
    read_dataset,
    text_of,
)
from nnunet_ad.conversion.dicom.planes import MIN_STEP, Plane, order_along_normal, stack_of
from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.volumes import without_metadata

__all__ = ["Series", "SeriesChoiceError", "choose_series", "find_series", "is_dicom", "read_series"]

MASK_MODALITIES = ("SEG", "RTSTRUCT")
NO_IMAGES = {*MASK_MODALITIES, "AU", "DOC", "FID", "KO", "PR", "REG", "RTDOSE", "RTPLAN", "RTRECORD", "RWV", "SR"}
DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
# One series may hold several volumes of the same slices; these tell them apart.
VOLUME_KEYS = ("AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers")
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
_FIND_TAGS = (
    "SOPClassUID",
    "Modality",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "PatientID",
    "SeriesDescription",
    "SeriesNumber",
    "ImageType",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    *VOLUME_KEYS,
)
_READ_TAGS = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
)


@dataclass(frozen=True)
class Series:
    """One DICOM series.

    Attributes:
        uid: Its SeriesInstanceUID.
        description: Its description, which may hold whatever somebody typed.
        modality: As ``CT`` or ``MR``.
        number: Its number in the study, if it has one.
        files: Its files, sorted along the slice normal; in the order of their instance numbers if they state none.
        is_localizer: Whether its images are localizers, which make no volume.
        frame_of_reference: Its FrameOfReferenceUID, empty if it states none.
        patient: Its PatientID, empty if it states none. It identifies a patient, hence is not shown. Who issued it does
            not count: that is often left out, and to part one patient's cases would be worse than to join two's.
    """

    uid: str
    description: str
    modality: str
    number: int | None
    files: tuple[Path, ...]
    is_localizer: bool = False
    frame_of_reference: str = ""
    patient: str = field(default="", repr=False)


class SeriesChoiceError(ConversionError):
    """No series, or more than one, is left to choose from.

    Attributes:
        public_message: The message without descriptions, which may identify a patient; ``str()`` lists them, since the
            user needs them to choose.
    """

    def __init__(self, public_message: str, candidates: Sequence[Series]):
        listed = "; ".join(
            f"{'no number' if series.number is None else series.number}: {series.description!r}, {_kind(series)}"
            for series in candidates
        )
        super().__init__(f"{public_message}; the series are {listed}")
        self.public_message = public_message


def find_series(files: Iterable[Path]) -> tuple[list[Series], list[Series]]:
    """Find the series that files belong to. Of each file the header is read, once.

    Localizers are apart from the other images of their series. Volumes of the same slices in one series (acquisitions,
    time points or echoes) become series of their own, whose descriptions end in what tells them apart, as
    ``[EchoNumbers 2]``.

    Args:
        files: The files. Those that are no DICOM are passed over, as are DICOM objects that are neither images nor
            masks (reports, plans, …).

    Returns:
        The image series, and the DICOM-SEG and RTSTRUCT objects grouped by series; both in the order of the series'
        numbers, those without number last.

    Raises:
        ConversionError: A DICOM file cannot be read, a file named as DICOM is none, or the files of one series state
            several modalities.
    """
    paths = sorted(files)
    groups = defaultdict(list)
    modalities: dict[str, str] = {}
    for index, path in enumerate(paths):
        try:
            header = _find_header(path)
        except ConversionError as error:
            raise ConversionError(f"file {index + 1} of {len(paths)} in the order of their names: {error}") from None
        if header is None:
            continue
        uid, modality = text_of(header, "SeriesInstanceUID"), modality_of(header)
        if modalities.setdefault(uid, modality) != modality:
            raise ConversionError(
                f"the files of one series state the modalities {modalities[uid]} and {modality}, expected one; a file "
                "may be damaged, so get the series again from its source"
            )
        if modality in MASK_MODALITIES or modality not in NO_IMAGES:
            groups[uid, _is_localizer(header)].append((path, header))
    found = []
    for key in sorted(groups, key=lambda key: (_number_key(groups[key][0][1]), key)):
        found += _split(_describe(groups[key][0][1]), groups[key])
    return (
        [series for series in found if series.modality not in MASK_MODALITIES],
        [series for series in found if series.modality in MASK_MODALITIES],
    )


def choose_series(series: Sequence[Series], pattern: str | None) -> Series:
    """Choose the one series that is meant.

    Args:
        series: Image series.
        pattern: Regular expression that is searched in the descriptions, in upper or lower case. None chooses the only
            series, localizers apart.

    Raises:
        SeriesChoiceError: None or several are left.
        ConversionError: There is no series at all, or the pattern is no regular expression.
    """
    if not series:
        raise ConversionError("found no DICOM image series; add one")
    if pattern is None:
        left = [each for each in series if not each.is_localizer] or list(series)
    else:
        try:
            left = [each for each in series if re.search(pattern, each.description, re.IGNORECASE)]
        except re.error as error:
            raise ConversionError(f"--series-description is no regular expression ({error}); mend it") from None
    if len(left) == 1:
        return left[0]
    kinds = ", ".join(_kind(each) for each in series)
    found = f"found {len(series)} DICOM series ({kinds})"
    if pattern is not None:
        found += f", of which {len(left) or 'none'} match(es) --series-description"
    raise SeriesChoiceError(
        f"{found}, expected one; choose it by --series-description REGEX, which is searched in the descriptions", series
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
        with _counted(index, len(series.files)):
            headers.append(header := read_dataset(file, _READ_TAGS))
            _check_pixels(header)
    frames = [number_of(header, "NumberOfFrames") or 1 for header in headers]
    if max(frames) > 1:
        if len(frames) > 1:
            raise ConversionError(
                f"found {len(frames)} multi-frame files in one series, expected one; give each a folder of its own"
            )
        return _read_multi_frame(series.files[0])
    planes = []
    for index, header in enumerate(headers):
        with _counted(index, len(headers)):
            planes.append(_plane_of(header, header, header, _size_of(header)))
    stack = stack_of(planes)
    return stack.apply(without_metadata(_read_slices(series.files)))


def _kind(series: Series) -> str:
    return f"{series.modality} of {len(series.files)} file(s){', a localizer' if series.is_localizer else ''}"


@contextmanager
def _counted(index: int, total: int) -> Iterator[None]:
    """Say in which file of a series something is wrong, by its place: names may identify a patient."""
    try:
        yield
    except ConversionError as error:
        if total == 1:
            raise
        where = f"slice {index + 1} of {total}, counted along their normal"
        raise ConversionError(f"{where}: {error}") from None


def _find_header(path: Path) -> pydicom.Dataset | None:
    """Return what is needed of a header to find series; None for a file that is no DICOM or a directory of files."""
    if not is_dicom(path):
        if path.suffix.casefold() in DICOM_ENDINGS:
            raise ConversionError(
                "the file is named as DICOM but lacks the mark of DICOM, it may be damaged; get it again from its "
                "source, or remove it"
            )
        return None
    header = read_dataset(path, _FIND_TAGS)
    if text_of(header.file_meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        return None
    if not text_of(header, "SeriesInstanceUID") or not text_of(header, "Modality"):
        raise ConversionError(UNREADABLE)
    return header


def _describe(header: pydicom.Dataset) -> Series:
    """Return the series that a file belongs to, yet without its files."""
    return Series(
        text_of(header, "SeriesInstanceUID"),
        text_of(header, "SeriesDescription"),
        modality_of(header),
        number_of(header, "SeriesNumber"),
        (),
        _is_localizer(header),
        text_of(header, "FrameOfReferenceUID"),
        text_of(header, "PatientID"),
    )


def _number_key(header: pydicom.Dataset) -> tuple[bool, int]:
    number = number_of(header, "SeriesNumber")
    return number is None, number or 0


def _is_localizer(header: pydicom.Dataset) -> bool:
    return "LOCALIZER" in text_of(header, "ImageType").upper()


def _split(series: Series, images: list[tuple[Path, pydicom.Dataset]]) -> list[Series]:
    """Return a series, with its files in order, or the volumes of the same slices that it holds."""
    whole = replace(series, files=_sorted_files(images))
    positions = [_position_key(header) for _, header in images]
    if None in positions or len(set(positions)) == len(positions):
        return [whole]
    for keyword in VOLUME_KEYS:
        volumes: dict[int, list[tuple[Path, pydicom.Dataset]]] = defaultdict(list)
        numbers = [number_of(header, keyword) for _, header in images]
        for image, number in zip(images, numbers, strict=True):
            if number is not None:
                volumes[number].append(image)
        places = [[_position_key(header) for _, header in volume] for volume in volumes.values()]
        are_volumes = all(len(set(place)) == len(place) and set(place) == set(places[0]) for place in places)
        if None not in numbers and len(volumes) > 1 and are_volumes:
            return [
                replace(
                    series,
                    description=f"{series.description} [{keyword} {value}]".lstrip(),
                    files=_sorted_files(volumes[value]),
                )
                for value in sorted(volumes)
            ]
    return [whole]


def _position_key(header: pydicom.Dataset) -> tuple[int, ...] | None:
    """Return position and orientation of a slice, rounded so that equal ones compare as equal."""
    position = numbers_of(header, "ImagePositionPatient", 3)
    orientation = numbers_of(header, "ImageOrientationPatient", 6)
    if position is None or orientation is None:
        return None
    return (*(round(each / MIN_STEP) for each in position), *(round(each * 1000) for each in orientation))


def _sorted_files(images: list[tuple[Path, pydicom.Dataset]]) -> tuple[Path, ...]:
    positions = [numbers_of(header, "ImagePositionPatient", 3) for _, header in images]
    orientation = numbers_of(images[0][1], "ImageOrientationPatient", 6)
    known = [position for position in positions if position is not None]
    if orientation is not None and len(known) == len(positions):
        order = order_along_normal([Plane(position, orientation, (1.0, 1.0), (1, 1)) for position in known])
    else:
        numbers = [number_of(header, "InstanceNumber") or 0 for _, header in images]
        order = sorted(range(len(images)), key=numbers.__getitem__)
    return tuple(images[index][0] for index in order)


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
    if kind == "MONOCHROME1" and (number_of(header, "NumberOfFrames") or 1) == 1:
        raise ConversionError(
            "the PhotometricInterpretation is MONOCHROME1, for which the reader would invert the values, expected "
            "MONOCHROME2; export the series again in that form, or write MONOCHROME2 into the headers, which changes "
            "how the image is displayed and no value"
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


def _read_slices(files: Sequence[Path]) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    reader.SetOutputPixelType(sitk.sitkFloat32)
    with _quiet_itk():
        try:
            return reader.Execute()
        except RuntimeError:
            pass
        for index, file in enumerate(files):
            try:
                sitk.ReadImage(str(file))
            except RuntimeError:
                with _counted(index, len(files)):
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
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        raise ConversionError(
            "the multi-frame image does not state where its frames lie, expected an enhanced image or one file a "
            "slice; export it again in one of these forms"
        )
    shared = dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
    planes = []
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        parts = [
            _first_item(groups, keyword) or _first_item(shared[0], keyword) or pydicom.Dataset()
            for keyword in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        ]
        planes.append(_plane_of(parts[0], parts[1], parts[2], _size_of(dataset)))
    order = order_along_normal(planes)
    stack = stack_of([planes[index] for index in order])
    try:
        with quiet():
            image = highdicom.Image.from_dataset(dataset, copy=False)
            frames = image.get_frames(
                apply_real_world_transform=False, apply_modality_transform=None, apply_presentation_lut=False
            )
    except (*PARSER_ERRORS, RuntimeError):
        syntax = UID(text_of(dataset.file_meta, "TransferSyntaxUID"))
        packages = " and ".join(_missing_packages(syntax))
        how = f"; they are compressed by {syntax.name}, whose decoder may be missing: install {packages}"
        raise ConversionError(
            "the frames of the multi-frame image cannot be decoded, the file may be truncated"
            f"{how if packages else ''}; get it again from its source, or export one file a slice"
        ) from None
    if len(frames) != len(planes):
        raise ConversionError(
            f"the multi-frame image has {len(frames)} frames, but states the place of {len(planes)}; export it again"
        )
    return stack.apply(sitk.GetImageFromArray(np.asarray(frames, dtype=np.float32)[order]))


def _missing_packages(syntax: UID) -> list[str]:
    """Return the packages that are not installed here and decode a transfer syntax in pydicom."""
    try:
        missing = get_decoder(syntax).missing_dependencies
    except NotImplementedError:  # pydicom has no decoder for it
        return []
    return list(dict.fromkeys(re.findall(r"pylibjpeg[\w-]*", " ".join(missing))))


def _first_item(dataset: pydicom.Dataset, keyword: str) -> pydicom.Dataset | None:
    items = dataset.get(keyword)
    return items[0] if items else None
