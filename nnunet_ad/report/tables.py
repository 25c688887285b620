"""The tables of a report, whose cells carry the number they are sorted by."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from nnunet_ad.evaluation.protocol import OVERLAPS, Protocol
from nnunet_ad.evaluation.result import Evaluation, Row
from nnunet_ad.evaluation.scoring import Outcome
from nnunet_ad.evaluation.statistics import Summary
from nnunet_ad.evaluation.tables import NO_NUMBER
from nnunet_ad.report.scores import RankedCase


@dataclass(frozen=True)
class Cell:
    """A cell: what it shows, and the number it is sorted by (None: no number, always last; text: by the text)."""

    text: str
    key: float | str | None


@dataclass(frozen=True)
class SortableTable:
    """A table that is sorted by a click on a heading.

    Attributes:
        caption: what it shows.
        header: the headings.
        rows: the cells, as many a row as there are headings.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def number(value: float, digits: int = 2) -> Cell:
    """Return a cell with a number; a dash where there is none."""
    if not math.isfinite(value):
        return Cell(NO_NUMBER, None)
    return Cell(f"{value:.{digits}f}", value)


def text(value: str) -> Cell:
    """Return a cell with text."""
    return Cell(value, value)


def structure_table(evaluation: Evaluation) -> SortableTable:
    """Return one row a structure, and their mean if there are several."""
    rows = evaluation.overall
    return _table("Scores by structure", "Structure", evaluation, rows if len(rows) > 2 else rows[:1])


def domain_table(evaluation: Evaluation) -> SortableTable | None:
    """Return the mean over structures for each domain; None with fewer than two domains."""
    rows = [row for row in evaluation.per_domain if row.structure is None]
    return _table("Scores by origin of the images", "Origin", evaluation, rows) if len(rows) > 1 else None


def case_table(evaluation: Evaluation, cases: Iterable[RankedCase]) -> SortableTable:
    """Return one row a case, in the order given."""
    protocol = evaluation.protocol
    names = [structure.name for structure in evaluation.structures]
    several = len(names) > 1
    distances = [metric for metric in protocol.metrics if metric not in OVERLAPS]
    header = (
        "Case",
        *(("Origin",) if evaluation.domains else ()),
        "Mean Dice" if several else "Dice",
        *(_heading(metric, protocol, mean=several) for metric in distances),
        "Missed",
        "Spurious",
        *((f"Dice {name}" for name in names) if several else ()),
    )
    rows = []
    for case in cases:
        dice = [score.values["Dice"] for score in case.scores.scores]
        rows.append(
            (
                text(case.name),
                *((text(evaluation.domains[case.name]),) if evaluation.domains else ()),
                number(case.dice, 3),
                *(number(case.mean(metric)) for metric in distances),
                *(_count(len(case.with_outcome(outcome))) for outcome in (Outcome.MISSED, Outcome.SPURIOUS)),
                *((number(value, 3) for value in dice) if several else ()),
            )
        )
    return SortableTable("Scores by case", header, tuple(rows))


def _table(caption: str, first: str, evaluation: Evaluation, rows: Iterable[Row]) -> SortableTable:
    protocol = evaluation.protocol
    header = (
        first,
        "Cases",
        *(_heading(metric, protocol) for metric in protocol.metrics),
        "Missed",
        "Spurious",
    )
    return SortableTable(caption, header, tuple(_row(row, protocol) for row in rows))


def _row(row: Row, protocol: Protocol) -> tuple[Cell, ...]:
    return (
        text(row.domain or row.structure or "mean over structures"),
        _count(row.summaries[protocol.metrics[0]].num_cases),
        *(_summary(row.summaries[metric], 3 if metric in OVERLAPS else 2) for metric in protocol.metrics),
        _count(row.outcomes[Outcome.MISSED]),
        _count(row.outcomes[Outcome.SPURIOUS]),
    )


def _summary(summary: Summary, digits: int) -> Cell:
    if math.isnan(summary.mean):
        return Cell(NO_NUMBER, None)
    spread = "" if math.isnan(summary.sd) else f" ± {summary.sd:.{digits}f}"
    return Cell(f"{summary.mean:.{digits}f}{spread}", summary.mean)


def _heading(metric: str, protocol: Protocol, mean: bool = False) -> str:
    unit = "" if metric in OVERLAPS else f" [{protocol.unit(metric)}]"
    return f"{'Mean ' if mean else ''}{metric}{unit}"


def _count(count: int) -> Cell:
    return Cell(str(count), count)
