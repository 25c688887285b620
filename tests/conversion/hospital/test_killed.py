"""A conversion that was killed goes on where it was, with files equal to those of one that was not."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
from hospital_helpers import ALL_CASES, CASES, NAME, change, convert, files_below, make_arrays, make_volume, write

from nnunet_ad.conversion import writer

PARTIAL = f".{NAME}.partial"
FIRST = [f"Liver_{number:04d}" for number in range(1, 7)]  # all labelled cases and two of the unlabelled ones
ALL = [f"Liver_{number:04d}" for number in range(1, 9)]
KILLED = """
import os, signal, sys
from pathlib import Path
from hospital_helpers import convert
from nnunet_ad.conversion import writer

def write(image, path, write_volume=writer._write_volume):
    if "Liver_0007" in path.name:
        path.write_bytes(b"half a fi")
        os.kill(os.getpid(), signal.SIGKILL)
    write_volume(image, path)

writer._write_volume = write
convert(Path(sys.argv[1]), "-np", 1, *sys.argv[2:])
"""


@pytest.fixture
def killed(hospital, raw):
    """Return a function that runs the conversion in a process that is killed while it writes the seventh case."""

    def run(*options):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        command = [sys.executable, "-c", KILLED, str(hospital), *options]
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert "half a fi" in [file.read_bytes()[:9].decode("latin-1") for file in (raw / PARTIAL).glob("*/*")]

    return run


@pytest.fixture
def written_cases(monkeypatch):
    """Return the cases that are written from here on."""
    names, write_case = [], writer._write_case

    def write(case, *rest):
        names.append(case.name)
        write_case(case, *rest)

    monkeypatch.setattr(writer, "_write_case", write)
    return names


def contents(folder):
    return {file: (folder / file).read_bytes() for file in files_below(folder)}


def converted_at_once(hospital, raw, *options):
    """Return what the conversion writes when it is not killed, and put its result away."""
    assert convert(hospital, *options) == 0
    expected = contents(raw / NAME)
    shutil.rmtree(raw / NAME)
    return expected


def test_a_killed_conversion_goes_on_where_it_was(hospital, raw, killed, written_cases):
    expected = converted_at_once(hospital, raw)
    killed()
    assert not (raw / NAME).exists()
    written_cases.clear()
    assert convert(hospital) == 0
    assert written_cases == ["Liver_0007", "Liver_0008"]
    assert contents(raw / NAME) == expected
    assert not (raw / PARTIAL).exists()


def test_the_old_dataset_stays_until_a_killed_one_has_gone_on(hospital, raw, killed, written_cases):
    assert convert(hospital, "--accept-outliers") == 0
    before = contents(raw / NAME)
    killed("--overwrite", "--reorient", "RAS")
    assert contents(raw / NAME) == before
    written_cases.clear()
    assert convert(hospital, "--overwrite", "--reorient", "RAS") == 0
    assert written_cases == ["Liver_0007", "Liver_0008"]
    assert contents(raw / NAME) == converted_at_once(hospital, raw, "--overwrite", "--reorient", "RAS")


def test_ctrl_c_says_that_the_same_command_goes_on(hospital, raw, written_cases, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        write_volume = writer._write_volume

        def interrupt(image, path):
            if "Liver_0003" in path.name:
                raise KeyboardInterrupt
            write_volume(image, path)

        patch.setattr(writer, "_write_volume", interrupt)
        assert convert(hospital) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(": interrupted; the same command checks all cases again and goes on where it was")
    written_cases.clear()
    assert convert(hospital) == 0
    assert written_cases == ALL[2:]


def test_what_is_left_says_nothing_of_the_source(hospital, raw, killed):
    killed()
    record = json.loads((raw / PARTIAL / "finished_cases.json").read_text())
    assert list(record) == FIRST
    assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in record.values())
    names = " ".join(files_below(raw))
    assert not [case for case in ALL_CASES if case in names]


def brighter(hospital):
    change(hospital / "labeled" / "images" / "bob.nii.gz", lambda volume: volume + 1)


def moved_in_space(hospital):
    def move(volume):
        volume.SetOrigin((1.0, 2.0, 3.0))
        return volume

    for kind in ("images", "masks"):
        change(hospital / "labeled" / kind / "bob.nii.gz", move)


def contoured_otherwise(hospital):
    change(hospital / "labeled" / "masks" / "bob.nii.gz", lambda volume: sitk.BinaryDilate(volume, (1, 1, 1)))


def relabelled(hospital):
    (hospital / "labels.json").write_text(json.dumps({"tumour": 2, "liver": 1}))


def annotated(hospital):
    (hospital / "unlabeled" / "eva.nii.gz").rename(hospital / "labeled" / "images" / "eva.nii.gz")
    write(make_volume(make_arrays("eva")[1], "eva"), hospital / "labeled" / "masks" / "eva.nii.gz")


def without_test(hospital):
    shutil.rmtree(hospital / "test")


@pytest.mark.parametrize(
    ("change_source", "options", "expected"),
    [
        (brighter, (), ["Liver_0002"]),
        (moved_in_space, (), ["Liver_0002"]),
        (contoured_otherwise, (), ["Liver_0002"]),
        (relabelled, (), ALL[:4]),
        (annotated, (), ["Liver_0005"]),
        (without_test, (), []),
        (None, ("--reorient", "RAS"), ALL[:6]),
        (None, ("--domains", "domains.csv"), []),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_only_cases_that_are_not_as_before_are_written_anew(
    change_source, options, expected, hospital, raw, killed, written_cases, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("domains.csv").write_text("case,domain\n" + "".join(f"{case},A\n" for case in ALL_CASES))
    killed()
    if change_source:
        change_source(hospital)
    assert convert(hospital, *options, "--accept-outliers") == 0
    rest = ["Liver_0007"] if change_source is without_test else ["Liver_0007", "Liver_0008"]
    assert written_cases == expected + rest
    found = contents(raw / NAME)
    folders = {path.name for path in (raw / NAME).iterdir() if path.is_dir()}
    assert folders == {Path(file).parent.name for file in found} - {""}, "an empty folder was left"
    shutil.rmtree(raw / NAME)
    assert found == converted_at_once(hospital, raw, *options, "--accept-outliers")


def test_files_that_are_damaged_or_gone_are_written_anew(hospital, raw, killed, written_cases):
    expected = converted_at_once(hospital, raw)
    killed()
    image = raw / PARTIAL / "imagesTr" / "Liver_0001_0000.nii.gz"
    image.write_bytes(image.read_bytes()[:-20])
    (raw / PARTIAL / "labelsTr" / "Liver_0003.nii.gz").unlink()
    written_cases.clear()
    assert convert(hospital) == 0
    assert written_cases == ["Liver_0001", "Liver_0003", "Liver_0007", "Liver_0008"]
    assert contents(raw / NAME) == expected


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff", b'{"Liver_0001": 3}'])
def test_a_damaged_record_counts_for_nothing(damage, hospital, raw, killed, written_cases):
    killed()
    (raw / PARTIAL / "finished_cases.json").write_bytes(damage)
    assert convert(hospital) == 0
    assert written_cases == ALL


def test_another_hospital_takes_over_nothing(hospital, raw, killed, written_cases, tmp_path):
    killed()
    other = tmp_path / "other hospital"
    shutil.copytree(hospital, other)
    for path in other.rglob("*.nii.gz"):
        if "masks" not in path.parts:
            change(path, lambda volume: volume + 7)
    assert convert(other) == 0
    assert written_cases == ALL
    assert len(files_below(raw / NAME)) == 4 * 2 + len(CASES["unlabeled"]) + 2 + 5


def test_an_error_after_a_kill_leaves_nothing(hospital, raw, killed, monkeypatch, refused):
    killed()
    write_volume = writer._write_volume

    def fail(image, path):
        if "Liver_0008" in path.name:
            raise writer.ConversionError("the disk is full")
        write_volume(image, path)

    monkeypatch.setattr(writer, "_write_volume", fail)
    refused(convert(hospital), "the disk is full")
    assert list(raw.iterdir()) == []
