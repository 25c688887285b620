"""Checkpoint files: read without running code, and reduced to what inference needs."""

import pickle
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_TRAINING_ONLY = (
    "denoising_decoder.",
    "difficulty_decoder.",
    "encoder.label_conv.",
    "encoder.separate_stem.",
    "encoder.step_embedding.",
    "encoder.modulations.",
)
_AVERAGE = "average."
_OF_THIS_NETWORK = ("unlabeled_decoder.",)

# nnU-Net's curves are numpy scalars, random states are numpy arrays. Files name what restores them by its module, which
# was numpy.core before numpy 2.
_SCALAR, _ARRAY = (value.__reduce__()[0] for value in (np.float64(0), np.empty(0)))
_NUMPY = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "uint32", "bool")),
    *(
        (function, f"{module}.multiarray.{function.__name__}")
        for function in (_SCALAR, _ARRAY)
        for module in ("numpy._core", "numpy.core")
    ),
]


def checkpoint_types() -> AbstractContextManager[None]:
    """Return a context in which torch loads what nnU-Net writes as data, also where it is to load nothing else."""
    return torch.serialization.safe_globals(_NUMPY)


def load_checkpoint(file: str | Path) -> dict[str, Any]:
    """Return the checkpoint of a training with nnU-Net or this package, on the CPU, without running code in the file.

    Raises:
        ValueError: If the file is damaged, is not a checkpoint, or holds anything but tensors, numbers, text and
            collections of these.
        OSError: If the file can't be read.
    """
    try:
        with checkpoint_types():
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} is not loaded: it is damaged, or holds more than tensors, numbers and text, which could be code "
            f"that runs on loading ({_first_line(error)}). Expected a checkpoint that nnU-Net wrote."
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{file} is not a checkpoint, or a damaged one ({_first_line(error)})") from error
    if not isinstance(checkpoint, dict) or "network_weights" not in checkpoint:
        raise ValueError(f"{file} holds no network_weights; expected a checkpoint that nnU-Net wrote")
    return checkpoint


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def is_of_ad_network(weights: Mapping[str, Tensor]) -> bool:
    """Return whether these are weights of an ``ADNetwork``, whole or for inference only."""
    return any(name.startswith(_OF_THIS_NETWORK) for name in weights)


def is_for_inference_only(weights: Mapping[str, Tensor]) -> bool:
    """Return whether these are weights of an ``ADNetwork`` without what only training uses."""
    return is_of_ad_network(weights) and not any(name.startswith(_TRAINING_ONLY) for name in weights)


def is_of_stock_network(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether this is one of our models, exported as nnU-Net's own network."""
    return bool(checkpoint.get("nnunet_ad", {}).get("stock_network"))


def inference_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what inference needs of the weights of an ``ADNetwork``: encoder, image stem and the decoder θ.

    Where weights were averaged, it is the averages.
    """
    averages = {name.removeprefix(_AVERAGE): weight for name, weight in weights.items() if name.startswith(_AVERAGE)}
    if averages:
        return {name: weight for name, weight in averages.items() if name != "num_iterations"}
    return {name: weight for name, weight in weights.items() if not name.startswith(_TRAINING_ONLY)}


def check_fits(checkpoint: Mapping[str, Any], network: nn.Module, file: str | Path) -> None:
    """Check that the weights of a checkpoint are those of a network, by names and shapes.

    Raises:
        ValueError: If not; names the first that differs.
    """
    found, expected = (
        {name: tuple(w.shape) for name, w in weights.items()}
        for weights in (checkpoint["network_weights"], network.state_dict())
    )
    for name in sorted(found.keys() | expected.keys(), key=lambda name: (name.startswith(_AVERAGE), name)):
        if found.get(name) != expected.get(name):
            there, here = _shown(found.get(name)), _shown(expected.get(name))
            raise ValueError(
                f"{file} is of another network: {name} {there} there, and {here} here. The plans or the trainer were "
                "changed since it was written: go on with those of then, or train anew without --c."
            )


def _shown(shape: tuple[int, ...] | None) -> str:
    return "is missing" if shape is None else f"has shape {shape}"


def check_complete(checkpoint: Mapping[str, Any], file: str | Path) -> None:
    """Check that a checkpoint is not one of a model exported for inference.

    Raises:
        ValueError: If it is.
    """
    if is_of_stock_network(checkpoint) or is_for_inference_only(checkpoint["network_weights"]):
        raise ValueError(
            f"{file} is a model exported for inference: it has neither the decoders ξ and ψ nor the state of a "
            "training. It predicts only; take the checkpoint of the training it was exported from."
        )
