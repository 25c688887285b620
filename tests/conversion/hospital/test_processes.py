"""Several processes convert as one does: the same files, the same words, and nothing of the source in them."""

import os
import re
import signal
from multiprocessing import parent_process

import pytest
import SimpleITK as sitk
from hospital_helpers import NAME, change, convert, files_below
from written_datasets import assert_processes_agree, digests

from nnunet_ad.conversion import processes, writer
from nnunet_ad.conversion.dicom.series import Series, SeriesChoiceError
from nnunet_ad.conversion.errors import SourceError
from nnunet_ad.parallel import Workers

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


def without_times(printed):
    """Return what was printed without the progress bars."""
    return [line for line in re.split(r"[\r\n]", printed) if line and not re.search(r"\d/\d+ \[", line)]


def test_several_processes_write_what_one_writes(hospital, raw, shared):
    assert_processes_agree(lambda *options: convert(hospital, *options), raw)
    assert list(raw.iterdir()) == [raw / NAME]


def test_several_processes_find_what_one_finds(hospital, raw, shared, capsys):
    def empty(volume):
        return volume * 0

    change(hospital / "labeled" / "masks" / "dan.nii.gz", empty)
    change(hospital / "test" / "images" / "hal.nii.gz", empty)
    (hospital / "unlabeled" / "gus.nii.gz").write_bytes(b"no image")
    (hospital / "unlabeled" / "fay").mkdir()
    assert convert(hospital, "-np", 1) == 1
    expected = capsys.readouterr()
    assert expected.err.count("error: Liver_") >= 4
    assert convert(hospital, "-np", 3) == 1
    found = capsys.readouterr()
    assert found.out == expected.out
    assert without_times(found.err) == without_times(expected.err)
    assert files_below(raw) == []


def write_or_die(image, path, write_volume=writer._write_volume):
    if parent_process() is not None and "Liver_0007" in path.name:
        os.kill(os.getpid(), signal.SIGKILL)
    write_volume(image, path)


def die_at_the_seventh():
    writer._write_volume = write_or_die


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="processes are killed otherwise here")
def test_of_a_killed_process_the_finished_cases_stay(hospital, raw, shared, monkeypatch, capsys):
    assert convert(hospital, "-np", 1) == 0
    expected = digests(raw / NAME)
    with monkeypatch.context() as patch:
        patch.setattr(processes, "_prepare", die_at_the_seventh)
        assert convert(hospital, "-np", 2, "--overwrite") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "a worker process was killed" in last and "-np" in last and last.endswith("goes on where it was")
    assert digests(raw / NAME) == expected
    assert (raw / f".{NAME}.partial" / "finished_cases.json").is_file()
    assert convert(hospital, "-np", 2, "--overwrite") == 0
    assert digests(raw / NAME) == expected
    assert list(raw.iterdir()) == [raw / NAME]


@pytest.mark.parametrize(
    "error",
    [
        SourceError("an entry is a broken link", "Doe.nii.gz"),
        SourceError("the folder holds no image"),
        SeriesChoiceError(
            "found 2 DICOM series", [Series("1.2", "Doe's liver", "MR", 3, ()), Series("1", "", "MR", 4, ())]
        ),
    ],
    ids=["with details", "without", "series"],
)
def test_errors_come_from_another_process_as_they_are(error, shared):
    with Workers(2, progress=False) as workers:
        _, found = workers.map(returned, [error, error], "")
    assert type(found) is type(error)
    assert str(found) == str(error) and found.public_message == error.public_message
    assert ("Doe" in str(found)) == (str(found) != found.public_message)


def returned(error):
    return error


def test_the_library_is_quiet_in_each_process(shared):
    with Workers(2, progress=False, prepare=processes._prepare) as workers:
        states = workers.map(library_state, [0, 1], "")
    assert (False, 1) in states


def library_state(_):
    if parent_process() is None:
        return None
    return sitk.ProcessObject.GetGlobalWarningDisplay(), sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
