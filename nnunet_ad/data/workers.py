"""Batches that worker processes make in advance, the same ones in the same order in every run."""

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable

from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter


class NumberedBatches:
    """Batches whose content depends on their number alone, not on which worker makes them, nor on when.

    Workers that share one take the next number each.

    Args:
        loader: Makes batches out of the global random states.
        first: Number of the first batch.
        seed_batch: Called with a batch's number before it is made, to seed these states.
    """

    def __init__(self, loader, first: int, seed_batch: Callable[[int], object]):
        self.loader = loader
        self.seed_batch = seed_batch
        self._next_number = multiprocessing.Value("q", first)

    def __iter__(self) -> "NumberedBatches":
        return self

    def __next__(self) -> dict:
        """Return the next batch with its ``number`` added."""
        with self._next_number.get_lock():
            number = self._next_number.value
            self._next_number.value += 1
        self.seed_batch(number)
        return {**next(self.loader), "number": number}

    def set_thread_id(self, thread_id: int) -> None:
        """Called once in each worker: leave it to the training process, and to its end, to end the worker."""
        self.loader.set_thread_id(thread_id)
        for number in (signal.SIGTERM, signal.SIGINT):  # they often go to all processes of a job at once
            signal.signal(number, signal.SIG_IGN)
        threading.Thread(target=_end_with_parent, daemon=True).start()


class OrderedWorkers(NonDetMultiThreadedAugmenter):
    """nnU-Net's worker processes; their batches come out in the order of their numbers.

    Args:
        batches: What each worker draws from.
        first: Number of the first batch.
        num_workers: Processes.
        pin_memory: Put batches into memory that CUDA reads without waiting.
    """

    def __init__(self, batches: NumberedBatches, first: int, num_workers: int, pin_memory: bool):
        num_cached = max(6, num_workers // 2)
        super().__init__(batches, None, num_workers, num_cached, pin_memory=pin_memory, wait_time=0.002)
        self._wanted = first
        self._early: dict[int, dict] = {}

    def start(self) -> None:
        """Start the processes, and with them the first batches."""
        self._start()
        atexit.register(self._finish)

    def __next__(self) -> dict:
        """Return the next batch; keep those that are done before it."""
        while self._wanted not in self._early:
            batch = super().__next__()
            self._early[batch["number"]] = batch
        self._wanted += 1
        return self._early.pop(self._wanted - 1)

    def _finish(self, timeout: float = 10, force: bool = False) -> None:
        """As the host; workers that are too busy to notice are killed."""
        atexit.unregister(self._finish)
        workers = list(self._processes)
        super()._finish(timeout, force)
        for worker in workers:
            worker.kill()
            worker.join()


def _end_with_parent() -> None:
    """Kill this process when its parent is gone, or it would go on for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
