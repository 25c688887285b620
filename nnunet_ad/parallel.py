"""Parallel processes that work on one case at a time, with a progress bar."""

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from threading import Lock
from types import TracebackType
from typing import Generic, TypeVar

from tqdm import tqdm

from nnunet_ad.worker_processes import ctrl_c_waits, end_with_parent

MAX_DEFAULT_PROCESSES = 8
# To start a process and import what scoring or converting needs; a short job is done before that.
START_UP_SECONDS = 0.5

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
        prepare: called once in each of the other processes before its first item; must be picklable.

    Raises:
        ValueError: ``processes`` is below one.
    """

    def __init__(
        self,
        processes: int | None = None,
        progress: bool = True,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        if processes is not None and processes < 1:
            raise ValueError(f"processes is {processes}; it must be at least 1.")
        self.processes = processes or default_processes()
        self.progress = progress
        self._prepare = prepare
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], title: str, delay: float = 0
    ) -> list[Result]:
        """Return the function's result for each item, in their order; its exceptions are raised here.

        Args:
            function: a function of one item; both must be picklable.
            items: one for each step of the progress bar.
            title: what the progress bar says.
            delay: seconds until the progress bar is shown.

        Raises:
            ChildProcessError: a worker process was killed.
        """
        results = dict(self.as_done(function, items, title, delay))
        return [results[index] for index in range(len(items))]

    def as_done(
        self, function: Callable[[Item], Result], items: Sequence[Item], title: str, delay: float = 0
    ) -> Generator[tuple[int, Result], None, None]:
        """Yield the number of each item and the function's result for it, soon after it is done.

        Once this ends, or is closed, no process works on an item any more.

        Args, Raises: as for :meth:`map`.
        """
        with tqdm(total=len(items), desc=title, unit="case", delay=delay, disable=not self.progress) as bar:
            try:
                for done in self._work(function, items):
                    bar.update()
                    yield done
            except BaseException as error:
                self._stop()
                if isinstance(error, BrokenProcessPool):
                    raise ChildProcessError(
                        "a worker process was killed, probably for lack of memory; use fewer with -np."
                    ) from None
                raise

    def _work(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
        start, done = time.monotonic(), 0
        while done < len(items) and not self._processes_pay(time.monotonic() - start, done, len(items)):
            yield done, function(items[done])
            done += 1
        for index, result in self._share(function, items[done:]):
            yield done + index, result

    def _processes_pay(self, seconds: float, done: int, total: int) -> bool:
        """Return whether more processes can help before the job is done, going by the items done so far."""
        return self.processes > 1 and done > 0 and seconds / done * (total - done) > START_UP_SECONDS

    def _share(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
        """Work on items from the first on while the other processes come from the last."""
        if not items:
            return
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.processes - 1, spawn, _begin, (self._prepare,))
        others = _OtherProcesses(self._pool, function, items)
        with ctrl_c_waits():
            for _ in range(self.processes):  # one more than there are processes: none waits for its next item
                others.hand_out()
        while (index := others.take_from_them()) is not None:
            yield index, function(items[index])
            yield from others.newly_done()
        yield from others.rest()

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _begin(prepare: Callable[[], object] | None) -> None:
    end_with_parent()
    if prepare is not None:
        prepare()


class _OtherProcesses(Generic[Item, Result]):
    """Gives items from the last on to a pool, the next one when one is done; after an error, no more.

    Nothing is queued that would have to be cancelled: a pool that breaks can't cope with cancelled items.
    """

    def __init__(self, pool: ProcessPoolExecutor, function: Callable[[Item], Result], items: Sequence[Item]) -> None:
        self._pool, self._function, self._items = pool, function, items
        self._left = deque(range(len(items)))
        self._lock = Lock()
        self._futures: dict[int, Future[Result]] = {}

    def take_from_them(self) -> int | None:
        """Return the index of the first item that nobody has, or None if there is none left."""
        with self._lock:
            return self._left.popleft() if self._left else None

    def newly_done(self) -> Iterator[tuple[int, Result]]:
        """Yield number and result of each item that was done since the last call."""
        with self._lock:
            done = [index for index, future in self._futures.items() if future.done()]
        for index in done:
            yield index, self._futures.pop(index).result()

    def rest(self) -> Iterator[tuple[int, Result]]:
        """Wait for all items that were handed out; to be called when nothing is left to hand out."""
        numbers = {future: index for index, future in self._futures.items()}
        for future in as_completed(numbers):
            yield numbers[future], future.result()

    def hand_out(self, finished: "Future[Result] | None" = None) -> None:
        """Submit the last item that nobody has."""
        with self._lock:
            if finished is not None and (finished.cancelled() or finished.exception()):
                self._left.clear()
            if not self._left:
                return
            index = self._left[-1]
            try:
                future = self._futures[index] = self._pool.submit(self._function, self._items[index])
            except RuntimeError:  # the pool is broken or shut down; a future that it had says why
                return
            self._left.pop()
        future.add_done_callback(self.hand_out)


def default_processes() -> int:
    """Return how many processes are used if none are asked for: one for each core this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_DEFAULT_PROCESSES)
