"""Small made trees of the two public layouts of LASeg, with all public ids."""

import shutil

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ad.conversion.folds import load_public_split

SHAPE = (12, 10, 8)  # x, y, z


@pytest.fixture(scope="session")
def split():
    return load_public_split("LASeg")


def make_arrays(seed):
    """Return an image and a label, both (x, y, z); the label's box is not symmetric in any axis."""
    image = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[2:7, 1:4, 3:7] = 1
    return image, label


def oblique(image):
    """Give a volume a rotated, flipped grid away from the origin."""
    cos, sin = np.cos(0.3), np.sin(0.3)
    image.SetDirection((cos, -sin, 0, sin, cos, 0, 0, 0, -1))
    image.SetOrigin((-31.5, 12.25, 101.0))
    image.SetSpacing((0.625, 0.625, 0.625))
    return image


@pytest.fixture(scope="session")
def pristine(tmp_path_factory, split):
    root = tmp_path_factory.mktemp("pristine")
    for seed, case in enumerate(split["train"] + split["test"]):
        image, label = make_arrays(seed)
        is_test = case in split["test"]

        h5 = root / "h5" / "2018LA_Seg_Training Set" / case
        h5.mkdir(parents=True)
        with h5py.File(h5 / "mri_norm2.h5", "w") as file:
            file.create_dataset("image", data=image, compression="gzip")
            if not is_test:
                file.create_dataset("label", data=label, compression="gzip")

        nrrd = root / "nrrd" / ("Testing Set" if is_test else "Training Set") / case
        nrrd.mkdir(parents=True)
        whole_numbers = np.round(image * 20 + 100).clip(0, 255).astype(np.uint8)
        volumes = {"lgemri": whole_numbers} | ({} if seed % 2 and is_test else {"laendo": label * 255})
        for name, values in volumes.items():
            volume = oblique(sitk.GetImageFromArray(np.ascontiguousarray(values.T)))
            volume.SetMetaData("PatientName", "Planted^Name")
            sitk.WriteImage(volume, str(nrrd / f"{name}.nrrd"), useCompression=True)
    return root


@pytest.fixture
def h5_tree(pristine, tmp_path):
    return shutil.copytree(pristine / "h5", tmp_path / "h5 input")


@pytest.fixture
def nrrd_tree(pristine, tmp_path):
    return shutil.copytree(pristine / "nrrd", tmp_path / "nrrd input")


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """nnUNet_raw, which does not exist yet; the other two variables are unset."""
    folder = tmp_path / "nnUNet raw"
    monkeypatch.setenv("nnUNet_raw", str(folder))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    monkeypatch.delenv("nnUNet_results", raising=False)
    return folder
