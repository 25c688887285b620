"""Baseline: stock nnU-Net on the labelled cases, for as long as the trainers of this package."""

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_ad.network.onednn import let_onednn_convolve
from nnunet_ad.trainer import provenance
from nnunet_ad.trainer.environment import integer_from_environment
from nnunet_ad.trainer.randomness import SEED_VARIABLE
from nnunet_ad.trainer.two_stream import EPOCHS_VARIABLE, ITERATIONS_VARIABLE


class nnUNetTrainerSupervised(nnUNetTrainer):
    """nnU-Net's own trainer, with ``NNUNET_AD_EPOCHS`` and ``NNUNET_AD_ITERATIONS`` as in this package.

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
        self.num_epochs = integer_from_environment(EPOCHS_VARIABLE, minimum=1) or self.num_epochs
        iterations = integer_from_environment(ITERATIONS_VARIABLE, minimum=1)
        if iterations is not None:
            self.num_iterations_per_epoch = iterations
            self.num_val_iterations_per_epoch = max(1, iterations // 5)
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
