"""Small made trees of the two public layouts of LASeg, with all public ids."""

import shutil
from concurrent.futures import ProcessPoolExecutor

import pytest

from nnunet_ad import parallel
from nnunet_ad.conversion.folds import load_public_split
from nnunet_ad.testing.benchmark_trees.laseg import LAYOUTS, write_laseg_tree


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """Let this process convert alone but where a test asks for more: in others it could replace nothing."""
    monkeypatch.setattr(parallel, "MAX_DEFAULT_PROCESSES", 1)


@pytest.fixture
def shared(monkeypatch):
    """Let the other processes that a test asks for have cases as soon as the first is done, and see that they have."""
    handed_out = []

    class Pool(ProcessPoolExecutor):
        def submit(self, *arguments, **options):
            handed_out.append(arguments)
            return super().submit(*arguments, **options)

    monkeypatch.setattr(parallel, "START_UP_SECONDS", -1.0)
    monkeypatch.setattr(parallel, "ProcessPoolExecutor", Pool)
    yield
    assert handed_out, "no other process had a case"


@pytest.fixture(scope="session")
def split():
    return load_public_split("LASeg")


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp("pristine")
    for layout in LAYOUTS:
        write_laseg_tree(root / layout, layout=layout)
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
