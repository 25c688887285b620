import json
from copy import deepcopy

import pytest

from nnunet_ad.cli.main import main


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """A preprocessed folder with the plans of dataset 7; the network's numbers are those of nnU-Net's planner."""
    arch = {"features_per_stage": [32, 64, 128], "n_conv_per_stage": [2, 2, 2], "n_conv_per_stage_decoder": [2, 2]}
    settings = {"spacing": [1.0, 1.0, 1.0], "architecture": {"arch_kwargs": arch}}
    folder = tmp_path / "preprocessed" / "Dataset007_Seven"
    folder.mkdir(parents=True)
    (folder / "nnUNetPlans.json").write_text(
        json.dumps({"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": settings}})
    )
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    return folder


def _shrink(arguments):
    return main(["shrink-plans", *arguments.split()])


@pytest.mark.parametrize("dataset", ["7", "007", "Dataset007_Seven"])
def test_plans_are_written_and_named(planned, capsys, dataset):
    assert _shrink(f"-d {dataset} --features 4 --patch 16 16 16 --batch 3 -o Tiny") == 0
    assert str(planned / "Tiny.json") in capsys.readouterr().out
    settings = json.loads((planned / "Tiny.json").read_text())["configurations"]["3d_fullres"]
    assert (settings["patch_size"], settings["batch_size"]) == ([16, 16, 16], 3)
    assert settings["architecture"]["arch_kwargs"]["features_per_stage"] == [4, 8, 16]


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ("16 24 32", "Patch 16 x 24 x 32 voxels; batch 2"),
        ("13 24 33", "Patch 14 x 24 x 36 voxels, rounded up so that every stage halves evenly; batch 2"),
    ],
)
def test_the_patch_in_the_plans_is_told(planned, capsys, patch, said):
    assert _shrink(f"-d 7 --patch {patch} -o T") == 0
    assert capsys.readouterr().out.splitlines()[-1] == said


def test_plans_of_others_are_not_replaced(planned, capsys):
    (planned / "Mine.json").write_text("{}")
    assert _shrink("-d 7 --patch 16 16 16 -o Mine") == 1
    assert capsys.readouterr().err == (
        f"nnunet_ad shrink-plans: {planned / 'Mine.json'} exists and has no mark of nnunet_ad shrink-plans; give the "
        "new plans another name, or delete that file if an earlier version of the command wrote it\n"
    )
    assert (planned / "Mine.json").read_text() == "{}"


def test_two_configurations_are_shrunk_one_after_the_other(planned, capsys):
    plans = json.loads((planned / "nnUNetPlans.json").read_text())
    plans["configurations"]["2d"] = deepcopy(plans["configurations"]["3d_fullres"]) | {"spacing": [1.0, 1.0]}
    (planned / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert _shrink("-d 7 -c 3d_fullres --features 4 --patch 16 16 16 -o T") == 0
    assert _shrink("-d 7 -c 2d --features 4 --patch 32 32 -o T") == 1
    assert "to keep it, change these plans: -p T -o T" in capsys.readouterr().err
    assert _shrink("-d 7 -c 2d --features 4 --patch 32 32 -p T -o T") == 0
    configurations = json.loads((planned / "T.json").read_text())["configurations"]
    assert [settings["patch_size"] for settings in configurations.values()] == [[16, 16, 16], [32, 32]]
    assert _shrink("-d 7 -p nnUNetPlans -o nnUNetPlans --patch 16 16 16") == 1
    assert "need another name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dataset", "number"), [("8", "8"), ("008", "8"), ("Dataset080_Eighty", "80"), ("000", "0"), ("Dataset*", "NUMBER")]
)
def test_an_unplanned_dataset_says_what_to_run(planned, capsys, dataset, number):
    assert _shrink(f"-d {dataset} --patch 16 16 16") == 1
    assert capsys.readouterr().err.endswith(f"nnUNetv2_plan_and_preprocess -d {number}\n")


def test_files_beside_the_dataset_and_a_missing_folder_are_no_trouble(planned, monkeypatch, capsys):
    planned.with_suffix(".zip").touch()
    assert _shrink("-d 7 --patch 16 16 16") == 0
    monkeypatch.setenv("nnUNet_preprocessed", str(planned / "nowhere"))
    assert _shrink("-d 7 --patch 16 16 16") == 1
    assert "found none; plan the dataset first" in capsys.readouterr().err


def test_a_missing_variable_is_named(planned, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_preprocessed")
    assert _shrink("-d 7 --patch 16 16 16") == 1
    assert "nnUNet_preprocessed is not set" in capsys.readouterr().err


def test_plans_that_were_not_written_to_their_end_are_named(planned, capsys):
    file = planned / "nnUNetPlans.json"
    file.write_text(file.read_text()[:100])
    assert _shrink("-d 7 --patch 16 16 16 -o Tiny") == 1
    assert f"{file} is not valid JSON" in capsys.readouterr().err
    assert [each.name for each in planned.iterdir()] == ["nnUNetPlans.json"]
