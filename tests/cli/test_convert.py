"""The command convert: options, messages, exit status and progress."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.cli import main, progress
from tests.building import L2_COPIED, Builder
from tests.corpus.make_seeds import text

Capture = pytest.CaptureFixture[str]
Outcome = tuple[int, str, str]

MIB = 1 << 20
CLUSTER = 4096
DISK = text(300_000, 1).ljust(MIB, b"\0")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a raw disk in it, and the same one as an image with a snapshot."""
    monkeypatch.chdir(tmp_path)
    Path("disk.raw").write_bytes(DISK)
    builder = Builder(MIB)
    builder.data(0, b"old")
    builder.snapshot(b"before", id_str=b"1")
    for cluster in range(MIB // CLUSTER):
        builder.data(cluster, DISK[cluster * CLUSTER : (cluster + 1) * CLUSTER])
    Path("disk.qcow2").write_bytes(builder.build())
    return tmp_path


@pytest.fixture
def run(capfd: Capture) -> Callable[..., Outcome]:
    def run(*words: str) -> Outcome:
        capfd.readouterr()
        return main(["convert", *words]), *capfd.readouterr()

    return run


Run = Callable[..., Outcome]


def disk_of(path: str, **opening: Any) -> bytes:
    with qcow2c.open(path, **opening) as image:
        return bytes(image.pread(image.size(), 0))


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["disk.raw", "disk.qcow2", "file:disk.qcow2"])
def test_there_and_back(source: str, run: Run) -> None:
    assert run("-O", "qcow2", source, "copy.qcow2") == (0, "", "")
    assert disk_of("copy.qcow2") == DISK
    assert run("copy.qcow2", "copy.raw") == (0, "", "")
    assert Path("copy.raw").read_bytes() == DISK
    assert run("-f", "raw", "-O", "raw", "disk.qcow2", "as-it-is") == (0, "", "")
    assert Path("as-it-is").read_bytes().rstrip(b"\0") == Path("disk.qcow2").read_bytes().rstrip(b"\0")


@pytest.mark.parametrize(
    "options",
    [
        ("-c",),
        ("-c", "-o", "compression_type=zstd,compression_level=19"),
        ("-o", "cluster_size=512,compat=v2", "-o", "size=7G"),
        ("-o", "extended_l2=on,cluster_size=16k", "-S", "0"),
        ("-o", "preallocation=metadata"),
        ("-o", "data_file=data,data_file_raw=on"),
        ("-q", "-W", "-U", "-m", "16", "-t", "writeback", "-T", "none", "-S", "64k"),
        ("-C",),
        ("--salvage",),
    ],
    ids=" ".join,
)
def test_options_of_a_new_image(options: tuple[str, ...], run: Run) -> None:
    assert run("-O", "qcow2", *options, "disk.qcow2", "copy.qcow2") == (0, "", "")
    assert disk_of("copy.qcow2") == DISK
    assert qcow2c.check("copy.qcow2").exit_code == 0


def test_several_sources_and_snapshots(run: Run) -> None:
    assert run("disk.qcow2", "disk.raw", "disk.qcow2", "copy") == (0, "", "")
    assert Path("copy").read_bytes() == DISK * 3
    old = b"old".ljust(MIB, b"\0")
    for words in ("before", "1", "snapshot.name=before", "snapshot.id=1", "snapshot.id=1,snapshot.name=before"):
        assert run("-l", words, "disk.qcow2", "copy") == (0, "", "")
        assert Path("copy").read_bytes() == old


def test_over_a_backing_file_and_into_what_is_there(run: Run, folder: Path) -> None:
    Path("base.raw").write_bytes(b"base".ljust(2 * MIB, b"\0"))
    (folder / "sub").mkdir()
    for backing in ("../base.raw", str(folder / "base.raw")):
        words = ("-O", "qcow2", "-B", backing, "-F", "raw", "disk.qcow2", "sub/copy.qcow2")
        assert run(*words) == (0, "", "")
        assert disk_of("sub/copy.qcow2", gate="any") == DISK
    assert run("-n", "-O", "qcow2", "disk.raw", "sub/copy.qcow2", "--gate", "any") == (0, "", "")
    Path("target.raw").write_bytes(b"!" * MIB)
    assert run("-n", "disk.qcow2", "target.raw") == (0, "", "")
    assert Path("target.raw").read_bytes() == DISK
    Path("target.raw").write_bytes(bytes(MIB))
    assert run("-n", "--target-is-zero", "disk.qcow2", "target.raw") == (0, "", "")
    assert Path("target.raw").read_bytes() == DISK


def test_images_as_options_and_json(run: Run) -> None:
    for name in (
        'json:{"driver": "qcow2", "file": {"driver": "file", "filename": "disk.qcow2"}}',
        'json:{"driver": "qcow2", "file.filename": "disk.qcow2"}',
        'json:{"driver": "raw", "file": {"driver": "file", "filename": "disk.raw"}}',
    ):
        assert run(name, "copy") == (0, "", "")
        assert Path("copy").read_bytes() == DISK
    assert run("--image-opts", "driver=qcow2,file.filename=disk.qcow2", "copy") == (0, "", "")
    assert Path("copy").read_bytes() == DISK
    Path("target.raw").write_bytes(b"!" * MIB)
    assert run("-n", "--target-image-opts", "disk.qcow2", "driver=raw,file.filename=target.raw") == (0, "", "")
    assert Path("target.raw").read_bytes() == DISK


def test_a_target_given_by_options_keeps_its_format(run: Run) -> None:
    assert run("-O", "qcow2", "disk.raw", "target.qcow2")[0] == 0
    Path("other.raw").write_bytes(b"other".ljust(MIB, b"\0"))
    assert run("-n", "--target-image-opts", "other.raw", "driver=qcow2,file.filename=target.qcow2") == (0, "", "")
    assert disk_of("target.qcow2") == b"other".ljust(MIB, b"\0")


def test_the_list_of_options(run: Run) -> None:
    status, out, err = run("-O", "qcow2", "-o", "help")
    assert (status, err) == (0, "")
    assert out.startswith("Supported qcow2 options:\n  backing_file=<str>     - File name of a base image\n")
    assert "  compression_level=<num> - " in out and "  extended_l2=<bool (on/off)> - " in out
    status, out, err = run("-o", "?")
    assert out.startswith("Supported raw options:\n") and "backing_file" not in out


# --- messages -------------------------------------------------------------------------------------------------------

WRONG: list[tuple[tuple[str, ...], str]] = [
    ((), "Must specify image file name"),
    (("one",), "Must specify image file name"),
    (("--skip-broken-bitmaps", "a", "b"), "Use of --skip-broken-bitmaps requires --bitmaps"),
    (("-c", "-C", "a", "b"), "Cannot enable copy offloading when -c is used"),
    (("-S", "4k", "-C", "a", "b"), "Cannot enable copy offloading when -S is used"),
    (("-C", "--salvage", "a", "b"), "Cannot use copy offloading in salvaging mode"),
    (("--target-image-opts", "a", "b"), "--target-image-opts requires use of -n flag"),
    (("-n", "-o", "size=1", "a", "b"), "-o has no effect when skipping image creation"),
    (("--target-is-zero", "a", "b"), "--target-is-zero requires use of -n flag"),
    (("-T", "nonsense", "a", "b"), "Invalid source cache option: nonsense"),
    (("-t", "nonsense", "a", "b"), "Invalid cache option: nonsense"),
    (("-m", "17", "a", "b"), "Invalid number of coroutines. Allowed number of coroutines is between 1 and 16"),
    (("-m", "x", "a", "b"), "Invalid number of coroutines. Allowed number of coroutines is between 1 and 16"),
    (("-O", "vmdk", "disk.raw", "b"), "Unknown file format 'vmdk'"),
    (("-B", "x", "disk.raw", "b"), "Backing file not supported for file format 'raw'"),
    (("-r", "1M", "disk.raw", "b"), "-r 1M: only QEMU can honour this option"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_a_wrong_command_line_is_told_before_anything_is_done(words: tuple[str, ...], message: str, run: Run) -> None:
    assert run(*words) == (1, "", f"qcow2c: {message}\n")
    assert sorted(os.listdir()) == ["disk.qcow2", "disk.raw"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("missing", "b"), "Could not open 'missing': No such file or directory"),
        (("-S", "huge", "disk.raw", "b"), "Invalid buffer size for sparse output specified. You may use k, M, G,"),
        (("-S", "1000", "disk.raw", "b"), "Invalid buffer size for sparse output specified. Valid sizes are"),
        (("-c", "disk.raw", "b"), "Compression not supported for this file format"),
        (("-o", "nonsense=1", "disk.raw", "b"), "Invalid parameter 'nonsense'"),
        (("-O", "qcow2", "-o", "cluster_size=1000", "disk.raw", "b"), "Cluster size must be a power of two"),
        (("-O", "qcow2", "-B", "x", "disk.raw", "b"), "acking format"),
        (("-l", "nonsense", "disk.qcow2", "b"), "Failed to load snapshot: Can't find snapshot"),
        (("-l", "1", "disk.qcow2", "disk.qcow2", "b"), "No support for concatenating multiple snapshot"),
        (("-l", "snapshot.nonsense=1", "disk.qcow2", "b"), "Failed in parsing snapshot param"),
        (("-l", "1", "disk.raw", "b"), "does not support temporarily loading internal snapshots"),
        (("-f", "vmdk", "disk.raw", "b"), "vmdk"),
        (("-f", "qcow2", "disk.raw", "b"), "disk.raw"),
        (("disk.raw", "nowhere/b"), "Could not create 'nowhere/b': No such file or directory"),
        (("-O", "qcow2", "disk.raw", "nowhere/b"), "Could not create 'nowhere/b': No such file or directory"),
        (("-n", "disk.raw", "b"), "Could not open 'b': No such file or directory"),
        (("-", "disk.raw", "b"), "standard input can only be the one source"),
        (("-O", "qcow2", "-o", "preallocation=full", "disk.raw", "-"), "standard output takes a new image without"),
        (("-n", "--target-is-zero", "-B", "x", "-F", "raw", "-O", "qcow2", "disk.raw", "b"), "Cannot use --target-is"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_one_line(words: tuple[str, ...], message: str, run: Run) -> None:
    status, out, err = run(*words)
    assert (status, out) == (1, "")
    assert err.startswith("qcow2c: ") and message in err
    assert "snapshot.nonsense" in message or err.count("\n") <= 2
    assert sorted(os.listdir()) == ["disk.qcow2", "disk.raw"]


def test_salvage_tells_what_is_lost(run: Run) -> None:
    builder = Builder(4 * CLUSTER)
    builder.data(0, b"kept")
    builder.entry(1, 1 << 30 | L2_COPIED)
    Path("broken.qcow2").write_bytes(builder.build())
    status, out, err = run("broken.qcow2", "copy")
    assert (status, out) == (1, "") and "past the end of the file" in err
    assert not Path("copy").exists()
    status, out, err = run("--salvage", "broken.qcow2", "copy")
    assert (status, out) == (0, "")
    assert err.startswith("qcow2c: warning: error while reading offset 4096: ") and err.count("\n") == 1
    assert Path("copy").read_bytes() == b"kept".ljust(4 * CLUSTER, b"\0")
    assert run("-q", "--salvage", "broken.qcow2", "copy") == (0, "", "")
    assert run("-q", "--salvage", "--lost", "lost.json", "broken.qcow2", "copy") == (2, "", "")
    (lost,) = json.loads(Path("lost.json").read_text())
    assert (lost["start"], lost["length"]) == (4096, 4096) and "past the end of the file" in lost["reason"]
    assert run("--lost", "lost.json", "broken.qcow2", "copy")[0] == 1


# --- progress -------------------------------------------------------------------------------------------------------


def test_progress_is_that_of_qemu_img(run: Run) -> None:
    assert run("-p", "disk.raw", "copy") == (0, "    (0.00/100%)\r    (100.00/100%)\r\n", "")
    assert run("-p", "-q", "disk.raw", "copy") == (0, "", "")
    status, out, err = run("-p", "missing", "copy")
    assert (status, out) == (1, "    (0.00/100%)\r\n") and err.startswith("qcow2c: ")
    Path("empty").touch()
    assert run("-p", "empty", "copy") == (0, "    (0.00/100%)\r    (100.00/100%)\r\n", "")


def test_progress_is_told_in_steps(capfd: Capture) -> None:
    with progress.shown(wanted=True) as report:
        assert report is not None
        for done in (0, 4, 5, 16, 17, 500, 509, 1000, 1000):
            report(done, 1000)
        report(0, 0)
    shown = ["0.00", "1.60", "50.00", "100.00"]
    assert capfd.readouterr().out == "".join(f"    ({number}/100%)\r" for number in shown) + "\n"
    with progress.shown(wanted=False) as report:
        assert report is None


def test_a_person_who_watches_sees_a_bar_where_there_is_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the optional module tqdm, for which a few lines stand in here; without it as on a pipe."""
    (folder / "bars").mkdir()
    (folder / "bars" / "tqdm.py").write_text(
        "class tqdm:\n"
        "    def __init__(self, **how): self.n, self.total, self.seen = 0, None, []\n"
        "    def __enter__(self): return self\n"
        "    def __exit__(self, *error): print(self.seen, flush=True)\n"
        "    def update(self, more): self.n += more; self.seen.append((self.n, self.total))\n"
    )
    for there, expected in ((False, "    (100.00/100%)\r\r\n"), (True, f"({MIB}, {MIB})]\r\n")):
        controlling, terminal = os.openpty()
        with open(terminal, "w") as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            patch.delitem(sys.modules, "tqdm", raising=False)
            patch.setattr(sys, "path", [str(folder / "bars"), *sys.path] if there else sys.path)
            if not there:
                patch.setitem(sys.modules, "tqdm", None)
            assert main(["convert", "-p", "disk.raw", "copy"]) == 0
        shown = b""
        with suppress(OSError):  # The end of a terminal.
            while part := os.read(controlling, 10_000):
                shown += part
        assert shown.decode().endswith(expected)
        os.close(controlling)


# --- standard input and signals -------------------------------------------------------------------------------------


@contextmanager
def standard_input(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a descriptor, which is closed, be standard input."""
    before = os.dup(0)
    os.dup2(descriptor, 0)
    os.close(descriptor)
    with monkeypatch.context() as patch, open(0, closefd=False) as stream:
        patch.setattr(sys, "stdin", stream)
        yield
    os.dup2(before, 0)
    os.close(before)


def piped(data: bytes) -> int:
    """Return the end of a pipe from which data can be read."""
    reading, writing = os.pipe()

    def write() -> None:
        with open(writing, "wb") as file:
            file.write(data)

    threading.Thread(target=write).start()
    return reading


@pytest.mark.parametrize("source", ["disk.raw", "disk.qcow2"])
def test_standard_input_is_a_file_or_a_pipe(source: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ((), ("-O", "qcow2"), ("-O", "qcow2", "-o", "preallocation=metadata")):
        for descriptor in (os.open(source, os.O_RDONLY), piped(Path(source).read_bytes())):
            with standard_input(descriptor, monkeypatch):
                assert run(*words, "-", "copy") == (0, "", "")
            assert (disk_of("copy") if words else Path("copy").read_bytes()) == DISK


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_an_interrupt_while_the_command_runs(
    number: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(number)
    reading, writing = os.pipe()
    os.write(writing, DISK[:4096])
    signals = threading.Timer(0.3, os.kill, (os.getpid(), number))
    signals.start()
    with standard_input(reading, monkeypatch):
        assert run("-", "copy") == (128 + number, "", "")
    os.close(writing)
    assert signal.getsignal(number) == before
    assert not [name for name in os.listdir() if "copy" in name]


def test_signals_are_left_alone_outside_the_main_thread(run: Run) -> None:
    found: list[Outcome] = []
    other = threading.Thread(target=lambda: found.append(run("disk.raw", "copy")))
    other.start()
    other.join()
    assert found == [(0, "", "")]
