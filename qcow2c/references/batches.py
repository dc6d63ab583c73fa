"""L2 tables in batches, decoded by threads, and big arrays kept in files. Writes nothing."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from qcow2c.references.walk import L2Batch, L2Tables, Walk

if TYPE_CHECKING:
    from numpy.typing import NDArray


MEMORY_BYTES = 128 << 20
"""An array above this is kept in a file."""

SCAN_CLUSTERS = 1 << 18
"""Clusters whose refcounts are looked at together."""

_THREADS = 2


def flat(count: int, dtype: Any) -> NDArray[Any]:
    """Return zeros, in memory or in a file that goes away with them; pages that stay zeros take no room."""
    size = count * np.dtype(dtype).itemsize
    if size <= MEMORY_BYTES:
        return np.zeros(count, dtype=dtype)
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return np.memmap(file, dtype=dtype, mode="r+", shape=(count,))


def batches(walk: Walk, found: L2Tables) -> Iterator[tuple[int, L2Batch]]:
    """Yield the tables in batches, each with the row of its first one; they are read ahead in threads."""
    waiting: deque[tuple[int, Future[L2Batch]]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for start, end in walk.batches(found):
            waiting.append((start, pool.submit(walk.batch, found, start, end)))
            if len(waiting) > _THREADS:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
