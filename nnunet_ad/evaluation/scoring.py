"""Scores predictions against references, one case at a time or many in parallel processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

import numpy as np

from nnunet_ad.evaluation import metrics
from nnunet_ad.evaluation.cases import CasePair
from nnunet_ad.evaluation.labels import LabelDefinition, Structure
from nnunet_ad.evaluation.metrics import Mask
from nnunet_ad.evaluation.protocol import Protocol
from nnunet_ad.evaluation.volumes import (
    Box,
    Labels,
    boxes_of_labels,
    check_same_grid,
    read_labels,
    without_single_slice,
)
from nnunet_ad.parallel import Workers


class Outcome(StrEnum):
    """Which of the two masks of a structure have voxels."""

    BOTH = "both"
    MISSED = "missed"  # in the reference only
    SPURIOUS = "spurious"  # in the prediction only
    ABSENT = "absent"  # in neither


@dataclass(frozen=True)
class StructureScore:
    """The score of one structure in one case.

    Attributes:
        structure: its name.
        outcome: which masks have voxels.
        values: metric and value; overlaps in [0, 1], distances in the protocol's unit; NaN or infinite where the
            protocol gives no number.
    """

    structure: str
    outcome: Outcome
    values: dict[str, float]


def score_case(pair: CasePair, labels: LabelDefinition, protocol: Protocol) -> list[StructureScore]:
    """Score every structure of one case. Voxels with the ignore label in the reference count as background in both.

    Raises:
        ValueError: a file cannot be read, the grids differ, or a label is unknown; the message names the case.
    """
    prediction, reference = read_labels(pair.prediction), read_labels(pair.reference)
    check_same_grid(pair.case, prediction, reference)
    # The whole area of a single slice would be surface, with a neighbour outside in front and behind.
    prediction, reference = without_single_slice(prediction), without_single_slice(reference)
    if labels.ignore is not None:
        ignored = reference.labels == labels.ignore
        prediction.labels[ignored] = 0
        reference.labels[ignored] = 0
    prediction_boxes, reference_boxes = boxes_of_labels(prediction.labels), boxes_of_labels(reference.labels)
    _check_values(pair.case, "prediction", prediction_boxes, labels)
    _check_values(pair.case, "reference", reference_boxes, labels)
    scores = []
    for structure in labels.structures:
        boxes = [
            found[value]
            for found in (prediction_boxes, reference_boxes)
            for value in structure.values
            if value in found
        ]
        box = _joint_box(boxes, prediction.labels.ndim)
        masks = _mask(prediction.labels[box], structure), _mask(reference.labels[box], structure)
        scores.append(score_structure(structure.name, *masks, prediction.spacing, protocol))
    return scores


def score_structure(
    name: str, prediction: Mask, reference: Mask, spacing: Sequence[float], protocol: Protocol
) -> StructureScore:
    """Score one structure.

    Args:
        name: its name.
        prediction: boolean array, 2-D or 3-D.
        reference: boolean array of the same shape.
        spacing: voxel spacing in mm.
        protocol: the conventions.
    """
    outcome = _outcome(prediction, reference)
    if outcome is not Outcome.BOTH:
        empty = protocol.both_empty if outcome is Outcome.ABSENT else protocol.one_empty
        return StructureScore(name, outcome, {metric: empty.of(metric) for metric in protocol.metrics})
    unit_spacing = (1.0,) * prediction.ndim
    distances = metrics.surface_distances(prediction, reference, unit_spacing if protocol.voxel_units else spacing)
    compute: dict[str, Callable[[], float]] = {
        "Dice": lambda: metrics.dice(prediction, reference),
        "Jaccard": lambda: metrics.jaccard(prediction, reference),
        "HD95": lambda: distances.hd95,
        "ASD": lambda: distances.asd,
        "ASSD": lambda: distances.assd,
    }
    return StructureScore(name, outcome, {metric: compute[metric]() for metric in protocol.metrics})


def score_cases(
    pairs: Sequence[CasePair], labels: LabelDefinition, protocol: Protocol, workers: Workers
) -> list[list[StructureScore]]:
    """Score cases in parallel with a progress bar, in the order of ``pairs``.

    Raises:
        ValueError: as for `score_case`.
        OSError: a worker process was killed.
    """
    return workers.map(partial(score_case, labels=labels, protocol=protocol), pairs, "Scoring")


def find_label_values(paths: Sequence[Path], workers: Workers) -> set[int]:
    """Return all label values but 0 that occur in some label maps. Their checksums are left to the scoring.

    Raises:
        ValueError: a file cannot be read.
        OSError: a worker process was killed.
    """
    return set().union(*workers.map(_label_values, paths, "Finding labels"))


def _label_values(path: Path) -> set[int]:
    return set(boxes_of_labels(read_labels(path, checksum=False).labels))


def _check_values(case: str, which: str, found: dict[int, Box], labels: LabelDefinition) -> None:
    if not found.keys() <= labels.values:
        raise ValueError(
            f"case {case}: the {which} has values {sorted({0, *found})}; {labels.source} {sorted(labels.values)}. "
            "Fix the label file, or pass the dataset that declares its labels with -d."
        )


def _joint_box(boxes: Sequence[Box], dimensions: int) -> Box:
    """Return the smallest box around all boxes; an empty one if there are none."""
    if not boxes:
        return (slice(0, 0),) * dimensions
    return tuple(
        slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes)) for axis in range(dimensions)
    )


def _mask(labels: Labels, structure: Structure) -> Mask:
    if len(structure.values) == 1:
        return np.asarray(labels == structure.values[0])
    return np.isin(labels, structure.values)


def _outcome(prediction: Mask, reference: Mask) -> Outcome:
    if prediction.any():
        return Outcome.BOTH if reference.any() else Outcome.SPURIOUS
    return Outcome.MISSED if reference.any() else Outcome.ABSENT
