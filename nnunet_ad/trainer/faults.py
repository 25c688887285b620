"""What a low-level error in a training means for its user: one sentence with what to do."""

import errno
import os
import re
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ad.data.workers import WorkerError, WorkerKilledError

_SHARED_MEMORY = Path("/dev/shm")
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}

# torch raises all of these as plain RuntimeErrors, so their text has to tell.
_TEXTS_OF_DEVICE_MEMORY = ("CUDA out of memory", "MPS backend out of memory", "CUDNN_STATUS_ALLOC_FAILED")
_TEXTS_OF_MAIN_MEMORY = ("DefaultCPUAllocator", "Cannot allocate memory", "MemoryError: ")
_TEXT_OF_SHARED_MEMORY = re.compile(r"unable to \w+ .*(shared memory|</torch_\w+>)|out of shared memory")
# of g++ for the CPU, and of the C compiler that Triton calls for a GPU
_TEXTS_OF_NO_COMPILER = ("InvalidCxxCompiler", "Failed to find C compiler", "Python.h")
_TEXTS_OF_COMPILERS = ("CppCompileError", "CalledProcessError: ")
_TEXTS_OF_WRITING = ("inline_container.cc", "PytorchStreamWriter")


class TrainingError(RuntimeError):
    """A training can't go on; the message says what was found and what to do, the cause is the low-level error."""


@contextmanager
def explained(trainer: nnUNetTrainer) -> Iterator[None]:
    """Turn known low-level errors inside into a :class:`TrainingError`, and end the training's log with any error.

    Raises:
        TrainingError: In place of an error that :func:`explain` knows; any other passes.
    """
    try:
        yield
    except Exception as error:
        sentence = explain(error, trainer)
        _append(getattr(trainer, "log_file", None), sentence or "".join(traceback.format_exception_only(error)))
        if sentence is None:
            raise
        raise TrainingError(sentence) from error


def check_writable(folder: str | Path) -> None:
    """Write and remove a file, since permission bits do not tell on every file system.

    Raises:
        OSError: If the folder can't be written.
    """
    with tempfile.TemporaryFile(dir=folder):
        pass


def explain(error: Exception, trainer: nnUNetTrainer) -> str | None:
    """Return the sentence for the user, or ``None`` for an error that is not known here."""
    return next(filter(None, (fault(error, trainer) for fault in _FAULTS)), None)


def _device_memory(error: Exception, trainer: nnUNetTrainer) -> str | None:
    if not isinstance(error, torch.OutOfMemoryError) and not _says(error, _TEXTS_OF_DEVICE_MEMORY):
        return None
    return (
        f"Out of memory on {_device(trainer.device)}, with {_patch_and_batch(trainer)}. Plan for less with `nnunet_ad "
        f"plan -d {trainer.plans_manager.dataset_name} -gpu_memory_target GB` and train with -p nnUNetPlansAD, and see "
        "with nvidia-smi that nothing else uses the GPU."
    )


def _main_memory(error: Exception, trainer: nnUNetTrainer) -> str | None:
    out_of_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if not out_of_memory and not isinstance(error, MemoryError) and not _says(error, _TEXTS_OF_MAIN_MEMORY):
        return None
    return (
        f"Out of main memory, with {_patch_and_batch(trainer)}. Give the job more, load data with fewer processes "
        "(nnUNet_n_proc_DA), or make patch or batch smaller: `nnunet_ad plan -gpu_memory_target GB` or `nnunet_ad "
        "shrink-plans`."
    )


def _shared_memory(error: Exception, trainer: nnUNetTrainer) -> str | None:
    bus_error = isinstance(error, WorkerKilledError) and error.signal_name == "SIGBUS"
    if not bus_error and not _no_room_for_semaphores(error) and not _says_shared_memory(error):
        return None
    size = f" ({_size(shutil.disk_usage(_SHARED_MEMORY).total)} in all)" if _SHARED_MEMORY.is_dir() else ""
    return (
        f"Shared memory, {_SHARED_MEMORY}{size}, is too small for the batches of the processes that load data. Start a "
        "container with --ipc=host or --shm-size=8g; otherwise set nnUNet_n_proc_DA=0, so that no such processes are "
        "used."
    )


def _worker_killed(error: Exception, trainer: nnUNetTrainer) -> str | None:
    if not isinstance(error, WorkerKilledError):
        return None
    return (
        f"A process that loads data ended by {error.signal_name or 'itself'}; SIGKILL most often means that the system "
        "or the scheduler was short of memory. Give the job more or lower nnUNet_n_proc_DA, and go on with --c."
    )


def _worker_failed(error: Exception, trainer: nnUNetTrainer) -> str | None:
    return f"A process that loads data failed: {error}" if isinstance(error, WorkerError) else None


def _compiler(error: Exception, trainer: nnUNetTrainer) -> str | None:
    if _says(error, _TEXTS_OF_NO_COMPILER):
        return (
            "torch.compile found no C++ compiler, or not Python's headers. Install them (in Debian and Ubuntu g++ and "
            "python3-dev), or train without: nnUNet_compile=f."
        )
    if _says(error, _TEXTS_OF_COMPILERS):
        first_line = str(error).splitlines()[0]
        return f"torch.compile failed ({first_line}). See above for why, or train without: nnUNet_compile=f."
    return None


def _disk_full(error: Exception, trainer: nnUNetTrainer) -> str | None:
    if not (isinstance(error, OSError) and error.errno in _DISK_FULL) and not _says(error, _TEXTS_OF_WRITING):
        return None
    path = _file_of(error) or Path(trainer.output_folder)
    folder = next(each for each in (path.absolute(), *path.absolute().parents) if each.is_dir())
    return (
        f"{path} can't be written: the disk is full, or a quota or limit on file sizes (ulimit -f) is reached; "
        f"{_size(shutil.disk_usage(folder).free)} are free in {folder}. Make room there and go on with --c."
    )


def _not_writable(error: Exception, trainer: nnUNetTrainer) -> str | None:
    if not isinstance(error, OSError) or error.errno not in _NOT_WRITABLE:
        return None
    results = Path(trainer.output_folder)
    path = _file_of(error) or results
    found = f"{path} can't be written or read ({os.strerror(error.errno or 0)})"
    if path in results.parents or path.is_relative_to(results.parents[1]):
        return (
            f"{found}; results go to {results}. Let nnUNet_results name a folder on a disk that you may write, or "
            "remove what is in its place."
        )
    return (
        f"{found}. Ask for the right to, or, if it lies in nnUNet_preprocessed, let somebody who has it run "
        "`nnunet_ad preprocess-unlabeled` once; then training only reads there."
    )


# Shared memory before the disk: both are "No space left on device".
_FAULTS: tuple[Callable[[Exception, nnUNetTrainer], str | None], ...] = (
    _device_memory,
    _shared_memory,
    _main_memory,
    _worker_killed,
    _worker_failed,
    _disk_full,
    _not_writable,
    _compiler,
)


def _says(error: Exception, texts: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def _says_shared_memory(error: Exception) -> bool:
    """Return whether it is that of processes; that of a GPU's multiprocessors has the same name."""
    return isinstance(error, RuntimeError) and _TEXT_OF_SHARED_MEMORY.search(str(error)) is not None


def _no_room_for_semaphores(error: Exception) -> bool:
    """Python's locks and queues between processes lie in shared memory, too; their error does not say so."""
    if not isinstance(error, OSError) or error.errno != errno.ENOSPC:
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return any("multiprocessing" in Path(frame.filename).parts for frame in frames)


def _file_of(error: Exception) -> Path | None:
    return Path(str(error.filename)) if isinstance(error, OSError) and error.filename else None


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return f"device {device}"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name} ({_size(properties.total_memory)} in all)"


def _patch_and_batch(trainer: nnUNetTrainer) -> str:
    configuration = trainer.configuration_manager
    patch, batch = " x ".join(map(str, configuration.patch_size)), configuration.batch_size
    return f"patches of {patch} voxels and a batch of {batch} labelled and {batch} unlabelled ones"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def _append(log_file: str | None, text: str) -> None:
    if log_file is None:
        return
    with suppress(OSError), Path(log_file).open("a") as file:  # the log may be what can't be written
        file.write(f"{text.rstrip()}\n")
