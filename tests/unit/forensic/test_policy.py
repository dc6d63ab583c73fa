"""The policy: strict by default, changed by keywords and TOML, and described as it is."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from qcow2c.errors import UsageError
from qcow2c.forensic.policy import Policy, PolicyRules, read_policy


def test_the_keywords_are_the_fields_with_their_types() -> None:
    declared = {name: getattr(kind, "__forward_arg__", kind) for name, kind in PolicyRules.__annotations__.items()}
    assert declared == {field.name: field.type for field in fields(Policy)}


def test_the_document_has_a_row_for_each_rule(project_root: Path) -> None:
    text = (project_root / "docs/untrusted.md").read_text(encoding="utf-8")
    section = text.partition("## The policy")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [field.name for field in fields(Policy)]


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('formats = ["qcow2", "raw"]\nallow_snapshots = true\nmax_seconds = 5\n')
    assert read_policy(path) == Policy(formats=("qcow2", "raw"), allow_snapshots=True, max_seconds=5)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"alow_leaks": True}, "unknown rule 'alow_leaks'"),
    ({"allow_leaks": 1}, "allow_leaks is 1, neither true nor false"),
    ({"max_file_bytes": "1G"}, "max_file_bytes is '1G', not a number"),
    ({"max_file_bytes": True}, "max_file_bytes is True, not a number"),
    ({"max_seconds": -1}, "max_seconds is -1, below 0"),
    ({"max_seconds": float("nan")}, "max_seconds is nan, below 0"),
    ({"formats": "qcow2"}, "formats is 'qcow2', not a list of names"),
]


@pytest.mark.parametrize(("rules", "message"), BAD)
def test_a_wrong_rule_is_refused_with_its_value(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        Policy().changed(rules)


def test_what_is_no_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("formats = \n")
    with pytest.raises(UsageError, match="is no TOML file"):
        read_policy(tmp_path / "bad.toml")
