"""What another training left in the folder of results: aside while this one runs, removed when this one has ended.

nnU-Net's ``--c`` takes the final checkpoint of a folder first, so that after a kill it would go on with the other one.
Nothing is lost before the new one has ended: whoever forgot ``--c`` stops it and renames the file back.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from nnunet_ad.network.checkpoint import load_checkpoint
from nnunet_ad.trainer.checkpoints import BEST, FINAL, LATEST, is_damaged

VALIDATION = "validation"  # nnU-Net's folder for predictions and scores of a fold's validation cases


def is_in(folder: Path) -> bool:
    """Return whether a folder holds a checkpoint that ``--c`` would go on with."""
    return any((folder / name).exists() for name in (FINAL, LATEST, BEST))


def superseded(file: Path) -> Path:
    """Return what a checkpoint, or the folder of validation, is called while it is aside."""
    return file.with_name(f"superseded_{file.name}")


def set_latest_aside(folder: Path, tell: Callable[[str], None]) -> None:
    """Make way for the ``checkpoint_latest.pth`` of a training that begins; ``tell`` takes a line for the user.

    One start after the other that came to nothing does not push a real training out of the folder.
    """
    latest = folder / LATEST
    if not superseded(latest).exists() or _has_trained(latest):
        _set_aside(latest, tell)


def set_end_aside(folder: Path, tell: Callable[[str], None]) -> None:
    """Put the final checkpoint, and its validation, behind a ``checkpoint_latest.pth`` that is newer.

    It may also be of the same training, before that was prolonged.
    """
    if _set_aside(folder / FINAL, tell):
        _set_aside(folder / VALIDATION, tell)


def remove(folder: Path) -> None:
    """Remove what was set aside."""
    for name in (FINAL, LATEST):
        superseded(folder / name).unlink(missing_ok=True)
    shutil.rmtree(superseded(folder / VALIDATION), ignore_errors=True)


def _set_aside(file: Path, tell: Callable[[str], None]) -> bool:
    if not file.exists():
        return False
    other = superseded(file)
    if other.is_dir():  # which can't be replaced
        shutil.rmtree(other)
    file.replace(other)
    tell(
        f"NOTE: {file} was of another training, or of this one before it was prolonged. It is {other.name} "
        "now, and is removed when this training has ended. To keep it, stop this one and rename it back."
    )
    return True


def _has_trained(file: Path) -> bool:
    """Return whether a checkpoint, if it is one, holds more than the beginning of a training."""
    if not file.exists() or is_damaged(file):
        return file.exists()
    checkpoint = load_checkpoint(file)
    running = checkpoint.get("nnunet_ad", {}).get("running_epoch", [])
    return checkpoint["current_epoch"] > 0 or any(outputs["train"] for outputs in running)
