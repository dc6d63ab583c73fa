"""convert as a process of its own: streams, and what signals, full disks and the end of a process leave."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.errors import NotQcow2
from tests.building import Builder
from tests.corpus.make_seeds import text

MIB = 1 << 20
CLUSTER = 4096
DISK = text(300_000, 1).ljust(MIB, b"\0")
HERE = ["disk.qcow2", "disk.raw"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a raw disk in it, and the same one as an image."""
    monkeypatch.chdir(tmp_path)
    Path("disk.raw").write_bytes(DISK)
    builder = Builder(MIB)
    for cluster in range(MIB // CLUSTER):
        builder.data(cluster, DISK[cluster * CLUSTER : (cluster + 1) * CLUSTER])
    Path("disk.qcow2").write_bytes(builder.build())
    return tmp_path


@pytest.fixture
def start(project_root: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Return a function that starts the command as a process of its own, which is ended after the test."""
    started: list[subprocess.Popen[bytes]] = []
    # Where the tests run in the background, interrupts are ignored, and children would ignore them, too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def start(*words: str, **how: Any) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(project_root)}
        command = [sys.executable, "-m", "qcow2c", "convert", *words]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, **how))
        return started[-1]

    yield start
    signal.signal(signal.SIGINT, before)
    for child in started:
        if child.poll() is None:
            child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                stream.close()


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.mark.parametrize("options", [(), ("-O", "qcow2"), ("-O", "qcow2", "-c"), ("-O", "qcow2", "--bitmaps")], ids=str)
@pytest.mark.parametrize("source", ["disk.raw", "disk.qcow2"])
def test_pipes_on_both_ends(options: tuple[str, ...], source: str, start: Start) -> None:
    if "--bitmaps" in options and source == "disk.raw":
        options = options[:2]
    child = start(*options, "-", "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    if "--bitmaps" in options:
        child = start(*options, source, "-", stdout=subprocess.PIPE)
        out, err = child.communicate(timeout=60)
    else:
        out, err = child.communicate(Path(source).read_bytes(), timeout=60)
    assert (child.returncode, err) == (0, b"")
    if options:
        with qcow2c.open(out) as image:
            assert image.pread(MIB, 0) == DISK
        assert qcow2c.check(out).exit_code == 0
    else:
        assert out == DISK


def test_files_as_standard_streams(start: Start) -> None:
    for source in ("disk.raw", "disk.qcow2"):
        with open(source, "rb") as given, open("out", "wb") as taken:
            child = start("-p", "-O", "raw", "-", "-", stdin=given, stdout=taken)
            assert child.communicate(timeout=60) == (None, b"")
        assert Path("out").read_bytes() == DISK


def test_a_full_device_and_a_reader_who_goes(start: Start) -> None:
    with open("/dev/full", "wb") as full:
        child = start("disk.raw", "-", stdout=full)
        _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (
        1,
        b"qcow2c: -: Could not write to 'standard output': No space left on device\n",
    )
    Path("long.raw").write_bytes(DISK * 8)
    child = start("long.raw", "-", stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.read(100)
    child.stdout.close()
    assert child.wait(60) == 141
    assert child.stderr is not None and child.stderr.read() == b""


@pytest.mark.parametrize("options", [(), ("-O", "qcow2"), ("-O", "qcow2", "-o", "preallocation=metadata")], ids=str)
def test_a_file_that_may_not_grow_is_an_error_that_leaves_nothing(options: tuple[str, ...], start: Start) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))

    child = start(*options, "-S", "0", "disk.raw", "copy", preexec_fn=limit)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 1
    assert err.startswith(b"qcow2c: copy: Could not ") and b"File too large" in err and err.count(b"\n") == 1
    assert sorted(os.listdir()) == HERE


@pytest.mark.parametrize("options", [(), ("-O", "qcow2")], ids=str)
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=str
)
def test_a_signal_in_mid_job_leaves_nothing(number: int, status: int, options: tuple[str, ...], start: Start) -> None:
    """While the job waits for a pipe on which nothing comes any more, too."""
    child = start(*options, "-", "copy", stdin=subprocess.PIPE)
    assert child.stdin is not None and child.stderr is not None
    child.stdin.write(DISK * 6)
    child.stdin.flush()
    wait_for(lambda: any("copy" in name for name in os.listdir()))
    child.send_signal(number)
    assert child.wait(20) == status
    assert child.stderr.read() == b""
    assert sorted(os.listdir()) == HERE


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_target_that_is_removed_in_mid_job_is_an_error(start: Start) -> None:
    for options in ((), ("-O", "qcow2")):
        child = start(*options, "-", "copy", stdin=subprocess.PIPE)
        assert child.stdin is not None
        child.stdin.write(DISK * 6)
        child.stdin.flush()
        wait_for(lambda: any("copy" in name for name in os.listdir()))
        for name in os.listdir():
            if "copy" in name:
                os.unlink(name)
        _, err = child.communicate(timeout=60)
        assert child.returncode == 1
        assert err.startswith(b"qcow2c: copy: Could not find again") and err.count(b"\n") == 1
        assert sorted(os.listdir()) == HERE


KILLED = {
    "raw": (),
    "raw-durable": ("-t", "writeback"),
    "qcow2": ("-O", "qcow2"),
    "compressed": ("-O", "qcow2", "-c", "-o", "compression_type=zstd,compression_level=3"),
    "over-a-backing-file": ("-O", "qcow2", "-B", "base", "-F", "raw"),
    "preallocated": ("-O", "qcow2", "-o", "preallocation=metadata"),
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.raw"
    path.write_bytes(random.Random(1).randbytes(8 * MIB) * 12)
    return path


@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("kind", KILLED)
def test_a_killed_process_leaves_no_image(kind: str, *, there: bool, large: Path, start: Start) -> None:
    """Nothing, or nothing that counts as one; never a part of the new disk under a name that promises all of it."""
    Path("base").write_bytes(b"")
    target, old = Path("copy"), b""
    if there:
        qcow2c.create(target, MIB)
        old = target.read_bytes()
    child = start(*KILLED[kind], str(large), "copy")
    wait_for(lambda: begun(target, old) or child.poll() is not None)
    time.sleep(random.Random(f"{kind}{there}").random() / 30)
    child.kill()
    if child.wait() == 0:
        return  # It was faster.
    if target.exists() and target.read_bytes() != old:
        assert not kind.startswith("raw")
        with pytest.raises(NotQcow2):
            qcow2c.open(target)


def begun(target: Path, old: bytes) -> bool:
    if list(Path().glob(".copy.*")):
        return True
    return target.exists() and target.stat().st_size != len(old)


@pytest.mark.parametrize(
    "line",
    [
        "cat disk.raw | $Q convert -f raw -O raw /dev/stdin copy.raw",
        "$Q convert -f raw -O raw disk.raw /dev/stdout | cat > copy.raw",
        "$Q convert -p -f raw -O raw disk.raw /dev/fd/1 | cat > copy.raw",
        "$Q convert -f raw -O raw <(cat disk.raw) copy.raw",
        "$Q convert -f raw -O raw disk.raw >(cat > x && mv x copy.raw); until [ -e copy.raw ]; do sleep .1; done",
        "$Q dd -f raw if=<(cat disk.raw) bs=1M of=/dev/stdout | cat > copy.raw",
        "$Q convert -f raw -O qcow2 disk.raw x && $Q dd -f qcow2 if=/dev/stdin of=copy.raw < <(cat x)",
        "$Q convert -f raw -O qcow2 disk.raw x && $Q snapshot -c s x && "
        "$Q export -O raw x s >(cat > y && mv y copy.raw); until [ -e copy.raw ]; do sleep .1; done",
        "mv disk.raw copy.raw && $Q compare -f raw -F raw <(cat copy.raw) copy.raw",
        "cp disk.raw copy.raw; $Q convert -f raw -O qcow2 disk.raw x && for command in info map check measure dump; do "
        "$Q $command <(cat x) > named && $Q $command x > there && [ -s named ] || exit 1; done",
    ],
)
def test_names_of_pipes_are_streams(line: str, tmp_path: Path, project_root: Path) -> None:
    data = os.urandom(300_000 // 512 * 512)
    (tmp_path / "disk.raw").write_bytes(data)
    script = line.replace("$Q", f'"{sys.executable}" -m qcow2c')
    environment = {**os.environ, "PYTHONPATH": str(project_root)}
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=True, timeout=60)
    assert (tmp_path / "copy.raw").read_bytes() == data
