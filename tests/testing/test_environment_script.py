"""The environment of scripts/demo and scripts/test, with a Python that only notes what it is told to do."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

FAKE_PYTHON = """#!/usr/bin/env bash
echo "$*" >>"$NOTES"
case "$1 $2" in
    "--version ") echo "Python 3.11.0" ;;
    "-m venv") mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
    "-m pip") exit "${PIP_STATUS:-0}" ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """A clone in a folder with a space in its name, which holds what the environment depends on."""
    clone = tmp_path / "a clone"
    shutil.copytree(REPOSITORY / "scripts", clone / "scripts")
    for name in ("pyproject.toml", "nnunet_ad.pth"):
        shutil.copy(REPOSITORY / name, clone)
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    return clone


def _use_environment(clone, **variables):
    """Source the script from another folder, make the environment, and return the result and what Python was told."""
    notes = clone.parent / "notes"
    notes.write_text("")
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'source "{clone}/scripts/environment.sh"; use_environment test "[dev]"'],
        cwd="/",
        env={**os.environ, "PYTHON": str(clone.parent / "python"), "NOTES": str(notes), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return result, notes.read_text()


def test_the_environment_is_made_once(clone):
    result, notes = _use_environment(clone)
    assert result.returncode == 0, result.stderr
    assert f"-m venv --clear {clone}/.env-test" in notes
    assert f"--editable {clone}[dev]" in notes
    result, notes = _use_environment(clone)
    assert result.returncode == 0 and "-m" not in notes


def test_a_changed_project_makes_it_again(clone):
    _use_environment(clone)
    with (clone / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert "-m pip" in _use_environment(clone)[1]


def test_a_failed_installation_is_tried_again(clone):
    result, _ = _use_environment(clone, PIP_STATUS="1")
    assert result.returncode == 1
    assert "-m pip" in _use_environment(clone)[1]


def test_an_unsuitable_python_is_refused_by_name(clone):
    result, _ = _use_environment(clone, PYTHON="false")
    assert result.returncode == 1
    assert "PYTHON=false is no Python 3.11 or later" in result.stderr


def test_without_any_python_it_says_what_to_do(clone, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname"):
        (tools / tool).symlink_to(shutil.which(tool))
    result, _ = _use_environment(clone, PYTHON="", PATH=str(tools))
    assert result.returncode == 1
    assert "Found no Python 3.11 or later" in result.stderr
