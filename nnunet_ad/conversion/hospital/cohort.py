"""Checks across cases: what is there twice, and what is unlike the rest.

A case is far off if hardly any other is like it: fewer than one in ten, hence none among up to ten others. So two
scanners with images of their own pass, and a single odd case does not. Cases are compared within their domain.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from nnunet_ad.conversion.cases import Role
from nnunet_ad.conversion.hospital.findings import Finding, Severity
from nnunet_ad.conversion.hospital.survey import SurveyedCase, channel_part

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
    if not group:
        return
    axes = np.array([np.reshape(each.grid.direction, (3, 3)) for each in group if each.grid])

    def alike(own: np.ndarray) -> np.ndarray:
        return (own * axes).sum(axis=1).min(axis=1) > MIN_COSINE

    usual_index = int(np.argmax([np.count_nonzero(alike(own)) for own in axes]))
    usual = group[usual_index]
    assert usual.grid is not None
    for each, is_usual in zip(group, alike(axes[usual_index]), strict=True):
        if each.grid and not is_usual:
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
    spacings = np.array([sorted(each.grid.spacing) for each in group if each.grid])

    def alike(own: np.ndarray) -> np.ndarray:
        ratio = np.maximum(own, spacings) / np.minimum(own, spacings)
        return (ratio < 0.999 * MAX_SPACING_RATIO).all(axis=1)

    for index in _lonely(spacings, alike):
        usual = np.median(np.delete(spacings, index, axis=0), axis=0)
        _add(
            group[index],
            "image",
            f"the spacing is {_mm(spacings[index])}, but of the others typically {_mm(usual)}; check the unit "
            "and the series, or add --accept-outliers",
            severity,
        )


def _check_intensities(
    group: Sequence[SurveyedCase], index: int, channel_names: tuple[str, ...], severity: Severity
) -> None:
    group = [each for each in group if index in each.channels]
    ranges = np.array([(each.channels[index].low, each.channels[index].high) for each in group]).reshape(-1, 2)

    def alike(own: np.ndarray) -> np.ndarray:
        union = np.maximum(own[1], ranges[:, 1]) - np.minimum(own[0], ranges[:, 0])
        shared = np.minimum(own[1], ranges[:, 1]) - np.maximum(own[0], ranges[:, 0])
        return shared >= MIN_OVERLAP * union

    for number in _lonely(ranges, alike):
        own, usual = ranges[number], np.median(np.delete(ranges, number, axis=0), axis=0)
        _add(
            group[number],
            channel_part(index, channel_names),
            f"the intensities run from {own[0]:.4g} to {own[1]:.4g}, but of the others typically from {usual[0]:.4g} "
            f"to {usual[1]:.4g}; check the modality and the series, give scanners domains by --domains, or add "
            "--accept-outliers",
            severity,
        )


def _lonely(features: np.ndarray, alike: Callable[[np.ndarray], np.ndarray]) -> list[int]:
    """Return which cases hardly any other of their group is like.

    Args:
        features: What cases are compared by, a row each.
        alike: Returns for one row which rows are like it, itself among them.
    """
    num_others = len(features) - 1
    if len(features) < MIN_CASES:
        return []
    needed = max(1.0, MIN_SHARE * num_others)
    return [index for index, own in enumerate(features) if np.count_nonzero(alike(own)) - 1 < needed]


def _mm(spacing: Iterable[float]) -> str:
    return " x ".join(f"{each:.3g}" for each in spacing) + " mm"
