"""The maps of a report: runs of the file and of the guest's disk, packed for a page. See `report_page.py`.

A run is its length, its kind, and on the disk one more than where it lies in the file (0: nowhere), each as a number of
seven bits a byte, lowest first; all of them deflated.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from qcow2c.errors import Qcow2Error, StoreError
from qcow2c.forensic.nodes import Node
from qcow2c.format.header import Header
from qcow2c.format.tables import HAS_HOST_CLUSTER, Kind
from qcow2c.layers.reader import Reader
from qcow2c.layers.state import active_state
from qcow2c.storage.store import Store

MOST_RUNS = 1 << 21
"""Runs of a map; what comes behind is one run of the kind `not shown`."""

MOST_ERRORS = 10_000

NOT_SHOWN, UNREADABLE = "not shown", "unreadable"

COLOURS = {
    "free": "#f2f2f2", "slack": "#d9d9d9", "leak": "#e08214", "overlap": "#d7191c", "header": "#000000",
    "l1_table": "#542788", "l2_table": "#8073ac", "snapshot_l1_table": "#b2abd2", "snapshot_l2_table": "#b2abd2",
    "snapshot_table": "#c51b7d", "refcount_table": "#8c510a", "refcount_block": "#bf812d", "data": "#2c7bb6",
    "snapshot_data": "#7fb8dd", "compressed": "#1a9850", "snapshot_compressed": "#91cf60", "bitmap_data": "#fee08b",
    "bitmap_table": "#fdd049", "bitmap_directory": "#fdc010", "encryption_header": "#4d0000",
    "unallocated": "#f2f2f2", "zero": "#d9d9d9", UNREADABLE: "#d7191c", NOT_SHOWN: "#ffffff",
}  # fmt: skip
"""Of each kind; what has none of its own is drawn grey."""

_OTHER = "#888888"
_EMPTY = ("free", "slack", "unallocated", "zero", NOT_SHOWN)


def file_map(nodes: Iterable[Node]) -> dict[str, Any]:
    """Return the map of the file, of the nodes of a dump's section `map`."""
    return _packed(((node.span.length, node.name, 0) for node in nodes if node.span is not None), has_places=False)


def disk_map(store: Store, header: Header) -> dict[str, Any]:
    """Return the map of the active disk. Raises StoreError; what breaks a rule is shown as such."""
    return _packed(_disk_runs(store, header), has_places=True)


def _disk_runs(store: Store, header: Header) -> Iterator[tuple[int, str, int]]:
    reader = Reader(store, active_state(store, header))
    at, errors = 0, 0
    end = header.geometry.clusters(store.size()) * header.cluster_size
    while at < header.size:
        try:
            for run in reader.runs(at, header.size - at):
                has_place = run.kind in HAS_HOST_CLUSTER and not header.external_data
                inside = max(0, min(run.length, end - run.host_offset)) if has_place else run.length
                if inside:
                    yield inside, _name(run.kind), run.host_offset + 1 if has_place else 0
                if inside < run.length:
                    yield run.length - inside, UNREADABLE, 0
                at += run.length
        except StoreError:
            raise
        except Qcow2Error:
            errors += 1
            length = min(header.cluster_size - at % header.cluster_size, header.size - at)
            if errors > MOST_ERRORS:
                length = header.size - at
            yield length, UNREADABLE, 0
            at += length


def _name(kind: Kind) -> str:
    return kind.name.lower().removesuffix("_in_cluster").removesuffix("_allocated")


def _packed(runs: Iterable[tuple[int, str, int]], *, has_places: bool) -> dict[str, Any]:
    """Return a map as plain values: adjacent runs of one kind are one, where no place tells them apart."""
    names: dict[str, int] = {}
    packer = zlib.compressobj(6)
    parts: list[bytes] = []
    count, rest = 0, 0
    for length, name, place in _merged(runs):
        if count >= MOST_RUNS:
            rest += length
            continue
        count += 1
        numbers = [length, names.setdefault(name, len(names)), *([place] if has_places else [])]
        parts.append(packer.compress(b"".join(map(_number, numbers))))
    if rest:
        numbers = [rest, names.setdefault(NOT_SHOWN, len(names)), *([0] if has_places else [])]
        parts.append(packer.compress(b"".join(map(_number, numbers))))
    parts.append(packer.flush())
    return {
        "kinds": [[name, COLOURS.get(name, _OTHER)] for name in names],
        "empty": [index for name, index in names.items() if name in _EMPTY],
        "places": has_places,
        "runs": base64.b64encode(b"".join(parts)).decode("ascii"),
    }


def _merged(runs: Iterable[tuple[int, str, int]]) -> Iterator[tuple[int, str, int]]:
    length, name, place = 0, "", 0
    for more, other, where in runs:
        goes_on = where == place + length if place and where else where == place
        if length and other == name and goes_on:
            length += more
            continue
        if length:
            yield length, name, place
        length, name, place = more, other, where
    if length:
        yield length, name, place


def _number(value: int) -> bytes:
    """Return a number in seven bits a byte, the lowest first."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)
