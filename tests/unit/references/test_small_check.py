"""What plain integers prove of a small image is what arrays find: the same sums, and nothing wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcow2c import structs
from qcow2c.errors import Qcow2Error
from qcow2c.format import derived, rules
from qcow2c.format.findings import Severity
from qcow2c.format.geometry import Geometry
from qcow2c.format.header import Header
from qcow2c.format.records import read_bitmaps, read_snapshots
from qcow2c.format.table_rules import broken_rules, l2_rules, without_place
from qcow2c.ops.check import check
from qcow2c.references import admission, image_check, small_check
from qcow2c.references.check_result import CheckResult
from qcow2c.references.small_check import Clean
from qcow2c.storage.sources import Memory
from qcow2c.structs import ExtensionType
from tests.building import L2_COPIED, L2_ZERO, Builder, deflate, extension, packed_words
from tests.drawn_images import images
from tests.profile import DEEP

_INCOMPATIBLE = derived.INCOMPATIBLE_FEATURES
EXTENDED_L2, DATA_FILE = _INCOMPATIBLE["extended_l2"].mask, _INCOMPATIBLE["data_file"].mask
BITMAPS = derived.AUTOCLEAR_FEATURES["bitmaps"].mask
DISK = 1 << 22

KINDS: dict[str, dict[str, int]] = {
    "version 2": {"version": 2},
    "version 3": {},
    "small clusters": {"cluster_bits": 9},
    "extended": {"cluster_bits": 14, "incompatible": EXTENDED_L2},
    "data file": {"incompatible": DATA_FILE},
    "extended data file": {"cluster_bits": 14, "incompatible": EXTENDED_L2 | DATA_FILE},
    "1 bit": {"refcount_order": 0},
    "4 bits": {"refcount_order": 2},
    "8 bits": {"refcount_order": 3},
    "64 bits": {"refcount_order": 6},
}
STEPS = ("data", "run", "zero", "reserved", "compressed", "snapshot", "bitmap", "gap")


def add(builder: Builder, step: str, guest: int, count: int) -> None:
    """Add something sound to an image, for guest clusters `guest` to `guest + count` at most."""
    size, extended = builder.cluster_size, builder.extended
    shared = builder.external or builder.refcount_order == 0
    if step in ("data", "run"):
        for cluster in range(guest, guest + (count if step == "run" else 1)):
            if builder.external:
                builder.entry(cluster, cluster * size | L2_COPIED, 5 if extended else 0)
            else:
                builder.data(cluster, b"x", 5)
    elif step == "zero":
        builder.entry(guest, 0 if extended or builder.version == 2 else L2_ZERO, 3 << 32 if extended else 0)
    elif step == "reserved" and builder.version == 3 and not extended:
        builder.entry(guest, (guest * size if builder.external else builder.data(guest, b"")) | L2_COPIED | L2_ZERO)
    elif step == "compressed" and not builder.external:
        builder.compressed(guest, deflate(bytes(size)), inside=count * 8)
    elif step == "snapshot" and len(builder.snapshots) < 2 and not shared:
        builder.snapshot(b"s", id_str=b"%d" % len(builder.snapshots))
    elif step == "bitmap" and builder.version == 3 and not builder.extensions:
        add_bitmap(builder)
    elif step == "gap":
        builder.end += count * size


def add_bitmap(builder: Builder) -> None:
    table = builder.put(packed_words([builder.put(b"\1"), 0, 1]))
    entries = max(3, DISK >> builder.cluster_size.bit_length() + 2 + 9)
    record = {"bitmap_table_offset": table, "bitmap_table_size": entries, "flags": 2, "type": 1}
    record |= {"granularity_bits": 9, "name_size": 5, "extra_data_size": 0}
    directory = structs.BITMAP_DIRECTORY_HEADER.build(record) + b"dirty"
    directory += bytes(-len(directory) % 8)
    fields = {"nb_bitmaps": 1, "reserved": 0, "bitmap_directory_size": len(directory)}
    fields["bitmap_directory_offset"] = builder.put(directory)
    builder.extensions.append(extension(ExtensionType.BITMAPS, structs.BITMAPS_EXTENSION.build(fields)))
    builder.fields["autoclear_features"] |= BITMAPS


@st.composite
def sound_images(draw: st.DrawFn) -> Builder:
    """Images of every kind with nothing wrong."""
    builder = Builder(DISK, **KINDS[draw(st.sampled_from(sorted(KINDS)))])
    places = st.lists(st.integers(0, DISK // builder.cluster_size // 32 - 1), unique=True, max_size=8)
    for place in draw(places):
        add(builder, draw(st.sampled_from(STEPS)), place * 32, draw(st.integers(1, 32)))
    return builder


def proof(data: bytes) -> Clean | None:
    """Return what is proved of an image that is asked for: not of one whose header may have lost its clusters."""
    header = Header.load(Memory(data))
    lost = any(
        finding.rule in rules.LOST_OWNERS
        or (finding.rule.startswith("extension.bitmaps") and finding.severity >= Severity.WARNING)
        for finding in rules.header_findings(header)
    )
    return None if header.encrypted or lost else counted(data)


def counted(data: bytes) -> Clean | None:
    store = Memory(data)
    header = Header.load(store)
    return small_check.proved_clean(store, header, read_snapshots(store, header), read_bitmaps(store, header))


def by_arrays(data: bytes) -> CheckResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_check, "proved_clean", lambda *_: None)
        return check(data)


def require_agreement(data: bytes) -> bool:
    """Hold both paths equal; return whether the image was proved clean."""
    try:
        result = check(data)
    except Qcow2Error as refused:
        with pytest.raises(type(refused)):
            by_arrays(data)
        return False
    assert result == by_arrays(data)
    if proof(data) is None:
        return False
    assert result.exit_code == 0 and not list(result.messages)
    store = Memory(data)
    header = Header.load(store)
    snapshots = read_snapshots(store, header)
    if not header.corrupt and not header.encrypted:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(admission, "proved_clean", lambda *_: None)
            admitted = admission.admit(store, header, snapshots)
        assert admitted.verified and not admitted.undercounted and not [*admitted.metadata.within(0, 1 << 50)]
    return True


@settings(max_examples=1000 if DEEP else 80)
@given(sound_images())
def test_small_sound_images_are_proved_clean_with_the_sums_of_the_arrays(builder: Builder) -> None:
    assert require_agreement(builder.build())


@settings(max_examples=1000 if DEEP else 80)
@given(images())
def test_nothing_wrong_is_proved_clean(builder: Builder) -> None:
    require_agreement(builder.build())


@settings(max_examples=1000 if DEEP else 100)
@given(sound_images(), st.data())
def test_no_changed_byte_is_proved_clean_where_arrays_find_it(builder: Builder, draws: st.DataObject) -> None:
    data = builder.build()
    # Most bytes are zero: those that are not say something.
    places = [place for place, byte in enumerate(data) if byte]
    changed = bytearray(data)
    for place in draws.draw(st.lists(st.sampled_from(places), min_size=1, max_size=2)):
        changed[min(len(data) - 1, place + draws.draw(st.sampled_from([0, 0, 0, 1, 8])))] ^= draws.draw(
            st.sampled_from([1, 2, 4, 16, 64, 128, 255])
        )
    require_agreement(bytes(changed))


@given(
    st.builds(
        Geometry,
        cluster_bits=st.integers(14, 21),
        refcount_order=st.just(4),
        extended_l2=st.booleans(),
        external_data=st.booleans(),
        version=st.sampled_from([2, 3]),
    ),
    st.integers(0, (1 << 64) - 1) | st.builds(lambda a, b: 1 << a | 1 << b, st.integers(0, 63), st.integers(0, 63)),
    st.sampled_from([0, 1, 1 << 32, 1 << 32 | 1]),
)
def test_an_entry_without_its_place_breaks_the_same_rules(geometry: Geometry, entry: int, bitmap: int) -> None:
    rules = l2_rules(geometry)
    without = without_place(entry, geometry)
    assert [*broken_rules(rules, without, bitmap, geometry)] == [*broken_rules(rules, entry, bitmap, geometry)]


@pytest.mark.parametrize("bound", ["MAX_WORDS", "MAX_STEPS"])
def test_an_image_that_is_not_small_is_left_to_arrays(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = Builder(DISK)
    builder.data(0, b"x")
    builder.compressed(5, deflate(b"x"))
    data = builder.build()
    assert proof(data) is not None
    monkeypatch.setattr(small_check, bound, 2)
    assert proof(data) is None
    assert require_agreement(data) is False


def test_many_records_are_left_to_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = Builder(DISK)
    builder.snapshot(b"s")
    data = builder.build()
    assert proof(data) is not None
    monkeypatch.setattr(small_check, "MAX_STEPS", 0)
    assert proof(data) is None


@pytest.mark.parametrize("leaked", [0, 1])
def test_the_header_of_an_encryption_is_counted(leaked: int) -> None:
    builder = Builder(DISK, crypt_method=2)
    pointer = {"offset": builder.put(bytes(3 * builder.cluster_size)), "length": (3 - leaked) * builder.cluster_size}
    schema = structs.ENCRYPTION_HEADER_POINTER
    builder.extensions.append(extension(ExtensionType.ENCRYPTION_HEADER, schema.build(pointer)))
    assert (counted(builder.build()) is None) is bool(leaked)


def test_an_empty_l1_table_may_be_anywhere(tmp_path: Path) -> None:
    builder = Builder(DISK)
    builder.snapshot(b"s", disk_size=0, l1_size=0, l1_table_offset=(1 << 64) - builder.cluster_size)
    path = tmp_path / "disk"
    path.write_bytes(builder.build())
    assert check(path).leaks == 1
    assert require_agreement(path.read_bytes()) is False


def test_clusters_out_of_order_are_fragmented() -> None:
    builder = Builder(DISK)
    for guest in (3, 1, 2, 9, 30, 31):
        builder.data(guest, b"x")
    builder.compressed(5, deflate(b"x"))
    assert require_agreement(builder.build())
    found = proof(builder.build())
    assert found is not None and found[1:] == (7, 3, 1)
