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

_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")
_PLACE = re.compile(r" at N")
_KINDS = 6


def folded(nodes: Iterable[Node]) -> Iterator[Node]:
    """Yield nodes, with one in the place of many where more than MOST follow each other that have nothing below them.

    A node with findings, or with children, is never folded away. At most MOST nodes are held.
    """
    waiting: deque[Node] = deque()
    kinds: Counter[str] = Counter()
    shown = skipped = 0
    first: Node | None = None
    for node in nodes:
        if node.findings or node.make_children is not None:
            yield from _rest(waiting, kinds, first, skipped)
            waiting, kinds, first, shown, skipped = deque(), Counter(), None, 0, 0
            yield node
        elif shown < FIRST:
            shown += 1
            yield node
        else:
            waiting.append(node)
            if len(waiting) > MOST - FIRST or (skipped and len(waiting) > LAST):
                first = first or waiting[0]
                while len(waiting) > LAST:
                    kinds[_kind(waiting.popleft())] += 1
                    skipped += 1
    yield from _rest(waiting, kinds, first, skipped)


def _rest(waiting: deque[Node], kinds: Counter[str], first: Node | None, skipped: int) -> Iterator[Node]:
    if first is not None:
        most = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(_KINDS))
        more = f", {len(kinds) - _KINDS} other kinds" if len(kinds) > _KINDS else ""
        yield Node("...", None, None, f"{skipped} rows more from {first.name} on (--all shows them): {most}{more}")
    yield from waiting


def _kind(node: Node) -> str:
    """Return what a row has in common with others of its kind."""
    name = "" if node.name.endswith("]") or node.name.startswith("cluster") else node.name + " "
    words = _PLACE.sub("", _NUMBERS.sub("N", node.text))
    return f"{name}{words}" if words and words[0] not in "N." else name.strip() or words
