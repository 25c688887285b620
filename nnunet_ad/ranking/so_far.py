"""What a ranking has found so far, for the same command to go on from after it was killed."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

import nnunet_ad
from nnunet_ad.ranking.branches import ThreeDecoders
from nnunet_ad.ranking.model import TrainedModel
from nnunet_ad.whole_file import written_whole

FOLDER = ".ranking_so_far"
_OF_EARLIER_VERSIONS = ".preprocessed_*"


class RankingSoFar:
    """Arrays that were found of each case, one file a case, and images that were preprocessed for this ranking alone.

    Args:
        folder: Where they lie; need not exist.
        key: Hash of what decides the result beside the image; what was kept under another one does not count.
    """

    def __init__(self, folder: Path, key: str):
        self.folder = folder
        self.images = folder / "images"
        self._cases = folder / "cases"
        self._key = key

    def load(self, case: str, stamp: object) -> dict[str, np.ndarray] | None:
        """Return what was kept of a case, ``None`` if it was found by another key or from another preprocessed image.

        Args:
            case: Its identifier.
            stamp: Of its preprocessed image.
        """
        try:
            with np.load(self._file(case), allow_pickle=False) as file:
                arrays = dict(file)
            return arrays if str(arrays.pop("key")) == self._key_with(stamp) else None
        except Exception:  # whatever is wrong with this file, the answer is to look at the case again
            return None

    def save(self, case: str, stamp: object, arrays: dict[str, np.ndarray]) -> None:
        """Keep what was found of a case, as a whole or not at all.

        Raises:
            OSError: If it can't be written.
        """
        self._cases.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"key": np.array(self._key_with(stamp)), **arrays}
        with written_whole(self._file(case)) as path:
            np.savez_compressed(path, **content)

    @property
    def holds_something(self) -> bool:
        """Whether any case was looked at or preprocessed."""
        return any(next(self.folder.glob(f"*/*.{ending}"), None) for ending in ("npz", "pkl"))

    def _file(self, case: str) -> Path:
        return self._cases / f"{case}.npz"

    def _key_with(self, stamp: object) -> str:
        return _hash([self._key, stamp])


def key_of(model: TrainedModel, decoders: ThreeDecoders) -> str:
    """Return a hash of what decides the result beside the image: training, steps and seed of DDIM, device, versions."""
    with model.checkpoint.open("rb") as file:
        checkpoint = hashlib.file_digest(file, "sha256").hexdigest()
    predictor = model.predictor
    training = [checkpoint, predictor.plans_manager.plans, predictor.dataset_json, repr(model.config)]
    how = [model.description, decoders.description, predictor.device.type, nnunet_ad.__version__, torch.__version__]
    return _hash([*training, *how])


@contextmanager
def ranking_so_far(output: Path, key: str) -> Iterator[RankingSoFar]:
    """Give what an earlier run left in a folder; it is removed if all goes well, or if there is nothing in it.

    Args:
        output: Existing folder for the results.
        key: See :func:`key_of`.

    Raises:
        ValueError: If another ranking is being written to the folder.
        OSError: If the folder can't be locked.
    """
    lock = FileLock(output / f"{FOLDER}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another rank-unlabeled writes to {output}. Wait for it, or give another folder with -o. If there is "
            f"none, on no other machine either, delete {lock.lock_file}."
        ) from None
    so_far = RankingSoFar(output / FOLDER, key)
    finished = False
    try:
        for folder in output.glob(_OF_EARLIER_VERSIONS):
            rmtree(folder, ignore_errors=True)
        yield so_far
        finished = True
    finally:
        if finished or not so_far.holds_something:
            rmtree(so_far.folder, ignore_errors=True)
        with suppress(OSError):  # Windows removes no open file
            Path(lock.lock_file).unlink()
        lock.release()


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
