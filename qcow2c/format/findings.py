"""`Finding` and `Severity`: what a rule says of one place in a file. Judges nothing itself."""

from __future__ import annotations

import enum
from collections.abc import Iterable

from qcow2c.errors import CorruptMetadata, Qcow2Error, Span
from qcow2c.light import NamedTuple


class Severity(enum.IntEnum):
    NOTE = 0
    """Worth saying; nothing is wrong."""
    WARNING = 1
    """The specification is broken where it does no harm to guest data, or where every reader looks away."""
    ERROR = 2
    """Corrupt: metadata can be looked at, but guest data is refused, except to salvage."""
    FATAL = 3
    """Nothing beyond the header can be trusted: the image is not opened."""


class Finding(NamedTuple):
    """What one rule has to say of one place. `rule` is a stable name for programs."""

    rule: str
    severity: Severity
    message: str
    where: Span | None = None
    spec: str = ""
    error: type[Qcow2Error] = CorruptMetadata
    times: int = 1
    """How many entries of a run it is about."""

    def exception(self) -> Qcow2Error:
        """Return the finding as an error of the tree."""
        return self.error(self.message, where=self.where, spec=self.spec)


def raise_first(findings: Iterable[Finding], at_least: Severity, also: tuple[str, ...] = ()) -> list[Finding]:
    """Raise the first finding that is at least so severe; return the others.

    `also` names rules, by the start of their names, of which a warning is raised too.
    """
    passed = []
    for finding in findings:
        named = finding.severity >= Severity.WARNING and finding.rule.startswith(also)
        if finding.severity >= at_least or (also and named):
            raise finding.exception()
        passed.append(finding)
    return passed
