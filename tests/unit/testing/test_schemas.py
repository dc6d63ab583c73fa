"""What the strategies of structures and entries make is what they say it is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qcow2c import structs, testing
from qcow2c.format.derivation import layout_of
from qcow2c.format.geometry import Geometry
from qcow2c.format.table_rules import BITMAP_TABLE_RULES, L1_RULES, broken_rules, l2_rules
from qcow2c.format.tables import Kind, kind_of

SCHEMAS = {name: value for name, value in vars(structs).items() if name.isupper() and hasattr(value, "sizeof")} | {
    "compressed_descriptor": structs.compressed_descriptor(16),
    "refcount_group": structs.refcount_group(1),
}
GEOMETRIES = st.builds(
    Geometry, st.integers(14, 21), st.integers(0, 6), st.booleans(), st.booleans(), st.sampled_from([3])
)


def plain(value: Any) -> Any:
    """Return parsed containers as dictionaries, enumerations as integers."""
    if isinstance(value, dict):
        return {key: plain(found) for key, found in value.items() if not key.startswith("_")}
    if isinstance(value, list):
        return [plain(found) for found in value]
    return int(value) if hasattr(value, "intvalue") or isinstance(value, int) else value


@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("name", SCHEMAS)
@settings(max_examples=10)
@given(data=st.data())
def test_a_value_of_a_schema_is_stored_and_parsed_back(name: str, *, hostile: bool, data: st.DataObject) -> None:
    schema = SCHEMAS[name]
    value = data.draw(testing.from_schema(schema, hostile=hostile))
    assert plain(schema.parse(schema.build(value))) == plain(value)


@pytest.mark.parametrize("name", ["HEADER_V2", "HEADER_V3_TAIL", "SNAPSHOT_HEADER", "BITMAP_DIRECTORY_HEADER"])
@settings(max_examples=25)
@given(data=st.data())
def test_a_value_keeps_to_the_documented_bounds(name: str, data: st.DataObject) -> None:
    schema = SCHEMAS[name]
    value = data.draw(testing.from_schema(schema))
    for member in layout_of(schema).fields:
        if member.doc.valid is not None:
            assert value[member.name] in member.doc.valid, member.name


@given(testing.from_schema(structs.HEADER_V2, cluster_bits=st.just(16), size=st.just(7)))
def test_overrides_replace_what_is_inferred(value: dict[str, Any]) -> None:
    assert value["cluster_bits"] == 16 and value["size"] == 7


@given(testing.stored(structs.SNAPSHOT_RECORD))
def test_a_record_has_the_lengths_that_it_says(data: bytes) -> None:
    record = structs.SNAPSHOT_RECORD.parse(data)
    assert len(record.name) == record.header.name_size
    assert len(data) == 40 + record.header.extra_data_size + record.header.id_str_size + record.header.name_size


@given(GEOMETRIES, st.data())
def test_entries_break_no_rule(geometry: Geometry, data: st.DataObject) -> None:
    plain_geometry = Geometry(geometry.cluster_bits, geometry.refcount_order)
    entry = data.draw(testing.l2_entries(plain_geometry))
    assert not list(broken_rules(l2_rules(plain_geometry), entry, 0, plain_geometry))
    assert not list(broken_rules(L1_RULES, data.draw(testing.l1_entries(geometry)), 0, geometry))
    assert not list(broken_rules(BITMAP_TABLE_RULES, data.draw(testing.bitmap_table_entries(geometry)), 0, geometry))
    assume(geometry.extended_l2)
    entry, bitmap = data.draw(testing.extended_l2_entries(geometry))
    assert not list(broken_rules(l2_rules(geometry), entry, bitmap, geometry))
    if not geometry.external_data:
        assert all(kind_of(entry, bitmap, part, geometry) is not Kind.INVALID for part in range(32))
