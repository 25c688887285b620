import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from batchgenerators.dataloading.data_loader import DataLoader

from nnunet_ad.data.workers import NumberedBatches, OrderedWorkers, WorkerError, WorkerKilledError

# The host's thread that collects batches may meet a killed worker half-way.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class Batches(DataLoader):
    """Batches of ones; a plan says in which to fail."""

    def __init__(self, fail_at: int | None = None):
        super().__init__(None, 1, 1, None, True, False, True)
        self.fail_at, self.count = fail_at, 0

    def generate_train_batch(self):
        self.count += 1
        if self.count == self.fail_at:
            raise ValueError("case Made_001 is damaged")
        return {"data": torch.ones(2, 3), "keys": ["a", "b"], "process": os.getpid()}


def start_workers(loader: DataLoader, num_processes: int) -> OrderedWorkers:
    workers = OrderedWorkers(NumberedBatches(loader, 0, lambda number: None), 0, num_processes, pin_memory=False)
    workers.start()
    return workers


@pytest.fixture
def started():
    """Return a function that makes workers; they end with the test."""
    made = []

    def start(loader=None, num_processes=2) -> OrderedWorkers:
        made.append(start_workers(loader or Batches(), num_processes))
        return made[-1]

    yield start
    for each in made:
        each._finish()


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_batches_arrive_as_they_were_made(started):
    batch = next(started())
    assert torch.equal(batch["data"], torch.ones(2, 3))
    assert batch["keys"] == ["a", "b"]
    assert batch["process"] != os.getpid()


def test_an_error_in_a_worker_arrives_after_the_batches_before_it(started, capfd):
    loader = started(Batches(fail_at=4), num_processes=1)
    for _ in range(3):
        next(loader)
    with pytest.raises(WorkerError, match=r"^ValueError: case Made_001 is damaged$"):
        next(loader)
    assert "Traceback" in capfd.readouterr().err


@pytest.fixture
def no_traceback_of_signals():
    """Pytest's handler of SIGBUS, which a forked worker has too, may crash while it prints the worker's threads."""
    was_enabled = faulthandler.is_enabled()
    faulthandler.disable()
    yield
    if was_enabled:
        faulthandler.enable(sys.__stderr__)


@pytest.mark.usefixtures("no_traceback_of_signals")
@pytest.mark.parametrize(("number", "name"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGBUS, "SIGBUS")])
def test_a_killed_worker_is_noticed_and_the_others_end(started, number, name):
    loader = started()
    next(loader)
    processes = list(loader._processes)
    os.kill(processes[0].pid, number)
    with pytest.raises(WorkerKilledError) as raised:
        for _ in range(1000):
            next(loader)
    assert raised.value.signal_name == name
    assert not set(processes) & set(multiprocessing.active_children())


def hold_and_die(event):
    event._cond.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("event", ["abort_event", "pause_event"])
def test_a_worker_killed_while_it_holds_a_lock_is_noticed_and_the_others_end(started, event):
    loader = started()
    next(loader)
    processes = list(loader._processes)
    holder = multiprocessing.Process(target=hold_and_die, args=(getattr(loader, event),))
    holder.start()
    holder.join()
    os.kill(processes[0].pid, signal.SIGKILL)
    with pytest.raises(WorkerKilledError, match="SIGKILL"):
        for _ in range(1000):
            next(loader)
    with pytest.raises(WorkerKilledError):
        next(loader)
    assert not set(processes) & set(multiprocessing.active_children())


def test_a_batch_that_does_not_fit_into_shared_memory_is_an_error_not_a_wait(started, monkeypatch):
    def full(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(WorkerError, match="unable to allocate shared memory"):
        next(started())


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes by /proc")
def test_workers_end_when_the_main_process_is_killed():
    code = (
        "import time; from test_data_workers import Batches, start_workers\n"
        "loader = start_workers(Batches(), 2); next(loader)\n"
        "print(*[process.pid for process in loader._processes], flush=True); time.sleep(60)\n"
    )
    main = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True)
    processes = [int(word) for word in main.stdout.readline().split()]
    assert len(processes) == 2
    assert all(map(is_alive, processes))
    main.kill()
    main.wait()
    assert wait_until(lambda: not any(map(is_alive, processes)))
