"""Difficulty weights against a plain loop over Eqs. 3-5."""

import itertools
import math

import pytest
import torch

from nnunet_ad.difficulty import DifficultyWeights


class PlainLoop:
    """The formulas, one class and one number at a time."""

    def __init__(self, num_classes: int, window: int = 50, alpha: float = 0.2):
        self.history = [[] for _ in range(num_classes)]
        self.window, self.alpha = window, alpha

    def update(self, dice, present=None):
        for k, value in enumerate(dice):
            if present is None or present[k]:
                self.history[k].append(float(value))
        raw = [self._weight(h) for h in self.history]
        return [w * len(raw) / sum(raw) for w in raw]

    def _weight(self, history):
        if not history:
            return 1.0
        unlearned = learned = 0.0
        for before, now in list(itertools.pairwise(history))[-self.window :]:
            log_ratio = math.log(max(now, 1e-3) / max(before, 1e-3))
            unlearned += abs(min(now - before, 0) * log_ratio)
            learned += abs(max(now - before, 0) * log_ratio)
        difficulty = (unlearned + 1e-8) / (learned + 1e-8)
        last = history[-self.window :]
        return sum(1 - value for value in last) / len(last) * difficulty**self.alpha


@pytest.mark.parametrize("window", [1, 3, 50])
def test_agrees_with_the_plain_loop(window):
    generator = torch.Generator().manual_seed(1)
    ours, plain = DifficultyWeights(5, window), PlainLoop(5, window)
    for _ in range(4 * window + 7):
        dice = torch.rand(5, generator=generator)
        present = torch.rand(5, generator=generator) < 0.7
        present[4] = False  # one class never appears
        weights = ours.update(dice, present)
        expected = plain.update(dice.tolist(), present.tolist())
        torch.testing.assert_close(weights, torch.tensor(expected), rtol=2e-3, atol=1e-4)
        assert weights.mean() == pytest.approx(1, abs=1e-5)


def test_dice_of_zero_and_one_stays_finite():
    weights = DifficultyWeights(3)
    for step in range(120):
        result = weights.update(torch.tensor([0.0, 1.0, float(step % 2)]))
        assert torch.isfinite(result).all()
        assert (result >= 0).all()


def test_all_perfect_classes_weigh_one():
    weights = DifficultyWeights(3)
    for _ in range(3):
        assert weights.update(torch.ones(3)).tolist() == [1, 1, 1]


def test_a_class_that_is_forgotten_weighs_more_than_one_that_is_learned():
    weights = DifficultyWeights(2)
    for falling, rising in zip([0.8, 0.7, 0.6, 0.5], [0.2, 0.3, 0.4, 0.5], strict=True):
        result = weights.update(torch.tensor([falling, rising]))
    assert result[0] > 2 * result[1]


def test_one_of_fourteen_classes_absent_from_the_whole_run():
    weights = DifficultyWeights(14)
    present = torch.ones(14, dtype=torch.bool)
    present[13] = False
    for step in range(300):
        result = weights.update(torch.full((14,), 0.5 + 0.4 * math.sin(step)), present)
    assert torch.isfinite(result).all()
    assert result[13] > 0


def test_absent_classes_keep_their_history():
    weights = DifficultyWeights(2)
    weights.update(torch.tensor([0.3, 0.6]))
    before = {name: value.clone() for name, value in weights.state_dict().items()}
    weights.update(torch.tensor([0.9, 0.9]), torch.tensor([False, False]))
    for name, value in weights.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_permuting_classes_permutes_weights():
    generator = torch.Generator().manual_seed(2)
    order = torch.tensor([2, 0, 3, 1])
    straight, permuted = DifficultyWeights(4, 5), DifficultyWeights(4, 5)
    for _ in range(12):
        dice = torch.rand(4, generator=generator)
        expected = straight.update(dice)[order]
        torch.testing.assert_close(permuted.update(dice[order]), expected)


def test_state_dict_restores_everything():
    generator = torch.Generator().manual_seed(3)
    dice = torch.rand(20, 3, generator=generator)
    whole, first = DifficultyWeights(3, 7), DifficultyWeights(3, 7)
    for row in dice[:11]:
        whole.update(row)
        first.update(row)
    second = DifficultyWeights(3, 7)
    second.load_state_dict(first.state_dict())
    for row in dice[11:]:
        torch.testing.assert_close(second.update(row), whole.update(row))


def test_lists_and_integers_are_taken():
    ours, other = DifficultyWeights(2), DifficultyWeights(2)
    for dice in ([0.2, 0.5], [0.3, 0.4]):
        expected = ours.update(torch.tensor(dice), torch.tensor([True, False]))
        torch.testing.assert_close(other.update(dice, [1, 0]), expected)


@pytest.mark.parametrize(("dice", "present"), [([0.1, 0.2, 0.3], None), ([0.1, 0.2], [True])])
def test_another_number_of_classes_is_refused(dice, present):
    with pytest.raises(ValueError, match="for each of 2 classes"):
        DifficultyWeights(2).update(torch.tensor(dice), present)


@pytest.mark.parametrize("arguments", [(0,), (3, 0)])
def test_empty_sizes_are_refused(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        DifficultyWeights(*arguments)


def test_an_update_can_be_taken_back():
    weights = DifficultyWeights(2, window=3)
    for dice in ([0.1, 0.2], [0.3, 0.1], [0.2, 0.4], [0.5, 0.3]):
        weights.update(torch.tensor(dice))
    before = {name: value.clone() for name, value in weights.state_dict().items()}
    weights.update(torch.tensor([0.6, 0.1]), torch.tensor([True, False]))
    after = {name: value.clone() for name, value in weights.state_dict().items()}
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    weights.undo_update(torch.tensor(False))
    assert all(torch.equal(value, after[name]) for name, value in weights.state_dict().items())
    weights.update(torch.tensor([0.9, 0.9]))
    weights.undo_update(torch.tensor(True))
    assert all(torch.equal(value, after[name]) for name, value in weights.state_dict().items())
