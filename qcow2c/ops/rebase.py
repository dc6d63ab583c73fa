"""Rebase: let an overlay lie on another backing file, or on none. Its disk stays the same, unless it is not looked at.

What the overlay does not hold itself is compared in the old and in the new backing chain, and copied into it where
they differ (`copy/from_backing.py`); then the header changes. Spec: "Header", "Header extensions".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qcow2c.constants import ExtensionType, Limit, Version
from qcow2c.errors import ChainError, MissingKey, Qcow2Error, UnsupportedFeature, UsageError, doing
from qcow2c.format.derived import AUTOCLEAR_FEATURES
from qcow2c.format.detection import Format, known_format
from qcow2c.format.header import Header
from qcow2c.format.header_writer import HeaderChange, changed_header, with_extension
from qcow2c.format.loaded_image import load_header, require_not_corrupt
from qcow2c.layers.layer import RawLayer
from qcow2c.storage.gate import Gate, GateRequest, any_file
from qcow2c.storage.locks import Use
from qcow2c.storage.medium import Medium
from qcow2c.storage.sources import Memory, Source, Store, opened
from qcow2c.storage.store import Progress
from qcow2c.writer.header_update import change_header

if TYPE_CHECKING:
    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.secrets import Key
    from qcow2c.disk.disk import Disk
    from qcow2c.disk.opening import BackingChoice
    from qcow2c.image import Image

# What opens and copies images is imported late: the header alone is changed without it.

FORMATS = frozenset(
    {
        "blkdebug", "blklogwrites", "blkreplay", "blkverify", "bochs", "cloop", "compress", "copy-before-write",
        "copy-on-read", "dmg", "file", "ftp", "ftps", "gluster", "host_cdrom", "host_device", "http", "https",
        "io_uring", "iscsi", "luks", "nbd", "nfs", "null-aio", "null-co", "nvme", "nvme-io_uring", "parallels",
        "preallocate", "qcow", "qcow2", "qed", "quorum", "raw", "rbd", "replication", "snapshot-access", "ssh",
        "throttle", "vdi", "vhdx", "virtio-blk-vfio-pci", "virtio-blk-vhost-user", "virtio-blk-vhost-vdpa", "vmdk",
        "vpc", "vvfat",
    }
)  # fmt: skip
"""What an image may call the format of its backing file: all drivers of QEMU, as there."""

_UNKNOWN_AUTOCLEAR = AUTOCLEAR_FEATURES.reserved


@dataclass(frozen=True)
class NewBacking:
    """What the image is to name. `name` is None or "" for none; `place` is the file, where the name does not lead."""

    name: str | None
    format: str | None = None
    place: Source | Store | None = None
    key: Key | KeyRing = None


@dataclass(frozen=True)
class Overlay:
    """What is rebased. `image` is None where only its header is; `header` is None for a raw file."""

    store: Store
    header: Header | None
    image: Image | None = None

    @property
    def backing_format(self) -> str | None:
        """The format as which the old backing file was opened, None where it was not."""
        below = None if self.image is None else self.image.backing
        return None if below is None else below.image_format


def rebase(
    source: Source | Store,
    backing_file: str | os.PathLike[str] | None,
    *,
    backing_format: str | None = None,
    unsafe: bool = False,
    new_backing: Source | Store | None = None,
    gate: str | Gate = "directory",
    share: bool = False,
    progress: Progress | None = None,
    image_format: str | None = None,
    key: Key | KeyRing = None,
    new_key: Key | KeyRing = None,
    backing: BackingChoice = None,
    data_file: Source | Store | None = None,
    compressed: bool = False,
) -> None:
    """Let an image name another backing file, as seen from its directory, of a given format; or none.

    `unsafe` changes the header and nothing else: no other file is opened, and the disk is what comes of it. Else the
    disk stays the same. `new_backing` is the new backing file itself, where its name does not lead to it, and `backing`
    the old one; `share` reads the new one although another process may be writing to it. Internal snapshots show the
    same as before, too, which QEMU does not see to: what the new backing file lacks, each of them then holds itself.
    `compressed` compresses the clusters that are copied. `key` opens the image and its chain, `new_key` the new backing
    file, where they are encrypted.

    Durable order: copied data and its mapping, as with any writing, the header. A crash leaves an image that names the
    old backing file, or the new one, with the same disk in both cases; and leaks at most.
    Raises UsageError, UnsupportedFeature, ChainError, and what `open_image` and writing raise.
    """
    name = None if backing_file is None else os.fsdecode(backing_file)
    with open_overlay(
        source, unsafe=unsafe, key=key, gate=gate, image_format=image_format, backing=backing, data_file=data_file
    ) as overlay:
        new = NewBacking(name, backing_format, new_backing, new_key)
        rebase_overlay(overlay, new, gate=gate, share=share, progress=progress, compressed=compressed)


@contextmanager
def open_overlay(
    source: Source | Store,
    *,
    unsafe: bool = False,
    key: Key | KeyRing = None,
    gate: str | Gate = "directory",
    image_format: str | None = None,
    backing: BackingChoice = None,
    data_file: Source | Store | None = None,
) -> Iterator[Overlay]:
    """Open what is to be rebased: for writing, and with its backing chain, but only its header if `unsafe`.

    Raises as `open_image` with "r+"; if `unsafe`, refcounts are not looked at, because no cluster is given out.
    """
    with opened(source, writable=True) as store:
        if known_format(store, image_format) is Format.RAW:
            store.lock(Use.WRITABLE_IMAGE)
            yield Overlay(store, None)
        elif unsafe:
            store.lock(Use.WRITABLE_IMAGE)
            header, _notices = load_header(store)
            require_not_corrupt(header)
            yield Overlay(store, header)
        else:
            from qcow2c.disk.opening import open_image

            with open_image(store, "r+", key=key, gate=gate, backing=backing, data_file=data_file) as image:
                yield Overlay(store, image.header, image)


def rebase_overlay(
    overlay: Overlay,
    new: NewBacking,
    *,
    gate: str | Gate = "directory",
    share: bool = False,
    progress: Progress | None = None,
    compressed: bool = False,
) -> None:
    """Rebase an open overlay; see `rebase`. All that can be wrong is told in QEMU's words before anything is written.

    Raises as `rebase`; what cannot be read or written leaves the overlay on its old backing file.
    """
    if new.format is not None and new.format not in FORMATS:
        raise UsageError(f"Invalid format name: '{new.format}'")
    if compressed:
        _require_compressible(overlay)
    with ExitStack() as stack:
        disk = None
        if overlay.image is not None and new.name:
            disk = stack.enter_context(_opened(overlay, new, gate, share=share))
        change = _header_change(overlay, new)
        if overlay.image is None:
            assert overlay.header is not None, "a raw file has been refused"
            _require_other_name(overlay.store, new.name)
            change_header(Medium(overlay.store, overlay.header.cluster_size), overlay.header, change)
            return
        from qcow2c.copy.from_backing import keep_disks
        from qcow2c.disk.disk import Disk

        engine = overlay.image.engine
        snapshots = [snapshot.record for snapshot in overlay.image.snapshots.list()]
        keep_disks(engine, snapshots, disk or Disk(RawLayer(Memory(b"")), ""), progress, compressed=compressed)
        engine.change_header(change)


def _require_compressible(overlay: Overlay) -> None:
    """Raise UnsupportedFeature where nothing can be compressed; where the header alone changes, nothing has to be."""
    if overlay.header is None:
        raise UnsupportedFeature("Compression not supported for this file format")
    if overlay.image is not None and overlay.header.external_data:
        reason = "an image with an external data file cannot hold compressed clusters"
        raise UnsupportedFeature(f"Compression not supported for this image: {reason}")


@contextmanager
def _opened(overlay: Overlay, new: NewBacking, gate: str | Gate, *, share: bool) -> Iterator[Disk]:
    """Open the new backing file, which the user has named; what it names itself goes through the gate."""
    from qcow2c.disk.disk import open_disk

    assert new.name is not None, "else there is none"
    with ExitStack() as stack:
        with doing(f"Could not open new backing file '{new.name}'"):
            place = new.place
            if place is None:
                path = None if overlay.store.path is None else Path(overlay.store.name)
                place = any_file(GateRequest("backing file", new.name, path))
            disk = stack.enter_context(open_disk(place, image_format=new.format, key=new.key, gate=gate, share=share))
            _require_other(disk, overlay)
            if disk.layer.needs_key:
                raise MissingKey("Parameter 'encrypt.key-secret' is required for cipher", spec="Data encryption")
        yield disk


def _require_other(disk: Disk, overlay: Overlay) -> None:
    """Raise ChainError where a file of an overlay is part of what it is to lie on."""
    from qcow2c.layers.chain import files_of, layers_of

    assert overlay.image is not None, "else nothing is opened"
    own = files_of(overlay.image.layer)
    for layer in layers_of(disk.layer):
        if own & files_of(layer):
            raise ChainError(f"{overlay.store.name!r} would lie on itself")


def _require_other_name(store: Store, name: str | None) -> None:
    """Raise ChainError where a name leads to the image that is to have it; nothing is opened for that."""
    is_same = False
    if name and store.path is not None:
        with suppress(OSError, ValueError, Qcow2Error):
            is_same = os.path.samefile(any_file(GateRequest("backing file", name, Path(store.path))), store.path)
    if is_same:
        raise ChainError(f"{store.name!r} would lie on itself")


def _header_change(overlay: Overlay, new: NewBacking) -> HeaderChange:
    """Return what changes in the header. Raises UsageError, UnsupportedFeature, in QEMU's words."""

    def refusal(reason: str, kind: type[Qcow2Error] = UsageError) -> Qcow2Error:
        name = "(null)" if new.name is None else new.name  # As QEMU has it.
        return kind(f"Could not change the backing file to '{name}': {reason}")

    if new.name and new.format is None:
        raise refusal("backing format must be specified")
    header = overlay.header
    if header is None:
        raise refusal("Operation not supported", UnsupportedFeature)
    name, image_format = os.fsencode(new.name or ""), new.format if new.name else None
    if name and (len(name) > Limit.BACKING_FILE_NAME_BYTES or b"\0" in name):
        raise refusal(f"Invalid argument: a name of {len(name)} bytes, at most {Limit.BACKING_FILE_NAME_BYTES}")
    if name and header.external_data and header.data_file_raw:
        raise refusal("Invalid argument: the data file is to be a raw image by itself (data_file_raw)")
    data = None if image_format is None else os.fsencode(image_format)
    fields: dict[str, int] = {}
    if overlay.image is None and header.version >= Version.V3:
        fields["autoclear_features"] = header.autoclear_features & ~_UNKNOWN_AUTOCLEAR
    change = HeaderChange(fields, with_extension(header, ExtensionType.BACKING_FORMAT, data), name)
    try:
        changed_header(overlay.store, header, change)
    except UsageError as exc:
        raise refusal("No space left in the file header") from exc
    return change
