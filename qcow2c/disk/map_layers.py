"""What the map of a disk says of its layers: flags of a run, the depth of each layer, and where its bytes lie.

Shared by the two ways of mapping, one run at a time and by arrays. It walks nothing but the refcounts.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from qcow2c.errors import UnsupportedFeature
from qcow2c.format import layout
from qcow2c.format.geometry import Geometry
from qcow2c.format.refcounts import BLOCK_OFFSET, refcount
from qcow2c.format.tables import HAS_HOST_CLUSTER, Kind
from qcow2c.layers.layer import Layer, RawLayer
from qcow2c.layers.reader import Reader
from qcow2c.storage.sources import Store
from qcow2c.structs import SECTOR_SIZE

DATA, ZERO, PRESENT, OFFSET = 1, 2, 4, 8
"""Flags of a run: it holds data, reads as zeros, is decided by this layer, has a place in a file."""

BELOW = 16
"""The layer says nothing of the run: what lies below decides. Never in a result."""


class Columns(NamedTuple):
    """Runs in the order of the disk, one list for each property; `offsets` has 0 where OFFSET is not set."""

    starts: list[int]
    lengths: list[int]
    depths: list[int]
    flags: list[int]
    offsets: list[int]


@dataclass
class MappedLayer:
    """One layer of the chain. `size` is the disk's in whole sectors, as QEMU counts: down for qcow2, up for raw."""

    layer: Reader | RawLayer
    depth: int
    size: int
    below: MappedLayer | None
    flags: tuple[int, ...] = field(default=())
    """The flags of each Kind."""
    preallocated: bool = False
    """Far more clusters are allocated than the file occupies: ask the file which of the data are holes."""

    @property
    def file_name(self) -> str:
        """The name of the file that holds the layer's data."""
        return self.layer.data_store.name if isinstance(self.layer, Reader) else self.layer.store.name


def mapped_layers(top: Layer) -> MappedLayer:
    """Return the chain of layers from the top one. Raises UnsupportedFeature for a layer of another kind."""
    layers: list[Reader | RawLayer] = []
    at: Layer | None = top
    while at is not None:
        if not isinstance(at, Reader | RawLayer):
            raise UnsupportedFeature(f"a layer of type {type(at).__name__} cannot be mapped")
        layers.append(at)
        at = at.backing if isinstance(at, Reader) else None
    below: MappedLayer | None = None
    for depth in reversed(range(len(layers))):
        below = _mapped(layers[depth], depth, below)
    assert below is not None, "there is a top layer"
    return below


def _mapped(layer: Reader | RawLayer, depth: int, below: MappedLayer | None) -> MappedLayer:
    if isinstance(layer, RawLayer):
        return MappedLayer(layer, depth, -(-layer.disk_size // SECTOR_SIZE) * SECTOR_SIZE, None)
    size = layer.disk_size // SECTOR_SIZE * SECTOR_SIZE
    flags = tuple(_flags(kind, layer, below) for kind in Kind)
    return MappedLayer(layer, depth, size, below, flags, has_preallocated_metadata(layer))


def _flags(kind: Kind, layer: Reader, below: MappedLayer | None) -> int:
    # Encrypted data has no place that a reader could use.
    place = OFFSET if kind in HAS_HOST_CLUSTER and not layer.header.encrypted else 0
    if kind in (Kind.DATA, Kind.COMPRESSED):
        return DATA | PRESENT | place
    if kind in (Kind.ZERO, Kind.ZERO_ALLOCATED):
        return ZERO | PRESENT | place
    return (BELOW if below is not None else ZERO) | place


def raw_runs(store: Store, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield offset, length and flags of the data and the holes of a raw file; what is past its end is a hole."""
    size = store.size()
    for span, is_data in store.extents(start, min(end, size)):
        yield span.offset, span.length, (DATA if is_data else ZERO) | PRESENT | OFFSET
    if end > max(start, size):
        yield max(start, size), end - max(start, size), ZERO | PRESENT | OFFSET


# --- preallocation --------------------------------------------------------------------------------------------------


def has_preallocated_metadata(reader: Reader) -> bool:
    """Tell whether an image has at least a tenth more clusters in use than its file has room allocated, as QEMU.

    Then its data clusters may be holes of the file, which is worth a look.
    """
    store, geometry = reader.store, reader.geometry
    allocated = store.allocated_size()
    if allocated is None:
        return False
    real = allocated // geometry.cluster_size
    threshold = max(real * 10 // 9, real + 2)
    clusters = geometry.clusters(store.size())
    if clusters < threshold:
        return False
    used = 0
    for count in _used_clusters(reader, clusters):
        used += count
        if used >= threshold:
            return True
    return False


def _used_clusters(reader: Reader, clusters: int) -> Iterator[int]:
    """Yield for each refcount block how many of its clusters are in use; stop at one that cannot be believed."""
    store, header, geometry = reader.store, reader.header, reader.geometry
    per_block = 1 << geometry.refcount_block_bits
    blocks = min(-(-clusters // per_block), header.refcount_table_clusters * geometry.words_per_cluster)
    table = layout.words(store.pread(blocks * 8, header.refcount_table_offset)[: blocks * 8])
    for number, entry in enumerate(table):
        offset = entry & BLOCK_OFFSET
        if offset & (geometry.cluster_size - 1):
            return
        if offset:
            yield _nonzero(
                store.pread(geometry.cluster_size, offset), min(per_block, clusters - number * per_block), geometry
            )


def _nonzero(block: bytes, count: int, geometry: Geometry) -> int:
    """Return how many of the first `count` refcounts are not zero. Byte order does not matter for that."""
    width = geometry.refcount_bits
    if width >= 8:
        code = {1: "B", 2: "H", 4: "I", 8: "Q"}[width // 8]
        words = array(code, block[: min(count, len(block) * 8 // width) * width // 8])
        return len(words) - words.count(0)
    per_byte, order = 8 // width, geometry.refcount_order
    whole, rest = divmod(min(count, len(block) * per_byte), per_byte)
    used = sum(refcount(block, whole * per_byte + place, order) != 0 for place in range(rest))
    for byte in range(1, 256):
        times = block.count(byte, 0, whole)
        if times:
            used += times * sum(refcount(bytes((byte,)), place, order) != 0 for place in range(per_byte))
    return used
