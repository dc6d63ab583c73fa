"""`inspect` on the command line: verdict, reasons, exit status, policy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qcow2c.cli import main

Capture = pytest.CaptureFixture[str]


def test_a_verdict_has_its_reasons_and_its_exit_status(examples: Path, capfd: Capture) -> None:
    assert main(["inspect", str(examples / "base.qcow2")]) == 0
    assert capfd.readouterr().out.startswith("accept: ")
    assert main(["inspect", str(examples / "demo.qcow2")]) == 2
    out = capfd.readouterr().out.splitlines()
    assert out[0].startswith("reject: ")
    assert "  reject  feature.snapshots: 1 internal snapshots (bytes 0x3c..0x3f)" in out


def test_json_has_the_verdict_the_policy_and_the_tool(examples: Path, capfd: Capture) -> None:
    assert main(["inspect", "--output=json", "--isolated", str(examples / "demo.qcow2")]) == 2
    found = json.loads(capfd.readouterr().out)
    assert (found["schema"], found["verdict"], found["format"]) == ("qcow2c-inspect/1", "reject", "qcow2")
    assert found["policy"]["allow_snapshots"] is False and found["tool"]["name"] == "qcow2c"


def test_rules_are_set_by_a_file_and_by_words(examples: Path, tmp_path: Path, capfd: Capture) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("allow_snapshots = true\nallow_backing_file = true\n")
    demo = str(examples / "demo.qcow2")
    assert main(["inspect", "--policy", str(policy), demo]) == 0
    words = ["--set", "formats=raw,vmdk", "--set", "max_virtual_bytes=1M", "--set", "max_seconds=9.5"]
    assert main(["inspect", "--policy", str(policy), *words, demo]) == 2
    out = capfd.readouterr().out
    assert "format.not_allowed" in out and "size.virtual" in out
    assert main(["inspect", "-f", "vmdk", "--policy", str(policy), demo]) == 2


@pytest.mark.parametrize(
    "word", ["nonsense=1", "allow_leaks", "allow_leaks=1", "max_seconds=x", "max_file_bytes=x", "max_seconds=-1"]
)
def test_a_rule_that_is_none_is_one_line(word: str, examples: Path, capfd: Capture) -> None:
    assert main(["inspect", "--set", word, str(examples / "base.qcow2")]) == 1
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and word.partition("=")[0] in err


def test_what_cannot_be_read_is_status_one(tmp_path: Path, capfd: Capture) -> None:
    assert main(["inspect", str(tmp_path)]) == 1
    assert main(["inspect", "--policy", str(tmp_path / "none"), "x"]) == 1
    assert capfd.readouterr().err.count("\n") == 2
