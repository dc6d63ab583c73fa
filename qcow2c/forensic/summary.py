"""The summary of a dump: all findings by their rules, each once, in bounded space; and the exit status they make."""

from __future__ import annotations

from collections.abc import Iterator

from qcow2c.forensic.checked import Checked
from qcow2c.forensic.nodes import Node
from qcow2c.format.findings import Finding, Severity
from qcow2c.references.check_result import LEAK

MAX_FINDINGS = 100
"""How many findings of one rule the summary lists; the rest is counted."""

_LEAKS = (LEAK, "map.leak")

_BY_CHECK = ("map.leak", "map.overlap")
"""What the map says of extents, and a check of each cluster: the summary has the latter."""


class Summary:
    """Findings as they are noted; `worst` is the gravest of them since the dump was opened."""

    def __init__(self) -> None:
        self.worst = Severity.NOTE
        self._has_leaks = False
        self._listed: dict[str, list[Finding]] = {}
        self._counts: dict[str, int] = {}

    def clear(self) -> None:
        """Begin anew, but for what the exit status is made of."""
        self._listed.clear()
        self._counts.clear()

    @property
    def exit_code(self) -> int:
        """0 nothing is wrong, 2 something is, 3 clusters are leaked only."""
        return 2 if self.worst >= Severity.ERROR else 3 if self._has_leaks else 0

    def note(self, finding: Finding) -> None:
        """Add a finding."""
        self.worst = max(self.worst, finding.severity)
        self._has_leaks = self._has_leaks or finding.rule in _LEAKS
        self._counts[finding.rule] = self._counts.get(finding.rule, 0) + finding.times
        listed = self._listed.setdefault(finding.rule, [])
        if len(listed) < MAX_FINDINGS:
            listed.append(finding)

    def note_new(self, finding: Finding) -> None:
        """Add a finding, unless it is listed."""
        if finding not in self._listed.get(finding.rule, ()):
            self.note(finding)

    def note_check(self, checked: Checked) -> None:
        """Add what a check finds, in the place of what nodes said by the same rules."""
        for rule in {finding.rule for finding in checked.findings}.union(_BY_CHECK if checked.is_whole else ()):
            self._listed.pop(rule, None)
            self._counts.pop(rule, None)
        for finding in checked.findings:
            self.note(finding)
        if checked.unlisted:
            self.note(Finding("check.more", Severity.NOTE, f"{checked.unlisted} more that are not listed"))

    def nodes(self) -> Iterator[Node]:
        """Yield a node for each finding that is listed, and one for the rest of each rule."""
        for rule, listed in self._listed.items():
            for finding in listed:
                yield Node(rule, finding.where, finding.severity.name.lower(), finding.message, spec=finding.spec)
            more = self._counts[rule] - sum(finding.times for finding in listed)
            if more > 0:
                yield Node(rule, None, more, f"{more} more of this rule")
