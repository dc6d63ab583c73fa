"""Images with bitmaps in memory: made, written to, changed, and broken on purpose."""

from __future__ import annotations

from collections.abc import Callable

import qcow2c
from qcow2c.bitmaps.edit import BitmapEdit
from qcow2c.bitmaps.stored import Bitmaps, load_bitmaps
from qcow2c.format import layout
from qcow2c.format.header import Header
from qcow2c.format.records import BitmapRecord
from qcow2c.storage.sources import Memory

KIB, MIB = 1024, 1 << 20


def new_image(size: int = MIB, **options: object) -> bytearray:
    data = bytearray()
    qcow2c.create(data, size, **{"cluster_size": 4096, **options})
    return data


def change(data: bytearray, *acts: Callable[[BitmapEdit], object]) -> None:
    with qcow2c.open(data, "r+") as image, image.engine.changing_bitmaps() as edit:
        for act in acts:
            act(edit)
    assert qcow2c.check(bytes(data)).exit_code == 0


def bitmaps(data: bytearray) -> Bitmaps:
    store = Memory(bytes(data))
    return load_bitmaps(store, Header.load(store))


def dirty(data: bytearray, name: str) -> list[tuple[int, int]]:
    return list(bitmaps(data).find(name).ranges())


def with_writes(data: bytearray, *writes: tuple[int, int]) -> None:
    with qcow2c.open(data, "r+") as image:
        for offset, length in writes:
            image.pwrite(b"x" * length, offset)


def patched(data: bytearray, record: BitmapRecord, index: int, entry: int) -> bytearray:
    """Return an image with another entry in the table of a bitmap."""
    at = record.bitmap_table_offset + index * 8
    image = bytearray(data)
    image[at : at + 8] = layout.stored_integer(entry, 8)
    return image


def marked(data: bytearray, name: str) -> bytearray:
    """Return an image in which a bitmap is in use."""
    image = bytearray(data)
    span = bitmaps(data).find(name).record.span
    image[span.offset + 15] |= 1
    return image
