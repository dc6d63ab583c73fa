"""Signals that ask a command to end do so as Ctrl-C does, and the handlers that were there come back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from qcow2c.cli.interrupts import Terminated, handled


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_with_the_status_that_a_shell_shows(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as caught, handled():
        os.kill(os.getpid(), number)
    assert isinstance(caught.value, Terminated) and caught.value.status == 128 + number
    assert signal.getsignal(number) is before


def test_in_another_thread_nothing_changes() -> None:
    found: list[object] = []

    def run() -> None:
        with handled():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
