"""`dump`: what is in an image, byte by byte, as a tree of nodes that is made while it is walked.

It works on damaged, truncated and hostile images: it shows what is there, says what is wrong where it is wrong, and
goes on. It opens one file, reads it in pieces of bounded size, and prints nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

from qcow2c.constants import MAGIC, Limit
from qcow2c.errors import (
    ChainError,
    LimitExceeded,
    NotQcow2,
    Qcow2Error,
    Span,
    StoreError,
    UnsupportedFeature,
    UsageError,
)
from qcow2c.forensic import render_text
from qcow2c.forensic.checked import Checked
from qcow2c.forensic.encryption_nodes import OneKey, encryption_nodes
from qcow2c.forensic.header_nodes import (
    bare_header,
    bitmap_nodes,
    extension_nodes,
    feature_nodes,
    header_node,
    snapshot_nodes,
)
from qcow2c.forensic.limits import bounded, has_geometry
from qcow2c.forensic.nodes import Findings, Node, size_text
from qcow2c.forensic.render_text import Style
from qcow2c.forensic.steps import Steps
from qcow2c.forensic.summary import Summary
from qcow2c.forensic.table_nodes import bitmap_table_nodes, l1_nodes, l2_nodes, refcount_nodes
from qcow2c.forensic.trace import guest_nodes, host_nodes
from qcow2c.format import rules
from qcow2c.format.findings import Finding, Severity
from qcow2c.format.header import Header
from qcow2c.references.ownership import HostUse, extents
from qcow2c.references.walk import Walk
from qcow2c.storage import locks
from qcow2c.storage.gate import Gate, GateRequest, gate_for
from qcow2c.storage.integers import index_or_none
from qcow2c.storage.sources import Source, Store, opened
from qcow2c.storage.store import Progress

SECTIONS = (
    "header", "features", "extensions", "encryption", "snapshots", "bitmaps", "l1", "l2", "refcounts", "map", "findings"
)  # fmt: skip
"""The parts of a dump, in their order."""

_TABLES = ("l1", "l2", "refcounts")


class Dump:
    """One image taken apart: `root` and `question` are trees of nodes; `text`, `json` and `json_lines` render them.

    A context manager: `close()` closes the file, if the dump opened it.
    """

    def __init__(
        self,
        source: Source | Store,
        sections: Iterable[str] | None = None,
        *,
        verify: bool = False,
        share: bool = False,
        progress: Progress | None = None,
        key: OneKey | None = None,
    ) -> None:
        """Open an image for its `sections`, all without any; arguments and errors are those of `dump`."""
        chosen = tuple(sections or SECTIONS)
        for section in chosen:
            if section not in SECTIONS:
                raise UsageError(f"unknown section {section!r}, not one of {', '.join(SECTIONS)}")
        self.sections = [section for section in SECTIONS if section in chosen]
        self._verify, self._key = verify, key
        self._summary = Summary()
        with ExitStack() as stack:
            self.store = stack.enter_context(opened(source, locks.Use.of_reader(share=share)))
            self._steps = Steps(progress, self.store.size(), self.sections)
            self._load()
            self._opened = stack.pop_all()

    def __repr__(self) -> str:
        return f"<Dump of {self.store.name!r}>"

    def __enter__(self) -> Dump:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, if this dump opened it."""
        self._opened.close()

    def _load(self) -> None:
        self.header: Header | None = None
        self.walk: Walk | None = None
        self._unreadable: Finding | None = None
        self._header_findings: list[Finding] = []
        try:
            header = Header.load(self.store)
        except (NotQcow2, UnsupportedFeature) as exc:
            if self.store.pread(len(MAGIC), 0) != MAGIC:
                raise
            self._unreadable = Finding("header.unreadable", Severity.FATAL, exc.message, exc.where, exc.spec)
            return
        self.header = header
        self._header_findings = list(rules.header_findings(header))
        if has_geometry(header):
            # What exceeds a limit is a finding; the walk sees no more of it than the limit.
            self.walk = Walk(self.store, bounded(header))

    @property
    def exit_code(self) -> int:
        """Of what was walked so far, as of a check: 0, 2 where something is wrong, 3 where clusters are leaked only."""
        return self._summary.exit_code

    @property
    def worst(self) -> Severity:
        """The gravest finding of all nodes that were walked so far."""
        return self._summary.worst

    @cached_property
    def _checked(self) -> Checked | None:
        """What a check says; None where the header does not even say where anything is."""
        return None if self.walk is None else Checked(self.store, self.walk.geometry.cluster_size, self._steps.of_check)

    # --- renderings ---

    def text(self, node: Node | None = None, style: Style | None = None, first: Iterable[str] = ()) -> Iterator[str]:
        """Yield the lines of a tree, of the whole file without one; `first` are lines below that about the file."""
        return render_text.lines(node or self.root, self.store, style or Style(), first)

    def json(self, node: Node | None = None, *, raw: bool = False, doc: bool = False) -> Iterator[str]:
        """Yield a tree as one JSON document, piece by piece: see docs/dump-schema.md.

        `raw` adds the bytes of each field, `doc` what it means.
        """
        from qcow2c.forensic import render_json

        return render_json.document(node or self.root, self.store, raw=raw, doc=doc)

    def json_lines(self, node: Node | None = None, *, raw: bool = False, doc: bool = False) -> Iterator[str]:
        """Yield a tree as JSON lines, one a node, parents first; otherwise as `json`."""
        from qcow2c.forensic import render_json

        return render_json.json_lines(node or self.root, self.store, raw=raw, doc=doc)

    # --- the tree ---

    def question(self, *, host_offset: int | None = None, guest_offset: int | None = None) -> Node:
        """Return the tree that answers what a byte of the file is, and where a byte of the disk comes from; or `root`.

        Raises UsageError for a byte outside the file, and where no table can be believed.
        """
        host_offset, guest_offset = index_or_none(host_offset), index_or_none(guest_offset)
        if host_offset is None and guest_offset is None:
            return self.root
        walk = self.walk
        if walk is None:
            raise UsageError("the header does not say where anything is")
        answers: list[Node] = []
        if host_offset is not None:
            if not 0 <= host_offset < walk.size:
                raise UsageError(f"offset {host_offset:#x} is outside the file, which has {walk.size:#x} bytes")
            span = Span(host_offset, 1)
            inner = (section for section in self._nodes() if section.name not in ("map", "findings", "features"))
            make = self._with_findings(partial(host_nodes, walk, host_offset, inner))
            answers.append(Node(f"offset {host_offset:#x}", span, make_children=partial(self._guarded, make)))
        if guest_offset is not None:
            make = self._with_findings(partial(guest_nodes, walk, guest_offset))
            answers.append(Node(f"guest offset {guest_offset:#x}", make_children=partial(self._guarded, make)))
        return replace(self.root, make_children=lambda: answers)

    def _with_findings(self, make: Callable[[], Iterator[Node]]) -> Callable[[], Iterator[Node]]:
        """Let the nodes of an answer say what a check finds there."""
        checked = self._checked
        return make if checked is None else lambda: checked.along(make())

    @property
    def _name(self) -> str:
        return os.fsencode(self.store.name).decode("utf-8", "backslashreplace")

    @property
    def root(self) -> Node:
        """The whole file."""
        size = self.store.size()
        return Node("file", Span(0, size), self._name, f"{size} bytes, {size_text(size)}", make_children=self._nodes)

    def _nodes(self) -> Iterator[Node]:
        self._summary.clear()
        self._steps.begin()
        makers = self._makers()
        # A check first: what it holds is free again before the sections read the tables.
        _ = self._checked if "findings" in self.sections else None
        for section in self.sections:
            if section == "findings":
                yield self._findings_node()
            elif section in makers:
                make = partial(self._steps.along, section, makers[section])
                yield Node(section, make_children=partial(self._guarded, make))
        if self._verify:
            yield Node("verify", make_children=partial(self._guarded, self._verification))
        self._steps.end()

    def _makers(self) -> dict[str, Callable[[], Iterator[Node]]]:
        header, walk = self.header, self.walk
        if header is None:
            unreadable = self._unreadable
            assert unreadable is not None, "a header is loaded, or there is a finding why not"
            return {"header": lambda: iter([bare_header(self.store, unreadable)])}
        makers: dict[str, Callable[[], Iterator[Node]]] = {
            "header": lambda: self._header(header),
            "features": lambda: feature_nodes(header),
        }
        if header.has_valid_cluster_bits:
            makers["extensions"] = lambda: extension_nodes(header, Findings(self._header_findings))
            makers["encryption"] = lambda: encryption_nodes(self.store, header, self._key)
        if walk is not None:
            makers |= {
                "snapshots": lambda: snapshot_nodes(self.store, walk.header, walk.snapshots),
                "bitmaps": lambda: self._bitmaps(walk),
                "l1": lambda: l1_nodes(walk),
                "l2": lambda: l2_nodes(walk),
                "refcounts": lambda: refcount_nodes(walk),
                "map": lambda: self._map(walk),
            }
        return makers

    def _header(self, header: Header) -> Iterator[Node]:
        findings = Findings(self._header_findings)
        yield header_node(self.store, header, findings)
        for extension in header.extensions:
            findings.at(extension.span)  # Shown at the extension.
        for finding in findings.rest():
            yield Node("finding", finding.where, None, finding.message, spec=finding.spec, findings=(finding,))

    def _bitmaps(self, walk: Walk) -> Iterator[Node]:
        yield from bitmap_nodes(self.store, walk.header, walk.bitmaps)
        yield from bitmap_table_nodes(walk)

    def _map(self, walk: Walk) -> Iterator[Node]:
        header = walk.header
        ends = [header.header_length, *(extension.span.end for extension in header.extensions)]
        if header.backing_file:
            ends.append(header.backing_file_offset + len(header.backing_file))
        header_end = min(max(ends), header.cluster_size)
        for extent in extents(_with_distinct_bitmaps(walk), header_end):
            owner = extent.owner.name.lower()
            name = owner if extent.use is HostUse.OWNED else extent.use.value
            words = {HostUse.SLACK: f"unused rest of the {owner}", HostUse.OVERLAP: f"{owner} and something else"}
            findings: tuple[Finding, ...] = ()
            if extent.use in (HostUse.OVERLAP, HostUse.LEAK):
                grave = Severity.ERROR if extent.use is HostUse.OVERLAP else Severity.WARNING
                message = f"{extent.use.value} of {size_text(extent.length)}"
                findings = (Finding(f"map.{extent.use.value}", grave, message, Span(extent.offset, extent.length)),)
            meaning = words.get(extent.use, "") or size_text(extent.length)
            yield Node(name, Span(extent.offset, extent.length), extent.use.value, meaning, findings=findings)

    def _verification(self) -> Iterator[Node]:
        from qcow2c.attest.verify import verify  # The second parser is needed only here.

        result = verify(self.store)
        yield Node("two parsers", None, result.agrees, result.summary())
        for note in result.notes:
            yield Node("note", None, None, str(note))

    # --- findings ---

    def _guarded(self, make: Callable[[], Iterator[Node]]) -> Iterator[Node]:
        """Yield the nodes of a section; what stops its walk becomes a finding, and the dump goes on."""
        try:
            for node in make():
                yield self._noted(node)
        except (Qcow2Error, RecursionError) as exc:
            if isinstance(exc, StoreError):
                raise
            where = exc.where if isinstance(exc, Qcow2Error) else None
            grave = Severity.ERROR
            rule = "dump.limit" if isinstance(exc, LimitExceeded) else "dump.stopped"
            finding = Finding(rule, grave, str(getattr(exc, "message", exc)), where)
            yield self._noted(Node("stopped", where, None, finding.message, findings=(finding,)))

    def _noted(self, node: Node) -> Node:
        for finding in node.findings:
            self._summary.note(finding)
        inner = node.make_children
        if inner is None:
            return node
        return replace(node, make_children=lambda: map(self._noted, inner()))

    def _findings_node(self) -> Node:
        """The summary: what a check finds, what is wrong in the header and the records, and what was walked before."""

        def children() -> Iterator[Node]:
            self._note_the_rest()
            yield from self._summary.nodes()

        return Node("findings", make_children=children)

    def _note_the_rest(self) -> None:
        """Note what sections that were not walked would say, and all that a check says, each of it once."""
        checked = self._checked
        if checked is not None:
            if not checked.is_whole:
                self._walk_tables()
            self._summary.note_check(checked)
        for finding in self._of_header_and_records():
            self._summary.note_new(finding)

    def _walk_tables(self) -> None:
        """Walk the tables that were not asked for, because of what they have to say."""
        makers = self._makers()
        for section in _TABLES:
            if section not in self.sections and section in makers:
                for node in self._guarded(makers[section]):
                    for _ in node.children:
                        pass

    def _of_header_and_records(self) -> Iterator[Finding]:
        if self._unreadable is not None:
            yield self._unreadable
        yield from self._header_findings
        walk = self.walk
        if walk is None:
            return
        for record in walk.snapshots.records:
            if record.span.offset < walk.size:
                yield from rules.snapshot_findings(walk.header, record)
        for bitmap in walk.bitmaps.records:
            yield from rules.bitmap_findings(walk.header, bitmap)
        yield from (broken for broken in (walk.snapshots.broken, walk.bitmaps.broken) if broken is not None)


def dump(
    source: Source | Store,
    sections: Iterable[str] | None = None,
    *,
    verify: bool = False,
    share: bool = False,
    progress: Progress | None = None,
    key: OneKey | None = None,
) -> Dump:
    """Take an image apart, and return the tree of it, which is made while it is walked.

    `sections` picks parts of SECTIONS; `verify` adds the comparison with a second, independent parser; `share=True`
    reads an image although another process may be writing to it. `progress` is told, while the tree is walked, how much
    is done, and all, each section as long as the file; `key` is said to open a key slot of LUKS, or none.
    Raises NotQcow2 where not even the magic is there, StoreError, ImageLocked, UsageError; damage is findings, not
    errors.
    """
    return Dump(source, sections, verify=verify, share=share, progress=progress, key=key)


def chain(path: str, gate: str | Gate) -> Iterator[Store]:
    """Yield the image at `path` and each qcow2 file below it, as far as the gate allows; each is closed afterwards.

    None is locked: a dump does that. Raises GateRefused, ChainError, StoreError.
    """
    seen: list[object] = []
    image, policy = path, gate_for(gate)
    while True:
        with opened(image) as store:
            if store.identity() in seen:
                raise ChainError(f"backing file {store.name!r} creates a loop")
            if len(seen) > Limit.BACKING_CHAIN_DEPTH:
                raise ChainError(f"the backing chain has more than {Limit.BACKING_CHAIN_DEPTH} layers")
            seen.append(store.identity())
            if len(seen) > 1 and store.pread(len(MAGIC), 0) != MAGIC:
                return  # A raw file has no structures.
            yield store
            try:
                name = Header.load(store).backing_file
            except (NotQcow2, UnsupportedFeature):
                return
            if not name:
                return
            place = Path(store.name) if store.url is None else None
            image = os.fspath(policy(GateRequest("backing file", os.fsdecode(name), place, store.url)))


def _with_distinct_bitmaps(walk: Walk) -> Walk:
    """Return the walk, without the bitmaps whose table another one has: thousands may name one and the same."""
    distinct = {record.bitmap_table_offset: record for record in reversed(walk.bitmaps.records)}
    if len(distinct) == len(walk.bitmaps.records):
        return walk
    bitmaps = walk.bitmaps._replace(records=tuple(distinct.values()))
    return Walk(walk.store, walk.header, walk.snapshots, bitmaps)
