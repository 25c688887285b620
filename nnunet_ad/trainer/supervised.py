"""Baseline: stock nnU-Net on the labelled cases, for as long as the trainers of this package."""

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_ad.config import ADConfig
from nnunet_ad.network.onednn import let_onednn_convolve
from nnunet_ad.trainer import provenance
from nnunet_ad.trainer.environment import integer_from_environment
from nnunet_ad.trainer.randomness import SEED_VARIABLE
from nnunet_ad.trainer.two_stream import EPOCHS_VARIABLE, ITERATIONS_VARIABLE


class nnUNetTrainerSupervised(nnUNetTrainer):
    """nnU-Net's own trainer, with as many epochs and iterations as nnUNetTrainerAD, not nnU-Net's 1000 epochs.

    ``NNUNET_AD_SEED`` decides on the first weights only: nnU-Net's data workers can't be seeded.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (the host inspects this very signature)
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        length = ADConfig()
        self.num_epochs = integer_from_environment(EPOCHS_VARIABLE, minimum=1) or length.num_epochs
        self.num_iterations_per_epoch = (
            integer_from_environment(ITERATIONS_VARIABLE, minimum=1) or length.num_iterations_per_epoch
        )
        self.num_val_iterations_per_epoch = max(1, self.num_iterations_per_epoch // 5)
        seed = integer_from_environment(SEED_VARIABLE, minimum=0)
        if seed is not None:
            torch.manual_seed(seed)

    def on_train_start(self) -> None:
        """As the host; the log says what is trained with."""
        super().on_train_start()
        self.print_to_log_file(f"{provenance.versions()}; device: {provenance.device_name(self.device)}")

    @staticmethod
    def build_network_architecture(plans_manager, *arguments, **keywords) -> nn.Module:
        """Build nnU-Net's network, which a CPU scores in less time, as the others of this package."""
        return let_onednn_convolve(nnUNetTrainer.build_network_architecture(plans_manager, *arguments, **keywords))
