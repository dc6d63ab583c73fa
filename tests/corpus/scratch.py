"""A minimal writer of qcow2 images from nothing, for images that no seed resembles."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from .patch import COMPRESSED, COPIED, MAGIC


def header(
    *,
    cluster_bits: int = 12,
    size: int,
    l1_entries: int,
    l1_offset: int,
    table_offset: int,
    table_clusters: int = 1,
    version: int = 3,
    incompatible: int = 0,
    compatible: int = 0,
    autoclear: int = 0,
    refcount_order: int = 4,
    header_length: int = 112,
    compression_type: int = 0,
    backing: tuple[int, int] = (0, 0),
    snapshots: tuple[int, int] = (0, 0),
    crypt: int = 0,
) -> bytes:
    """Return a header; `snapshots` is (count, offset), `backing` is (offset, length)."""
    first = MAGIC + struct.pack(
        ">IQIIQIIQQIIQ",
        version,
        *backing,
        cluster_bits,
        size,
        crypt,
        l1_entries,
        l1_offset,
        table_offset,
        table_clusters,
        *snapshots,
    )
    if version == 2:
        return first
    tail = struct.pack(
        ">QQQIIB7x", incompatible, compatible, autoclear, refcount_order, header_length, compression_type
    )
    return first + tail[: max(0, header_length - 72)].ljust(header_length - 72, b"\0")


def pack_refcounts(order: int, counts: list[int]) -> bytes:
    """Return refcounts of 2^order bits: big-endian words, or packed from the least significant bits on."""
    bits = 1 << order
    if bits >= 8:
        return b"".join(count.to_bytes(bits // 8, "big") for count in counts)
    packed = bytearray(-(-len(counts) * bits // 8))
    for index, count in enumerate(counts):
        packed[index * bits // 8] |= count << index * bits % 8
    return bytes(packed)


@dataclass
class Scratch:
    """An image under construction: cluster 0 header, 1 refcount table, 2 its block, 3 L1, 4 L2, then data.

    Everything fits one refcount block and one L2 table; refcounts are exact when `data` and `extra` are.
    """

    size: int
    cluster_bits: int = 12
    incompatible: int = 0
    compression_type: int = 0
    extensions: bytes = bytes(8)
    entries: dict[int, int] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    version: int = 3
    refcount_order: int = 4
    counts: dict[int, int] = field(default_factory=dict)

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits

    @property
    def data_start(self) -> int:
        return 5 * self.cluster

    def add_plain(self, guest_cluster: int, content: bytes) -> int:
        """Append one data cluster and map it; return its host offset."""
        self.data += bytes(-len(self.data) % self.cluster)
        at = self.data_start + len(self.data)
        self.data += content.ljust(self.cluster, b"\0")
        self.entries[guest_cluster] = at | COPIED
        return at

    def compressed_entry(self, host_offset: int, length: int) -> int:
        """Return the L2 entry of compressed data of `length` bytes at `host_offset`."""
        shift = 62 - (self.cluster_bits - 8)
        sectors = (host_offset % 512 + length - 1) // 512
        if sectors >> self.cluster_bits - 8:
            raise ValueError(f"{length} bytes at {host_offset:#x} need more sectors than a descriptor counts")
        return COMPRESSED | host_offset | sectors << shift

    def add_compressed(self, guest_cluster: int, stream: bytes, *, pad: int = 0) -> int:
        """Append a compressed stream after `pad` bytes; return its host offset."""
        self.data += bytes(pad)
        at = self.data_start + len(self.data)
        self.data += stream
        self.entries[guest_cluster] = self.compressed_entry(at, len(stream))
        for cluster in range(at >> self.cluster_bits, (at + len(stream) - 1 | 511) // self.cluster + 1):
            self.counts[cluster] = self.counts.get(cluster, 0) + 1
        return at

    def image(self) -> bytes:
        cluster = self.cluster
        head = header(
            cluster_bits=self.cluster_bits,
            size=self.size,
            l1_entries=1,
            l1_offset=3 * cluster,
            table_offset=cluster,
            version=self.version,
            incompatible=self.incompatible,
            compression_type=self.compression_type,
            refcount_order=self.refcount_order,
        )
        total = 5 + -(-len(self.data) // cluster)
        counts = [1] * total
        for at, count in self.counts.items():
            counts[at] = count
        table = bytearray(cluster)
        wide = 16 if self.incompatible & 16 else 8
        for guest_cluster, entry in self.entries.items():
            struct.pack_into(">Q", table, wide * guest_cluster, entry)
        parts = [
            (head + self.extensions).ljust(cluster, b"\0"),
            struct.pack(">Q", 2 * cluster).ljust(cluster, b"\0"),
            pack_refcounts(self.refcount_order, counts).ljust(cluster, b"\0"),
            struct.pack(">Q", 4 * cluster | COPIED).ljust(cluster, b"\0"),
            bytes(table),
            bytes(self.data).ljust((total - 5) * cluster, b"\0"),
        ]
        return b"".join(parts)

    def write(self, folder: Path, name: str = "image.qcow2") -> Path:
        path = folder / name
        path.write_bytes(self.image())
        return path
