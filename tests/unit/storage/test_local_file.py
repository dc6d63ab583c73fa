"""Local files that are written to: how far a write gets, what gives space back, and what every failure says."""

from __future__ import annotations

import errno
import io
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qcow2c.errors import Span, StoreError, UsageError
from qcow2c.storage import open_file
from qcow2c.storage.sources import FileObject, LocalFile, Memory, Store, open_store

CONTENT = bytes(range(1, 256)) * 20
ZERO_RANGE, PUNCH = 16, 3


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalFile]:
    (tmp_path / "local").write_bytes(CONTENT)
    opened = LocalFile(tmp_path / "local", writable=True)
    yield opened
    opened.close()


def whole(store: Store) -> bytes:
    return store.pread(store.size() + 1, 0)


def test_more_parts_than_one_call_takes_are_all_written(local: LocalFile) -> None:
    parts = [bytes([number % 256]) * (number % 7) for number in range(5000)]
    local.pwritev(parts, 3)
    assert local.pread(1 << 20, 3)[: sum(map(len, parts))] == b"".join(parts)


def test_what_is_written_is_not_copied(local: LocalFile, monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen, original = bytearray(1 << 20), [], os.pwrite

    def traced(fd: int, buffer: Any, offset: int) -> int:
        seen.append(memoryview(buffer).obj)
        return original(fd, memoryview(buffer)[:300_000], offset)

    monkeypatch.setattr(os, "pwrite", traced)
    local.pwrite(memoryview(data), 0)
    assert len(seen) == 4
    assert all(obj is data for obj in seen)


# --- zeros, holes, space ---


@pytest.mark.parametrize("supported", [{ZERO_RANGE, PUNCH}, {PUNCH}, set()], ids=["zero range", "holes", "neither"])
def test_zeros_are_zeros_whatever_the_file_system_can_do(
    local: LocalFile, monkeypatch: pytest.MonkeyPatch, supported: set[int]
) -> None:
    original = open_file._fallocate
    monkeypatch.setattr(
        open_file, "_fallocate", lambda fd, mode, *place: mode in supported and original(fd, mode, *place)
    )
    local.write_zeroes(100, 200)
    local.write_zeroes(5000, 3 << 20)
    assert local.size() == 5000 + (3 << 20)
    assert whole(local) == CONTENT[:100] + bytes(200) + CONTENT[300:5000] + bytes(3 << 20)
    local.write_zeroes(0, 0)
    local.punch(0, 1 << 30)
    assert local.size() == 5000 + (3 << 20)
    local.punch(0, 0)


def test_zeroing_and_punching_far_beyond_every_file_touch_no_other_place(local: LocalFile) -> None:
    for change in (local.punch, local.write_zeroes):
        for offset in (1 << 63, 1 << 64):
            with pytest.raises(StoreError):
                change(offset, 100)
    assert whole(local) == CONTENT


def test_punching_gives_space_back_and_allocating_takes_it(local: LocalFile) -> None:
    local.truncate(0)
    local.pwrite(b"x" * (1 << 20), 0)
    local.flush()
    full = local.allocated_size()
    assert full is not None and full >= 1 << 20
    local.punch(0, 1 << 20)
    local.flush()
    assert (local.allocated_size() or 0) < 1 << 19
    local.allocate(0, 2 << 20)
    assert (local.allocated_size() or 0) >= 2 << 20
    assert local.size() == 2 << 20


# --- what is refused ---

WRITES: dict[str, Callable[[Store], None]] = {
    "pwrite": lambda store: store.pwrite(b"x", 3),
    "pwritev": lambda store: store.pwritev([b"x", b"y"], 3),
    "flush": lambda store: store.flush(),
    "truncate": lambda store: store.truncate(3),
    "allocate": lambda store: store.allocate(0, 3),
    "write_zeroes": lambda store: store.write_zeroes(0, 3),
    "punch": lambda store: store.punch(0, 3),
}


def test_what_cannot_be_written_is_not_opened_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(StoreError, match="Could not open"):
        open_store(path, writable=True)
    assert not path.exists()
    path.write_bytes(CONTENT)
    with path.open("rb") as file, pytest.raises(StoreError, match="reading only"):
        open_store(file, writable=True)
    with pytest.raises(StoreError, match="reading only"):
        open_store(Memory(CONTENT), writable=True)
    with path.open("a+b") as file, pytest.raises(StoreError, match="appending"):
        open_store(file, writable=True)
    for source in (b"bytes", memoryview(b"bytes")):
        with pytest.raises(UsageError, match="bytearray"):
            open_store(source, writable=True)
    assert not open_store(bytearray(b"x")).writable


def test_a_file_is_created_only_where_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "new"
    for created in (True, False):
        store = LocalFile(path, writable=True, create=True)
        assert store.created is created
        store.pwrite(b"kept", 0)
        store.flush_name()
        store.close()
    assert path.read_bytes() == b"kept"
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StoreError, match="FIFO"):
        LocalFile(tmp_path / "fifo", writable=True, create=True)


def test_a_created_file_is_removed_only_while_the_name_means_it(tmp_path: Path) -> None:
    path = tmp_path / "new"
    store = LocalFile(path, writable=True, create=True)
    path.rename(tmp_path / "moved")
    path.write_bytes(b"another")
    store.remove()
    assert path.read_bytes() == b"another"
    (tmp_path / "moved").rename(path)
    store.remove()
    assert not path.exists()
    store.close()


# --- what fails ---


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.pwrite(b"x" * 9000, 1000),
        lambda store: store.pwritev([b"x" * 4000, b"x" * 5000], 1000),
        lambda store: store.allocate(1000, 9000),
    ],
)
def test_a_write_that_does_not_fit_says_which_bytes_and_why(local: LocalFile, change: Callable[[Store], None]) -> None:
    with file_size_limit(6000), pytest.raises(StoreError, match="File too large") as caught:
        change(local)
    assert caught.value.where == Span(1000, 9000)
    assert caught.value.errno == errno.EFBIG
    assert local.name in str(caught.value)
    assert local.size() <= 6000
    local.pwrite(b"again", 0)
    assert local.pread(5, 0) == b"again"


def test_a_truncation_that_does_not_fit_is_an_error(local: LocalFile) -> None:
    with file_size_limit(6000), pytest.raises(StoreError, match="resize") as caught:
        local.truncate(9000)
    assert caught.value.errno == errno.EFBIG


def test_a_full_device_is_an_error_and_so_is_a_file_object_that_writes_nothing() -> None:
    with open("/dev/full", "r+b", buffering=0) as file:
        with pytest.raises(StoreError, match="No space left") as caught:
            FileObject(file, writable=True).pwrite(b"x", 7)
        assert (caught.value.errno, caught.value.where) == (errno.ENOSPC, Span(7, 1))

    class Stuck(io.BytesIO):
        def write(self, _data: Any) -> int:
            return 0

    with pytest.raises(StoreError, match="nothing could be written"):
        FileObject(Stuck(b"abc"), writable=True).pwrite(b"x", 0)


def test_an_offset_that_no_file_has_is_named_in_the_error(local: LocalFile) -> None:
    with pytest.raises(StoreError) as caught:
        local.pwrite(b"xy", 1 << 63)
    assert caught.value.where == Span(1 << 63, 2)
    with pytest.raises(StoreError):
        local.truncate(1 << 64)


def test_a_bytearray_that_is_held_elsewhere_cannot_grow() -> None:
    data = bytearray(CONTENT)
    store = open_store(data, writable=True)
    with memoryview(data):
        store.pwrite(b"x", 0)
        with pytest.raises(StoreError, match="resize"):
            store.pwrite(b"x", len(CONTENT))
        with pytest.raises(StoreError, match="resize"):
            store.truncate(0)
    assert whole(store) == b"x" + CONTENT[1:]


CALLS: dict[str, Callable[[LocalFile], object]] = {
    "pread": lambda store: store.pread(10, 0),
    "preadv": lambda store: store.readinto_at(memoryview(bytearray(10)), 0),
    "pwrite": lambda store: store.pwrite(b"0123456789", 0),
    "pwritev": lambda store: store.pwritev([b"01234", b"56789"], 0),
    "ftruncate": lambda store: store.truncate(10),
    "posix_fallocate": lambda store: store.allocate(0, 10),
    "fdatasync": lambda store: store.flush(),
    "fsync": lambda store: store.flush_name(),
    "fstat": lambda store: store.size(),
    "close": lambda store: store.close(),
}


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR])
@pytest.mark.parametrize("name", CALLS)
def test_whatever_the_system_answers_is_a_typed_error(
    local: LocalFile, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    count = 0

    def fail(*_arguments: object) -> None:
        nonlocal count
        count += 1
        assert count < 1000, "a call that always fails must come to an end"
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, name, fail)
        with pytest.raises(StoreError, match=os.strerror(code)) as caught:
            CALLS[name](local)
    assert caught.value.errno == code


@pytest.mark.parametrize("name", ["pread", "preadv", "pwrite", "pwritev", "ftruncate", "posix_fallocate", "fdatasync"])
def test_a_call_that_is_interrupted_is_made_again(local: LocalFile, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    original, interrupts = getattr(os, name), 3

    def interrupted(*arguments: object) -> object:
        nonlocal interrupts
        if interrupts:
            interrupts -= 1
            raise InterruptedError(errno.EINTR, "Interrupted system call")
        return original(*arguments)

    monkeypatch.setattr(os, name, interrupted)
    CALLS[name](local)
    assert not interrupts
    local.flush()


@pytest.mark.parametrize("step", [1, 3, 7])
def test_short_reads_and_writes_are_completed(local: LocalFile, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    pread, preadv, pwrite, pwritev = os.pread, os.preadv, os.pwrite, os.pwritev
    monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, min(step, length), at))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:step]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, memoryview(data)[:step], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: pwritev(fd, [parts[0], parts[1][:step]], at))
    local.pwrite(b"<" * 2000, 0)
    local.pwritev([b"", b"a" * 10, bytearray(b"b" * 10), b"c"], 2000)
    expected = b"<" * 2000 + b"a" * 10 + b"b" * 10 + b"c"
    assert local.pread(2021, 0) == expected
    buffer = bytearray(2021)
    assert local.readinto_at(memoryview(buffer), 0) == 2021
    assert buffer == expected


@pytest.mark.parametrize("name", ["pwrite", "pwritev"])
def test_a_write_that_writes_nothing_is_an_error(local: LocalFile, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(os, name, lambda *_arguments: 0)
    with pytest.raises(StoreError, match="nothing could be written"):
        CALLS[name](local)


class Undurable(io.BytesIO):
    """A file object whose first flush fails."""

    failed = False

    def flush(self) -> None:
        if not self.failed:
            self.failed = True
            raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("method", WRITES)
@pytest.mark.parametrize("kind", ["path", "file"])
def test_after_a_failed_flush_nothing_is_written_and_reading_goes_on(
    local: LocalFile, monkeypatch: pytest.MonkeyPatch, kind: str, method: str
) -> None:
    store: Store = local if kind == "path" else FileObject(Undurable(CONTENT), writable=True)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", lambda _fd: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
        with pytest.raises(StoreError, match="Could not flush") as caught:
            store.flush()
        assert caught.value.errno == errno.EIO
    with pytest.raises(StoreError, match="earlier flush failed") as caught:
        WRITES[method](store)
    assert caught.value.errno == errno.EIO
    assert whole(store) == CONTENT
