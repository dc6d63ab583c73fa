"""The commands info, map and check: output, exit status, and one line for whatever goes wrong."""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qcow2c.cli import main, sizes, text
from tests.building import L2_COPIED, Builder

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    builder = Builder()
    builder.data(0, b"data")
    path = tmp_path / "sound.qcow2"
    path.write_bytes(builder.build())
    return path


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    builder = Builder()
    builder.allocate(30 * 4096)
    path = tmp_path / "leaky.qcow2"
    path.write_bytes(builder.build())
    return path


@pytest.fixture
def thresholds() -> Iterator[None]:
    """Put the garbage collector back as it was."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def run(capfd: Capture, *words: str) -> tuple[int, str, str]:
    status = main(words)
    return status, *capfd.readouterr()


def test_info_as_text_and_json(sound: Path, capfd: Capture) -> None:
    status, out, err = run(capfd, "info", str(sound))
    assert (status, err) == (0, "")
    assert out.startswith(f"image: {sound}\nfile format: qcow2\nvirtual size: 1 MiB (1048576 bytes)\ndisk size: ")
    assert "\ncluster_size: 4096\nFormat specific information:\n    compat: 1.1\n" in out
    status, out, _ = run(capfd, "info", "--output=json", str(sound))
    assert json.loads(out)["format-specific"]["data"]["compat"] == "1.1"


def test_info_of_the_demo_shows_snapshots_and_the_chain(
    examples: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(examples)
    status, out, _ = run(capfd, "info", "-U", "--backing-chain", "demo.qcow2")
    assert status == 0
    assert "backing file: base.qcow2\nbacking file format: qcow2\nSnapshot list:\nID        TAG   " in out
    assert "        [0]:\n            flags:\n                [0]: auto\n            name: since-monday\n" in out
    assert "\n\nimage: base.qcow2\n" in out


def test_names_from_the_image_are_escaped(tmp_path: Path, capfd: Capture) -> None:
    builder = Builder()
    builder.backing_file = b"\x1b[31m\xff"
    path = tmp_path / "image"
    path.write_bytes(builder.build())
    _, out, _ = run(capfd, "info", str(path))
    assert "backing file: \\x1b[31m\\xff (actual path: " in out


def test_map_as_text_and_json(sound: Path, capfd: Capture) -> None:
    status, out, _ = run(capfd, "map", str(sound))
    lines = out.splitlines()
    assert (status, lines[0].split()) == (0, ["Offset", "Length", "Mapped", "to", "File"])
    assert lines[1] == f"{'0':<16}{'0x1000':<16}{lines[1][32:48]}{sound}"
    status, out, _ = run(capfd, "map", "--output=json", str(sound))
    assert [found["data"] for found in json.loads(out)] == [True, False]
    status, out, _ = run(capfd, "map", "--output=json", "-s", "1G", str(sound))
    assert out == (
        '[{ "start": 1073741824, "length": 0, "depth": 0, "present": false, "zero": false, "data": false, '
        '"compressed": false}]\n'
    )


def test_map_as_text_has_no_words_for_compressed_clusters(tmp_path: Path, capfd: Capture) -> None:
    builder = Builder()
    builder.compressed(0, b"packed")
    path = tmp_path / "packed"
    path.write_bytes(builder.build())
    status, _, err = run(capfd, "map", str(path))
    assert status == 1
    assert err == f"qcow2c: {path}: File contains external, encrypted or compressed clusters.\n"


def test_check_of_a_sound_image(sound: Path, capfd: Capture) -> None:
    status, out, err = run(capfd, "check", str(sound))
    assert (status, err) == (0, "")
    assert out.startswith("No errors were found on the image.\n1/256 = 0.39% allocated, 0.00% fragmented, 0.00% ")
    assert run(capfd, "check", "-q", str(sound)) == (0, "", "")


def test_check_names_the_first_leaks_and_counts_the_rest(leaky: Path, capfd: Capture) -> None:
    status, out, err = run(capfd, "check", "-T", "none", "--output=json", str(leaky))
    assert status == 3
    assert json.loads(out)["leaks"] == 30
    assert len(err.splitlines()) == 21
    assert err.endswith("... and 10 more\n")
    _, out, _ = run(capfd, "check", str(leaky))
    assert "\n30 leaked clusters were found on the image.\nThis means waste" in out


def test_check_of_a_corrupt_image(tmp_path: Path, capfd: Capture) -> None:
    builder = Builder()
    builder.entry(0, 1 << 30 | L2_COPIED)
    path = tmp_path / "corrupt"
    path.write_bytes(builder.build())
    status, out, _ = run(capfd, "check", str(path))
    assert status == 2
    assert "errors were found on the image.\nData may be corrupted" in out


def test_check_of_raw_is_refused(sound: Path, capfd: Capture) -> None:
    status, _, err = run(capfd, "check", "-f", "raw", str(sound))
    assert (status, err.count("\n")) == (63, 1)


@pytest.mark.parametrize(
    "words", [("frobnicate",), ("info",), ("info", "--output=xml", "x"), ("map", "-s", "1.5", "x")]
)
def test_a_usage_error_is_one_line_and_a_hint(words: tuple[str, ...], capfd: Capture) -> None:
    status, out, err = run(capfd, *words)
    assert (status, out, err.count("\n")) == (1, "", 2)
    assert err.startswith("qcow2c: ")
    assert "--help' for more information\n" in err


@pytest.mark.parametrize("command", ["info", "map", "check"])
def test_a_missing_file_is_one_line(command: str, capfd: Capture) -> None:
    status, out, err = run(capfd, command, "no\nwhere")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("qcow2c: no\\x0awhere: Could not open")


def test_help_and_version(capfd: Capture) -> None:
    assert "info" in run(capfd, "--help")[1]
    assert "examples:" in run(capfd, "map", "-h")[1]
    assert run(capfd, "--version")[1].startswith("qcow2c 0")


@pytest.mark.usefixtures("thresholds")
def test_the_process_answers_its_own_words(sound: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["qcow2c", "info", "-f", "qcow2", str(sound)])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("qcow2c", run_name="__main__")
    assert end.value.code == 0
    assert capfd.readouterr().out.startswith(f"image: {sound}\n")


def test_output_into_a_closed_pipe_ends_quietly(sound: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as nobody_reads:
        monkeypatch.setattr(sys, "stdout", nobody_reads)
        assert main(["map", "--output=json", str(sound)]) == 128 + signal.SIGPIPE
    assert capfd.readouterr().err == ""


def test_a_reader_who_goes_away_is_no_error(sound: Path, project_root: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "qcow2c", "info", str(sound)],
        stdout=write_end,
        stderr=subprocess.PIPE,
        cwd=project_root,
        check=False,
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("1k", 1024),
        ("1.5G", 3 << 29),
        ("0x10", 16),
        ("7b", 7),
        ("2.K", 2048),
        ("0.0001k", 0),
        ("0.001k", 1),
    ],
)
def test_sizes(words: str, size: int) -> None:
    assert sizes.parse_size(words) == size


@pytest.mark.parametrize("words", ["", "-1", "1Z", "1.5", "8E", "0x1.5", "1 k", "k"])
def test_what_is_no_size(words: str) -> None:
    with pytest.raises(Exception, match="is no size"):
        sizes.parse_size(words)


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (3 << 29, "1.5 GiB"), (1 << 63, "8 EiB")],
)
def test_rounded_sizes(size: int, words: str) -> None:
    assert sizes.rounded(size) == words


def test_json_is_ascii_in_the_form_of_qemu() -> None:
    value = {"a": ['\x7f\n\u20ac\U0001f600\udcff"\\'], "b": True, "c": [], "d": {}}
    expected = r'"\u007F\n\u20AC\uD83D\uDE00\uFFFD\"\\"'
    assert text.pretty_json(value).splitlines()[2].strip() == expected
    assert json.loads(text.pretty_json(value))["b"] is True
