import os
from pathlib import Path

import pytest
import torch

from nnunet_ad.trainer import checkpoints
from nnunet_ad.trainer.checkpoints import LATEST, PREVIOUS, is_damaged, readable, whole_file, write


@pytest.fixture
def latest(tmp_path) -> Path:
    for value in (1, 2):
        write({"value": torch.full((1000,), value)}, tmp_path / LATEST, keep_previous=True)
    return tmp_path / LATEST


def value(file: Path) -> int:
    return int(torch.load(file)["value"][0])


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_the_previous_checkpoint_is_kept(latest):
    assert (value(latest), value(latest.with_name(PREVIOUS))) == (2, 1)
    assert names(latest.parent) == {LATEST, PREVIOUS}


def test_file_systems_without_links_will_do(latest, monkeypatch):
    def refuse(*_):
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write({"value": torch.tensor([3])}, latest, keep_previous=True)
    assert (value(latest), value(latest.with_name(PREVIOUS))) == (3, 2)


def test_what_fails_half_way_leaves_what_was_there(latest):
    with pytest.raises(OSError, match="full"), whole_file(latest) as stream:
        stream.write(b"half")
        raise OSError("disk full")
    assert value(latest) == 2
    assert names(latest.parent) == {LATEST, PREVIOUS}


@pytest.mark.parametrize("moment", ["fsync", "link", "replace"])
def test_a_whole_latest_checkpoint_exists_whenever_writing_ends(latest, monkeypatch, moment):
    """As if the process were killed at that moment: not even the cleaning up of an exception is done."""
    monkeypatch.setattr(checkpoints.Path, "unlink", lambda *_, **__: None)
    owner = Path if moment == "replace" else os

    def die(*_):
        raise SystemExit

    if moment == "link":
        monkeypatch.setattr(checkpoints, "_give_second_name", die)
    else:
        monkeypatch.setattr(owner, moment, die)
    with pytest.raises(SystemExit):
        write({"value": torch.tensor([3])}, latest, keep_previous=True)
    assert not is_damaged(latest)
    assert value(latest) == 2


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    elif how == "zeros":
        content = bytearray(len(content))
    else:
        content[len(content) // 2] ^= 1  # in the values of the tensor
    file.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "empty", "zeros", "one bit"])
def test_the_previous_one_stands_in_for_a_damaged_one(latest, how):
    warnings = []
    assert readable(latest, warnings.append) == latest
    assert not warnings
    damage(latest, how)
    assert is_damaged(latest)
    assert readable(latest, warnings.append) == latest.with_name(PREVIOUS)
    assert str(latest) in warnings[0]
    assert str(latest.with_name(PREVIOUS)) in warnings[0]


def test_where_nothing_can_stand_in_the_file_is_named(latest, tmp_path):
    damage(latest, "truncated")
    damage(latest.with_name(PREVIOUS), "truncated")
    with pytest.raises(ValueError, match=f"{LATEST} is damaged.*remove it"):
        readable(latest, pytest.fail)
    final = tmp_path / "checkpoint_final.pth"
    final.write_bytes(b"")
    with pytest.raises(ValueError, match=r"final.pth is damaged"):
        readable(final, pytest.fail)


def test_the_previous_one_stands_in_for_no_other_checkpoint(latest):
    final = latest.with_name("checkpoint_final.pth")
    final.write_bytes(b"")
    assert not is_damaged(latest.with_name(PREVIOUS))
    with pytest.raises(ValueError, match=r"final.pth is damaged"):
        readable(final, pytest.fail)
