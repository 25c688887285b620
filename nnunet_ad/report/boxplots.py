"""Spread of the scores over cases, one box a structure."""

import math

import numpy as np
from markupsafe import Markup

from nnunet_ad.evaluation.protocol import OVERLAPS
from nnunet_ad.evaluation.result import Evaluation
from nnunet_ad.report.svg import SERIES, TEXT, PageFigure, shortened

MAX_POINTS = 100  # cases of which each is drawn as a point; of more only the outliers are
MIN_BOX = 4  # cases; a box of fewer says less than their points


def draw_boxes(evaluation: Evaluation, metric: str) -> Markup | None:
    """Draw one box a structure, and the cases as points; None if no case has a number."""
    values = {structure.name: _values(evaluation, structure.name, metric) for structure in evaluation.structures}
    if not any(values.values()):
        return None
    unit = "" if metric in OVERLAPS else f" [{evaluation.protocol.unit(metric)}]"
    with PageFigure(5.2, 1.1 + 0.42 * len(values)) as page:
        axes = page.axes
        generator = np.random.default_rng(0)
        for row, numbers in enumerate(values.values()):
            many = len(numbers) > MAX_POINTS
            if len(numbers) >= MIN_BOX:
                axes.boxplot(
                    numbers,
                    positions=[row],
                    orientation="horizontal",
                    widths=0.6,
                    showfliers=many,
                    manage_ticks=False,
                    boxprops={"color": TEXT},
                    whiskerprops={"color": TEXT},
                    capprops={"color": TEXT},
                    medianprops={"color": SERIES[1], "linewidth": 2.5},
                    flierprops={"markeredgecolor": SERIES[0], "markersize": 3},
                )
            if not many:
                spread = generator.uniform(-0.18, 0.18, len(numbers))
                axes.plot(numbers, row + spread, "o", color=SERIES[0], markersize=4, alpha=0.75, markeredgewidth=0)
        axes.set_yticks(range(len(values)), [shortened(name) for name in values])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"{metric}{unit}")
        axes.set_xlim(-0.02, 1.02) if metric in OVERLAPS else axes.set_xlim(left=0)
        return page.svg(f"boxes-{metric}", f"{metric} of each case by structure. {_in_words(values)}")


def _values(evaluation: Evaluation, structure: str, metric: str) -> list[float]:
    found = [
        score.values[metric]
        for run in evaluation.runs
        for case in run.cases
        for score in case.scores
        if score.structure == structure
    ]
    return [value for value in found if math.isfinite(value)]


def _in_words(values: dict[str, list[float]]) -> str:
    parts = [
        f"{name}: median {np.median(numbers):.2f}, from {min(numbers):.2f} to {max(numbers):.2f}"
        for name, numbers in values.items()
        if numbers
    ]
    return "; ".join(parts) + "."
