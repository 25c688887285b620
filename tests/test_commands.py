"""nnU-Net's own commands on a small made dataset."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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


TRAINER = "nnUNetTrainerAD_1epoch"
TRAINING = ["500", "3d_fullres", "0", "-tr", TRAINER, "-p", "nnUNetPlansTiny", "-device", "cpu"]


@pytest.fixture
def fold(dataset, monkeypatch) -> Path:
    """The folder of TRAINING, one epoch of 40 iterations with a checkpoint after each."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    monkeypatch.setenv("NNUNET_AD_ITERATIONS", "40")
    monkeypatch.setenv("NNUNET_AD_CHECKPOINT_MINUTES", "0")
    model = MODEL.format(trainer=TRAINER, plans="nnUNetPlansTiny", configuration="3d_fullres")
    return dataset / "nnUNet_results" / model


def begin_training(fold: Path) -> subprocess.Popen:
    """Start TRAINING in a process group of its own and return when it has written a checkpoint."""
    training = subprocess.Popen(
        [command("nnUNetv2_train"), *TRAINING], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    wait_until(lambda: (fold / "checkpoint_latest.pth").exists() or training.poll() is not None, 300)
    assert training.poll() is None, training.communicate()[0]
    return training


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def group_is_gone(training: subprocess.Popen) -> bool:
    try:
        os.killpg(training.pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
def test_a_killed_training_continues_as_if_nothing_had_been(fold):
    run("nnUNetv2_train", *TRAINING)
    expected = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    shutil.rmtree(fold)

    training = begin_training(fold)
    time.sleep(random.uniform(0, 2))
    training.kill()  # its workers are on their own
    training.communicate()
    wait_until(lambda: group_is_gone(training), 20)
    assert not (fold / "checkpoint_final.pth").exists()

    run("nnUNetv2_train", *TRAINING, "--c")
    state = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    assert state["current_epoch"] == 1
    assert json.dumps(state["nnunet_ad"]["curves"]) == json.dumps(expected["nnunet_ad"]["curves"])
    assert state["logging"]["train_losses"] == expected["logging"]["train_losses"]
    for name, weights in expected["network_weights"].items():
        assert torch.equal(state["network_weights"][name], weights), name


@pytest.mark.slow
def test_sigterm_to_all_processes_ends_a_training_that_can_be_continued(fold):
    training = begin_training(fold)
    os.killpg(training.pid, signal.SIGTERM)
    output, _ = training.communicate(timeout=120)
    assert training.returncode == 75
    assert output.count("Stopped by SIGTERM in epoch") == 1
    assert "Traceback" not in output
    assert "checkpoint_latest.pth is written" in output
    wait_until(lambda: group_is_gone(training), 20)

    run("nnUNetv2_train", *TRAINING, "--c")
    assert torch.load(fold / "checkpoint_final.pth", weights_only=False)["current_epoch"] == 1


def test_a_console_without_greek_shows_what_it_can(monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    with pytest.raises(SystemExit) as raised:
        main(["rank-unlabeled", "--help"])
    sys.stdout.flush()
    assert raised.value.code == 0
    assert b"usage: nnunet_ad rank-unlabeled" in printed.getvalue()


def test_unlabeled_cases_are_preprocessed_ahead(dataset, capsys):
    (dataset / "nnUNet_raw" / "Dataset500_Made" / "dataset.json").unlink()  # training reads the copy beside the plans
    arguments = ["preprocess-unlabeled", "-d", "500", "-p", "nnUNetPlansTiny", "-np", "1"]
    assert main(arguments) == 0
    assert "3 of 3 preprocessed now" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "0 of 3 preprocessed now" in capsys.readouterr().out


def test_an_interruption_is_one_line(dataset, capsys, monkeypatch):
    def interrupted(job):
        raise KeyboardInterrupt

    monkeypatch.setattr("nnunet_ad.data.preprocessing._preprocess_case", interrupted)
    assert main(["preprocess-unlabeled", "-d", "500", "-p", "nnUNetPlansTiny", "-np", "1"]) == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("nnunet_ad preprocess-unlabeled: interrupted")


def test_labeled_cases_that_a_fold_uses_without_label_are_preprocessed_ahead(dataset, capsys):
    split = {"train": ["Made_000"], "val": ["Made_002"], "unlabeled": ["Made_001", "Made_003"]}
    for folder in ("nnUNet_raw", "nnUNet_preprocessed"):
        (dataset / folder / "Dataset500_Made" / "splits_final.json").write_text(json.dumps([split]))
    assert main(["preprocess-unlabeled", "-d", "500", "-p", "nnUNetPlansTiny", "-np", "1"]) == 0
    assert "4 of 4 preprocessed now" in capsys.readouterr().out
    folder = dataset / "nnUNet_preprocessed" / "Dataset500_Made" / "nnUNetPlans_3d_fullres_unlabeled"
    assert sorted(file.stem for file in folder.glob("*.pkl")) == ["Made_001", "Made_003", "Made_004", "Made_005"]


def test_preprocessing_ahead_says_that_dataset_json_is_missing(dataset, capsys):
    (dataset / "nnUNet_preprocessed" / "Dataset500_Made" / "dataset.json").unlink()
    assert main(["preprocess-unlabeled", "-d", "500", "-p", "nnUNetPlansTiny"]) == 1
    assert "dataset.json; run nnUNetv2_plan_and_preprocess -d 500 first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-d", "777"], "777"),
        (["-d", "500", "-p", "Nothing"], "nnUNetv2_plan_and_preprocess -d 500 first"),
        (["-d", "Dataset500_Made", "-p", "Nothing"], "nnUNetv2_plan_and_preprocess -d 500 first"),
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
