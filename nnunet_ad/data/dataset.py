"""Preprocessed unlabelled cases, read without any label."""

import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import blosc2

from nnunet_ad.data.preprocessed import image_file, mask_file, properties_file


class UnlabeledDataset:
    """Images of unlabelled cases, opened lazily.

    Args:
        folder: ``<data_identifier>_unlabeled``.
        identifiers: The cases.
        with_mask: Read the non-zero mask, too.

    Attributes:
        identifiers: The cases, sorted.
    """

    def __init__(self, folder: Path, identifiers: Sequence[str], with_mask: bool):
        self.folder = Path(folder)
        self.identifiers = sorted(identifiers)
        self.with_mask = with_mask
        blosc2.set_nthreads(1)

    def load_case(self, identifier: str) -> tuple[blosc2.NDArray, blosc2.NDArray | None]:
        """Return the image (C, *spatial) and, where masks are read, the mask (1, *spatial), -1 outside, else 0."""
        image = _open(image_file(self.folder, identifier))
        return image, _open(mask_file(self.folder, identifier)) if self.with_mask else None

    def load_properties(self, identifier: str) -> dict:
        """Return what nnU-Net's preprocessor noted of a case."""
        return pickle.loads(properties_file(self.folder, identifier).read_bytes())


def _open(file: Path) -> blosc2.NDArray:
    memory_map = {} if os.name == "nt" else {"mmap_mode": "r"}
    return blosc2.open(str(file), mode="r", dparams={"nthreads": 1}, **memory_map)
