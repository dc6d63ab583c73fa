"""Numbers, names and bounds of the format that belong to no single field: magic values, enumerations, limits, units.

They are a part of the declaration: `structs.py` uses each of them, and has them under the same names. They are apart
from it because nearly every module needs some of them, and hardly one needs Construct.
"""

from __future__ import annotations

import enum

from qcow2c.light import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


MAGIC: Final = b"QFI\xfb"

SECTOR_SIZE: Final = 512
"""Bytes: the unit of compressed lengths, of LUKS offsets, and the least alignment of a host offset."""

ENTRY_BYTES: Final = 8
"""Of an entry of any table: L1, L2, refcount or bitmap table. An extended L2 entry is twice as long."""

RECORD_ALIGNMENT: Final = 8
"""Bytes: header extensions, snapshot records and bitmap directory entries are padded to a multiple of this."""

SUBCLUSTERS_PER_CLUSTER: Final = 32

UINT32: Final = range(1 << 32)
UINT64: Final = range(1 << 64)


class Version(enum.IntEnum):
    V2 = 2
    V3 = 3


V2_REFCOUNT_ORDER: Final = 4
"""Version 2 has no field `refcount_order`: its refcounts are always 16 bits wide."""


class CryptMethod(enum.IntEnum):
    NONE = 0
    AES = 1
    LUKS = 2


class CompressionType(enum.IntEnum):
    ZLIB = 0
    """Raw deflate (RFC 1951) without a zlib header, written with a 4 KiB window."""
    ZSTD = 1


class FeatureType(enum.IntEnum):
    INCOMPATIBLE = 0
    COMPATIBLE = 1
    AUTOCLEAR = 2


class ExtensionType(enum.IntEnum):
    END = 0x00000000
    BACKING_FORMAT = 0xE2792ACA
    FEATURE_NAME_TABLE = 0x6803F857
    BITMAPS = 0x23852875
    ENCRYPTION_HEADER = 0x0537BE77
    DATA_FILE = 0x44415441


class BitmapType(enum.IntEnum):
    DIRTY_TRACKING = 1


LUKS_MAGIC: Final = b"LUKS\xba\xbe"

LUKS_STRIPES: Final = 4000
"""Into how many stripes the anti-forensic splitter spreads a key: each LUKS1 writer's number; QEMU takes no other."""

LUKS_KEY_MATERIAL_OFFSET: Final = 4096
"""Where the key material of the first slot begins, at the earliest, and what each area of it is aligned to; bytes."""

LUKS_LEAST_ITERATIONS: Final = 1000
"""Of PBKDF2, that a writer uses."""


class LuksKeySlotState(enum.IntEnum):
    DISABLED = 0x0000DEAD
    ENABLED = 0x00AC71F3


class Limit:
    """Bounds that QEMU enforces; a count from an image meets one of these before it is believed. Sizes in bytes."""

    CLUSTER_BITS: Final = range(9, 22)
    """512 bytes to 2 MiB."""
    EXTENDED_L2_CLUSTER_BITS: Final = range(14, 22)
    """A subcluster, one 32nd of a cluster, is never below 512 bytes."""
    REFCOUNT_ORDER: Final = range(7)
    HOST_OFFSET_END: Final = 1 << 56
    """The first host offset that no L1, L2 or bitmap table entry can express."""
    SIGNED_OFFSET_END: Final = 1 << 63
    """QEMU computes with signed offsets: no size, and no table's end, may reach this."""
    L1_TABLE_BYTES: Final = 32 << 20
    L1_ENTRIES: Final = L1_TABLE_BYTES // ENTRY_BYTES
    REFCOUNT_TABLE_BYTES: Final = 8 << 20
    BACKING_FILE_NAME_BYTES: Final = 1023
    BACKING_FORMAT_NAME_BYTES: Final = 15
    BACKING_CHAIN_DEPTH: Final = 64
    """Ours: QEMU follows a chain until its stack ends."""
    SNAPSHOTS: Final = 65536
    SNAPSHOT_TABLE_BYTES: Final = 64 << 20
    SNAPSHOT_EXTRA_BYTES: Final = 1024
    V3_SNAPSHOT_EXTRA_BYTES: Final = 16
    """Version 3 demands extra data at least up to the disk size."""
    BITMAPS: Final = 65535
    BITMAP_DIRECTORY_BYTES: Final = 1024 * 65535
    BITMAP_TABLE_ENTRIES: Final = 0x8000000
    BITMAP_BYTES: Final = 0x20000000
    BITMAP_NAME_BYTES: Final = 1023
    BITMAP_GRANULARITY_BITS: Final = range(9, 32)
    LUKS_ITERATIONS: Final = 1 << 27
    """Ours: of PBKDF2, of all key slots together. Writers choose for each what takes them two seconds, 2^23 or so."""
    CHECKED_CLUSTERS: Final = (1 << 31) - 1
    """QEMU's check refuses a file of more clusters than this."""


FOREIGN_FORMATS: Final = (
    (0, MAGIC + b"\0\0\0\x01", "qcow"),
    (0, LUKS_MAGIC, "luks"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"QED\0", "qed"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
)
"""Offset, signature and name of formats that must not be taken for raw where an image does not record a format."""

FORMAT_PROBE_BYTES: Final = 68

IMAGE_SIGNATURES: Final = (
    (0, MAGIC, "qcow2"),
    *FOREIGN_FORMATS,
    (0, b"Bochs Virtual HD Image", "bochs"),
    (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "cloop"),
    (-512, b"conectix", "vpc"),
    (-512, b"koly", "dmg"),
)
"""Offset (below 0: from the end), signature and name of formats of images, as a program may take a file for one."""

FILE_SIGNATURES: Final = (
    (257, b"ustar", "tar"),
    (510, b"\x55\xaa", "a boot sector"),
    (512, b"EFI PART", "a partition table"),
    (4096, b"EFI PART", "a partition table"),
    (1080, b"\x53\xef", "ext4"),
    (4086, b"SWAPSPACE2", "swap"),
    (0x8001, b"CD001", "iso9660"),
    (0x8001, b"BEA01", "udf"),
    (0x8801, b"CD001", "iso9660"),
    (0x9001, b"CD001", "iso9660"),
    (0x10040, b"_BHRfS_M", "btrfs"),
)
"""The same of what other programs may take a file for, whatever it begins with."""

TEXT_SIGNATURES: Final = ((b"%PDF-", "pdf"), (b"<?php", "php"), (b"<script", "html"), (b"<html", "html"))
"""What makes the first cluster of a file a text for some programs, wherever in it that stands."""

STREAM_SIGNATURES: Final = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"PK\3\4", "zip"),
)
"""What compressed data begins with, and its name."""

ZIP_END: Final = b"PK\5\6"
"""Of the record at the end of a ZIP archive, of 22 bytes; the length of a comment behind it is its last field."""

ZIP_END_BYTES: Final = 22
