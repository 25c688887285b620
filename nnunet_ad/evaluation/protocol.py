"""The conventions under which numbers are computed: ours, and those of the published tables.

``default`` is the honest one: millimetres; a structure that neither mask has is left out and counted; one that only one
of the masks has scores Dice 0 and has no distance, which is counted.

``paper`` holds the conventions of the published numbers as far as they are known, so that a table compares like with
like; those marked * are this package's reading, which the paper does not state:

- Dice, Jaccard, HD95 and ASD of ``medpy.metric.binary`` without spacing, so distances are in voxels *of the grid of
  the files*; published distances refer to each benchmark's preprocessed grid.
- ASD goes one way, from the prediction's surface to the reference's.
- An empty prediction: Dice 0 and distance 128; Jaccard 0, and the same for an empty reference *.
- Both empty *: full agreement, so Dice and Jaccard 1 and the distances 0.
- Mean *: over runs, then over cases, then over structures; ± is the standard deviation over runs, divided by the number
  of runs (numpy's default), of the mean over cases and structures.
"""

import math
from dataclasses import dataclass

OVERLAPS = ("Dice", "Jaccard")


def best_value(metric: str) -> float:
    """Return what a prediction scores that equals its reference: 1 for an overlap, 0 for a distance."""
    return 1.0 if metric in OVERLAPS else 0.0


@dataclass(frozen=True)
class EmptyScore:
    """What a case scores when a mask is empty.

    Attributes:
        overlap: Dice and Jaccard, in [0, 1] or NaN.
        distance: every distance.
    """

    overlap: float
    distance: float

    def of(self, metric: str) -> float:
        """Return the value of one metric."""
        return self.overlap if metric in OVERLAPS else self.distance


@dataclass(frozen=True)
class Protocol:
    """How a pair of masks is scored and how scores are summarised.

    Attributes:
        name: value of ``--protocol``.
        description: one sentence for every output.
        metrics: the metrics in the order of the tables.
        voxel_units: distances in voxels instead of mm.
        one_empty: scores where exactly one mask is empty. A NaN or infinite score is counted and left out of means.
        both_empty: scores where both masks are empty.
        sd_ddof: divisor of the standard deviation over runs is their number minus this.
    """

    name: str
    description: str
    metrics: tuple[str, ...]
    voxel_units: bool
    one_empty: EmptyScore
    both_empty: EmptyScore
    sd_ddof: int

    def unit(self, metric: str) -> str:
        """Return the unit a metric is printed in."""
        if metric in OVERLAPS:
            return "%"
        return "voxel" if self.voxel_units else "mm"


DEFAULT = Protocol(
    name="default",
    description=(
        "distances in mm, ASSD symmetric; structures empty in prediction and reference are left out; structures empty "
        "in one of them have Dice 0 and no distance, and are counted as missed or spurious"
    ),
    metrics=("Dice", "Jaccard", "HD95", "ASSD"),
    voxel_units=False,
    one_empty=EmptyScore(overlap=0.0, distance=math.inf),
    both_empty=EmptyScore(overlap=math.nan, distance=math.nan),
    sd_ddof=1,
)

PAPER = Protocol(
    name="paper",
    description=(
        "conventions of the published numbers: distances in voxels of the files' grid, ASD from prediction to "
        "reference; one mask empty scores Dice 0 and distance 128, both empty Dice 1 and distance 0"
    ),
    metrics=("Dice", "Jaccard", "HD95", "ASD"),
    voxel_units=True,
    one_empty=EmptyScore(overlap=0.0, distance=128.0),
    both_empty=EmptyScore(overlap=1.0, distance=0.0),
    sd_ddof=0,
)

PROTOCOLS = {protocol.name: protocol for protocol in (DEFAULT, PAPER)}
