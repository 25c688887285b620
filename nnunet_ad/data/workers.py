"""Batches that worker processes make in advance, the same ones in the same order in every run.

The host's worker processes leave the reason of an error to whatever stands further up on the screen, and wait for ever
where a batch does not fit into shared memory; these send it to the training process.
"""

import atexit
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Sequence
from queue import Empty

import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter

from nnunet_ad.worker_processes import end_with_parent

_ERROR = "error of a worker"


class WorkerError(RuntimeError):
    """A worker met an error; the message is that of the error."""


class WorkerKilledError(RuntimeError):
    """A worker ended without an error of its own.

    Attributes:
        signal_name: What killed it, as ``SIGKILL``, or ``None`` if it ended by itself.
    """

    def __init__(self, signal_name: str | None):
        super().__init__(f"a process that loads data ended by {signal_name or 'itself'}")
        self.signal_name = signal_name


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
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it often goes to all processes of a job at once
        end_with_parent()


class OrderedWorkers(NonDetMultiThreadedAugmenter):
    """nnU-Net's worker processes; their batches come out in the order of their numbers.

    Args:
        batches: What each worker draws from.
        first: Number of the first batch.
        num_workers: Processes.
        pin_memory: Put batches into memory that CUDA reads without waiting.

    Raises:
        WorkerError: On ``next``, if a worker could not make a batch.
        WorkerKilledError: On ``next``, if a worker is gone.
    """

    def __init__(self, batches: NumberedBatches, first: int, num_workers: int, pin_memory: bool):
        num_cached = max(6, num_workers // 2)
        super().__init__(_Reporting(batches), None, num_workers, num_cached, pin_memory=pin_memory, wait_time=0.002)
        self._wanted = first
        self._early: dict[int, dict] = {}

    def start(self) -> None:
        """Start the processes, and with them the first batches."""
        self._start()
        atexit.register(self._finish)

    def __next__(self) -> dict:
        """Return the next batch; keep those that are done before it."""
        while self._wanted not in self._early:
            batch = self._next_batch()
            self._early[batch["number"]] = batch
        self._wanted += 1
        return self._early.pop(self._wanted - 1)

    def _next_batch(self) -> dict:
        """Return what arrives next; no lock is waited for that a killed worker may have held."""
        while True:
            try:
                batch = self.results_loop_queue.get(timeout=self.wait_time)
            except Empty:
                self._check_workers()
            else:
                break
        if _ERROR in batch:
            raise WorkerError(batch[_ERROR])
        return batch

    def _check_workers(self) -> None:
        """Raise an error if a worker is gone, after an end to the others."""
        exit_codes = [worker.exitcode for worker in self._processes]
        if not exit_codes or any(code is not None for code in exit_codes):
            self._finish()
            raise WorkerKilledError(_signal_name(exit_codes))

    def _finish(self, timeout: float = 10, force: bool = False) -> None:
        """As the host, but without its farewell, which needs locks, if a worker is gone; the rest are killed."""
        atexit.unregister(self._finish)
        workers = [worker for worker in self._processes if worker.pid is not None]  # the others never started
        self._processes = list(workers)
        if all(worker.is_alive() for worker in workers):
            super()._finish(timeout, force)
        for worker in workers:
            worker.kill()  # some are gone or too busy to notice
            worker.join()
        self._processes, self.initialized = [], False


class _Reporting:
    """Batches as a worker sends them: an error goes to the training process in place of a batch."""

    def __init__(self, batches: NumberedBatches):
        self.batches = batches

    def set_thread_id(self, thread_id: int) -> None:
        self.batches.set_thread_id(thread_id)

    def __next__(self) -> dict:
        try:
            batch = next(self.batches)
            for value in batch.values():
                if isinstance(value, torch.Tensor):
                    value.share_memory_()  # here an error is noticed, in the queue's own thread it is not
            return batch
        except Exception as error:
            traceback.print_exc()
            return {_ERROR: f"{type(error).__name__}: {error}"}


def _signal_name(exit_codes: Sequence[int | None]) -> str | None:
    fatal = [-code for code in exit_codes if code is not None and code < 0]
    return signal.Signals(fatal[0]).name if fatal else None
