"""What trainers share that add a loss on unlabelled patches to a supervised one."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nnunet_ad.losses import unsupervised_weight
from nnunet_ad.network.onednn import let_onednn_convolve
from nnunet_ad.trainer.precision import forward_precision
from nnunet_ad.trainer.two_stream import nnUNetTrainerTwoStream


class nnUNetTrainerSemiSupervised(nnUNetTrainerTwoStream):
    """Base of A&D and of the methods it is compared with: a loss on pseudo-labels, and a ramp-up of μ.

    A subclass brings the network and the train step, which returns a dictionary of what is to be logged, each value a
    tensor on the device and one of them ``"loss"``.

    Attributes:
        family: What error messages call a trainer and its variants.

    Raises:
        ValueError: On ``initialize``: for the second stage of a cascade.
    """

    family = "nnUNetTrainerAD"

    @staticmethod
    def build_network_architecture(plans_manager, *arguments, **keywords) -> nn.Module:
        """Build stock nnU-Net's network, which a CPU scores in less time."""
        build = nnUNetTrainerTwoStream.build_network_architecture
        return let_onednn_convolve(build(plans_manager, *arguments, **keywords))

    def initialize(self) -> None:
        """Refuse what the method can't train on, then build network, optimiser and loss."""
        try:
            self._refuse_cascades()
            super().initialize()
        except ValueError:
            self._remove_new_results_folder()
            raise

    def _refuse_cascades(self) -> None:
        if self.is_cascaded:
            raise ValueError(
                f"{self.family} does not train {self.configuration_name}, the second stage of a cascade: unlabelled "
                "cases have no prediction of the first stage. Train 3d_fullres or 3d_lowres."
            )

    def _remove_new_results_folder(self) -> None:
        """Remove the log that the constructor began and folders that are empty without it.

        They would look like a trained model to ``nnUNetv2_find_best_configuration``.
        """
        Path(self.log_file).unlink(missing_ok=True)
        fold = Path(self.output_folder)
        for folder in (fold, *fold.parents[:2]):
            with suppress(OSError):  # it holds something else
                folder.rmdir()

    def _do_i_compile(self) -> bool:
        """Not as the host, which would compile the forward pass of inference only."""
        return False

    @property
    def mu(self) -> float:
        """Weight of the unsupervised loss in this epoch (Eq. 9)."""
        rampup_epochs = self.config.rampup_epochs
        if rampup_epochs is None:
            rampup_epochs = self.num_epochs / 3
        return unsupervised_weight(self.current_epoch, rampup_epochs, self.config.unsupervised_weight)

    def forward(self, function: Callable, *inputs) -> Any:
        """Call the network, or a part of it, in the precision of the device."""
        with forward_precision(self.device):
            return function(*inputs)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Log the epoch; the only place of its training where all these values leave the device."""
        num_faults = sum(_are_faulty(train_outputs))
        if num_faults:
            self.print_to_log_file(
                f"WARNING: {num_faults} of {len(train_outputs)} training steps had a loss or a gradient that is not "
                "finite; they were skipped."
            )
        summary = self.summarise(train_outputs)
        super().on_train_epoch_end([{"loss": summary.pop("loss")}])
        self.log_epoch(mu=self.mu, numerical_faults=num_faults, **summary)

    def summarise(self, train_outputs: list[dict]) -> dict[str, np.ndarray]:
        """Return the mean over an epoch of everything that the train step returned, also where not every step did.

        Steps with a numerical fault are left out, except where there is no other.
        """
        is_faulty = _are_faulty(train_outputs)
        sound = [outputs for outputs, faulty in zip(train_outputs, is_faulty, strict=True) if not faulty]
        names = {name: None for outputs in train_outputs for name in outputs if name != "numerical_faults"}
        found = {name: [o[name] for o in sound if name in o] for name in names}
        found = {name: values or [o[name] for o in train_outputs if name in o] for name, values in found.items()}
        return {name: torch.stack(values).float().mean(0).cpu().numpy() for name, values in found.items()}


def _are_faulty(train_outputs: list[dict]) -> list[bool]:
    return torch.stack([outputs["numerical_faults"] for outputs in train_outputs]).tolist()
