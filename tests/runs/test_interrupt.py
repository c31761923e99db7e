"""Signals: what the first and the second one do, in this process and in one of its own."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from vfejax.runs.interrupt import Interrupt


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_within_grace_the_first_signal_is_remembered_and_the_second_obeyed(sig):
    before = signal.getsignal(sig)
    with Interrupt(ends_process=False) as interrupt:
        with interrupt.graceful():
            signal.raise_signal(sig)
            assert interrupt.requested
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(sig)
        assert signal.getsignal(sig) != before
    assert signal.getsignal(sig) == before


def test_without_grace_the_first_signal_is_obeyed():
    with pytest.raises(KeyboardInterrupt), Interrupt(ends_process=False):
        signal.raise_signal(signal.SIGTERM)


def test_outside_the_main_thread_nothing_is_installed():
    before = signal.getsignal(signal.SIGINT)
    found = []

    def work():
        with Interrupt() as interrupt, interrupt.graceful():
            found.append((signal.getsignal(signal.SIGINT), interrupt.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(before, False)]


def test_handlers_nest_and_are_restored():
    before = signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1)
    with Interrupt(), Interrupt() as inner:
        assert signal.getsignal(signal.SIGINT) == inner._handle
    assert (signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1)) == before


# The main thread sits in C code that lets other threads run, as during a compilation: Python cannot
# call its signal handlers meanwhile.
BUSY = """
import ctypes
from vfejax.runs.interrupt import Interrupt
with Interrupt("stopped") as interrupt, interrupt.graceful():
    print("ready", flush=True)
    ctypes.CDLL(None).usleep(1000)
    while True:
        ctypes.CDLL(None).sleep(1000)
"""


@pytest.mark.slow  # the first test sends both signals within this process
def test_the_second_signal_ends_a_process_that_is_busy_in_c_with_one_line():
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):  # the first one is only remembered
            process.wait(timeout=0.5)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read() == "stopped\n"
