"""One unlabelled patch as the decoders see it at several epochs, kept for the report.

Each ``snapshots/epoch_NNNN.npz`` beside the checkpoints holds ``case`` (name), ``image`` (C, *spatial) float32, and
uint8 label maps (*spatial) ``xi`` (by DDIM), ``psi``, ``pseudo_label`` (Eq. 7) and ``theta``.
"""

from pathlib import Path

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from torch import Tensor

from nnunet_ad.data.dataset import UnlabeledDataset
from nnunet_ad.whole_file import LEFT_OVERS, written_whole

_FIRST = (1, 2, 5, 10, 20, 50, 100, 200, 500)


def is_due(epoch: int, num_epochs: int) -> bool:
    """Return whether a snapshot belongs to the end of ``epoch`` (from 0): early ones, ever rarer ones, the last."""
    return epoch + 1 in _FIRST or epoch + 1 == num_epochs


def central_patch(dataset: UnlabeledDataset, patch_size: list[int]) -> tuple[str, Tensor]:
    """Return the name of the first unlabelled case and its central patch (1, C, *patch_size)."""
    case = dataset.identifiers[0]
    image, _ = dataset.load_case(case)
    size = [1, *patch_size] if len(patch_size) == 2 else list(patch_size)
    start = [(s - p) // 2 for s, p in zip(image.shape[1:], size, strict=True)]
    patch = torch.from_numpy(crop_and_pad_nd(image, [[a, a + p] for a, p in zip(start, size, strict=True)], 0)).float()
    return case, (patch[:, 0] if len(patch_size) == 2 else patch)[None]


def tidy(folder: Path, training_begins: bool) -> None:
    """Remove what a killed process left half-written, and when a training begins the snapshots of an earlier one."""
    for pattern in (LEFT_OVERS, "epoch_*.npz") if training_begins else (LEFT_OVERS,):
        for file in folder.glob(pattern):
            file.unlink()


def write(folder: Path, epoch: int, case: str, image: Tensor, label_maps: dict[str, Tensor]) -> None:
    """Write one snapshot as a whole; ``label_maps`` are (1, *spatial)."""
    folder.mkdir(exist_ok=True)
    arrays = {name: label_map[0].cpu().numpy().astype(np.uint8) for name, label_map in label_maps.items()}
    with written_whole(folder / f"epoch_{epoch + 1:04d}.npz") as file:
        np.savez_compressed(file, case=case, image=image[0].cpu().numpy(), **arrays)
