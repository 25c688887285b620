"""The baseline of this run: nnU-Net's own trainer, 50 epochs of 20 iterations, nothing else changed."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainer_50x20(nnUNetTrainer):
    """As many iterations as ``nnUNetTrainerAD_50epochs`` with ``NNUNET_AD_ITERATIONS=20``."""

    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 50
        self.num_iterations_per_epoch = 20
        self.num_val_iterations_per_epoch = 4
