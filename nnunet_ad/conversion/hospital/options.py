"""What the user asks for."""

import re
from dataclasses import dataclass
from pathlib import Path

from nnunet_ad.conversion.hospital.checks import MIN_SIZE
from nnunet_ad.conversion.hospital.plan import Frames

DEFAULT_CHANNEL = "image"  # nnU-Net normalises it by itself, as any name but CT


@dataclass(frozen=True)
class Options:
    """The options of the command; see its ``--help`` and ``docs/hospital-data.md``.

    Attributes:
        dataset_id: nnU-Net's number of the new dataset.
        name: Its name, which the neutral case names begin with.
        labeled: Folder of the cases with masks.
        labels: ``labels.json``.
        unlabeled: Folder of the cases without masks, or None.
        test: Folder of the held-out cases, or None.
        channels: Names of the channels; empty for a single one that is named after its modality.
        image_patterns: For each channel, the pattern of its files' names, or None.
        mask_pattern: Pattern of masks' file names, or None.
        series_patterns: For each channel, the regular expression of its DICOM series' description, or None.
        modality: Name of a single channel, or None for the one that DICOM states.
        frames: Which volumes of 4-D files become cases, or None.
        resample_channels: Bring channels onto the grid of the first.
        resample_masks: Bring masks onto the grid of the image.
        later_wins: Where structures overlap, the later one in ``labels.json`` counts.
        accept_other_series: Read DICOM masks that refer to another series than the image or state another patient.
        reorient: Orientation to bring all volumes to, or None.
        patient_regex: Pattern of the patient in a case's name, or None.
        patients: Table of patients, or None.
        domains: Table of domains, or None.
        num_folds: Number of folds of a cross-validation, or None for one fold.
        seed: Seed of the folds.
        min_size: The fewest voxels that an axis of an image may have.
        accept_outliers: Write cases whose spacing, intensities or orientation are unlike the rest.
        skip_bad: Leave out cases with errors and write the others.
        mapping: File to write the mapping to, or None.
        report: Folder of the report, or None for the dataset's.
        overwrite: Replace a dataset of the same id and name.
        dry_run: Check everything and write nothing.
        processes: Parallel processes, or None for one a core, at most eight.
    """

    dataset_id: int
    name: str
    labeled: Path
    labels: Path
    unlabeled: Path | None = None
    test: Path | None = None
    channels: tuple[str, ...] = ()
    image_patterns: tuple[str | None, ...] = (None,)
    mask_pattern: str | None = None
    series_patterns: tuple[str | None, ...] = (None,)
    modality: str | None = None
    frames: Frames = None
    resample_channels: bool = False
    resample_masks: bool = False
    later_wins: bool = False
    accept_other_series: bool = False
    reorient: str | None = None
    patient_regex: re.Pattern[str] | None = None
    patients: Path | None = None
    domains: Path | None = None
    num_folds: int | None = None
    seed: int = 0
    min_size: int = MIN_SIZE
    accept_outliers: bool = False
    skip_bad: bool = False
    mapping: Path | None = None
    report: Path | None = None
    overwrite: bool = False
    dry_run: bool = False
    processes: int | None = None

    @property
    def tell_patients(self) -> bool:
        """Whether an option says whose case is whose."""
        return self.patients is not None or self.patient_regex is not None
