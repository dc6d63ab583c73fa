"""What the program says to those who mistype, or type nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import COMMANDS, main

Capture = pytest.CaptureFixture[bytes]


@pytest.mark.parametrize(("typed", "meant"), [("inof", "info"), ("covert", "convert"), ("snapshots", "snapshot")])
def test_a_mistyped_command_is_answered_with_the_one_that_was_meant(
    typed: str, meant: str, capfdbinary: Capture
) -> None:
    assert main([typed]) == 1
    err = capfdbinary.readouterr().err.decode()
    assert err.startswith(f"qcow2c: unknown command '{typed}'; did you mean '{meant}'?\n")


def test_what_is_like_no_command_gets_no_guess(capfdbinary: Capture) -> None:
    assert main(["zzzz"]) == 1
    assert capfdbinary.readouterr().err.decode().startswith("qcow2c: unknown command 'zzzz'\n")


def test_no_command_lists_all_of_them(capfdbinary: Capture) -> None:
    assert main([]) == 1
    out, err = capfdbinary.readouterr()
    assert out == b"" and err.startswith(b"qcow2c: no command given\n")
    assert all(f"\n  {command}" in err.decode() for command in COMMANDS)


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(qcow2c.NotQcow2, match="not a qcow2 image: it is an empty file"):
        qcow2c.open(tmp_path / "empty")


@pytest.mark.parametrize("driver", ["vmdk", "nbd", "copy-on-read", "file"])
def test_any_driver_of_qemu_may_be_the_format_of_a_backing_file(driver: str, tmp_path: Path) -> None:
    path = tmp_path / "top.qcow2"
    qcow2c.create(path, 1 << 20)
    assert main(["rebase", "-u", "-b", "base", "-F", driver, str(path)]) == 0
    assert qcow2c.info(path)["backing-filename-format"] == driver
    assert main(["rebase", "-u", "-b", "base", "-F", "nosuch", str(path)]) == 1


@pytest.mark.parametrize("stated", ["vmdk", ""])
@pytest.mark.parametrize(
    "words",
    [
        ["info"], ["map"], ["check"], ["compare", "SAME"], ["measure"], ["convert", "out"], ["snapshot", "-l"],
        ["snapshot", "-c", "x"], ["resize", "2M"], ["commit"], ["rebase", "-b", ""], ["bitmap", "--add", "b"],
        ["diff", "SAME"], ["export", "x", "out"], ["check", "-r", "all"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_format_that_the_user_says_is_not_blamed_on_the_image(
    words: list[str], stated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    qcow2c.create("disk.qcow2", 1 << 20)
    command, *rest = ("disk.qcow2" if word == "SAME" else word for word in words)
    last = rest[len(rest) - 1 :] if command in ("resize", "convert", "bitmap", "compare", "diff") else []
    last = rest if command == "export" else last
    front = [] if command == "export" else rest[: len(rest) - len(last)]
    assert main([command, *front, "-f", stated, "disk.qcow2", *last]) == (2 if command == "compare" else 1)
    err = capfdbinary.readouterr().err.decode()
    assert f"Could not open 'disk.qcow2': Unknown driver '{stated}': it can be qcow2 or raw\n" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_as_wide_as_the_terminal(command: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: Capture) -> None:
    for columns in ("", "60", "100"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main([command, "--help"]) == 0
        width = int(columns or 80)
        for line in capfdbinary.readouterr().out.decode().split("\n"):
            assert len(line) <= width or len(line.split()) < 3 or line.startswith(("  -", "usage:")), line


def test_an_interrupt_while_modules_are_imported_is_quiet(project_root: Path) -> None:
    script = """
import sys

class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == "qcow2c.cli.text":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupts())
from qcow2c.__main__ import main
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=project_root, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
    assert 'qcow2c = "qcow2c.__main__:main"' in (project_root / "pyproject.toml").read_text()


def test_a_byte_that_is_no_utf_8_is_shown_in_one_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"n\xff.qcow2")
    qcow2c.create(name, 1 << 20, backing_file=os.fsdecode(b"b\xfe"), backing_fmt="raw", check_backing=False)
    for words in (
        ["map", name],
        ["info", f"gone{name}"],
        ["map", "-s", name, name],
        [name],
        ["dump", name],
        ["info", name],
    ):
        main(words)
        said = b"".join(capfdbinary.readouterr()).decode()
        assert "udc" not in said and ("\\xff" in said or "\\xfe" in said)
    with pytest.raises(qcow2c.StoreError) as caught:
        qcow2c.open(name)
    assert "'b\\xfe'" in str(caught.value) and "udc" not in (caught.value.strerror or "")
    assert str(qcow2c.UsageError(f"{chr(92)}udcff {chr(92) + 'udcff'!r}")) == "\\xff '\\\\udcff'"


def test_each_line_of_an_error_is_a_line(tmp_path: Path, capfdbinary: Capture) -> None:
    path = tmp_path / "disk.qcow2"
    qcow2c.create(path, 1 << 20)
    for command in ("export", "convert", "diff", "measure"):
        key = {"export": [], "diff": ["--from-snapshot"]}.get(command, ["-l"])
        words = [*key, "snapshot.colour=red", str(path)]
        words = [str(path), "snapshot.colour=red", "out"] if command == "export" else words
        assert main([command, *words, *(["out"] if command == "convert" else [])]) == 1
        first, second = capfdbinary.readouterr().err.decode().splitlines()
        assert first.endswith("Invalid parameter 'snapshot.colour'")
        assert second == "qcow2c: Failed in parsing snapshot param 'snapshot.colour=red'"


def test_both_names_of_a_renaming_may_begin_with_a_dash(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qcow2c.create(path, 1 << 20)
    assert main(["snapshot", "-c", "-x", str(path)]) == 0
    assert main(["snapshot", "--rename", "-x", "-y", str(path)]) == 0
    with qcow2c.open(path) as image:
        assert list(image.snapshots) == ["-y"]


def test_a_pipe_that_cannot_hold_an_image_is_called_what_it_is(tmp_path: Path, capfdbinary: Capture) -> None:
    reading, writing = os.pipe()
    assert main(["create", "-q", f"/dev/fd/{writing}", "1M"]) == 1
    assert capfdbinary.readouterr().err.decode().rstrip().endswith("it is a FIFO, not a regular file")
    os.close(reading)
    os.close(writing)
    (tmp_path / "gone").write_bytes(b"raw")
    with (tmp_path / "gone").open("r+b") as file:
        (tmp_path / "gone").unlink()
        assert main(["create", "-q", f"/dev/fd/{file.fileno()}", "1M"]) in (0, 1)


def test_a_value_may_begin_with_a_dash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    qcow2c.create("disk.qcow2", 1 << 20)
    for words in (["-c", "-x"], ["-c", "--force-share"], ["-d", "-x"]):
        assert main(["snapshot", *words, "disk.qcow2"]) == 0
    with qcow2c.open("disk.qcow2") as image:
        assert list(image.snapshots) == ["--force-share"]
    assert main(["create", "-q", "-f", "qcow2", "-b", "-base", "-u", "-F", "raw", "over.qcow2", "1M"]) == 0
    assert qcow2c.info("over.qcow2")["backing-filename"] == "-base"
    assert main(["rebase", "-u", "-F", "raw", "-b", "-other", "over.qcow2"]) == 0
    assert qcow2c.info("over.qcow2")["backing-filename"] == "-other"


def test_an_overlay_is_made_over_a_disk_that_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    qcow2c.create("disk.qcow2", 1 << 20)
    with qcow2c.open("disk.qcow2", "r+"):
        assert main(["create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", "over.qcow2"]) == 0
        qcow2c.create("again.qcow2", backing_file="disk.qcow2", backing_fmt="qcow2")
    assert qcow2c.compare("over.qcow2", "disk.qcow2").identical
