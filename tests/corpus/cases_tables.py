"""L1 and L2 tables, standard and extended: entries that lie about offsets, flags and bitmaps."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from .case import HostileCase, either, error, opens
from .patch import (
    COPIED,
    ZERO,
    Edit,
    Make,
    cluster_size,
    field,
    get,
    l1,
    l2,
    l2_bitmap,
    l2_table_at,
    patched,
    put_u64,
    to,
    u64,
    with_bits,
    without_bits,
)
from .scratch import Scratch, header

# Guest clusters of the seed "v3" (4 KiB clusters): 0-2 and 512-513 hold data, 768-769 are zero clusters.
DATA, ZEROES = 1, 768


def offset_of(what: str) -> Callable[[bytearray], int]:
    if what == "header":
        return lambda _image: 0
    if what == "the L2 itself":
        return lambda image: l2_table_at(image, 0)
    if what == "a refcount block":
        return lambda image: u64(image, get(image, "refcount_table_offset"))
    return lambda image: get(image, what)


def data_in(what: str) -> Edit:
    """Let a guest data cluster lie where metadata lies."""
    return lambda image: l2(DATA, to(offset_of(what)(image) | COPIED))(image)


def second_l2_is_the_first(image: bytearray) -> None:
    l1(1, to(u64(image, get(image, "l1_table_offset"))))(image)


def two_guests_one_host(image: bytearray) -> None:
    at = l2_table_at(image, 0)
    put_u64(at + 8, u64(image, at))(image)


L1_ENTRIES = [
    opens("l1-entry-reserved-low", "v3", l1(0, with_bits(1)), check="corrupt"),
    opens("l1-entry-reserved-high", "v3", l1(0, with_bits(1 << 56)), check="corrupt"),
    opens("l1-entry-all-ones", "v3", l1(0, to(2**64 - 1))),
    opens("l1-entry-misaligned", "v3", l1(0, with_bits(0x200)), check="corrupt"),
    opens("l1-entry-only-copied", "v3", l1(0, to(COPIED))),
    opens("l1-entry-past-eof", "v3", l1(0, to(2**40 | COPIED)), check="corrupt"),
    opens("l1-entry-highest-offset", "v3", l1(0, to(2**56 - 4096 | COPIED)), check="corrupt"),
    opens("l1-entry-names-the-header", "v3", l1(1, to(1)), check="corrupt"),
    opens("l1-entry-not-copied", "v3", l1(0, without_bits(COPIED)), check="corrupt"),
    opens("l1-two-entries-one-l2", "v3", second_l2_is_the_first, check="corrupt"),
]

L2_ENTRIES = [
    opens("l2-entry-reserved-low", "v3", l2(DATA, with_bits(2)), check="corrupt"),
    opens("l2-entry-reserved-high", "v3", l2(DATA, with_bits(1 << 61)), check="corrupt"),
    opens("l2-entry-misaligned", "v3", l2(DATA, with_bits(0x200)), check="corrupt"),
    opens("l2-entry-past-eof", "v3", l2(DATA, to(2**40 | COPIED)), check="corrupt"),
    opens("l2-entry-highest-offset", "v3", l2(DATA, to(2**56 - 4096 | COPIED)), check="corrupt"),
    opens("l2-entry-all-ones", "v3", l2(DATA, to(2**64 - 1))),
    opens("l2-entry-only-copied", "v3", l2(DATA, to(COPIED))),
    opens("l2-entry-not-copied", "v3", l2(DATA, without_bits(COPIED)), check="corrupt"),
    opens("l2-zero-misaligned", "v3", l2(ZEROES, to(0x200 | ZERO)), check="corrupt"),
    opens(
        "l2-zero-with-offset-in-use",
        "v3",
        lambda image: l2(ZEROES, to(u64(image, l2_table_at(image, 0) + 8) | ZERO))(image),
        check="corrupt",
    ),
    opens("l2-zero-flag-in-v2", "v2", l2(DATA, with_bits(ZERO))),
    opens("l2-zero-flag-alone-in-v2", "v2", l2(40, to(ZERO))),
    opens("l2-two-guests-one-host", "v3", two_guests_one_host, check="corrupt"),
    *(
        opens(f"l2-data-in-{what.replace(' ', '-')}", "v3", data_in(what), check="corrupt")
        for what in ("l1_table_offset", "refcount_table_offset", "the L2 itself", "a refcount block")
    ),
    opens("l2-data-in-header", "v3", data_in("header")),
    opens(
        "l2-data-last-cluster-half-in-file",
        "v3",
        lambda image: image.__delitem__(slice(len(image) - 2048, None)),
    ),
]

# Guest clusters of the seed "extl2" (16 KiB clusters): 0 scattered subclusters, 2 data, 3 zero, 4 compressed.
EXTENDED = [
    opens("extended-both-bits", "extl2", l2_bitmap(0, with_bits(2 << 32)), check="corrupt"),
    opens("extended-alloc-without-offset", "extl2", l2_bitmap(20, to(1)), check="corrupt"),
    opens("extended-all-bits-without-offset", "extl2", l2_bitmap(20, to(2**64 - 1)), check="corrupt"),
    opens("extended-compressed-with-bitmap", "extl2", l2_bitmap(4, to(1)), check="corrupt"),
    opens("extended-standard-zero-flag", "extl2", l2(2, with_bits(ZERO))),
    opens("extended-offset-without-bits", "extl2", l2_bitmap(2, to(0))),
    opens("extended-misaligned", "extl2", l2(2, with_bits(0x1000)), check="corrupt"),
    error("extended-cluster-bits-13", "extl2", field("cluster_bits", 13)),
    either("extended-said-to-be-standard", "extl2", field("incompatible", 0)),
]

ENTRIES = 4 * 2**20


def big_l1(
    cluster_bits: int,
    l1_word: Callable[[int, int], int],
    l2_words: Callable[[int], list[int]],
    *,
    entries: int = ENTRIES,
    file_clusters: int = 0,
) -> Make:
    """Return a maker of an image whose L1 has `entries` words, made by l1_word(index, offset of the L2).

    Clusters: header, refcount table, one refcount block, one L2 table, one data cluster, the L1.
    """

    def make(folder: Path) -> Path:
        cluster = 1 << cluster_bits
        table, block, l2_at, data, first_l1 = (cluster * index for index in range(1, 6))
        path = folder / "image.qcow2"
        with path.open("wb") as file:
            file.write(
                header(
                    cluster_bits=cluster_bits,
                    size=entries * (cluster // 8) * cluster,
                    l1_entries=entries,
                    l1_offset=first_l1,
                    table_offset=table,
                )
                + bytes(8)
            )
            file.seek(table)
            file.write(struct.pack(">Q", block))
            file.seek(block)
            file.write(struct.pack(">5H", 1, 1, 1, 0xFFFF, 0xFFFF))
            file.seek(l2_at)
            file.write(struct.pack(f">{cluster // 8}Q", *l2_words(data)))
            file.seek(data)
            file.write(b"\xaa" * cluster)
            file.seek(first_l1)
            for start in range(0, entries, 65536):
                count = min(65536, entries - start)
                file.write(struct.pack(f">{count}Q", *(l1_word(start + index, l2_at) for index in range(count))))
            file.truncate(max(first_l1 + entries * 8, file_clusters * cluster))
        return path

    return make


def empty(bits: int) -> Callable[[int], list[int]]:
    return lambda _data: [0] * (1 << bits - 3)


def first_only(bits: int) -> Callable[[int], list[int]]:
    return lambda data: [data] + [0] * ((1 << bits - 3) - 1)


def alternating(bits: int) -> Callable[[int], list[int]]:
    def words(data: int) -> Iterator[int]:
        for index in range(1 << bits - 3):
            yield 0 if index % 2 else data

    return lambda data: list(words(data))


def in_holes(index: int, _: int) -> int:
    """Name a cluster of the hole behind the L1, another for each entry."""
    return (5 + ENTRIES * 8 // 4096 + index) * 4096


HEAVY = [
    HostileCase("l1-4m-entries-one-empty-l2", big_l1(16, lambda _, at: at, empty(16)), heavy=True),
    HostileCase("l1-4m-entries-one-small-l2", big_l1(9, lambda _, at: at, first_only(9)), heavy=True),
    HostileCase(
        "l1-4m-entries-distinct-l2-in-holes",
        big_l1(12, in_holes, empty(12), file_clusters=5 + ENTRIES * 8 // 4096 + ENTRIES),
        heavy=True,
    ),
    HostileCase("l1-4m-entries-past-eof", big_l1(16, lambda index, _: 2**50 + index * 65536, empty(16)), heavy=True),
    HostileCase(
        "l1-64k-entries-naming-4096-extents",
        big_l1(16, lambda _, at: at, alternating(16), entries=65536),
        heavy=True,
    ),
]


def l1_in_last_byte(image: bytearray) -> None:
    """The L1 starts a cluster of which the file holds one byte."""
    field("l1_table_offset", len(image) + -len(image) % cluster_size(image))(image)
    image.extend(bytes(-len(image) % cluster_size(image) + 1))


def many_l2_entries_one_cluster(folder: Path) -> Path:
    """One 2 MiB L2 table, 262,144 entries: each names the same data cluster."""
    image = Scratch(size=2**18 * 2**21, cluster_bits=21)
    at = image.add_plain(0, b"data")
    image.entries = dict.fromkeys(range(2**18), at)
    return image.write(folder)


CASES: list[HostileCase] = [
    *L1_ENTRIES,
    *L2_ENTRIES,
    *EXTENDED,
    *HEAVY,
    HostileCase("l2-262144-entries-one-cluster", many_l2_entries_one_cluster, heavy=True),
    HostileCase(
        "extended-l2-of-a-512-byte-subcluster-image-cut",
        patched("extl2", lambda image: image.__delitem__(slice(l2_table_at(image, 0) + 24, None))),
    ),
    opens("l1-in-the-last-byte-of-the-file", "v3", l1_in_last_byte),
]
