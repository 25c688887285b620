"""The result of an evaluation: scores of every case and what follows from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nnunet_ad.evaluation.labels import Structure
from nnunet_ad.evaluation.protocol import Protocol, best_value
from nnunet_ad.evaluation.scoring import Outcome, StructureScore
from nnunet_ad.evaluation.statistics import (
    PairedTest,
    Scores,
    Summary,
    paired_wilcoxon,
    summarise,
    welch,
    with_absent_as_best,
)

NO_DOMAIN = "(no domain)"


@dataclass(frozen=True)
class CaseScores:
    """All structures of one case in one run."""

    case: str
    scores: tuple[StructureScore, ...]


@dataclass(frozen=True)
class Run:
    """The scores of one folder of predictions.

    Attributes:
        name: the folder's name, with as many parents as it takes to tell the runs apart.
        cases: scored cases, sorted by name.
        missing: cases with a reference but no prediction, left out.
        extra: cases with a prediction but no reference, left out.
    """

    name: str
    cases: tuple[CaseScores, ...]
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """What a table says about one structure, or all, in one domain, or all.

    Attributes:
        domain: None for all cases.
        structure: None for the mean over structures.
        summaries: summary of each metric.
        outcomes: how many masks had which outcome, over all runs, cases and, for the mean, structures.
    """

    domain: str | None
    structure: str | None
    summaries: dict[str, Summary]
    outcomes: dict[Outcome, int]


@dataclass(frozen=True)
class Comparison:
    """Tests of one metric against the second method.

    Attributes:
        structure: None for the mean over structures.
        metric: the metric.
        test: over cases.
        p_value_runs: over runs; NaN where these can't tell, see `statistics.welch`.
    """

    structure: str | None
    metric: str
    test: PairedTest
    p_value_runs: float


@dataclass(frozen=True)
class Evaluation:
    """Scores of one method (one or several runs), and of a second one to compare with, if asked for.

    Attributes:
        protocol: the conventions of all numbers.
        dataset: name of the dataset, or None.
        structures: the scored structures.
        domains: domain of each scored case; empty where none is known.
        runs: the runs of the method.
        versus: the runs of the second method.
    """

    protocol: Protocol
    dataset: str | None
    structures: tuple[Structure, ...]
    domains: dict[str, str]
    runs: tuple[Run, ...]
    versus: tuple[Run, ...] = ()

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the cases that at least one run of the method has."""
        return tuple(sorted({scored.case for run in self.runs for scored in run.cases}))

    @property
    def is_complete(self) -> bool:
        """Whether every reference was predicted in every run and every prediction has a reference."""
        return not any(run.missing or run.extra for run in (*self.runs, *self.versus))

    @cached_property
    def overall(self) -> tuple[Row, ...]:
        """One row for each structure over all cases, then the mean over structures."""
        return self._rows(None, self.cases)

    @cached_property
    def per_domain(self) -> tuple[Row, ...]:
        """The rows of `overall` for each domain; none where no domain is known."""
        return tuple(
            row
            for domain in sorted(set(self.domains.values()))
            for row in self._rows(domain, [case for case in self.cases if self.domains[case] == domain])
        )

    def comparisons(self) -> tuple[Comparison, ...]:
        """Return the tests against the second method, on the cases that all runs of both have."""
        if not self.versus:
            return ()
        common = sorted(set.intersection(*({each.case for each in run.cases} for run in (*self.runs, *self.versus))))
        tests = []
        for metric in self.protocol.metrics:
            ours, other = (_array(runs, common, self._names, metric) for runs in (self.runs, self.versus))
            ours, other = with_absent_as_best(ours, other, best_value(metric))
            for index, name in self._selections():
                pair = ours[:, :, index], other[:, :, index]
                tests.append(Comparison(name, metric, paired_wilcoxon(*pair), welch(*pair)))
        return tuple(tests)

    @property
    def _names(self) -> list[str]:
        return [structure.name for structure in self.structures]

    def _selections(self) -> list[tuple[slice, str | None]]:
        """Return each structure's part of the last axis, then all of it."""
        single: list[tuple[slice, str | None]] = [(slice(i, i + 1), name) for i, name in enumerate(self._names)]
        return [*single, (slice(None), None)]

    def _rows(self, domain: str | None, cases: Sequence[str]) -> tuple[Row, ...]:
        arrays = {metric: _array(self.runs, cases, self._names, metric) for metric in self.protocol.metrics}
        return tuple(
            Row(
                domain=domain,
                structure=name,
                summaries={
                    metric: summarise(array[:, :, index], self.protocol.sd_ddof) for metric, array in arrays.items()
                },
                outcomes=self._outcomes(cases, name),
            )
            for index, name in self._selections()
        )

    def _outcomes(self, cases: Sequence[str], structure: str | None) -> dict[Outcome, int]:
        wanted = set(cases)
        found = [
            score.outcome
            for run in self.runs
            for scored in run.cases
            if scored.case in wanted
            for score in scored.scores
            if structure in (None, score.structure)
        ]
        return {outcome: found.count(outcome) for outcome in Outcome}


def _array(runs: Sequence[Run], cases: Sequence[str], structures: Sequence[str], metric: str) -> Scores:
    """Return scores as shape (runs, cases, structures), NaN where a run lacks a case."""
    array = np.full((len(runs), len(cases), len(structures)), np.nan)
    rows = {case: row for row, case in enumerate(cases)}
    for run, values in zip(runs, array, strict=True):
        for scored in run.cases:
            if scored.case in rows:
                values[rows[scored.case]] = [score.values[metric] for score in scored.scores]
    return array
