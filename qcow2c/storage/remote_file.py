"""`RemoteFile`: a file by its URL, over fsspec: `http://`, `s3://`, `memory://`, whatever it knows. Read-only.

Each request to a store far away costs more than the bytes it brings: what is read is fetched in blocks, which are kept,
and ever more of them in a row where one reads on. Memory: CACHE_BYTES, and one fetch.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from typing import Any

from qcow2c.errors import Span, StoreError, UnsupportedFeature
from qcow2c.storage.processes import require_opener
from qcow2c.storage.store import Store, reason
from qcow2c.storage.thread_locks import fork_safe

BLOCK_BYTES = 256 << 10
"""Bytes of a block: header, L1 table and refcount table of most images lie in the first one."""

CACHE_BYTES = 32 << 20
MOST_BLOCKS = 32
"""Blocks of one fetch: 8 MiB."""

_PARTS = 4
"""Requests that a large fetch is divided into, where the file system makes several at once."""

_SECONDS = 60
"""How long a server may be silent."""


class RemoteFile(Store):
    """A file that fsspec reads. Several threads may ask; a child process must open its own."""

    def __init__(self, url: str) -> None:
        """Raises UnsupportedFeature without fsspec, or what it needs for this protocol; StoreError."""
        self.name = self.url = url
        self._process = os.getpid()
        self._lock = fork_safe(threading.Lock())
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._next = 1 << 62
        """The block behind the last fetch, at first behind any."""
        self._ahead = 1
        self._gives_parts = not url.startswith(("http://", "https://"))
        """Whether it is known that asking for a part of the file does not bring all of it."""
        self._system, self._path = _located(url)
        self._size = self._find_size()
        self.requests = 1
        """How often something was asked of the store."""

    def _find_size(self) -> int:
        try:
            facts = self._system.info(self._path)
        except Exception as exc:
            raise self._problem(exc, "open") from exc
        size = facts.get("size")
        if facts.get("type") == "directory" or not isinstance(size, int):
            raise StoreError(f"cannot open {self.name!r}: it is no file, or its size is not known", filename=self.name)
        return size

    def size(self) -> int:
        return self._size

    def identity(self) -> object:
        return self.url

    def pread(self, length: int, offset: int) -> bytes:
        require_opener(self._process, self.name)
        end = min(offset + length, self._size)
        if offset >= end:
            return b""
        first, last = offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        with self._lock:
            parts = [self._block(number, last) for number in range(first, last + 1)]
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return data[offset - first * BLOCK_BYTES : end - first * BLOCK_BYTES]

    def _block(self, number: int, last: int) -> bytes:
        """Return a block; `last` is the last one that is wanted now."""
        found = self._blocks.get(number)
        if found is None:
            self._fetch(number, last)
            found = self._blocks[number]
        self._blocks.move_to_end(number)
        return found

    def _fetch(self, wanted: int, last: int) -> None:
        """Fetch a block, those behind it up to `last`, and ever more of them where one reads on from the last fetch."""
        goes_on = self._next <= wanted <= self._next + self._ahead
        self._ahead = min(2 * self._ahead, MOST_BLOCKS) if goes_on else 1
        # Threads that read on together come in any order: what one has skipped, another will want.
        first = self._next if goes_on and self._blocks.keys().isdisjoint(range(self._next, wanted)) else wanted
        end = min(max(first + self._ahead, last + 1), first + MOST_BLOCKS, -(-self._size // BLOCK_BYTES))
        end = next((number for number in range(wanted + 1, end) if number in self._blocks), max(end, wanted + 1))
        data = self._ranges(first * BLOCK_BYTES, min(end * BLOCK_BYTES, self._size))
        self._next = end
        for number in range(first, end):
            self._blocks[number] = data[(number - first) * BLOCK_BYTES : (number - first + 1) * BLOCK_BYTES]
        while len(self._blocks) > max(CACHE_BYTES // BLOCK_BYTES, end - first):
            self._blocks.popitem(last=False)

    def _ranges(self, start: int, end: int) -> bytes:
        """Return bytes of the file, asked for in parts where there are many. Raises StoreError."""
        parts = _PARTS if self._gives_parts and end - start >= _PARTS * BLOCK_BYTES * 2 else 1
        step = -(-(end - start) // parts)
        starts = list(range(start, end, step))
        ends = [min(at + step, end) for at in starts]
        self.requests += len(starts)
        try:
            if not self._gives_parts:
                with self._system.open(self._path, "rb", cache_type="none") as file:  # Which takes no more than that.
                    file.seek(start)
                    found = [file.read(end - start)]
                self._gives_parts = True
            elif len(starts) == 1:
                found = [self._system.cat_file(self._path, start=start, end=end)]
            else:
                found = self._system.cat_ranges([self._path] * len(starts), starts, ends, on_error="raise")
        except Exception as exc:
            raise self._problem(exc, "read", Span(start, end - start)) from exc
        for at, stop, part in zip(starts, ends, found, strict=True):
            if len(part) != stop - at:
                message = f"could not read {self.name!r}: {len(part)} bytes came where {stop - at} were asked for"
                raise StoreError(message, where=Span(at, stop - at), filename=self.name)
        return b"".join(found)

    def _problem(self, exc: Exception, doing: str, where: Span | None = None) -> StoreError:
        code = exc.errno if isinstance(exc, OSError) else None
        if isinstance(exc, FileNotFoundError):
            code, what = errno.ENOENT, os.strerror(errno.ENOENT)
        else:
            what = reason(exc) or type(exc).__name__
        return StoreError(f"could not {doing} {self.name!r}: {what}", where=where, errno=code, filename=self.name)


def _located(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it. Raises UnsupportedFeature, StoreError."""
    try:
        import fsspec
    except ImportError as exc:
        raise UnsupportedFeature(f"{url!r} is a URL: to read it, install qcow2c[remote]") from exc
    options: dict[str, Any] = {}
    try:
        if url.startswith(("http://", "https://")):
            import aiohttp

            options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(sock_connect=_SECONDS, sock_read=_SECONDS)}
        system, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as exc:
        raise UnsupportedFeature(f"{url!r} cannot be read: {exc}") from exc
    except ValueError as exc:
        raise UnsupportedFeature(f"{url!r} is no local file, and no URL that is known here: {exc}") from exc
    except Exception as exc:
        raise StoreError(f"could not open {url!r}: {exc}", filename=url) from exc
    return system, str(path)
