"""What lies where nothing refers to: free and leaked clusters, and the slack of tables. It guesses; it reads only.

Zeros, text, what looks like tables of the format, compressed data, and everything else by its entropy.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from qcow2c.constants import ENTRY_BYTES, IMAGE_SIGNATURES, SECTOR_SIZE, STREAM_SIGNATURES
from qcow2c.errors import Span
from qcow2c.forensic.nodes import Node, size_text
from qcow2c.format import tables
from qcow2c.light import NamedTuple
from qcow2c.references.ownership import HostUse
from qcow2c.storage.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_BYTES = 4 << 30
"""Bytes that are read, at most, where nothing else is asked for."""

_USES = (HostUse.FREE.value, HostUse.LEAK.value, HostUse.SLACK.value)

_TEXT_SHARE = 0.95
_LEAST_TEXT = 16
_LIKE_TABLE = 0.9
_HIGH_ENTROPY = 7.5
"""Bits a byte from which on data is compressed, encrypted or random."""

_FLAGS = tables.L2_COPIED | tables.L2_ZERO

_TEXT = np.zeros(256, dtype=bool)
_TEXT[[9, 10, 13, *range(32, 127)]] = True


class _FreePiece(NamedTuple):
    span: Span
    use: str
    kind: str
    entropy: float


def free_section(
    of_map: Callable[[], Iterable[Node]], store: Store, cluster_size: int, most_bytes: int = MOST_BYTES
) -> Node:
    """Return the section `free` of a dump; `of_map` gives the nodes of its section `map`."""

    def children() -> Iterator[Node]:
        pieces = _pieces(of_map(), store, cluster_size, most_bytes)
        for (use, kind), group in groupby(pieces, key=lambda piece: (piece.use, piece.kind)):
            yield from _runs(use, kind, group)

    return Node("free", make_children=children)


def _runs(use: str, kind: str, group: Iterable[_FreePiece]) -> Iterator[Node]:
    """Yield adjacent pieces of one kind as one node each."""
    start = end = 0
    weighed = 0.0
    for piece in group:
        if piece.span.offset != end and end > start:
            yield _node(use, kind, Span(start, end - start), weighed)
            start, weighed = piece.span.offset, 0.0
        elif end == start:
            start = piece.span.offset
        end = piece.span.end
        weighed += piece.entropy * piece.span.length
    if end > start:
        yield _node(use, kind, Span(start, end - start), weighed)


def _node(use: str, kind: str, span: Span, weighed: float) -> Node:
    bits = f", {weighed / span.length:.2f} bits a byte" if weighed else ""
    return Node(kind, span, use, f"{size_text(span.length)}{bits}")


def _pieces(nodes: Iterable[Node], store: Store, cluster_size: int, most_bytes: int) -> Iterator[_FreePiece]:
    """Yield what nothing refers to, a cluster at a time, or a hole as a whole."""
    left = most_bytes
    for node in nodes:
        if node.span is None or node.value not in _USES:
            continue
        use = str(node.value)
        for span, is_data in store.extents(node.span.offset, min(node.span.end, store.size())):
            if not is_data:
                yield _FreePiece(span, use, "zero", 0.0)
                continue
            at = span.offset
            while at < span.end:
                length = min(cluster_size - at % cluster_size, span.end - at)
                if left < length:
                    yield _FreePiece(Span(at, span.end - at), use, "not looked at", 0.0)
                    break
                left -= length
                kind, entropy = kind_of_bytes(store.pread(length, at), store.size())
                yield _FreePiece(Span(at, length), use, kind, entropy)
                at += length


def kind_of_bytes(data: bytes, file_size: int) -> tuple[str, float]:
    """Return what bytes look like, and their entropy in bits a byte: a guess, never a proof."""
    if data.count(0) == len(data):
        return "zero", 0.0
    values = np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
    shares = values[values > 0] / len(data)
    entropy = float(-(shares * np.log2(shares)).sum())
    for offset, signature, name in IMAGE_SIGNATURES:
        if offset == 0 and data.startswith(signature):
            return f"{name} header", entropy
    if _is_text(data, values):
        return "text", entropy
    if table := _table_kind(data, file_size):
        return table, entropy
    for signature, name in STREAM_SIGNATURES:
        if data.startswith(signature):
            return f"compressed, {name}", entropy
    if entropy >= _HIGH_ENTROPY:
        return "compressed, deflate" if _inflates(data) else "high entropy", entropy
    return "data", entropy


def _is_text(data: bytes, values: NDArray[np.int64]) -> bool:
    """Return whether bytes are text, with nothing but zeros around; `values` counts each byte."""
    filled = len(data) - int(values[0])
    inside = len(data.strip(b"\0"))
    return filled == inside >= _LEAST_TEXT and int(values[_TEXT].sum()) >= _TEXT_SHARE * filled


def _table_kind(data: bytes, file_size: int) -> str:
    """Return which table of the format bytes may be; "" for none."""
    usable = len(data) // ENTRY_BYTES * ENTRY_BYTES
    words = np.frombuffer(data[:usable], dtype=">u8").astype(np.uint64)
    words = words[words != 0]
    if not len(words):
        return ""
    offsets = words & ~np.uint64(_FLAGS)
    aligned = (offsets % np.uint64(SECTOR_SIZE) == 0) & (offsets < np.uint64(max(file_size, 1) * 2)) & (offsets != 0)
    are_alike = np.count_nonzero(words == words[0]) > len(words) // 2 + 1
    if np.count_nonzero(aligned) >= _LIKE_TABLE * len(words) and not are_alike:
        return "table of offsets"
    counts = np.frombuffer(data[:usable], dtype=">u2")
    counts = counts[counts != 0]
    if np.count_nonzero(counts <= 2) >= _LIKE_TABLE * len(counts):
        return "refcounts"
    return ""


def _inflates(data: bytes) -> bool:
    """Return whether bytes go on as raw deflate data for a while."""
    try:
        return len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, 1 << 16)) >= min(len(data), 4096)
    except zlib.error:
        return False
