"""Agreement of two parsers: the first difference is told with both values, and what was not compared is noted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qcow2c.attest.agreement import (
    ENTRIES,
    NOTES,
    PAGE,
    Agreement,
    ComparedTable,
    Disagreement,
    FieldDifference,
    NoteKind,
    TableKind,
    VerifyResult,
    spread,
)
from qcow2c.attest.witnesses import Leaf, OversizedRead
from qcow2c.errors import Span
from qcow2c.storage.sources import Memory

SPAN = Span(8, 4)


class Root:
    """A compiled description that reads nothing by itself."""

    def __init__(self, *_arguments: Any) -> None: ...


MODULE = SimpleNamespace(Qcow2=Root)


def agreement(content: bytes = bytes(64)) -> Agreement:
    return Agreement(Memory(content), MODULE, MODULE)


def fields(**values: int | bytes) -> Any:
    return SimpleNamespace(**values)


def declared(**values: int | bytes) -> Any:
    return lambda _data: [Leaf(name, SPAN, value) for name, value in values.items()]


def compare(found: Any, **values: int | bytes) -> VerifyResult:
    subject = agreement()
    try:
        subject.structure("thing", SPAN, declared(**values), lambda _kaitai: found)
    except Disagreement:
        assert subject.result.difference is not None
    return subject.result


def test_equal_fields_are_counted() -> None:
    result = compare(fields(a=1, b=b"x"), a=1, b=b"x")
    assert (result.agrees, result.fields, result.structures) == (True, 2, 1)
    assert result.summary() == "two independent parsers agree on 2 fields of 1 structures"


@pytest.mark.parametrize(
    ("found", "path", "values"),
    [
        (fields(a=1, b=3), "thing.b", (2, 3)),
        (fields(a=1), "thing.b", (2, None)),
        (fields(a=1, b=2, c=4), "thing.c", (None, 4)),
    ],
)
def test_the_first_difference_has_its_name_and_both_values(found: Any, path: str, values: tuple[Any, Any]) -> None:
    result = compare(found, a=1, b=2)
    assert result.difference is not None
    assert (result.difference.path, result.difference.construct, result.difference.kaitai) == (path, *values)


def refuse(_kaitai: Any) -> Any:
    raise OversizedRead("too much")


def test_what_neither_can_read_is_a_note() -> None:
    subject = agreement(bytes(10))
    assert subject.structure("thing", SPAN, declared(a=1), refuse) is None
    assert [(note.kind, note.text) for note in subject.result.notes] == [(NoteKind.UNREADABLE, "too much")]


def test_what_only_one_can_read_is_a_difference() -> None:
    subject = agreement()
    with pytest.raises(Disagreement):
        subject.structure("thing", SPAN, declared(a=1), refuse)
    assert subject.result.difference == FieldDifference("thing", SPAN, 1, None)


def test_a_parser_must_stop_where_the_structure_ends() -> None:
    subject = agreement()
    with pytest.raises(Disagreement):
        subject.structure("thing", SPAN, declared(a=1), lambda _kaitai: fields(a=1), end=12)
    assert subject.result.difference == FieldDifference("thing, its end", SPAN, 12, 0)


def test_a_value_that_the_description_rejects_is_noted_once() -> None:
    subject = agreement()

    def read(kaitai: Any) -> Any:
        return fields(a=1) if kaitai is subject._unchecked else refuse(kaitai)

    for _ in range(3):
        subject.structure("thing", SPAN, declared(a=1), read)
    assert [note.kind for note in subject.result.notes] == [NoteKind.REJECTED]
    assert subject.result.agrees and subject.result.structures == 3


def test_notes_are_bounded_and_the_others_counted() -> None:
    subject = agreement()
    for number in range(NOTES + 5):
        subject.note(NoteKind.SAMPLED, f"{number}", SPAN, "")
    assert len(subject.result.notes) == NOTES and subject.result.notes_dropped == 5


@pytest.mark.parametrize(("items", "limit", "chosen"), [(5, 9, 5), (100, 3, 3), (100, 1, 1), (7, 7, 7)])
def test_a_sample_is_spread_from_the_first_to_the_last(items: int, limit: int, chosen: int) -> None:
    found = spread(range(items), limit)
    assert len(found) == chosen and found[0] == 0
    assert limit == 1 or found[-1] == items - 1


class Page:
    """A page of words, as the compiled description has them."""

    def __init__(self, count: int, stream: Any, *_roots: Any) -> None:
        self.entries = [fields(word=stream.read_u8be()) for _ in range(count)]


KIND = TableKind(
    "Page",
    "Entry",
    lambda table, page: (min(PAGE, table.entries - page * PAGE),),
    8,
    lambda entry: {"word": int.from_bytes(entry, "big")},
)


def tables_of(content: bytes, *tables: ComparedTable) -> tuple[Agreement, list[int]]:
    root = type("Root", (), {"__init__": lambda *_: None, "Page": Page})
    subject = Agreement(Memory(content), SimpleNamespace(Qcow2=root), SimpleNamespace(Qcow2=root))
    return subject, [int(found["word"]) for found in subject.tables(KIND, tables)]


def test_pages_of_zeros_are_compared_once() -> None:
    content = bytearray(8 * PAGE * 6)
    content[8 * PAGE * 4 + 7] = 9
    subject, words = tables_of(bytes(content), ComparedTable("t", 0, PAGE * 6))
    assert len(words) == 2 * PAGE and words.count(9) == 1
    assert (subject.result.fields, subject.result.structures) == (2 * PAGE, 1)
    assert [note.kind for note in subject.result.notes] == []


def test_of_a_large_table_a_sample_is_compared_and_said_to_be_one() -> None:
    pages = ENTRIES // PAGE + 10
    subject, words = tables_of(b"\0\0\0\0\0\0\0\1" * PAGE * pages, ComparedTable("t", 0, PAGE * pages))
    assert len(words) == ENTRIES
    assert [(note.kind, note.text) for note in subject.result.notes] == [
        (NoteKind.SAMPLED, f"{ENTRIES // PAGE} pages of {PAGE} entries compared, of {pages}")
    ]


def test_results_read_as_a_sentence() -> None:
    result = VerifyResult(fields=3, structures=2, difference=FieldDifference("header.size", SPAN, 16, b"x" * 99))
    assert result.summary().startswith("two independent parsers differ after 3 fields of 2 structures: header.size (")
    assert "structs.py reads 16 (0x10)" in result.summary() and "..." in result.summary()
