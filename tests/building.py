"""A builder of small images out of the schemas: what the engine reads is made here without any engine.

Clusters are given out in order; refcounts follow from the references unless a test sets them. `build()` returns the
bytes of the image.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from qcow2c import structs
from qcow2c.format import derived
from qcow2c.format.header import V2_LENGTH
from qcow2c.structs import ExtensionType, Version, compressed_descriptor, refcount_group

L1_COPIED = derived.L1_ENTRY["copied"].mask
L2_COPIED = derived.STANDARD_L2_ENTRY["copied"].mask
L2_COMPRESSED = derived.STANDARD_L2_ENTRY["compressed"].mask
L2_ZERO = derived.STANDARD_L2_ENTRY["zero"].mask


def extension(kind: int, data: bytes) -> bytes:
    """Return a header extension with its padding."""
    header = structs.EXTENSION_HEADER.build({"type": kind, "length": len(data)})
    return bytes(header + data + bytes(-len(data) % 8))


def packed_words(words: Sequence[int]) -> bytes:
    """Return 64-bit words as they are stored."""
    return struct.pack(f">{len(words)}Q", *words)


def deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    return packer.compress(data) + packer.flush()


class Builder:
    """One image under construction; every attribute may be changed before `build()`."""

    def __init__(
        self,
        size: int = 1 << 20,
        *,
        cluster_bits: int = 12,
        version: int = 3,
        refcount_order: int = 4,
        incompatible: int = 0,
        **fields: Any,
    ) -> None:
        self.cluster_size = 1 << cluster_bits
        self.extended = bool(incompatible & derived.INCOMPATIBLE_FEATURES["extended_l2"].mask)
        self.entry_size = 16 if self.extended else 8
        self.l2_entries = self.cluster_size // self.entry_size
        self.external = bool(incompatible & derived.INCOMPATIBLE_FEATURES["data_file"].mask)
        self.refcount_order = refcount_order
        self.version = version
        self.end = self.cluster_size
        self.parts: dict[int, bytes] = {}
        self.refcounts: Counter[int] = Counter({0: 1})
        self.l1_entries = -(-size // (self.cluster_size * self.l2_entries))
        self.l1 = [0] * self.l1_entries
        self.l2: dict[int, list[int]] = {}
        self.snapshots: list[bytes] = []
        self.extensions: list[bytes] = []
        self.backing_file = b""
        self.fields: dict[str, Any] = {
            "magic": structs.MAGIC,
            "version": version,
            "backing_file_offset": 0,
            "backing_file_size": 0,
            "cluster_bits": cluster_bits,
            "size": size,
            "crypt_method": 0,
            "l1_size": self.l1_entries,
            "l1_table_offset": self.allocate(max(1, self.l1_entries * 8)),
            "refcount_table_offset": 0,
            "refcount_table_clusters": 1,
            "nb_snapshots": 0,
            "snapshots_offset": 0,
            "incompatible_features": incompatible,
            "compatible_features": 0,
            "autoclear_features": 0,
            "refcount_order": refcount_order,
            "header_length": 112,
            "compression_type": 0,
            "padding": bytes(7),
            **fields,
        }

    def allocate(self, length: int, references: int = 1) -> int:
        """Return the offset of new clusters for `length` bytes."""
        offset = self.end
        clusters = -(-length // self.cluster_size)
        self.end += clusters * self.cluster_size
        for cluster in range(clusters):
            self.refcounts[offset // self.cluster_size + cluster] = references
        return offset

    def put(self, data: bytes) -> int:
        """Store bytes in new clusters and return their offset."""
        offset = self.allocate(len(data))
        self.parts[offset] = data
        return offset

    def table(self, l1_index: int) -> list[int]:
        """Return the L2 table of an L1 entry, as words, made if it is not there."""
        if l1_index not in self.l2:
            offset = self.allocate(self.cluster_size)
            self.l1[l1_index] = offset | L1_COPIED
            self.l2[l1_index] = [0] * (self.cluster_size // 8)
        return self.l2[l1_index]

    def entry(self, guest_cluster: int, descriptor: int, bitmap: int = 0) -> None:
        """Set the L2 entry of a guest cluster."""
        table = self.table(guest_cluster // self.l2_entries)
        index = guest_cluster % self.l2_entries
        if self.extended:
            table[2 * index : 2 * index + 2] = [descriptor, bitmap]
        else:
            table[index] = descriptor

    def data(self, guest_cluster: int, data: bytes, bitmap: int = structs.UINT32[-1]) -> int:
        """Map a guest cluster to a new host cluster with `data`; return where."""
        offset = self.put(data.ljust(self.cluster_size, b"\0"))
        self.entry(guest_cluster, offset | L2_COPIED, bitmap if self.extended else 0)
        return offset

    def compressed(self, guest_cluster: int, packed: bytes, *, inside: int = 0) -> int:
        """Map a guest cluster to compressed data, which begins `inside` bytes into a new host cluster."""
        offset = self.put(bytes(inside) + packed) + inside
        last_sector = (offset + len(packed) - 1) // 512
        word = compressed_descriptor(self.fields["cluster_bits"]).build(
            {
                "copied": False,
                "compressed": True,
                "additional_sectors": last_sector - offset // 512,
                "host_offset": offset,
            }
        )
        self.entry(guest_cluster, int.from_bytes(word, "big"))
        return offset

    def snapshot(
        self,
        name: bytes,
        *,
        id_str: bytes = b"1",
        disk_size: int | None = None,
        vm_state_size: int = 0,
        extra_data: bytes | None = None,
        **fields: Any,
    ) -> None:
        """Add a snapshot of the active state with L2 tables of its own: every cluster gets another reference."""
        l1 = [0] * len(self.l1)
        for index, words in self.l2.items():
            self._share(words)
            l1[index] = self.put(packed_words(words))
        offset = self.put(packed_words(l1))
        extra = structs.SNAPSHOT_EXTRA_DATA.build(
            {
                "vm_state_size_large": vm_state_size,
                "disk_size": self.fields["size"] if disk_size is None else disk_size,
                "icount": structs.UINT64[-1],
            }
        )
        extra = extra if extra_data is None else extra_data
        header = {
            "l1_table_offset": offset,
            "l1_size": len(l1),
            "id_str_size": len(id_str),
            "name_size": len(name),
            "date_sec": 1_700_000_000,
            "date_nsec": 5,
            "vm_clock_nsec": 7,
            "vm_state_size": 0,
            "extra_data_size": len(extra),
            **fields,
        }
        record = {"header": header, "extra_data": extra, "id_str": id_str, "name": name}
        self.snapshots.append(structs.SNAPSHOT_RECORD.build(record))

    def one_bitmap(self, entry: int, **changes: int) -> None:
        """Add a consistent bitmap named b whose table has one entry; `changes` replace fields of its record."""
        self.fields["autoclear_features"] = 1
        header = {
            "bitmap_table_offset": self.put(entry.to_bytes(8, "big")),
            "bitmap_table_size": 1,
            "flags": 0,
            "type": 1,
            "granularity_bits": 16,
            "name_size": 1,
            "extra_data_size": 0,
            **changes,
        }
        record = structs.BITMAP_DIRECTORY_RECORD.build({"header": header, "extra_data": b"", "name": b"b"})
        record += bytes(-len(record) % 8)
        fields = {
            "nb_bitmaps": 1,
            "reserved": 0,
            "bitmap_directory_size": len(record),
            "bitmap_directory_offset": self.put(record),
        }
        self.extensions.append(extension(ExtensionType.BITMAPS, structs.BITMAPS_EXTENSION.build(fields)))

    def _share(self, table: list[int]) -> None:
        step = 2 if self.extended else 1
        for index in range(0, len(table), step):
            word = table[index]
            if word & ~(L2_COPIED | L2_COMPRESSED | L2_ZERO) and not word & L2_COMPRESSED:
                table[index] = word & ~L2_COPIED
                self.refcounts[(word & ~(L2_COPIED | L2_ZERO)) // self.cluster_size] += 1
            elif word & L2_COMPRESSED:
                offset = derived.COMPRESSED_DESCRIPTOR[self.fields["cluster_bits"]]["host_offset"].of(word)
                self.refcounts[offset // self.cluster_size] += 1

    def build(self) -> bytes:
        """Return the image."""
        fields = self.fields
        if self.snapshots:
            table = b"".join(record + bytes(-len(record) % 8) for record in self.snapshots)
            fields["nb_snapshots"], fields["snapshots_offset"] = len(self.snapshots), self.put(table)
        if not fields["refcount_table_offset"]:
            self._build_refcounts()
        image = bytearray(self.end)
        for offset, data in self.parts.items():
            image[offset : offset + len(data)] = data
        for index, words in self.l2.items():
            offset = self.l1[index] & ~L1_COPIED
            image[offset : offset + self.cluster_size] = packed_words(words)
        offset = fields["l1_table_offset"]
        image[offset : offset + 8 * len(self.l1)] = packed_words(self.l1)
        header = self._header()
        image[: len(header)] = header
        return bytes(image)

    def _header(self) -> bytes:
        fields = self.fields
        length = fields["header_length"] if self.version >= Version.V3 else V2_LENGTH
        area = b"".join(self.extensions) + extension(ExtensionType.END, b"")
        if self.backing_file:
            fields["backing_file_offset"] = fields["backing_file_offset"] or length + len(area)
            fields["backing_file_size"] = fields["backing_file_size"] or len(self.backing_file)
        parts = structs.HEADER_V2.build(fields)
        if self.version >= Version.V3:
            parts += structs.HEADER_V3_TAIL.build(fields) + structs.HEADER_ADDITIONAL.build(fields)
        return bytes(parts[:length].ljust(length, b"\0") + area + self.backing_file)

    def _build_refcounts(self) -> None:
        """Lay out one refcount table cluster and as many blocks as there are clusters to count."""
        group = refcount_group(self.refcount_order)
        per_block = self.cluster_size * 8 >> self.refcount_order
        table = self.allocate(self.cluster_size)
        blocks: list[int] = []
        while len(blocks) * per_block * self.cluster_size < self.end:
            blocks.append(self.allocate(self.cluster_size))
        self.fields["refcount_table_offset"] = table
        self.parts[table] = packed_words(blocks)
        names = [member.name for member in group.subcon.subcons] if self.refcount_order < 3 else ["refcount_0"]
        for number, offset in enumerate(blocks):
            data = bytearray(self.cluster_size)
            first = number * per_block
            counted = {
                (cluster - first) // len(names) for cluster in self.refcounts if 0 <= cluster - first < per_block
            }
            for position in counted:
                start = first + position * len(names)
                values = {name: self.refcounts[start + int(name.removeprefix("refcount_"))] for name in names}
                data[position * group.sizeof() : (position + 1) * group.sizeof()] = group.build(values)
            self.parts[offset] = bytes(data)
