"""Every store keeps the contract of stores. A new one joins with its class below, over a function that makes it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from qcow2c.storage.sources import open_store
from qcow2c.testing import Made, WritableStoreContract


@contextmanager
def file_with(content: bytes) -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "content"
        path.write_bytes(content)
        yield path


@contextmanager
def local_file(content: bytes, *, writable: bool) -> Iterator[Made]:
    with file_with(content) as path:
        store = open_store(path, writable=writable)
        yield Made(store, path.read_bytes)
        store.close()


@contextmanager
def file_object(content: bytes, *, writable: bool, buffering: int = -1) -> Iterator[Made]:
    mode = "r+b" if writable else "rb"
    with (
        file_with(content) as path,
        path.open(mode, buffering=buffering) as file,
        closing(open_store(file, writable=writable)) as store,
    ):
        yield Made(store, path.read_bytes)


@contextmanager
def bytes_io(content: bytes, *, writable: bool) -> Iterator[Made]:
    file = io.BytesIO(content)
    yield Made(open_store(file, writable=writable), file.getvalue)


@contextmanager
def memory(content: bytes, *, writable: bool) -> Iterator[Made]:
    data = bytearray(content)
    yield Made(open_store(data, writable=writable), lambda: bytes(data))


class TestLocalFile(WritableStoreContract):
    make = staticmethod(local_file)


class TestBufferedFileObject(WritableStoreContract):
    make = staticmethod(file_object)


class TestRawFileObject(WritableStoreContract):
    make = staticmethod(partial(file_object, buffering=0))


class TestBytesIO(WritableStoreContract):
    make = staticmethod(bytes_io)


class TestMemory(WritableStoreContract):
    make = staticmethod(memory)
