"""Parallel processes that work on one case at a time, with a progress bar."""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, TypeVar

from tqdm import tqdm

MAX_DEFAULT_PROCESSES = 8
START_UP_SECONDS = 1.0  # to start a process and import what scoring needs; a short job is done before that

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Processes for a list of jobs, used as a context.

    A job begins in this process. As soon as its first cases show that more processes would save more time than they
    take to start, they do the rest: at once for large volumes, never for a few small ones. They are spawned, as
    nnU-Net's own workers are: a fork would copy the locks of this process's threads.

    Args:
        processes: at most how many; None for one a core that this process may use, at most eight.
        progress: show a progress bar.

    Raises:
        ValueError: ``processes`` is below one.
    """

    def __init__(self, processes: int | None = None, progress: bool = True) -> None:
        if processes is not None and processes < 1:
            raise ValueError(f"processes is {processes}; it must be at least 1.")
        self.processes = processes or default_processes()
        self.progress = progress
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], title: str) -> list[Result]:
        """Return the function's result for each item, in their order; its exceptions are raised here.

        Args:
            function: a function of one item; both must be picklable.
            items: one for each step of the progress bar.
            title: what the progress bar says.

        Raises:
            OSError: a worker process was killed.
        """
        results: list[Result] = []
        start = time.monotonic()
        with tqdm(total=len(items), desc=title, unit="case", disable=not self.progress) as bar:
            for item in items:
                if self._processes_pay(time.monotonic() - start, len(results), len(items)):
                    break
                results.append(_counted(bar, function(item)))
            return results + self._map_in_pool(function, items[len(results) :], bar)

    def _processes_pay(self, seconds: float, done: int, total: int) -> bool:
        """Return whether more processes save more than they cost, going by the cases done so far."""
        if self.processes == 1 or not done:
            return False
        remaining = seconds / done * (total - done)
        return remaining * (1 - 1 / self.processes) > START_UP_SECONDS

    def _map_in_pool(self, function: Callable[[Item], Result], items: Sequence[Item], bar: Any) -> list[Result]:
        if not items:
            return []
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.processes, mp_context=multiprocessing.get_context("spawn"))
        futures = [self._pool.submit(function, item) for item in items]
        try:
            return [_counted(bar, future.result()) for future in futures]
        except BrokenProcessPool:
            raise OSError("a worker process was killed, probably for lack of memory; use fewer with -np.") from None


def default_processes() -> int:
    """Return how many processes are used if none are asked for: one for each core this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_DEFAULT_PROCESSES)


def _counted(bar: Any, result: Result) -> Result:
    bar.update()
    return result
