"""What worker processes do about the end of the process that started them."""

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """Let this process end when its parent is gone, or it would go on for ever; to be called once in a worker.

    Ctrl-C goes to all processes of a terminal, and it is for the parent to say what it means. SIGTERM ends the worker:
    it is by this signal that a pool of processes ends the others when one was killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
