"""What a disk may hold after a crash: for each sector its value at the last flush, or any written since."""

from __future__ import annotations

from collections.abc import Container

SECTOR = 512


class DiskModel:
    """The values of each sector over time; the time is that of the recorder's log."""

    def __init__(self, content: bytes) -> None:
        self.now = bytearray(content)
        self.initial = bytes(content)
        self._writes: list[tuple[int, int, bytes]] = []
        self._flushed = [(0, 0, bytes(content))]
        """Of each flush its time, the writes before it, and the disk."""

    def write(self, time: int, offset: int, data: bytes) -> None:
        """Note a write that was begun at a time."""
        self.now[offset : offset + len(data)] = data
        first, end = offset // SECTOR * SECTOR, -(-(offset + len(data)) // SECTOR) * SECTOR
        self._writes.append((time, first, bytes(self.now[first:end])))

    def flushed(self, time: int) -> None:
        """Note a flush that was acknowledged at a time."""
        self._flushed.append((time, len(self._writes), bytes(self.now)))

    @property
    def acknowledged(self) -> set[int]:
        """The times of acknowledged flushes."""
        return {time for time, _, _ in self._flushed}

    def problem(self, time: int, got: bytes, uncertain: Container[int] = ()) -> str | None:
        """Return what is wrong with a disk after a crash at a time, None if nothing is.

        `uncertain` are offsets of sectors that may hold anything: a write to them has failed.
        """
        # Of several flushes at one time the last one counts.
        _, later, base = [flush for flush in self._flushed if flush[0] <= time][-1]
        if len(got) != len(base):
            return f"the disk has {len(got)} bytes, not {len(base)}"
        if got == base:
            return None
        wrong = {at for at in range(0, len(base), SECTOR) if got[at : at + SECTOR] != base[at : at + SECTOR]}
        wrong = {at for at in wrong if at not in uncertain}
        for when, first, data in self._writes[later:]:
            if when < time:
                for at in range(first, first + len(data), SECTOR):
                    if at in wrong and got[at : at + SECTOR] == data[at - first : at - first + SECTOR]:
                        wrong.discard(at)
        if wrong:
            at = min(wrong)
            return f"sector at {at:#x} holds {got[at : at + 8].hex()}..., flushed was {base[at : at + 8].hex()}"
        return None
