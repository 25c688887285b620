"""What a reader should know before the numbers: how many cases, how good, where it fails, and the limits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nnunet_ad.evaluation.cases import listed
from nnunet_ad.evaluation.result import Evaluation
from nnunet_ad.evaluation.scoring import Outcome
from nnunet_ad.evaluation.tables import NO_NUMBER
from nnunet_ad.report.scores import RankedCase
from nnunet_ad.report.sources import Sources

FEW_CASES = 20
NUM_WORST = 3


@dataclass(frozen=True)
class Fact:
    """One figure of the summary: the number, what it is, and what belongs to it."""

    value: str
    label: str
    detail: str


@dataclass(frozen=True)
class Summary:
    """The summary in plain words.

    Attributes:
        facts: the main numbers.
        findings: sentences on what was found, and where it fails.
        limits: sentences on what the numbers do not say.
    """

    facts: tuple[Fact, ...]
    findings: tuple[str, ...]
    limits: tuple[str, ...]


def summarise(sources: Sources, evaluation: Evaluation | None, cases: Sequence[RankedCase]) -> Summary:
    """Return the summary.

    Args:
        sources: what the report is made from.
        evaluation: the scores, or None if nothing was scored.
        cases: the cases of the evaluation from worst to best.
    """
    if evaluation is None:
        return Summary((), ("No case was scored, so this page cannot say how good the segmentations are.",), _CAUTION)
    return Summary(
        facts=_facts(evaluation, cases),
        findings=(*_incomplete(evaluation), *_failures(evaluation, cases)),
        limits=(*_seen_in_training(sources, cases), *_few(cases), *_one_origin(evaluation), *_CAUTION),
    )


_CAUTION = (
    "The numbers hold for images like these. Another scanner, protocol, age group or disease can give worse results.",
    "They measure how well a segmentation matches the reference, which may have faults of its own.",
    "This is research software and no medical device: whoever uses a segmentation must look at it first.",
)


def _facts(evaluation: Evaluation, cases: Sequence[RankedCase]) -> tuple[Fact, ...]:
    mean = evaluation.overall[-1]
    dice, distance = mean.summaries["Dice"], mean.summaries["HD95"]
    num_masks = mean.outcomes[Outcome.BOTH] + mean.outcomes[Outcome.MISSED]
    names = [structure.name for structure in evaluation.structures]
    structures = f"structure: {names[0]}" if len(names) == 1 else f"{len(names)} structures: {listed(names)}"
    interval = "no interval from fewer than two cases"
    if not math.isnan(dice.ci_low):
        interval = f"95 % interval {dice.ci_low:.2f} to {dice.ci_high:.2f}; 1 is a perfect match, 0 none"
    facts = [
        Fact(str(len(cases)), "case compared" if len(cases) == 1 else "cases compared", structures),
        Fact(_two_digits(dice.mean), "mean overlap (Dice)", interval),
    ]
    if not math.isnan(distance.mean):
        detail = "95 % of the outline is within this distance; mean over cases (HD95)"
        facts.append(Fact(f"{distance.mean:.1f} mm", "distance between outlines", detail))
    missed = mean.outcomes[Outcome.MISSED]
    facts.append(Fact(str(missed), f"of {num_masks} structures missed", "shown by the reference, not found at all"))
    return tuple(facts)


def _incomplete(evaluation: Evaluation) -> list[str]:
    (run,) = evaluation.runs
    sentences = []
    if run.missing:
        sentences.append(f"Not scored, because there is no prediction: {_cases(run.missing)}.")
    if run.extra:
        sentences.append(f"Not scored, because there is no reference: {_cases(run.extra)}.")
    return sentences


def _failures(evaluation: Evaluation, cases: Sequence[RankedCase]) -> list[str]:
    sentences = []
    scored = [case for case in cases if not math.isnan(case.dice)]
    if len(scored) > 1:
        worst = ", ".join(f"{case.name} ({case.dice:.2f})" for case in scored[: min(NUM_WORST, len(scored) - 1)])
        sentences.append(f"Lowest overlap: {worst}. Look at these first.")
    rows = [row for row in evaluation.overall[:-1] if not math.isnan(row.summaries["Dice"].mean)]
    if len(rows) > 1:
        rows.sort(key=lambda row: row.summaries["Dice"].mean)
        low, high = rows[0], rows[-1]
        sentences.append(
            f"Hardest structure: {low.structure} (mean Dice {low.summaries['Dice'].mean:.2f}). "
            f"Easiest: {high.structure} ({high.summaries['Dice'].mean:.2f})."
        )
    missed = [f"{name} in {case.name}" for case in cases for name in case.with_outcome(Outcome.MISSED)]
    if missed:
        sentences.append(
            f"Missed: {listed(missed)}. Missed means that the reference shows the structure and the prediction has not "
            "one voxel of it. Its Dice is 0. It has no distance between outlines, so mean distances leave it out and "
            "look better than they are."
        )
    spurious = [f"{name} in {case.name}" for case in cases for name in case.with_outcome(Outcome.SPURIOUS)]
    if spurious:
        sentences.append(
            f"Spurious: {listed(spurious)}. The prediction shows a structure that the reference does not have."
        )
    if not missed and not spurious:
        sentences.append("Every structure of the references was found at least in part, and none was invented.")
    return sentences


def _seen_in_training(sources: Sources, cases: Sequence[RankedCase]) -> list[str]:
    """Say how many of the scored cases the model has learned from, which makes the numbers too good."""
    seen = sorted({case.name for case in cases} & sources.trained_on)
    sentences = []
    if sources.training and seen and len(seen) == len(cases):
        sentences.append(
            "The scored cases are the labelled training cases themselves: the model has seen their references. The "
            "numbers say how well it learned them, not how well it will do on new patients; for that, score cases "
            "that training never saw."
        )
    elif seen:
        sentences.append(
            f"{len(seen)} of the {len(cases)} scored cases are labelled training cases of at least one fold of this "
            f"dataset ({listed(seen)}). Where the model has learned from a case, the score of that case is too good."
        )
    elif sources.training and sources.trained_on:
        sentences.append(
            "The scored cases were kept aside: the model has not learned from their labels. Whoever chooses between "
            "models by these numbers needs yet other cases to know how good the chosen one is."
        )
    elif sources.trained_on:
        sentences.append("None of the scored cases is a labelled training case of a fold of this dataset.")
    else:
        sentences.append("Whether the model was trained on some of the scored cases is not known here.")
    if sources.validation:
        sentences.append(f"The dataset says of its validation cases: “{sources.validation}”.")
    return sentences


def _few(cases: Sequence[RankedCase]) -> list[str]:
    if len(cases) >= FEW_CASES:
        return []
    count = "one case is" if len(cases) == 1 else f"{len(cases)} cases are"
    return [f"Only {count} scored, so another set of cases could give a clearly different mean."]


def _one_origin(evaluation: Evaluation) -> list[str]:
    origins = set(evaluation.domains.values())
    return [f"All scored images come from one origin: {next(iter(origins))}."] if len(origins) == 1 else []


def _two_digits(value: float) -> str:
    return NO_NUMBER if math.isnan(value) else f"{value:.2f}"


def _cases(names: Sequence[str]) -> str:
    return f"case {names[0]}" if len(names) == 1 else f"{len(names)} cases ({listed(names)})"
