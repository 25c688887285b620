"""Weights of another network, of stock nnU-Net or of this one, as a start for ``nnUNetTrainerAD``."""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch
from nnunetv2.paths import nnUNet_preprocessed
from torch import Tensor

from nnunet_ad import __version__
from nnunet_ad.config import ADConfig
from nnunet_ad.json_file import read_json
from nnunet_ad.network.checkpoint import (
    is_for_inference_only,
    is_of_ad_network,
    is_of_stock_network,
    load_checkpoint,
)
from nnunet_ad.network.from_plans import network_of_plans
from nnunet_ad.network.network import ADNetwork
from nnunet_ad.network.stock import with_added_skips
from nnunet_ad.whole_file import written_whole

_WRITTEN = {"network_weights", "nnunet_ad"}  # all keys of what is written; trainings and exports have more
_PREFIXES_OF_BASELINES = ("average.student.", "first.")
_DECODERS = ("denoising_decoder", "difficulty_decoder", "unlabeled_decoder")


@dataclass(frozen=True)
class Target:
    """What decides the network that is to be filled.

    Attributes:
        plans: Content of the plans file.
        dataset_json: Content of dataset.json.
        configuration: Name of the configuration.
    """

    plans: dict
    dataset_json: dict
    configuration: str

    @classmethod
    def of_checkpoint(cls, checkpoint: Mapping[str, Any], file: Path) -> "Target":
        """Return that of the training which wrote a checkpoint.

        Raises:
            ValueError: If the checkpoint does not say it.
        """
        arguments = checkpoint.get("init_args", {})
        if not {"plans", "dataset_json", "configuration"} <= set(arguments):
            raise ValueError(
                f"{file} does not hold the plans of its training; name the dataset to train on with -d, -p and -c"
            )
        return cls(arguments["plans"], arguments["dataset_json"], arguments["configuration"])

    @classmethod
    def of_dataset(cls, dataset: str, plans: str, configuration: str) -> "Target":
        """Return that of a preprocessed dataset, ``DatasetXXX_Name``.

        Raises:
            OSError: If the plans or dataset.json are not in ``nnUNet_preprocessed``.
        """
        folder = Path(nnUNet_preprocessed.require()) / dataset
        plans_dict, dataset_json = (read_json(folder / f"{name}.json") for name in (plans, "dataset"))
        return cls(plans_dict, dataset_json, configuration)

    def network(self) -> ADNetwork:
        """Build the network, with weights as they are drawn; the three decoders have the same ones.

        It has a noisy stem of its own, and averages: nnU-Net passes over weights that a network does not have, and
        misses others.
        """
        return network_of_plans(
            self.plans,
            self.dataset_json,
            self.configuration,
            shared_stem=False,
            averaging=ADConfig().weight_averaging,
        )


@dataclass
class Import:
    """What came of an import; names are those of ``ADNetwork``.

    Attributes:
        filled: Parameters that were taken over.
        unknown: Parameters that the other network does not have.
        other_shape: Parameters that have another shape there: own shape, shape there.
    """

    filled: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    other_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)


def import_weights(source: Path, output: Path, target: Target | None = None) -> Import:
    """Write weights of ``nnUNetTrainerAD`` for ``-pretrained_weights``, filled from another network where shapes agree.

    The encoder, and each of the three decoders, take what they share with the other network; the rest is as drawn for
    a new training. The file appears as a whole or not at all.

    Args:
        source: Checkpoint of a stock nnU-Net training, of a mean teacher (the teacher is taken) or cross pseudo
            supervision (the first network), of one of ``nnUNetTrainerAD`` with other switches, as
            ``nnUNetTrainerAD_Paper``, whose parameters are not all the same, or of a model that ``nnunet_ad export``
            wrote.
        output: The file to write; replaced if it was written by this function.
        target: The training that is to start from it; ``None`` is the dataset and plans of ``source``.

    Raises:
        ValueError: If ``source`` is no checkpoint or fits nowhere, or if ``output`` is ``source`` or another file.
        OSError: If a file can't be read or written.
    """
    _check_may_be_written(output, source)
    _check_is_no_zip_of_a_model(source)
    checkpoint = load_checkpoint(source)
    theirs = _of_one_network(checkpoint["network_weights"])
    if is_of_stock_network(checkpoint):
        theirs = with_added_skips(theirs)
    network = (target or Target.of_checkpoint(checkpoint, source)).network()
    found = _fill(network, theirs)
    if not any(name.startswith("encoder.") for name in found.filled):
        raise ValueError(
            f"{source} has nothing that fits the encoder of these plans; expected a checkpoint of a training with the "
            "same plans. If the plans came from another dataset, name this one with -d, -p and -c"
        )
    buffer = io.BytesIO()  # torch.save says neither which file it can't write nor why
    torch.save({"network_weights": network.state_dict(), "nnunet_ad": {"version": __version__}}, buffer)
    with written_whole(output) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return found


def _of_one_network(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return what inference uses of a baseline of two stock networks, by nnU-Net's names; others as they are."""
    for prefix in _PREFIXES_OF_BASELINES:
        if any(name.startswith(prefix) for name in weights):
            return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
    return weights


def _check_is_no_zip_of_a_model(source: Path) -> None:
    """Checkpoints are zip files, too, but hold no plans."""
    if is_zipfile(source):
        with ZipFile(source) as content:
            if any(name.endswith("plans.json") for name in content.namelist()):
                raise ValueError(
                    f"{source} is a model to install: nnUNetv2_install_pretrained_model_from_zip {source}; then import "
                    "from its fold_…/checkpoint_final.pth"
                )


def _check_may_be_written(output: Path, source: Path) -> None:
    if not output.is_file():
        return
    if source.is_file() and output.samefile(source):
        raise ValueError(f"{output} is the checkpoint to import from, which would be lost; name another file to write")
    try:
        is_ours = set(load_checkpoint(output)) == _WRITTEN
    except ValueError:  # no checkpoint
        is_ours = False
    if not is_ours:
        raise ValueError(
            f"{output} exists and was not written by nnunet_ad import-weights; name another file to write, or delete "
            "that one"
        )


@torch.no_grad()
def _fill(network: ADNetwork, theirs: Mapping[str, Tensor]) -> Import:
    found = Import()
    of_ad, exported = is_of_ad_network(theirs), is_for_inference_only(theirs)
    num_stages = len(network.unlabeled_decoder.stages)
    image_stem = next(name for name, module in network.named_modules() if module is network.encoder.image_stem)
    for name, parameter in network.named_parameters():
        start = name.removeprefix("average.").replace("encoder.separate_stem", image_stem)
        if exported:
            there = _name_in_export(start)
        elif of_ad:
            there = name if name in theirs else start
        else:
            there = _name_in_stock(start, num_stages)
        source = theirs.get(there)
        if source is None:
            found.unknown.append(name)
        elif source.shape != parameter.shape:
            found.other_shape[name] = tuple(parameter.shape), tuple(source.shape)
        else:
            parameter.copy_(source)
            found.filled.append(name)
    return found


def _name_in_export(name: str) -> str:
    part, rest = name.split(".", 1)
    return f"unlabeled_decoder.{rest}" if part in _DECODERS else name


def _name_in_stock(name: str, num_decoder_stages: int) -> str:
    """Return what nnU-Net calls a parameter of ``ADNetwork``; its last head is the one at full resolution."""
    name = re.sub(f"^({'|'.join(_DECODERS)})\\.", "decoder.", name).replace("encoder.image_encoder.", "encoder.")
    name = name.replace("decoder.upsamplings.", "decoder.transpconvs.")
    return name.replace("decoder.classifier.", f"decoder.seg_layers.{num_decoder_stages - 1}.")
