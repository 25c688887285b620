"""Faults of memory, disk and processes while training: one sentence, nothing half-written, no process left."""

import errno
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nnunet_ad.data.workers import WorkerError, WorkerKilledError
from nnunet_ad.trainer import nnUNetTrainerAD_1epoch
from nnunet_ad.trainer.faults import TrainingError, check_writable, explain

DATASET = "Dataset500_Made"


RESULTS = f"/results/{DATASET}"


@pytest.fixture
def settings():
    """What the sentences take from a trainer."""
    return SimpleNamespace(
        device=torch.device("cpu"),
        configuration_manager=SimpleNamespace(patch_size=[96, 112, 80], batch_size=2),
        plans_manager=SimpleNamespace(dataset_name=DATASET),
        output_folder=f"{RESULTS}/nnUNetTrainerAD__nnUNetPlans__3d_fullres/fold_0",
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            r"96 x 112 x 80 voxels and a batch of 2 labelled and 2 unlabelled.*nnunet_ad plan .*-gpu_memory_target",
        ),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), "-gpu_memory_target"),
        (MemoryError(), "Out of main memory, with patches of 96 x 112 x 80 voxels"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "Out of main memory"),
        (
            WorkerError("RuntimeError: unable to allocate shared memory(shm) for file </torch_7>: No space left"),
            "Shared memory.*too small.*--shm-size.*nnUNet_n_proc_DA=0",
        ),
        (WorkerError("_ArrayMemoryError: Unable to allocate 3.00 GiB for an array"), "Out of main memory"),
        (WorkerKilledError("SIGBUS"), "Shared memory"),
        (WorkerKilledError("SIGKILL"), "loads data ended by SIGKILL.*lower nnUNet_n_proc_DA"),
        (WorkerKilledError(None), "loads data ended by itself"),
        (WorkerError("ValueError: case Made_001 is damaged"), "failed: ValueError: case Made_001 is damaged"),
        (RuntimeError("RuntimeError: Failed to find C compiler. Please specify via CC"), r"g\+\+ and python3-dev"),
        (RuntimeError("InvalidCxxCompiler: No working C++ compiler found in cpp.cxx"), r"no C\+\+ compiler.*compile=f"),
        (RuntimeError("CppCompileError: C++ compile error\nPython.h: No such file"), "Python's headers.* python3-dev"),
        (RuntimeError("CppCompileError: C++ compile error\nkilled"), r"compile failed \(CppCompileError: .*compile=f"),
        (OSError(errno.ENOSPC, "No space left on device", "/results/x.pth"), "^/results/x.pth .* disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "quota"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "disk is full"),
        (OSError(errno.EROFS, "Read-only file system", f"{RESULTS}/x"), f"{RESULTS}/x .*Read-only.*nnUNet_results"),
        (PermissionError(errno.EACCES, "Permission denied", "/results"), "^/results .*denied.*nnUNet_results"),
        (FileExistsError(errno.EEXIST, "File exists", RESULTS), "remove what is in its place"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/preprocessed/x.lock"),
            r"^/preprocessed/x.lock .*denied\)\. (?!.*nnUNet_results).*`nnunet_ad preprocess-unlabeled` once",
        ),
    ],
)
def test_known_errors_become_one_sentence(settings, error, said):
    sentence = explain(error, settings)
    assert re.search(said, sentence)
    assert "\n" not in sentence


def test_no_room_for_a_lock_between_processes_is_no_full_disk(settings, monkeypatch):
    def full(*args, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", full)
    with pytest.raises(OSError, match="No space left") as raised:
        multiprocessing.Lock()
    assert "Shared memory" in explain(raised.value, settings)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("fold 7"),
        RuntimeError("shapes differ"),
        FileNotFoundError(errno.ENOENT, "none", "x"),
        RuntimeError("out of resource: shared memory, Required: 147456, Hardware limit: 101376"),  # of a GPU
        RuntimeError("failed in /home/me/torch_gpu/lib/libc10.so"),
    ],
)
def test_other_errors_stay_what_they_are(settings, error):
    assert explain(error, settings) is None


def test_a_folder_that_is_not_there_is_not_writable(tmp_path):
    check_writable(tmp_path)
    with pytest.raises(OSError, match="No such file"):
        check_writable(tmp_path / "nothing")
    assert not list(tmp_path.iterdir())


def test_out_of_memory_in_the_step_says_what_to_plan_and_ends_the_workers(make_trainer, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    trainer, before = make_trainer(nnUNetTrainerAD_1epoch), set(multiprocessing.active_children())

    def exhaust(function, *inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(trainer, "forward", exhaust)
    with pytest.raises(TrainingError, match=r"16 x 16 x 16 voxels .* `nnunet_ad plan .* -gpu_memory_target") as raised:
        trainer.run_training()
    assert isinstance(raised.value.__cause__, torch.OutOfMemoryError)
    assert Path(trainer.log_file).read_text().endswith(f"{raised.value}\n")
    assert set(multiprocessing.active_children()) <= before
    assert not list(Path(trainer.output_folder).glob("*.pth*"))


@pytest.mark.parametrize("num_workers", [1, 2], ids=["another loader's", "the same loader's"])
def test_a_worker_that_has_started_ends_where_the_next_can_not_start(make_trainer, monkeypatch, num_workers):
    monkeypatch.setenv("nnUNet_n_proc_DA", str(num_workers))
    trainer, before = make_trainer(nnUNetTrainerAD_1epoch), set(multiprocessing.active_children())
    real, started = multiprocessing.Process.start, []

    def start(process):
        if started:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        started.append(process)
        real(process)

    monkeypatch.setattr(multiprocessing.Process, "start", start)
    with pytest.raises(TrainingError, match=r"^Out of main memory"):
        trainer.run_training()
    assert started
    assert set(multiprocessing.active_children()) <= before


def test_any_other_error_ends_the_log_too(make_trainer, monkeypatch):
    trainer = make_trainer(nnUNetTrainerAD_1epoch)
    monkeypatch.setattr(trainer, "train_step", lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.run_training()
    assert Path(trainer.log_file).read_text().endswith("ZeroDivisionError: division by zero\n")


def test_a_file_in_place_of_the_results_folder(make_trainer, dataset):
    (dataset / "nnUNet_results" / DATASET).write_text("")
    with pytest.raises(TrainingError, match=rf"nnUNet_results/{DATASET}.* can't be written .*Let nnUNet_results name"):
        make_trainer(nnUNetTrainerAD_1epoch)


def test_a_disk_that_is_full_when_the_checkpoint_is_written(make_trainer, monkeypatch):
    trainer = make_trainer(nnUNetTrainerAD_1epoch)
    real = torch.save

    def save(checkpoint, file, *args, **kwargs):
        real({}, file)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(TrainingError, match=r"the disk is full.* free in .*go on with --c"):
        trainer.run_training()
    assert not list(Path(trainer.output_folder).glob("checkpoint_*.pth"))


# ------------------------------------------------------------------------------------------- the real command

EVERY_WORKER = "2"


@pytest.fixture
def command(dataset, monkeypatch):
    """Return the command, and its environment set, that trains for an epoch with two data workers and one more."""
    monkeypatch.setenv("nnUNet_n_proc_DA", EVERY_WORKER)
    monkeypatch.setenv("NNUNET_AD_ITERATIONS", "4")
    script = Path(sys.executable).with_name("nnUNetv2_train")
    arguments = ["500", "3d_fullres", "0", "-p", "nnUNetPlansTiny", "-tr", "nnUNetTrainerAD_1epoch", "-device", "cpu"]
    return [str(script), *arguments]


def in_private_mounts(setup: str, command: list[str]) -> list[str]:
    """Return the command with mounts of its own, made by a line of shell; skip where that is not allowed."""
    shell = ["unshare", "-m", "bash", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*shell, setup], capture_output=True).returncode:
        pytest.skip("mounts of one's own need root or another permission")
    return [*shell, f'{setup} && exec "$@"', "bash", *command]


def fails_with(command: list[str], match: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert re.search(match, done.stderr.rstrip().splitlines()[-1]), done.stderr


def fold_folder(dataset: Path) -> Path:
    return dataset / "nnUNet_results" / DATASET / "nnUNetTrainerAD_1epoch__nnUNetPlansTiny__3d_fullres" / "fold_0"


@pytest.mark.slow
def test_the_command_refuses_a_bad_split_with_exit_status_1(command, dataset):
    shutil.rmtree(dataset / "nnUNet_raw" / DATASET / "imagesUnlabeled")
    fails_with(command, "^ValueError: fold 0 names 3 case.s. that are not in")
    assert not list(fold_folder(dataset).glob("*.pth*"))


@pytest.mark.slow
def test_the_command_on_a_disk_that_is_full(command, dataset):
    limit = "ulimit -f 500"  # KiB a file: less than a checkpoint, more than anything else
    fails_with(["bash", "-c", f'{limit} && exec "$@"', "bash", *command], "TrainingError: .*fold_0 can't be written")
    assert not list(fold_folder(dataset).glob("*.pth"))


@pytest.mark.slow
def test_the_command_with_results_on_a_tiny_disk(command, dataset):
    results = dataset / "nnUNet_results"
    mount = f"mount -t tmpfs -o size=1m tmpfs '{results}'"
    fails_with(in_private_mounts(mount, command), r"TrainingError: .*disk is full.* MiB are free")


@pytest.mark.slow
def test_the_command_with_results_that_can_only_be_read(command, dataset):
    fold_folder(dataset).mkdir(parents=True)
    results = dataset / "nnUNet_results"
    mount = f"mount --bind '{results}' '{results}' && mount -o remount,ro,bind '{results}'"
    fails_with(in_private_mounts(mount, command), "TrainingError: .*fold_0.*Read-only file system.*nnUNet_results")
    assert not list(fold_folder(dataset).iterdir())


@pytest.mark.slow
def test_the_command_with_little_shared_memory(command, dataset):
    mount = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    fails_with(
        in_private_mounts(mount, command), "TrainingError: Shared memory, /dev/shm .0.1 MiB in all., is too small"
    )
    assert not list(fold_folder(dataset).glob("*.pth*"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes by /proc")
@pytest.mark.parametrize("victim", ["worker", "main process"])
def test_the_command_when_a_process_is_killed(command, dataset, monkeypatch, victim):
    monkeypatch.setenv("NNUNET_AD_ITERATIONS", "100000")
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as main:
        try:
            assert any("Epoch 0" in line for line in main.stdout)
            children = children_of(main.pid)
            assert len(children) >= 3
            os.kill(workers_among(children)[0] if victim == "worker" else main.pid, signal.SIGKILL)
            said = main.stdout.read().rstrip().splitlines()
            status = main.wait(60)
        finally:
            main.kill()
    if victim == "worker":
        assert status == 1
        assert re.search("TrainingError: A process that loads data ended by SIGKILL.*go on with --c", said[-1])
    end = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    assert not list(fold_folder(dataset).glob("*.pth*"))


def children_of(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def workers_among(children: list[int]) -> list[int]:
    """Return those that are no helper of Python's own, which preprocessing starts and the training outlives."""
    return [child for child in children if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()]
