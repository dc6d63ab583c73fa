"""What the map of a disk says of its layers: flags of a run, the size of each layer, and whether to look for holes.

Shared by the two ways of mapping, one run at a time and by arrays. It walks nothing but the refcounts.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from qcow2c.constants import ENTRY_BYTES, SECTOR_SIZE
from qcow2c.format import layout
from qcow2c.format.geometry import Geometry
from qcow2c.format.header import Header
from qcow2c.format.refcounts import BLOCK_OFFSET, refcount
from qcow2c.format.tables import HAS_HOST_CLUSTER, Kind
from qcow2c.layers.chain import layers_of
from qcow2c.layers.layer import Layer
from qcow2c.light import NamedTuple
from qcow2c.storage.sources import Store

DATA, ZERO, PRESENT, OFFSET, COMPRESSED = 1, 2, 4, 8, 16
"""Flags of a run: it holds data, reads as zeros, is decided by this layer, has a place in a file, is compressed."""

BELOW = 32
"""The layer says nothing of the run: what lies below decides. Never in a result."""


Segment = tuple[int, int, int, int, int]
"""One run: start, length, depth, flags, offset, as in the columns of a map."""


class Columns(NamedTuple):
    """Runs in the order of the disk, one list for each property; `offsets` has 0 where OFFSET is not set."""

    starts: list[int]
    lengths: list[int]
    depths: list[int]
    flags: list[int]
    offsets: list[int]


class MappedLayer(NamedTuple):
    """One layer of the chain. `size` is the disk's in whole sectors, as QEMU counts: down for qcow2, up for raw."""

    layer: Layer
    size: int
    flags: tuple[int, ...]
    """The flags of each Kind."""
    preallocated: bool
    """Far more clusters are allocated than the file occupies: ask the file which of the data are holes."""


def mapped_layers(top: Layer) -> tuple[MappedLayer, ...]:
    """Return the layers of a chain by depth. Raises StoreError."""
    return tuple(map(_mapped, layers_of(top)))


def _mapped(layer: Layer) -> MappedLayer:
    flags = tuple(_flags(kind, layer) for kind in Kind)
    if layer.header is None:
        return MappedLayer(layer, -(-layer.disk_size // SECTOR_SIZE) * SECTOR_SIZE, flags, preallocated=False)
    size = layer.disk_size // SECTOR_SIZE * SECTOR_SIZE
    layer.require_whole()
    return MappedLayer(layer, size, flags, preallocated=has_preallocated_metadata(layer.store, layer.header))


def _flags(kind: Kind, layer: Layer) -> int:
    # Encrypted data has no place that a reader could use.
    place = OFFSET if kind in HAS_HOST_CLUSTER and not layer.encrypted else 0
    if kind is Kind.COMPRESSED:
        return DATA | PRESENT | COMPRESSED
    if kind is Kind.DATA:
        return DATA | PRESENT | place
    if kind in (Kind.ZERO, Kind.ZERO_ALLOCATED):
        return ZERO | PRESENT | place
    return (BELOW if layer.backing is not None else ZERO) | place


# --- preallocation --------------------------------------------------------------------------------------------------


def has_preallocated_metadata(store: Store, header: Header) -> bool:
    """Return whether an image has at least a tenth more clusters in use than its file has room allocated, as QEMU.

    Then its data clusters may be holes of the file, which is worth a look.
    """
    geometry = header.geometry
    allocated = store.allocated_size()
    if allocated is None:
        return False
    real = allocated // geometry.cluster_size
    threshold = max(real * 10 // 9, real + 2)
    clusters = geometry.clusters(store.size())
    if clusters < threshold:
        return False
    used = 0
    for count in _used_clusters(store, header, clusters):
        used += count
        if used >= threshold:
            return True
    return False


def _used_clusters(store: Store, header: Header, clusters: int) -> Iterator[int]:
    """Yield for each refcount block how many of its clusters are in use; stop at one that cannot be believed."""
    geometry = header.geometry
    per_block = 1 << geometry.refcount_block_bits
    blocks = min(-(-clusters // per_block), header.refcount_table_clusters * geometry.words_per_cluster)
    table = layout.words(store.pread(blocks * ENTRY_BYTES, header.refcount_table_offset)[: blocks * ENTRY_BYTES])
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
