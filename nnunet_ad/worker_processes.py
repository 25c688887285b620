"""What worker processes do about the end of the process that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def end_with_parent() -> None:
    """Let this process end when its parent is gone, or it would go on for ever; to be called once in a worker.

    Ctrl-C goes to all processes of a terminal, and it is for the parent to say what it means. SIGTERM ends the worker:
    it is by this signal that a pool of processes ends the others when one was killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


@contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Hold Ctrl-C back in this thread while it starts workers, which keep it blocked; then it counts.

    A worker needs a moment until it calls :func:`end_with_parent`, and would end in a traceback until then.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
