"""Reference counts: tables that lie, and counts that are wrong at every width."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from .case import HostileCase, Verdict, either, opens
from .patch import (
    COPIED,
    Make,
    cluster_size,
    field,
    get,
    grow,
    l2_table_at,
    put,
    put_u64,
    refcount,
    refcount_table,
    set_bits,
    to,
    u64,
    with_bits,
)
from .scratch import Scratch, header

# The seed "v3": cluster 0 header, 1 refcount table, 2 refcount block, 3 L1, 4 and on L2 tables and data.
DATA_CLUSTER = 5


def block_is_the_header(image: bytearray) -> None:
    """Second refcount block = first: one block under two names."""
    at = get(image, "refcount_table_offset")
    put_u64(at + 8, u64(image, at))(image)


def block_at(field_name: str) -> Callable[[bytearray], None]:
    return lambda image: refcount_table(0, to(get(image, field_name)))(image)


def data_cluster(image: bytearray) -> int:
    """Return the host cluster that guest cluster 0 names."""
    return (u64(image, l2_table_at(image, 0)) & 0x00FFFFFFFFFFFE00) // cluster_size(image)


def set_data_count(value: int) -> Callable[[bytearray], None]:
    return lambda image: refcount(data_cluster(image), value)(image)


TABLES = [
    opens("refcount-block-reserved-bits", "v3", refcount_table(0, with_bits(1)), check="corrupt"),
    opens("refcount-block-misaligned", "v3", refcount_table(0, with_bits(0x200))),
    opens("refcount-block-past-eof", "v3", refcount_table(0, to(2**40))),
    opens("refcount-block-above-2^56", "v3", refcount_table(0, to(2**60))),
    opens("refcount-block-above-2^63", "v3", refcount_table(0, to(2**64 - 4096))),
    opens("refcount-block-none", "v3", refcount_table(0, to(0)), check="corrupt"),
    opens("refcount-block-under-two-names", "v3", block_is_the_header, check="corrupt"),
    opens("refcount-block-is-the-table", "v3", block_at("refcount_table_offset")),
    opens("refcount-block-is-the-l1", "v3", block_at("l1_table_offset")),
    opens(
        "refcount-blocks-far-away",
        "v3",
        *(refcount_table(index, to(2**40 + index * 4096)) for index in range(1, 512)),
        check="corrupt",
    ),
    opens("refcount-last-table-entry-far-away", "v3", refcount_table(511, to(2**62))),
]

WRONG = [
    opens("count-leak", "v3", grow(15 * 4096), refcount(14, 1), check="leaks"),
    opens("count-too-high", "v3", set_data_count(2)),
    opens("count-zero", "v3", set_data_count(0), check="corrupt"),
    opens("count-max", "v3", set_data_count(65535)),
    opens("count-of-header-zero", "v3", refcount(0, 0), check="corrupt"),
    opens("count-of-refcount-table-zero", "v3", refcount(1, 0), check="corrupt"),
    opens("count-of-refcount-block-zero", "v3", refcount(2, 0), check="corrupt"),
    opens("count-all-zero", "v3", put(0x2000, bytes(4096)), check="corrupt"),
    opens("count-all-ones", "v3", put(0x2000, b"\xff" * 4096)),
    opens("count-far-past-eof", "v3", refcount(2047, 7), check="clean"),
    opens("count-wrong-and-dirty", "v3", set_data_count(0), set_bits("incompatible", 1), check="corrupt"),
    opens("count-1-bit-zero", "rc1", set_data_count(0), check="corrupt"),
    opens("count-64-bit-max", "rc64", set_data_count(2**64 - 1)),
    opens("count-64-bit-high-bit", "rc64", set_data_count(2**63)),
    opens("count-compressed-zero", "zlib", *(refcount(cluster, 0) for cluster in range(5, 12)), check="corrupt"),
    opens("count-of-shared-too-low", "snapshots", set_data_count(1)),
]


def wide(order: int, shared: int, count: int) -> Make:
    """Return a maker: `shared` guest clusters on a host cluster whose refcount (2^order bits) is `count`."""

    def make(folder: Path) -> Path:
        image = Scratch(size=64 * 4096, refcount_order=order)
        at = image.add_plain(0, b"shared")
        image.entries = {guest: at if count != 1 else at | COPIED for guest in range(shared)}
        image.counts[at // 4096] = count
        return image.write(folder)

    return make


def width_case(name: str, order: int, shared: int, count: int, check: Verdict) -> HostileCase:
    return HostileCase(f"width-{1 << order}-{name}", wide(order, shared, count), expect="opens", check=check)


WIDTHS = [
    width_case("overflow", 0, 2, 1, "corrupt"),
    width_case("overflow", 1, 4, 3, "corrupt"),
    width_case("full", 1, 3, 3, "clean"),
    width_case("too-low", 2, 9, 8, "corrupt"),
    width_case("overflow", 2, 16, 15, "corrupt"),
    width_case("leak", 3, 2, 255, "leaks"),
    width_case("leak", 4, 2, 65535, "leaks"),
    width_case("leak", 5, 2, 2**32 - 1, "leaks"),
    width_case("leak", 6, 2, 2**64 - 1, "leaks"),
    width_case("zero", 6, 2, 0, "corrupt"),
]


def full_table_of_one_block(folder: Path) -> Path:
    """A refcount table of 8 MiB whose million entries name one block of leaks."""
    cluster = 65536
    path = folder / "image.qcow2"
    with path.open("wb") as file:
        file.write(
            header(
                cluster_bits=16,
                size=2**29,
                l1_entries=1,
                l1_offset=cluster,
                table_offset=3 * cluster,
                table_clusters=128,
            )
            + bytes(8)
        )
        file.seek(2 * cluster)
        file.write(b"\0\1" * (cluster // 2))
        file.seek(3 * cluster)
        file.write(struct.pack(">Q", 2 * cluster) * (128 * cluster // 8))
    return path


def full_table_of_holes(folder: Path) -> Path:
    """A refcount table of 8 MiB, each entry another cluster in a hole of the file: 64 GiB apparent size."""
    cluster = 65536
    path = folder / "image.qcow2"
    entries = 128 * cluster // 8
    with path.open("wb") as file:
        file.write(
            header(
                cluster_bits=16,
                size=2**29,
                l1_entries=1,
                l1_offset=cluster,
                table_offset=2 * cluster,
                table_clusters=128,
            )
            + bytes(8)
        )
        file.seek(2 * cluster)
        file.write(struct.pack(f">{entries}Q", *(cluster * (130 + index) for index in range(entries))))
        file.truncate(cluster * (130 + entries))
    return path


def sparse_file_with_all_in_one_corner(folder: Path) -> Path:
    """A file of 8 TiB apparent size, all hole but the first clusters, with one guest cluster at its end."""
    image = Scratch(size=16 * 65536, cluster_bits=16)
    image.add_plain(0, b"first")
    image.entries[1] = (2**43 - 65536) | COPIED
    path = image.write(folder)
    with path.open("r+b") as file:
        file.truncate(2**43)
    return path


HEAVY = [
    HostileCase("refcount-table-of-a-million-names", full_table_of_one_block, expect="opens", heavy=True),
    HostileCase("refcount-table-of-holes", full_table_of_holes, expect="opens", heavy=True),
    HostileCase("file-of-8-tib", sparse_file_with_all_in_one_corner, expect="opens", heavy=True),
    either("refcount-blocks-named-by-ones", "v3", put(0x1000, b"\xff" * 4096)),
    either(
        "refcount-table-at-end-of-file",
        "v3",
        lambda image: field("refcount_table_offset", len(image) // 4096 * 4096)(image),
    ),
]

CASES: list[HostileCase] = [*TABLES, *WRONG, *WIDTHS, *HEAVY]
