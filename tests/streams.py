"""Files that cannot seek, as tests hand them to the copying commands."""

from __future__ import annotations


class Taken:
    """A binary file that only takes, in parts."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: memoryview) -> int:
        part = data[:100_000]
        self.data += part
        return len(part)
