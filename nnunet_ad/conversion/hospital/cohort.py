"""Checks across cases: what is there twice, and what is unlike the rest.

A case is far off if hardly any other is like it: fewer than one in ten, hence none among up to ten others. So two
scanners with images of their own pass, and a single odd case does not. Cases are compared within their domain.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from nnunet_ad.conversion.cases import Role
from nnunet_ad.conversion.hospital.findings import Finding, Severity
from nnunet_ad.conversion.hospital.survey import ChannelFacts, SurveyedCase, channel_part

MIN_CASES = 3  # fewer cannot say which of them is odd
MIN_SHARE = 0.1  # of the others must be like a case
MIN_COSINE = 0.5  # between corresponding axes of alike grids, 60 degrees
MAX_SPACING_RATIO = 2.0  # between alike cases, on every axis
MIN_OVERLAP = 0.25  # of the intensity ranges of alike cases, intersection over union


def check_cohort(
    surveyed: Sequence[SurveyedCase], domains: Mapping[str, str], channel_names: tuple[str, ...], accept_outliers: bool
) -> None:
    """Add the findings across cases to the cases they concern.

    Args:
        surveyed: All cases; those that could not be read are passed over.
        domains: Domain of each case by its neutral name.
        channel_names: Names of the channels.
        accept_outliers: Whether cases unlike the rest carry a warning instead of an error.
    """
    _check_names(surveyed)
    _check_identical(surveyed, channel_names)
    _check_test_masks(surveyed)
    severity = Severity.WARNING if accept_outliers else Severity.ERROR
    groups = defaultdict(list)
    for each in surveyed:
        if each.grid is not None:
            groups[domains[each.case.name]].append(each)
    for group in groups.values():
        _check_modalities(group, channel_names)
        _check_spacings(group, severity)
        for index in range(len(channel_names)):
            _check_intensities(group, index, channel_names, severity)
    _check_orientations([each for each in surveyed if each.grid is not None], severity)


def _add(each: SurveyedCase, part: str, words: str, severity: Severity = Severity.ERROR) -> None:
    each.findings.append(Finding(each.case.name, part, words, words, severity, each.case.source.paths))


def _check_names(surveyed: Iterable[SurveyedCase]) -> None:
    """Find cases of one name in the folders of two roles."""
    first: dict[str, SurveyedCase] = {}
    for each in surveyed:
        other = first.setdefault(each.case.source.name.casefold(), each)
        if other.case.role is not each.case.role:
            _add(
                each,
                "files",
                f"the case has the same name as {other.case.name}, which is {other.case.role}, expected each case in "
                "one role; remove one of them, or rename it if it is another patient",
            )


def _check_identical(surveyed: Iterable[SurveyedCase], channel_names: tuple[str, ...]) -> None:
    """Find images with the same voxels under two names; the first in the order of the cases stays."""
    first: dict[str, tuple[SurveyedCase, int]] = {}
    for each in surveyed:
        for index, facts in each.channels.items():
            other, other_index = first.setdefault(facts.digest, (each, index))
            if (other, other_index) == (each, index):
                continue
            whose = "another channel" if other is each else f"{other.case.name} ({other.case.role})"
            _add(
                each,
                channel_part(index, channel_names),
                f"the image has the same voxels as that of {whose}, expected each image once; remove one of them",
            )


def _check_test_masks(surveyed: Iterable[SurveyedCase]) -> None:
    """Warn of test cases without a mask where others have one."""
    test = [each for each in surveyed if each.case.role is Role.TEST and each.case.source.error is None]
    without = [each for each in test if each.case.mask is None]
    if without and len(without) < len(test):
        for each in without:
            _add(
                each, "mask", "the test case has no mask, but others have; add it to score this case", Severity.WARNING
            )


def _check_modalities(group: Sequence[SurveyedCase], channel_names: tuple[str, ...]) -> None:
    for index, name in enumerate(channel_names):
        stated = {each.case.name: each.channels[index].modality for each in group if index in each.channels}
        counts = Counter(modality for modality in stated.values() if modality)
        if len(counts) < 2:
            continue
        usual = counts.most_common(1)[0][0]
        for each in group:
            modality = stated.get(each.case.name)
            if modality and modality != usual:
                _add(
                    each,
                    channel_part(index, channel_names),
                    f"the DICOM header states the modality {modality}, but most of the others for {name} are {usual}; "
                    "choose the right series, or give the cases domains by --domains",
                )


def _check_orientations(group: Sequence[SurveyedCase], severity: Severity) -> None:
    """Find grids whose axes run elsewhere than those of the grid that most others are like.

    Names of orientations would not do: two oblique grids that hardly differ may have different ones.
    """
    axes = {each.case.name: np.reshape(each.grid.direction, (3, 3)) for each in group if each.grid}

    def alike(first: SurveyedCase, second: SurveyedCase) -> bool:
        cosines = (axes[first.case.name] * axes[second.case.name]).sum(axis=0)
        return bool(cosines.min() > MIN_COSINE)

    if not group:
        return
    usual = max(group, key=lambda each: sum(alike(each, other) for other in group))
    assert usual.grid is not None
    for each in group:
        if each.grid and not alike(each, usual):
            _add(
                each,
                "image",
                f"the axes run to {each.grid.orientation}, but in most of the others about as in {usual.case.name}, to "
                f"{usual.grid.orientation}, and nnU-Net does not turn images; choose the right series, or add "
                f"--reorient {usual.grid.orientation}, which swaps and flips axes without changing a voxel",
                severity,
            )


def _check_spacings(group: Sequence[SurveyedCase], severity: Severity) -> None:
    """Find spacings far from the others'; axes are compared by size, since orientations may differ."""
    spacings = {each.case.name: tuple(sorted(each.grid.spacing)) for each in group if each.grid}

    def alike(first: SurveyedCase, second: SurveyedCase) -> bool:
        pairs = zip(spacings[first.case.name], spacings[second.case.name], strict=True)
        return all(max(a, b) < 0.999 * MAX_SPACING_RATIO * min(a, b) for a, b in pairs)

    for each in _lonely(group, alike):
        others = [spacings[other.case.name] for other in group if other is not each]
        usual = [_median(axis) for axis in zip(*others, strict=True)]
        _add(
            each,
            "image",
            f"the spacing is {_mm(spacings[each.case.name])}, but of the others typically {_mm(usual)}; check the unit "
            "and the series, or add --accept-outliers",
            severity,
        )


def _check_intensities(
    group: Sequence[SurveyedCase], index: int, channel_names: tuple[str, ...], severity: Severity
) -> None:
    group = [each for each in group if index in each.channels]

    def alike(first: SurveyedCase, second: SurveyedCase) -> bool:
        return _overlap(first.channels[index], second.channels[index]) >= MIN_OVERLAP

    for each in _lonely(group, alike):
        facts = each.channels[index]
        others = [other.channels[index] for other in group if other is not each]
        low, high = _median([other.low for other in others]), _median([other.high for other in others])
        _add(
            each,
            channel_part(index, channel_names),
            f"the intensities run from {facts.low:.4g} to {facts.high:.4g}, but of the others typically from {low:.4g} "
            f"to {high:.4g}; check the modality and the series, give scanners domains by --domains, or add "
            "--accept-outliers",
            severity,
        )


def _lonely(group: Sequence[SurveyedCase], alike: Callable[[SurveyedCase, SurveyedCase], bool]) -> list[SurveyedCase]:
    """Return the cases that hardly any other of their group is like."""
    if len(group) < MIN_CASES:
        return []
    needed = max(1.0, MIN_SHARE * (len(group) - 1))
    return [each for each in group if sum(alike(each, other) for other in group if other is not each) < needed]


def _overlap(first: ChannelFacts, second: ChannelFacts) -> float:
    """Return intersection over union of two intensity ranges."""
    union = max(first.high, second.high) - min(first.low, second.low)
    shared = min(first.high, second.high) - max(first.low, second.low)
    return max(0.0, shared) / union if union > 0 else 1.0


def _median(numbers: Iterable[float]) -> float:
    numbers = sorted(numbers)
    return numbers[len(numbers) // 2]


def _mm(spacing: Iterable[float]) -> str:
    return " x ".join(f"{each:.3g}" for each in spacing) + " mm"
