"""Parallel processes that work on one case at a time, with a progress bar."""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

MAX_DEFAULT_PROCESSES = 8
START_UP_SECONDS = 0.5  # to start a process and import what scoring needs; a short job is done before that

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Processes for a list of jobs, used as a context.

    This process works on the items from the first on. As soon as the first ones show that the job outlasts the start of
    more processes, these are started and work from the last item on, until both meet: nothing waits for a start. They
    are spawned, as nnU-Net's own workers are: a fork would copy the locks of this process's threads.

    Args:
        processes: at most how many, with this one; None for one a core that this process may use, at most eight.
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
        start = time.monotonic()
        with tqdm(total=len(items), desc=title, unit="case", disable=not self.progress) as bar:
            results: list[Result] = []
            while len(results) < len(items) and not self._processes_pay(
                time.monotonic() - start, len(results), len(items)
            ):
                results.append(function(items[len(results)]))
                bar.update()
            return results + self._share(function, items[len(results) :], bar)

    def _processes_pay(self, seconds: float, done: int, total: int) -> bool:
        """Return whether more processes can help before the job is done, going by the items done so far."""
        return self.processes > 1 and done > 0 and seconds / done * (total - done) > START_UP_SECONDS

    def _share(self, function: Callable[[Item], Result], items: Sequence[Item], bar: tqdm) -> list[Result]:
        """Work on items from the first on while the other processes come from the last."""
        if not items:
            return []
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.processes - 1, mp_context=multiprocessing.get_context("spawn"))
        results: list[Result] = []
        try:
            futures = [self._pool.submit(function, item) for item in reversed(items)][::-1]
            already_counted = bar.n
            for item, future in zip(items, futures, strict=True):
                # What can still be taken back no other process has begun.
                results.append(function(item) if future.cancel() else future.result())
                bar.update(already_counted + sum(future.done() for future in futures) - bar.n)
        except BrokenProcessPool:
            raise OSError("a worker process was killed, probably for lack of memory; use fewer with -np.") from None
        return results


def default_processes() -> int:
    """Return how many processes are used if none are asked for: one for each core this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_DEFAULT_PROCESSES)
