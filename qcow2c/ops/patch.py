"""`patch`: write what a stream of `diff` tells over an image, so that the disk of the one state becomes the other's."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from qcow2c.constants import SECTOR_SIZE
from qcow2c.copy.diff_stream import DiffReader
from qcow2c.disk.opening import open_image
from qcow2c.errors import StoreError, UsageError
from qcow2c.format.detection import Format, known_format
from qcow2c.storage.gate import Gate
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import Source, Store, opened
from qcow2c.storage.store import Progress, reason

if TYPE_CHECKING:
    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.secrets import Key


def patch(
    target: Source | Store,
    stream: Any,
    *,
    image_format: str | None = None,
    key: Key | KeyRing = None,
    gate: str | Gate = "directory",
    progress: Progress | None = None,
) -> int:
    """Write a stream, a binary file object, over an image, qcow2 or raw; return the number of ranges.

    Nothing is written before the stream has been read to its end and found whole: what cannot seek is kept in a
    temporary file. The image must show the state from which the difference was taken, which cannot be checked but for
    its size: that of the earlier or, as a qcow2 image must have it, that of the later state. Raw files take the later
    size.

    Durable order: each range as any write to an image, then all of it. A crash leaves some of the ranges written, and
    the same stream, written again, completes it.

    Raises CorruptData for a stream that is not whole, UsageError for the wrong size, and as `open_image` with "r+".
    """
    with _whole(stream) as found, _opened(target, image_format, found, key, gate) as (write, zero):
        count = 0
        for record in found.records():
            if record.data is None:
                zero(record.start, record.length)
            else:
                write(record.data, record.start)
            count += 1
            if progress is not None:
                progress(record.start + record.length, found.after_size)
        return count


@contextmanager
def _whole(stream: Any) -> Iterator[DiffReader]:
    """Give out a reader at the start of a stream that has been read to its end once."""
    with TemporaryFile() as kept:
        start = 0
        file = stream
        if stream.seekable():
            start = stream.tell()
        else:
            try:
                shutil.copyfileobj(stream, kept)
                kept.seek(0)
            except OSError as exc:
                message = f"Could not keep the stream in a temporary file: {reason(exc)}"
                raise StoreError(message, errno=exc.errno) from exc
            file = kept
        for _ in DiffReader(file).records():
            pass
        file.seek(start, io.SEEK_SET)
        yield DiffReader(file)


_Writers = tuple[Callable[[bytes, int], object], Callable[[int, int], object]]
"""Write data at an offset; let a range read as zeros."""


@contextmanager
def _opened(
    target: Source | Store, image_format: str | None, stream: DiffReader, key: Key | KeyRing, gate: str | Gate
) -> Iterator[_Writers]:
    """Open an image to be written, of the right size; what was written is durable afterwards."""
    with opened(target, writable=True) as store:
        if known_format(store, image_format) is Format.QCOW2:
            with open_image(store, "r+", key=key, gate=gate) as image:
                if image.size() // SECTOR_SIZE * SECTOR_SIZE != stream.after_size:
                    sizes = f"{image.size()} bytes, the later state {stream.after_size}"
                    raise UsageError(f"the image has {sizes}: resize it first")
                yield image.pwrite, lambda start, length: image.write_zeroes(start, length, unmap=True)
        else:
            store.lock(Use.WRITABLE_DATA_FILE)
            if -(-store.size() // SECTOR_SIZE) * SECTOR_SIZE not in (stream.before_size, stream.after_size):
                sizes = f"{stream.before_size} or {stream.after_size}"
                raise UsageError(f"the image has {store.size()} bytes, the states {sizes}")
            store.truncate(stream.after_size)
            yield store.pwrite, store.write_zeroes
            store.flush()
