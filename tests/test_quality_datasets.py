"""The dataset of domain generalisation, from volumes as those of CardiacMR."""

import importlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ad import parallel
from nnunet_ad.conversion.cases import Volume
from nnunet_ad.conversion.volumes import read_volume

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "quality" / "datasets.py"


@pytest.fixture
def cardiac(tmp_path) -> Path:
    """A folder of 30 small volumes of each sequence: air 0, muscle 0.3, blood 1, in other units each."""
    label = np.random.default_rng(0).integers(0, 4, (4, 8, 8)).astype(np.uint8)
    image = np.choose(label, (0, 0.3, 1, 1)).astype(np.float32)
    for sequence in ("bSSFP", "LGE"):
        for kind in ("images", "masks"):
            (tmp_path / sequence / kind).mkdir(parents=True)
        for number in range(1, 31):
            name = f"{sequence}_{number:02d}.nii.gz"
            sitk.WriteImage(sitk.GetImageFromArray(number * 50 * image), tmp_path / sequence / "images" / name)
            sitk.WriteImage(sitk.GetImageFromArray(label), tmp_path / sequence / "masks" / name)
    return tmp_path


@pytest.mark.parametrize(
    ("appearance", "unevenness", "noise", "expected"),
    [("dark-blood", 0, 0, [0, 1 - 0.9 * 0.1 / 0.8, 0.1, 0.1]), ("faded", 0.3, 0.05, [0, 0.5 + 0.25 / 3, 1, 1])],
)
def test_the_unseen_domain_is_made_of_kept_aside_cases_only(
    cardiac, tmp_path, monkeypatch, appearance, unevenness, noise, expected
):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    done = subprocess.run(
        [sys.executable, SCRIPT, appearance, "-i", cardiac, "-d", "611"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    raw = tmp_path / "raw" / f"Dataset611_Cardiac_to_{appearance.replace('-', '_')}"
    (fold,) = json.loads((raw / "splits_final.json").read_text())
    assert fold["train"] == ["bSSFP_01", "bSSFP_02", "LGE_03", "LGE_04"]
    domains = json.loads((raw / "nnunet_ad.json").read_text())["domains"]
    unseen_domain = appearance.replace("-", " ")
    assert {name for name, domain in domains.items() if domain == unseen_domain} == set(fold["val"])
    patients = [{name[-2:] for name in fold[role]} for role in ("train", "unlabeled", "val")]
    assert not any(first & second for first in patients for second in patients if first is not second)

    label = sitk.GetArrayFromImage(sitk.ReadImage(raw / "labelsTr" / "bSSFP_21.nii.gz"))
    unseen, seen = (
        sitk.GetArrayFromImage(sitk.ReadImage(raw / "imagesTr" / f"{name}_0000.nii.gz"))
        for name in ("bSSFP_21", "bSSFP_01")
    )
    np.testing.assert_allclose([seen[label == value].mean() for value in range(4)], [0, 15, 50, 50], rtol=1e-5)
    brightness = np.linspace(1 + unevenness, 1 - unevenness, 8)
    means = [(unseen / brightness)[label == value].mean() for value in range(4)]
    np.testing.assert_allclose(means, expected, rtol=1e-3, atol=0.5 * noise)  # of some 60 voxels each
    blood = np.where(label >= 2, unseen, np.nan)
    np.testing.assert_allclose(np.nanmean(blood, axis=(0, 1)), brightness * expected[3], rtol=1e-3, atol=noise)
    assert np.isclose(unseen[label == 0].std(), noise, rtol=0.2)
    sidecar = json.loads((raw / "nnunet_ad.json").read_text())
    assert "made: its images are bSSFP" in json.dumps(sidecar)


def test_another_process_can_read_a_volume_in_another_appearance(cardiac, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    faded = importlib.import_module("datasets").FADED
    volume = Volume("image", partial(read_volume, cardiac / "bSSFP" / "images" / "bSSFP_01.nii.gz"))
    monkeypatch.setattr(parallel, "START_UP_SECONDS", -1.0)
    with parallel.Workers(2, progress=False) as workers:
        (here, process), (there, other) = workers.map(voxels_of, [faded.of(volume, 1)] * 2, "")
    assert process != other
    np.testing.assert_array_equal(here, there)


def voxels_of(volume):
    return sitk.GetArrayFromImage(volume.read()), os.getpid()


def make(monkeypatch, tmp_path: Path, *arguments: str) -> Path:
    """Make a dataset and return its folder."""
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    done = subprocess.run([sys.executable, SCRIPT, *arguments, "-d", "611"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "raw").iterdir()
    return folder


@pytest.mark.parametrize("dataset", ["cardiac", "faded"])
def test_all_cases_but_one_can_be_labeled(cardiac, tmp_path, monkeypatch, dataset):
    few, all_ = (
        make(monkeypatch, tmp_path / str(len(option)), dataset, "-i", str(cardiac), *option)
        for option in ((), ("--all-labeled",))
    )
    assert all_.name == few.name + "_all_labeled"
    (fold_of_few,), (fold,) = (json.loads((raw / "splits_final.json").read_text()) for raw in (few, all_))
    assert fold["train"] == fold_of_few["train"] + fold_of_few["unlabeled"][:-1]
    assert fold["unlabeled"] == fold_of_few["unlabeled"][-1:]
    assert fold["val"] == fold_of_few["val"]
    assert {file.name.split(".")[0] for file in (all_ / "labelsTr").iterdir()} == {*fold["train"], *fold["val"]}


def test_half_of_the_kept_aside_cases_of_head_and_neck_are_labeled_in_other_folds(tmp_path, monkeypatch):
    organs = np.array([0, 1, 2, 3, 4, 5, 6, 7], dtype=np.uint8).reshape(2, 2, 2)
    for kind in ("images", "masks"):
        (tmp_path / "HeadNeckCT" / kind).mkdir(parents=True)
    for number in range(1, 13):
        label = organs if number <= 10 else np.where(organs == 7, 0, organs).astype(np.uint8)
        for kind, voxels in (("images", organs.astype(np.float32)), ("masks", label)):
            file = tmp_path / "HeadNeckCT" / kind / f"pt_{number}.nii.gz"
            sitk.WriteImage(sitk.GetImageFromArray(voxels), file)
    raw = make(monkeypatch, tmp_path, "head-neck", "-i", str(tmp_path / "HeadNeckCT"))
    first, *others = json.loads((raw / "splits_final.json").read_text())
    assert first["train"] == [f"pt_{number}" for number in range(1, 8)]
    assert first["val"] == ["pt_8", "pt_9", "pt_10"]
    assert sorted(name for fold in others for name in fold["val"]) == sorted(first["val"])
    for fold in others:
        assert not set(fold["train"]) & set(fold["val"])
        assert set(fold["train"]) | set(fold["val"]) == set(first["train"]) | set(first["val"])
        assert set(first["train"]) < set(fold["train"])
        assert fold["unlabeled"] == first["unlabeled"] == ["pt_11", "pt_12"]
