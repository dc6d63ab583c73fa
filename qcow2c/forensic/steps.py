"""How far a dump is: its check first, and then section by section, each as long as the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from qcow2c.forensic.nodes import Node
from qcow2c.storage.store import Progress


class Steps:
    """Tells a caller how much of a dump is done, in bytes of the file times the sections that go over it."""

    def __init__(self, progress: Progress | None, size: int, sections: Sequence[str]) -> None:
        self._progress = progress
        self._size = max(1, size)
        ordered = sorted(sections, key=lambda section: section != "findings")
        self._starts = {section: number * self._size for number, section in enumerate(ordered)}
        self._total = len(ordered) * self._size
        self._done = 0

    def begin(self) -> None:
        """Tell that nothing is done yet."""
        self._done = -1
        self._tell(0)

    def of_check(self, done: int, size: int) -> None:
        """Tell how far the check is, which the findings come from."""
        self._tell(self._starts.get("findings", 0) + done * self._size // max(1, size))

    def along(self, section: str, make: Callable[[], Iterator[Node]]) -> Iterator[Node]:
        """Yield the nodes of a section, which lie in the order of the file."""
        start = self._starts[section]
        for node in make():
            if node.span is not None:
                self._tell(start + min(node.span.offset, self._size))
            yield node
        self._tell(start + self._size)

    def end(self) -> None:
        """Tell that all is done."""
        self._tell(self._total)

    def _tell(self, done: int) -> None:
        if self._progress is not None and done > self._done:
            self._done = done
            self._progress(min(done, self._total), self._total)
