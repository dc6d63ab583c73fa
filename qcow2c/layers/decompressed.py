"""Compressed clusters, decompressed one at a time; a few are kept, because small reads often hit the same one again.

It reads only, and judges nothing but the data itself. Spec: "Cluster mapping".
"""

from __future__ import annotations

import threading

from qcow2c.errors import CorruptData, Span
from qcow2c.format import codecs
from qcow2c.format.header import Header
from qcow2c.format.tables import compressed_extent
from qcow2c.storage.store import Store
from qcow2c.storage.thread_locks import fork_safe

_CACHE_BYTES = 4 << 20
"""Bound of the decompressed clusters that are kept."""


class DecompressedClusters:
    """The compressed clusters of one image. Several threads may ask."""

    def __init__(self, store: Store, header: Header) -> None:
        self.decompress = codecs.decompressor(header.compression_type)
        self._store = store
        self._geometry = header.geometry
        self._kept: dict[int, bytes | bytearray] = {}
        self._limit = max(1, _CACHE_BYTES >> header.cluster_bits)
        self._lock = fork_safe(threading.Lock())

    def read(self, entry: int, guest_offset: int) -> bytes | bytearray:
        """Return the cluster that the L2 entry of a guest cluster names. Raises CorruptData, StoreError."""
        cluster = self._kept.get(entry)
        if cluster is None:
            cluster = self._decompressed(entry, guest_offset)
            with self._lock:
                while len(self._kept) >= self._limit:
                    del self._kept[next(iter(self._kept))]
                self._kept[entry] = cluster
        return cluster

    def forget(self, entry: int) -> None:
        """Forget the cluster that an entry named: its place may hold anything from now on."""
        self._kept.pop(entry, None)

    def _decompressed(self, entry: int, guest_offset: int) -> bytes | bytearray:
        extent = compressed_extent(entry, self._geometry)
        data = self._store.pread(extent.length, extent.host_offset)
        try:
            if not data:
                raise codecs.DecompressionError(f"it is past the end of the file at {self._store.size():#x}")
            return self.decompress(data, self._geometry.cluster_size)
        except codecs.DecompressionError as exc:
            where, guest = Span(extent.host_offset, extent.length), Span(guest_offset, self._geometry.cluster_size)
            message = f"the compressed cluster cannot be read: {exc}"
            raise CorruptData(message, where=where, guest=guest, spec="Cluster mapping") from exc
