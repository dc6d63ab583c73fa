"""Damage as it happens to images: tables zeroed or overwritten, files cut off, pointers that cross.

Each kind is an edit of a whole image, found by its name. `rest` is drawn from a fixed seed.
"""

from __future__ import annotations

import random

from .patch import (
    COPIED,
    Edit,
    cluster_size,
    flipped,
    get,
    l1,
    l1_entry_at,
    l2,
    l2_table_at,
    put,
    refcount,
    set_bits,
    to,
    u64,
    with_bits,
)

OFFSET = 0x00FFFFFFFFFFFE00
DIRTY, CORRUPT = 1, 2


def _over(place: str, content: str) -> Edit:
    """Overwrite a table or the rest of the file."""

    def edit(image: bytearray) -> None:
        size = cluster_size(image)
        at = {
            "l1": get(image, "l1_table_offset"),
            "l2": l2_table_at(image, 0),
            "refcount table": get(image, "refcount_table_offset"),
            "refcount block": u64(image, get(image, "refcount_table_offset")),
        }[place]
        length = {"sector": 512}.get(content, get(image, "l1_size") * 8 if place == "l1" else size)
        new = random.Random(length).randbytes(length) if content == "random" else bytes(length)
        put(at, new)(image)

    return edit


def _points_to(place: str) -> Edit:
    """Let the second guest cluster, as written, name a cluster of metadata."""

    def edit(image: bytearray) -> None:
        at = {
            "l1": get(image, "l1_table_offset"),
            "l2": l2_table_at(image, 0),
            "refcount table": get(image, "refcount_table_offset"),
            "refcount block": u64(image, get(image, "refcount_table_offset")),
            "header": 512,
        }[place]
        l2(_second(image), to(at | COPIED))(image)

    return edit


def _plain(image: bytearray) -> list[int]:
    """Return the first guest clusters that are plain data."""
    width = 16 if get(image, "version") > 2 and get(image, "incompatible") & 16 else 8
    table, count = l2_table_at(image, 0), cluster_size(image) // width
    words = [u64(image, table + width * index) for index in range(count)]
    return [index for index, word in enumerate(words) if word & OFFSET and not word >> 62 & 1]


def _second(image: bytearray) -> int:
    found = _plain(image)
    return found[min(1, len(found) - 1)]


def _crossed(image: bytearray) -> None:
    """Let two guest clusters name one host cluster."""
    first, second = _plain(image)[0], _second(image)
    l2(second, to(u64(image, _entry_at(image, first))))(image)


def _entry_at(image: bytearray, index: int) -> int:
    width = 16 if get(image, "version") > 2 and get(image, "incompatible") & 16 else 8
    return l2_table_at(image, 0) + width * index


def _crossed_tables(image: bytearray) -> None:
    """Let two L1 entries name one L2 table."""
    if get(image, "l1_size") > 1:
        put(l1_entry_at(image, 1), bytes(image[l1_entry_at(image, 0) :][:8]))(image)


def _shorter(share: float) -> Edit:
    def edit(image: bytearray) -> None:
        del image[int(len(image) * share) :]

    return edit


def _on_second(**how: int) -> Edit:
    def edit(image: bytearray) -> None:
        index = _second(image)
        if "bits" in how:
            l2(index, with_bits(how["bits"]))(image)
        elif "flip" in how:
            l2(index, flipped(how["flip"]))(image)
        else:
            l2(index, to(how["to"]))(image)

    return edit


def _second_refcount(value: int) -> Edit:
    def edit(image: bytearray) -> None:
        host = (u64(image, _entry_at(image, _second(image))) & OFFSET) // cluster_size(image)
        refcount(host, value)(image)

    return edit


def _leaked_tail(image: bytearray) -> None:
    """Append a cluster with contents and a refcount that nothing refers to."""
    size = cluster_size(image)
    image.extend(bytes(-len(image) % size))
    refcount(len(image) // size, 1)(image)
    image.extend(b"tail" * (size // 4))


DAMAGE: dict[str, Edit] = {
    "L1 table zeroed": _over("l1", "zeros"),
    "L1 entry zeroed": l1(0, to(0)),
    "L1 entry with reserved bits": l1(0, with_bits(16)),
    "L1 entry past the end": l1(0, with_bits(1 << 50)),
    "L1 table overwritten": _over("l1", "random"),
    "L2 table zeroed": _over("l2", "zeros"),
    "L2 table overwritten": _over("l2", "random"),
    "sector of an L2 table zeroed": _over("l2", "sector"),
    "L2 entry zeroed": _on_second(to=0),
    "L2 entry with reserved bits": _on_second(bits=16),
    "L2 entry past the end": _on_second(bits=1 << 50),
    "L2 entry misaligned": _on_second(bits=512),
    "misaligned zero cluster": _on_second(bits=513),
    "copied bit flipped": _on_second(flip=COPIED),
    "refcount block zeroed": _over("refcount block", "zeros"),
    "refcount block overwritten": _over("refcount block", "random"),
    "refcount table zeroed": _over("refcount table", "zeros"),
    "refcount table overwritten": _over("refcount table", "random"),
    "refcount table lost": put(48, (1 << 40).to_bytes(8, "big")),
    "no refcount table": put(56, bytes(4)),
    "refcount of data 0": _second_refcount(0),
    "refcount of data 1 too high": _second_refcount(3),
    "leaked cluster behind all": _leaked_tail,
    "two guest clusters, one host cluster": _crossed,
    "two L1 entries, one L2 table": _crossed_tables,
    "data on the L1 table": _points_to("l1"),
    "data on an L2 table": _points_to("l2"),
    "data on the refcount table": _points_to("refcount table"),
    "data on a refcount block": _points_to("refcount block"),
    "data on the header": _points_to("header"),
    "file cut to a half": _shorter(0.5),
    "file cut by a little": _shorter(0.97),
    "marked dirty": set_bits("incompatible", DIRTY),
    "marked corrupt": set_bits("incompatible", CORRUPT),
}
"""Every kind of damage; that of features is only for version 3."""
