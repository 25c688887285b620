import itertools
import math

import pytest
import torch

from nnunet_ad.pseudo_label import ensemble, gaussian_blur, gumbel_softmax, plain_sum


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("spatial", [(9, 8), (6, 7, 5)])
def test_blur_agrees_with_a_plain_loop_over_the_neighbourhood(spatial):
    x = torch.randn(1, 2, *spatial, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for position in itertools.product(*map(range, spatial)):
        total = value = 0.0
        for offset in itertools.product((-1, 0, 1), repeat=len(spatial)):
            weight = math.exp(-0.5 * sum(o * o for o in offset))
            neighbour = [min(max(p + o, 0), s - 1) for p, o, s in zip(position, offset, spatial, strict=True)]
            total += weight
            value = value + weight * x[(slice(None), slice(None), *neighbour)]
        expected[(slice(None), slice(None), *position)] = value / total
    torch.testing.assert_close(gaussian_blur(x), expected)


def test_blur_of_an_axis_of_one_voxel_is_defined():
    x = torch.randn(1, 2, 1, 5)
    assert gaussian_blur(x).shape == x.shape


def test_gumbel_softmax_samples_each_class_with_its_probability():
    p = torch.tensor([0.6, 0.3, 0.1])
    sample = gumbel_softmax(p.log().view(1, 3, 1, 1).expand(1, 3, 300, 300), generator(0))
    torch.testing.assert_close(sample.sum(1), torch.ones(1, 300, 300))
    counts = torch.bincount(sample.argmax(1).flatten(), minlength=3) / 90_000
    torch.testing.assert_close(counts, p, atol=0.01, rtol=0)


@pytest.mark.parametrize("spatial", [(9, 8), (6, 7, 5)])
def test_ensemble_is_deterministic_under_a_generator(spatial):
    xi, psi = torch.randn(2, 3, *spatial), torch.randn(2, 3, *spatial)
    first, second = ensemble(xi, psi, generator(4)), ensemble(xi, psi, generator(4))
    assert first.dtype == torch.int64
    assert first.shape == (2, *spatial)
    assert torch.equal(first, second)
    assert not torch.equal(first, ensemble(xi, psi, generator(5)))


def test_ensemble_follows_equation_7():
    xi, psi = torch.randn(2, 3, 6, 7, 5), torch.randn(2, 3, 6, 7, 5)
    noise = -torch.empty(2, 3, 6, 7, 5).exponential_(generator=generator(1)).log()
    sample = (xi.log_softmax(1) + noise).softmax(1)
    expected = (gaussian_blur(sample) + psi.softmax(1)).argmax(1)
    assert (ensemble(xi, psi, generator(1)) == expected).float().mean() > 0.999


def test_ensemble_is_permutation_equivariant_in_distribution():
    xi, psi = torch.randn(1, 3, 1, 1).expand(1, 3, 200, 200), torch.randn(1, 3, 1, 1).expand(1, 3, 200, 200)
    order = torch.tensor([1, 2, 0])

    def frequencies(a, b, seed):
        return torch.bincount(ensemble(a, b, generator(seed)).flatten(), minlength=3) / 40_000

    permuted = frequencies(xi[:, order], psi[:, order], 7)
    torch.testing.assert_close(permuted, frequencies(xi, psi, 8)[order], atol=0.02, rtol=0)


def test_where_both_are_certain_and_agree_the_pseudo_label_is_their_class():
    target = torch.zeros(1, 8, 8, 8, dtype=torch.int64)
    target[:, 2:6, 2:6, 2:6] = 2
    logits = 50.0 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
    assert torch.equal(ensemble(logits, logits, generator(0)), target)
    assert torch.equal(plain_sum(logits, logits), target)


def test_plain_sum_adds_two_softmaxes():
    xi, psi = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)
    assert torch.equal(plain_sum(xi, psi), (xi.softmax(1) + psi.softmax(1)).argmax(1))


def test_integer_logits_are_refused():
    with pytest.raises(ValueError, match="floating"):
        gumbel_softmax(torch.zeros(1, 2, 3, 3, dtype=torch.int64))


@pytest.mark.parametrize("combine", [ensemble, plain_sum])
def test_half_precision_logits_are_combined_in_float32(combine):
    xi, psi = torch.randn(2, 2, 3, 20, 20, 20, generator=generator(0)).bfloat16()
    expected = combine(xi.float(), psi.float(), generator(1))
    assert torch.equal(combine(xi, psi, generator(1)), expected)


def test_a_variate_of_zero_is_no_infinity(monkeypatch):
    """One in some ten millions is: log 0 of two classes of a voxel would be NaN."""
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda x, generator=None: x.zero_())
    sample = gumbel_softmax(torch.zeros(1, 2, 3, 3))
    torch.testing.assert_close(sample, torch.full((1, 2, 3, 3), 0.5))
