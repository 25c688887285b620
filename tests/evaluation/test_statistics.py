import math

import numpy as np
import pytest
from scipy import stats

from nnunet_ad.evaluation.statistics import (
    bootstrap_interval,
    paired_wilcoxon,
    summarise,
    welch,
    with_absent_as_best,
)

NAN, INF = math.nan, math.inf


def scores(*cases):
    """Return scores of one run and one structure."""
    return np.array(cases, dtype=float)[None, :, None]


def test_one_run_and_one_structure_is_mean_and_standard_deviation():
    values = np.random.default_rng(0).random(12)
    summary = summarise(values[None, :, None])
    assert summary.mean == pytest.approx(values.mean())
    assert summary.sd == pytest.approx(values.std(ddof=1))
    assert summary.num_cases == 12
    assert summary.run_means == (pytest.approx(values.mean()),)
    assert math.isnan(summary.sd_runs)


def test_runs_are_averaged_within_a_case_and_spread_apart():
    array = np.array([[[0.2], [0.4]], [[0.4], [0.8]]])
    summary = summarise(array)
    assert summary.mean == pytest.approx(0.45)
    assert summary.sd == pytest.approx(np.std([0.3, 0.6], ddof=1))
    assert summary.run_means == (pytest.approx(0.3), pytest.approx(0.6))
    assert summary.sd_runs == pytest.approx(np.std([0.3, 0.6], ddof=1))
    assert summarise(array, sd_ddof=0).sd_runs == pytest.approx(np.std([0.3, 0.6]))


def test_every_structure_counts_the_same_where_one_is_rare():
    array = np.array([[[1.0, 0.0], [1.0, NAN], [1.0, NAN]]])
    assert summarise(array).mean == 0.5


@pytest.mark.parametrize("left_out", [NAN, INF])
def test_what_is_no_number_is_left_out(left_out):
    summary = summarise(scores(1, left_out, 3))
    assert (summary.mean, summary.num_cases) == (2, 2)


def test_nothing_but_misses_has_no_mean():
    summary = summarise(scores(INF, INF))
    assert math.isnan(summary.mean) and math.isnan(summary.ci_low)
    assert summary.num_cases == 0


def test_the_interval_of_equal_cases_is_a_point():
    assert bootstrap_interval(np.full((9, 2), 0.7)) == (pytest.approx(0.7), pytest.approx(0.7))


def test_the_interval_needs_two_cases():
    assert all(map(math.isnan, bootstrap_interval(np.array([[0.7], [NAN]]))))


def test_the_interval_is_close_to_the_normal_one_and_repeats():
    values = np.random.default_rng(1).normal(5, 2, size=(200, 1))
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(200)
    assert low == pytest.approx(values.mean() - half, abs=0.05)
    assert high == pytest.approx(values.mean() + half, abs=0.05)
    assert bootstrap_interval(values) == (low, high)


def test_wilcoxon_agrees_with_scipy():
    rng = np.random.default_rng(2)
    ours, other = rng.random(15), rng.random(15)
    test = paired_wilcoxon(scores(*ours), scores(*other))
    assert test.p_value == pytest.approx(stats.wilcoxon(ours, other).pvalue)
    assert test.median_difference == pytest.approx(np.median(ours - other))
    assert test.num_cases == 15


def test_equal_methods_do_not_differ():
    assert paired_wilcoxon(scores(1, 2, INF), scores(1, 2, INF)).p_value == 1.0


@pytest.mark.parametrize(("better", "equal"), [(1, 15), (3, 15), (5, 8), (5, 9), (6, 60)])
def test_ties_do_not_make_a_difference_surer(better, equal):
    test = paired_wilcoxon(scores(*range(1, better + 1), *[0] * equal), scores(*[0] * (better + equal)))
    assert test.p_value == pytest.approx(2 * 0.5**better), "the exact p of so many cases that all are better"
    assert test.num_cases == better + equal


def test_the_last_bit_of_a_mean_is_no_difference():
    values = np.array([1.6, 3.7, 2.1651, 1.7678] * 5)[None, :, None]
    three_runs = np.repeat(values, 3, axis=0)
    assert (three_runs.mean(axis=0) != values[0]).any()
    test = paired_wilcoxon(three_runs, values)
    assert (test.median_difference, test.p_value) == (0, 1)


def test_swapping_the_methods_swaps_the_sign():
    ours, other = scores(1, 2, 4, 8, 3), scores(2, 4, 4.5, 9, 1)
    there, back = paired_wilcoxon(ours, other), paired_wilcoxon(other, ours)
    assert there.p_value == back.p_value
    assert there.median_difference == -back.median_difference


def test_a_miss_is_further_than_any_distance():
    with_misses = paired_wilcoxon(scores(INF, INF, 5, 6, 7), scores(1, 2, 3, 4, 5.5))
    with_large = paired_wilcoxon(scores(900, 901, 5, 6, 7), scores(1, 2, 3, 4, 5.5))
    assert with_misses.num_cases == 5
    assert with_misses.p_value == with_large.p_value


def test_cases_that_one_method_lacks_are_left_out():
    assert paired_wilcoxon(scores(1, NAN, 3), scores(2, 2, 2)).num_cases == 2
    nothing = paired_wilcoxon(scores(NAN), scores(1))
    assert nothing.num_cases == 0 and math.isnan(nothing.p_value)


def test_what_is_rightly_left_out_is_best_where_another_run_invents_it():
    ours = np.array([[[0.0], [NAN], [0.7]], [[NAN], [NAN], [0.6]]])
    other = scores(NAN, NAN, 0.5)
    filled, other_filled = with_absent_as_best(ours, other, best=1.0)
    np.testing.assert_equal(filled, [[[0.0], [NAN], [0.7]], [[1.0], [NAN], [0.6]]])
    np.testing.assert_equal(other_filled, scores(1.0, NAN, 0.5))


def test_welch_compares_means_of_runs():
    ours, other = np.array([0.62, 0.64])[:, None, None] + np.zeros((1, 5, 2)), np.full((2, 5, 2), 0.53)
    other[1] += 0.02
    t = 0.09 / 0.0002**0.5  # both pairs of runs differ by 0.02, which leaves two degrees of freedom
    assert welch(ours, other) == pytest.approx(1 - t / (t**2 + 2) ** 0.5)


def test_welch_needs_runs_that_differ():
    two = np.array([0.6, 0.7])[:, None, None]
    assert math.isnan(welch(two[:1], two)) and math.isnan(welch(two, two[:1]))
    assert math.isnan(welch(two[[0, 0]], two[[1, 1]]))
    assert welch(two[[0, 0]], two) == pytest.approx(0.5)  # one degree of freedom, t = 1


def test_welch_does_not_reward_a_miss():
    distances = np.array([[3.0, 4.0, 20.0], [3.5, 4.0, 21.0]])[:, :, None]
    missed = distances.copy()
    missed[:, 2] = INF
    assert welch(distances, distances + 5) < 1
    assert math.isnan(welch(missed, distances + 5)) and math.isnan(welch(distances + 5, missed))
