"""``torchrun … -m nnunet_ad.train``: nnU-Net's arguments, torch's launcher."""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from nnunetv2.run import run_training as host

from nnunet_ad.train import build_parser, main
from nnunet_ad.trainer import nnUNetTrainerAD_1epoch

DATASET = "Dataset500_Made"
PLANS = "nnUNetPlansTiny"
ARGUMENTS = ["500", "3d_fullres", "0", "-p", PLANS, "-device", "cpu"]
TORCHRUN = str(Path(sys.executable).parent / "torchrun")


def test_the_arguments_are_those_of_nnunetv2_train(monkeypatch):
    parsers = [build_parser()]
    monkeypatch.setattr(
        argparse.ArgumentParser, "parse_args", lambda parser: parsers.append(parser) or pytest.skip.Exception
    )
    with pytest.raises(AttributeError):  # what it was given instead of arguments has none
        host.run_training_entry()
    ours, theirs = (
        {(a.dest, *a.option_strings): (a.nargs, a.type or str, a.default) for a in parser._actions}
        for parser in parsers
    )
    trainer = ("tr", "-tr")
    assert (ours.pop(trainer)[-1], theirs.pop(trainer)[-1]) == ("nnUNetTrainerAD", "nnUNetTrainer")
    assert ours == theirs


@pytest.fixture
def of_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-num_gpus", "2"], "--nproc_per_node"),
        (["-device", "mps"], "cuda or cpu only"),
        (["--c", "--val"], "neither with --val"),
        (["--val_best", "--disable_checkpointing"], "--val_best needs"),
        (["-tr", "nnUNetTrainer"], "for other trainers use"),
    ],
)
def test_what_does_not_go_together_is_refused(of_torchrun, more, message):
    with pytest.raises(ValueError, match=message):
        main([*ARGUMENTS, *more])


def test_more_processes_than_gpus_are_refused(of_torchrun, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"finds 1 GPU\(s\)"):
        main([*ARGUMENTS, "-device", "cuda"])


def test_a_process_without_torchrun_is_told_so(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match=r"RANK.*start this with torchrun"):
        main(ARGUMENTS)


def launch(*options: str, trainer: str, more: tuple[str, ...] = ()) -> subprocess.Popen:
    return subprocess.Popen(
        [TORCHRUN, *options, "-m", "nnunet_ad.train", *ARGUMENTS, "-tr", trainer, *more],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.slow
def test_two_machines_train_continue_and_validate(dataset, make_trainer):
    """Two launchers of one process each, as on two machines, started from given weights; then both continue."""
    first = make_trainer(nnUNetTrainerAD_1epoch)
    first.initialize()
    first.save_checkpoint(str(dataset / "start.pth"))
    shutil.rmtree(first.output_folder_base)

    def train(*more: str) -> list[str]:
        machines = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", "500"]
        machines += ["--rdzv_endpoint", f"localhost:{free_port()}"]
        launched = [launch(*machines, trainer="nnUNetTrainerAD_1epoch", more=more) for _ in range(2)]
        outputs = [process.communicate(timeout=600)[0] for process in launched]
        assert [process.returncode for process in launched] == [0, 0], "\n".join(outputs)
        return outputs

    outputs = train("-pretrained_weights", str(dataset / "start.pth"))
    assert sum("Mean Validation Dice" in output for output in outputs) == 1
    folder = dataset / "nnUNet_results" / DATASET / f"nnUNetTrainerAD_1epoch__{PLANS}__3d_fullres"
    assert {file.name for file in folder.iterdir()} == {
        "plans.json", "dataset.json", "dataset_fingerprint.json", "fold_0",
    }  # fmt: skip
    assert len(list((folder / "fold_0").glob("training_log*.txt"))) == 1
    assert len(json.loads((folder / "fold_0" / "validation" / "summary.json").read_text())["metric_per_case"]) == 1
    final = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
    start = torch.load(dataset / "start.pth", weights_only=False)["network_weights"]
    distance = max((final["network_weights"][name] - weight).abs().max() for name, weight in start.items())
    assert 0 < distance < 0.2  # two steps away; other initial weights would be further

    shutil.rmtree(folder / "fold_0" / "validation")
    train("--c")
    assert (folder / "fold_0" / "validation" / "summary.json").is_file()


DIES = """
import os, signal
from nnunet_ad.trainer import nnUNetTrainerAD_1epoch

class nnUNetTrainerAD_Dies(nnUNetTrainerAD_1epoch):
    def train_step(self, batch):
        if self.local_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step(batch)
"""


@pytest.mark.slow
def test_a_killed_process_takes_the_job_down_with_a_message(dataset, monkeypatch):
    (dataset / "trainers").mkdir()
    (dataset / "trainers" / "trainer_that_dies.py").write_text(DIES)
    folders = [os.environ.get("nnUNet_extTrainer"), str(dataset / "trainers")]  # noqa: SIM112 (the host's variable)
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(folder for folder in folders if folder))
    start = time.monotonic()
    process = launch("--standalone", "--nproc_per_node", "2", trainer="nnUNetTrainerAD_Dies")
    output, _ = process.communicate(timeout=600)
    assert process.returncode != 0
    assert "nnunet_ad.train FAILED" in output
    assert "Signal 9 (SIGKILL) received" in output
    assert time.monotonic() - start < 300
    assert not list((dataset / "nnUNet_results").rglob("*.pth*"))
