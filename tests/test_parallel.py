import os
import signal
import time
from contextlib import closing

import pytest

from nnunet_ad import parallel
from nnunet_ad.parallel import Workers, default_processes


def process_of(item):
    return item, os.getpid()


def process_of_slow(item):
    time.sleep(0.1)
    return process_of(item)


def fail_at_three(item):
    if item == 3:
        raise ValueError("three")
    return item


def die_outside_of(process):
    if os.getpid() != process:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.1)  # leave something to do for others


def touch_slowly(path):
    time.sleep(0.02)
    path.touch(exist_ok=False)


def run(function, items, processes=2):
    with Workers(processes, progress=False) as pool:
        return pool.map(function, items, "Testing")


@pytest.fixture
def eager(monkeypatch):
    """Make processes pay after the first item."""
    monkeypatch.setattr(parallel, "START_UP_SECONDS", -1.0)


def test_a_short_job_stays_in_this_process():
    assert run(process_of, [1, 2, 3]) == [(item, os.getpid()) for item in (1, 2, 3)]


def test_a_long_job_is_shared_with_other_processes_in_order(eager):
    results = run(process_of_slow, list(range(40)))
    assert [item for item, _ in results] == list(range(40))
    processes = [process for _, process in results]
    assert processes[0] == os.getpid() != processes[-1]
    assert len(set(processes)) == 2


def test_all_items_are_counted(eager, capsys):
    with Workers(2) as pool:
        pool.map(process_of, list(range(6)), "Testing")
    assert "6/6" in capsys.readouterr().err


def test_one_process_is_this_one(eager):
    assert {process for _, process in run(process_of, [1, 2, 3], processes=1)} == {os.getpid()}


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_are_raised_here(eager, processes):
    with pytest.raises(ValueError, match="three"):
        run(fail_at_three, [1, 2, 3, 4], processes)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="processes are killed otherwise here")
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_killed_process_is_reported(eager):
    with pytest.raises(OSError, match="a worker process was killed"):
        run(die_outside_of, [os.getpid()] * 10)


def test_items_are_handed_over_soon_after_they_are_done(eager):
    with Workers(2, progress=False) as pool, closing(pool.as_done(process_of_slow, list(range(20)), "")) as done:
        seen = [next(done)]
        first = time.monotonic()
        seen += [next(done) for _ in range(3)]
        assert time.monotonic() - first < 20 * 0.1  # not when all are done
        seen += done
    assert sorted(index for index, _ in seen) == list(range(20))
    assert all(index == item for index, (item, _) in seen)


@pytest.mark.parametrize("ends", ["closed", "by an error"])
def test_nothing_is_worked_on_after_the_end(eager, tmp_path, ends):
    def listed():
        return sorted(path.name for path in tmp_path.iterdir())

    with Workers(3, progress=False) as pool:
        items = [tmp_path / str(number) for number in range(200)]
        if ends == "closed":
            with closing(pool.as_done(touch_slowly, items, "")) as done:
                while len(listed()) < 5:
                    next(done)
        else:
            (tmp_path / "7").touch()
            with pytest.raises(FileExistsError):
                pool.map(touch_slowly, items, "")
        seen = listed()
        time.sleep(0.5)
        assert listed() == seen and 5 <= len(seen) < 200
        assert pool.map(process_of, [1, 2], "")[1][0] == 2  # it goes on with new processes


def test_there_is_at_least_one_process_and_not_too_many():
    assert 1 <= default_processes() <= 8
    with pytest.raises(ValueError, match="at least 1"):
        Workers(0)
