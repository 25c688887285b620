"""Small DICOM files with planted patient data: image series, DICOM-SEG, RTSTRUCT. Needs the extra ``dicom``.

Directions are nine cosines row by row, as SimpleITK states them; spacings and origins are ordered (x, y, z); arrays are
ordered (z, y, x).
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import highdicom
import numpy as np
import pydicom
from numpy.typing import ArrayLike, NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.sr.codedict import codes
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    RTStructureSetStorage,
    generate_uid,
)

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
# Planted into every file; none of these values may come out of a conversion.
PLANTED = {
    "PatientName": "Plantedname^Givenname",
    "PatientID": "PLANTED-ID-4711",
    "PatientBirthDate": "19010203",
    "PatientComments": "planted comment",
    "StudyDate": "19690720",
    "SeriesDate": "19690720",
    "ContentDate": "19690720",
    "StudyTime": "201740",
    "AccessionNumber": "PLANTEDACC99",
    "StudyDescription": "planted study",
    "InstitutionName": "Planted Hospital",
    "ReferringPhysicianName": "Plantedphysician^Ref",
    "StudyID": "PLANTEDSTUDY",
}
_STORAGE = {"CT": CTImageStorage, "MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}


def write_series(
    folder: Path,
    array: ArrayLike,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    direction: Sequence[float] = IDENTITY,
    *,
    description: str = "made series",
    number: int = 1,
    modality: str = "CT",
    series_uid: str | None = None,
    patient: Mapping[str, str] = PLANTED,
    slope: float = 1.0,
    intercept: float = 0.0,
    drop_slices: Sequence[int] = (),
    tilt: float = 0.0,
    names: str = "IM{:04d}.dcm",
    elements: Mapping[str, object] | None = None,
) -> list[Path]:
    """Write a volume as one file a slice; more than once into one folder if ``names`` differ.

    Args:
        folder: Where to write; made if it is missing.
        array: Stored values (z, y, x), integers within the range of int16.
        spacing: Voxel spacing in mm.
        origin: Centre of the first voxel.
        direction: Direction cosines.
        description: SeriesDescription.
        number: SeriesNumber.
        modality: CT, MR or PT.
        series_uid: SeriesInstanceUID; a new one if None.
        patient: Elements of the patient, as :data:`PLANTED`.
        slope: RescaleSlope.
        intercept: RescaleIntercept.
        drop_slices: Slices that are left out.
        tilt: Angle in degrees by which the stack is sheared along the rows' axis, as by a tilted gantry.
        names: File name of a slice by a number, which runs against the order of the slices.
        elements: Further elements of every slice.

    Returns:
        The files, in the order of the slices.
    """
    array = np.asarray(array, dtype=np.int16)
    axes = np.reshape(direction, (3, 3))
    step = axes[:, 2] + np.tan(np.radians(tilt)) * axes[:, 1]
    series_uid = series_uid or generate_uid()
    study_uid, frame_uid = generate_uid(entropy_srcs=["study"]), generate_uid(entropy_srcs=["frame of reference"])
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index, values in enumerate(array):
        if index in drop_slices:
            continue
        dataset = _new_dataset(_STORAGE[modality], modality, patient, study_uid, series_uid, frame_uid)
        dataset.SeriesDescription, dataset.SeriesNumber, dataset.InstanceNumber = description, number, index + 1
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.ImagePositionPatient = _decimals(np.add(origin, spacing[2] * index * step))
        dataset.ImageOrientationPatient = _decimals(axes[:, :2].T.ravel())
        dataset.PixelSpacing, dataset.SliceThickness = _decimals([spacing[1], spacing[0]]), str(spacing[2])
        dataset.RescaleSlope, dataset.RescaleIntercept = str(slope), str(intercept)
        _set_pixels(dataset, values)
        for keyword, value in (elements or {}).items():
            setattr(dataset, keyword, value)
        file = folder / names.format(len(array) - index)
        dataset.save_as(file, enforce_file_format=True)
        files.append(file)
    return files


def write_multi_frame(
    file: Path,
    array: ArrayLike,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    direction: Sequence[float] = IDENTITY,
    *,
    slope: float = 1.0,
    frame_order: Sequence[int] | None = None,
) -> None:
    """Write a volume as one enhanced MR image.

    Args:
        file: Where to write.
        array: Stored values (z, y, x), integers within the range of int16.
        spacing: Voxel spacing in mm.
        origin: Centre of the first voxel.
        direction: Direction cosines.
        slope: Rescale slope of the first slice in space; each following one has one more.
        frame_order: Number of the slice in each frame; those of the array if None.
    """
    array = np.asarray(array, dtype=np.int16)
    axes = np.reshape(direction, (3, 3))
    order = list(range(len(array))) if frame_order is None else list(frame_order)
    dataset = _new_dataset(EnhancedMRImageStorage, "MR", PLANTED, generate_uid(), generate_uid(), generate_uid())
    dataset.SeriesDescription, dataset.SeriesNumber, dataset.InstanceNumber = "made enhanced image", 1, 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    shared, dataset.PerFrameFunctionalGroupsSequence = pydicom.Dataset(), Items()
    shared.PlaneOrientationSequence = _item(ImageOrientationPatient=_decimals(axes[:, :2].T.ravel()))
    shared.PixelMeasuresSequence = _item(PixelSpacing=_decimals([spacing[1], spacing[0]]), SliceThickness=spacing[2])
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    for index in order:
        frame = pydicom.Dataset()
        position = np.add(origin, spacing[2] * index * axes[:, 2])
        frame.PlanePositionSequence = _item(ImagePositionPatient=_decimals(position))
        frame.PixelValueTransformationSequence = _item(
            RescaleSlope=str(slope + index), RescaleIntercept="0", RescaleType="US"
        )
        dataset.PerFrameFunctionalGroupsSequence.append(frame)
    _set_pixels(dataset, array[order])
    dataset.NumberOfFrames = len(order)
    dataset.save_as(file, enforce_file_format=True)


def write_segmentation(
    file: Path,
    series: Sequence[Path],
    masks: Mapping[str, ArrayLike],
    *,
    kind: str = "BINARY",
    omit_empty: bool = True,
) -> None:
    """Write a DICOM-SEG on the grid of a series.

    Args:
        file: Where to write.
        series: Files of the series in the order of the slices.
        masks: For each segment's label its mask (z, y, x).
        kind: BINARY, FRACTIONAL or LABELMAP; the masks of the last may not overlap.
        omit_empty: Leave out frames without any marked pixel.
    """
    sources = [pydicom.dcmread(each) for each in series]
    for source in sources:  # required by the standard, and highdicom insists on them
        for keyword in ("PatientSex", "PositionReferenceIndicator"):
            setattr(source, keyword, getattr(source, keyword, None))
    arrays = [np.asarray(mask) != 0 for mask in masks.values()]
    if kind == "LABELMAP":
        pixels = sum(np.uint8(index + 1) * array for index, array in enumerate(arrays))
    else:
        pixels = np.stack(arrays, axis=-1).astype(np.float32 if kind == "FRACTIONAL" else np.uint8)
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=index + 1,
            segment_label=label,
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Organ,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for index, label in enumerate(masks)
    ]
    segmentation = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=descriptions,
        series_instance_uid=generate_uid(),
        series_number=100,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="made",
        manufacturer_model_name="made",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=omit_empty,
        content_creator_name="Plantedcreator^Given",
        series_description="planted segmentation",
    )
    segmentation.save_as(file)


def write_rtstruct(
    file: Path,
    series: Sequence[Path],
    structures: Mapping[str, Sequence[ArrayLike]],
    *,
    kind: str = "CLOSED_PLANAR",
) -> None:
    """Write an RTSTRUCT that refers to a series.

    Args:
        file: Where to write.
        series: Files of the series.
        structures: For each structure's name (ROI) its contours, (points, 3) in mm.
        kind: ContourGeometricType.
    """
    source = pydicom.dcmread(series[0], stop_before_pixels=True)
    patient = {keyword: source.get(keyword) for keyword in PLANTED if keyword in source}
    dataset = _new_dataset(
        RTStructureSetStorage, "RTSTRUCT", patient, source.StudyInstanceUID, generate_uid(), source.FrameOfReferenceUID
    )
    dataset.StructureSetLabel, dataset.SeriesDescription = "made contours", "planted contours"
    in_series = _item(SeriesInstanceUID=source.SeriesInstanceUID)
    in_study = _item(ReferencedSOPInstanceUID=source.StudyInstanceUID, RTReferencedSeriesSequence=in_series)
    dataset.ReferencedFrameOfReferenceSequence = _item(
        FrameOfReferenceUID=source.FrameOfReferenceUID, RTReferencedStudySequence=in_study
    )
    dataset.StructureSetROISequence, dataset.ROIContourSequence = Items(), Items()
    for index, (name, contours) in enumerate(structures.items()):
        dataset.StructureSetROISequence += _item(ROINumber=index + 1, ROIName=name, ROIGenerationAlgorithm="MANUAL")
        items = Items()
        for points in contours:
            points = np.asarray(points, dtype=np.float64)
            items += _item(
                ContourGeometricType=kind,
                NumberOfContourPoints=len(points),
                ContourData=[f"{number:.6f}" for number in points.ravel()],
            )
        dataset.ROIContourSequence += _item(ReferencedROINumber=index + 1, ContourSequence=items)
    dataset.save_as(file, enforce_file_format=True)


def _new_dataset(
    storage: str, modality: str, patient: Mapping[str, object], study_uid: str, series_uid: str, frame_uid: str
) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = storage, generate_uid(), modality
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study_uid, series_uid
    dataset.FrameOfReferenceUID = frame_uid
    for keyword, value in patient.items():
        setattr(dataset, keyword, copy.copy(value))
    return dataset


def _set_pixels(dataset: pydicom.Dataset, values: NDArray[np.int16]) -> None:
    dataset.Rows, dataset.Columns = values.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PixelData = values.astype("<i2").tobytes()


def _item(**elements: object) -> Items:
    """Return a sequence of one item."""
    dataset = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return Items([dataset])


def _decimals(numbers: ArrayLike) -> list[str]:
    """Return numbers as text of at most 16 characters, as DICOM wants."""
    return [f"{number:.10f}"[:16] for number in np.asarray(numbers, dtype=np.float64)]
