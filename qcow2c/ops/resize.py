"""Resize: a disk of another size, in a qcow2 image or a raw file.

What the image is then, and in which order it becomes so, is `atomic/size.py`'s business; here it is opened, and asked
whether what would be lost may be lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import index

from qcow2c.atomic.header_growth import grow_by_header
from qcow2c.constants import SECTOR_SIZE
from qcow2c.disk.disk import Disk
from qcow2c.disk.opening import BackingChoice, open_image
from qcow2c.errors import UsageError
from qcow2c.format.detection import Format, known_format
from qcow2c.format.header import Header
from qcow2c.format.loaded_image import load_header
from qcow2c.image import Image
from qcow2c.light import TYPE_CHECKING, Protocol
from qcow2c.storage.gate import Gate
from qcow2c.storage.locks import Use
from qcow2c.storage.medium import Medium
from qcow2c.storage.preallocation import Preallocation, extend
from qcow2c.storage.sources import Source, Store, opened

if TYPE_CHECKING:
    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.secrets import Key

__all__ = ["resize"]


class Resizable(Protocol):
    """An image that is open to be resized."""

    image_format: str
    backing_format: str | None
    """The format as which the backing file was opened, None where there is none."""
    size: int
    """Bytes of the disk; those of a raw file are rounded up to whole sectors."""

    def resize(self, size: int, preallocation: Preallocation, *, drop_trailing: bool = False) -> None:
        """Change the size, without asking whether anything of the disk is lost; see `resize`."""
        ...


class _Qcow2:
    image_format = "qcow2"

    def __init__(self, image: Image) -> None:
        self._image = image
        self.size = image.size()
        self.backing_format = Disk(image.layer, image.name, image).backing_format

    def resize(self, size: int, preallocation: Preallocation, *, drop_trailing: bool = False) -> None:
        from qcow2c.disk.size import resize as resize_image  # Late: it is about arrays.

        resize_image(self._image, size, preallocation=preallocation, drop_trailing=drop_trailing)


class _Qcow2Unopened:
    """A qcow2 image without other files: it is opened, and each reference looked at, if the header alone won't do."""

    image_format = "qcow2"
    backing_format: str | None = None

    def __init__(self, medium: Medium, header: Header, key: Key | KeyRing, *, trust: bool) -> None:
        self._medium = medium
        self._header = header
        self._trust = trust
        self._key = key
        self.size = header.size

    def resize(self, size: int, preallocation: Preallocation, *, drop_trailing: bool = False) -> None:
        if preallocation == "off" and size % SECTOR_SIZE == 0 and grow_by_header(self._medium, self._header, size):
            return
        from qcow2c.disk.size import resize as resize_image  # Late: it is about arrays.

        with open_image(self._medium.store, "r+", key=self._key, trust=self._trust) as image:
            resize_image(image, size, preallocation=preallocation, drop_trailing=drop_trailing)


class _Raw:
    image_format = "raw"
    backing_format: str | None = None

    def __init__(self, store: Store) -> None:
        self._store = store
        self.size = -(-store.size() // SECTOR_SIZE) * SECTOR_SIZE

    def resize(
        self,
        size: int,
        preallocation: Preallocation,
        *,
        drop_trailing: bool = False,  # noqa: ARG002 - all of a raw file is the disk
    ) -> None:
        """Durable order: none; the size changes at once, what is new is zeros, and it is durable in the end."""
        if preallocation not in ("off", "falloc", "full"):
            raise UsageError(f"Unsupported preallocation mode: {preallocation}")
        end, most = self._store.size(), self._store.capacity()
        if most is not None and size != most:
            raise UsageError(f"Cannot resize device files: {self._store.name!r} has {most} bytes")
        if size > end:
            extend(self._store, end, size, preallocation)
        else:
            self._store.truncate(size)
            self._store.flush()


def resize(
    source: Source | Store,
    size: int,
    *,
    shrink: bool = False,
    preallocation: Preallocation = "off",
    image_format: str | None = None,
    key: Key | KeyRing = None,
    backing: BackingChoice = None,
    data_file: Source | Store | None = None,
    gate: str | Gate = "directory",
    trust: bool = False,
    drop_trailing: bool = False,
) -> None:
    """Let the disk of an image have `size` bytes; what is new reads as zeros, whatever lies below.

    A smaller size needs `shrink`: what lies behind it is lost. Internal snapshots keep their sizes and all they hold.
    `preallocation` gives what is new its place in the file ("metadata"), its space ("falloc"), or zeros that are
    written ("full"). What lies in the file of a qcow2 image behind its last cluster, such as data that another program
    has appended, stays, unless `drop_trailing`. Opening is as in `qcow2c.open`. See `disk.size.resize` for the durable
    order and for what a crash leaves: the old size or the new one.
    Raises UsageError, UnsupportedFeature, LimitExceeded, CorruptMetadata, StoreError, and what opening raises.
    """
    size = index(size)
    with open_resizable(
        source, image_format=image_format, key=key, backing=backing, data_file=data_file, gate=gate, trust=trust
    ) as disk:
        require_wanted(disk, size, shrink=shrink, preallocation=preallocation)
        disk.resize(size, preallocation, drop_trailing=drop_trailing)


def require_wanted(disk: Resizable, size: int, *, shrink: bool, preallocation: str) -> None:
    """Raise UsageError for a size that makes no sense, or would lose data although that was not asked for."""
    if not 0 < size < 1 << 63:
        raise UsageError("New image size must be positive")
    if size <= disk.size and preallocation != "off":
        raise UsageError("Preallocation can only be used for growing images")
    if size < disk.size and not shrink:
        raise UsageError(f"The disk has {disk.size} bytes: what is behind {size} is lost only with shrink=True")


def _alone(store: Store) -> Header | None:
    """Lock an image, and return its header if it has no other files. Raises as `open_image`."""
    store.lock(Use.WRITABLE_IMAGE)
    header, _notices = load_header(store)
    return None if header.backing_file or header.external_data else header


@contextmanager
def open_resizable(
    source: Source | Store,
    *,
    image_format: str | None = None,
    key: Key | KeyRing = None,
    backing: BackingChoice = None,
    data_file: Source | Store | None = None,
    gate: str | Gate = "directory",
    trust: bool = False,
) -> Iterator[Resizable]:
    """Open an image of a given or detected format for writing, alone. Raises as `open_image`."""
    with opened(source, writable=True) as store:
        if known_format(store, image_format) is Format.RAW:
            store.lock(Use.WRITABLE_IMAGE)
            yield _Raw(store)
        elif data_file is None and backing is None and (header := _alone(store)) is not None:
            yield _Qcow2Unopened(Medium(store, header.cluster_size), header, key, trust=trust)
        else:
            with open_image(
                store, "r+", key=key, backing=backing, data_file=data_file, gate=gate, trust=trust
            ) as image:
                yield _Qcow2(image)
