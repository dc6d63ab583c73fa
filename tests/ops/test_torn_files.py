"""Files that end within a cluster, as QEMU leaves them: what they lack is zeros for every command, and it is mended."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import qcow2c
from qcow2c.errors import CorruptData, CorruptMetadata, Span, StoreError
from qcow2c.format.header import Header
from qcow2c.format.layout import words
from qcow2c.ops import bitmaps
from qcow2c.storage.sources import Memory

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
CLUSTER = 64 * KIB


def header_of(data: bytearray) -> Header:
    return Header.load(Memory(bytes(data)))


def torn(size: int = 64 * GIB, kept: int = 8) -> bytearray:
    """Return an image of which only `kept` bytes of the L1 table are in the file, whose last cluster that is."""
    data = bytearray()
    qcow2c.create(data, size)
    header = header_of(data)
    assert header.l1_table_offset + CLUSTER == len(data)
    del data[header.l1_table_offset + kept :]
    return data


def test_it_reads_as_zeros_and_maps_as_nothing() -> None:
    data = bytes(torn())
    with qcow2c.open(data) as image:
        assert image.pread(CLUSTER, 64 * GIB - CLUSTER) == bytes(CLUSTER)
    assert [(extent.length, extent.data) for extent in qcow2c.map(data)] == [(64 * GIB, False)]
    assert qcow2c.measure(data).required > 0


def test_check_dump_and_repair_find_nothing() -> None:
    data = torn()
    assert qcow2c.check(bytes(data)).exit_code == 0
    with qcow2c.dump(bytes(data)) as dump:
        list(dump.text())
        assert dump.exit_code == 0
    with qcow2c.dump(bytes(data)) as dump:
        assert "past the end" not in "".join(dump.text(dump.question(guest_offset=64 * GIB - 1)))
    before = bytes(data)
    qcow2c.repair(data, "all")
    assert bytes(data) == before


def added(data: bytearray) -> None:
    bitmaps.add(data, "b")


CHANGES: dict[str, Callable[[bytearray], object]] = {
    "larger": lambda data: qcow2c.resize(data, 65 * GIB),
    "much larger": lambda data: qcow2c.resize(data, 8192 * GIB),
    "smaller": lambda data: qcow2c.resize(data, 64 * KIB, shrink=True),
    "refcounts": lambda data: qcow2c.amend(data, refcount_bits=32),
    "bitmap": added,
    "snapshot": lambda data: qcow2c.snapshots.create(data, "s"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_it_is_changed_like_any_other_and_ends_with_a_whole_cluster(change: Callable[[bytearray], object]) -> None:
    data = torn()
    change(data)
    assert len(data) % CLUSTER == 0
    assert qcow2c.check(bytes(data)).exit_code == 0
    with qcow2c.open(bytes(data)) as image:
        assert image.pread(100, image.size() - 100) == bytes(100)


def test_a_grown_disk_has_all_of_its_l1_table_in_the_file() -> None:
    data = torn(64 * MIB)
    qcow2c.resize(data, 64 * GIB)
    header = header_of(data)
    assert header.l1_size == 128 and len(data) >= header.l1_table_offset + 128 * 8


def test_every_length_of_the_last_cluster_reads_alike() -> None:
    for kept in (1, 7, 8, 9, 1023, 1024):
        data = torn(kept=kept)
        assert qcow2c.check(bytes(data)).exit_code == 0
        with qcow2c.open(data, "r+") as image:
            image.pwrite(b"end", 64 * GIB - 3)
            assert image.pread(3, 64 * GIB - 3) == b"end"
        assert qcow2c.check(bytes(data)).exit_code == 0


def test_a_table_that_ends_a_cluster_behind_the_file_is_damage() -> None:
    data = torn()
    del data[header_of(data).l1_table_offset :]
    assert qcow2c.check(bytes(data)).exit_code == 2
    with qcow2c.open(bytes(data)) as image, pytest.raises(CorruptMetadata, match="L1 entry 0 is past the end"):
        image.pread(1, 0)
    with pytest.raises(CorruptMetadata):
        qcow2c.open(data, "r+")
    with qcow2c.dump(bytes(data)) as dump:
        assert "past the end of the file" in "".join(dump.text(dump.question(guest_offset=0)))


def test_the_copied_bit_of_a_torn_table_is_repaired() -> None:
    data = bytearray()
    qcow2c.create(data, 64 * MIB)
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"x" * CLUSTER, 0)
    at, end = header_of(data).l1_table_offset, len(data)
    data += data[at : at + 8]  # A copy of the L1 table, of which the file has nothing but its only entry.
    data[end] &= 0x7F
    data[40:48] = end.to_bytes(8)
    block = words(bytes(data[at - 2 * CLUSTER : at - 2 * CLUSTER + 8]))[0]
    data[block + 2 * (at // CLUSTER) + 1], data[block + 2 * (end // CLUSTER) + 1] = 0, 1
    assert qcow2c.check(bytes(data)).exit_code == 2
    qcow2c.repair(data, "all")
    assert qcow2c.check(bytes(data)).exit_code == 0


def test_what_was_flushed_or_closed_ends_with_a_whole_cluster() -> None:
    data = bytearray()
    qcow2c.create(data, MIB)
    with qcow2c.open(data, "r+") as image:
        image.pwrite(b"hello", 0)
        image.flush()
        assert image.pread(6, 0) == b"hello\0"
    assert len(data) % CLUSTER == 0
    with qcow2c.open(data, "r+") as image:
        image.write_compressed(b"a" * CLUSTER, CLUSTER)
    assert len(data) % CLUSTER == 0
    assert qcow2c.check(bytes(data)).exit_code == 0


def test_opening_for_writing_alone_changes_nothing() -> None:
    data = torn()
    before = bytes(data)
    with qcow2c.open(data, "r+"):
        pass
    assert bytes(data) == before


# --- cut while they are open ----------------------------------------------------------------------------------------


def three(folder: Path) -> dict[str, Path]:
    """Make an image, one over it, and one with a data file; each holds a cluster of data at its end."""
    paths = {name: folder / name for name in ("image", "over", "split", "data")}
    qcow2c.create(paths["image"], 4 * CLUSTER)
    qcow2c.create(paths["over"], 4 * CLUSTER, backing_file="image", backing_fmt="qcow2")
    qcow2c.create(paths["split"], 4 * CLUSTER, data_file=str(paths["data"]))
    for name in ("image", "split"):
        with qcow2c.open(paths[name], "r+") as disk:
            disk.pwrite(b"x", 0)
            disk.flush()  # The L2 table has its place.
            disk.pwrite(b"x" * CLUSTER, 3 * CLUSTER)
    return paths


@pytest.mark.parametrize(("opened", "cut"), [("image", "image"), ("over", "image"), ("split", "data")])
def test_a_file_that_is_cut_inside_a_cluster_while_it_is_open_is_an_error(
    opened: str, cut: str, tmp_path: Path
) -> None:
    paths = three(tmp_path)
    size = paths[cut].stat().st_size
    with qcow2c.open(paths[opened]) as image, qcow2c.open(paths[opened], on_error="zero") as salvaging:
        assert image.pread(CLUSTER, 3 * CLUSTER) == b"x" * CLUSTER
        os.truncate(paths[cut], size - CLUSTER // 2)
        assert image.pread(CLUSTER // 2, 3 * CLUSTER) == b"x" * (CLUSTER // 2)
        for length, offset in ((CLUSTER, 3 * CLUSTER), (1, 4 * CLUSTER - 1), (4 * CLUSTER, 0)):
            with pytest.raises(CorruptData, match=f"cut off since it was opened: it had {size} bytes") as caught:
                image.pread(length, offset)
            assert caught.value.guest is not None and caught.value.guest.end == 4 * CLUSTER
        for use in (lambda: qcow2c.convert(image, tmp_path / "copy"), lambda: list(image.extents())):
            with pytest.raises(StoreError, match="was cut off since it was opened"):
                use()
        assert salvaging.pread(CLUSTER, 3 * CLUSTER) == b"x" * (CLUSTER // 2) + bytes(CLUSTER // 2)
        assert [lost.guest for lost in salvaging.salvaged] == [Span(3 * CLUSTER + CLUSTER // 2, CLUSTER // 2)]


def test_a_table_that_is_cut_while_the_image_is_open_is_an_error(tmp_path: Path) -> None:
    paths = three(tmp_path)
    with qcow2c.open(paths["split"]) as image:  # The L2 table is the last cluster of its file.
        os.truncate(paths["split"], paths["split"].stat().st_size - 512)
        with pytest.raises(CorruptMetadata, match="the L2 table was cut off since"):
            image.pread(1, 0)


def test_a_file_that_was_cut_before_ends_in_zeros(tmp_path: Path) -> None:
    paths = three(tmp_path)
    os.truncate(paths["image"], paths["image"].stat().st_size - CLUSTER // 2)
    with qcow2c.open(paths["over"]) as image:
        assert image.pread(CLUSTER, 3 * CLUSTER) == b"x" * (CLUSTER // 2) + bytes(CLUSTER // 2)
