"""nnU-Net's polynomial schedule for parameters that learn at rates of their own."""

from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler


class RelativePolyLRScheduler(PolyLRScheduler):
    """As the host's, which gives one rate to all groups; the rate of a group is its ``relative_rate`` times that."""

    def step(self, current_step: int | None = None) -> None:
        """Set the rates of an epoch."""
        super().step(current_step)
        for group in self.optimizer.param_groups:
            group["lr"] *= group["relative_rate"]
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
