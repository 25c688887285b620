"""Baseline: cross pseudo supervision (Chen et al., CVPR 2021) on the two streams."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from nnunet_ad.config import ADConfig
from nnunet_ad.pseudo_label import hard_labels
from nnunet_ad.trainer.semi_supervised import nnUNetTrainerSemiSupervised


class TwoNetworks(nn.Module):
    """Two networks of one architecture with different first weights; called, it is the first one."""

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, *spatial) for images (B, C, *spatial)."""
        return self.first(image)


class nnUNetTrainerCPS(nnUNetTrainerSemiSupervised):
    """Two networks of stock nnU-Net learn from labels, and each from the other's hard labels of unlabelled patches.

    The first network is what is validated and used at inference.
    """

    network: TwoNetworks
    family = "nnUNetTrainerCPS"
    config = replace(ADConfig(), unsupervised_weight=1.5)

    @staticmethod
    def build_network_architecture(plans_manager, *arguments, **keywords) -> TwoNetworks:
        """Build stock nnU-Net's network twice, with different first weights."""
        build = nnUNetTrainerSemiSupervised.build_network_architecture
        return TwoNetworks(build(plans_manager, *arguments, **keywords), build(plans_manager, *arguments, **keywords))

    def train_step(self, batch: dict) -> dict[str, Tensor]:
        """Descend along DiceCE of both networks on labelled patches plus μ times their cross entropies on others."""
        x_l, y, x_u = self.to_device(batch["data"], batch["target"][:, 0], batch["unlabeled_data"])
        networks = self.bare_network.first, self.bare_network.second
        self.optimizer.zero_grad(set_to_none=True)

        supervised = torch.zeros((), device=self.device)
        for network in networks:
            logits = self.forward(network, x_l)
            supervised += self.backward(self.dice_ce(logits, y))

        logits_u = [self.forward(network, x_u).float() for network in networks]
        labels = [hard_labels(logits.detach()) for logits in logits_u]
        cross_entropy = partial(nn.functional.cross_entropy, reduction="none")
        crossed = cross_entropy(logits_u[0], labels[1]) + cross_entropy(logits_u[1], labels[0])
        crossed = self.backward(self.joint_mean(crossed), weight=self.mu)

        self.descend()
        return {
            "loss": supervised + self.mu * crossed,
            "loss_supervised": supervised,
            "loss_crossed": crossed,
            "numerical_faults": self.faults.fault,
        }
