"""A small hospital's folders, as they are and to be changed."""

import shutil
from pathlib import Path

import pytest
import SimpleITK as sitk
from hospital_helpers import files_below, write_hospital

sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # on tiny volumes, more cost more than they bring


@pytest.fixture(scope="session")
def pristine_hospital(tmp_path_factory) -> Path:
    return write_hospital(tmp_path_factory.mktemp("pristine hospital"))


@pytest.fixture
def hospital(pristine_hospital, tmp_path) -> Path:
    """A hospital's folders that a test may change."""
    return shutil.copytree(pristine_hospital, tmp_path / "hospital")


@pytest.fixture
def refused(raw, capsys):
    """Return a function that checks that a conversion was refused, in one line a finding, with nothing written."""

    def check(status, *parts):
        printed = capsys.readouterr()
        assert status == 1, printed.out
        assert "Traceback" not in printed.err
        assert files_below(raw) == []
        lines = [line for line in printed.err.splitlines() if "error: " in line]
        matching = [line for line in lines if all(part in line for part in parts)]
        assert matching, f"{parts} are together in none of {lines}"
        return matching[0]

    return check
