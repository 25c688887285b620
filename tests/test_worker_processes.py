"""Worker processes end with the process that started them, and do not keep it waiting when one of them is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path

import pytest

from nnunet_ad.worker_processes import ctrl_c_waits, end_with_parent

POOLS = {
    "preprocessing": "import nnunet_ad.data.preprocessing as m; m._preprocess_case = f; next(m._run([0, 0], 2))",
    "parallel": (
        "import nnunet_ad.parallel as m; m.START_UP_SECONDS = -1;w = m.Workers(3, False); w.map(f, [0] * 9, '')"
    ),
}


def say_and_wait(_) -> None:
    """What the workers of POOLS do; the parent goes on at once."""
    if parent_process() is not None:
        os.write(1, f"{os.getpid()}\n".encode())  # in one piece
        time.sleep(600)


def is_there(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # the latter if it ends while it is looked at
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
@pytest.mark.parametrize("pool", POOLS)
def test_workers_do_not_outlive_their_parent(pool):
    code = f"from {Path(__file__).stem} import say_and_wait as f; {POOLS[pool]}"
    folder = Path(__file__).parent
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, text=True)
    workers = {int(parent.stdout.readline()) for _ in range(2)}
    assert len(workers) == 2 and all(map(is_there, workers))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(map(is_there, workers)):
        assert time.monotonic() < deadline, "workers are still there"
        time.sleep(0.05)
    parent.stdout.close()


def test_ctrl_c_is_for_the_parent():
    with ProcessPoolExecutor(1, get_context("spawn"), end_with_parent) as pool:
        worker = pool.submit(os.getpid).result()
        os.kill(worker, signal.SIGINT)
        assert pool.submit(os.getpid).result() == worker


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="a POSIX function")
def test_workers_are_started_without_ctrl_c_which_the_parent_gets_later():
    before, handler = signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever was left by others
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.raises(KeyboardInterrupt), ctrl_c_waits():
            blocked = pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ())
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # another thread would take one to the process
            still_here = True
        assert still_here and signal.SIGINT in blocked.result()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    signal.signal(signal.SIGINT, handler)


def test_a_pool_of_which_one_worker_was_killed_ends():
    code = (
        "import os, signal, time; from concurrent.futures import ProcessPoolExecutor; import multiprocessing\n"
        "from nnunet_ad.worker_processes import end_with_parent\n"
        "with ProcessPoolExecutor(2, multiprocessing.get_context('spawn'), end_with_parent) as pool:\n"
        "    pids = {pool.submit(os.getpid).result() for _ in range(20)}; busy = pool.submit(time.sleep, 600)\n"
        "    time.sleep(1); [os.kill(pid, signal.SIGKILL) for pid in list(pool._processes)[:1]]\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
