"""Baseline: mean teacher (Tarvainen & Valpola, NeurIPS 2017) on the two streams."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from nnunet_ad.config import ADConfig
from nnunet_ad.network.averaging import MovingAverage, exponential
from nnunet_ad.trainer.semi_supervised import nnUNetTrainerSemiSupervised

_EMA_DECAY = 0.99
_NOISE, _MAX_NOISE = 0.1, 0.2  # of normalised intensities


class TeacherAndStudent(nn.Module):
    """A student, and its teacher: the exponential moving average of the student's parameters over the iterations.

    Called in training it is the student, in evaluation the teacher.
    """

    def __init__(self, student: nn.Module):
        super().__init__()
        self.student = student
        self.average = MovingAverage(exponential(_EMA_DECAY), student=student)

    @property
    def teacher(self) -> nn.Module:
        """The average of the students so far."""
        return self.average["student"]

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, *spatial) for images (B, C, *spatial)."""
        return self.student(image) if self.training else self.teacher(image)

    def update_teacher(self, skip: Tensor | None = None) -> None:
        """Move the teacher towards the student, except where ``skip``, a bool () on the device, holds."""
        self.average.follow(self, skip)


class nnUNetTrainerMeanTeacher(nnUNetTrainerSemiSupervised):
    """Stock nnU-Net's network learns from labels, and to agree with the mean of its own past on unlabelled patches.

    The consistency loss is the mean squared difference of probabilities; kind and weight are those of UA-MT (Yu et al.,
    MICCAI 2019) and its successors. The teacher sees the patch with additional noise, and is what is validated and used
    at inference.
    """

    network: TeacherAndStudent
    family = "nnUNetTrainerMeanTeacher"
    config = replace(ADConfig(), unsupervised_weight=0.1)

    @staticmethod
    def build_network_architecture(plans_manager, *arguments, **keywords) -> TeacherAndStudent:
        """Build stock nnU-Net's network twice."""
        return TeacherAndStudent(
            nnUNetTrainerSemiSupervised.build_network_architecture(plans_manager, *arguments, **keywords)
        )

    def train_step(self, batch: dict) -> dict[str, Tensor]:
        """Descend along DiceCE on labelled patches plus μ times the consistency on unlabelled ones."""
        x_l, y, x_u = self.to_device(batch["data"], batch["target"][:, 0], batch["unlabeled_data"])
        network = self.bare_network
        self.optimizer.zero_grad(set_to_none=True)

        logits = self.forward(network.student, x_l)
        supervised = self.backward(self.dice_ce(logits, y))

        noise = torch.randn(x_u.shape, generator=self.generator, device=self.device) * _NOISE
        with torch.no_grad():
            target = self.forward(network.teacher, x_u + noise.clamp(-_MAX_NOISE, _MAX_NOISE)).float().softmax(1)
        p = self.forward(network.student, x_u).float().softmax(1)
        consistency = self.joint_mean(nn.functional.mse_loss(p, target, reduction="none"))
        consistency = self.backward(consistency, weight=self.mu)

        self.descend()
        network.update_teacher(self.faults.skipped)
        return {
            "loss": supervised + self.mu * consistency,
            "loss_supervised": supervised,
            "loss_consistency": consistency,
            "numerical_faults": self.faults.fault,
        }
