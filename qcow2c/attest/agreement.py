"""Comparing one structure, or one table, as two independent parsers read it; and the result that is collected.

Knows no structure by name: `verify.py` says what lies where. Of a large table it compares a sample of pages, and says
so; pages of zeros it compares once per kind of table. The first difference ends the comparison, because from there on
the two parsers may be looking at different things.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from construct import ConstructError

from qcow2c.attest.witnesses import READ_BYTES, REFUSALS, Kaitai, Leaf, kaitai_values
from qcow2c.errors import Span
from qcow2c.format.layout import Value
from qcow2c.storage.sources import Store

Fields = dict[str, Value]
T = TypeVar("T")

ENTRIES: Final = 16384
"""Entries that are compared of the tables that are compared together."""
PAGE: Final = 512
"""Entries that the Kaitai description reads at once."""
TABLE_PAGES_SEEN: Final = 8192
"""Pages of one table that are looked at to find those that hold more than zeros: all of the largest L1 table."""
PAGES_SEEN: Final = 65536
"""The same for all tables together."""
NOTES: Final = 256
"""Notes that are kept."""


# --- the result -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FieldDifference:
    """The first field on which the parsers disagree. None: this one has no such field, or cannot read it."""

    path: str
    where: Span
    construct: Value | None
    kaitai: Value | None

    def __str__(self) -> str:
        return (
            f"{self.path} ({self.where}): structs.py reads {_shown(self.construct)}, "
            f"qcow2.ksy reads {_shown(self.kaitai)}"
        )


class NoteKind(enum.Enum):
    """Why something was not compared, or not accepted."""

    UNREADABLE = "unreadable"
    """Neither parser can read it: the file ends, or a length is beyond belief."""
    REJECTED = "rejected"
    """The Kaitai description calls a value invalid. The values were compared all the same."""
    SAMPLED = "sampled"
    """Only a part was compared, because there is too much of it."""


@dataclass(frozen=True, slots=True)
class Note:
    """What there is to say about the structure `path` at the bytes `where`."""

    kind: NoteKind
    path: str
    where: Span
    text: str

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.path} ({self.where}): {self.text}"


@dataclass(slots=True)
class VerifyResult:
    """How many fields of how many structures agree, the first difference, and the notes, the first NOTES of them.

    A table counts as one structure.
    """

    fields: int = 0
    structures: int = 0
    difference: FieldDifference | None = None
    notes: list[Note] = field(default_factory=list)
    notes_dropped: int = 0

    @property
    def agrees(self) -> bool:
        """Return whether no difference was found."""
        return self.difference is None

    def summary(self) -> str:
        """Return one line: agreement, or the first difference."""
        compared = f"{self.fields} fields of {self.structures} structures"
        if self.difference is None:
            return f"two independent parsers agree on {compared}"
        return f"two independent parsers differ after {compared}: {self.difference}"


def _shown(value: Value | None) -> str:
    if value is None:
        return "nothing"
    return f"{value} ({value:#x})" if isinstance(value, int) else repr(value[:64]) + "..." * (len(value) > 64)


# --- tables ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ComparedTable:
    """A table of `entries` entries at byte `offset`."""

    path: str
    offset: int
    entries: int


@dataclass(frozen=True, slots=True)
class TableKind:
    """The Kaitai types of pages and entries, the parameters of a page, and how the schema reads one entry."""

    page: str
    entry: str
    parameters: Callable[[ComparedTable, int], tuple[int, ...]]
    entry_bytes: int
    values: Callable[[bytes], Fields]


def spread(items: Sequence[T], limit: int) -> Sequence[T]:
    """Return at most `limit` items, evenly spread, the first and (of two or more) the last among them."""
    if len(items) <= limit:
        return items
    last, steps = len(items) - 1, max(limit - 1, 1)
    return [items[index * last // steps] for index in range(limit)]


# --- the comparison -------------------------------------------------------------------------------------------------


class Disagreement(Exception):
    """The first difference is found, and recorded."""


class Agreement:
    """Collects one result: `checked` and `unchecked` are the compiled description with and without `valid`."""

    def __init__(self, store: Store, checked: Any, unchecked: Any) -> None:
        self.result = VerifyResult()
        self.store = store
        self.size = store.size()
        self._unchecked = Kaitai(unchecked, store)
        self._checked: Kaitai | None = Kaitai(checked, store)
        self._rejections: set[str] = set()
        self._zeros_compared: set[str] = set()
        self._pages_seen = 0

    def note(self, kind: NoteKind, path: str, where: Span, text: str) -> None:
        """Keep a note, while there is room."""
        if len(self.result.notes) < NOTES:
            self.result.notes.append(Note(kind, path, where, text))
        else:
            self.result.notes_dropped += 1

    def _differ(self, path: str, where: Span, construct: Value | None, kaitai: Value | None) -> Disagreement:
        self.result.difference = FieldDifference(path, where, construct, kaitai)
        return Disagreement()

    # --- one structure ---

    def structure(
        self,
        path: str,
        where: Span,
        declared: Callable[[bytes], list[Leaf]],
        read: Callable[[Kaitai], Any],
        *,
        limit: int | None = None,
        longest: int | None = None,
        end: int | None = None,
        padded: bool = False,
    ) -> Fields | None:
        """Compare one structure; return its fields, or None if neither parser can read it. Raises Disagreement.

        `limit` is where the bytes end, if before the file does; `longest` the longest part, if not all is read at
        once; `end` where the Kaitai parser must have stopped; `padded` says that only Kaitai has a field for padding.
        """
        expected, found, refusal = None, None, "the file ends, or the length is beyond belief"
        whole = where.end <= (self.size if limit is None else limit)
        believed = (where.length if longest is None else longest) <= READ_BYTES
        try:
            if whole and believed:
                expected = declared(self.store.pread(where.length, where.offset))
        except ConstructError as exc:
            refusal = str(exc).strip()
        try:
            found = kaitai_values(read(self._unchecked))
        except REFUSALS as exc:
            refusal = str(exc)
        if expected is None and found is None:
            self.note(NoteKind.UNREADABLE, path, where, refusal)
            return None
        if expected is None or found is None:
            known = expected[0].value if expected else None
            raise self._differ(path, where, known, next(iter(found.values()), None) if found else None)
        if padded:
            found.pop("padding", None)
        self._match(path, where, expected, found)
        if end is not None and self._unchecked.position != end:
            raise self._differ(f"{path}, its end", where, end, self._unchecked.position)
        self.result.fields += len(expected)
        self.result.structures += 1
        self._check(path, where, read)
        return {leaf.name: leaf.value for leaf in expected}

    def _match(self, path: str, where: Span, expected: list[Leaf], found: Fields) -> None:
        for leaf in expected:
            theirs = found.pop(leaf.name, None)
            if theirs != leaf.value:
                raise self._differ(_joined(path, leaf.name), leaf.where, leaf.value, theirs)
        for name, theirs in found.items():
            raise self._differ(_joined(path, name), where, None, theirs)

    def _check(self, path: str, where: Span, read: Callable[[Kaitai], Any]) -> None:
        """Let the form with `valid` read the same; what it rejects becomes a note, once for each reason."""
        if self._checked is None:
            return
        try:
            read(self._checked)
        except REFUSALS as exc:
            reason = str(exc)
            if reason not in self._rejections:
                self._rejections.add(reason)
                self.note(NoteKind.REJECTED, path, where, reason)
            if "root" not in vars(self._checked):
                self._checked = None  # It does not accept the header, and reads nothing without it.

    # --- tables ---

    def tables(self, kind: TableKind, tables: Sequence[ComparedTable]) -> Iterator[Fields]:
        """Compare tables of one kind; yield the fields of each entry that was compared. Raises Disagreement."""
        page_entries = min(PAGE, max((table.entries for table in tables), default=1)) or 1
        chosen = spread(tables, ENTRIES // page_entries)
        if len(chosen) < len(tables):
            where = Span(tables[0].offset, tables[0].entries * kind.entry_bytes)
            self.note(
                NoteKind.SAMPLED,
                tables[0].path,
                where,
                f"{len(chosen)} of {len(tables)} such tables compared",
            )
        for table in chosen:
            yield from self._table(kind, table, max(ENTRIES // (len(chosen) * page_entries), 1))

    def _table(self, kind: TableKind, table: ComparedTable, limit: int) -> Iterator[Fields]:
        pages = range(-(-table.entries // PAGE))
        holding = self._pages_to_compare(kind, table, pages)
        chosen = spread(holding, limit)
        if len(chosen) < len(holding) or len(pages) > TABLE_PAGES_SEEN:
            text = f"{len(chosen)} pages of {PAGE} entries compared, of {len(pages)}"
            self.note(NoteKind.SAMPLED, table.path, Span(table.offset, table.entries * kind.entry_bytes), text)
        for page in chosen:
            yield from self._page(kind, table, page)
        self.result.structures += 1

    def _pages_to_compare(self, kind: TableKind, table: ComparedTable, pages: range) -> list[int]:
        """Return the pages that hold more than zeros, the first page of zeros of a kind, and the one that is torn."""
        holding: list[int] = []
        for page in spread(pages, TABLE_PAGES_SEEN):
            if holding and self._pages_seen >= PAGES_SEEN:
                break
            self._pages_seen += 1
            where = _page_span(kind, table, page)
            data = self.store.pread(where.length, where.offset)
            if data.count(0) < len(data) or len(data) < where.length or kind.page not in self._zeros_compared:
                holding.append(page)
            if data.count(0) == len(data):
                self._zeros_compared.add(kind.page)
            if len(data) < where.length:
                break
        return holding

    def _page(self, kind: TableKind, table: ComparedTable, page: int) -> Iterator[Fields]:
        where = _page_span(kind, table, page)
        data = self.store.pread(where.length, where.offset)
        parameters = kind.parameters(table, page)
        entries: list[Any] | None = None
        try:
            entries = self._unchecked.at(kind.page, where.offset, *parameters).entries
        except REFUSALS as exc:
            if len(data) == where.length:
                raise self._differ(table.path, where, data, None) from exc
            self.note(NoteKind.UNREADABLE, table.path, where, str(exc))
        if entries is None:  # The file ends in this page: compare what there is, one by one.
            starts = range(where.offset, where.offset + len(data) - kind.entry_bytes + 1, kind.entry_bytes)
            entries = [self._unchecked.at(kind.entry, start) for start in starts]
        elif len(entries) * kind.entry_bytes != len(data):
            raise self._differ(f"{table.path}, its length", where, len(data) // kind.entry_bytes, len(entries))
        for index, entry in enumerate(entries):
            mine = kind.values(data[index * kind.entry_bytes : (index + 1) * kind.entry_bytes])
            theirs = kaitai_values(entry)
            if mine != theirs:
                span = Span(where.offset + index * kind.entry_bytes, kind.entry_bytes)
                expected = [Leaf(name, span, value) for name, value in mine.items()]
                self._match(f"{table.path}[{page * PAGE + index}]", span, expected, theirs)
            self.result.fields += len(mine)
            yield mine
        self._check(table.path, where, lambda kaitai: kaitai.at(kind.page, where.offset, *parameters).entries)


def _page_span(kind: TableKind, table: ComparedTable, page: int) -> Span:
    first = page * PAGE
    return Span(table.offset + first * kind.entry_bytes, min(PAGE, table.entries - first) * kind.entry_bytes)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if name else path
