"""``torchrun … -m nnunet_ad.train``: nnU-Net's arguments, torch's launcher."""

import argparse
import json
import os
import re
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


@pytest.mark.parametrize(
    ("variables", "more", "message"),
    [
        ({"TORCHELASTIC_USE_AGENT_STORE": "True"}, ["--c"], "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"),
        ({}, [], "--max_restarts needs --c"),
        ({"NNUNET_AD_TIME_LIMIT": "60"}, ["--c"], "restart what NNUNET_AD_TIME_LIMIT has stopped"),
    ],
)
def test_restarts_that_would_hang_begin_anew_or_outlast_the_limit_are_refused(
    of_torchrun, monkeypatch, variables, more, message
):
    for name, value in {"TORCHELASTIC_MAX_RESTARTS": "1", "TORCHELASTIC_USE_AGENT_STORE": "False", **variables}.items():
        monkeypatch.setenv(name, value)
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
    parameters = {name: weight for name, weight in start.items() if weight.is_floating_point()}  # no counter of steps
    distance = max((final["network_weights"][name] - weight).abs().max() for name, weight in parameters.items())
    assert 0 < distance < 0.2  # two steps away; other initial weights would be further

    shutil.rmtree(folder / "fold_0" / "validation")
    train("--c")
    assert (folder / "fold_0" / "validation" / "summary.json").is_file()


TRAINERS = """
import os, signal
from nnunet_ad.trainer import nnUNetTrainerAD_1epoch

class nnUNetTrainerAD_Dies(nnUNetTrainerAD_1epoch):
    def train_step(self, batch):
        if self.local_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step(batch)

class nnUNetTrainerAD_DiesOnce(nnUNetTrainerAD_1epoch):
    def train_step(self, batch):
        attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
        if self.local_rank == 0:
            print(f"attempt {attempt}, step {len(self.train_outputs)}", flush=True)
        elif attempt == "0" and len(self.train_outputs) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step(batch)
"""


@pytest.fixture
def mortal_trainers(dataset, monkeypatch):
    """Trainers of which processes are killed, where nnU-Net finds them."""
    (dataset / "trainers").mkdir()
    (dataset / "trainers" / "trainers_that_die.py").write_text(TRAINERS)
    folders = [os.environ.get("nnUNet_extTrainer"), str(dataset / "trainers")]  # noqa: SIM112 (the host's variable)
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(folder for folder in folders if folder))


@pytest.mark.slow
def test_a_killed_process_takes_the_job_down_with_a_message(dataset, mortal_trainers):
    start = time.monotonic()
    process = launch("--standalone", "--nproc_per_node", "2", trainer="nnUNetTrainerAD_Dies")
    output, _ = process.communicate(timeout=600)
    assert process.returncode != 0
    assert "nnunet_ad.train FAILED" in output
    assert "Signal 9 (SIGKILL) received" in output
    assert time.monotonic() - start < 300
    assert not list((dataset / "nnUNet_results").rglob("*.pth*"))


@pytest.mark.slow
def test_a_restarted_job_goes_on_from_its_last_checkpoint(dataset, mortal_trainers, monkeypatch):
    """It trains no step twice but the one in which the process died, and ends as a job that ran through."""
    monkeypatch.setenv("NNUNET_AD_CHECKPOINT_MINUTES", "0")
    monkeypatch.setenv("NNUNET_AD_ITERATIONS", "3")
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    weights = []
    for trainer in ("nnUNetTrainerAD_DiesOnce", "nnUNetTrainerAD_1epoch"):
        process = launch("--standalone", "--nproc_per_node", "2", "--max_restarts", "1", trainer=trainer, more=("--c",))
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        if trainer == "nnUNetTrainerAD_DiesOnce":
            assert re.findall(r"attempt (\d), step (\d)", output) == [("0", "0"), ("0", "1"), ("1", "1"), ("1", "2")]
        fold = dataset / "nnUNet_results" / DATASET / f"{trainer}__{PLANS}__3d_fullres" / "fold_0"
        weights.append(torch.load(fold / "checkpoint_final.pth", weights_only=False)["network_weights"])
        assert (fold / "validation" / "summary.json").is_file()
    for name, weight in weights[1].items():
        assert torch.equal(weights[0][name], weight), name


@pytest.mark.slow
def test_sigterm_to_torchrun_stops_all_processes_with_a_checkpoint_and_no_restart(dataset, monkeypatch):
    monkeypatch.setenv("NNUNET_AD_CHECKPOINT_MINUTES", "0")
    monkeypatch.setenv("NNUNET_AD_ITERATIONS", "100000")
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    two = ("--standalone", "--nproc_per_node", "2", "--max_restarts", "1")
    process = launch(*two, trainer="nnUNetTrainerAD_1epoch", more=("--c",))
    deadline = time.monotonic() + 300
    while not list((dataset / "nnUNet_results").rglob("checkpoint_latest.pth")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    (log,) = (dataset / "nnUNet_results").rglob("training_log*.txt")
    assert re.search(r"Stopped by .* in epoch 0, after .*; checkpoint_latest.pth is written", log.read_text())
    (latest,) = (dataset / "nnUNet_results").rglob("checkpoint_latest.pth")
    running_epoch = torch.load(latest, weights_only=False)["nnunet_ad"]["running_epoch"]
    assert len(running_epoch[0]["train"]) == len(running_epoch[1]["train"]) > 0
    assert output.count("Starting a new training") == 2  # one a process
