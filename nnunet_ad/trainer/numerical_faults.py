"""Losses and gradients that are not finite: noticed on the device, so that watching costs no synchronisation."""

from collections import deque

import torch
from torch import Tensor


class NumericalFaults:
    """Judges each train step; what a step with a fault has computed must not change anything.

    With a gradient scaler an infinite gradient is expected now and then: the scaler skips such a step and tries a
    smaller scale. That overflow is no fault, unless the scale has come down to 1 and the gradient is still not finite.

    Args:
        device: Of the train step.
        most_in_a_row: As many faults in a row are an error.

    Attributes:
        losses_finite: Float (), 1 as long as all losses of the step are finite, which are those of the joint batch.
        skipped: Bool (), whether the last step must change nothing, because of a fault or an overflow.
        fault: Bool (), whether the last step had a fault.
        in_a_row: Integer (), faults since the last step without one.
        cases: Of the last batches.
    """

    def __init__(self, device: torch.device, most_in_a_row: int):
        self.most_in_a_row = most_in_a_row
        self.losses_finite = torch.ones((), device=device)
        self.skipped = torch.zeros((), dtype=torch.bool, device=device)
        self.fault = self.skipped
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self.cases: deque[set[str]] = deque(maxlen=most_in_a_row)
        self._longest = self.in_a_row

    def go_on(self, in_a_row: int) -> None:
        """Go on after a number of faults in a row; a training that was stopped for too many has one more try."""
        in_a_row = min(in_a_row, self.most_in_a_row - 1)
        self.in_a_row = self._longest = torch.full_like(self.in_a_row, in_a_row)

    def watch(self, loss: Tensor) -> None:
        """Take note of one loss of the step."""
        self.losses_finite = self.losses_finite * torch.isfinite(loss)

    def spread(self, gradient: Tensor) -> None:
        """Make a gradient NaN if a loss was not finite, so that the norm and the scaler learn of it."""
        gradient += torch.where(self.losses_finite == 1, 0.0, torch.nan).to(gradient.dtype)

    def judge(self, gradient_norm: Tensor, scale: Tensor | None = None) -> None:
        """Decide on the step.

        Args:
            gradient_norm: Joint norm of all gradients, ().
            scale: Of the gradient scaler, (), or ``None`` without one.
        """
        self.skipped = ~torch.isfinite(gradient_norm)
        self.fault = self.skipped
        if scale is not None:
            overflow = (self.losses_finite == 1) & (scale > 1)
            self.fault = self.skipped & ~overflow
        in_a_row = torch.where(self.skipped, self.in_a_row, 0)
        self.in_a_row = in_a_row + self.fault
        self._longest = torch.maximum(self._longest, self.in_a_row)
        self.losses_finite = torch.ones_like(self.losses_finite)

    def check(self, where: str) -> None:
        """Read the count from the device.

        Args:
            where: Names the place in the training.

        Raises:
            FloatingPointError: After too many faults in a row.
        """
        if int(self._longest) < self.most_in_a_row:
            return
        raise FloatingPointError(
            f"{self.most_in_a_row} training steps in a row, up to {where}, had a loss or a gradient that is not "
            f"finite. They were skipped: network and checkpoints are as before. {self._suspects()} Otherwise lower "
            "the learning rate (learning_rate in a trainer's config) or, on a CPU, compute in float32 "
            "(NNUNET_AD_CPU_BF16=0); then continue with --c."
        )

    def _suspects(self) -> str:
        known = len(self.cases)
        if known < self.most_in_a_row:  # every case of one or two batches would look suspicious
            return f"Only the last {known} batch(es) are known since it was continued, too few to suspect an image."
        common = sorted(set.intersection(*self.cases))
        if common:
            return f"In each of the last {known} batches was {', '.join(common)}: look at these images first."
        return "No case was in all of the last batches: it is the optimisation rather than an image."
