import collections
import os
import shlex
import sys

import pytest
import torch

from nnunet_ad import diagnosis
from nnunet_ad.cli.main import main
from nnunet_ad.diagnosis import Mark
from nnunet_ad.registration import EXT_TRAINER_VARIABLE, EXTERNAL_TRAINERS_FOLDER, OPT_OUT_VARIABLE, register_trainers


@pytest.fixture
def sound(monkeypatch, tmp_path):
    """An environment in which nothing is wrong."""
    for variable in diagnosis.PATH_VARIABLES:
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv(EXT_TRAINER_VARIABLE, str(EXTERNAL_TRAINERS_FOLDER))
    monkeypatch.delenv(OPT_OUT_VARIABLE, raising=False)
    return monkeypatch


def _doctor(capsys):
    status = main(["doctor"])
    return status, capsys.readouterr().out


def test_a_sound_installation_has_no_fault(sound, capsys):
    status, report = _doctor(capsys)
    assert status == 0 and "FAULT" not in report
    for subject in ("nnunet_ad", "nnunetv2: 2.8", "torch", "device", "registration", "trainer: nnU-Net finds"):
        assert subject in report
    assert "Searching in" not in report  # what nnU-Net prints while it searches
    assert report.endswith("No fault found.\n")


@pytest.mark.parametrize("variable", diagnosis.PATH_VARIABLES)
def test_an_unset_path_variable_is_a_fault(sound, capsys, variable):
    sound.delenv(variable)
    status, report = _doctor(capsys)
    assert status == 1
    assert f"FAULT    {variable}: not set" in report and f"export {variable}=" in report


def test_a_missing_folder_is_a_fault_and_the_command_is_quoted(sound, tmp_path):
    sound.setenv("nnUNet_raw", str(tmp_path / "not there"))
    finding = diagnosis.check_path_variable("nnUNet_raw", "the datasets")
    assert finding.mark is Mark.FAULT and "does not exist" in finding.found
    assert finding.remedy == f"mkdir -p '{tmp_path / 'not there'}'"


def test_a_file_in_place_of_a_folder_is_a_fault(sound, tmp_path):
    (tmp_path / "file").touch()
    sound.setenv("nnUNet_results", str(tmp_path / "file"))
    finding = diagnosis.check_path_variable("nnUNet_results", "trained models")
    assert finding.mark is Mark.FAULT and "is a file" in finding.found and finding.remedy


@pytest.mark.parametrize(
    ("variable", "mark"),
    [("nnUNet_raw", Mark.WARNING), ("nnUNet_preprocessed", Mark.FAULT), ("nnUNet_results", Mark.FAULT)],
)
def test_a_folder_that_cannot_be_written_is_a_fault_unless_it_is_only_read(sound, variable, mark):
    def refuse(dir):
        raise PermissionError(dir)

    sound.setattr(diagnosis.tempfile, "TemporaryFile", refuse)
    finding = diagnosis.check_path_variable(variable, "data")
    assert finding.mark is mark and "cannot be written" in finding.found and finding.remedy


def test_the_write_test_leaves_nothing_behind(sound, tmp_path):
    assert diagnosis.check_path_variable("nnUNet_raw", "the datasets").mark is Mark.OK
    assert not list((tmp_path / "nnUNet_raw").iterdir())


def test_without_registration_the_trainer_is_not_found(sound, capsys):
    sound.delenv(EXT_TRAINER_VARIABLE)
    sound.setattr(diagnosis, "_pth_files", list)
    status, report = _doctor(capsys)
    assert status == 1
    assert "FAULT    registration: no nnunet_ad.pth in this environment" in report
    assert "FAULT    trainer: nnU-Net does not find nnUNetTrainerAD" in report
    assert report.count(f"export {EXT_TRAINER_VARIABLE}={shlex.quote(str(EXTERNAL_TRAINERS_FOLDER))}") == 2


def test_the_folder_is_known_however_it_is_written(sound, tmp_path):
    sound.setattr(diagnosis, "_pth_files", list)
    (tmp_path / "link").symlink_to(EXTERNAL_TRAINERS_FOLDER)
    for folder in (f"{EXTERNAL_TRAINERS_FOLDER}{os.sep}", str(tmp_path / "link")):
        sound.setenv(EXT_TRAINER_VARIABLE, folder)
        (finding,) = diagnosis.check_registration()
        assert finding.mark is Mark.OK and "by hand" in finding.found
        register_trainers()
        assert os.environ[EXT_TRAINER_VARIABLE] == folder


def test_opting_out_is_named_as_the_reason(sound):
    sound.delenv(EXT_TRAINER_VARIABLE)
    sound.setenv(OPT_OUT_VARIABLE, "1")
    (finding,) = diagnosis.check_registration()
    assert finding.mark is Mark.FAULT and OPT_OUT_VARIABLE in finding.found
    assert finding.remedy.startswith(f"unset {OPT_OUT_VARIABLE}")


def test_a_pth_file_that_did_not_run_is_a_fault(sound, tmp_path):
    sound.delenv(EXT_TRAINER_VARIABLE)
    sound.setattr(diagnosis, "_pth_files", lambda: [tmp_path / "nnunet_ad.pth"])
    (finding,) = diagnosis.check_registration()
    assert finding.mark is Mark.FAULT and "did not run" in finding.found and finding.remedy


@pytest.mark.parametrize(
    ("pth_files", "opted_out", "found"),
    [(["nnunet_ad.pth"], "", "active through"), ([], "", "by hand"), (["nnunet_ad.pth"], "1", "by hand")],
)
def test_the_state_of_the_registration_is_told(sound, pth_files, opted_out, found):
    sound.setattr(diagnosis, "_pth_files", lambda: pth_files)
    sound.setenv(OPT_OUT_VARIABLE, opted_out)
    (finding,) = diagnosis.check_registration()
    assert finding.mark is Mark.OK and found in finding.found


@pytest.mark.parametrize("folder", [EXTERNAL_TRAINERS_FOLDER.parent, EXTERNAL_TRAINERS_FOLDER.parent / "trainer"])
def test_pointing_the_variable_at_the_package_is_a_fault(sound, folder):
    sound.setenv(EXT_TRAINER_VARIABLE, os.pathsep.join([str(EXTERNAL_TRAINERS_FOLDER), str(folder)]))
    _, finding = diagnosis.check_registration()
    assert finding.mark is Mark.FAULT and str(folder) in finding.found
    assert str(EXTERNAL_TRAINERS_FOLDER) in finding.remedy


def test_a_folder_of_the_user_is_fine_and_a_missing_one_is_a_warning(sound, tmp_path):
    own, missing = tmp_path / "own", tmp_path / "missing"
    own.mkdir()
    sound.setenv(EXT_TRAINER_VARIABLE, os.pathsep.join(map(str, (own, missing, EXTERNAL_TRAINERS_FOLDER))))
    registration, finding = diagnosis.check_registration()
    assert registration.mark is Mark.OK
    assert finding.mark is Mark.WARNING and str(missing) in finding.found


def test_another_class_of_the_same_name_is_a_fault(sound, tmp_path):
    (tmp_path / "impostor.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class nnUNetTrainerAD(nnUNetTrainer):\n    pass\n"
    )
    sound.setenv(EXT_TRAINER_VARIABLE, os.pathsep.join(map(str, (tmp_path, EXTERNAL_TRAINERS_FOLDER))))
    finding = diagnosis.check_trainer()
    assert finding.mark is Mark.FAULT and "impostor" in finding.found and finding.remedy


def test_a_package_that_cannot_be_imported_is_part_of_the_fault(sound):
    sound.setitem(sys.modules, "nnunetv2.utilities.find_objects", None)
    finding = diagnosis.check_trainer()
    assert finding.mark is Mark.FAULT and "nnunetv2.utilities.find_objects" in finding.found


@pytest.mark.parametrize("version", [None, "2.7.0", "2.9.1", "3.8.0"])
def test_a_missing_or_unsupported_host_is_a_fault(monkeypatch, version):
    monkeypatch.setattr(diagnosis, "_installed_version", lambda name: version)
    finding = diagnosis.check_host()
    assert finding.mark is Mark.FAULT and finding.remedy == "pip install 'nnunetv2==2.8.*'"


def test_each_missing_library_is_a_fault(monkeypatch):
    monkeypatch.setattr(diagnosis, "_installed_version", lambda name: None if name in ("scipy", "torch") else "1.0")
    findings = diagnosis.check_libraries()
    assert [(finding.subject, finding.remedy) for finding in findings if finding.mark is Mark.FAULT] == [
        ("torch", "pip install torch"),
        ("scipy", "pip install scipy"),
    ]


def test_no_gpu_is_a_warning_that_names_the_option(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    finding = diagnosis.check_device()
    assert finding.mark is Mark.WARNING and "-device cpu" in finding.remedy


def test_a_gpu_is_named_with_its_memory(monkeypatch):
    properties = collections.namedtuple("Properties", "name total_memory")("Some GPU", 24 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    finding = diagnosis.check_device()
    assert finding.mark is Mark.OK and "2 x Some GPU, 24 GiB" in finding.found


def test_torch_that_cannot_be_imported_is_a_fault(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    finding = diagnosis.check_device()
    assert finding.mark is Mark.FAULT and finding.remedy


@pytest.mark.parametrize(("size", "mark"), [(64 * 2**20, Mark.WARNING), (8 * 2**30, Mark.OK)])
def test_little_shared_memory_is_a_warning(monkeypatch, tmp_path, size, mark):
    usage = collections.namedtuple("Usage", "total used free")(size, 0, size)
    monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda folder: usage)
    (finding,) = diagnosis.check_shared_memory(tmp_path)
    assert finding.mark is mark and bool(finding.remedy) == (mark is Mark.WARNING)


def test_a_system_without_shared_memory_folder_is_fine(tmp_path):
    assert diagnosis.check_shared_memory(tmp_path / "shm") == []


def test_warnings_alone_leave_the_exit_status_zero(monkeypatch, capsys):
    warning = diagnosis.Finding(Mark.WARNING, "device", "no GPU", "buy one")
    monkeypatch.setattr("nnunet_ad.cli.doctor.diagnose", lambda: [warning])
    assert _doctor(capsys) == (0, "warning  device: no GPU\n           to do: buy one\n\nNo fault found.\n")
