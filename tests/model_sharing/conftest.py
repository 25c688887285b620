"""What a finished training leaves behind, without training."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunet_ad.trainer import nnUNetTrainerAD_1epoch

DATASET = "Dataset500_Made"
PLANS = "nnUNetPlansTiny"


@pytest.fixture
def save_training(make_trainer, dataset) -> Callable[..., Path]:
    """Return a function that writes one fold, with weights as they were drawn, and returns its checkpoint."""

    def save(trainer_class=nnUNetTrainerAD_1epoch, fold: int | str = 0) -> Path:
        trainer = make_trainer(trainer_class, fold)
        trainer.initialize()
        folder, preprocessed = Path(trainer.output_folder_base), dataset / "nnUNet_preprocessed" / DATASET
        shutil.copy(preprocessed / f"{PLANS}.json", folder / "plans.json")
        for name in ("dataset.json", "dataset_fingerprint.json"):
            shutil.copy(preprocessed / name, folder / name)
        with torch.no_grad():  # decoders start from the same weights
            for name, parameter in trainer.network.named_parameters():
                if name.endswith("weight"):
                    parameter.add_(0.3 * torch.randn_like(parameter) * parameter.std().nan_to_num(0))
        for parameter in trainer.network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        trainer.optimizer.step()  # fills the momentum
        file = Path(trainer.output_folder) / "checkpoint_final.pth"
        trainer.save_checkpoint(str(file))
        return file

    return save
