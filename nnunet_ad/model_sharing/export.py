"""A trained model as a zip file with what inference needs, and nothing about the training or its cases."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.file_path_utilities import get_output_folder
from torch import Tensor, nn

from nnunet_ad import __version__
from nnunet_ad.json_file import read_json
from nnunet_ad.network.checkpoint import (
    inference_weights,
    is_of_ad_network,
    is_of_stock_network,
    load_checkpoint,
)
from nnunet_ad.network.from_plans import network_of_plans, stock_network_of_plans
from nnunet_ad.network.network import ADNetwork
from nnunet_ad.network.stock import copy_into_stock
from nnunet_ad.whole_file import written_whole

# What nnU-Net's inference reads. Other keys may hold names of cases, paths or free text, so they are left behind.
_PLANS = (
    "dataset_name",
    "plans_name",
    "original_median_spacing_after_transp",
    "original_median_shape_after_transp",
    "image_reader_writer",
    "transpose_forward",
    "transpose_backward",
    "configurations",
    "experiment_planner_used",
    "label_manager",
    "foreground_intensity_properties_per_channel",
    "foreground_intensity_properties_by_modality",  # its name in earlier plans
)
_DATASET_JSON = (
    "channel_names",
    "modality",  # its name in earlier files
    "labels",
    "regions_class_order",
    "file_ending",
    "overwrite_image_reader_writer",
)


@dataclass(frozen=True)
class Form:
    """How weights are written.

    Attributes:
        own_network: Whether the network is this package's, which the receiver must have, and not nnU-Net's own.
        half: Whether weights of convolutions become float16, which is how nnU-Net computes with them on a GPU.
    """

    own_network: bool = False
    half: bool = False


@dataclass(frozen=True)
class ModelName:
    """Which trainings of a dataset belong to a model.

    Attributes:
        dataset: ``DatasetXXX_Name``.
        trainer: Name of the trainer class.
        plans: Name of the plans.
        checkpoint: File name of the checkpoints.
    """

    dataset: str
    trainer: str = "nnUNetTrainerAD"
    plans: str = "nnUNetPlans"
    checkpoint: str = "checkpoint_final.pth"

    def folder(self, configuration: str) -> Path:
        """Return the folder of a configuration in ``nnUNet_results``."""
        return Path(get_output_folder(self.dataset, self.trainer, self.plans, configuration))


def export_model(
    model: ModelName, configurations: Sequence[str], folds: Sequence[int | str], output: Path, form: Form = Form()
) -> float:
    """Write a zip file that nnU-Net's ``nnUNetv2_install_pretrained_model_from_zip`` installs.

    It holds, for each configuration, the keys of plans and dataset.json that inference reads, and for each fold a
    checkpoint of encoder, image stem and the decoder θ, by default as nnU-Net's own network, for which the receiver
    needs nnU-Net only. The file appears as a whole or not at all.

    Args:
        model: What to export.
        configurations: Names of configurations.
        folds: Numbers of folds, or ``"all"``.
        output: The zip file; replaced if it exists.
        form: How weights are written.

    Returns:
        Size of the file as a share of the checkpoints that it was made from.

    Raises:
        ValueError: If a training is missing, not one of ``nnUNetTrainerAD`` or a variant, or can't be written so.
        OSError: If a file can't be read or written.
    """
    files = {c: [_checkpoint_file(model, c, fold) for fold in dict.fromkeys(folds)] for c in configurations}
    with written_whole(output) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for configuration, checkpoints in files.items():
            _add_configuration(archive, model, configuration, checkpoints, form)
    return output.stat().st_size / sum(file.stat().st_size for found in files.values() for file in found)


def postprocessing_of(model: ModelName, configurations: Sequence[str], folds: Sequence[int | str]) -> list[Path]:
    """Return the files with the postprocessing that nnU-Net found for these folds together.

    They are not exported: they are pickles, which can run code when they are loaded.
    """
    start, wanted = "crossval_results_folds_", {str(fold) for fold in folds}
    files = (file for c in configurations for file in sorted(model.folder(c).glob(f"{start}*/postprocessing.pkl")))
    return [file for file in files if set(file.parent.name.removeprefix(start).split("_")) == wanted]


def _checkpoint_file(model: ModelName, configuration: str, fold: int | str) -> Path:
    file = model.folder(configuration) / f"fold_{fold}" / model.checkpoint
    if not file.is_file():
        raise ValueError(f"there is no {file}; train this fold first, or check -d, -c, -f, -tr, -p and -chk")
    return file


def _add_configuration(
    archive: zipfile.ZipFile, model: ModelName, configuration: str, checkpoints: Sequence[Path], form: Form
) -> None:
    folder = model.folder(configuration)
    plans, dataset_json = (read_json(folder / name) for name in ("plans.json", "dataset.json"))
    plans = {key: plans[key] for key in _PLANS if key in plans}
    dataset_json = {key: dataset_json[key] for key in _DATASET_JSON if key in dataset_json}
    inside = f"{model.dataset}/{folder.name}"
    archive.writestr(f"{inside}/plans.json", json.dumps(plans, indent=4))
    archive.writestr(f"{inside}/dataset.json", json.dumps(dataset_json, indent=4))
    for file in checkpoints:
        checkpoint = _for_inference(load_checkpoint(file), plans, dataset_json, file, form)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        archive.writestr(f"{inside}/{file.parent.name}/{file.name}", buffer.getvalue())


def _for_inference(
    checkpoint: Mapping[str, Any], plans: dict, dataset_json: dict, file: Path, form: Form
) -> dict[str, Any]:
    weights = _weights(checkpoint, plans, dataset_json, file, form.own_network)
    return {
        "network_weights": _halved(weights, file) if form.half else weights,
        # What decides the network: it is the same for all variants, also for those that the receiver does not have.
        "trainer_name": "nnUNetTrainerAD" if form.own_network else "nnUNetTrainer",
        "init_args": {"configuration": checkpoint["init_args"]["configuration"]},
        "inference_allowed_mirroring_axes": checkpoint["inference_allowed_mirroring_axes"],
        "nnunet_ad": {"version": __version__, "stock_network": not form.own_network},
    }


def _weights(
    checkpoint: Mapping[str, Any], plans: dict, dataset_json: dict, file: Path, own_network: bool
) -> Mapping[str, Tensor]:
    """Return what inference needs, which fits the network that nnU-Net's inference builds."""
    content = plans, dataset_json, checkpoint["init_args"]["configuration"]
    weights = checkpoint["network_weights"]
    if is_of_stock_network(checkpoint):
        if own_network:
            raise ValueError(
                f"{file} is a model that was exported as nnU-Net's own network, and goes on to others as such only; "
                "leave out --own-network, or take the checkpoint of its training"
            )
        _load(weights, stock_network_of_plans(*content), file)
        return weights
    if not is_of_ad_network(weights):
        raise ValueError(
            f"{file} was trained with {checkpoint.get('trainer_name')}, which is not nnUNetTrainerAD or a variant; "
            "export it with nnUNetv2_export_model_to_zip"
        )
    weights = inference_weights(weights)
    network = network_of_plans(*content)
    _load(weights, network, file)
    return weights if own_network else _as_stock(network, stock_network_of_plans(*content), file)


def _load(weights: Mapping[str, Tensor], network: nn.Module, file: Path) -> None:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"the weights of {file} do not fit the network of nnUNetTrainerAD by the plans.json and dataset.json "
            f"beside it, which were changed since, or belong to a trainer with another network ({error})"
        ) from error


def _as_stock(network: ADNetwork, stock: nn.Module, file: Path) -> Mapping[str, Tensor]:
    try:
        copy_into_stock(network, stock)
    except ValueError as error:
        raise ValueError(f"{file} can't be written as nnU-Net's own network: {error}; add --own-network") from error
    return dict(stock.state_dict())


def _halved(weights: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Return the weights with those of convolutions in float16; two names of one tensor stay so."""
    halves = {weight.data_ptr(): weight.half() for weight in weights.values() if weight.ndim > 1}
    if not all(half.isfinite().all() for half in halves.values()):
        raise ValueError(f"{file} has weights beyond the range of float16; export it without --half")
    return {name: halves.get(weight.data_ptr(), weight) for name, weight in weights.items()}
