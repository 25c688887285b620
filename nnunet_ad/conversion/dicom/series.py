"""Finds the series among files, and chooses one; their volumes are read in ``volume``."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pydicom
from pydicom.uid import MediaStorageDirectoryStorage

from nnunet_ad.conversion.dicom.files import (
    UNREADABLE,
    is_dicom,
    modality_of,
    number_of,
    numbers_of,
    read_dataset,
    text_of,
)
from nnunet_ad.conversion.dicom.planes import MIN_STEP, Plane, order_along_normal
from nnunet_ad.conversion.errors import ConversionError, SourceError

MASK_MODALITIES = ("SEG", "RTSTRUCT")
NO_IMAGES = {*MASK_MODALITIES, "AU", "DOC", "FID", "KO", "PR", "REG", "RTDOSE", "RTPLAN", "RTRECORD", "RWV", "SR"}
DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
# One series may hold several volumes of the same slices; these tell them apart.
VOLUME_KEYS = ("AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers")
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


@dataclass(frozen=True)
class Series:
    """One DICOM series.

    Attributes:
        uid: Its SeriesInstanceUID.
        description: Its description, which may hold whatever somebody typed.
        modality: As ``CT`` or ``MR``.
        number: Its number in the study, if it has one.
        files: Its files, sorted along the slice normal; in the order of their instance numbers if one states no place.
        is_localizer: Whether its images are localizers, which make no volume.
        frame_of_reference: Its FrameOfReferenceUID, empty if it states none.
        patient: Its PatientID, empty if it states none. It identifies a patient, hence is not shown. Who issued it does
            not count: that is often left out, and to part one patient's cases would be worse than to join two's.
        is_along_normal: Whether the files are sorted along the slice normal.
    """

    uid: str
    description: str
    modality: str
    number: int | None
    files: tuple[Path, ...]
    is_localizer: bool = False
    frame_of_reference: str = ""
    patient: str = field(default="", repr=False)
    is_along_normal: bool = True


class SeriesChoiceError(ConversionError):
    """No series, or more than one, is left to choose from.

    Attributes:
        public_message: The message without descriptions, which may identify a patient; ``str()`` lists them, since the
            user needs them to choose.
    """

    def __init__(self, public_message: str, candidates: Sequence[Series]):
        super().__init__(public_message, candidates)  # as they are, for the way from one process to another
        self.public_message = public_message

    def __str__(self) -> str:
        public_message, candidates = self.args
        listed = "; ".join(
            f"{'no number' if series.number is None else series.number}: {series.description!r}, {_kind(series)}"
            for series in candidates
        )
        return f"{public_message}; the series are {listed}"


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
            raise SourceError(
                f"file {index + 1} of {len(paths)} in the order of their names: {error}", path.name
            ) from None
        if header is None:
            continue
        uid, modality = text_of(header, "SeriesInstanceUID"), modality_of(header)
        if modalities.setdefault(uid, modality) != modality:
            raise SourceError(
                f"the files of one series state the modalities {modalities[uid]} and {modality}, expected one; a file "
                "may be damaged, so get the series again from its source",
                path.name,
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
        pattern: Regular expression that is searched in the descriptions, in upper or lower case; where none has it, in
            modality, number and description, as ``MR 4: description``. None fits all. Localizers are left out where
            other series fit.

    Raises:
        SeriesChoiceError: None or several are left.
        ConversionError: There is no series at all, or the pattern is no regular expression.
    """
    if not series:
        raise ConversionError("found no DICOM image series; add one")
    left = list(series)
    if pattern is not None:
        try:
            left = _matching(series, pattern)
        except re.error as error:
            raise ConversionError(f"--series-description is no regular expression ({error}); mend it") from None
    left = [each for each in left if not each.is_localizer] or left
    if len(left) == 1:
        return left[0]
    kinds = ", ".join(_kind(each) for each in series)
    found = f"found {len(series)} DICOM series ({kinds})"
    if pattern is not None:
        found += f", of which {len(left) or 'none'} match(es) --series-description"
    raise SeriesChoiceError(
        f"{found}, expected one; choose it by --series-description REGEX, which is searched in the descriptions, then "
        "in 'MODALITY NUMBER: DESCRIPTION'",
        series,
    )


def _matching(series: Sequence[Series], pattern: str) -> list[Series]:
    for text in (lambda each: each.description, lambda each: f"{each.modality} {each.number}: {each.description}"):
        if found := [each for each in series if re.search(pattern, text(each), re.IGNORECASE)]:
            return found
    return []


def _kind(series: Series) -> str:
    return f"{series.modality} of {len(series.files)} file(s){', a localizer' if series.is_localizer else ''}"


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
    whole = _with_sorted_files(series, images)
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
                _with_sorted_files(
                    replace(series, description=f"{series.description} [{keyword} {value}]".lstrip()), volumes[value]
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


def _with_sorted_files(series: Series, images: list[tuple[Path, pydicom.Dataset]]) -> Series:
    positions = [numbers_of(header, "ImagePositionPatient", 3) for _, header in images]
    orientation = numbers_of(images[0][1], "ImageOrientationPatient", 6) or ()
    known = [position for position in positions if position is not None]
    is_along_normal = bool(orientation) and len(known) == len(positions)
    if is_along_normal:
        order = order_along_normal([Plane(position, orientation, (1.0, 1.0), (1, 1)) for position in known])
    else:
        numbers = [number_of(header, "InstanceNumber") or 0 for _, header in images]
        order = sorted(range(len(images)), key=numbers.__getitem__)
    return replace(series, files=tuple(images[index][0] for index in order), is_along_normal=is_along_normal)
