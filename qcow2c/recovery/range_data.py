"""The bytes of a range that was found, and whether they can be believed once they are read. Reads only."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qcow2c.errors import StoreError
from qcow2c.format.codecs import DecompressionError, decompressor
from qcow2c.format.geometry import Geometry
from qcow2c.format.header import Header
from qcow2c.format.tables import Kind, compressed_extent
from qcow2c.light import NamedTuple
from qcow2c.recovery.found_ranges import BESIDE, FoundRange
from qcow2c.recovery.found_states import Level
from qcow2c.storage.store import Store

_READ_BYTES = 2 << 20
_GRAIN = 4096
"""Bytes of zeros, at the most, that are in doubt together."""

NO_DATA_FILE = "in the external data file, which was not given"
NO_BACKING = "in the backing file, which was not given"
BAD_COMPRESSED = "the compressed data does not become a cluster"
UNREADABLE = "the file cannot be read here"
ZEROED = "zeros where data is named, while clusters in use belong to nothing: zeroed, or zeros all along"


class GuestPiece(NamedTuple):
    """A part of a range with its bytes; `data` is None where it reads as zeros."""

    found: FoundRange
    data: bytes | None


Below = Callable[[int, int], bytes]
"""Returns so many bytes at a guest offset from what lies below the image."""


class RangeData:
    """Reads what ranges name. What cannot be read becomes a range that is lost."""

    def __init__(
        self, store: Store, header: Header, data_store: Store | None, below: Below | None, *, doubt_zeros: bool
    ) -> None:
        """`data_store` is None for an external data file that was not given. `doubt_zeros`: tables were zeroed."""
        self._store, self._data = store, data_store
        self._below = below
        self._has_below = header.backing_file is not None or below is not None
        self._geometry: Geometry = header.geometry
        self._unpack = decompressor(header.compression_type)
        self._doubt_zeros = doubt_zeros

    def pieces(self, found: FoundRange) -> Iterator[GuestPiece]:
        """Yield a range in parts of bounded size, each as sure as it turns out to be."""
        if found.level is Level.LOST or found.kind is Kind.ZERO:
            yield GuestPiece(found, None)
        elif found.kind is Kind.COMPRESSED:
            yield self._compressed(found)
        elif found.kind is Kind.DATA:
            yield from self._plain(found)
        elif not self._has_below:
            yield GuestPiece(found, None)
        elif self._below is None:
            yield GuestPiece(_lost(found, NO_BACKING), None)
        else:
            for part in _parts(found):
                data = self._below(part.length, part.guest)
                yield GuestPiece(part, None if data.count(0) == len(data) else data)

    def _compressed(self, found: FoundRange) -> GuestPiece:
        where = compressed_extent(found.host, self._geometry)
        try:
            data = self._store.pread(where.length, where.host_offset)
            cluster = self._unpack(data, self._geometry.cluster_size)
        except DecompressionError:
            return GuestPiece(_lost(found, BAD_COMPRESSED), None)
        except StoreError:
            return GuestPiece(_lost(found, UNREADABLE), None)
        return GuestPiece(found, bytes(cluster[: found.length]))

    def _plain(self, found: FoundRange) -> Iterator[GuestPiece]:
        if self._data is None:
            is_named = found.reason != BESIDE
            yield GuestPiece(_lost(found, NO_DATA_FILE) if is_named else _unmapped(found), None)
            return
        for part in _parts(found):
            try:
                data = self._data.pread(part.length, part.host)
            except StoreError:
                yield GuestPiece(_lost(part, UNREADABLE), None)
                continue
            if len(data) < part.length:
                data = data.ljust(part.length, b"\0")
            if found.reason == BESIDE:
                for piece in _grains(part, data):
                    yield piece if piece.data is not None else GuestPiece(_unmapped(piece.found), None)
            elif data.count(0) != len(data):
                yield from self._with_doubt(part, data)
            else:
                yield GuestPiece(_lost(part, ZEROED) if self._doubt_zeros else part, None)

    def _with_doubt(self, part: FoundRange, data: bytes) -> Iterator[GuestPiece]:
        """Yield a part, without its clusters of zeros where those are in doubt."""
        if not self._doubt_zeros:
            yield GuestPiece(part, data)
            return
        for piece in _grains(part, data, min(_GRAIN, self._geometry.cluster_size)):
            yield piece if piece.data is not None else GuestPiece(_lost(piece.found, ZEROED), None)


def _grains(part: FoundRange, data: bytes, size: int = _GRAIN) -> Iterator[GuestPiece]:
    """Yield a part divided into zeros, without data, and what is none."""
    at = 0
    while at < len(data):
        end = min(len(data), (part.guest + at) // size * size + size - part.guest)
        zero = data.count(0, at, end) == end - at
        while end < len(data):
            stop = min(len(data), end + size)
            if (data.count(0, end, stop) == stop - end) != zero:
                break
            end = stop
        piece = part._replace(guest=part.guest + at, host=part.host + at, length=end - at)
        yield GuestPiece(piece, None if zero else data[at:end])
        at = end


def _unmapped(found: FoundRange) -> FoundRange:
    return found._replace(kind=Kind.UNALLOCATED, host=0, level=Level.NAMED, reason="")


def _parts(found: FoundRange) -> Iterator[FoundRange]:
    """Yield a range in pieces that are read at once."""
    for at in range(0, found.length, _READ_BYTES):
        host = found.host + at if found.kind is Kind.DATA else found.host
        yield found._replace(guest=found.guest + at, host=host, length=min(_READ_BYTES, found.length - at))


def _lost(found: FoundRange, reason: str) -> FoundRange:
    return found._replace(level=Level.LOST, reason=reason)
