"""Checkpoint files that are whole, or not there, whenever a process is killed or a machine loses power."""

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch

# nnU-Net's names, in the order in which --c tries them.
FINAL = "checkpoint_final.pth"
LATEST = "checkpoint_latest.pth"
BEST = "checkpoint_best.pth"
PREVIOUS = "checkpoint_previous.pth"


def write(checkpoint: dict, file: Path, keep_previous: bool = False) -> None:
    """Write a checkpoint.

    Args:
        checkpoint: What ``torch.save`` takes.
        file: Replaced when the new one is whole.
        keep_previous: What is replaced stays, as ``checkpoint_previous.pth``.
    """
    with whole_file(file) as stream:
        torch.save(checkpoint, stream)
        if keep_previous and file.exists():
            _give_second_name(file, file.with_name(PREVIOUS))


def readable(file: Path, warn: Callable[[str], None]) -> Path:
    """Return a checkpoint that is whole: the file, or for a damaged ``checkpoint_latest.pth`` the previous one.

    Args:
        file: The checkpoint to load.
        warn: Takes a line for the user, where the previous one is returned.

    Raises:
        ValueError: If the file is damaged and there is no whole previous one.
    """
    if not is_damaged(file):
        return file
    previous = file.with_name(PREVIOUS)
    if file.name == LATEST and previous.is_file() and not is_damaged(previous):
        warn(f"WARNING: {file} is damaged. Using the checkpoint before it, {previous}; what came after is lost.")
        return previous
    raise ValueError(
        f"{file} is damaged: it is not the whole file that was written. Get it from a backup, or remove it: --c then "
        "continues from another checkpoint of the folder, or from the beginning where there is none."
    )


def is_damaged(file: Path) -> bool:
    """Return whether a file of ``torch.save`` is truncated or differs from its own checksums."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is not None
    except (zipfile.BadZipFile, EOFError, NotImplementedError):  # all that garbage in the directory may lead to
        return True


@contextmanager
def whole_file(file: Path) -> Iterator[BinaryIO]:
    """Give a stream whose content becomes the file at the end; after an error, the file is what it was."""
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(file.parent)


def _give_second_name(file: Path, second: Path) -> None:
    """Link, so that the file has its own name, too, at every moment."""
    link = second.with_name(f"{second.name}.tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(file, link)
    except OSError:  # some file systems know no links
        shutil.copyfile(file, link)
    link.replace(second)
    link.unlink(missing_ok=True)  # still there if both were the same file already


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders can't be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
