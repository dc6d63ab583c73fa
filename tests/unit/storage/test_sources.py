"""Sources of every kind: what is opened as a store, what is refused, and what the kinds do differently."""

from __future__ import annotations

import errno
import io
import os
import socket
from contextlib import closing, nullcontext
from pathlib import Path

import pytest

from qcow2c.errors import ImageLocked, Span, StoreError, UsageError
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import FileObject, LocalFile, Memory, Store, open_store, opened

CONTENT = bytes(range(256)) * 20


@pytest.fixture(params=["path", "string", "file", "bytesio", "bytes", "bytearray", "memoryview"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    sources = {
        "path": path,
        "string": str(path),
        "file": open(path, "rb"),  # noqa: SIM115 - closed with the process
        "bytesio": io.BytesIO(CONTENT),
        "bytes": CONTENT,
        "bytearray": bytearray(CONTENT),
        "memoryview": memoryview(CONTENT),
    }
    chosen = sources.pop(request.param)
    if request.param != "file":
        sources["file"].close()
    else:
        request.addfinalizer(chosen.close)
    return open_store(chosen)


def test_every_source_is_opened(store: Store) -> None:
    assert store.size() == len(CONTENT)
    assert store.pread(len(CONTENT) + 1, 0) == CONTENT
    store.close()


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "FIFO"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "socket"),
        (lambda path: path.symlink_to("/dev/null"), "character device"),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_only_regular_files_are_opened(tmp_path: Path, make: object, kind: str) -> None:
    path = tmp_path / "x"
    make(path)  # type: ignore[operator]
    with pytest.raises(StoreError, match=kind):
        LocalFile(path)


@pytest.mark.parametrize("name", ["missing", "nul\0byte"])
def test_a_name_that_cannot_be_opened_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="Could not open"):
        LocalFile(tmp_path / name)


def test_a_local_file_is_opened_read_only(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    store = LocalFile(path)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(store._fd, b"x")
    store.close()
    with pytest.raises(StoreError) as caught:
        store.pread(1, 2)
    assert caught.value.where == Span(2, 1)
    with pytest.raises(StoreError):
        store.readinto_at(memoryview(bytearray(1)), 0)
    with pytest.raises(StoreError, match="Bad file descriptor"):
        store.size()


def test_holes_of_a_sparse_file_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"x" * (1 << 20))
    store = LocalFile(path)
    found = list(store.extents(0, 1 << 40))
    assert sum(span.length for span, _ in found) == 64 << 20
    assert [span.offset for span, _ in found][1:] == [span.end for span, _ in found][:-1]
    assert (Span(32 << 20, 1 << 20), True) in found
    assert sum(span.length for span, is_data in found if is_data) == 1 << 20
    allocated = store.allocated_size()
    assert allocated is not None and 1 << 20 <= allocated < 2 << 20
    assert list(store.extents(40 << 20, 64 << 20)) == [(Span(40 << 20, 24 << 20), False)]
    store.close()


def test_stores_of_one_file_are_identical_and_of_two_are_not(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").write_bytes(b"")
    one, link, other = (LocalFile(tmp_path / name) for name in "abc")
    assert one.identity() == link.identity() != other.identity()
    assert Memory(b"").identity() != Memory(b"").identity()
    for store in (one, link, other):
        store.close()


class Dribble(io.BytesIO):
    """A raw file that returns one byte at a time."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(1, size or 0))


def test_a_file_object_that_reads_in_pieces_is_read_whole() -> None:
    assert FileObject(Dribble(CONTENT)).pread(300, 7) == CONTENT[7:307]


class Stuck(io.BytesIO):
    def seekable(self) -> bool:
        return False


class Failing(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        if size:
            raise OSError(5, "Input/output error")
        return b""


def test_file_objects_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(StoreError, match="cannot seek"):
        FileObject(Stuck(b""))
    with pytest.raises(StoreError, match="not bytes"):
        open_store(io.StringIO("text"))  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="no readable"):
        closed = io.BytesIO()
        closed.close()
        FileObject(closed)
    with pytest.raises(StoreError, match="Input/output error"):
        FileObject(Failing(b"abc")).pread(1, 0)
    with pytest.raises(UsageError, match="list"):
        open_store([1])  # type: ignore[arg-type]


def test_a_store_is_its_own_source() -> None:
    store = Memory(b"")
    assert open_store(store) is store
    assert store.allocated_size() is None


def test_what_was_opened_is_closed_and_a_store_of_the_caller_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    with opened(path) as own:
        assert own.pread(2, 1) == CONTENT[1:3]
    with pytest.raises(StoreError):
        own.pread(2, 1)
    given = LocalFile(path)
    with opened(given, Use.IMAGE) as store:
        assert store is given
    assert given.pread(2, 1) == CONTENT[1:3]
    given.close()


@pytest.mark.parametrize("use", Use)
def test_a_use_says_how_a_file_is_opened_and_what_is_locked(use: Use, tmp_path: Path) -> None:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    with opened(path, use) as store:
        assert store.writable is use.name.startswith("WRITABLE")
        with nullcontext() if use is Use.SHARED else pytest.raises(ImageLocked), opened(path, Use.WRITABLE_IMAGE):
            pass
    with opened(path, Use.WRITABLE_IMAGE):  # The lock has gone with the file.
        pass


def test_what_cannot_be_locked_is_closed_unless_it_is_of_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    before = len(os.listdir("/proc/self/fd"))
    with opened(path, Use.IMAGE), closing(LocalFile(path, writable=True)) as given:
        for source in (path, given):
            with pytest.raises(ImageLocked):
                opened(source, Use.WRITABLE_IMAGE)
        assert given.pread(2, 1) == CONTENT[1:3]
        assert len(os.listdir("/proc/self/fd")) == before + 2


class BrokenImage(io.BytesIO):
    """A file object that is an image of this package: what fails is one of its errors already."""

    def fail(self, *_arguments: object) -> int:
        raise StoreError("the disk of the image", errno=errno.EIO)

    write = truncate = flush = fail  # type: ignore[assignment]


def test_an_error_of_an_image_that_is_the_file_stays_as_it_is() -> None:
    store = open_store(BrokenImage(CONTENT), writable=True)
    for call in (lambda: store.pwrite(b"x", 0), lambda: store.truncate(0), store.flush):
        with pytest.raises(StoreError) as caught:
            call()
        assert (str(caught.value), caught.value.errno) == ("the disk of the image", errno.EIO)
