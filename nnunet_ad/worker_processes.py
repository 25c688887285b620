"""What worker processes do about the end of the process that started them."""

import multiprocessing
import os
import signal
import threading


def leave_the_end_to_the_parent() -> None:
    """Let this process end when its parent ends it or is gone; to be called once, when a worker starts.

    Without it a worker whose parent was killed would go on for ever. Signals often go to all processes of a job at
    once, and it is for the parent to say what they mean.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
