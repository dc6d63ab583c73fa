"""The exports of an image: its disk, and each of its snapshots under `snapshots/NAME`. Read-only unless asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Unpack

from qcow2c.disk.disk import SnapshotKey
from qcow2c.disk.opening import Opening, open_image
from qcow2c.errors import UsageError
from qcow2c.format.detection import Format, known_format
from qcow2c.image import Image
from qcow2c.serve.exports import Choices, Export, ImageExport, PartExport, RawExport
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import Source, Store, opened

SNAPSHOTS = "snapshots/"
"""What the names of snapshots begin with."""


@contextmanager
def open_exports(
    source: Source | Store,
    *,
    name: str = "",
    description: str = "",
    image_format: str | None = None,
    choices: Choices | None = None,
    snapshot: str | SnapshotKey | None = None,
    offset: int = 0,
    size: int | None = None,
    **opening: Unpack[Opening],
) -> Iterator[dict[bytes, Export]]:
    """Open an image, qcow2 or raw, and yield what is served of it by name: the disk first, then its snapshots.

    `snapshot` is served as the disk then, and nothing else; `offset` and `size` make the disk a part of it, in bytes.
    Raises UsageError, and as `qcow2c.open`.
    """
    choices = choices or Choices()
    if snapshot is not None and choices.writable:
        raise UsageError("a snapshot is read-only")
    with open_served(source, image_format, writable=choices.writable, **opening) as disk:
        if isinstance(disk, Image):
            yield _exports_of(disk, name, description, choices, snapshot, offset, size)
            return
        if choices.bitmap is not None or snapshot is not None:
            raise UsageError("a raw file has no bitmaps and no snapshots")
        yield {_bytes(name): _part(RawExport(disk, description, choices), offset, size)}


@contextmanager
def open_served(
    source: Source | Store, image_format: str | None, *, writable: bool, **opening: Unpack[Opening]
) -> Iterator[Image | Store]:
    """Open and lock what is to be served: an image, or the file of a raw one. Raises as `qcow2c.open`."""
    with opened(source, *((Use.WRITABLE_IMAGE,) if writable else ())) as store:
        if known_format(store, image_format) is Format.RAW:
            if not writable:
                store.lock(Use.of_reader(share=opening.get("share", False)))
            yield store
            return
        with open_image(store, "r+" if writable else "r", **opening) as image:
            yield image


def _exports_of(
    image: Image,
    name: str,
    description: str,
    choices: Choices,
    snapshot: str | SnapshotKey | None,
    offset: int,
    size: int | None,
) -> dict[bytes, Export]:
    if snapshot is not None:
        key = snapshot if isinstance(snapshot, SnapshotKey) else SnapshotKey(name=snapshot)
        chosen = next((one for one in image.snapshots.list() if key.names(one)), None)
        if chosen is None and isinstance(snapshot, str):
            chosen = next((one for one in image.snapshots.list() if one.id == snapshot), None)
        if chosen is None:
            raise UsageError("Failed to load snapshot: Can't find snapshot")
        return {_bytes(name): _part(ImageExport(chosen.open(), description, choices), offset, size)}
    found: dict[bytes, Export] = {_bytes(name): _part(ImageExport(image, description, choices), offset, size)}
    if not choices.writable:  # A writer may delete a snapshot under its reader.
        plain = Choices(allocation_depth=choices.allocation_depth)
        for one in image.snapshots.list():
            found.setdefault(_bytes(SNAPSHOTS + one.name), ImageExport(one.open(), f"snapshot {one.id}", plain))
    return found


def _part(export: Export, offset: int, size: int | None) -> Export:
    if not offset and size is None:
        return export
    length = export.size - offset if size is None else size
    if offset < 0 or length < 0 or offset + length > export.size:
        raise UsageError(f"{length} bytes at offset {offset} do not lie on the disk of {export.size} bytes")
    return PartExport(export, offset, length)


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogateescape")
