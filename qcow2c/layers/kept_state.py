"""A state of an image that somebody else may change meanwhile: it stays, or reading it is an error."""

from __future__ import annotations

from typing import Any

from qcow2c.layers.reader import Reader


class KeptState(Reader):
    """A snapshot of an image that is being written: it stays as it is until it is deleted."""

    def __init__(self, *reader: Any, **facts: Any) -> None:
        super().__init__(*reader, **facts)
        self.locate = lambda _guest_offset, _length: -1  # Each read must ask.

    def read_mapped(self, buffer: memoryview, guest_offset: int) -> None:
        self.require_kept()
        try:
            super().read_mapped(buffer, guest_offset)
        finally:
            self.require_kept()
