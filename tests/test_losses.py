import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from nnunet_ad.losses import dice_ce, unsupervised_weight


def plain_dice_ce(logits, target, weights, valid):
    """½(CE + Dice loss), voxel by voxel and class by class."""
    p = logits.softmax(1).movedim(1, -1)[valid]
    labels = target[valid]
    ce = sum(weights[y] * -torch.log(row[y]) for row, y in zip(p, labels, strict=True)) / sum(
        weights[y] for y in labels
    )
    loss = 0.0
    for k in range(logits.shape[1]):
        tp = sum(row[k] for row, y in zip(p, labels, strict=True) if y == k)
        fp = sum(row[k] for row, y in zip(p, labels, strict=True) if y != k)
        fn = sum(1 - row[k] for row, y in zip(p, labels, strict=True) if y == k)
        loss = loss + weights[k] * (1 - (2 * tp + 1e-5) / (2 * tp + fp + fn + 1e-5))
    return 0.5 * (ce + loss / weights.sum())


@pytest.mark.parametrize("spatial", [(4, 5), (3, 4, 2)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
def test_agrees_with_its_formula(spatial, weighted, ignored):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, *spatial, generator=generator, dtype=torch.float64)
    target = torch.randint(4 if ignored else 3, (2, *spatial), generator=generator)
    weights = torch.tensor([1.0, 0.2, 1.8], dtype=torch.float64) if weighted else None
    expected = plain_dice_ce(logits, target, weights if weighted else torch.ones(3), target < 3)
    actual = dice_ce(logits, target, weights, ignore_label=3 if ignored else None)
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=torch.float64))


def test_cross_entropy_is_torchs_weighted_mean():
    logits, target = torch.randn(2, 4, 5, 5), torch.randint(4, (2, 5, 5))
    target[0, :2] = 255
    weights = torch.tensor([0.5, 1.0, 3.0, 0.1])
    ce = F.cross_entropy(logits, target, weights, ignore_index=255)
    dice_loss = 2 * dice_ce(logits, target, weights, 255) - ce
    confident = torch.where(target == 255, 0, target)
    assert 0 < dice_loss < 1
    perfect = F.one_hot(confident, 4).movedim(-1, 1) * 100.0
    assert dice_ce(perfect, target, weights, 255) == pytest.approx(0, abs=1e-4)


def test_weights_of_one_make_equation_6_equal_equation_2():
    logits, target = torch.randn(2, 5, 6, 6, 6), torch.randint(5, (2, 6, 6, 6))
    torch.testing.assert_close(dice_ce(logits, target, torch.ones(5)), dice_ce(logits, target))


def test_scaling_all_weights_changes_nothing():
    logits, target, weights = torch.randn(2, 3, 6, 6), torch.randint(3, (2, 6, 6)), torch.tensor([1.0, 0.3, 2.0])
    torch.testing.assert_close(dice_ce(logits, target, 7 * weights), dice_ce(logits, target, weights))


def test_permuting_classes_permutes_nothing():
    logits, target, weights = torch.randn(2, 3, 6, 6), torch.randint(3, (2, 6, 6)), torch.tensor([1.0, 0.3, 2.0])
    order = torch.tensor([2, 0, 1])
    permuted = dice_ce(logits[:, order], order.argsort()[target], weights[order])
    torch.testing.assert_close(permuted, dice_ce(logits, target, weights))


def test_what_ignored_voxels_predict_does_not_matter():
    logits, target = torch.randn(1, 3, 8, 8), torch.randint(3, (1, 8, 8))
    target[:, :3] = -1
    changed = logits.clone()
    changed[:, :, :3] += 5 * torch.randn(1, 3, 3, 8)
    torch.testing.assert_close(dice_ce(changed, target, None, -1), dice_ce(logits, target, None, -1))


@pytest.mark.parametrize("value", [0, 3])
def test_no_foreground_or_no_valid_voxel_gives_finite_loss_and_gradient(value):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = dice_ce(logits, torch.full((2, 4, 4), value), torch.tensor([1.0, 2.0, 0.0]), ignore_label=3)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    if value == 3:
        assert loss == 0
        assert (logits.grad == 0).all()


def test_half_precision_logits_are_summed_in_float32():
    logits, target = (10 * torch.randn(1, 2, 64, 64, 32)).half(), torch.randint(2, (1, 64, 64, 32))
    loss = dice_ce(logits, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, dice_ce(logits.double(), target).float(), rtol=1e-3, atol=1e-4)


def test_ramp_up_follows_equation_9():
    assert unsupervised_weight(0, 100) == pytest.approx(10 * math.exp(-5))
    assert unsupervised_weight(50, 100, mu=4) == pytest.approx(4 * math.exp(-1.25))
    assert unsupervised_weight(100, 100) == unsupervised_weight(250, 100) == 10
    assert unsupervised_weight(0, 0) == unsupervised_weight(3, -1.0) == 10
    assert unsupervised_weight(1, 1.5) == pytest.approx(10 * math.exp(-5 / 9))
