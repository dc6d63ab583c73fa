"""Stored bitmaps: what their tables and bits say, and how bits, tables and the directory are stored.

It reads with bounds, one piece at a time, and judges what it reads; what it stores goes to a function of the caller.
Nothing that is there is changed. Spec: "Bitmaps extension", "Bitmap directory", "Bitmap table", "Bitmap data".
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, reduce
from operator import or_

from qcow2c.constants import ENTRY_BYTES
from qcow2c.errors import CorruptMetadata, Span, UsageError
from qcow2c.format import layout, rules
from qcow2c.format.derived import BITMAP_DIRECTORY_HEADER, BITMAPS_EXTENSION
from qcow2c.format.findings import Severity, raise_first
from qcow2c.format.header import Header, aligned
from qcow2c.format.loaded_image import load_bitmap_records
from qcow2c.format.records import BitmapRecord
from qcow2c.format.table_rules import BITMAP_TABLE_RULES, broken_rules, suspects
from qcow2c.format.tables import BITMAP_ALL_ONES, BITMAP_OFFSET
from qcow2c.light import overload
from qcow2c.storage.store import Store

PlaceClusters = Callable[[bytes], int]
"""Stores bytes in whole clusters of the image, which lie together; returns their host offset."""

_STEP = 1 << 16
"""Bytes of a bitmap in which runs are looked for at once."""

_WINDOW_BITS = 1 << 23
"""Bits, of the finer granularity, that are brought to another granularity at once, where so few will do."""

_GROUP_BYTES = 1 << 20
"""Bytes of bitmap data that are placed together at most, unless a cluster has more."""


class Bitmap:
    """A bitmap as it is stored: each bit stands for `granularity` guest bytes, and is set where they were changed."""

    def __init__(self, store: Store, header: Header, record: BitmapRecord) -> None:
        self.record = record
        self._store = store
        self._header = header
        self._bits = -(-header.size >> record.granularity_bits)

    def __repr__(self) -> str:
        return f"<Bitmap {self.name!r}>"

    @property
    def name(self) -> str:
        return name_of(self.record)

    @property
    def granularity(self) -> int:
        """Guest bytes that one bit stands for."""
        return 1 << self.record.granularity_bits

    @property
    def enabled(self) -> bool:
        """Whether every write is recorded."""
        return self.record.auto

    @property
    def inconsistent(self) -> bool:
        """Whether it was not saved by the program that used it last: it may lack changes, and can only be removed."""
        return self.record.in_use

    def require_consistent(self) -> None:
        """Raise UsageError for a bitmap that must not be relied on."""
        if self.record.in_use:
            raise UsageError(f"Bitmap '{self.name}' is inconsistent and cannot be used")

    @cached_property
    def table(self) -> array[int]:
        """The entries of the bitmap table. Raises CorruptMetadata, StoreError."""
        return self.read_table()

    def read_table(self) -> array[int]:
        """Return the entries of the bitmap table, and do not keep them. Raises CorruptMetadata, StoreError."""
        record, geometry = self.record, self._header.geometry
        where = Span(record.bitmap_table_offset, record.bitmap_table_size * ENTRY_BYTES)
        data = self._store.pread(where.length, where.offset)
        if len(data) < where.length and geometry.leaves(where.end, self._store.size()):
            message = f"the table of bitmap {self.name!r} leaves the file"
            raise CorruptMetadata(message, where=where, spec="Bitmap table")
        words = layout.table_words(data, record.bitmap_table_size)
        broken = suspects(BITMAP_TABLE_RULES, reduce(or_, words, 0), geometry)
        for index, entry in enumerate(words if broken else ()):
            for rule in broken_rules(broken, entry, 0, geometry):
                message = f"bitmap {self.name!r}: {rule.message} ({entry:#018x})"
                raise CorruptMetadata(message, where=layout.word_span(where.offset, index), spec=rule.spec)
        return words

    def ranges(self) -> Iterator[Span]:
        """Yield the dirty spans of the disk in order: adjacent ones as one, and none behind the disk.

        Raises UsageError for an inconsistent bitmap, CorruptMetadata, StoreError.
        """
        self.require_consistent()
        bits = self.record.granularity_bits
        start = end = 0
        for firsts, ends in self._runs():
            if firsts[0] == end:
                firsts[0] = start
            elif end:
                yield Span(start << bits, end - start << bits)
            start, end = firsts.pop(), ends.pop()
            for first, stop in zip(firsts, ends, strict=True):
                yield Span(first << bits, stop - first << bits)
        if end:
            yield Span(start << bits, min(end << bits, self._header.size) - (start << bits))

    def _runs(self) -> Iterator[tuple[list[int], list[int]]]:
        """Yield where runs of set bits begin and end; the first run of a piece may go on from the one before."""
        size = self._header.cluster_size
        for index, entry in enumerate(self.table):
            start = index * size
            if entry & BITMAP_ALL_ONES:
                if start * 8 < self._bits:
                    yield [start * 8], [min((start + size) * 8, self._bits)]
            elif entry:
                for piece in range(start, min(start + size, -(-self._bits // 8)), _STEP):
                    firsts, ends = _runs_of(self.read(piece, min(_STEP, start + size - piece)), piece * 8)
                    if firsts:
                        yield firsts, ends

    def read(self, start: int, length: int) -> bytes:
        """Return bytes of the bitmap, eight bits each, the first one least significant; zeros behind its end.

        Raises CorruptMetadata, StoreError.
        """
        parts, at, size = [], start, self._header.cluster_size
        while at < start + length:
            index, inside = divmod(at, size)
            count = min(start + length - at, size - inside)
            parts.append(self._part(index, inside, count))
            at += count
        return without_rest(b"".join(parts), self._bits - start * 8)

    def _part(self, index: int, inside: int, count: int) -> bytes:
        """Return bytes of one cluster of the bitmap; what is behind the bitmap's end is not read."""
        needed = min(count, -(-self._bits // 8) - index * self._header.cluster_size - inside)
        entry = self.table[index] if index < len(self.table) and needed > 0 else 0
        if not entry & BITMAP_OFFSET:
            return (b"\xff" if entry & BITMAP_ALL_ONES else b"\0") * count
        where = Span((entry & BITMAP_OFFSET) + inside, needed)
        data = self._store.pread(where.length, where.offset)
        if len(data) < needed and self._header.geometry.leaves(where.end, self._store.size()):
            raise CorruptMetadata(f"data of bitmap {self.name!r} leaves the file", where=where, spec="Bitmap data")
        return data.ljust(count, b"\0")

    def clusters(self, granularity_bits: int, cluster_size: int) -> Iterator[bytes]:
        """Yield the bits with another granularity, in clusters: a bit is set where any of its bytes is dirty."""
        mine = self.record.granularity_bits
        unit = 8 << max(mine, granularity_bits)
        window = max(unit, _WINDOW_BITS << min(mine, granularity_bits))
        total = -(-self._header.size >> granularity_bits)
        waiting = bytearray()
        for start in range(0, self._header.size, window):
            length = min(window, -(-(self._header.size - start) // unit) * unit)
            bits = self.read(start >> mine + 3, length >> mine + 3)
            waiting += without_rest(_regrained(bits, mine, granularity_bits), total - (start >> granularity_bits))
            while len(waiting) >= cluster_size:
                yield bytes(waiting[:cluster_size])
                del waiting[:cluster_size]
        if waiting:
            yield bytes(waiting).ljust(cluster_size, b"\0")


class Bitmaps(Sequence[Bitmap]):
    """The bitmaps of an image in the order of its directory; an index may be a position or a name."""

    def __init__(self, found: Iterable[Bitmap] = (), *, stale: bool = False) -> None:
        self._found = tuple(found)
        self.stale = stale
        """There were bitmaps, but a program that knows none has written to the image: they are lost."""

    @overload
    def __getitem__(self, index: int) -> Bitmap: ...

    @overload
    def __getitem__(self, index: str) -> Bitmap: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Bitmap, ...]: ...

    def __getitem__(self, index: int | str | slice) -> Bitmap | tuple[Bitmap, ...]:
        """Return a bitmap, or several. Raises KeyError for a name that none has, IndexError."""
        if not isinstance(index, str):
            return self._found[index]
        found = self._named(index)
        if found is None:
            raise KeyError(index)
        return found

    def __contains__(self, wanted: object) -> bool:
        """Return whether a bitmap is one of these, or one of them has a name."""
        return any(wanted is bitmap or wanted == bitmap.name for bitmap in self._found)

    def __repr__(self) -> str:
        return f"<Bitmaps {[bitmap.name for bitmap in self._found]}>"

    def __len__(self) -> int:
        return len(self._found)

    def find(self, name: str) -> Bitmap:
        """Return the bitmap of a name. Raises UsageError where there is none."""
        found = self._named(name)
        if found is None:
            raise UsageError(f"Dirty bitmap '{name}' not found")
        return found

    def _named(self, name: str) -> Bitmap | None:
        return next((bitmap for bitmap in self._found if bitmap.name == name), None)


def load_bitmaps(store: Store, header: Header) -> Bitmaps:
    """Return the bitmaps of an image. Raises StoreError.

    Raises CorruptMetadata where one breaks a rule: then, as for QEMU, none can be used.
    """
    raise_first(rules.header_findings(header), Severity.FATAL, also=("extension.bitmaps",))
    records = load_bitmap_records(store, header)
    stale = header.bitmaps is not None and not header.bitmaps_consistent
    return Bitmaps((Bitmap(store, header, record) for record in records), stale=stale)


def name_of(record: BitmapRecord) -> str:
    """Return the name of a bitmap, as far as a C program sees it."""
    return record.name.partition(b"\0")[0].decode("utf-8", "surrogateescape")


# --- bits -----------------------------------------------------------------------------------------------------------


def _runs_of(data: bytes, first_bit: int) -> tuple[list[int], list[int]]:
    """Return where the runs of set bits begin and end, for bits that are numbered from `first_bit` on."""
    import numpy as np

    bits = np.zeros(len(data) * 8 + 2, dtype=np.uint8)
    bits[1:-1] = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")
    edges = np.flatnonzero(bits[1:] != bits[:-1]) + first_bit
    return edges[::2].tolist(), edges[1::2].tolist()


def _regrained(bits: bytes, granularity_bits: int, wanted: int) -> bytes:
    """Return bits of one granularity as bits of another; each fills whole bytes of the other."""
    if granularity_bits == wanted:
        return bits
    import numpy as np

    found = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little")
    for _ in range(wanted - granularity_bits):
        found = found[0::2] | found[1::2]
    if wanted < granularity_bits:
        found = np.repeat(found, 1 << granularity_bits - wanted)
    return np.packbits(found, bitorder="little").tobytes()


def without_rest(data: bytes, bits: int) -> bytes:
    """Return bytes with all bits from `bits` on cleared."""
    if bits >= len(data) * 8:
        return data
    whole, rest = divmod(max(0, bits), 8)
    last = bytes([data[whole] & (1 << rest) - 1]) if rest else b""
    return (data[:whole] + last).ljust(len(data), b"\0")


def united(one: bytes | bytearray, other: bytes | bytearray) -> bytes:
    """Return the bits that are set in either."""
    return layout.stored_integer(layout.integer(one) | layout.integer(other), len(one))


# --- storing --------------------------------------------------------------------------------------------------------


def table_entries(disk_size: int, granularity_bits: int, cluster_size: int) -> int:
    """Return the entries that the table of a bitmap needs."""
    bits = -(-disk_size >> granularity_bits)
    return -(-bits // (cluster_size * 8))


def store_clusters(clusters: Iterable[tuple[int, bytes]], table: array[int], place: PlaceClusters) -> None:
    """Store clusters of a bitmap, and enter them in its table, by their index: zeros and ones take no room."""
    waiting: dict[int, bytes] = {}

    def store() -> None:
        at = place(b"".join(waiting.values())) if waiting else 0
        for index, data in waiting.items():
            table[index] = at
            at += len(data)
        waiting.clear()

    for index, data in clusters:
        if data.count(0) == len(data):
            table[index] = 0
        elif data.count(255) == len(data):
            table[index] = BITMAP_ALL_ONES
        else:
            waiting[index] = data
            if (len(waiting) + 1) * len(data) > _GROUP_BYTES:
                store()
    store()


def store_directory(records: Sequence[BitmapRecord], place: PlaceClusters) -> bytes | None:
    """Store a directory of bitmaps; return the data of the extension that names it, None without any."""
    if not records:
        return None
    directory = b"".join(map(_stored_record, records))
    values = {
        "nb_bitmaps": len(records),
        "bitmap_directory_size": len(directory),
        "bitmap_directory_offset": place(directory),
    }
    return BITMAPS_EXTENSION.packed(values)


def record_size(name: bytes) -> int:
    """Return the bytes that a bitmap of this name takes in the directory."""
    return aligned(BITMAP_DIRECTORY_HEADER.size + len(name))


def _stored_record(record: BitmapRecord) -> bytes:
    values = {
        "bitmap_table_offset": record.bitmap_table_offset,
        "bitmap_table_size": record.bitmap_table_size,
        "flags": record.flags,
        "type": record.type,
        "granularity_bits": record.granularity_bits,
        "name_size": len(record.name),
        "extra_data_size": len(record.extra_data),
    }
    entry = BITMAP_DIRECTORY_HEADER.packed(values) + record.extra_data + record.name
    return entry.ljust(aligned(len(entry)), b"\0")
