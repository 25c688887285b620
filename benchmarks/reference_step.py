"""Algorithm 1, and CutMix, read off the page: each flow and DDIM step by itself, in float32, nothing shared or fused.

What the train step of the package is compared with, in time and memory by ``benchmarks/train_step.py`` and in its
result by a test. It draws its random numbers in the order in which the trainer does.
"""

import torch
from torch import Tensor, nn

from nnunet_ad.augmentation.cutmix import cutmix
from nnunet_ad.difficulty import DifficultyWeights
from nnunet_ad.diffusion import GaussianDiffusion, encode_labels
from nnunet_ad.losses import dice_ce
from nnunet_ad.network.network import ADNetwork
from nnunet_ad.pseudo_label import ensemble
from nnunet_ad.trainer import nnUNetTrainerAD


class ReferenceStep:
    """A plain train step on the network and the optimiser of an initialised trainer.

    Args:
        trainer: Read for network, optimiser, hyper-parameters and random state; its own step is not used.
    """

    def __init__(self, trainer: nnUNetTrainerAD):
        config = trainer.config
        self.config, self.mu, self.device = config, trainer.mu, trainer.device
        self.network: ADNetwork = trainer.bare_network
        self.optimizer, self.generator, self.num_updates = trainer.optimizer, trainer.generator, 0
        self.num_classes = trainer.num_classes
        self.diffusion = GaussianDiffusion.of(config)
        self.difficulty = DifficultyWeights(
            self.num_classes - 1, config.difficulty_window, config.difficulty_exponent
        ).to(self.device)

    def __call__(self, batch: dict) -> dict[str, float]:
        """Take one step and return the three losses."""
        network, diffusion = self.network, self.diffusion
        x_l, y, x_u = (batch[name].to(self.device) for name in ("data", "target", "unlabeled_data"))
        y = y[:, 0].long()

        y_0 = diffusion.label_scale * encode_labels(y, self.num_classes)
        t = torch.randint(diffusion.num_steps, (len(y),), generator=self.generator, device=self.device)
        y_t = diffusion.noise_labels(y_0, t, self._normal(y_0.shape))
        logits_xi = network.denoising_decoder(self._encode_noisy(x_l, y_t, t))
        denoising = dice_ce(logits_xi, y)

        weights = torch.ones(self.num_classes, device=self.device)
        weights[1:] = self._foreground_weights(logits_xi.argmax(1), y)
        difficulty = dice_ce(network.difficulty_decoder(network.encoder(x_l)), y, weights)

        with torch.no_grad():
            p_xi = self._ddim(x_u)
            p_psi = network.difficulty_decoder(network.encoder(x_u))
        y_u = ensemble(p_xi, p_psi, self.generator)
        if self.config.cutmix:
            x_u, y_u = cutmix(x_u, y_u, x_l, y, self.config.cutmix, self.generator)
        unlabeled = dice_ce(network.unlabeled_decoder(network.encoder(x_u)), y_u)

        self.optimizer.zero_grad()
        (denoising + difficulty + self.mu * unlabeled).backward()
        nn.utils.clip_grad_norm_(network.parameters(), self.config.max_gradient_norm)
        self.optimizer.step()
        self._distill()
        self._average()
        return {"denoising": denoising.item(), "difficulty": difficulty.item(), "unlabeled": unlabeled.item()}

    def _encode_noisy(self, image: Tensor, y_t: Tensor, t: Tensor) -> list[Tensor]:
        encoder = self.network.encoder
        if self.config.shrink_noisy_labels:
            b, alpha_bar = self.diffusion.label_scale, self.diffusion.alpha_bar[t.cpu()]
            slope = (b * alpha_bar.sqrt() / (b**2 * alpha_bar + 1 - alpha_bar)).float()
            y_t = slope.view(-1, *[1] * (y_t.ndim - 1)).to(y_t.device) * y_t
        conv = encoder.noisy_stem.conv
        weight = torch.cat((conv.weight, encoder.label_conv.weight), dim=1)
        return encoder.encode_convolved(conv._conv_forward(torch.cat((image, y_t), dim=1), weight, conv.bias), t)

    def _foreground_weights(self, prediction: Tensor, y: Tensor) -> Tensor:
        dice, present = [], []
        for k in range(1, self.num_classes):
            total = (prediction == k).sum() + (y == k).sum()
            dice.append(2 * ((prediction == k) & (y == k)).sum() / total.clamp_min(1))
            present.append(total > 0)
        return self.difficulty.update(torch.stack(dice).float(), torch.stack(present))

    def _ddim(self, image: Tensor) -> Tensor:
        steps = self.diffusion.ddim_timesteps(self.config.num_sampling_steps)
        y_t = self._normal((len(image), self.num_classes, *image.shape[2:]))
        for i in reversed(range(len(steps))):
            t = torch.full((len(image),), steps[i], dtype=torch.int64, device=self.device)
            logits = self.network.denoising_decoder(self._encode_noisy(image, y_t, t))
            if i > 0:
                now, before = (float(self.diffusion.alpha_bar[steps[j]]) for j in (i, i - 1))
                clean = self.diffusion.label_scale * (2 * logits.softmax(dim=1) - 1)
                eps = (y_t - now**0.5 * clean) / (1 - now) ** 0.5
                y_t = before**0.5 * clean + (1 - before) ** 0.5 * eps
        return logits

    @torch.no_grad()
    def _distill(self) -> None:
        network, w = self.network, self.config.distillation_momentum
        teachers = network.denoising_decoder.state_dict(), network.difficulty_decoder.state_dict()
        for name, theta in network.unlabeled_decoder.named_parameters():
            theta.copy_(w * theta + (1 - w) * (teachers[0][name] + teachers[1][name]) / 2)

    @torch.no_grad()
    def _average(self) -> None:
        if not self.config.weight_averaging:
            return
        self.num_updates += 1
        weight = 1 / (1 + self.config.weight_averaging * (self.num_updates - 1))
        parameters = dict(self.network.named_parameters())
        for name, average in self.network.average.named_parameters():
            average.copy_((1 - weight) * average + weight * parameters[name])

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)
