"""The Construct schemas and the Kaitai description declare the same format, and read the same images alike.

Names, order, widths and enumerations are compared declaration by declaration; then both parsers read images that the
schemas built from generated values.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from qcow2c import structs
from qcow2c.attest.verify import verify
from qcow2c.format import derived
from qcow2c.format.derivation import bits_of, is_bits, layout_of
from qcow2c.storage.sources import Memory, open_store
from qcow2c.structs import ExtensionType, Limit, refcount_group
from tests.building import Builder, deflate, extension

Description = dict[str, Any]

SCHEMAS = (
    "HEADER_V2", "HEADER_V3_TAIL", "HEADER_ADDITIONAL", "INCOMPATIBLE_FEATURES", "COMPATIBLE_FEATURES",
    "AUTOCLEAR_FEATURES", "FEATURE_NAME", "BITMAPS_EXTENSION", "ENCRYPTION_HEADER_POINTER", "LUKS_HEADER",
    "LUKS_KEY_SLOT", "REFCOUNT_TABLE_ENTRY", "L1_ENTRY", "STANDARD_L2_ENTRY", "SUBCLUSTER_BITMAP", "SNAPSHOT_HEADER",
    "BITMAP_DIRECTORY_HEADER", "BITMAP_FLAGS", "BITMAP_TABLE_ENTRY",
)  # fmt: skip
"""Each has a type of the same name, in lower case, in the Kaitai description."""

ENUMS = {
    "version": structs.Version,
    "crypt_method": structs.CryptMethod,
    "compression_type": structs.CompressionType,
    "extension_type": structs.ExtensionType,
    "feature_type": structs.FeatureType,
    "bitmap_type": structs.BitmapType,
    "luks_key_slot_state": structs.LuksKeySlotState,
}

# Where the two legitimately differ: the field, and its width in bits in the schemas.
WIDTHS_BY_CONTENTS = {("header_v2", "magic"): 32, ("header_additional", "padding"): 56, ("luks_header", "magic"): 48}
"""Kaitai gives these as their contents, without a size."""

UNKNOWN_TAIL = {"snapshot_extra_data": "unknown"}
"""Kaitai keeps what follows the known fields as a field of its own."""


def described(project_root: Path) -> Description:
    found: Description = yaml.safe_load((project_root / "formats" / "qcow2.ksy").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="session")
def ksy(project_root: Path) -> Description:
    return described(project_root)


def kaitai_width(ksy: Description, type_name: str, entry: Description) -> int:
    """Return the width of a field in bits."""
    if (type_name, entry["id"]) in WIDTHS_BY_CONTENTS:
        return WIDTHS_BY_CONTENTS[type_name, entry["id"]]
    kind = entry.get("type")
    times = int(entry.get("repeat-expr", 1))
    if isinstance(kind, str) and kind[0] in "ub" and kind[1:].isdigit():
        return times * int(kind[1:]) * (8 if kind[0] == "u" else 1)
    if isinstance(kind, str):
        return times * sum(kaitai_width(ksy, kind, inner) for inner in ksy["types"][kind]["seq"])
    return int(entry["size"]) * 8


def kaitai_fields(ksy: Description, type_name: str) -> list[tuple[str, int]]:
    """Return name and width of each field of a type, with the names of the specification."""
    kind, found = ksy["types"][type_name], dict[str, int]()
    for entry in kind["seq"]:
        if entry["id"] == UNKNOWN_TAIL.get(type_name):
            continue
        # What is wider than 32 bits is two fields, and an instance that joins them.
        whole = entry["id"].removesuffix("_upper").removesuffix("_lower")
        named = entry if whole == entry["id"] else kind["instances"][whole]
        name = named.get("-orig-id", whole)
        found[name] = found.get(name, 0) + kaitai_width(ksy, type_name, entry)
    return list(found.items())


def schema_fields(schema: Any) -> list[tuple[str, int]]:
    if is_bits(schema):
        return [(member.name, member.width) for member in bits_of(schema).members]
    return [(member.name, member.size * 8) for member in layout_of(schema).fields]


@pytest.mark.parametrize("name", [*SCHEMAS, "SNAPSHOT_EXTRA_DATA"])
def test_names_order_and_widths_agree(ksy: Description, name: str) -> None:
    assert kaitai_fields(ksy, name.lower()) == schema_fields(getattr(structs, name))


def test_extension_headers_agree(ksy: Description) -> None:
    head = ksy["types"]["header_extension"]["seq"][:2]
    fields = [(entry.get("-orig-id", entry["id"]), kaitai_width(ksy, "header_extension", entry)) for entry in head]
    assert fields == schema_fields(structs.EXTENSION_HEADER)


@pytest.mark.parametrize("order", Limit.REFCOUNT_ORDER)
def test_refcounts_agree_on_their_order_in_a_byte(ksy: Description, order: int) -> None:
    kind = ksy["types"][f"refcount_group_{1 << order}"]
    ours = schema_fields(refcount_group(order))
    if order < 3:
        # The first refcount is in the lowest bits: last in a schema that reads from the highest bit.
        assert kind["meta"]["bit-endian"] == "le"
        ours.reverse()
    assert kaitai_fields(ksy, f"refcount_group_{1 << order}") == ours


@pytest.mark.parametrize("name", ENUMS)
def test_enumerations_agree(ksy: Description, name: str) -> None:
    theirs = {value: entry.get("-orig-id", entry["id"]) for value, entry in ksy["enums"][name].items()}
    assert theirs == {member.value: member.name.lower() for member in ENUMS[name]}


def test_every_field_of_the_description_is_documented(ksy: Description) -> None:
    for name in SCHEMAS:
        kind = ksy["types"][name.lower()]
        assert kind.get("doc") or kind.get("doc-ref"), name
        for entry in kind["seq"]:
            assert entry.get("doc") or entry["id"].startswith(("reserved", "padding")), f"{name}.{entry['id']}"


def every_field(node: Any) -> Iterator[tuple[str, Description]]:
    """Yield each field and instance of a part of the description, with its name."""
    for name, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, dict | list):
            if isinstance(value, dict) and {"type", "value", "size"} & value.keys():
                yield str(value.get("id", name)), value
            yield from every_field(value)


def test_every_target_of_the_compiler_can_read_it(ksy: Description) -> None:
    for name, field in every_field({part: ksy[part] for part in ("seq", "instances", "types")}):
        kind = str(field.get("type", ""))
        assert not (kind[0:1] == "b" and kind[1:].isdigit() and int(kind[1:]) > 32), f"{name}: JavaScript reads 32 bits"
        assert "_index" not in str(field.get("repeat-until", "")), f"{name}: targets differ about it"
        valid = field.get("valid")
        assert not (isinstance(valid, dict) and "expr" in valid), f"{name}: Nim has no such check"
        assert name not in {"auto", "end", "default", "register"}, f"{name}: a word of a target"
        switched = field["type"].get("switch-on") if isinstance(field.get("type"), dict) else None
        assert switched in (None, "type", "is_compressed", "_root.refcount_order"), (
            f"{name}: is it 32 bits wide in Java?"
        )


def test_names_at_the_top_are_no_names_of_types(ksy: Description) -> None:
    """C# has one space of names for both."""
    assert not (ksy["instances"].keys() | {entry["id"] for entry in ksy["seq"]}) & ksy["types"].keys()


def test_counts_and_offsets_are_named_as_in_the_published_gallery(ksy: Description) -> None:
    for name, field in every_field({part: ksy[part] for part in ("seq", "instances", "types")}):
        original = field.get("-orig-id", "")
        assert original != name
        assert not name.startswith("nb_"), name
        if original.endswith("offset"):
            assert name.startswith("ofs_"), name


def test_lines_end_before_column_80(project_root: Path) -> None:
    lines = (project_root / "formats" / "qcow2.ksy").read_text(encoding="utf-8").splitlines()
    # An address that stands alone cannot be broken.
    assert [line for line in lines if len(line) > 80 and not line.strip().startswith("https://")] == []


@pytest.mark.parametrize(
    ("type_name", "change"),
    [
        ("header_v2", {"id": "version", "type": "u8"}),
        ("l1_entry", {"id": "copied_bit", "type": "b1"}),
        ("snapshot_header", {"id": "date_sec", "type": "u2"}),
    ],
)
def test_a_field_that_differs_would_be_noticed(ksy: Description, type_name: str, change: Description) -> None:
    wrong = copy.deepcopy(ksy)
    entries = wrong["types"][type_name]["seq"]
    position = next(index for index, entry in enumerate(entries) if change["id"].startswith(entry["id"]))
    entries[position] = change
    assert kaitai_fields(wrong, type_name) != schema_fields(getattr(structs, type_name.upper()))


# --- the same images, both ways -------------------------------------------------------------------------------------


@st.composite
def images(draw: st.DrawFn) -> bytes:
    """Images of every version, cluster size, refcount width and entry kind, with records and extensions."""
    version = draw(st.sampled_from([2, 3]))
    extended = version == 3 and draw(st.booleans())
    builder = Builder(
        1 << 20,
        cluster_bits=draw(st.integers(14, 16) if extended else st.integers(9, 16)),
        version=version,
        refcount_order=draw(st.integers(0, 6)) if version == 3 else 4,
        incompatible=derived.INCOMPATIBLE_FEATURES["extended_l2"].mask if extended else 0,
        compatible_features=draw(st.integers(0, 1)),
        header_length=draw(st.sampled_from([104, 112, 120])),
    )
    if draw(st.booleans()):
        builder.extensions.append(extension(ExtensionType.BACKING_FORMAT, draw(st.binary(min_size=1, max_size=15))))
        builder.backing_file = draw(st.binary(min_size=1, max_size=40))
    if draw(st.booleans()):
        entry = {"type": draw(st.integers(0, 2)), "bit": draw(st.integers(0, 63)), "name": b"name".ljust(46, b"\0")}
        builder.extensions.append(extension(ExtensionType.FEATURE_NAME_TABLE, structs.FEATURE_NAME.build(entry)))
    if draw(st.booleans()):
        builder.extensions.append(extension(draw(st.integers(1, 1 << 20)), draw(st.binary(max_size=30))))
    for cluster in draw(st.lists(st.integers(0, 15), max_size=4)):
        builder.data(cluster, bytes([cluster]))
    if draw(st.booleans()):
        builder.compressed(9, deflate(bytes(builder.cluster_size)), inside=draw(st.integers(0, 100)))
    if extended:
        builder.entry(10, 0, draw(st.integers(0, 2**32 - 1)) << 32)
    for number in range(draw(st.integers(0, 2)) if builder.refcount_order > 1 else 0):
        names = st.binary(min_size=1, max_size=20)
        builder.snapshot(draw(names), id_str=draw(names), date_sec=number, vm_clock_nsec=draw(st.integers(0, 2**60)))
    return builder.build()


@settings(max_examples=30)
@given(images())
def test_both_parsers_read_generated_images_alike(data: bytes) -> None:
    result = verify(Memory(data))
    assert result.difference is None, result.summary()
    assert result.fields > 20


def test_both_parsers_read_the_demo_image_alike(examples: Path) -> None:
    store = open_store(examples / "demo.qcow2")
    result = verify(store)
    store.close()
    assert result.agrees and result.fields > 1000, result.summary()


@settings(max_examples=30)
@given(images(), st.data())
def test_damage_is_a_report_and_never_a_crash(data: bytes, more: st.DataObject) -> None:
    damaged = bytearray(data)
    for _ in range(more.draw(st.integers(1, 8))):
        damaged[more.draw(st.integers(0, min(len(data), 4096) - 1))] = more.draw(st.integers(0, 255))
    cut = more.draw(st.integers(0, len(damaged)))
    result = verify(Memory(bytes(damaged[:cut])))
    assert isinstance(result.summary(), str) and result.summary()
    assert result.fields >= 0


def test_a_wrong_schema_is_a_difference(examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parsers are really asked: a schema with two fields exchanged is told with the place and both values."""
    import qcow2c.attest.verify as module

    members = list(structs.HEADER_V2.subcons)
    members[3], members[4] = members[4], members[3]
    with monkeypatch.context() as patch:
        patch.setattr(module, "HEADER_V2", structs.Struct(*members))
        store = open_store(examples / "demo.qcow2")
        result = module.verify(store)
        store.close()
    assert not result.agrees and result.difference is not None
    assert "differ" in result.summary()
