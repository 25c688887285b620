"""The two trainers of this run; nnU-Net finds them with ``nnUNet_extTrainer=docs/runs/laseg_cpu``."""

from dataclasses import replace

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ad.trainer import nnUNetTrainerAD_50epochs


class nnUNetTrainerAD_50epochs_lr3e2(nnUNetTrainerAD_50epochs):
    """A&D with the largest learning rate of Table 8, which a training of so few iterations needs."""

    config = replace(nnUNetTrainerAD_50epochs.config, learning_rate=3e-2)


class nnUNetTrainer_50x24(nnUNetTrainer):
    """The baseline: nnU-Net's own trainer for as many iterations as A&D with ``NNUNET_AD_ITERATIONS=24``."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 50
        self.num_iterations_per_epoch = 24
        self.num_val_iterations_per_epoch = 4
