"""What is found in a damaged file: images, at whatever offset, each with its states and what belongs to none.

It opens nothing: the external data file is given. Reads only.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from qcow2c.constants import SECTOR_SIZE, CryptMethod
from qcow2c.errors import NotQcow2, Qcow2Error, Span
from qcow2c.format import rules
from qcow2c.format.findings import Severity
from qcow2c.format.header import Header
from qcow2c.light import replace
from qcow2c.recovery.found_header import FoundHeader, found_header
from qcow2c.recovery.found_ranges import Belongings, DiskRanges, FoundRange
from qcow2c.recovery.found_refcounts import FoundRefcounts
from qcow2c.recovery.found_states import FoundDisk, FoundStates, Level
from qcow2c.recovery.found_tables import FoundTables
from qcow2c.recovery.shape import Shape, shape_of
from qcow2c.recovery.table_scan import TableScan
from qcow2c.storage.file_part import FilePart
from qcow2c.storage.store import Progress, Store

if TYPE_CHECKING:
    from qcow2c.format.array_types import I64Array

_MOST_IMAGES = 64
_PROBED = 16
"""Clusters that are compressed to see whether they are encrypted."""


class FoundImage:
    """One image at `offset` of a file. `states` are its disks, `believed` its header as far as it can be."""

    def __init__(self, store: Store, offset: int, *, external: bool, progress: Progress | None = None) -> None:
        """`store` is the image alone. Raises NotQcow2 where nothing of an image is there; StoreError."""
        self.store, self.offset = store, offset
        far = external or _says_external(store)
        self.scan = TableScan(store, far=far, progress=progress)
        self.shape: Shape = shape_of(store, self.scan)
        believed = found_header(store, self.shape, external=external)
        if believed is None:
            raise NotQcow2(f"no header and no tables of a qcow2 image were found in {store.size()} bytes")
        self.believed = believed
        self.tables = FoundTables(store, self.scan, believed.header.geometry)
        self.refcounts = FoundRefcounts(self.tables, believed.header)
        anchored = self.refcounts.usable or believed.present or self.shape.compression_type is not None
        anchored |= store.size() % believed.header.cluster_size == 0
        self.states = FoundStates(believed, self.tables, self.refcounts, anchored=anchored)
        self.belongings = Belongings(self.tables, self.states, self.refcounts)
        self._settle_encryption(believed)

    @property
    def header(self) -> Header:
        return self.believed.header

    @property
    def doubts(self) -> list[str]:
        """What the file says, and is not believed."""
        return [*self.believed.doubts, *self.states.doubts]

    @property
    def has_lost_clusters(self) -> bool:
        """Whether clusters are in use for something that is not there."""
        return self.belongings.lacks_references

    def ranges(self, disk: FoundDisk, data_size: int) -> DiskRanges:
        """Return the ranges of a disk; `data_size` is that of the file with the guest's data. Raises StoreError."""
        return DiskRanges(self.tables, self.belongings, disk, data_size)

    def fragments(self) -> Iterator[Span]:
        """Yield what is in use and has no place on any disk: adjacent clusters together."""
        bits = self.header.cluster_bits
        clusters: I64Array = self.belongings.orphans
        edges = np.flatnonzero(np.diff(clusters) != 1) + 1
        for part in np.split(clusters, edges):
            if len(part):
                start = int(part[0]) << bits
                yield Span(start, min(len(part) << bits, self.store.size() - start))

    def _settle_encryption(self, believed: FoundHeader) -> None:
        """Take the old encryption for a flipped bit where the clusters are no encrypted data: they can be packed."""
        if believed.header.crypt_method != CryptMethod.AES:
            return
        size = believed.header.cluster_size
        probed = self.belongings.data[:: max(1, len(self.belongings.data) // _PROBED)][:_PROBED]
        plain = sum(_packs(self.store.pread(size, int(cluster) * size)) for cluster in probed)
        if plain or believed.header.external_data:  # Programs that know data files make no such encryption.
            message = f"crypt_method {believed.header.crypt_method}, where the clusters are not encrypted"
            header = replace(believed.header, crypt_method=CryptMethod.NONE)
            self.believed = believed._replace(header=header, doubts=(*believed.doubts, message))


def _packs(data: bytes) -> bool:
    return bool(data) and any(data) and len(zlib.compress(data, 1)) < len(data) * 9 // 10


def _says_external(store: Store) -> bool:
    try:
        return Header.load(store).external_data
    except Qcow2Error:
        return False


def images_in(
    store: Store, *, offset: int | None = None, external: bool = False, progress: Progress | None = None
) -> list[FoundImage]:
    """Return the images of a file, that at its beginning first; or the one at `offset`. Raises NotQcow2, StoreError."""
    if offset is not None:
        return [FoundImage(FilePart(store, offset), offset, external=external, progress=progress)]
    first: FoundImage | None = None
    failure: NotQcow2 | None = None
    try:
        first = FoundImage(store, 0, external=external, progress=progress)
        magics = first.scan.magics
    except NotQcow2 as exc:
        failure = exc
        magics = TableScan(store).magics
    others = [at for at in magics if at and _is_sound_start(store, at)][:_MOST_IMAGES]
    if others and first is not None and first.believed.present:
        end = -(-others[0] // SECTOR_SIZE) * SECTOR_SIZE
        alone = FoundImage(FilePart(store, 0, min(end, store.size())), 0, external=external)
        if not _ends_before(alone, end):
            others = [at for at in others if not _is_inside(first, at)]
    if not others:
        if first is None:
            raise failure or NotQcow2("no image was found")
        return [first]
    found: list[FoundImage] = []
    if first is not None and first.believed.present:
        end = -(-others[0] // SECTOR_SIZE) * SECTOR_SIZE
        found.append(FoundImage(FilePart(store, 0, min(end, store.size())), 0, external=external))
    for number, at in enumerate(others):
        after = others[number + 1] if number + 1 < len(others) else None
        size = None if after is None else -(-(after - at) // SECTOR_SIZE) * SECTOR_SIZE
        found.append(FoundImage(FilePart(store, at, size), at, external=external))
    return found


def _is_sound_start(store: Store, at: int) -> bool:
    """Return whether the header of an image, none of whose fields is wrong, is at an offset."""
    try:
        header = Header.load(FilePart(store, at))
    except Qcow2Error:
        return False
    return all(finding.severity < Severity.ERROR for finding in rules.header_findings(header))


def _ends_before(image: FoundImage, end: int) -> bool:
    """Return whether all that an image refers to lies before an offset, and something does."""
    used = np.concatenate((image.belongings.data, image.belongings.metadata))
    return bool(len(image.belongings.data)) and int(used.max()) << image.header.cluster_bits < end


def _is_inside(image: FoundImage, at: int) -> bool:
    """Return whether an offset lies in a cluster that an image uses: an image within a guest's disk."""
    cluster = at >> image.header.cluster_bits
    used = np.concatenate((image.belongings.data, image.belongings.metadata))
    return bool((used == cluster).any())


__all__ = ["FoundImage", "FoundRange", "Level", "images_in"]
