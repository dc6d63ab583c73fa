"""All malformed and hostile images, one list. Each case is a recipe; nothing is made until somebody asks."""

from __future__ import annotations

from pathlib import Path

from . import (
    cases_compressed,
    cases_files,
    cases_header,
    cases_records,
    cases_refcounts,
    cases_strings,
    cases_tables,
)
from .case import HostileCase

CASES: list[HostileCase] = [
    *cases_header.CASES,
    *cases_strings.CASES,
    *cases_tables.CASES,
    *cases_compressed.CASES,
    *cases_refcounts.CASES,
    *cases_records.CASES,
    *cases_files.CASES,
]

BY_NAME: dict[str, HostileCase] = {case.name: case for case in CASES}


def make_case(case: HostileCase, folder: Path) -> Path:
    """Make a case in a folder of its own below `folder` and return the image's path."""
    own = folder / case.name
    own.mkdir()
    return case.make(own)
