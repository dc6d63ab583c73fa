"""The tree of a dump: what it shows of healthy, damaged and truncated images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import qcow2c
from qcow2c import structs
from qcow2c.dump import SECTIONS, Dump, chain
from qcow2c.errors import ChainError, GateRefused, NotQcow2, Span, StoreError, UsageError
from qcow2c.forensic.nodes import Node
from qcow2c.forensic.render_text import Style
from qcow2c.format import derived
from qcow2c.format.findings import Severity
from qcow2c.format.tables import native
from qcow2c.storage.sources import Memory
from qcow2c.structs import ExtensionType
from tests.building import L1_COPIED, L2_COPIED, L2_ZERO, Builder, deflate, extension

EXTENDED_L2 = derived.INCOMPATIBLE_FEATURES["extended_l2"].mask


def rich() -> Builder:
    """An image with everything that has a section."""
    builder = Builder(1 << 22, cluster_bits=12, crypt_method=0, autoclear_features=1)
    builder.extensions.append(extension(ExtensionType.BACKING_FORMAT, b"raw"))
    builder.backing_file = b"base \x1b[31m.raw"
    for cluster in (0, 1, 2, 3, 9):
        builder.data(cluster, b"x")
    builder.entry(20, L2_ZERO)
    builder.compressed(30, deflate(bytes(4096)), inside=7)
    builder.snapshot(b"first \xff", extra_data=bytes(40))
    builder.data(0, b"new")
    table = builder.put((1).to_bytes(8, "big"))
    header = {
        "bitmap_table_offset": table,
        "bitmap_table_size": 1,
        "flags": 3,
        "type": 1,
        "granularity_bits": 16,
        "name_size": 4,
        "extra_data_size": 0,
    }
    record = structs.BITMAP_DIRECTORY_RECORD.build({"header": header, "extra_data": b"", "name": b"days"})
    record += bytes(-len(record) % 8)
    fields = {
        "nb_bitmaps": 1,
        "reserved": 0,
        "bitmap_directory_size": len(record),
        "bitmap_directory_offset": builder.put(record),
    }
    builder.extensions.append(extension(ExtensionType.BITMAPS, structs.BITMAPS_EXTENSION.build(fields)))
    entry = structs.FEATURE_NAME.build({"type": 1, "bit": 9, "name": b"future".ljust(46, b"\0")})
    builder.extensions.append(extension(ExtensionType.FEATURE_NAME_TABLE, entry + b"torn"))
    builder.extensions.append(extension(0x99, b"unknown data"))
    builder.fields["compatible_features"] = 1 | 1 << 9
    return builder


def every(node: Node) -> list[Node]:
    found = [node]
    for child in node.children:
        found += every(child)
    return found


def section(data: bytes, name: str) -> list[Node]:
    with qcow2c.dump(data, [name]) as tree:
        return [node for part in tree.root.children for node in every(part)][1:]


def named(nodes: list[Node], name: str) -> Node:
    return next(node for node in nodes if node.name == name)


def test_every_section_of_a_rich_image_has_nodes() -> None:
    data = rich().build()
    for name in SECTIONS:
        if name not in ("encryption", "findings"):
            assert section(data, name), name


def test_header_fields_have_their_place_value_and_meaning() -> None:
    nodes = section(rich().build(), "header")
    size = named(nodes, "size")
    assert (size.span, size.value, size.text, size.unit, size.spec) == (
        Span(24, 8), 1 << 22, "0x400000, 4 MiB", "bytes", "Header"
    )  # fmt: skip
    assert named(nodes, "crypt_method").text == "NONE"
    compatible = named(nodes, "compatible_features")
    assert compatible.text == "lazy_refcounts, unknown 0x200"
    assert [child.name for child in compatible.children] == ["lazy_refcounts", "reserved"]
    assert compatible.findings[0].rule == "header.compatible_features"


def test_features_are_named_by_the_schema_or_by_the_image() -> None:
    nodes = section(rich().build(), "features")
    assert [(node.name, node.text) for node in nodes] == [
        ("lazy_refcounts", "compatible, bit 0"),
        ("future", "compatible, bit 9, not known to this program"),
        ("bitmaps", "autoclear, bit 0"),
    ]


def test_extensions_show_their_data_and_padding() -> None:
    nodes = section(rich().build(), "extensions")
    assert named(nodes, "backing_format").value == "raw"
    assert named(nodes, "feature").value == "future"
    assert any(node.text.endswith("cut short: 4 of 48 bytes") for node in nodes if node.name == "feature")
    assert named(nodes, "unknown").value == "unknown data"
    assert named(nodes, "bitmap_directory_size").value == 32
    name = named(nodes, "backing_file_name")
    assert name.value == "base \\x1b[31m.raw" and bytes.fromhex(name.hex) == b"base \x1b[31m.raw"
    assert "\x1b" not in "".join(Dump(rich().build()).text())


def test_snapshots_and_bitmaps_are_shown_field_by_field() -> None:
    data = rich().build()
    nodes = section(data, "snapshots")
    record = named(nodes, "snapshot 0")
    assert record.value == "first \\xff" and record.hex == b"first \xff".hex()
    assert "2023-11-14T22:13:20" in record.text
    fields = {node.name: node for node in record.children}
    assert fields["vm_clock_nsec"].value == 7
    assert fields["disk_size"].span == Span(record.span.offset + 48, 8) if record.span else False
    assert fields["unknown_extra_data"].span is not None and fields["unknown_extra_data"].span.length == 16
    bitmap = named(section(data, "bitmaps"), "bitmap 0")
    assert bitmap.value == "days" and "in use" in bitmap.text
    assert named(section(data, "bitmaps"), "[0]").text == "all ones"


def test_tables_are_folded_into_runs() -> None:
    nodes = section(rich().build(), "l2")
    tables = [node for node in nodes if node.name.startswith("L2 table")]
    assert len(tables) == 2
    texts = [node.text for node in nodes]
    assert any(text.startswith("compressed at") for text in texts)
    assert "zeros" in texts
    covered = sum(node.span.length for node in tables[0].children if node.span)
    assert covered == 4096
    l1 = section(rich().build(), "l1")
    assert next(node.text for node in l1 if node.name.startswith("L1")).startswith("2 entries, maps up to 4 MiB")


def test_states_that_share_an_l1_table_show_it_once() -> None:
    builder = Builder(cluster_bits=12)
    builder.data(0, b"x")
    builder.snapshot(b"a", l1_table_offset=4096)
    nodes = section(builder.build(), "l1")
    assert [node.name for node in nodes if node.name.startswith("L1")] == ["L1 table of active"]
    assert named(nodes, "shared L1 tables").value == 1


def test_subclusters_are_told_run_by_run() -> None:
    builder = Builder(1 << 20, cluster_bits=14, incompatible=EXTENDED_L2)
    builder.data(0, b"x", bitmap=0b0100 << 32 | 0b0011)
    builder.data(1, b"x")
    builder.entry(2, 1 << 14, 1 << 32 | 1)
    nodes = section(builder.build(), "l2")
    assert "subclusters 0..1 data, 2 zero, 3..31 unallocated" in named(nodes, "[0]").text
    assert named(nodes, "[1]").text.startswith("data at")
    broken = named(nodes, "[2]")
    assert "invalid bitmap" in broken.text
    assert [finding.rule for finding in broken.findings] == ["l2.subclusters_contradict"]


def test_the_encryption_header_and_its_slots_are_shown_without_key_material() -> None:
    builder = Builder(1 << 20, cluster_bits=12, crypt_method=2)
    slot = {"active": 0xAC71F3, "iterations": 10, "salt": bytes(32), "key_material_offset": 8, "stripes": 4000}
    idle = slot | {"active": 0xDEAD}
    luks = structs.LUKS_HEADER.build(
        {
            "magic": structs.LUKS_MAGIC,
            "version": 1,
            "cipher_name": b"aes".ljust(32, b"\0"),
            "cipher_mode": b"xts-plain64".ljust(32, b"\0"),
            "hash_spec": b"sha256".ljust(32, b"\0"),
            "payload_offset": 4040,
            "key_bytes": 64,
            "mk_digest": bytes(range(200, 220)),
            "mk_digest_salt": bytes(32),
            "mk_digest_iter": 1000,
            "uuid": b"0".ljust(40, b"\0"),
            "key_slots": [slot] + [idle] * 7,
        }
    )
    offset = builder.put(luks + bytes(8192))
    pointer = structs.ENCRYPTION_HEADER_POINTER.build({"offset": offset, "length": 8784})
    builder.extensions.append(extension(ExtensionType.ENCRYPTION_HEADER, pointer))
    nodes = section(builder.build(), "encryption")
    assert named(nodes, "cipher_mode").value == "xts-plain64"
    assert named(nodes, "mk_digest").value == bytes(range(200, 220)).hex()
    assert named(nodes, "key_slot 0").text == f"ENABLED, key material at {offset + 4096:#x}"
    assert named(nodes, "key_slot 7").text.startswith("DISABLED")
    inside = [node for node in nodes if node.name != "key_material"]
    assert max(node.span.end for node in inside if node.span) == offset + 592
    assert not [node for node in nodes if node.name == "key_material"]  # It does not lie in the header.
    assert "0x1f9000" in named(nodes, "payload").text
    legacy = section(Builder(crypt_method=1).build(), "encryption")
    assert [node.name for node in legacy] == ["aes"]


def test_refcounts_are_runs_of_host_clusters() -> None:
    nodes = section(Builder(cluster_bits=12).build(), "refcounts")
    assert named(nodes, "clusters 0..3").text == "in use"
    assert named(nodes, "clusters 0..3").count == 4
    small = section(Builder(cluster_bits=12, refcount_order=1).build(), "refcounts")
    assert named(small, "clusters 0..3").span == Span(named(small, "clusters 0..3").span.offset, 1)  # type: ignore[union-attr]


def test_the_map_covers_every_byte_and_names_leaks_and_overlaps() -> None:
    builder = rich()
    builder.allocate(2 * 4096)
    builder.entry(40, builder.fields["l1_table_offset"] | L2_COPIED)
    data = builder.build()
    nodes = section(data, "map")
    spans = [node.span for node in nodes if node.span]
    assert spans[0].offset == 0 and spans[-1].end == len(data)
    assert [span.offset for span in spans[1:]] == [span.end for span in spans[:-1]]
    uses = {node.value for node in nodes}
    assert {"owned", "slack", "leak", "overlap"} <= uses


def test_findings_are_summed_up_at_the_end() -> None:
    builder = rich()
    for cluster in range(50, 200):
        builder.entry(cluster, 1 << 57 | cluster << 3)
    with qcow2c.dump(builder.build()) as tree:
        nodes = every(tree.root)
        assert tree.exit_code == 2
    summary = every(next(node for node in nodes if node.name == "findings"))
    reserved = [node for node in summary if node.name == "l2.reserved"]
    assert len(reserved) == 101 and reserved[-1].text == "50 more of this rule"
    with qcow2c.dump(Builder().build()) as tree:
        every(tree.root)
        assert tree.exit_code == 0 and tree.worst is Severity.NOTE


def test_every_truncation_of_an_image_can_be_dumped() -> None:
    data = rich().build()
    for cut in [*range(4, 700, 3), *range(700, len(data), 977)]:
        with qcow2c.dump(data[:cut]) as tree:
            nodes = every(tree.root)
        assert nodes[0].span == Span(0, cut)
        if cut < 104:
            assert any("missing" in node.text for node in nodes)


def test_strange_headers_are_shown_as_far_as_they_make_sense() -> None:
    for fields in (
        {"cluster_bits": 40},
        {"refcount_order": 9},
        {"version": 7},
        {"l1_size": 1 << 31},
        {"size": 1 << 63},
    ):
        builder = Builder(cluster_bits=12)
        builder.build()
        builder.fields |= fields
        with qcow2c.dump(builder.build()) as tree:
            nodes = every(tree.root)
            assert tree.exit_code == 2
        assert named(nodes, "l1_table_offset").value == 4096


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotQcow2):
        qcow2c.dump(b"text")
    with pytest.raises(StoreError):
        qcow2c.dump(tmp_path / "missing")
    with pytest.raises(UsageError, match="unknown section"):
        qcow2c.dump(Builder().build(), ["colours"])


def test_overlapping_tables_stop_a_section_and_not_the_dump() -> None:
    builder = rich()
    for index in range(30):
        builder.snapshot(b"s", id_str=b"%d" % index, l1_table_offset=4096, l1_size=(1 << 22) - index)
    with qcow2c.dump(builder.build(), ["l2", "findings"]) as tree:
        nodes = every(tree.root)
    assert named(nodes, "stopped").findings[0].rule == "dump.limit"
    assert named(nodes, "dump.limit").value == "error"


def answers(data: bytes, **question: int) -> list[Node]:
    with qcow2c.dump(data) as tree:
        return [node for part in tree.question(**question).children for node in every(part)]


def test_a_byte_of_the_file_is_explained_from_both_sides() -> None:
    builder = rich()
    data = builder.build()
    table = builder.l1[0] & ~L1_COPIED
    nodes = answers(data, host_offset=table + 8)
    assert named(nodes, "belongs to").value == "l2_table"
    assert named(nodes, "host cluster").text == "refcount 1"
    assert any(node.name.endswith("/ [1..2]") or "[1" in node.name for node in nodes)
    assert named(nodes, "L1 entry [0]").text == "of active"
    shared = answers(data, host_offset=builder.l2[0][1])
    assert sorted(node.text for node in shared if node.name == "L2 entry [1]") == [
        "of active",
        "of snapshot 0 (first \\xff)",
    ]
    packed = answers(data, host_offset=(builder.l2[0][30] & (1 << 50) - 1) + 3)
    assert [node.name for node in packed if node.name.startswith("L2 entry")] == ["L2 entry [30]"] * 2
    block = answers(data, host_offset=int(native(builder.parts[builder.fields["refcount_table_offset"]])[0]))
    assert named(block, "refcount table entry [0]").text == "refcounts" or block
    with pytest.raises(UsageError, match="outside the file"):
        answers(data, host_offset=len(data))


def test_a_byte_of_the_disk_is_traced_in_every_state() -> None:
    builder = rich()
    data = builder.build()
    for guest, expected in (
        (0, "data"),
        (20 * 4096, "zeros"),
        (30 * 4096 + 5, "compressed data"),
        (4096 * 600, "backing file"),
    ):
        nodes = answers(data, guest_offset=guest)
        assert [node.name for node in nodes].count(expected) == 2, guest
    assert "beyond its end" in named(answers(data, guest_offset=1 << 30), "active").text
    plain = Builder(cluster_bits=12)
    plain.entry(0, 4096 * 999 | L2_COPIED)
    assert named(answers(plain.build(), guest_offset=9), "data").text == "past the end of the file"
    assert named(answers(Builder().build(), guest_offset=9), "zeros").text.startswith("unallocated")
    extended = Builder(1 << 20, cluster_bits=14, incompatible=EXTENDED_L2)
    extended.data(0, b"x", bitmap=1)
    nodes = answers(extended.build(), guest_offset=600)
    assert named(nodes, "subcluster 1").text == "unallocated in cluster"


def test_a_refcount_of_64_bits_is_shown_whole() -> None:
    builder = Builder(refcount_order=6)
    at = builder.data(0, b"x")
    builder.refcounts[at // builder.cluster_size] = 0x123456789A
    assert named(answers(builder.build(), host_offset=at), "host cluster").text == f"refcount {0x123456789A}"


def test_a_question_needs_a_header_that_says_where_things_are() -> None:
    builder = Builder()
    builder.fields["cluster_bits"] = 60
    builder.fields["refcount_table_offset"] = 4096
    with qcow2c.dump(builder.build()) as tree, pytest.raises(UsageError, match="does not say"):
        tree.question(host_offset=0)


def test_two_parsers_agree() -> None:
    with qcow2c.dump(rich().build(), ["findings"], verify=True) as tree:
        nodes = every(tree.root)
    assert named(nodes, "two parsers").value is True
    assert "agree" in named(nodes, "two parsers").text


def test_json_text_and_lines_say_the_same() -> None:
    data = rich().build()
    store = Memory(data)
    with qcow2c.dump(store) as tree:
        whole = json.loads("".join(tree.json(raw=True, doc=True)))
        rows = [json.loads(line) for line in tree.json_lines()]
        text = "".join(tree.text(style=Style(raw=True, doc=True, zeros=True)))
        count = len(every(tree.root))
    assert whole["schema"] == rows[0]["schema"] == "qcow2c-dump/1"
    assert len(rows) == count + 1
    size = next(node for node in whole["file"]["children"][0]["children"][0]["children"] if node["name"] == "size")
    assert size == {
        "name": "size", "offset": 24, "length": 8, "value": 1 << 22, "text": "0x400000, 4 MiB", "unit": "bytes",
        "doc": "Virtual disk size.", "spec": "Header", "raw": (1 << 22).to_bytes(8, "big").hex(),
    }  # fmt: skip
    for row in rows[2:]:
        assert row["name"] in text
    assert all(char.isprintable() or char == "\n" for char in text)


def test_colour_is_only_for_those_who_ask() -> None:
    builder = rich()
    builder.entry(60, 1 << 57)
    with qcow2c.dump(builder.build()) as tree:
        coloured = "".join(tree.text(style=Style(colour=True)))
    assert "\x1b[31m" in coloured and "\x1b[0m" in coloured


def test_raw_bytes_of_a_node_are_bounded() -> None:
    node = Node("x", Span(1, 1000))
    store = Memory(bytes(range(256)) * 8)
    assert node.raw(store) == bytes(range(1, 65))
    assert len(node.raw(store, None)) == 1000
    assert Node("x").raw(store) == b""


def test_a_chain_is_dumped_layer_by_layer_through_the_gate(tmp_path: Path) -> None:
    base, top = Builder(cluster_bits=12), Builder(cluster_bits=12)
    top.backing_file = b"base"
    (tmp_path / "base").write_bytes(base.build())
    (tmp_path / "top").write_bytes(top.build())
    assert [Path(store.name).name for store in chain(str(tmp_path / "top"), "directory")] == ["top", "base"]
    (tmp_path / "base").write_bytes(b"raw data")
    assert [Path(store.name).name for store in chain(str(tmp_path / "top"), "directory")] == ["top"]
    with pytest.raises(GateRefused):
        list(chain(str(tmp_path / "top"), "deny"))
    loop = Builder(cluster_bits=12)
    loop.backing_file = b"loop"
    (tmp_path / "loop").write_bytes(loop.build())
    with pytest.raises(ChainError, match="loop"):
        list(chain(str(tmp_path / "loop"), "directory"))


def test_thousands_of_extensions_and_of_bitmaps_with_one_table_are_dumped_once_each() -> None:
    builder = Builder(cluster_bits=16, autoclear_features=1)
    header = {
        "bitmap_table_offset": builder.put(bytes(8)),
        "bitmap_table_size": 1,
        "flags": 0,
        "type": 1,
        "granularity_bits": 16,
        "name_size": 8,
        "extra_data_size": 0,
    }
    record = structs.BITMAP_DIRECTORY_RECORD.build({"header": header, "extra_data": b"", "name": b"the same"})
    fields = {
        "nb_bitmaps": 2000,
        "reserved": 0,
        "bitmap_directory_size": 2000 * len(record),
        "bitmap_directory_offset": builder.put(2000 * record),
    }
    builder.extensions.append(extension(ExtensionType.BITMAPS, structs.BITMAPS_EXTENSION.build(fields)))
    builder.extensions += [extension(0x77, b"")] * 2000
    data = builder.build()
    bitmaps = section(data, "bitmaps")
    assert sum(node.name == "[0]" for node in bitmaps) == 1
    assert named(bitmaps, "bitmap table of bitmap 9").text == "1 entries, where bitmap 0 has its table"
    assert [node.name for node in section(data, "map")].count("bitmap_table") == 1
    extensions = [node for node in section(data, "extensions") if node.name == "unknown"]
    assert len(extensions) == 2000
    assert len(list(extensions[0].children)) == 3 and not list(extensions[-1].children)
    assert [finding.rule for finding in extensions[-1].findings] == ["extension.duplicate"]


def test_snapshot_records_past_the_end_are_one_node() -> None:
    builder = Builder(cluster_bits=12, nb_snapshots=5000, snapshots_offset=1 << 30)
    nodes = section(builder.build(), "snapshots")
    assert [(node.name, node.value) for node in nodes] == [("past the end", 5000)]
    assert nodes[0].findings[0].rule == "snapshots.past_end"


def test_entries_that_lead_past_the_end_are_findings() -> None:
    builder = Builder(cluster_bits=12)
    builder.entry(0, 4096 * 9999 | L2_COPIED)
    builder.entry(3, 1 << 62 | 4096 * 8888)
    with qcow2c.dump(builder.build()) as tree:
        found = [finding.rule for node in every(tree.root) for finding in node.findings]
        assert found.count("past_end") == 2
        assert tree.exit_code == 2
