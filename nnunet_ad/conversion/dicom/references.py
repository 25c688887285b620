"""Which image series a DICOM-SEG or RTSTRUCT was drawn on."""

from pathlib import Path

import pydicom

from nnunet_ad.conversion.dicom.files import read_dataset, text_of
from nnunet_ad.conversion.dicom.series import Series

_REFERENCE_TAGS = (
    "Modality",
    "FrameOfReferenceUID",
    "PatientID",
    "ReferencedFrameOfReferenceSequence",
    "ReferencedSeriesSequence",
    "StructureSetROISequence",
)


def referenced_series(path: Path) -> str | None:
    """Return the SeriesInstanceUID of the image series that an RTSTRUCT or a DICOM-SEG refers to.

    Returns:
        The UID, or None if the file states none or several.

    Raises:
        ConversionError: The file cannot be read.
    """
    uids = _referenced_uids(read_dataset(path, _REFERENCE_TAGS))
    return uids.pop() if len(uids) == 1 else None


def refers_to(path: Path, series: Series) -> bool:
    """Return whether an RTSTRUCT or a DICOM-SEG may have been drawn on an image series.

    It may if it refers to the series; or if it is not of another patient, and refers to the frame of reference of the
    series, as to another series of the same session, or too little is stated to tell.

    Raises:
        ConversionError: The file cannot be read.
    """
    dataset = read_dataset(path, _REFERENCE_TAGS)
    uids = _referenced_uids(dataset)
    if series.uid in uids:
        return True
    frames = {text_of(dataset, "FrameOfReferenceUID")} if text_of(dataset, "Modality") == "SEG" else set()
    frames |= {text_of(item, "FrameOfReferenceUID") for item in dataset.get("ReferencedFrameOfReferenceSequence") or []}
    frames |= {text_of(roi, "ReferencedFrameOfReferenceUID") for roi in dataset.get("StructureSetROISequence") or []}
    frames -= {""}
    is_stated = bool(uids or (frames and series.frame_of_reference))
    return not _is_another_patient(dataset, series) and (series.frame_of_reference in frames or not is_stated)


def is_of_another_patient(path: Path, series: Series) -> bool:
    """Return whether an RTSTRUCT or a DICOM-SEG states another patient than an image series that it does not refer to.

    De-identification may give all patients one frame of reference, or strip references.

    Raises:
        ConversionError: The file cannot be read.
    """
    dataset = read_dataset(path, _REFERENCE_TAGS)
    return series.uid not in _referenced_uids(dataset) and _is_another_patient(dataset, series)


def _is_another_patient(dataset: pydicom.Dataset, series: Series) -> bool:
    stated = text_of(dataset, "PatientID")
    return bool(stated and series.patient) and stated != series.patient


def _referenced_uids(dataset: pydicom.Dataset) -> set[str]:
    """Return the SeriesInstanceUIDs that an RTSTRUCT or a DICOM-SEG refers to."""
    items = list(dataset.get("ReferencedSeriesSequence") or [])
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            items += study.get("RTReferencedSeriesSequence") or []
    return {text_of(item, "SeriesInstanceUID") for item in items} - {""}
