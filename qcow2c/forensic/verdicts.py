"""`Inspection`: the verdict on a file from a stranger, with each reason; as plain values, and back."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from qcow2c.errors import Span
from qcow2c.forensic.nodes import printable

SCHEMA = "qcow2c-inspect/1"

MAX_REASONS = 200
"""How many reasons a verdict lists; of the rest it says how many there are."""

MAX_OF_A_RULE = 20
"""How many of them may be of one rule."""


class Verdict(enum.StrEnum):
    ACCEPT = "accept"
    """Everything was looked at, and nothing speaks against it."""
    REJECT = "reject"
    UNSURE = "unsure"
    """Something could not be looked at, or is unusual: a matter for people, or for a copy that is made anew."""


_EXIT_CODES = {Verdict.ACCEPT: 0, Verdict.REJECT: 2, Verdict.UNSURE: 3}


@dataclass(frozen=True)
class Reason:
    """One thing that speaks against a file. `rule` is a stable name for programs; `value` met the bound `limit`."""

    rule: str
    verdict: Verdict
    message: str
    where: Span | None = None
    value: int | str | None = None
    limit: int | None = None

    def __str__(self) -> str:
        place = "" if self.where is None else f" ({self.where})"
        return f"{self.message}{place}"

    def as_dict(self) -> dict[str, Any]:
        """Return the members that have something to say, in their order."""
        place = {} if self.where is None else {"offset": self.where.offset, "length": self.where.length}
        bounds = {name: value for name, value in (("value", self.value), ("limit", self.limit)) if value is not None}
        return {"rule": self.rule, "verdict": str(self.verdict), "message": self.message} | place | bounds


@dataclass
class Inspection:
    """What was found out about a file. `facts` are what it says of itself, as far as that was read: names are text."""

    filename: str
    format: str = "unknown"
    file_bytes: int = 0
    facts: dict[str, int | str | bool] = field(default_factory=dict)
    reasons: list[Reason] = field(default_factory=list)
    reasons_unlisted: int = 0
    _worst: Verdict = Verdict.ACCEPT

    @property
    def verdict(self) -> Verdict:
        """`reject` if one reason says so, else `unsure` if one does, else `accept`."""
        return self._worst

    @property
    def exit_code(self) -> int:
        """0 accept, 2 reject, 3 unsure."""
        return _EXIT_CODES[self.verdict]

    @property
    def accepted(self) -> bool:
        return self.verdict is Verdict.ACCEPT

    def add(self, reason: Reason) -> None:
        """Count a reason, and list it while there is room."""
        if reason.verdict is Verdict.REJECT or self._worst is Verdict.ACCEPT:
            self._worst = reason.verdict
        same = sum(known.rule == reason.rule for known in self.reasons)
        if len(self.reasons) < MAX_REASONS and same < MAX_OF_A_RULE:
            self.reasons.append(reason)
        else:
            self.reasons_unlisted += 1

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, in the order of the schema: see docs/untrusted.md. All text is printable."""
        return {
            "schema": SCHEMA,
            "verdict": str(self.verdict),
            "filename": printable(self.filename),
            "format": self.format,
            "file-bytes": self.file_bytes,
            "facts": dict(self.facts),
            "reasons": [reason.as_dict() for reason in self.reasons],
            "reasons-unlisted": self.reasons_unlisted,
        }


def inspection_of(found: dict[str, Any]) -> Inspection:
    """Return the inspection that `as_dict` has made plain values of."""
    made = Inspection(found["filename"], found["format"], found["file-bytes"], dict(found["facts"]))
    for one in found["reasons"]:
        where = Span(one["offset"], one["length"]) if "offset" in one else None
        verdict = Verdict(one["verdict"])
        made.add(Reason(one["rule"], verdict, one["message"], where, one.get("value"), one.get("limit")))
    made.reasons_unlisted = found["reasons-unlisted"]
    made._worst = Verdict(found["verdict"])  # noqa: SLF001 - its own
    return made
