from dataclasses import replace

import pytest
import torch

from nnunet_ad.config import ADConfig
from nnunet_ad.diffusion import GaussianDiffusion, encode_labels

SPATIAL = [(7, 6), (5, 6, 4)]


@pytest.fixture
def diffusion() -> GaussianDiffusion:
    return GaussianDiffusion()


def one_hot_logits(target: torch.Tensor, num_classes: int, confidence: float) -> torch.Tensor:
    return encode_labels(target, num_classes) * confidence


def test_alpha_bar_is_the_product_of_one_minus_beta(diffusion):
    product, step = [], 1.0
    for i in range(1000):
        step *= 1 - (1e-4 + (2e-2 - 1e-4) * i / 999)
        product.append(step)
    assert diffusion.alpha_bar.dtype == torch.float64
    assert diffusion.alpha_bar.shape == (1000,)
    assert (diffusion.alpha_bar.diff() < 0).all()
    torch.testing.assert_close(diffusion.alpha_bar, torch.tensor(product, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("spatial", SPATIAL)
def test_noisy_labels_follow_equation_1_for_each_sample(diffusion, dtype, spatial):
    y_0 = torch.randn(3, 4, *spatial).to(dtype)
    eps = torch.randn_like(y_0)
    t = torch.tensor([0, 400, 999])
    y_t = diffusion.noise_labels(y_0, t, eps)
    assert y_t.dtype == dtype
    for i, step in enumerate([0, 400, 999]):
        a = float(diffusion.alpha_bar[step])
        expected = a**0.5 * y_0[i].double() + (1 - a) ** 0.5 * eps[i].double()
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 5e-2)
        torch.testing.assert_close(y_t[i].double(), expected, rtol=tolerance, atol=tolerance)


def test_noise_of_another_dtype_leaves_the_dtype_of_the_label(diffusion):
    y_0 = torch.ones(1, 2, 3, 3, dtype=torch.float16)
    assert diffusion.noise_labels(y_0, torch.tensor([7]), torch.randn(1, 2, 3, 3)).dtype == torch.float16


def test_integer_labels_are_refused(diffusion):
    with pytest.raises(ValueError, match="encode_labels"):
        diffusion.noise_labels(torch.ones(1, 2, 3, 3, dtype=torch.int64), torch.tensor([7]), torch.randn(1, 2, 3, 3))


def test_the_last_step_is_almost_pure_noise_and_the_first_almost_none(diffusion):
    y_0, eps = torch.ones(1, 2, 3, 3), torch.full((1, 2, 3, 3), -2.0)
    torch.testing.assert_close(diffusion.noise_labels(y_0, torch.tensor([999]), eps), eps, atol=0.02, rtol=0)
    torch.testing.assert_close(diffusion.noise_labels(y_0, torch.tensor([0]), eps), y_0, atol=0.04, rtol=0)


@pytest.mark.parametrize(
    ("num_steps", "grid"),
    [(1, [999]), (2, [0, 999]), (3, [0, 500, 999]), (10, [0, 111, 222, 333, 444, 555, 666, 777, 888, 999])],
)
def test_timesteps_are_the_rounded_grid(diffusion, num_steps, grid):
    assert diffusion.ddim_timesteps(num_steps) == grid


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_timesteps_outside_the_diffusion_are_refused(diffusion, num_steps):
    with pytest.raises(ValueError, match="expected 1 to 1000"):
        diffusion.ddim_timesteps(num_steps)


@pytest.mark.parametrize(
    "arguments", [{"num_steps": 0}, {"beta_start": 0.0}, {"beta_start": 0.1}, {"beta_end": 1.0}, {"label_scale": 0.0}]
)
def test_impossible_schedules_are_refused(arguments):
    with pytest.raises(ValueError, match=r"got|is 0"):
        GaussianDiffusion(**arguments)


@pytest.mark.parametrize("num_steps", [1, 2, 10])
@pytest.mark.parametrize("spatial", SPATIAL)
def test_a_perfect_predictor_makes_ddim_return_its_answer(diffusion, num_steps, spatial):
    target = torch.randint(3, (2, *spatial))
    answer = one_hot_logits(target, 3, confidence=20.0)
    calls = []

    def predict(y_t, t):
        calls.append(t.tolist())
        return answer

    logits = diffusion.ddim_sample(predict, torch.randn(2, 3, *spatial), num_steps)
    torch.testing.assert_close(logits, answer)
    assert calls == [[t, t] for t in reversed(diffusion.ddim_timesteps(num_steps))]


@pytest.mark.parametrize("label_scale", [1.0, 0.3])
def test_under_a_perfect_predictor_the_trajectory_follows_the_forward_process(label_scale):
    """With the true x̂_0, DDIM at η = 0 keeps ε, so that each visited y_t is Eq. 1 for the same noise."""
    diffusion, target = GaussianDiffusion(label_scale=label_scale), torch.randint(2, (1, 4, 4, 4))
    y_0, eps = label_scale * encode_labels(target, 2).double(), torch.randn(1, 2, 4, 4, 4, dtype=torch.float64)
    visited = {}

    def predict(y_t, t):
        visited[int(t)] = y_t
        return y_0 / label_scale * 50.0

    start = diffusion.noise_labels(y_0, torch.tensor([999]), eps)
    diffusion.ddim_sample(predict, start, 10)
    for step, y_t in visited.items():
        torch.testing.assert_close(y_t, diffusion.noise_labels(y_0, torch.tensor([step]), eps))


@pytest.mark.parametrize("label_scale", [1.0, 0.3])
@pytest.mark.parametrize("spatial", SPATIAL)
def test_shrunk_noisy_labels_are_the_best_linear_estimate_of_the_label(spatial, label_scale):
    diffusion = GaussianDiffusion(label_scale=label_scale, shrink=True)
    y_0 = encode_labels(torch.randint(2, (3, *spatial)), 2).double()
    t, eps = torch.tensor([0, 400, 999]), torch.randn(y_0.shape, dtype=torch.float64)
    y_t = diffusion.noise_labels(label_scale * y_0, t, eps)
    read = diffusion.network_input(y_t, t)
    assert torch.equal(GaussianDiffusion().network_input(y_t, t), y_t)
    for i, step in enumerate(t.tolist()):
        # Cov(y_0, y_t) / Var(y_t) for Eq. 1 with labels of variance b² and Var(ε) = 1
        alpha_bar = float(diffusion.alpha_bar[step])
        slope = label_scale * alpha_bar**0.5 / (label_scale**2 * alpha_bar + 1 - alpha_bar)
        torch.testing.assert_close(read[i], slope * y_t[i])


def test_ddim_gives_the_network_what_training_gave_it():
    plain, shrinking, seen = GaussianDiffusion(), GaussianDiffusion(shrink=True), []
    y_T = torch.randn(1, 2, 4, 4, 4)

    def predict(read, t):
        seen.append((int(t), read))
        return 5.0 * encode_labels(torch.ones(1, 4, 4, 4, dtype=torch.int64), 2)

    plain.ddim_sample(predict, y_T, 4)
    unshrunk = dict(seen)
    seen.clear()
    shrinking.ddim_sample(predict, y_T, 4)
    assert len(seen) == 4
    for step, read in seen:
        torch.testing.assert_close(read, float(plain.alpha_bar[step]) ** 0.5 * unshrunk[step])


def test_prediction_becomes_confident(diffusion):
    """Clamped logits could not: with K = 14 no softmax of values in [-1, 1] passes 0.37."""
    seen = []

    def predict(y_t, t):
        seen.append(y_t)
        return 8.0 * encode_labels(torch.zeros(1, 6, 6, dtype=torch.int64), 14)

    diffusion.ddim_sample(predict, torch.randn(1, 14, 6, 6), 10)
    assert seen[-1][:, 0].mean() > 0.95
    assert seen[-1][:, 1:].mean() < -0.95


def test_half_precision_predictions_are_integrated_in_float32(diffusion):
    logits = diffusion.ddim_sample(lambda y, t: y.bfloat16(), torch.randn(1, 2, 4, 4), 5)
    assert logits.dtype == torch.float32


def test_encoded_labels_are_signed_one_hot_and_zero_where_ignored():
    target = torch.tensor([[[0, 1], [2, 9]]])
    y_0 = encode_labels(target, 3, ignore_label=9)
    assert y_0.shape == (1, 3, 2, 2)
    assert y_0[0, :, 0, 0].tolist() == [1, -1, -1]
    assert y_0[0, :, 1, 0].tolist() == [-1, -1, 1]
    assert y_0[0, :, 1, 1].tolist() == [0, 0, 0]


def test_the_diffusion_of_a_training_has_its_hyper_parameters():
    changes = {"num_diffusion_steps": 7, "beta_start": 0.1, "beta_end": 0.4, "label_scale": 0.5}
    ours = GaussianDiffusion.of(replace(ADConfig(), **changes, shrink_noisy_labels=False))
    assert torch.equal(ours.alpha_bar, GaussianDiffusion(7, 0.1, 0.4).alpha_bar)
    assert (ours.num_steps, ours.label_scale, ours.shrink) == (7, 0.5, False)
    assert GaussianDiffusion.of(replace(ADConfig(), shrink_noisy_labels=True)).shrink


def test_one_diffusion_serves_labels_of_several_dtypes():
    diffusion, t = GaussianDiffusion(), torch.tensor([7])
    for dtype in (torch.float64, torch.float16, torch.float64):
        y_0 = torch.ones(1, 2, 3, 3, dtype=dtype)
        assert diffusion.noise_labels(y_0, t, torch.zeros_like(y_0)).dtype == dtype


def test_double_precision_stays_and_every_step_may_be_visited():
    logits = GaussianDiffusion(num_steps=5).ddim_sample(lambda y, t: y, torch.randn(1, 2, 4, 4).double(), 5)
    assert logits.dtype == torch.float64
