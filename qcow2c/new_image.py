"""New images: the order in which a file comes into being. The magic value is written last.

A half-made image never looks complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Literal

from qcow2c.create_options import CreateOptions, Places, header_of
from qcow2c.errors import Qcow2Error, StoreError, UsageError
from qcow2c.image_layout import ImageLayout, plan
from qcow2c.local_file import LocalFile
from qcow2c.locks import Use
from qcow2c.storage import Store, open_store
from qcow2c.structs import MAGIC, SECTOR_SIZE

Preallocation = Literal["off", "metadata", "falloc", "full"]

_FILL_BYTES = 4 << 20

_NAME_BYTES = 200
"""Bytes of a file's name that go into the name of the file that is yet to be completed: names have a limit."""


def write_image(path: str | os.PathLike[str] | Any, options: CreateOptions, guest_data: Any = None) -> None:
    """Create an image whose options are complete; see `create`."""
    options.validate()
    planned = plan(options.geometry, options.disk_size, allocated=options.allocates)
    header = header_of(options, _places(planned))
    with ExitStack() as stack:
        store = stack.enter_context(new_file(path, Use.WRITABLE_IMAGE, nocow=options.nocow))
        data = store
        if options.data_file is not None:
            target = options.data_file if guest_data is None else guest_data
            data = stack.enter_context(new_file(target, Use.WRITABLE_DATA_FILE, nocow=options.nocow))
            data.truncate(options.disk_size)
        _write(store, data, header, planned, options)


@contextmanager
def new_file(
    path: str | os.PathLike[str] | Any, use: Use, *, nocow: bool = False, durable: bool = True
) -> Iterator[Store]:
    """Open a file to be written from its start: locked, then emptied. What fails removes it if it was not there.

    With `durable`, its name is so in the end. Raises StoreError, ImageLocked.
    """
    if not isinstance(path, str | os.PathLike):
        store = open_store(path, writable=True)
        store.truncate(0)
        yield store
        return
    file = _created(os.path.realpath(os.fsdecode(path)), os.fsdecode(path))
    file.name = os.fsdecode(path)  # As errors call it, links or not.
    try:
        file.lock(use)
        if file.size():  # ext4 writes a file out when it is closed, if it was ever emptied.
            file.truncate(0)
        if nocow:
            file.set_no_copy_on_write()
        yield file
        file.require_name()
        if durable:
            file.flush_name()
    except BaseException:
        if file.created:
            file.remove()
        raise
    finally:
        file.close()


def _created(place: str, name: str) -> LocalFile:
    """Open a file, which is made if it is not there; an error calls it by the name that the caller knows."""
    try:
        return LocalFile(place, writable=True, create=True)
    except StoreError as exc:
        exc.message = exc.message.replace(f"Could not open {place!r}", f"Could not create {name!r}", 1)
        raise


@contextmanager
def complete_file(
    path: str | os.PathLike[str] | Any, use: Use, *, nocow: bool = False, durable: bool = True
) -> Iterator[Store]:
    """Open a new file that takes its name only when it is complete: what has no magic value always looks complete.

    A file that is there is locked and removed at once, so that there is room; its mode stays. Where no other file can
    be made beside it, it is written itself. Raises StoreError, ImageLocked.
    """
    final = os.path.realpath(path) if isinstance(path, str | os.PathLike) else ""
    directory, name = os.path.split(os.fsdecode(final))
    if not final or (os.path.exists(final) and not os.access(directory, os.W_OK)):
        with new_file(path, use, nocow=nocow, durable=durable) as store:
            yield store
        return
    with ExitStack() as stack:
        mode = None
        if os.path.exists(final):
            old = LocalFile(final, writable=True)
            stack.callback(old.close)
            old.lock(use)
            mode = os.stat(final).st_mode
            old.remove()
        short = os.fsdecode(os.fsencode(name)[:_NAME_BYTES])
        partial = _created(os.path.join(directory, f".{short}.{os.getpid()}.partial"), os.fsdecode(path))
        stack.callback(partial.close)
        partial.name = os.fsdecode(path)  # As errors call it.
        partial.lock(use)  # Whoever else has it goes on working on it.
        try:
            if partial.size():  # Left behind by a process of the same number, which was killed.
                partial.truncate(0)
            if nocow:
                partial.set_no_copy_on_write()
            yield partial
            partial.rename(os.fsdecode(final), mode)
            if durable:
                partial.flush_name()
        except BaseException:
            partial.remove()
            raise


def _write(store: Store, data: Store, header: bytes, planned: ImageLayout, options: CreateOptions) -> None:
    """Write all there is of a new image.

    Durable order: guest data and metadata, with a header that lacks its magic value; then the whole header.
    """
    size = options.cluster_size
    store.pwrite(bytes(len(MAGIC)) + header[len(MAGIC) :], 0)
    for offset, part in planned.parts():
        store.pwrite(part, offset)
    store.truncate(planned.end * size)
    if planned.data_clusters:
        start = 0 if data is not store else planned.first_data * size
        length = options.disk_size if data is not store else planned.data_clusters * size
        if options.preallocation in ("falloc", "full"):
            store.allocate(0, planned.end * size)
            data.allocate(start, length)
        if options.preallocation == "full":
            _fill(data, start, length)
    if data is not store:
        data.flush()
    store.flush()
    store.pwrite(header[:SECTOR_SIZE], 0)
    store.flush()


def _fill(store: Store, start: int, length: int) -> None:
    """Write zeros, so that every byte has its space."""
    block = bytes(min(length, _FILL_BYTES))
    for offset in range(start, start + length, _FILL_BYTES):
        store.pwrite(block[: min(_FILL_BYTES, start + length - offset)], offset)


def extend(store: Store, start: int, end: int, preallocation: Preallocation) -> None:
    """Let a store end at `end`, with zeros from `start` on, where nobody sees anything yet; it is durable then.

    What fails is undone, so that space is not lost. Raises StoreError.
    """
    former = store.size()
    if former > start:
        store.truncate(start)
    try:
        store.truncate(end)
        if preallocation in ("falloc", "full"):
            store.allocate(start, end - start)
        if preallocation == "full":
            _fill(store, start, end - start)
        store.flush()
    except BaseException:
        with suppress(Qcow2Error):
            store.truncate(min(former, start))
        raise


def _places(planned: ImageLayout) -> Places:
    size = planned.geometry.cluster_size
    return Places(
        planned.l1_table * size, planned.l1_entries, planned.refcount_table * size, planned.refcount_table_clusters
    )


def require_raw_preallocation(preallocation: str) -> None:
    """Raise UsageError for a mode that a raw file cannot have: it has no metadata."""
    if preallocation not in ("off", "falloc", "full"):
        raise UsageError(f"Parameter 'preallocation' does not accept value {preallocation!r}")


def create_raw(path: str | os.PathLike[str], size: int, *, preallocation: str = "off", nocow: bool = False) -> None:
    """Create a raw image. Raises UsageError, StoreError, ImageLocked."""
    require_raw_preallocation(preallocation)
    whole = -(-size // SECTOR_SIZE) * SECTOR_SIZE
    with new_file(path, Use.WRITABLE_DATA_FILE, nocow=nocow) as store:
        store.truncate(whole)
        if preallocation == "falloc":
            store.allocate(0, whole)
        elif preallocation == "full":
            _fill(store, 0, whole)
        store.flush()
