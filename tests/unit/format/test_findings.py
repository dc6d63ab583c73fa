"""Findings: the first severe one is raised, the others are returned."""

from __future__ import annotations

import pytest

from qcow2c.errors import LimitExceeded, Span
from qcow2c.format.findings import Finding, Severity, raise_first

FATAL, ERROR, WARNING, NOTE = Severity.FATAL, Severity.ERROR, Severity.WARNING, Severity.NOTE


def test_the_first_severe_finding_is_raised_and_the_others_returned() -> None:
    notes = [Finding("a", NOTE, "a"), Finding("b", ERROR, "b", Span(1, 2), "Header", LimitExceeded)]
    assert raise_first(notes[:1], ERROR) == notes[:1]
    assert raise_first(notes, FATAL) == notes
    with pytest.raises(LimitExceeded, match="b") as caught:
        raise_first(notes, ERROR)
    assert caught.value.where == Span(1, 2) and caught.value.spec == "Header"
