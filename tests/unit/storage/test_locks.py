"""Image locks: who excludes whom, with which words, and that being refused leaves nothing behind."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.errors import ImageLocked, StoreError, UsageError
from qcow2c.storage import locks
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import LocalFile, Store, open_store
from tests.building import Builder

R, W, S = Use.IMAGE, Use.WRITABLE_IMAGE, Use.SHARED
D, WD = Use.DATA_FILE, Use.WRITABLE_DATA_FILE

# Who came first, who comes then, and the permission that the later one is told of; every other pair gets along.
CONFLICTS = {
    (R, W): 'Failed to get "write" lock',
    (W, R): 'Failed to get shared "write" lock',
    (W, W): 'Failed to get "write" lock',
    (R, WD): 'Failed to get "write" lock',
    (WD, R): 'Failed to get shared "write" lock',
    (W, WD): 'Failed to get "write" lock',
    (WD, W): 'Failed to get "resize" lock',
    (D, W): 'Failed to get "resize" lock',
    (W, D): 'Failed to get shared "resize" lock',
    (D, WD): 'Failed to get "resize" lock',
    (WD, D): 'Failed to get shared "resize" lock',
    (WD, WD): 'Failed to get "resize" lock',
}
PAIRS = [(first, second) for first in Use for second in Use]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "image.qcow2"
    path.write_bytes(Builder(1 << 20).build())
    return path


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def opened(stack: ExitStack, path: Path, use: Use) -> Store:
    """Open a file that the test closes, able to do what the use needs, but not locked."""
    store = open_store(path, writable=use in (W, WD))
    stack.callback(store.close)
    return store


def locked(stack: ExitStack, path: Path, use: Use) -> Store:
    store = opened(stack, path, use)
    store.lock(use)
    return store


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_uses_of_one_file_exclude_each_other_as_the_table_says(
    path: Path, stack: ExitStack, first: Use, second: Use
) -> None:
    content = path.read_bytes()
    earlier = locked(stack, path, first)
    expected = CONFLICTS.get((first, second))
    later = opened(stack, path, second)
    if expected is None:
        later.lock(second)
        return
    with pytest.raises(ImageLocked) as caught:
        later.lock(second)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert "-U" in str(caught.value) and "share=True" in str(caught.value)
    assert path.read_bytes() == content
    # Who was refused has let go of everything, and who closes, too.
    locked(stack, path, first if (first, first) not in CONFLICTS else S)
    earlier.close()


@pytest.mark.parametrize(("first", "second"), CONFLICTS)
def test_closing_lets_the_next_one_in(path: Path, stack: ExitStack, first: Use, second: Use) -> None:
    earlier, later = locked(stack, path, first), opened(stack, path, second)
    with pytest.raises(ImageLocked):
        later.lock(second)
    earlier.close()
    later.lock(second)


@pytest.mark.parametrize(("first", "second"), CONFLICTS)
def test_who_is_refused_keeps_no_one_out(path: Path, stack: ExitStack, first: Use, second: Use) -> None:
    earlier, refused = locked(stack, path, first), opened(stack, path, second)
    with pytest.raises(ImageLocked):
        refused.lock(second)
    earlier.close()
    locked(stack, path, W)


def test_a_use_is_added_to_what_is_locked_and_refused_alone(path: Path, stack: ExitStack) -> None:
    store = locked(stack, path, S)
    store.lock(R)
    store.lock(R)
    writer = opened(stack, path, W)
    with pytest.raises(ImageLocked):
        writer.lock(W)
    reader = locked(stack, path, R)
    with pytest.raises(ImageLocked):
        reader.lock(W)
    with pytest.raises(ImageLocked):
        writer.lock(W)
    store.close()
    with pytest.raises(ImageLocked):  # The refused change of `reader` has not cost it what it had.
        writer.lock(W)
    reader.lock(W)


def test_a_write_lock_of_another_program_on_a_byte_is_a_conflict(path: Path, stack: ExitStack) -> None:
    with path.open("r+b") as other:
        fcntl.lockf(other, fcntl.LOCK_EX, 1, 201)
        store = opened(stack, path, R)
        with pytest.raises(ImageLocked, match="Failed to lock byte 201"):
            store.lock(R)
        store.lock(S)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_without(
    path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def unsupported(*_arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "fcntl", unsupported)
    for _ in range(2):
        locked(stack, path, W)


def test_a_lock_that_fails_otherwise_is_a_typed_error(path: Path, stack: ExitStack) -> None:
    store = opened(stack, path, R)
    store.close()
    with pytest.raises(StoreError, match="Could not lock") as caught:
        store.lock(R)
    assert not isinstance(caught.value, ImageLocked)
    assert caught.value.errno == errno.EBADF


def test_memory_takes_no_locks() -> None:
    for source in (io.BytesIO(b"x"), io.BytesIO(b"x"), bytearray(b"x")):
        open_store(source, writable=True).lock(W)


@pytest.mark.parametrize("kind", ["buffered", "raw", "descriptor", "temporary"])
def test_file_objects_and_descriptors_take_the_locks_of_their_file(path: Path, kind: str) -> None:
    with ExitStack() as stack:
        file: Any = stack.enter_context(path.open("r+b", buffering=0 if kind == "raw" else -1))
        if kind == "temporary":
            file = stack.enter_context(tempfile.NamedTemporaryFile(dir=path.parent))
            file.write(path.read_bytes())
            file.flush()
            path = Path(file.name)
        source = file.fileno() if kind == "descriptor" else file
        with qcow2c.open(source, "r+"):
            for second in (path, source, path.open("r+b")):
                with nullcontext() if second in (path, source) else second, pytest.raises(ImageLocked):
                    qcow2c.open(second, "r+")
            with pytest.raises(ImageLocked):
                qcow2c.create(source, 1 << 20)
        qcow2c.open(path, "r+").close()
        assert not file.closed


def test_locks_are_of_the_open_file_and_not_of_the_process(path: Path, stack: ExitStack) -> None:
    locked(stack, path, W)
    LocalFile(path).close()  # With POSIX locks this would let go of all.
    with pytest.raises(ImageLocked):
        opened(stack, path, R).lock(R)


# --- images ---

MODES = {"r": {"mode": "r"}, "r+": {"mode": "r+"}, "share": {"share": True}}
REFUSED = {("r", "r+"), ("r+", "r"), ("r+", "r+")}


@pytest.mark.parametrize(("first", "second"), [(first, second) for first in MODES for second in MODES])
def test_two_images_of_one_file_exclude_each_other(path: Path, first: str, second: str) -> None:
    content = path.read_bytes()
    with qcow2c.open(path, **MODES[first]):
        if (first, second) in REFUSED:
            with pytest.raises(ImageLocked, match='"write" lock'):
                qcow2c.open(path, **MODES[second])
            assert path.read_bytes() == content
        else:
            qcow2c.open(path, **MODES[second]).close()
    qcow2c.open(path, "r+").close()


def test_what_is_written_to_cannot_be_shared(path: Path) -> None:
    with pytest.raises(UsageError, match="share"):
        qcow2c.open(path, "r+", share=True)


def test_check_and_dump_are_kept_out_by_a_writer_unless_they_share(path: Path) -> None:
    from qcow2c.disk.disk import open_disk
    from qcow2c.ops.info import info

    with qcow2c.open(path, "r+") as image:
        for use in (qcow2c.check, qcow2c.dump, info, lambda source: open_disk(source).__enter__()):
            with pytest.raises(ImageLocked, match='shared "write" lock'):
                use(path)
        qcow2c.check(path, share=True)
        qcow2c.dump(path, share=True).close()
        info(path, share=True)
        with open_disk(path, share=True) as disk:
            assert disk.map.file_names()
        image.pwrite(b"x", 0)
    qcow2c.check(path)


def test_even_who_shares_keeps_out_of_what_cannot_be_read_consistently(path: Path, tmp_path: Path) -> None:
    from qcow2c.disk.disk import open_disk
    from qcow2c.ops.info import info

    raw = tmp_path / "raw"
    raw.write_bytes(bytes(1 << 20))
    for source in (path, raw):
        with source.open("rb") as other:
            locks._control(other.fileno(), fcntl.F_OFD_SETLK, fcntl.F_RDLCK, 200)
            shared = lambda source: open_disk(source, share=True).__enter__()  # noqa: E731
            for use in (lambda source: info(source, share=True), shared):
                with pytest.raises(ImageLocked, match='"consistent read" lock'):
                    use(source)
        info(source)


def test_the_layers_below_are_protected_from_writers(path: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(1 << 20))
    overlay, over_raw = tmp_path / "overlay.qcow2", tmp_path / "over_raw.qcow2"
    qcow2c.create(overlay, backing_file=path.name, backing_fmt="qcow2")
    qcow2c.create(over_raw, backing_file=raw.name, backing_fmt="raw")
    with qcow2c.open(overlay, "r+"):
        qcow2c.open(path).close()
        with pytest.raises(ImageLocked):
            qcow2c.open(path, "r+")
    with qcow2c.open(path, "r+"):
        with pytest.raises(ImageLocked, match=path.name):
            qcow2c.open(overlay)
        qcow2c.open(overlay, share=True).close()
        qcow2c.open(overlay, backing=False).close()
    with qcow2c.open(over_raw), ExitStack() as stack:
        locked(stack, raw, WD)  # As QEMU has it, who reads a raw backing file does not mind.
