"""Do the unlabelled cases look like the labelled ones? Warnings with numbers; a difference is never refused.

In domain adaptation they differ on purpose; elsewhere a difference is often a wrong header, unit or folder.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnunet_ad.data.dataset import UnlabeledDataset
from nnunet_ad.data.labeled import damaged
from nnunet_ad.data.preprocessed import INTENSITIES, intensities_of

MAX_SPACING_RATIO = 2.0  # beyond the range of the labelled cases, along any axis
MAX_SHIFT = 1.0  # of a case's mean beyond the range of the labelled means, in SDs of a labelled image
MAX_SD_RATIO = 3.0  # beyond the range of the labelled SDs
_MOST_IMAGES = 10  # labelled images that are read for their intensities
_MOST_NAMED = 5


class Look(NamedTuple):
    """What a case is compared by.

    Attributes:
        spacing: Of the file, mm, in the order of the array's axes.
        mean: Of the whole image after nnU-Net's normalisation, one a channel.
        sd: Standard deviation likewise.
    """

    spacing: np.ndarray
    mean: np.ndarray
    sd: np.ndarray


def domain_gap(labeled: nnUNetBaseDataset, unlabeled: UnlabeledDataset) -> list[str]:
    """Return a warning each where spacing or intensities of unlabelled cases are far from those of the labelled ones.

    Intensities are those that the network sees, after normalisation: what it removes is no difference.

    Raises:
        ValueError: If the image of a labelled case can't be read, or has values that are not finite.
    """
    ours = [_look_at_labeled(labeled, case) for case in _evenly(labeled.identifiers, _MOST_IMAGES)]
    theirs = {case: _look(unlabeled.load_properties(case)) for case in unlabeled.identifiers}
    return [*_spacing_gap(ours, theirs), *_intensity_gap(ours, theirs)]


def _spacing_gap(ours: Sequence[Look], theirs: Mapping[str, Look]) -> Iterator[str]:
    low, high = _range([look.spacing for look in ours])
    far = {
        case: _numbers(look.spacing)
        for case, look in theirs.items()
        if (look.spacing * MAX_SPACING_RATIO < low).any() or (look.spacing > MAX_SPACING_RATIO * high).any()
    }
    if far:
        yield _warning("spacing in mm", far, len(theirs), _ranges(low, high))


def _intensity_gap(ours: Sequence[Look], theirs: Mapping[str, Look]) -> Iterator[str]:
    lowest_mean, highest_mean = _range([look.mean for look in ours])
    lowest_sd, highest_sd = _range([look.sd for look in ours])
    margin = MAX_SHIFT * np.median([look.sd for look in ours], axis=0)
    far = {
        case: f"mean {_numbers(look.mean)}, SD {_numbers(look.sd)}"
        for case, look in theirs.items()
        if (look.mean < lowest_mean - margin).any()
        or (look.mean > highest_mean + margin).any()
        or (look.sd * MAX_SD_RATIO < lowest_sd).any()
        or (look.sd > MAX_SD_RATIO * highest_sd).any()
    }
    if far:
        expected = f"mean {_ranges(lowest_mean, highest_mean)}, SD {_ranges(lowest_sd, highest_sd)}"
        yield _warning("normalised intensity, channel by channel,", far, len(theirs), expected)


def _warning(subject: str, far: Mapping[str, str], num_cases: int, expected: str) -> str:
    named = "; ".join(f"{case} {found}" for case, found in list(far.items())[:_MOST_NAMED])
    more = f" and {len(far) - _MOST_NAMED} more" if len(far) > _MOST_NAMED else ""
    return (
        f"WARNING: the {subject} of {len(far)} of {num_cases} unlabelled case(s) is far from that of the labelled "
        f"ones: {named}{more}; labelled: {expected}. Another scanner or modality may be what you want (domain "
        "adaptation); otherwise look for a wrong header, unit or folder."
    )


def _look_at_labeled(dataset: nnUNetBaseDataset, case: str) -> Look:
    image, _, _, properties = dataset.load_case(case)
    try:
        look = _look({**properties, INTENSITIES: intensities_of(image[:])})
    except RuntimeError as error:  # blosc2's, where opening the file showed nothing
        raise damaged(dataset, case, str(error)) from error
    if not np.isfinite([look.mean, look.sd]).all():
        raise ValueError(
            f"labelled case {case}: its preprocessed image in {dataset.source_folder} has NaN or infinite values, "
            "expected finite ones. Repair or replace its file in imagesTr/ and run nnUNetv2_preprocess again."
        )
    return look


def _look(properties: Mapping) -> Look:
    intensities = properties[INTENSITIES]
    return Look(*map(np.asarray, (properties["spacing"], intensities["mean"], intensities["sd"])))


def _evenly(cases: Sequence[str], most: int) -> list[str]:
    return [cases[i] for i in np.unique(np.linspace(0, len(cases) - 1, min(most, len(cases))).round().astype(int))]


def _range(values: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.min(values, axis=0), np.max(values, axis=0)


def _numbers(values: np.ndarray) -> str:
    return " x ".join(f"{value:.3g}" for value in values)


def _ranges(low: np.ndarray, high: np.ndarray) -> str:
    return " x ".join(f"{a:.3g} to {b:.3g}" for a, b in zip(low, high, strict=True))
