"""The VM state of an internal snapshot as a file: what the snapshot's L1 table maps beyond the disk. Reads only.

Spec: "Snapshots".
"""

from __future__ import annotations

from operator import index

from qcow2c.errors import LimitExceeded
from qcow2c.format.records import SnapshotRecord
from qcow2c.layers.reader import Reader
from qcow2c.light import TYPE_CHECKING
from qcow2c.storage.positioned import PositionedFile

if TYPE_CHECKING:
    from typing import Any


class VmState(PositionedFile):
    """The VM state of one record, read by way of the reader of its snapshot."""

    def __init__(self, layer: Reader, record: SnapshotRecord, *, holds: object = None) -> None:
        """`holds` is what keeps the files of the layer open."""
        super().__init__()
        geometry = layer.geometry
        disk_entries = geometry.l1_entries(record.disk_size)
        room = max(0, record.l1_size - disk_entries) << geometry.l2_coverage_bits
        if record.vm_state_size > room:
            message = f"VM state of {record.vm_state_size} bytes, but the L1 table maps {room} beyond the disk"
            raise LimitExceeded(message, where=record.span, spec="Snapshots")
        self._layer = layer
        self._holds = holds
        self._start = disk_entries << geometry.l2_coverage_bits
        self._size = record.vm_state_size

    def size(self) -> int:
        return self._size

    def readinto_at(self, buffer: Any, offset: int) -> int:
        offset, view = index(offset), memoryview(buffer).cast("B")
        inside = view[: max(0, min(len(view), self._size - offset))]
        self._layer.read_mapped(inside, self._start + offset)
        return len(inside)
