"""Signals that ask a training to stop, and the processes that it forks."""

import multiprocessing
import os
import signal
import time

import pytest

from nnunet_ad.trainer.interruption import Interruption

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no process is forked here")


def begin_and_sleep(begun) -> None:
    begun.set()
    time.sleep(60)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, None)])
def test_a_forked_process_keeps_no_signal_that_is_to_end_it(number, status):
    """The host's pools wait for ever for a worker that SIGTERM does not end; Ctrl-C is for the parent."""
    with Interruption(None, time.monotonic()) as interruption:
        fork = multiprocessing.get_context("fork")
        begun = fork.Event()
        process = fork.Process(target=begin_and_sleep, args=(begun,))
        process.start()
        assert begun.wait(30)  # Python forgets what a process gets before
        os.kill(process.pid, number)
        process.join(10 if status else 1)
        ended = process.exitcode
        process.kill()
        process.join()
        assert ended == status
        assert interruption.reason() is None


def test_the_process_itself_stops_later():
    with Interruption(None, time.monotonic()) as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.reason() == "SIGTERM"
