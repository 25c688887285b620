"""When a training should stop before its end, and how it does: with a checkpoint, one line and an exit code."""

import os
import signal
import threading
import time
from collections import deque

import torch
from torch import distributed

TIME_LIMIT_VARIABLE = "NNUNET_AD_TIME_LIMIT"
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_RESERVE_SECONDS, _RESERVE_SHARE = 60.0, 0.05  # of a time limit, for the checkpoint and for ending the workers


class TrainingInterruptedError(SystemExit):
    """Ends a training that can be continued.

    nnU-Net's command would show any other exception as a failure with a traceback; this one carries the exit code.
    """

    def __init__(self):
        super().__init__(EXIT_CODE)


class Interruption:
    """Notices SIGTERM, SIGINT and a time limit while it is entered; the training asks for them between iterations.

    A second SIGINT interrupts at once, as usual.

    Args:
        minutes: The time limit, counted from ``started``, or ``None``.
        started: ``time.monotonic()`` when the time began.
    """

    def __init__(self, minutes: float | None, started: float):
        self._signal: int | None = None
        self._end = None if minutes is None else started + 60 * minutes
        self._reserve = 0.0 if minutes is None else min(_RESERVE_SECONDS, _RESERVE_SHARE * 60 * minutes)
        self._asked: float | None = None
        self._pauses: deque[float] = deque(maxlen=1000)

    def __enter__(self) -> "Interruption":
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():  # no other may handle signals
            self._handlers = {number: signal.signal(number, self._notice) for number in _SIGNALS}
        else:
            self._handlers = {}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def forget_pauses(self) -> None:
        """Learn anew how long iterations take; what came before were none."""
        self._asked = None
        self._pauses.clear()

    def reason(self) -> str | None:
        """Return why to stop now; to be asked between any two iterations, because it learns how long they take."""
        now = time.monotonic()
        if self._asked is not None:
            self._pauses.append(now - self._asked)
        self._asked = now
        if self._signal is not None:
            return signal.Signals(self._signal).name
        if self._end is not None and now + self._reserve + 2 * max(self._pauses, default=0.0) >= self._end:
            return f"the time limit ({TIME_LIMIT_VARIABLE})"
        return None

    def _notice(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:
            self._end_forked(number)
        elif self._signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            self._signal = number

    def _end_forked(self, number: int) -> None:
        """Let SIGTERM end a process that a library forks with this handler: pools end theirs by it, and wait for them.

        SIGINT goes to all processes of a terminal, and it is for the training to say what it means.
        """
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def in_any_rank(flag: bool, group: distributed.ProcessGroup | None) -> bool:
    """Return whether a flag is set in any process of a group that communicates on the CPU; without one, the flag."""
    if group is None:
        return flag
    tensor = torch.tensor(flag, dtype=torch.uint8)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX, group)
    return bool(tensor)
