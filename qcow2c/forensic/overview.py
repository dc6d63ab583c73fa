"""What a dump says first: a verdict, the findings by severity, and the bytes of the file by what they are."""

from __future__ import annotations

from collections.abc import Iterator

from qcow2c.forensic.nodes import Node, size_text
from qcow2c.format.findings import Severity

SECTIONS = ("map", "findings")
"""The sections of the dump that an overview is made from."""

VERDICTS = {0: "nothing is wrong", 2: "errors were found", 3: "clusters are leaked, and nothing else is wrong"}
"""By the exit status of a dump."""

_GRAVE_FIRST = tuple(severity.name.lower() for severity in sorted(Severity, reverse=True))


class Overview:
    """The sums over the sections `map` and `findings` of a dump, whose root is given."""

    def __init__(self, root: Node) -> None:
        self.findings = dict.fromkeys(_GRAVE_FIRST, 0)
        self.kinds: dict[str, int] = {}
        for section in root.children:
            before = ""
            for node in section.children:
                if section.name == "map" and node.span is not None:
                    self.kinds[node.name] = self.kinds.get(node.name, 0) + node.span.length
                elif section.name == "findings":
                    before = self._count(node, before)

    def _count(self, node: Node, before: str) -> str:
        """Count a finding, or those that are not listed, which are as grave as the one before; return how grave."""
        if isinstance(node.value, str):
            self.findings[node.value] = self.findings.get(node.value, 0) + 1
            return node.value
        if isinstance(node.value, int) and before:
            self.findings[before] += node.value
        return before

    def lines(self, exit_code: int) -> Iterator[str]:
        """Yield lines of text, each with its newline; `exit_code` is that of the dump."""
        yield f"verdict: {VERDICTS.get(exit_code, 'unknown')}\n"
        found = ", ".join(f"{count} {name}" for name, count in self.findings.items() if count)
        yield f"findings: {found or 'none'}\n"
        total = sum(self.kinds.values())
        for number, (name, size) in enumerate(sorted(self.kinds.items(), key=lambda kind: (-kind[1], kind[0]))):
            label = "bytes:" if not number else ""
            yield f"{label:<10}{size:>16} {100 * size / max(1, total):6.2f}%  {name}, {size_text(size)}\n"
