"""What ``nnunet_ad doctor`` looks at: one function a subject, each returning findings with what to do about a fault.

Torch and nnU-Net are imported inside the checks, so that a broken installation of either is a finding, not a crash.
"""

import contextlib
import importlib.metadata
import io
import os
import shlex
import shutil
import site
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import nnunet_ad
from nnunet_ad.registration import (
    EXT_TRAINER_VARIABLE,
    EXTERNAL_TRAINERS_FOLDER,
    OPT_OUT_VARIABLE,
    is_external_trainers_folder,
)

HOST = "nnunetv2"
SUPPORTED_HOST = (2, 8)
LIBRARIES = (
    "torch",
    "batchgenerators",
    "batchgeneratorsv2",
    "acvl-utils",
    "dynamic-network-architectures",
    "SimpleITK",
    "numpy",
    "scipy",
)
PTH_FILE = "nnunet_ad.pth"
TRAINER = "nnUNetTrainerAD"
PATH_VARIABLES = {
    "nnUNet_raw": "the datasets",
    "nnUNet_preprocessed": "preprocessed data and plans",
    "nnUNet_results": "trained models",
}
SHARED_MEMORY = Path("/dev/shm")
MIN_SHARED_MEMORY = 2 * 2**30  # bytes; a container's default of 64 MiB breaks the loaders' worker processes


class Mark(Enum):
    """How bad a finding is; only faults make the exit status 1."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "FAULT"


@dataclass(frozen=True)
class Finding:
    """One line of the report: a mark, what was looked at, what was found, and what to do (empty if nothing)."""

    mark: Mark
    subject: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.mark.value:<8} {self.subject}: {self.found}"
        return f"{line}\n{'':<8}   to do: {self.remedy}" if self.remedy else line


def diagnose() -> list[Finding]:
    """Run every check and return its findings in the order of the report."""
    return [
        Finding(Mark.OK, "Python", f"{sys.version.split()[0]} at {sys.executable}"),
        Finding(Mark.OK, "nnunet_ad", f"{nnunet_ad.__version__} in {Path(nnunet_ad.__file__).parent}"),
        check_host(),
        *check_libraries(),
        check_device(),
        *check_shared_memory(),
        *check_registration(),
        check_trainer(),
        *(check_path_variable(variable, content) for variable, content in PATH_VARIABLES.items()),
    ]


def check_host() -> Finding:
    """Say which nnU-Net is installed; a fault if it is none or one that this package was not written for."""
    wanted = ".".join(map(str, SUPPORTED_HOST))
    version = _installed_version(HOST)
    if version is None:
        return Finding(Mark.FAULT, HOST, "not installed", f"pip install '{HOST}=={wanted}.*'")
    if tuple(version.split(".")[:2]) != tuple(map(str, SUPPORTED_HOST)):
        return Finding(Mark.FAULT, HOST, f"{version}, needs {wanted}.x", f"pip install '{HOST}=={wanted}.*'")
    return Finding(Mark.OK, HOST, version)


def check_libraries() -> list[Finding]:
    """Say which versions of the libraries are installed, one finding for all or one for each missing one."""
    versions = {library: _installed_version(library) for library in LIBRARIES}
    missing = [library for library, version in versions.items() if version is None]
    present = ", ".join(f"{library} {version}" for library, version in versions.items() if version is not None)
    findings = [Finding(Mark.OK, "libraries", present)] if present else []
    return [*findings, *(Finding(Mark.FAULT, name, "not installed", f"pip install {name}") for name in missing)]


def check_device() -> Finding:
    """Say on which device nnU-Net will train; a warning if it is the CPU."""
    try:
        import torch
    except Exception as error:
        return Finding(Mark.FAULT, "device", f"torch cannot be imported ({error})", "reinstall torch: see pytorch.org")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        memory = properties.total_memory / 2**30
        found = f"{torch.cuda.device_count()} x {properties.name}, {memory:.0f} GiB, CUDA {torch.version.cuda}"
        return Finding(Mark.OK, "device", found)
    if torch.backends.mps.is_available():
        return Finding(Mark.OK, "device", "Apple GPU (add -device mps to nnU-Net's commands)")
    build = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
    remedy = "add -device cpu to nnU-Net's commands, or install a GPU driver and torch for it: see pytorch.org"
    return Finding(Mark.WARNING, "device", f"no GPU in reach ({build})", remedy)


def check_shared_memory(folder: Path = SHARED_MEMORY) -> list[Finding]:
    """Say how much shared memory the loaders' processes have; nothing on systems without ``/dev/shm``."""
    if not folder.is_dir():
        return []
    total = shutil.disk_usage(folder).total
    found = f"{total / 2**30:.1f} GiB in {folder}"
    if total >= MIN_SHARED_MEMORY:
        return [Finding(Mark.OK, "shared memory", found)]
    remedy = "in a container, start it with --ipc=host or --shm-size=8g; otherwise set nnUNet_n_proc_DA=0"
    return [Finding(Mark.WARNING, "shared memory", f"{found}: workers that load data may be killed", remedy)]


def check_registration() -> list[Finding]:
    """Say how nnU-Net is told of the trainers, and whether the variable names folders that it must not name."""
    folders = [folder for folder in os.environ.get(EXT_TRAINER_VARIABLE, "").split(os.pathsep) if folder.strip()]
    others = [folder for folder in folders if not is_external_trainers_folder(folder)]
    registered = len(others) < len(folders)
    return [_registration_state(registered, _pth_files()), *filter(None, map(_check_other_folder, others))]


def check_trainer(name: str = TRAINER) -> Finding:
    """Look for the trainer as ``nnUNetv2_train -tr`` does; what nnU-Net prints meanwhile is part of a fault only."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

            trainer = recursive_find_trainer_class_by_name(name)
    except Exception as error:
        said = " ".join(f"{printed.getvalue()} {error}".split())
        return Finding(Mark.FAULT, "trainer", f"nnU-Net does not find {name}: {said}", _export_folder())
    if not trainer.__module__.startswith(f"{nnunet_ad.__name__}."):
        remedy = f"remove the class of the same name, {trainer.__module__}, from {EXT_TRAINER_VARIABLE}"
        return Finding(Mark.FAULT, "trainer", f"nnU-Net finds another {name}, {trainer.__module__}", remedy)
    return Finding(Mark.OK, "trainer", f"nnU-Net finds {name} in {trainer.__module__}")


def check_path_variable(variable: str, content: str) -> Finding:
    """Say whether one of nnU-Net's path variables names a folder that can be written.

    Args:
        variable: Name of the environment variable.
        content: What nnU-Net keeps in that folder, for the message.

    Returns:
        A fault unless the folder exists and can be written; a warning only where it is ``nnUNet_raw`` that cannot be
        written, since training only reads it.
    """
    value = os.environ.get(variable)
    if not value:
        return Finding(
            Mark.FAULT,
            variable,
            "not set",
            f"mkdir -p ~/nnunet/{variable} && export {variable}=~/nnunet/{variable}  # or another folder for {content}",
        )
    folder = Path(value)
    if not folder.exists():
        return Finding(Mark.FAULT, variable, f"{folder} does not exist", f"mkdir -p {shlex.quote(value)}")
    if not folder.is_dir():
        return Finding(Mark.FAULT, variable, f"{folder} is a file", f"let {variable} name a folder for {content}")
    if not _is_writable(folder):
        mark = Mark.WARNING if variable == "nnUNet_raw" else Mark.FAULT
        remedy = f"let {variable} name a folder that you may write, or ask for the permission"
        return Finding(mark, variable, f"{folder} cannot be written", remedy)
    return Finding(Mark.OK, variable, str(folder))


def has_fault(findings: Iterable[Finding]) -> bool:
    """Return whether any finding is a fault."""
    return any(finding.mark is Mark.FAULT for finding in findings)


def _registration_state(registered: bool, pth_files: list[Path]) -> Finding:
    if registered:
        found = f"active through {pth_files[0]}" if pth_files else f"{EXT_TRAINER_VARIABLE} was set by hand"
        if os.environ.get(OPT_OUT_VARIABLE):
            found = f"{EXT_TRAINER_VARIABLE} was set by hand ({OPT_OUT_VARIABLE} is set)"
        return Finding(Mark.OK, "registration", found)
    if os.environ.get(OPT_OUT_VARIABLE):
        remedy = f"unset {OPT_OUT_VARIABLE}, or {_export_folder()}"
        return Finding(Mark.FAULT, "registration", f"switched off by {OPT_OUT_VARIABLE}", remedy)
    if pth_files:
        found = f"{pth_files[0]} did not run when this interpreter started, or {EXT_TRAINER_VARIABLE} was changed since"
        return Finding(Mark.FAULT, "registration", found, f"start python without -S, or {_export_folder()}")
    return Finding(Mark.FAULT, "registration", f"no {PTH_FILE} in this environment", _export_folder())


def _check_other_folder(folder: str) -> Finding | None:
    """Return a finding on a folder in the variable that is not ours, or None if it is fine."""
    resolved, package = Path(folder).resolve(), Path(nnunet_ad.__file__).resolve().parent
    if resolved == package or resolved in package.parents or package in resolved.parents:
        found = f"{EXT_TRAINER_VARIABLE} names {folder}: nnU-Net forgets what it imports there, workers then fail"
        return Finding(Mark.FAULT, "registration", found, f"let it name {EXTERNAL_TRAINERS_FOLDER} instead")
    if not resolved.is_dir():
        found = f"{EXT_TRAINER_VARIABLE} names {folder}, which is no folder; nnU-Net skips it silently"
        return Finding(Mark.WARNING, "registration", found, f"correct or remove it in {EXT_TRAINER_VARIABLE}")
    return None


def _export_folder() -> str:
    return f"export {EXT_TRAINER_VARIABLE}={shlex.quote(str(EXTERNAL_TRAINERS_FOLDER))}"


def _pth_files() -> list[Path]:
    """Return the installed ``nnunet_ad.pth`` files in the folders whose ``.pth`` files an interpreter runs."""
    folders = [sysconfig.get_paths()["purelib"], *site.getsitepackages(), site.getusersitepackages()]
    return [path for path in (Path(folder) / PTH_FILE for folder in dict.fromkeys(folders)) if path.is_file()]


def _installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_writable(folder: Path) -> bool:
    """Return whether a file can be made in ``folder``; permission bits do not tell on every file system."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
