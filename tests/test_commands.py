"""nnU-Net's own commands on a small made dataset."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nnunet_ad.cli.main import main

MODEL = "Dataset500_Made/{trainer}__{plans}__{configuration}/fold_0"


def command(name: str) -> str:
    """Return the path of a command of this environment."""
    return str(Path(sys.executable).parent / name)


def run(name: str, *arguments: str) -> str:
    done = subprocess.run([command(name), *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_a_killed_training_continues(dataset, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    arguments = ["500", "3d_fullres", "0", "-tr", "nnUNetTrainerAD_5epochs", "-p", "nnUNetPlansTiny", "-device", "cpu"]
    folder = (
        dataset
        / "nnUNet_results"
        / MODEL.format(trainer="nnUNetTrainerAD_5epochs", plans="nnUNetPlansTiny", configuration="3d_fullres")
    )
    training = subprocess.Popen(
        [command("nnUNetv2_train"), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (folder / "checkpoint_best.pth").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(training.pid, signal.SIGKILL)
    training.wait()
    assert (folder / "checkpoint_best.pth").exists()
    assert not (folder / "checkpoint_final.pth").exists()

    run("nnUNetv2_train", *arguments, "--c")
    state = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert state["current_epoch"] == 5
    assert {len(values) for values in state["nnunet_ad"]["curves"].values()} == {5}
    assert state["nnunet_ad"]["difficulty"]["num_updates"].sum() > 0


def test_unlabeled_cases_are_preprocessed_ahead(dataset, capsys):
    arguments = ["preprocess-unlabeled", "-d", "500", "-p", "nnUNetPlansTiny", "-np", "1"]
    assert main(arguments) == 0
    assert "3 of 3 preprocessed now" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "0 of 3 preprocessed now" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-d", "777"], "777"),
        (["-d", "500", "-p", "Nothing"], "nnUNetv2_plan_and_preprocess -d 500 first"),
        (["-d", "500", "-c", "5d"], "5d not found in plans"),
    ],
)
def test_preprocessing_ahead_says_what_is_missing(dataset, capsys, arguments, message):
    assert main(["preprocess-unlabeled", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("configuration", "planner", "plans"),
    [
        ("2d", "ExperimentPlanner", "nnUNetPlans"),
        ("3d_fullres", "nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans"),
    ],
)
def test_other_configurations_and_plans(dataset, monkeypatch, configuration, planner, plans):
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    run("nnUNetv2_plan_and_preprocess", "-d", "500", "-c", configuration, "-pl", planner, "-np", "1")
    model = ["-tr", "nnUNetTrainerAD_1epoch", "-p", plans, "-device", "cpu"]
    run("nnUNetv2_train", "500", configuration, "0", *model)
    images = dataset / "nnUNet_raw" / "Dataset500_Made" / "imagesTs"
    run(
        "nnUNetv2_predict",
        "-d",
        "500",
        "-i",
        str(images),
        "-o",
        str(dataset / "out"),
        "-c",
        configuration,
        "-f",
        "0",
        *model,
    )
    assert len(list((dataset / "out").glob("*.nii.gz"))) == len(list(images.iterdir()))
