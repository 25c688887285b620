"""Reads every case once, checks it, and keeps what later steps need: never a volume."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import SimpleITK as sitk

import nnunet_ad
from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.conversion.hospital.checks import image_problems
from nnunet_ad.conversion.hospital.findings import Finding, Severity
from nnunet_ad.conversion.hospital.grid import Grid
from nnunet_ad.conversion.hospital.labels import IGNORE
from nnunet_ad.conversion.hospital.plan import PlannedCase
from nnunet_ad.conversion.hospital.reading import Reading, digest
from nnunet_ad.conversion.hospital.thumbnails import draw_thumbnail
from nnunet_ad.parallel import Workers

PERCENTILES = (0.5, 99.5)
MAX_VOXELS_FOR_PERCENTILES = 2_000_000


@dataclass(frozen=True)
class ChannelFacts:
    """What is kept of an image.

    Attributes:
        digest: Of its voxels.
        minimum: Of the intensities.
        low: 0.5 percentile of the intensities.
        high: 99.5 percentile.
        modality: As DICOM states it, or None.
    """

    digest: str
    minimum: float
    low: float
    high: float
    modality: str | None


@dataclass
class SurveyedCase:
    """A case and what reading it brought.

    Attributes:
        case: The case.
        findings: What was found, filled further by the checks across cases.
        source_grid: The grid of the first channel as its file states it; None if it could not be read.
        grid: The grid that the case will have in the dataset.
        channels: Facts of each channel that could be read, by its number.
        mask_digest: Digest of the label map, or None.
        millilitres: Volume of each structure; empty without a mask.
        thumbnail: A picture as PNG, or None.
    """

    case: PlannedCase
    findings: list[Finding] = field(default_factory=list)
    source_grid: Grid | None = None
    grid: Grid | None = None
    channels: dict[int, ChannelFacts] = field(default_factory=dict)
    mask_digest: str | None = None
    millilitres: dict[str, float] = field(default_factory=dict)
    thumbnail: bytes | None = None

    @property
    def is_good(self) -> bool:
        """Whether nothing keeps the case out of the dataset."""
        return not any(finding.severity is Severity.ERROR for finding in self.findings)

    @property
    def digest(self) -> str:
        """Digest of all that is written of a good case: its voxels, its grid and its role, whatever brought them so.

        Hence it changes with the source and with each option that matters, and with none that does not.
        """
        channels = [self.channels[index].digest for index in sorted(self.channels)]
        written = (nnunet_ad.__version__, str(self.case.role), self.grid, channels, self.mask_digest)
        return hashlib.sha256(repr(written).encode()).hexdigest()


def survey_cases(
    cases: Sequence[PlannedCase],
    reading: Reading,
    channel_names: tuple[str, ...],
    min_size: int,
    thumbnails: bool,
    workers: Workers,
) -> list[SurveyedCase]:
    """Read and check all cases, with a progress bar.

    Args:
        cases: The cases.
        reading: How volumes are read.
        channel_names: Names of the channels, for the findings.
        min_size: The fewest voxels that an axis of an image may have.
        thumbnails: Draw a picture of each case.
        workers: Who works on them.
    """
    survey = partial(_survey, reading=reading, channel_names=channel_names, min_size=min_size, thumbnails=thumbnails)
    return workers.map(survey, cases, "checking")


def _survey(
    case: PlannedCase, reading: Reading, channel_names: tuple[str, ...], min_size: int, thumbnails: bool
) -> SurveyedCase:
    surveyed = SurveyedCase(case)
    if case.source.error is not None:
        surveyed.findings.append(Finding.of(case.source.error, case.name, "files", case.source.paths))
        return surveyed
    first = None
    for index, channel in enumerate(case.channels):
        part = channel_part(index, channel_names)
        try:
            channel.check_intact()
            image = reading.channel(case, index, surveyed.source_grid if index else None)
        except ConversionError as error:
            surveyed.findings.append(Finding.of(error, case.name, part, channel.paths))
            if index == 0:
                break  # without a grid nothing else of the case can be judged
            continue
        if index == 0:
            surveyed.source_grid = Grid.of(image)
        problems = image_problems(image, min_size)
        surveyed.findings += [Finding(case.name, part, words, words, paths=channel.paths) for words in problems]
        image = reading.finish(image)
        if index == 0:
            surveyed.grid, first = Grid.of(image), image
        surveyed.channels[index] = _facts(image, channel.modality)
    mask = _survey_mask(surveyed, reading)
    if thumbnails and first is not None:
        surveyed.thumbnail = draw_thumbnail(first, mask)
    return surveyed


def channel_part(index: int, channel_names: tuple[str, ...]) -> str:
    """Return how findings name a channel."""
    return "image" if len(channel_names) == 1 else f"image of channel {channel_names[index]}"


def _survey_mask(surveyed: SurveyedCase, reading: Reading) -> sitk.Image | None:
    case = surveyed.case
    if case.mask is None:
        return None
    try:
        case.mask.check_intact()
        if surveyed.source_grid is None:
            return None
        mask = reading.mask(case, surveyed.source_grid)
    except ConversionError as error:
        surveyed.findings.append(Finding.of(error, case.name, "mask", case.mask.files))
        return None
    surveyed.findings += [
        Finding(case.name, "mask", words, words, Severity.WARNING, case.mask.files) for words in mask.warnings
    ]
    image = reading.finish(mask.image)
    surveyed.mask_digest = digest(image)
    counts = np.bincount(sitk.GetArrayViewFromImage(image).ravel())
    millilitres = float(np.prod(image.GetSpacing())) / 1000
    surveyed.millilitres = {
        name: float(counts[number]) * millilitres if number < len(counts) else 0.0
        for name, number in reading.masks.labels.numbers.items()
        if number and name != IGNORE
    }
    surveyed.findings += [_lacking(case, name) for name, volume in surveyed.millilitres.items() if not volume]
    return image


def _lacking(case: PlannedCase, name: str) -> Finding:
    words = (
        f"no voxel is {name}, hence the case counts as one without it; if it was not contoured rather than absent, "
        "contour it, mark where it may be as 'ignore', or leave the case out"
    )
    assert case.mask is not None
    return Finding(case.name, "mask", words, words, Severity.WARNING, case.mask.files)


def _facts(image: sitk.Image, modality: str | None) -> ChannelFacts:
    voxels = sitk.GetArrayViewFromImage(image).ravel()
    sample = voxels[:: 1 + voxels.size // MAX_VOXELS_FOR_PERCENTILES].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    low, high = np.percentile(sample, PERCENTILES) if sample.size else (0.0, 0.0)
    if low == high and sample.size:
        low, high = sample.min(), sample.max()
    minimum = float(voxels.min())
    return ChannelFacts(digest(image), minimum, float(low), float(high), modality)
