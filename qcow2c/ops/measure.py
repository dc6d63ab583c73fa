"""How large a file would become: what a new image, or a copy of an image, needs. It reads tables, and writes nothing.

The numbers are those of qemu-img measure: metadata is counted as if each cluster of the disk were allocated. No copy of
`convert` is longer than `required` and `bitmaps` together, or `fully_allocated` and these where all of it is allocated.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import compress

from qcow2c.builder.options import PREALLOCATIONS, CreateOptions, NewImageOptions, require_known
from qcow2c.constants import SECTOR_SIZE, V2_REFCOUNT_ORDER, Limit, Version
from qcow2c.disk.disk import Disk, SnapshotKey, open_disk
from qcow2c.disk.map import COMPRESSED, DATA, ZERO, Columns
from qcow2c.errors import UsageError
from qcow2c.format.derived import BITMAP_DIRECTORY_HEADER
from qcow2c.format.detection import LUKS
from qcow2c.format.findings import Severity, raise_first
from qcow2c.format.geometry import Geometry
from qcow2c.format.header import aligned
from qcow2c.format.loaded_image import load_bitmap_records
from qcow2c.format.refcounts import refcount_room
from qcow2c.image import Image
from qcow2c.light import TYPE_CHECKING, frozen
from qcow2c.storage.gate import Gate
from qcow2c.storage.integers import index_or_none
from qcow2c.storage.sources import Source, Store

if TYPE_CHECKING:
    from typing import Unpack

    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.secrets import Key

_COMPATS = ("0.10", "1.1")
"""Without "v2" and "v3", which only create knows."""

_UNMEASURED = ("vmdk", "vdi", "vpc", "vhdx", "parallels", "qcow", "qed")
_UNCREATED = ("bochs", "cloop", "dmg")
"""Formats that QEMU knows, but does not create."""

_HOLDS_DATA = [flags & (DATA | ZERO) == DATA for flags in range(COMPRESSED << 1)]
"""By the flags of a run: whether its bytes would have to be written."""


@frozen
class Measurement:
    """Sizes in bytes. `bitmaps` is what a copy of the bitmaps adds to both, None where there can be none."""

    required: int
    fully_allocated: int
    bitmaps: int | None = None


def measure(
    source: Source | Store | None = None,
    *,
    size: int | None = None,
    output_format: str = "raw",
    image_format: str | None = None,
    snapshot: str | SnapshotKey | None = None,
    key: Key | KeyRing = None,
    gate: str | Gate = "directory",
    share: bool = False,
    **create_options: Unpack[NewImageOptions],
) -> Measurement:
    """Return how large a file of `output_format` becomes: a copy of `source`, or an empty image of `size` bytes.

    `snapshot` is an ID or, where no ID matches, a name. `create_options` are those of a new image; with a backing
    file nothing is taken to be in it. `image_format`, `gate` and `share` are as in `open_disk`.

    Raises UsageError, and what opening `source` and reading its tables raises.
    """
    if source is not None and size is not None:
        raise UsageError("a size cannot be used together with an image")
    if source is not None:
        with open_disk(source, image_format=image_format, key=key, gate=gate, share=share, snapshot=snapshot) as disk:
            return measure_disk(disk, output_format, **create_options)
    size = index_or_none(size)
    if size is None:
        raise UsageError("either a size or an image must be given")
    if image_format is not None or snapshot is not None:
        raise UsageError("a format and a snapshot can only be those of an image")
    if output_format == LUKS:
        return _volume(-(-size // SECTOR_SIZE) * SECTOR_SIZE, create_options)
    if _is_raw(output_format):
        whole = -(-size // SECTOR_SIZE) * SECTOR_SIZE
        return Measurement(whole, whole)
    target = _target(size, create_options)
    data = target.geometry.clusters(size) if _is_filled(target) else 0
    return _measured(target, target.geometry.clusters(size), data)


def measure_disk(disk: Disk, output_format: str = "raw", **create_options: Unpack[NewImageOptions]) -> Measurement:
    """Return how large a copy of an open disk becomes; see `measure`."""
    if output_format == LUKS:
        return _volume(disk.size, create_options)
    if _is_raw(output_format):
        return Measurement(disk.size, disk.size)
    return _copy(disk, _target(0, create_options))


# --- what is asked for ----------------------------------------------------------------------------------------------


def _volume(size: int, options: NewImageOptions) -> Measurement:
    """Return what a raw LUKS volume takes. Raises UsageError without its encryption."""
    encryption = options.get("encryption")
    if encryption is None or encryption.format != LUKS:
        raise UsageError("Parameter 'key-secret' is required for cipher")
    return Measurement(encryption.header_bytes + size, encryption.header_bytes + size)


def _is_raw(output_format: str) -> bool:
    """Return whether the output is raw, else it is qcow2. Raises UsageError for all other formats."""
    if output_format in _UNMEASURED:
        raise UsageError(f"Block driver {output_format!r} does not support size measurement")
    if output_format in _UNCREATED:
        raise UsageError(f"Format driver {output_format!r} does not support image creation")
    if output_format not in ("raw", "qcow2"):
        raise UsageError(f"Unknown file format {output_format!r}")
    return output_format == "raw"


def _target(size: int, options: NewImageOptions) -> CreateOptions:
    """Return the options of the new image, checked as far as they have a part in its size, as in QEMU."""
    require_known(options)
    target = CreateOptions(size, **options)
    CreateOptions(
        0, cluster_size=target.cluster_size, refcount_bits=target.refcount_bits, extended_l2=target.extended_l2
    ).validate()
    if target.compat not in _COMPATS:
        raise UsageError(f"Invalid compatibility level: {target.compat!r}")
    if target.version < Version.V3 and target.refcount_bits != 1 << V2_REFCOUNT_ORDER:
        newer = "compatibility level 1.1 or above (use compat=1.1 or greater)"
        raise UsageError(f"Different refcount widths than 16 bits require {newer}")
    if target.preallocation not in PREALLOCATIONS:
        raise UsageError(f"invalid parameter value: {target.preallocation}")
    if target.geometry.l1_entries(size) > Limit.L1_ENTRIES:
        raise UsageError("The image size is too large (try using a larger cluster size)")
    return target


def _is_filled(target: CreateOptions) -> bool:
    """Return whether all clusters have their space from the start. Preallocated metadata is counted in any case."""
    return target.preallocation in ("falloc", "full")


# --- what it takes --------------------------------------------------------------------------------------------------


def _copy(disk: Disk, target: CreateOptions) -> Measurement:
    """Return what a copy of a disk takes."""
    geometry = target.geometry
    clusters = geometry.clusters(disk.size)
    # It is unknown how much of the new backing file is the same.
    data = clusters if target.backing_file is not None else _data_clusters(disk.map.columns(), geometry.cluster_bits)
    data = clusters if _is_filled(target) else data
    bitmaps = None
    if disk.image is not None and min(target.version, disk.image.header.version) >= Version.V3:
        bitmaps = _bitmaps_size(disk.image, disk.size, geometry)
        more = _more_refcounts(geometry, clusters, data + geometry.clusters(bitmaps))
        bitmaps += more * geometry.cluster_size
    return _measured(target, clusters, data, bitmaps)


def _data_clusters(batches: Iterable[Columns], cluster_bits: int) -> int:
    """Return how many clusters of the new image the runs with data touch."""
    count = end = 0
    for columns in batches:
        chosen = map(_HOLDS_DATA.__getitem__, columns.flags)
        for start, length in compress(zip(columns.starts, columns.lengths, strict=True), chosen):
            # Two runs may share a cluster.
            first = max(start >> cluster_bits, end)
            end = -(-(start + length) >> cluster_bits)
            count += end - first
    return count


def _measured(target: CreateOptions, clusters: int, data_clusters: int, bitmaps: int | None = None) -> Measurement:
    """Return the sizes for a disk of so many clusters, some of which hold data."""
    geometry = target.geometry
    metadata = _head_and_tables(geometry, clusters)
    metadata += refcount_room(geometry, metadata + clusters).clusters
    if target.encryption is not None:
        metadata += geometry.clusters(target.encryption.header_bytes)
    size = geometry.cluster_size
    return Measurement((metadata + data_clusters) * size, (metadata + clusters) * size, bitmaps)


def _head_and_tables(geometry: Geometry, clusters: int) -> int:
    """Return the clusters of header, L1 and L2 tables of a disk of so many clusters."""
    l2_tables = -(-clusters >> geometry.l2_bits)
    return 1 + l2_tables + -(-l2_tables // geometry.words_per_cluster)


def _more_refcounts(geometry: Geometry, clusters: int, used: int) -> int:
    """Return the clusters of refcounts that used clusters need beyond those of a full disk; qemu-img forgets them."""
    before = _head_and_tables(geometry, clusters)
    needed, counted = (refcount_room(geometry, before + one).clusters for one in (used, clusters))
    return max(0, needed - counted)


def _bitmaps_size(image: Image, disk_size: int, geometry: Geometry) -> int:
    """Return what a copy of all bitmaps takes, as if none of their clusters could be left out.

    Raises CorruptMetadata where a bitmap breaks a rule: QEMU does not open such an image.
    """
    raise_first(image.notices, Severity.ERROR, also=("extension.bitmaps",))
    clusters = directory_size = 0
    for record in load_bitmap_records(image.layer.store, image.header):
        bits = -(-disk_size >> record.granularity_bits)
        data = geometry.clusters(-(-bits // 8))
        clusters += data + -(-data // geometry.words_per_cluster)
        directory_size += aligned(BITMAP_DIRECTORY_HEADER.size + len(record.name.partition(b"\0")[0]))
    return (clusters + geometry.clusters(directory_size)) * geometry.cluster_size
