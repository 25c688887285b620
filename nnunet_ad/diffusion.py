"""Diffusion over label maps: the forward process of Eq. 1 and deterministic DDIM sampling.

Notation (name -> symbol in the paper or in DDIM, Song et al., ICLR 2021):
    y_0            -> y_0, one-hot label in {-1, 1}, zero at ignored voxels
    y_t            -> y_t, noisy label
    eps            -> ε, standard normal noise
    alpha_bar      -> ᾱ_t = ∏_{s≤t} (1 - β_s)
    predict_logits -> D(E([x, y_t], t); ξ)
    x0_hat         -> x̂_0, prediction of y_0
"""

from collections.abc import Callable

import torch
from torch import Tensor

from nnunet_ad.config import ADConfig


def encode_labels(target: Tensor, num_classes: int, ignore_label: int | None = None) -> Tensor:
    """Return y_0, the one-hot label in {-1, 1} that Eq. 1 adds noise to.

    Args:
        target: Label map (B, *spatial), integer, values in [0, num_classes) or ``ignore_label``.
        num_classes: K, classes with background.
        ignore_label: Voxels of this value become 0 in every channel, halfway between "is" and "is not".

    Returns:
        float32 tensor (B, K, *spatial).
    """
    target = target.long()
    if ignore_label is None:
        return _one_hot(target, num_classes) * 2 - 1
    valid = target != ignore_label
    return (_one_hot(torch.where(valid, target, 0), num_classes) * 2 - 1) * valid[:, None]


def _one_hot(target: Tensor, num_classes: int) -> Tensor:
    one_hot = torch.zeros((target.shape[0], num_classes, *target.shape[1:]), device=target.device)
    return one_hot.scatter_(1, target[:, None], 1.0)


class GaussianDiffusion:
    """Linear noise schedule over T steps with the forward process (Eq. 1) and DDIM sampling.

    Args:
        num_steps: T.
        beta_start: β of the first step.
        beta_end: β of the last step.
        label_scale: b, y_0 is in {-b, b}. Smooth labels stay readable in noise until late, so that a network hardly
            needs the image to denoise them; below 1 it needs it more.
        shrink: Let the network read the best linear estimate of y_0 in place of y_t, see :meth:`network_input`.

    Attributes:
        num_steps: T.
        label_scale: b.
        alpha_bar: float64 tensor (T,), decreasing, on the CPU.

    Raises:
        ValueError: If ``num_steps`` is below 1, not 0 < beta_start <= beta_end < 1, or ``label_scale`` is not positive.
    """

    def __init__(
        self,
        num_steps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 2e-2,
        label_scale: float = 1.0,
        shrink: bool = False,
    ):
        if num_steps < 1:
            raise ValueError(f"num_steps is {num_steps}; a diffusion needs at least one step")
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"got beta_start={beta_start}, beta_end={beta_end}; 0 < beta_start <= beta_end < 1 needed")
        if label_scale <= 0:
            raise ValueError(f"got label_scale={label_scale}; it must be positive")
        self.num_steps, self.label_scale, self.shrink = num_steps, label_scale, shrink
        beta = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
        self.alpha_bar = torch.cumprod(1 - beta, dim=0)
        self._scales: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}

    @classmethod
    def of(cls, config: ADConfig) -> "GaussianDiffusion":
        """Return the diffusion that a training with these hyper-parameters has."""
        return cls(
            config.num_diffusion_steps,
            config.beta_start,
            config.beta_end,
            config.label_scale,
            config.shrink_noisy_labels,
        )

    def noise_labels(self, y_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return y_t = √ᾱ_t·y_0 + √(1-ᾱ_t)·ε (Eq. 1).

        Args:
            y_0: (B, K, *spatial), floating; b times what :func:`encode_labels` returns.
            t: (B,), integer, in [0, T).
            eps: Standard normal noise of the shape of ``y_0``.

        Returns:
            Tensor of the shape and dtype of ``y_0``.

        Raises:
            ValueError: If ``y_0`` is not floating.
        """
        if not y_0.is_floating_point():
            raise ValueError(f"y_0 has dtype {y_0.dtype}; a floating one is needed, see encode_labels")
        signal, noise, _ = self._scales_of_t(y_0.device, y_0.dtype)
        return _per_sample(signal[t], y_0) * y_0 + _per_sample(noise[t], y_0) * eps.to(y_0.dtype)

    def network_input(self, y_t: Tensor, t: Tensor) -> Tensor:
        """Return what ξ reads of y_t (B, K, *spatial) at t (B,): c_t·y_t if labels are shrunk, else y_t itself.

        c_t·y_t with c_t = b·√ᾱ_t / (b²·ᾱ_t + 1 - ᾱ_t), which is √ᾱ_t for b = 1, is the linear estimate of y_0 / b, in
        {-1, 1}, with the least squared error (c_skip·x in EDM, Karras et al., NeurIPS 2022). Where y_t is all noise
        hardly anything of it is left, and ξ looks at the image; K channels of unit noise beside it would drown it.
        """
        if not self.shrink:
            return y_t
        _, _, slope = self._scales_of_t(y_t.device, y_t.dtype)
        return _per_sample(slope[t], y_t) * y_t

    def ddim_timesteps(self, num_sampling_steps: int) -> list[int]:
        """Return the steps that DDIM visits, ascending: rounded linspace(0, T-1, S), or [T-1] for S = 1.

        Raises:
            ValueError: If ``num_sampling_steps`` is not in [1, T].
        """
        if not 1 <= num_sampling_steps <= self.num_steps:
            raise ValueError(f"num_sampling_steps is {num_sampling_steps}; expected 1 to {self.num_steps}")
        if num_sampling_steps == 1:
            return [self.num_steps - 1]
        grid = torch.linspace(0, self.num_steps - 1, num_sampling_steps, dtype=torch.float64)
        return [int(t) for t in grid.round()]

    def ddim_sample(
        self, predict_logits: Callable[[Tensor, Tensor], Tensor], y_T: Tensor, num_sampling_steps: int = 10
    ) -> Tensor:
        """Denoise ``y_T`` by deterministic DDIM (η = 0) and return the logits of the last step.

        Args:
            predict_logits: Maps (y_t (B, K, *spatial), t (B,) int64) to logits (B, K, *spatial); it is given y_t as
                :meth:`network_input` makes it.
            y_T: Standard normal noise (B, K, *spatial).
            num_sampling_steps: S.

        Returns:
            Logits (B, K, *spatial), float32 or wider.

        Raises:
            ValueError: If ``num_sampling_steps`` is not in [1, T].
        """
        timesteps = self.ddim_timesteps(num_sampling_steps)
        alpha_bar = [float(self.alpha_bar[t]) for t in timesteps]
        y_t = y_T
        for i in reversed(range(len(timesteps))):
            t = torch.full((y_t.shape[0],), timesteps[i], dtype=torch.int64, device=y_t.device)
            logits = _at_least_float32(predict_logits(self.network_input(y_t, t), t))
            if i == 0:
                break
            # Paper: x̂_0 is the network's prediction. Public code: logits clamped to [-1, 1], so that no class ever
            # becomes confident (0.36 at most for K = 14). Here: 2·softmax - 1, times b as y_0 was.
            x0_hat = self.label_scale * (2 * logits.softmax(dim=1) - 1)
            eps = (y_t - alpha_bar[i] ** 0.5 * x0_hat) / (1 - alpha_bar[i]) ** 0.5
            y_t = alpha_bar[i - 1] ** 0.5 * x0_hat + (1 - alpha_bar[i - 1]) ** 0.5 * eps
        return logits

    def _scales_of_t(self, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """Return √ᾱ_t, √(1-ᾱ_t) and c_t (T,), cached on the device: the train step copies nothing from the host."""
        if (device, dtype) not in self._scales:
            signal, noise = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()
            slope = self.label_scale * signal / (self.label_scale**2 * signal**2 + noise**2)
            self._scales[device, dtype] = [scale.to(dtype).to(device) for scale in (signal, noise, slope)]
        return self._scales[device, dtype]


def _per_sample(scale: Tensor, x: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (x.ndim - 1))


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
