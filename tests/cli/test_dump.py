"""`qcow2c dump` from the command line: forms, questions, exit status."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qcow2c.cli import main
from tests.building import Builder


@pytest.fixture
def demo(examples: Path, tmp_path: Path) -> Path:
    for name in ("demo.qcow2", "base.qcow2"):
        shutil.copy(examples / name, tmp_path)
    return tmp_path / "demo.qcow2"


def test_the_text_shows_every_section_and_is_plain(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", str(demo)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for title in ("header", "extensions", "snapshots", "bitmaps", "l1", "l2", "refcounts", "map", "findings"):
        assert f"\n{title}\n" in out
    assert "before-update" in out and "\x1b" not in out
    assert len(out.splitlines()) < 400


def test_sections_are_picked(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", "--section", "map", "--section", "header", str(demo)]) == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if line and not line.startswith(" ")]
    assert titles[1:] == ["header", "map"]
    assert main(["dump", "--section", "colours", str(demo)]) == 1


def test_json_is_one_document_and_a_chain_an_array(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", "--output=json", "--raw", "--doc", str(demo)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "qcow2c-dump/1"
    assert main(["dump", "--output=json", "--backing-chain", "--section=header", str(demo)]) == 0
    chain = json.loads(capsys.readouterr().out)
    assert [Path(layer["file"]["value"]).name for layer in chain] == ["demo.qcow2", "base.qcow2"]
    assert main(["dump", "--output=json", "--backing-chain", "--gate=deny", str(demo)]) == 1
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 1 and "--gate" in err


def test_json_lines_have_paths(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", "--output=jsonl", "--section=l2", str(demo)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == {"schema": "qcow2c-dump/1"}
    assert rows[3]["path"][:2] == ["file", "l2"] and rows[3]["name"] == rows[3]["path"][-1]


def test_questions_are_answered(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", "--offset", "0x2a0a0", str(demo)]) == 0
    assert "l2_table" in capsys.readouterr().out
    assert main(["dump", "--guest", "1M", str(demo)]) == 0
    out = capsys.readouterr().out
    assert "active" in out and "before-update" in out
    assert main(["dump", "--offset", "1T", str(demo)]) == 1
    assert capsys.readouterr().err.startswith(f"qcow2c: {demo}: offset 0x10000000000 is outside")


def test_two_parsers_are_compared_on_request(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", "--section=findings", "--verify", str(demo)]) == 0
    assert "two independent parsers agree" in capsys.readouterr().out


def test_errors_in_the_image_have_status_2_and_no_image_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Builder(cluster_bits=12)
    broken.entry(0, 1 << 57)
    (tmp_path / "broken").write_bytes(broken.build())
    assert main(["dump", str(tmp_path / "broken")]) == 2
    assert "reserved bits" in capsys.readouterr().out
    (tmp_path / "text").write_bytes(b"text")
    assert main(["dump", str(tmp_path / "text")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1


def test_help_shows_examples_and_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", "--help"]) == 0
    out = capsys.readouterr().out
    assert "examples:" in out and "exit status:" in out


def test_the_text_begins_with_the_verdict_and_names_its_columns(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", str(demo)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["verdict: nothing is wrong", "findings: none"]
    assert lines[3].startswith("bytes: ") and any(line.split()[:2] == ["offset", "length"] for line in lines)
    assert main(["dump", "--summary", str(demo)]) == 0
    short = capsys.readouterr().out.splitlines()
    assert short[1] == "verdict: nothing is wrong" and len(short) < 30 and short[-2:] == ["findings", "  none"]


def test_stock_names_and_long_tables_are_folded_unless_all_is_asked_for(
    tmp_path: Path, demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dump", "--section=extensions", str(demo)]) == 0
    assert "8 more that every image has" in capsys.readouterr().out
    assert main(["dump", "--section=extensions", "--all", str(demo)]) == 0
    assert "lazy refcounts" in capsys.readouterr().out
    builder = Builder(2 << 20)
    for number in range(500):
        builder.data((number * 7) % 512, b"x")
    path = tmp_path / "fragmented.qcow2"
    path.write_bytes(builder.build())
    assert main(["dump", "--section=l2", str(path)]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 60 and "data, copied" in out and "guest 0x" in out
    assert main(["dump", "--section=l2", "--all", str(path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 400


def test_entries_say_where_on_the_disk_they_are(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", "--output=jsonl", "--section=l2", str(demo)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()][1:]
    tables = {row["name"]: row["guest"] for row in rows if row["name"].startswith("L2 table")}
    assert tables == {"L2 table at 0x8000": 0, "L2 table at 0xe000": 8 << 20, "L2 table at 0x2a000": 0}
    (entry,) = [row for row in rows if row["path"][2:3] == ["L2 table at 0x2a000"] and row["name"] == "[128..129]"]
    assert entry["guest"] == 128 * 8192


def test_free_space_is_shown_with_the_status_of_the_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    builder = Builder(1 << 20)
    builder.data(0, b"x")
    builder.put(b"a line of text\n" * 90)
    path = tmp_path / "leaking.qcow2"
    path.write_bytes(builder.build())
    assert main(["dump", "--free", str(path)]) == 3
    out = capsys.readouterr().out
    assert "\nfree\n" in out and "\nmap\n" not in out
    assert any(line.split()[2:4] == ["text", "leak"] for line in out.splitlines() if "text" in line)
    assert main(["dump", "--free", "--section=header", "--output=json", str(path)]) == 0
    assert [section["name"] for section in json.loads(capsys.readouterr().out)["file"]["children"]] == [
        "header",
        "free",
    ]


def test_an_image_in_a_file_with_a_header_that_is_wrong_is_dumped(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "part"
    path.write_bytes(bytes(1000) + b"XXXX" + demo.read_bytes()[4:])
    assert main(["dump", "--offset-in-file", "1000", str(path)]) == 1
    assert main(["dump", "--offset-in-file", "1000", "--force", "--summary", str(path)]) == 0
    assert "verdict: nothing is wrong" in capsys.readouterr().out
    assert main(["dump", "--cluster-bits", "16", "--summary", str(demo)]) == 2
    assert main(["dump", "--cluster-bits", "40", str(demo)]) == 1
