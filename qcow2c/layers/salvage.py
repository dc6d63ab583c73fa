"""What salvage mode lost: the guest ranges that read as zeros because they cannot be read."""

from __future__ import annotations

import threading

from qcow2c.errors import Span
from qcow2c.light import frozen
from qcow2c.storage.thread_locks import fork_safe


@frozen
class SalvagedRange:
    """Guest bytes that read as zeros because they cannot be read, in salvage mode."""

    guest: Span
    error: Exception


class Salvage:
    """The log of salvage mode, shared by all layers and states of an image."""

    def __init__(self) -> None:
        self.ranges: list[SalvagedRange] = []
        self._lock = fork_safe(threading.Lock())

    def __call__(self, guest: Span, error: Exception) -> None:
        with self._lock:
            last = self.ranges[-1] if self.ranges else None
            if last is not None and last.guest.end == guest.offset and last.error.args == error.args:
                self.ranges[-1] = SalvagedRange(Span(last.guest.offset, last.guest.length + guest.length), last.error)
            elif last is None or last.guest != guest:
                self.ranges.append(SalvagedRange(guest, error))
