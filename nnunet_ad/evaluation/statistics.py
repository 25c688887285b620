"""Means, their uncertainty, and tests of one method against another, over an array of scores.

All functions take scores of one metric with shape (runs, cases, structures). NaN and infinity stand for "no number":
not predicted, absent, or a missed structure's distance. They are left out of means; the caller counts them.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 10_000
BOOTSTRAP_SEED = 0

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """One metric over cases (and runs). NaN where there are too few numbers.

    Attributes:
        mean: mean over runs, then cases, then structures.
        sd: standard deviation over cases (n − 1) of each case's mean over runs and structures.
        ci_low: lower end of the bootstrap 95 % interval of the mean; cases are resampled.
        ci_high: upper end of that interval.
        num_cases: cases with a number.
        run_means: mean over cases, then structures, of each run.
        sd_runs: standard deviation of ``run_means``.
    """

    mean: float
    sd: float
    ci_low: float
    ci_high: float
    num_cases: int
    run_means: tuple[float, ...]
    sd_runs: float


@dataclass(frozen=True)
class PairedTest:
    """Wilcoxon's signed-rank test of two methods on the same cases.

    Attributes:
        num_cases: cases that both methods have a value for; a missed structure's distance counts as such.
        median_difference: median over cases of ours minus the other's; infinite where misses decide it.
        p_value: two-sided, not corrected for the number of tests; NaN without cases.
    """

    num_cases: int
    median_difference: float
    p_value: float


def summarise(scores: Scores, sd_ddof: int = 1) -> Summary:
    """Summarise one metric.

    Args:
        scores: shape (runs, cases, structures).
        sd_ddof: for the standard deviation over runs only; 0 divides by the number of runs.
    """
    by_case = _mean(_finite(scores), axis=0)
    per_case = _mean(by_case, axis=1)
    run_means = _macro_mean(_finite(scores))
    low, high = bootstrap_interval(by_case)
    return Summary(
        mean=float(_macro_mean(by_case[None])[0]),
        sd=_sd(per_case, ddof=1),
        ci_low=low,
        ci_high=high,
        num_cases=int(np.isfinite(per_case).sum()),
        run_means=tuple(float(mean) for mean in run_means),
        sd_runs=_sd(run_means, ddof=sd_ddof),
    )


def bootstrap_interval(by_case: Scores) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean over cases, then structures.

    Cases are drawn with replacement, 10,000 times with a fixed seed; the structures of a case stay together.

    Args:
        by_case: shape (cases, structures), NaN where there is no number.

    Returns:
        Low and high; NaN with fewer than two cases that have a number.
    """
    by_case = by_case[np.isfinite(by_case).any(axis=1)]
    if len(by_case) < 2:
        return math.nan, math.nan
    draws = _bootstrap_counts(len(by_case))
    valid = np.isfinite(by_case)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (draws @ np.where(valid, by_case, 0.0)) / (draws @ valid.astype(np.float64))
    low, high = np.nanpercentile(_mean(means, axis=1), [2.5, 97.5])
    return float(low), float(high)


def paired_wilcoxon(ours: Scores, other: Scores) -> PairedTest:
    """Compare two methods case by case, each averaged over its runs and over the structures.

    A missed structure (infinite distance) is further away than any found one, and two misses are a tie, so that leaving
    out a structure never helps a method. Ties count among the cases and in the median; the test itself is of the cases
    that differ, as Wilcoxon's own.

    Args:
        ours: shape (runs, cases, structures).
        other: shape (its runs, same cases, same structures).
    """
    with np.errstate(invalid="ignore"):
        values, other_values = (_mean(_mean(scores, axis=0), axis=1) for scores in (ours, other))
        # Rounded, as means of equal scores differ in their last bit where the methods have other numbers of runs.
        differences = np.where(values == other_values, 0.0, np.round(values - other_values, 10))
    differences = differences[~np.isnan(differences)]
    if not differences.size:
        return PairedTest(0, math.nan, math.nan)
    with np.errstate(invalid="ignore"):
        median = float(np.median(differences))
    differing = differences[differences != 0]
    if not differing.size:
        return PairedTest(len(differences), median, 1.0)
    from scipy import stats  # here, because it takes as long to import as ten cases to score

    return PairedTest(len(differences), median, float(stats.wilcoxon(differing).pvalue))


def with_absent_as_best(ours: Scores, other: Scores, best: float) -> tuple[Scores, Scores]:
    """Return the scores of two methods with ``best`` where only some of their runs have no number for a structure.

    The reference lacks the structure there, as such a run rightly does, while another run invents it. Without a number
    for being right the case would leave the tests, and with it what the other run has done.

    Args:
        ours: shape (runs, cases, structures), of cases that all runs have.
        other: shape (its runs, same cases, same structures).
        best: the metric's best value.
    """
    has_number = ~np.isnan(np.concatenate((ours, other))).all(axis=0)
    return np.where(np.isnan(ours) & has_number, best, ours), np.where(np.isnan(other) & has_number, best, other)


def welch(ours: Scores, other: Scores) -> float:
    """Return p, two-sided, of Welch's test of the runs' means of two methods; NaN where they can't tell.

    All cases share the luck of a seed, so that a test over cases takes it for the method's merit; this one does not.
    It needs two runs of either method, runs of at least one that differ, and a mean of each: there is none of distances
    of which one is infinite, and without that one a missed structure would help a method.

    Args:
        ours: shape (runs, cases, structures).
        other: shape (its runs, same cases, same structures).
    """
    if np.isinf(ours).any() or np.isinf(other).any():
        return math.nan
    means, other_means = _macro_mean(ours), _macro_mean(other)
    if min(len(means), len(other_means)) < 2 or len({*means}) == len({*other_means}) == 1:
        return math.nan
    from scipy import stats  # as above

    moments = [moment for each in (means, other_means) for moment in (each.mean(), each.std(ddof=1), len(each))]
    return float(stats.ttest_ind_from_stats(*moments, equal_var=False).pvalue)


def _macro_mean(scores: Scores) -> Scores:
    """Return the mean over cases, then structures, of each run; shape (runs,)."""
    return _mean(_mean(scores, axis=1), axis=1)


def _finite(scores: Scores) -> Scores:
    return np.where(np.isfinite(scores), scores, np.nan)


def _mean(scores: Scores, axis: int) -> Scores:
    """Return the mean without NaN, which is NaN where there is nothing else (numpy's nanmean warns there)."""
    valid = ~np.isnan(scores)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(valid, scores, 0.0).sum(axis=axis) / valid.sum(axis=axis))


def _sd(values: Scores, ddof: int) -> float:
    values = values[np.isfinite(values)]
    return float(values.std(ddof=ddof)) if len(values) > 1 else math.nan


@lru_cache(maxsize=4)
def _bootstrap_counts(num_cases: int) -> Scores:
    """Return how often each case is drawn, shape (resamples, cases)."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    return rng.multinomial(num_cases, np.full(num_cases, 1 / num_cases), size=NUM_RESAMPLES).astype(np.float64)
