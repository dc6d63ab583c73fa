"""Long lists of rows as a few: the first ones, what the others are by number, and the last. For the text of a dump."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator

from qcow2c.forensic.nodes import Node

FIRST, LAST = 12, 2
"""Rows that are shown of a list that is folded."""

MOST = 48
"""Rows of a list that is shown whole."""

_NUMBERS = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{5,}\b|\d+")
_PLACE = re.compile(r" at N")
_KINDS = 6


def folded(nodes: Iterable[Node]) -> Iterator[Node]:
    """Yield nodes, with one in the place of many where more than MOST follow each other that have nothing below them.

    A node with children is never folded away, nor are the first ones with findings; how many of the others have
    findings is said. At most MOST nodes are held.
    """
    fold = _Fold()
    shown = wrong = 0
    for node in nodes:
        wrong += bool(node.findings)
        if node.make_children is not None or (node.findings and wrong <= FIRST):
            yield from fold.rows()
            fold = _Fold()
            shown = 0 if node.make_children is not None else shown
            yield node
        elif shown < FIRST:
            shown += 1
            yield node
        else:
            fold.add(node)
    yield from fold.rows()


class _Fold:
    """Rows that may become one: as long as they are few, they are kept."""

    def __init__(self) -> None:
        self._waiting: deque[Node] = deque()
        self._kinds: Counter[str] = Counter()
        self._first = ""
        self._wrong = 0

    def add(self, node: Node) -> None:
        self._waiting.append(node)
        if len(self._waiting) > MOST - FIRST or (self._first and len(self._waiting) > LAST):
            self._first = self._first or self._waiting[0].name
            while len(self._waiting) > LAST:
                gone = self._waiting.popleft()
                self._kinds[_kind(gone)] += 1
                self._wrong += bool(gone.findings)

    def rows(self) -> Iterator[Node]:
        """Yield what is shown of them."""
        if self._first:
            most = ", ".join(f"{count} {kind}" for kind, count in self._kinds.most_common(_KINDS))
            more = f", {len(self._kinds) - _KINDS} other kinds" if len(self._kinds) > _KINDS else ""
            wrong = f"; {self._wrong} of them with findings" if self._wrong else ""
            count = f"{self._kinds.total()} rows more from {self._first} on (--all shows them)"
            yield Node("...", None, None, f"{count}: {most}{more}{wrong}")
        yield from self._waiting


def _kind(node: Node) -> str:
    """Return what a row has in common with others of its kind."""
    name = "" if node.name.endswith("]") or node.name.startswith("cluster") else node.name + " "
    words = _PLACE.sub("", _NUMBERS.sub("N", node.text))
    return f"{name}{words}" if words and words[0] not in "N." else name.strip() or words
