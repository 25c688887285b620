"""A finished training, loaded for prediction as nnU-Net's predictor does."""

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.file_path_utilities import get_output_folder
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch._dynamo import OptimizedModule

from nnunet_ad.config import ADConfig
from nnunet_ad.network.checkpoint import check_complete, load_checkpoint
from nnunet_ad.network.network import ADNetwork


class TrainedModel:
    """Network, plans and hyper-parameters of one fold of a training with nnUNetTrainerAD or a variant.

    Args:
        dataset_name: ``DatasetXXX_Name``.
        configuration: Name of the configuration.
        fold: Number of the fold, or ``"all"``.
        trainer: Name of the trainer class.
        plans: Name of the plans.
        checkpoint: File name of the checkpoint.
        device: Where to predict.

    Attributes:
        predictor: nnU-Net's, with plans, configuration and dataset.json of the training.
        network: With its three decoders.
        config: Hyper-parameters of the trainer.
        checkpoint: The file.
        description: Trainer, configuration, fold and checkpoint in one line.

    Raises:
        ValueError: If there is no such training or checkpoint, if the checkpoint holds anything but data, if its
            network has not the three decoders, or if the device is not there.
    """

    def __init__(
        self,
        dataset_name: str,
        configuration: str,
        fold: int | str,
        trainer: str = "nnUNetTrainerAD",
        plans: str = "nnUNetPlans",
        checkpoint: str = "checkpoint_final.pth",
        device: torch.device = torch.device("cpu"),  # noqa: B008 (immutable)
    ):
        _check_device(device)
        folder = Path(get_output_folder(dataset_name, trainer, plans, configuration))
        _check_training(folder, fold, checkpoint)
        with redirect_stdout(StringIO()):  # the host tells where it looks for the trainer class
            self.predictor = nnUNetPredictor(device=device, use_mirroring=False, allow_tqdm=False)
            self.predictor.initialize_from_trained_model_folder(str(folder), (fold,), checkpoint)
            trainer_class = recursive_find_trainer_class_by_name(self.predictor.trainer_name)
        self.checkpoint = folder / f"fold_{fold}" / checkpoint
        self.network = _with_three_decoders(self.predictor, self.checkpoint)
        self.config: ADConfig = trainer_class.config
        self.description = f"{folder.name}, fold {fold}, {checkpoint}"


def _check_device(device: torch.device) -> None:
    missing = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available(), "cpu": False}
    if missing[device.type]:
        raise ValueError(f"-device {device.type} was asked for, but torch finds none here. Use -device cpu.")


def _check_training(folder: Path, fold: int | str, checkpoint: str) -> None:
    file = folder / f"fold_{fold}" / checkpoint
    if file.is_file():
        check_complete(load_checkpoint(file), file)
        return
    if file.parent.is_dir():
        found = ", ".join(sorted(path.name for path in file.parent.glob("*.pth"))) or "none"
        raise ValueError(f"{file.parent} has no {checkpoint}; checkpoints there: {found}. Name one of them with -chk.")
    raise ValueError(
        f"no such training: {file.parent} does not exist. Train first with nnUNetv2_train, or check -d, -c, -f, -tr "
        "and -p."
    )


def _with_three_decoders(predictor: nnUNetPredictor, checkpoint: Path) -> ADNetwork:
    network = predictor.network
    network = network._orig_mod if isinstance(network, OptimizedModule) else network
    if not isinstance(network, ADNetwork):
        raise ValueError(
            f"{checkpoint} was trained with {predictor.trainer_name}, whose network has one decoder; the ranking "
            "compares the three decoders of nnUNetTrainerAD. Train with it, or name such a training with -tr."
        )
    return network
