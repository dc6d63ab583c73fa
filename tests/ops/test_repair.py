"""Repair: what could be read is still there, nothing that may be data is freed, and all of it can be taken back."""

from __future__ import annotations

import random
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import qcow2c
from qcow2c.errors import LimitExceeded, Qcow2Error, StoreError, UsageError
from qcow2c.format import derived
from qcow2c.format.header import Header
from qcow2c.ops.repair import RepairResult, undo_repair
from qcow2c.recovery import changes, plan
from qcow2c.recovery.survey import Survey
from qcow2c.references.stored_refcounts import StoredRefcounts
from qcow2c.references.walk import Walk
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import LocalFile, Memory, WritableMemory
from qcow2c.storage.store import Buffer
from qcow2c.structs import Limit
from tests.building import L2_COPIED, Builder
from tests.corpus.case import HostileCase
from tests.corpus.damage import DAMAGE
from tests.corpus.hostile import CASES, make_case
from tests.corpus.patch import (
    COMPRESSED,
    COPIED,
    cluster_size,
    get,
    l1,
    l2,
    l2_bitmap,
    put,
    refcount,
    seed_bytes,
    set_bits,
    to,
    u64,
    with_bits,
    without_bits,
)

SEEDS = ("v3", "snapshots")
PACKED_SEEDS = ("zlib", "bitmaps", "v2", "rc1", "extl2")
WITHOUT_PLAIN_ENTRIES = [name for name in DAMAGE if name.startswith(("L1", "L2 table", "sector", "refcount t", "file"))]

Guest = dict[tuple[int, int], bytes]


def readable(image: bytes | Path) -> Guest | None:
    """Return what can be read of the disk and its snapshots, by number and offset; None where nothing can."""
    found: Guest = {}
    try:
        with qcow2c.open(image, backing=False) as opened:
            states = [opened]
            for snapshot in opened.snapshots.list():
                try:
                    states.append(snapshot.open())
                except Qcow2Error:
                    states.append(opened)
            for number, state in enumerate(states):
                for at in range(0, min(state.size(), 16 << 20), 1 << 16):
                    found |= pieces(state, number, at, min(state.size(), at + (1 << 16)))
    except Qcow2Error:
        return None
    return found


def pieces(state: qcow2c.Image, number: int, start: int, end: int) -> Guest:
    """Return a range as a whole, or, where that cannot be read, what can, cluster by cluster."""
    try:
        return {(number, start): state.pread(end - start, start)}
    except Qcow2Error:
        size = state.geometry.cluster_size
        if end - start <= size:
            return {}
        return {
            key: data
            for at in range(start, end, size)
            for key, data in pieces(state, number, at, min(end, at + size)).items()
        }


def still_there(before: Guest | None, after: Guest | None) -> bool:
    """Tell whether all that could be read reads the same: more may be readable, and in larger pieces, now."""
    if before is None:
        return True
    assert after is not None
    for (number, at), data in before.items():
        start = at if (number, at) in after else at // (1 << 16) * (1 << 16)
        if after[number, start][at - start :][: len(data)] != data:
            return False
    return True


def unfreed(before: bytes, after: bytes) -> bool:
    """Tell whether every cluster with a refcount and contents has a refcount still; contents must be the same."""
    walks = [Walk(Memory(data), Header.load(Memory(data))) for data in (before, after)]
    counts = [StoredRefcounts(walk) for walk in walks]
    size = walks[0].geometry.cluster_size
    clusters = len(before) // size
    old, new = (count.window(0, clusters) for count in counts)
    return all(new[cluster] for cluster in range(clusters) if old[cluster] and any(before[cluster * size :][:size]))


def damaged(seed: str, name: str) -> bytes:
    image = bytearray(seed_bytes(f"{seed}.qcow2"))
    DAMAGE[name](image)
    return bytes(image)


def prove(path: Path, what: str) -> RepairResult:
    """Repair a file, and hold the result to all that is promised of every repair."""
    before = path.read_bytes()
    guest = readable(before)
    undo = path.with_name("undo")
    undo.unlink(missing_ok=True)
    planned = qcow2c.repair(path, what, dry_run=True, undo=undo)
    assert path.read_bytes() == before
    assert not undo.exists()
    result = qcow2c.repair(path, what, undo=undo)
    after = path.read_bytes()
    assert (result.actions, result.action_count) == (planned.actions, planned.action_count)
    assert list(result.after.messages) == list(planned.after.messages) == list(qcow2c.check(after).messages)
    assert result.before.check_errors or result.after.corruptions <= result.before.corruptions
    assert still_there(guest, readable(after))
    if result.doubts and not any(rule.startswith("refcount_table") for rule in result.before.broken):
        assert unfreed(before, after)
    again = qcow2c.repair(path, what)
    assert path.read_bytes() == after, [str(action) for action in again.actions]
    assert undo.exists() == (after != before)
    if undo.exists():
        assert undo_repair(path, undo)
        assert path.read_bytes() == before
        assert not undo_repair(path, undo)
    return result


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("seed", SEEDS)
def test_no_repair_loses_anything(seed: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    path.write_bytes(damaged(seed, name))
    prove(path, "all")


@pytest.mark.parametrize("name", WITHOUT_PLAIN_ENTRIES)
@pytest.mark.parametrize("seed", PACKED_SEEDS)
def test_no_repair_of_other_images_loses_anything(seed: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    path.write_bytes(damaged(seed, name))
    prove(path, "all")


@pytest.mark.parametrize("case", [case for case in CASES if not case.heavy][::9], ids=lambda case: case.name)
def test_malformed_images_lose_nothing_either(case: HostileCase, tmp_path: Path) -> None:
    path = make_case(case, tmp_path)
    assert path.is_file() and path.stat().st_size <= 16 << 20, "it is read as a whole"
    before = path.read_bytes()
    try:
        prove(path, "all")
    except Qcow2Error:
        assert path.read_bytes() == before


# --- what is repaired -----------------------------------------------------------------------------------------------

REPAIRED = {
    "L1 entry with reserved bits": (0, 1),
    "L2 entry with reserved bits": (0, 1),
    "misaligned zero cluster": (1, 1),
    "copied bit flipped": (0, 1),
    "refcount block zeroed": (0, 14),
    "refcount table zeroed": (0, 13),
    "refcount table overwritten": (0, 525),
    "refcount table lost": (0, 13),
    "no refcount table": (0, 12),
    "refcount of data 0": (0, 1),
    "refcount of data 1 too high": (1, 0),
    "leaked cluster behind all": (1, 0),
}


@pytest.mark.parametrize(("name", "fixed"), REPAIRED.items(), ids=REPAIRED)
def test_what_can_be_told_is_repaired(name: str, fixed: tuple[int, int]) -> None:
    result = qcow2c.repair(image := bytearray(damaged("v3", name)), "all")
    assert (result.exit_code, result.leaks_fixed, result.corruptions_fixed) == (0, *fixed)
    if "zero cluster" not in name:  # Which it then is.
        assert readable(bytes(image)) == readable(seed_bytes("v3.qcow2"))
    assert not result.doubts
    assert not any(action.may_lose_data for action in result.actions)


LOST = {
    "L1 table zeroed": "what nothing refers to looks like L2 tables that were lost",
    "L1 entry zeroed": "what nothing refers to looks like L2 tables that were lost",
    "L2 table zeroed": "1 L2 tables hold nothing but zeros",
    "sector of an L2 table zeroed": "1 L2 tables hold nothing but zeros",
    "L2 entry zeroed": "1 gaps in L2 tables are as long as what nothing refers to",
    "L2 table overwritten": "265 table entries break the rule l2.reserved",
    "L2 entry past the end": "1 references lead past the end of the file",
    "two guest clusters, one host cluster": "1 host clusters are named for several guest clusters",
    "data on the L1 table": "1 clusters of metadata are also something else",
}


@pytest.mark.parametrize("what", ["leaks", "all"])
@pytest.mark.parametrize(("name", "doubt"), LOST.items(), ids=LOST)
def test_what_a_lost_table_may_have_named_is_kept(name: str, doubt: str, what: str) -> None:
    before = damaged("v3", name)
    result = qcow2c.repair(image := bytearray(before), what)
    assert doubt in result.doubts
    assert result.exit_code in (2, 3)
    assert result.after.leaks == result.clusters_kept > 0
    assert unfreed(before, bytes(image))
    kept = [action for action in result.actions if action.kind is plan.RepairKind.KEEP]
    assert sum(action.host.length for action in kept) == result.clusters_kept * cluster_size(before)


def test_data_loss_must_be_asked_for_and_is_told() -> None:
    image = bytearray(damaged("v3", "L1 table zeroed"))
    result = qcow2c.repair(image, "leaks", allow_data_loss=True)
    assert (result.exit_code, result.leaks_fixed) == (0, 10)
    assert all(action.may_lose_data for action in result.actions)
    assert "DATA MAY BE LOST" in str(result.actions[0])
    size = cluster_size(image)
    before = damaged("v3", "L1 table zeroed")
    assert all(
        image[action.host.offset :][: action.host.length] == before[action.host.offset :][: action.host.length]
        for action in result.actions
        if action.kind is plan.RepairKind.FREE
    )
    assert len(image) % size == len(before) % size


def test_two_owners_are_separated_by_the_next_write() -> None:
    image = bytearray(damaged("v3", "two guest clusters, one host cluster"))
    assert qcow2c.repair(image, "all").after.corruptions == 0
    before = readable(bytes(image))
    assert before is not None
    with qcow2c.open(image, "r+") as opened:
        size = opened.geometry.cluster_size
        first = next(at for at in range(0, opened.size(), size) if any(opened.pread(size, at)))
        opened.pwrite(b"one of the two", first)
    with qcow2c.open(bytes(image)) as opened:
        changed = [at for at in range(0, opened.size(), 512) if opened.pread(512, at) != piece(before, at)]
    assert changed == [first]


def piece(guest: Guest, at: int) -> bytes:
    key = at // (1 << 16) * (1 << 16)
    return guest[0, key][at - key :][:512]


def test_leaks_only_leaves_what_is_corrupt() -> None:
    image = bytearray(seed_bytes("v3.qcow2"))
    refcount(5, 3)(image)
    refcount(6, 0)(image)
    result = qcow2c.repair(image, "leaks")
    assert (result.exit_code, result.leaks_fixed, result.corruptions_fixed) == (2, 1, 0)
    assert [str(action) for action in result.actions] == ["lower-refcount bytes 0x5000..0x5fff: 3 -> 1 (1 references)"]
    result = qcow2c.repair(image, "all")
    assert (result.exit_code, result.leaks_fixed, result.corruptions_fixed) == (0, 0, 1)


def test_raising_and_lowering_in_one_sector_are_two_steps(tmp_path: Path) -> None:
    image = bytearray(seed_bytes("v3.qcow2"))
    refcount(5, 3)(image)
    refcount(6, 0)(image)
    path = tmp_path / "image.qcow2"
    path.write_bytes(image)
    assert prove(path, "all").exit_code == 0


@pytest.mark.parametrize("bit", ["dirty", "corrupt"])
def test_marks_are_cleared_when_the_image_is_sound(bit: str) -> None:
    image = bytearray(damaged("v3", f"marked {bit}"))
    result = qcow2c.repair(image, "leaks")
    assert get(image, "incompatible") == 0
    assert [action.kind for action in result.actions] == [plan.RepairKind.HEADER]
    assert result.exit_code == 0


def test_marks_stay_while_anything_is_wrong() -> None:
    image = bytearray(damaged("v3", "L2 entry past the end"))
    set_bits("incompatible", 3)(image)
    qcow2c.repair(image, "all")
    assert get(image, "incompatible") == 3


def test_the_corrupt_mark_stays_while_data_may_be_lost_and_the_dirty_one_would_have_it_freed() -> None:
    image = bytearray(damaged("v3", "L1 table zeroed"))
    set_bits("incompatible", 3)(image)
    assert qcow2c.repair(image, "all").exit_code == 3
    assert get(image, "incompatible") == 2


def test_refcounts_of_a_dirty_image_are_raised() -> None:
    image = bytearray(damaged("v3", "refcount of data 0"))
    set_bits("incompatible", 1)(image)
    assert qcow2c.repair(image, "all").exit_code == 0
    assert get(image, "incompatible") == 0


def test_unknown_autoclear_bits_go_with_the_first_change_and_only_then() -> None:
    image = bytearray(seed_bytes("v3.qcow2"))
    set_bits("autoclear", 1 << 40)(image)
    set_bits("incompatible", 1)(image)
    qcow2c.repair(image, "all")
    assert get(image, "autoclear") == 0
    kept = bytearray(damaged("v3", "L1 table zeroed"))
    set_bits("autoclear", 1 << 40)(kept)
    before = bytes(kept)
    assert not [action for action in qcow2c.repair(kept, "all").actions if action.kind is plan.RepairKind.HEADER]
    assert bytes(kept) == before


def test_stale_bitmaps_keep_their_clusters() -> None:
    image = bytearray(seed_bytes("bitmaps.qcow2"))
    put(88, bytes(8))(image)
    before = bytes(image)
    result = qcow2c.repair(image, "leaks")
    assert (result.exit_code, result.clusters_kept > 0, bytes(image) == before) == (3, True, True)
    assert {action.reason for action in result.actions} == {"stale bitmaps"}
    assert qcow2c.repair(image, "leaks", allow_data_loss=True).exit_code == 0


def test_a_compressed_cluster_loses_its_copied_bit() -> None:
    image = bytearray(seed_bytes("zlib.qcow2"))
    table = next(u64(image, get(image, "l1_table_offset") + 8 * index) for index in range(1)) & ~COPIED
    index = next(index for index in range(512) if u64(image, table + 8 * index) & COMPRESSED)
    l2(index, with_bits(COPIED))(image)
    result = qcow2c.repair(image, "all")
    assert (result.exit_code, result.corruptions_fixed) == (0, 1)
    assert readable(bytes(image)) == readable(seed_bytes("zlib.qcow2"))


def test_a_misaligned_extended_entry_without_data_loses_its_place() -> None:
    image = bytearray(seed_bytes("extl2.qcow2"))
    index = next(index for index in range(64) if u64(image, entry_at(image, index)))
    l2_bitmap(index, to(0xFFFF_0000_0000_0000))(image)
    l2(index, with_bits(512))(image)
    guest = readable(bytes(image))
    assert qcow2c.repair(image, "all").after.corruptions == 0
    assert u64(image, entry_at(image, index)) == 0
    assert still_there(guest, readable(bytes(image)))


def entry_at(image: bytearray, index: int) -> int:
    return (u64(image, get(image, "l1_table_offset")) & ~COPIED) + 16 * index


def test_copied_bits_of_an_external_data_file_are_set() -> None:
    builder = Builder(incompatible_features=derived.INCOMPATIBLE_FEATURES.flags(data_file=True))
    builder.entry(1, builder.cluster_size | L2_COPIED)
    builder.entry(2, 2 * builder.cluster_size)
    image = bytearray(builder.build())
    assert qcow2c.check(bytes(image)).corruptions == 1
    assert qcow2c.repair(image, "all").exit_code == 0


def test_more_references_than_a_refcount_can_say_are_left() -> None:
    image = bytearray(damaged("rc1", "two guest clusters, one host cluster"))
    before = bytes(image)
    assert qcow2c.repair(image, "all").exit_code == 2
    assert bytes(image) == before


def test_a_table_that_something_overlaps_is_not_written() -> None:
    image = bytearray(damaged("v3", "data on an L2 table"))
    table = u64(image, get(image, "l1_table_offset")) & ~COPIED
    before = bytes(image[table : table + 4096])
    assert qcow2c.repair(image, "all").exit_code == 2
    assert image[table : table + 4096] == before


def test_an_l1_table_that_something_overlaps_is_not_written() -> None:
    image = bytearray(damaged("v3", "data on the L1 table"))
    l1(0, without_bits(COPIED))(image)
    before = bytes(image[get(image, "l1_table_offset") :][:64])
    qcow2c.repair(image, "all")
    assert image[get(image, "l1_table_offset") :][:64] == before


def test_refcounts_are_not_written_anew_where_something_refers_to() -> None:
    image = bytearray(damaged("v3", "refcount table zeroed"))
    end = -(-len(image) // 4096) * 4096
    l2(0, to(end | COPIED))(image)
    before = bytes(image)
    result = qcow2c.repair(image, "all")
    assert "would come to lie where something refers to" in result.refused[0]
    assert bytes(image) == before


def test_nothing_is_written_to_a_header_that_is_something_else() -> None:
    image = bytearray(damaged("v3", "data on the header"))
    DAMAGE["refcount table zeroed"](image)
    before = bytes(image)
    result = qcow2c.repair(image, "all")
    assert "something else overlaps the header" in result.refused[0]
    assert bytes(image) == before
    image = bytearray(damaged("v3", "data on the header"))
    set_bits("autoclear", 1 << 40)(image)
    before = bytes(image)
    assert qcow2c.repair(image, "all").corruptions_fixed == 2
    assert image[:4096] == before[:4096]


def test_a_snapshot_whose_l1_table_cannot_be_is_a_doubt() -> None:
    image = bytearray(seed_bytes("snapshots.qcow2"))
    at = get(image, "snapshots_offset")
    put(at, (u64(image, at) | 512).to_bytes(8, "big"))(image)
    result = qcow2c.repair(image, "all")
    assert "L1 table offset 0x9200 is not cluster-aligned" in result.doubts[0]
    assert result.clusters_kept > 0


def test_refcounts_anew_where_a_block_ends_with_the_file() -> None:
    image = bytearray(damaged("c512", "refcount table zeroed"))
    image.extend(bytes(512 * 256 - len(image)))
    assert qcow2c.repair(image, "all").exit_code == 0
    image = bytearray(damaged("c512", "refcount table lost"))
    image.extend(bytes(512 * 256 - len(image)))
    result = qcow2c.repair(image, "all")  # Whether that was a refcount table, nobody can tell.
    assert (result.exit_code, result.clusters_kept) == (3, 2)


def test_holes_of_a_long_file_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    image = bytearray(damaged("c512", "refcount table zeroed"))
    path.write_bytes(image)
    with path.open("r+b") as file:
        file.seek(3 << 30)
        file.write(b"far away")
        file.truncate(4 << 30)
    result = qcow2c.repair(path, "all", undo=tmp_path / "undo")
    assert result.exit_code == 0
    store = LocalFile(path)
    assert len(list(Survey(store, Header.load(store)).chunks())) == 3
    store.close()
    assert undo_repair(path, tmp_path / "undo")
    assert path.stat().st_size == 4 << 30
    with path.open("rb") as file:
        assert file.read(len(image)) == image


def test_refcounts_anew_cover_clusters_far_behind() -> None:
    image = bytearray(damaged("c512", "refcount table zeroed"))
    image.extend(bytes(512 * 3000))
    assert qcow2c.repair(image, "all").exit_code == 0
    assert get(image, "refcount_table_offset") >= 512 * 3000


def test_a_refcount_table_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    image = bytearray(damaged("c512", "refcount table zeroed"))
    limits = SimpleNamespace(HOST_OFFSET_END=Limit.HOST_OFFSET_END, REFCOUNT_TABLE_BYTES=256)
    monkeypatch.setattr(changes, "Limit", limits)
    result = qcow2c.repair(image, "all")
    assert "would have more than" in result.refused[0]


# --- what is refused ------------------------------------------------------------------------------------------------


def test_an_image_that_cannot_be_checked_is_left_as_it_is() -> None:
    image = bytearray(seed_bytes("snapshots.qcow2"))
    put(get(image, "snapshots_offset") + 36, b"\xff\xff\xff\xff")(image)
    before = bytes(image)
    result = qcow2c.repair(image, "all")
    assert (result.exit_code, bytes(image) == before) == (1, True)


def test_a_clean_image_is_not_even_opened_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    path.write_bytes(seed_bytes("v3.qcow2"))
    path.chmod(0o444)
    assert qcow2c.repair(path, "all", undo=tmp_path / "undo").exit_code == 0
    assert not (tmp_path / "undo").exists()
    assert qcow2c.repair(path.read_bytes(), "all").exit_code == 0
    with pytest.raises(UsageError, match="cannot write to an image in bytes"):
        qcow2c.repair(damaged("v3", "refcount of data 0"), "all")


def test_an_image_in_use_is_not_repaired(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    path.write_bytes(damaged("v3", "refcount of data 0"))
    other = LocalFile(path)
    other.lock(Use.IMAGE)
    with pytest.raises(qcow2c.errors.ImageLocked):
        qcow2c.repair(path, "all")
    other.close()


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither"):
        qcow2c.repair(seed_bytes("v3.qcow2"), "some")
    (tmp_path / "undo").touch()
    with pytest.raises(UsageError, match="never overwritten"):
        qcow2c.repair(seed_bytes("v3.qcow2"), "all", undo=tmp_path / "undo")


def test_a_plan_lists_so_many_actions_and_counts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MAX_ACTIONS", 2)
    image = bytearray(seed_bytes("v3.qcow2"))
    for cluster in (4, 6, 8):
        refcount(cluster, 9)(image)
    result = qcow2c.repair(image, "leaks", dry_run=True)
    assert (len(result.actions), result.action_count) == (2, 3)


def test_an_error_in_the_middle_can_be_taken_back(tmp_path: Path) -> None:
    before = damaged("v3", "refcount table zeroed")
    store = Failing(bytearray(before))
    with pytest.raises(StoreError):
        qcow2c.repair(store, "all", undo=tmp_path / "undo")
    store.left = 10**6
    assert store.contents != before
    assert undo_repair(store, tmp_path / "undo")
    assert store.contents == before
    assert qcow2c.repair(store, "all").exit_code == 0


class Failing(WritableMemory):
    """A store that takes two writes and no more."""

    def __init__(self, data: bytearray) -> None:
        super().__init__(data)
        self.contents = data
        self.left = 2

    def pwrite(self, data: Buffer, offset: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise StoreError("no more")
        super().pwrite(data, offset)


def test_random_changes_of_tables_lose_nothing(tmp_path: Path) -> None:
    chooser = random.Random(7)
    path = tmp_path / "image.qcow2"
    for seed in ("v3", "snapshots", "c512") * 4:
        image = bytearray(seed_bytes(f"{seed}.qcow2"))
        table = get(image, "refcount_table_offset")
        places = [get(image, "l1_table_offset"), table, u64(image, table), u64(image, get(image, "l1_table_offset"))]
        for _ in range(chooser.randrange(1, 4)):
            image[(chooser.choice(places) & ~COPIED) + chooser.randrange(512)] ^= 1 << chooser.randrange(8)
        path.write_bytes(image)
        try:
            prove(path, "all")
        except LimitExceeded:
            assert path.read_bytes() == image


def test_many_snapshot_records_that_are_not_there_cost_little_time() -> None:
    image = bytearray()
    qcow2c.create(image, 1 << 20, cluster_size=4096)
    qcow2c.snapshots.create(image, "one")
    image[60:64] = (28_672).to_bytes(4)  # nb_snapshots
    started = time.process_time()
    result = qcow2c.repair(image, "all")
    assert time.process_time() - started < 4
    assert result.exit_code == 2 and len(image) < 64 << 10
