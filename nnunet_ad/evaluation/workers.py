"""Parallel processes that work on one case at a time, with a progress bar."""

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from threading import Lock
from types import TracebackType
from typing import Generic, TypeVar

from tqdm import tqdm

from nnunet_ad.worker_processes import ctrl_c_waits, end_with_parent

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
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.processes - 1, spawn, initializer=end_with_parent)
        others = _OtherProcesses(self._pool, function, items)
        results: dict[int, Result] = {}
        already_counted = bar.n
        try:
            with ctrl_c_waits():
                for _ in range(self.processes):  # one more than there are processes: none waits for its next item
                    others.hand_out()
            while (index := others.take_from_them()) is not None:
                results[index] = function(items[index])
                bar.update(already_counted + len(results) + others.num_done() - bar.n)
            for future in as_completed(others.futures.values()):
                future.result()
                bar.update(already_counted + len(results) + others.num_done() - bar.n)
        except BrokenProcessPool:
            raise OSError("a worker process was killed, probably for lack of memory; use fewer with -np.") from None
        results |= {index: future.result() for index, future in others.futures.items()}
        return [results[index] for index in range(len(items))]


class _OtherProcesses(Generic[Item, Result]):
    """Gives items from the last on to a pool, the next one when one is done; after an error, no more.

    Nothing is queued that would have to be cancelled: a pool that breaks can't cope with cancelled items.
    """

    def __init__(self, pool: ProcessPoolExecutor, function: Callable[[Item], Result], items: Sequence[Item]) -> None:
        self._pool, self._function, self._items = pool, function, items
        self._left = deque(range(len(items)))
        self._lock = Lock()
        self.futures: dict[int, Future[Result]] = {}

    def take_from_them(self) -> int | None:
        """Return the index of the first item that nobody has, or None if there is none left."""
        with self._lock:
            return self._left.popleft() if self._left else None

    def num_done(self) -> int:
        with self._lock:
            return sum(future.done() for future in self.futures.values())

    def hand_out(self, finished: "Future[Result] | None" = None) -> None:
        """Submit the last item that nobody has."""
        with self._lock:
            if finished is not None and (finished.cancelled() or finished.exception()):
                self._left.clear()
            if not self._left:
                return
            index = self._left[-1]
            try:
                future = self.futures[index] = self._pool.submit(self._function, self._items[index])
            except RuntimeError:  # the pool is broken or shut down; a future that it had says why
                return
            self._left.pop()
        future.add_done_callback(self.hand_out)


def default_processes() -> int:
    """Return how many processes are used if none are asked for: one for each core this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_DEFAULT_PROCESSES)
