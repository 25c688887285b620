"""Aggregating & Decoupling inside nnU-Net's trainer."""

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerAD(nnUNetTrainer):
    """Aggregating & Decoupling (Wang & Li, NeurIPS 2023)."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (the host's signature, which it inspects)
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
