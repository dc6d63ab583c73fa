"""Copying from below: what an image does not hold itself, and would not find in another chain below it.

The two chains are compared by their maps first. What both maps call zeros, and what both take from one layer or from
one place of a file, is never read. Snapshots are treated as the active disk is: each state by an engine of its own,
one after the other. Spec: "Cluster mapping".
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter

from qcow2c.disk.disk import Disk
from qcow2c.disk.map_layers import PRESENT, ZERO, Segment
from qcow2c.disk.pair import BY_LAYER, Side, pairs
from qcow2c.engine import Engine
from qcow2c.errors import doing
from qcow2c.format.records import SnapshotRecord
from qcow2c.format.tables import L1_COPIED, L1_OFFSET, L2_COMPRESSED, L2_COPIED, L2_OFFSET
from qcow2c.layers.chain import files_of, layers_of
from qcow2c.layers.layer import Layer, RawLayer
from qcow2c.layers.state import load_state
from qcow2c.storage.sources import Memory, Store
from qcow2c.storage.store import Progress

SLAB_BYTES = 2 << 20
"""Bytes that are read of each chain before they are compared, and written at once, by QEMU, too."""

_ZEROS = bytes(SLAB_BYTES)


def keep_disks(
    engine: Engine,
    snapshots: Sequence[SnapshotRecord],
    new: Disk,
    progress: Progress | None = None,
    *,
    compressed: bool = False,
) -> None:
    """Copy into an image what the chain of another disk does not show as the one below the image does.

    With `compressed` it goes into whole clusters, compressed where that makes them smaller.
    Afterwards its disk, and those of the snapshots, are the same over both. Nothing else may be done with the engine
    then but to change its header and to end. An image with an external data file has no snapshots that could be kept.

    Durable order: as with any writing, state by state. A crash leaves the same disks over the old chain, and leaks at
    most. Raises what reading and writing raise, with what was being done.
    """
    reader = engine.reader
    kept = [] if reader.geometry.external_data else [record for record in snapshots if record.disk_size]
    places = [(reader.l1_offset, reader.l1_entries, reader.disk_size)]
    places += [(record.l1_table_offset, record.l1_size, record.disk_size) for record in kept]
    total = sum(disk_size for _, _, disk_size in places)
    below = reader.backing or RawLayer(Memory(b""))
    # Zeros are zeros, and nothing to be written, only where neither chain shows anything else.
    reach = RawLayer(_Reach(below, max(below.disk_size, new.size)))
    done = 0

    def tell(position: int) -> None:
        if progress is not None:
            progress(done + position, total)

    writer = engine
    writer.settle()
    for place in places:
        # The tables as they are now: what is copied lies behind where they are read.
        before = Disk(reader.state(*place), reader.store.name)
        writer = writer.of_state(load_state(reader.store, reader.header, *place), reach)
        _Copy(writer, before, new, tell, compressed=compressed).run()
        writer.settle()
        done += writer.disk_size
    engine.reload()
    if kept:
        _refresh_copied_bits(engine)


def _refresh_copied_bits(engine: Engine) -> None:
    """Set the copied bits of clusters that are no longer shared since snapshots have tables and clusters of their own.

    Only the active tables have bits that are relied on.
    """
    geometry, cache = engine.geometry, engine.cache
    bits, words = geometry.cluster_bits, geometry.l2_entry_words
    with engine.changing():
        engine.session.begin()
        for l1_index, entry in enumerate(engine.reader.l1_table):
            if not entry & L1_OFFSET or cache.refcount((entry & L1_OFFSET) >> bits) != 1:
                continue
            if not entry & L1_COPIED:
                cache.l1.set(l1_index, entry | L1_COPIED)
            if geometry.extended_l2:  # Else only clusters that were not there have been written.
                table = engine.reader.table(l1_index << geometry.l2_coverage_bits)
                assert table is not None, "its L1 entry names it"
                for index in range(0, len(table.words), words):
                    host = table.words[index] & L2_OFFSET
                    alone = host and not table.words[index] & (L2_COMPRESSED | L2_COPIED)
                    if alone and cache.refcount(host >> bits) == 1:
                        table.set(index, table.words[index] | L2_COPIED)


class _Need(enum.Enum):
    """What is to be done with a cluster, or subcluster."""

    SAME = enum.auto()
    ZEROS = enum.auto()
    DATA = enum.auto()


class _Reach(Store):
    """The old chain as a file that is as long as the new one: what it does not hold are zeros to be kept."""

    name = "<the old chain>"

    def __init__(self, old: Layer, disk_size: int) -> None:
        self._old = old
        self._disk_size = disk_size

    def size(self) -> int:
        return self._disk_size

    def pread(self, length: int, offset: int) -> bytes:
        data = bytearray(max(0, min(length, self._disk_size - offset)))
        self._old.read_into(memoryview(data), offset)
        return bytes(data)


def _image_files(top: Layer) -> list[object]:
    """Return what the files of each image of a chain are, None for a raw one: two places in it can hold the same."""
    return [files_of(layer) if layer.image_format == "qcow2" else None for layer in layers_of(top)]


class _Copy:
    """Copies what the two chains do not have in common into one state."""

    def __init__(
        self, writer: Engine, old: Disk, new: Disk, tell: Callable[[int], object], *, compressed: bool
    ) -> None:
        self._writer = writer
        self._write = writer.write_compressed if compressed else writer.write
        self._size = writer.disk_size
        self._unit = writer.geometry.cluster_size if compressed else writer.geometry.subcluster_size
        stores: list[Store] = []
        self._old, self._new = old, new
        self._sides = Side(0, old, stores), Side(1, new, stores)
        self._files = _image_files(old.layer), _image_files(new.layer)
        self._tell = tell
        self._buffers = bytearray(SLAB_BYTES), bytearray(SLAB_BYTES)

    def run(self) -> None:
        """Copy it, in the order of the disk. Raises what reading and writing raise, with what was being done."""
        for start, end in self._open_ranges():
            for at in range(start, end, SLAB_BYTES):
                self._copy(at, min(SLAB_BYTES, end - at))
                self._tell(at)
        self._tell(self._size)

    def _open_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of whole clusters, or subclusters, that the overlay does not hold and that may differ."""
        first = last = 0
        for at, stop in self._open_pairs():
            low, high = at // self._unit * self._unit, min(-(-stop // self._unit) * self._unit, self._size)
            if low > last:
                if last > first:
                    yield first, last
                first = low
            last = max(last, high)
        if last > first:
            yield first, last

    def _open_pairs(self) -> Iterator[tuple[int, int]]:
        old, new = self._sides
        runs = self._runs(self._old), self._runs(self._new)
        for at, stop, one, other in pairs(*runs, 0):
            held = not one[2] and one[3] & PRESENT
            if not held and not self._same_layer(one, other):
                place = old.place(one, at)
                if place[0] == BY_LAYER or place != new.place(other, at):
                    yield at, stop
        if self._size > self._old.size:  # What is less than a sector is in no map.
            yield self._old.size, self._size

    def _runs(self, disk: Disk) -> Iterator[Segment]:
        """Yield the runs of a disk up to the end of the overlay. Raises CorruptMetadata, LimitExceeded, StoreError."""
        end = self._old.size
        with doing(f"error while reading image metadata: {disk.name}"):
            for columns in disk.map.columns(0, end):
                yield from zip(*columns, strict=True)
        if end > disk.size:
            yield disk.size, end - disk.size, 0, ZERO, 0

    def _same_layer(self, one: Segment, other: Segment) -> bool:
        """Return whether one image decides in both chains what is there."""
        files = self._files[0][one[2]], self._files[1][other[2]]
        return bool(one[3] & other[3] & PRESENT) and files[0] is not None and files[0] == files[1]

    def _copy(self, start: int, length: int) -> None:
        """Copy what differs of whole units: as few writes as there are runs of them."""
        old, new = self._buffers
        views = memoryview(old)[:length], memoryview(new)[:length]
        for disk, view, which in ((self._old, views[0], "old"), (self._new, views[1], "new")):
            with doing(f"error while reading from {which} backing file"):
                disk.read_into(view, start)
        if old.startswith(views[1]):
            return
        units = [(at, min(at + self._unit, length)) for at in range(0, length, self._unit)]
        found = [_Need.SAME if old.startswith(views[1][at:end], at) else self._what(old, at, end) for at, end in units]
        for what, group in groupby(zip(found, units, strict=True), key=itemgetter(0)):
            run = [unit for _, unit in group]
            first, end = run[0][0], run[-1][1]
            with doing("Error while writing to COW image"):
                if what is _Need.DATA:
                    self._write(views[0][first:end], start + first)
                elif what is _Need.ZEROS:
                    self._writer.write_zeroes(start + first, end - first, unmap=False)

    @staticmethod
    def _what(old: bytearray, at: int, end: int) -> _Need:
        return _Need.ZEROS if old.startswith(memoryview(_ZEROS)[: end - at], at) else _Need.DATA
