"""`Disk`: an image, qcow2 or raw, as commands see it: a size in whole sectors, a map, and bytes. Read-only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qcow2c.disk.map import DiskMap
from qcow2c.disk.opening import BackingChoice, open_image
from qcow2c.errors import MissingKey, UsageError
from qcow2c.format.detection import LUKS, Format, detect_format, known_format
from qcow2c.image import Image
from qcow2c.internal_snapshots import Snapshot
from qcow2c.layers.layer import Layer, RawLayer
from qcow2c.layers.reader import Reader
from qcow2c.light import TYPE_CHECKING, frozen
from qcow2c.storage.gate import Gate
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import Source, Store, opened

if TYPE_CHECKING:
    from typing import Literal

    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.secrets import Key


class Disk:
    """What a command reads: the top layer of a chain. `image` is None for a raw file; `disk_map` shows all, or less."""

    def __init__(self, layer: Layer, name: str, image: Image | None = None, disk_map: DiskMap | None = None) -> None:
        self.layer = layer
        self.name = name
        self.image = image
        self.map = DiskMap(layer) if disk_map is None else disk_map
        self.size = self.map.size
        """Bytes, in whole sectors: rounded up for a raw file."""

    @property
    def image_format(self) -> str:
        return "raw" if self.image is None else "qcow2"

    @property
    def backing_format(self) -> str | None:
        """The format as which the backing file of an image was opened, None where there is none."""
        below = self.layer.backing
        return None if below is None else below.image_format

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer, with zeros beyond the end. Raises CorruptMetadata, CorruptData, MissingKey, StoreError."""
        self.layer.read_into(buffer, offset)


@frozen
class SnapshotKey:
    """Which snapshot: the first one of this ID and this name, as far as they are given."""

    id: str | None = None
    name: str | None = None

    def names(self, snapshot: Snapshot[Image]) -> bool:
        return self.id in (None, snapshot.id) and self.name in (None, snapshot.name)


@contextmanager
def open_disk(
    source: Source | Store,
    *,
    image_format: str | None = None,
    gate: str | Gate = "directory",
    share: bool = False,
    snapshot: str | SnapshotKey | None = None,
    backing: BackingChoice = None,
    backing_format: str | None = None,
    data_file: Source | Store | None = None,
    on_error: Literal["raise", "zero"] = "raise",
    key: Key | KeyRing = None,
) -> Iterator[Disk]:
    """Open an image of a given or detected format, with what lies below it; the rest is as in `open_image`.

    An open `Image`, a snapshot's too, is that disk itself: it is not closed, and how to open it does not matter.

    `snapshot` is the ID or, where no ID matches, the name of the internal snapshot to read. It has the size that the
    disk has now, as in QEMU, or its own if that is larger, where QEMU cuts it off. Raises UsageError where there is
    none, and UnsupportedFeature for other formats.
    """
    if isinstance(source, Image):
        source.image_file()
        yield Disk(source.layer if snapshot is None else _state(source, snapshot), source.name, source)
        return
    with opened(source) as store:
        if (image_format or detect_format(store)) == LUKS:
            store.lock(Use.of_reader(share=share))
            yield _luks_disk(store, key)
            return
        if known_format(store, image_format) is Format.RAW:
            if snapshot is not None:
                reason = "Block format 'raw' used by device '' does not support temporarily loading internal snapshots"
                raise UsageError(f"Failed to load snapshot: {reason}")
            store.lock(Use.SHARED)
            yield Disk(RawLayer(store), store.name)
            return
        with open_image(
            store,
            key=key,
            gate=gate,
            share=share,
            backing=backing,
            backing_format=backing_format,
            data_file=data_file,
            on_error=on_error,
        ) as image:
            layer = image.layer if snapshot is None else _state(image, snapshot)
            yield Disk(layer, store.name, image)


def _luks_disk(store: Store, key: Key | KeyRing) -> Disk:
    """Return what a raw LUKS volume holds. Raises MissingKey, WrongKey, and as `open_volume`."""
    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.volume import open_volume

    secret = KeyRing(key).secret(store.name, store.path)
    if secret is None:
        raise MissingKey(f"{store.name!r} is encrypted, and no key was given", spec="LUKS On-Disk Format 1.2")
    return Disk(RawLayer(open_volume(store, secret), encrypted=True), store.name)


def _state(image: Image, snapshot: str | SnapshotKey) -> Reader:
    """Return a snapshot as QEMU reads it, on a disk of the size that it has now; a snapshot that is larger is whole."""
    keys = (snapshot,) if isinstance(snapshot, SnapshotKey) else (SnapshotKey(id=snapshot), SnapshotKey(name=snapshot))
    for key in keys:
        for found in image.snapshots.list():
            if key.names(found):
                found.open()  # For its rules.
                record, size = found.record, max(image.size(), found.disk_size)
                return image.layer.state(record.l1_table_offset, record.l1_size, size)
    raise UsageError("Failed to load snapshot: Can't find snapshot")
