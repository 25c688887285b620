"""The scores of a report: every case against its reference, and which cases are best and worst."""

import math
from dataclasses import dataclass, replace

from nnunet_ad.evaluation.evaluate import evaluate
from nnunet_ad.evaluation.result import CaseScores, Evaluation
from nnunet_ad.evaluation.scoring import Outcome
from nnunet_ad.report.sources import Sources


@dataclass(frozen=True)
class RankedCase:
    """A case by how well it was segmented.

    Attributes:
        name: its name.
        dice: mean Dice over the structures that prediction or reference have, or NaN if there is none.
        scores: every structure.
    """

    name: str
    dice: float
    scores: CaseScores

    def with_outcome(self, outcome: Outcome) -> list[str]:
        """Return the structures with this outcome."""
        return [score.structure for score in self.scores.scores if score.outcome is outcome]

    def mean(self, metric: str) -> float:
        """Return the mean of a metric over the structures that have a number, or NaN."""
        return _mean([score.values[metric] for score in self.scores.scores])


def score(sources: Sources, processes: int | None = None, progress: bool = True) -> Evaluation:
    """Score what there is; the result says what lacks a prediction or a reference.

    Args:
        sources: with predictions and references.
        processes: parallel processes, as for `evaluate`.
        progress: show a progress bar.

    Raises:
        ValueError: sources have no predictions or references, or the label maps do not fit together.
        OSError: a worker process was killed.
    """
    if sources.predictions is None or sources.references is None:
        raise ValueError(f"{sources.folder}: there are no predictions or no references to score.")
    result = evaluate(
        [sources.predictions],
        sources.references,
        dataset=str(sources.dataset) if sources.dataset else None,
        allow_missing=True,
        processes=processes,
        progress=progress,
    )
    if not sources.training:
        return result
    # nnU-Net keeps the references of all folds in one folder: only those of this fold can be missing.
    (run,) = result.runs
    return replace(result, runs=(replace(run, missing=tuple(sorted(sources.expected & set(run.missing)))),))


def rank(evaluation: Evaluation) -> list[RankedCase]:
    """Return the cases from worst to best; cases without a number last."""
    (run,) = evaluation.runs
    cases = [RankedCase(each.case, _mean([s.values["Dice"] for s in each.scores]), each) for each in run.cases]
    return sorted(cases, key=lambda case: (math.isnan(case.dice), case.dice, case.name))


def worst_median_best(cases: list[RankedCase]) -> list[tuple[str, RankedCase]]:
    """Return the cases to show, each with what it stands for; fewer than three if there are fewer cases."""
    cases = [case for case in cases if not math.isnan(case.dice)]
    if not cases:
        return []
    if len(cases) == 1:
        return [("Only case", cases[0])]
    shown = [("Worst case", cases[0]), ("Best case", cases[-1])]
    if len(cases) > 2:
        shown.insert(1, ("Median case", cases[(len(cases) - 1) // 2]))
    return shown


def _mean(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
