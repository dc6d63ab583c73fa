"""`qcow2c create`: its options, its first line, its complaints; nothing is made where something is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command in a folder of its own: status, output, errors."""
    monkeypatch.chdir(tmp_path)

    def run_command(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            status = main(["create", *words])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run_command


def test_an_image_is_created_and_its_options_are_shown(run: Run, tmp_path: Path) -> None:
    status, out, err = run("-f", "qcow2", "-o", "compat=v2,nocow=on", "disk.qcow2", "1.5M")
    assert (status, err) == (0, "")
    assert out == (
        "Formatting 'disk.qcow2', fmt=qcow2 cluster_size=65536 extended_l2=off compression_type=zlib size=1572864 "
        "compat=v2 lazy_refcounts=off refcount_bits=16 nocow=on\n"
    )
    with qcow2c.open(tmp_path / "disk.qcow2") as image:
        assert image.size() == 1572864 and image.header.version == 2


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
def test_the_file_system_is_given_hints(run: Run, image_format: str) -> None:
    status, out, err = run("-f", image_format, "-o", "extent_size_hint=2M,nocow=on", "disk", "1M")
    assert (status, err) == (0, "")
    assert out.endswith(" nocow=on extent_size_hint=2097152\n")
    status, _, err = run("-f", image_format, "-o", "extent_size_hint=4G", "other", "1M")
    assert (status, err) == (1, "qcow2c: other: Extent size hint is too large\n")
    assert not os.path.exists("other")


def test_quiet_is_quiet(run: Run, tmp_path: Path) -> None:
    assert run("-q", "-f", "qcow2", "disk.qcow2", "1M") == (0, "", "")
    assert run("-q", "raw.img", "1M") == (0, "", "")
    assert (tmp_path / "raw.img").stat().st_size == 1 << 20


def test_the_size_comes_from_the_backing_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(b"b" * 3000)
    status, out, _ = run("-f", "qcow2", "-b", "base.raw", "-F", "raw", "-o", "cluster_size=4k", "over.qcow2")
    assert status == 0 and "size=3072 backing_file=base.raw backing_fmt=raw" in out
    with qcow2c.open(tmp_path / "over.qcow2") as image:
        assert image.pread(3072, 0) == b"b" * 3000 + bytes(72)


def test_an_existing_image_is_replaced(run: Run, tmp_path: Path) -> None:
    (tmp_path / "disk.qcow2").write_bytes(b"old" * 1_000_000)
    assert run("-q", "-f", "qcow2", "disk.qcow2", "1M")[0] == 0
    assert qcow2c.check(tmp_path / "disk.qcow2").exit_code == 0
    assert (tmp_path / "disk.qcow2").stat().st_size < 1_000_000


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
def test_help_lists_the_options(run: Run, image_format: str) -> None:
    for words in (["-o", "help"], ["-o", "?"], ["-o", "size=1M,help"]):
        status, out, _ = run("-f", image_format, *words)
        assert status == 0
        assert out.startswith(f"Supported {image_format} options:\n")
        assert "  size=<size>            - Virtual disk size\n" in out


WRONG = {
    "no image": ([], "Expecting image file name"),
    "no size": (["-f", "qcow2", "x"], "Image creation needs a size parameter"),
    "two sizes": (["-f", "qcow2", "-o", "size=1M", "x", "1M"], "The image size must be specified only once"),
    "no number": (["-f", "qcow2", "x", "big"], "Invalid image size specified"),
    "too big a number": (["-f", "qcow2", "x", "9E"], "Invalid image size specified"),
    "unknown format": (["-f", "vmdk", "x", "1M"], "Unknown file format 'vmdk'"),
    "unknown option": (["-f", "qcow2", "-o", "colour=red", "x", "1M"], "Invalid parameter 'colour'"),
    "no boolean": (["-f", "qcow2", "-o", "extended_l2=perhaps", "x", "1M"], "expects 'on' or 'off'"),
    "no size option": (["-f", "qcow2", "-o", "cluster_size=huge", "x", "1M"], "expects a non-negative number"),
    "no count": (["-f", "qcow2", "-o", "refcount_bits=many", "x", "1M"], "expects a number"),
    "cluster size": (["-f", "qcow2", "-o", "cluster_size=100", "x", "1M"], "power of two between 512 and 2048k"),
    "refcount width": (["-f", "qcow2", "-o", "refcount_bits=3", "x", "1M"], "may not exceed 64 bits"),
    "version": (["-f", "qcow2", "-o", "compat=0.9", "x", "1M"], "does not accept value '0.9'"),
    "old lazy": (["-f", "qcow2", "-o", "compat=v2,lazy_refcounts=on", "x", "1M"], "Lazy refcounts only supported"),
    "old zstd": (["-f", "qcow2", "-o", "compat=v2,compression_type=zstd", "x", "1M"], "Non-zlib compression type"),
    "old width": (["-f", "qcow2", "-o", "compat=v2,refcount_bits=8", "x", "1M"], "Different refcount widths"),
    "old subclusters": (["-f", "qcow2", "-o", "compat=v2,extended_l2=on", "x", "1M"], "Extended L2 entries"),
    "old data file": (["-f", "qcow2", "-o", "compat=v2,data_file=d", "x", "1M"], "External data files"),
    "small subclusters": (["-f", "qcow2", "-o", "cluster_size=8k,extended_l2=on", "x", "1M"], "at least 16384 bytes"),
    "raw without data": (["-f", "qcow2", "-o", "data_file_raw=on", "x", "1M"], "data-file-raw requires data-file"),
    "empty data file": (["-f", "qcow2", "-o", "data_file=", "x", "1M"], "Expected data file name"),
    "encryption": (["-f", "qcow2", "-o", "encrypt.format=luks", "x", "1M"], "'encrypt.key-secret' is required"),
    "too large": (["-f", "qcow2", "-o", "cluster_size=512", "x", "1T"], "too large for file format 'qcow2'"),
    "no backing format": (["-f", "qcow2", "-u", "-b", "base", "x", "1M"], "without backing format"),
    "empty backing": (["-f", "qcow2", "-b", "", "x", "1M"], "Expected backing file name"),
    "no backing file": (["-f", "qcow2", "-b", "gone", "-F", "raw", "x", "1M"], "Could not open 'gone'"),
    "itself": (["-f", "qcow2", "-b", "x", "-F", "qcow2", "x"], "same filename as the backing file"),
    "raw over something": (["-f", "raw", "-b", "base", "-F", "raw", "x", "1M"], "not supported for file format 'raw'"),
    "raw preallocation": (["-f", "raw", "-o", "preallocation=metadata", "x", "1M"], "does not accept value 'metadata'"),
    "long format": (["-f", "qcow2", "-u", "-b", "b", "-F", "f" * 16, "x", "1M"], "is too long"),
    "preallocated over": (
        ["-f", "qcow2", "-u", "-b", "b", "-F", "raw", "-o", "preallocation=full", "x", "1M"],
        "Backing file and preallocation",
    ),
    "raw data over": (
        ["-f", "qcow2", "-u", "-b", "b", "-F", "raw", "-o", "data_file=d,data_file_raw=on", "x", "1M"],
        "Backing file and data-file-raw",
    ),
    "no directory": (["-f", "qcow2", "no/where", "1M"], "Could not create 'no/where': No such file or directory"),
}


@pytest.mark.parametrize(("words", "complaint"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_and_nothing_is_made(run: Run, words: list[str], complaint: str, tmp_path: Path) -> None:
    status, _, err = run(*words)
    assert status == 1
    assert err.startswith("qcow2c: ") and complaint in err
    assert list(tmp_path.iterdir()) == []


def test_a_backing_file_must_be_what_it_is_said_to_be(run: Run, tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(bytes(1024))
    for image_format, complaint in (("qcow2", "not in qcow2 format"), ("vmdk", "Unknown driver 'vmdk'")):
        status, _, err = run("-f", "qcow2", "-b", "base.raw", "-F", image_format, "x")
        assert status == 1 and complaint in err
    assert run("-f", "qcow2", "-b", "base.raw", "x")[2].endswith("(detected format of raw)\n")


def test_a_comma_in_a_value_is_written_twice(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a,b").write_bytes(bytes(512))
    status, out, _ = run("-f", "qcow2", "-o", "backing_file=a,,b,backing_fmt=raw", "x")
    assert status == 0 and "backing_file=a,,b" in out
    with qcow2c.open(tmp_path / "x") as image:
        assert image.header.backing_file == b"a,b"


def test_python_values_are_options_too(tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(b"p" * 1024)
    path = tmp_path / "disk.qcow2"
    qcow2c.create(path, backing_file=Path("base.raw"), backing_fmt="raw")
    with qcow2c.open(path) as image:
        assert image.pread(1024, 0) == b"p" * 1024
    for wrong in ({"cluster_size": 1}, {}, {"backing_file": "x" * 2000, "backing_fmt": "raw", "check_backing": False}):
        with pytest.raises(qcow2c.Qcow2Error):
            qcow2c.create(tmp_path / "other", *([1 << 20] if wrong else []), **wrong)
    assert not (tmp_path / "other").exists()
