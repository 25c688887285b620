"""Signals that ask a training to stop, and the processes that it forks."""

import multiprocessing
import os
import signal
import time

import pytest

from nnunet_ad.trainer.interruption import Interruption

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no process is forked here")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, None)])
def test_a_forked_process_keeps_no_signal_that_is_to_end_it(number, status):
    """The host's pools wait for ever for a worker that SIGTERM does not end; Ctrl-C is for the parent."""
    with Interruption(None, time.monotonic()) as interruption:
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        process.start()
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
