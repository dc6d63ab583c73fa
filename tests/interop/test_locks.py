"""Image locks against the real qemu-io and qemu-img: who is refused, in both directions; which bytes are held."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import qcow2c
from qcow2c.errors import ImageLocked

from .conftest import Outcome, run_qemu_img

pytestmark = pytest.mark.usefixtures("requires_qemu")

OURS = {"r": {"mode": "r"}, "r+": {"mode": "r+"}, "share": {"share": True}}
THEIRS = {"ro": ["-r"], "rw": [], "ro -U": ["-r", "-U"]}
REFUSED = {("r", "rw"), ("r+", "ro"), ("r+", "rw")}
PAIRS = [(ours, theirs) for ours in OURS for theirs in THEIRS]

FLOCK = struct.Struct("hhqqi4x")
LOCK_BYTES = (*range(100, 104), *range(200, 204))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of every sort, each 1 MiB of disk."""
    for words in (
        ("-f", "raw", "base.raw", "1M"),
        ("-f", "qcow2", "image.qcow2", "1M"),
        ("-f", "qcow2", "-b", "image.qcow2", "-F", "qcow2", "overlay.qcow2"),
        ("-f", "qcow2", "-b", "base.raw", "-F", "raw", "over_raw.qcow2"),
        ("-f", "qcow2", "-o", "data_file=data.bin", "external.qcow2", "1M"),
        ("-f", "qcow2", "-o", "data_file=data.raw,data_file_raw=on", "external_raw.qcow2", "1M"),
    ):
        assert run_qemu_img(tmp_path, "create", "-q", *words).status == 0
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def qemu_io(folder: Path, name: str, *options: str) -> Iterator[None]:
    """Keep an image open in qemu-io while the block runs."""
    words = ["qemu-io", *options, name]
    with subprocess.Popen(
        words, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(b"length\n")
            process.stdin.flush()
            answer = process.stdout.readline()  # It answers once the image is open.
            assert b"1 MiB" in answer, answer
            yield
        finally:
            process.stdin.close()
            try:
                process.wait(20)
            finally:
                process.kill()


def try_qemu_io(folder: Path, name: str, *options: str) -> Outcome:
    words = ["qemu-io", *options, "-c", "length", name]
    done = subprocess.run(words, cwd=folder, capture_output=True, timeout=20, check=False)
    return Outcome(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))


def assert_refused(outcome: Outcome, *, permission: str = '"write"') -> None:
    assert outcome.status != 0
    assert f"{permission} lock" in outcome.err


def held_bytes(path: Path) -> list[int]:
    """Return which of the lock bytes others hold."""
    found = []
    with path.open("rb") as file:
        for offset in LOCK_BYTES:
            asked = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
            if FLOCK.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK:
                found.append(offset)
    return found


@pytest.mark.parametrize("name", ["image", "overlay", "over_raw", "external", "external_raw"])
@pytest.mark.parametrize(("ours", "theirs"), [("r", "ro"), ("r+", "rw"), ("share", "ro -U")])
def test_the_same_bytes_of_the_same_files_are_locked(folder: Path, name: str, ours: str, theirs: str) -> None:
    def all_held() -> dict[str, list[int]]:
        return {path.name: held_bytes(path) for path in folder.iterdir()}

    with qemu_io(folder, f"{name}.qcow2", *THEIRS[theirs]):
        expected = all_held()
    assert any(expected.values())
    with qcow2c.open(folder / f"{name}.qcow2", **OURS[ours]):
        assert all_held() == expected
    assert not any(all_held().values())


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_who_opens_second_is_refused_where_one_of_the_two_writes(folder: Path, ours: str, theirs: str) -> None:
    before = contents(folder)
    with qemu_io(folder, "image.qcow2", *THEIRS[theirs]):
        if (ours, theirs) in REFUSED:
            with pytest.raises(ImageLocked, match='"write" lock'):
                qcow2c.open(folder / "image.qcow2", **OURS[ours])
            assert contents(folder) == before
        else:
            qcow2c.open(folder / "image.qcow2", **OURS[ours]).close()
    with qcow2c.open(folder / "image.qcow2", **OURS[ours]):
        before = contents(folder)
        outcome = try_qemu_io(folder, "image.qcow2", *THEIRS[theirs])
        if (ours, theirs) in REFUSED:
            assert_refused(outcome)
            assert contents(folder) == before
        else:
            assert outcome.status == 0, outcome.err
    assert try_qemu_io(folder, "image.qcow2").status == 0


@pytest.mark.parametrize("kind", ["file object", "descriptor"])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_a_file_that_is_open_already_is_locked_as_one_opened_by_name(
    folder: Path, kind: str, ours: str, theirs: str
) -> None:
    with (folder / "image.qcow2").open("r+b") as file:
        source = file if kind == "file object" else file.fileno()
        with qemu_io(folder, "image.qcow2", *THEIRS[theirs]):
            if (ours, theirs) in REFUSED:
                with pytest.raises(ImageLocked, match='"write" lock'):
                    qcow2c.open(source, **OURS[ours])
            else:
                qcow2c.open(source, **OURS[ours]).close()
        with qcow2c.open(source, **OURS[ours]):
            outcome = try_qemu_io(folder, "image.qcow2", *THEIRS[theirs])
            if (ours, theirs) in REFUSED:
                assert_refused(outcome)
            else:
                assert outcome.status == 0, outcome.err
        assert try_qemu_io(folder, "image.qcow2").status == 0


READING = {
    "info": ["info"],
    "map": ["map"],
    "check": ["check"],
    "convert": ["convert", "-O", "raw"],
    "compare": ["compare", "image.qcow2"],
}
WRITING = {
    "snapshot": ["snapshot", "-c", "one"],
    "resize": ["resize"],
    "amend": ["amend", "-o", "lazy_refcounts=on"],
    "repair": ["check", "-r", "all"],
    "bench": ["bench", "-w", "-c", "1"],
}
AFTERWARDS = {"convert": ["out.raw"], "resize": ["2M"]}


@pytest.mark.parametrize("command", READING)
@pytest.mark.parametrize("ours", OURS)
def test_their_reading_commands_are_refused_while_we_write(folder: Path, ours: str, command: str) -> None:
    words = [*READING[command], "image.qcow2", *AFTERWARDS.get(command, [])]
    with qcow2c.open(folder / "image.qcow2", **OURS[ours]) as image:
        if ours == "r+":
            image.pwrite(b"written", 0)
            image.flush()
        before = contents(folder)
        outcome = run_qemu_img(folder, *words)
        shared = run_qemu_img(folder, words[0], "-U", *words[1:])
        assert shared.status == 0, shared.err
        if ours == "r+":
            assert_refused(outcome)
            (folder / "out.raw").unlink(missing_ok=True)
            assert contents(folder) == before
        else:
            assert outcome.status == 0, outcome.err
    assert run_qemu_img(folder, *words).status == 0


@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize("ours", OURS)
def test_their_writing_commands_are_refused_while_we_have_the_image(folder: Path, ours: str, command: str) -> None:
    words = [*WRITING[command], "image.qcow2", *AFTERWARDS.get(command, [])]
    with qcow2c.open(folder / "image.qcow2", **OURS[ours]):
        before = contents(folder)
        outcome = run_qemu_img(folder, *words)
        if ours == "share":
            assert outcome.status == 0, outcome.err
        else:
            assert_refused(outcome)
            assert contents(folder) == before


@pytest.mark.parametrize("theirs", THEIRS)
@pytest.mark.parametrize("command", ["info", "map", "check", "dump"])
def test_our_commands_are_refused_while_they_write_unless_told_to_share(
    folder: Path, run_ours: Callable[..., Outcome], command: str, theirs: str
) -> None:
    with qemu_io(folder, "image.qcow2", *THEIRS[theirs]):
        outcome, shared = run_ours(folder, command, "image.qcow2"), run_ours(folder, command, "-U", "image.qcow2")
        assert shared.status == 0, shared.err
        if theirs == "rw":
            assert_refused(outcome, permission='Failed to get shared "write"')
            assert outcome.status == 1 and not outcome.out
            assert run_qemu_img(folder, "info", "image.qcow2").status == 1
        else:
            assert outcome.status == 0, outcome.err
            assert outcome.out == shared.out
    assert run_ours(folder, command, "image.qcow2").status == 0


@pytest.mark.parametrize("command", ["info", "dump"])
def test_a_chain_is_shown_only_while_nobody_writes_to_a_layer(
    folder: Path, run_ours: Callable[..., Outcome], command: str
) -> None:
    words = ["--backing-chain", "overlay.qcow2"]
    with qemu_io(folder, "image.qcow2"):
        assert_refused(run_ours(folder, command, *words), permission='shared "write"')
        assert run_ours(folder, command, "-U", *words).status == 0
    assert run_ours(folder, command, *words).status == 0


@pytest.mark.parametrize("option", ["--backing-chain", ""])
def test_info_asks_only_for_the_layers_that_it_shows(
    folder: Path, run_ours: Callable[..., Outcome], option: str
) -> None:
    words = ["info", *([option] if option else []), "overlay.qcow2"]
    with qemu_io(folder, "image.qcow2"):
        outcome, theirs = run_ours(folder, *words), run_qemu_img(folder, *words)
        assert (outcome.status, outcome.out) == (theirs.status, theirs.out)
        assert outcome.status == bool(option)
        assert run_ours(folder, words[0], "-U", *words[1:]).status == 0


@pytest.mark.parametrize("theirs", ["ro", "rw"])
def test_create_does_not_touch_an_image_in_use(folder: Path, run_ours: Callable[..., Outcome], theirs: str) -> None:
    before = contents(folder)
    with qemu_io(folder, "image.qcow2", *THEIRS[theirs]):
        assert_refused(run_ours(folder, "create", "-f", "qcow2", "image.qcow2", "2M"))
        assert_refused(run_qemu_img(folder, "create", "-f", "qcow2", "image.qcow2", "2M"))
    assert contents(folder) == before


def test_a_backing_file_is_theirs_to_read_and_nobodys_to_write(folder: Path) -> None:
    base, overlay = "image.qcow2", folder / "overlay.qcow2"
    for mode in ("r", "r+"):
        with qcow2c.open(overlay, mode):
            assert_refused(try_qemu_io(folder, base))
            assert try_qemu_io(folder, base, "-r").status == 0
    with qemu_io(folder, "overlay.qcow2"):
        qcow2c.open(folder / base).close()
        with pytest.raises(ImageLocked, match='"write" lock'):
            qcow2c.open(folder / base, "r+")
    with qemu_io(folder, base):
        for mode in ("r", "r+"):
            with pytest.raises(ImageLocked, match=r'shared "write" lock.*image\.qcow2'):
                qcow2c.open(overlay, mode)
        qcow2c.open(overlay, share=True).close()


def test_a_raw_backing_file_may_be_written_to_as_with_qemu(folder: Path) -> None:
    with qemu_io(folder, "base.raw", "-f", "raw"):
        assert try_qemu_io(folder, "over_raw.qcow2", "-r").status == 0
        qcow2c.open(folder / "over_raw.qcow2").close()
    with qcow2c.open(folder / "over_raw.qcow2"):
        assert try_qemu_io(folder, "base.raw", "-f", "raw").status == 0


def test_an_external_data_file_is_not_resized_by_two(folder: Path) -> None:
    with qcow2c.open(folder / "external_raw.qcow2", "r+"):
        before = contents(folder)
        outcome = run_qemu_img(folder, "resize", "-f", "raw", "data.raw", "2M")
        assert_refused(outcome, permission='"resize"')
        assert contents(folder) == before


def test_what_we_wrote_is_theirs_once_we_have_closed(folder: Path) -> None:
    with qcow2c.open(folder / "image.qcow2", "r+") as image:
        image.pwrite(b"\x11" * 4096, 8192)
        assert_refused(try_qemu_io(folder, "image.qcow2"))
    words = ["qemu-io", "-c", "read -P 0x11 8192 4096", "-c", "write -P 0x22 0 4096", "image.qcow2"]
    done = subprocess.run(words, cwd=folder, capture_output=True, timeout=20, check=True)
    assert b"verification failed" not in done.stdout
    with qcow2c.open(folder / "image.qcow2") as image:
        assert image.pread(12288, 0) == b"\x22" * 4096 + bytes(4096) + b"\x11" * 4096
