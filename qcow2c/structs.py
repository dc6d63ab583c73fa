"""Every on-disk structure of qcow2, declared once, in the order in which one meets them in a file.

Who points to whom. A name in capitals is a structure below, with "..." as many of them as a count says. "-->" stands
behind the field that holds the offset; "==>" leads to another file.

HEADER_V2, HEADER_V3_TAIL, HEADER_ADDITIONAL
├─ l1_table_offset --> L1_ENTRY ...
│                      └─ l2_table_offset --> STANDARD_L2_ENTRY ... or EXTENDED_L2_ENTRY ...
│                                             ├─ host_cluster_offset --> a cluster of the guest's data
│                                             └─ compressed_descriptor: host_offset --> compressed data
├─ snapshots_offset --> SNAPSHOT_RECORD ...
│                       └─ l1_table_offset --> L1_ENTRY ..., and from there to L2 tables and data that may be shared
├─ refcount_table_offset --> REFCOUNT_TABLE_ENTRY ...
│                            └─ refcount_block_offset --> refcount_block: the references to each cluster of the file
├─ backing_file_offset --> BACKING_FILE_NAME ==> the image below: what is not allocated here is read there
└─ EXTENSION_HEADER ..., right behind the header, each with its data
   ├─ BACKING_FORMAT and FEATURE_NAME ..., which point nowhere
   ├─ DATA_FILE_NAME ==> the file that has the guest's data instead of this one
   ├─ BITMAPS_EXTENSION
   │  └─ bitmap_directory_offset --> BITMAP_DIRECTORY_RECORD ...
   │                                 └─ bitmap_table_offset --> BITMAP_TABLE_ENTRY ...
   │                                                            └─ host_cluster_offset --> a cluster of bits
   └─ ENCRYPTION_HEADER_POINTER
      └─ offset --> LUKS_HEADER, with a LUKS_KEY_SLOT for each passphrase
                    └─ key_material_offset --> the master key, encrypted

This module owns the layout: names, widths, units, bounds, flags; enumerations, magic values and QEMU's limits are in
`constants.py` and have their names here, too. It never reads a file and decides nothing: `format/derived.py` holds what
follows from the schemas, under the same names, and is made anew with `make derived` after each change here;
`format/rules.py` judges values. A name is the specification's name; `Doc.spec` is the section of
`docs/interop/qcow2.rst`.

All numbers are big-endian. Schemas are of fixed size where the format is; only records are of variable length, and
schemas that depend on the image are cached functions (`compressed_descriptor`, `refcount_group`).
"""

from __future__ import annotations

from functools import cache
from typing import Final

from construct import (
    Array,
    BitsInteger,
    BitStruct,
    Bytes,
    Construct,
    Enum,
    ExprAdapter,
    Flag,
    GreedyBytes,
    Int8ub,
    Int16ub,
    Int32ub,
    Int64ub,
    Struct,
    this,
)

from qcow2c.constants import (  # isort: skip - one statement, for all of them are a part of the declaration
    ENTRY_BYTES as ENTRY_BYTES,
    FOREIGN_FORMATS as FOREIGN_FORMATS,
    FORMAT_PROBE_BYTES as FORMAT_PROBE_BYTES,
    LUKS_KEY_MATERIAL_OFFSET as LUKS_KEY_MATERIAL_OFFSET,
    LUKS_LEAST_ITERATIONS as LUKS_LEAST_ITERATIONS,
    LUKS_MAGIC as LUKS_MAGIC,
    LUKS_STRIPES as LUKS_STRIPES,
    MAGIC as MAGIC,
    RECORD_ALIGNMENT as RECORD_ALIGNMENT,
    SECTOR_SIZE as SECTOR_SIZE,
    SUBCLUSTERS_PER_CLUSTER as SUBCLUSTERS_PER_CLUSTER,
    UINT32 as UINT32,
    UINT64 as UINT64,
    V2_REFCOUNT_ORDER as V2_REFCOUNT_ORDER,
    BitmapType as BitmapType,
    CompressionType as CompressionType,
    CryptMethod as CryptMethod,
    ExtensionType as ExtensionType,
    FeatureType as FeatureType,
    Limit as Limit,
    LuksKeySlotState as LuksKeySlotState,
    Version as Version,
)
from qcow2c.schema import Doc, Section  # noqa: F401 - Doc is part of what a schema shows

# --- header ---------------------------------------------------------------------------------------------------------

_header = Section("Header")

HEADER_V2 = Struct(
    "magic" / Bytes(4) * _header("The format's signature.", valid=(MAGIC,)),
    "version" / Int32ub * _header("Format version.", valid=(Version.V2, Version.V3)),
    "backing_file_offset"
    / Int64ub
    * _header("Where the backing file name begins, in the first cluster; 0: no backing file.", unit="bytes"),
    "backing_file_size"
    / Int32ub
    * _header(
        "Length of the backing file name; undefined without one.",
        unit="bytes",
        valid=range(Limit.BACKING_FILE_NAME_BYTES + 1),
    ),
    "cluster_bits" / Int32ub * _header("log2 of the cluster size.", unit="bits", valid=Limit.CLUSTER_BITS),
    "size" / Int64ub * _header("Virtual disk size.", unit="bytes", valid=range(Limit.SIGNED_OFFSET_END)),
    "crypt_method" / Enum(Int32ub, CryptMethod) * _header("How guest data is encrypted.", valid=tuple(CryptMethod)),
    "l1_size" / Int32ub * _header("Entries of the active L1 table.", unit="entries", valid=range(Limit.L1_ENTRIES + 1)),
    "l1_table_offset" / Int64ub * _header("Where the active L1 table begins; cluster-aligned.", unit="bytes"),
    "refcount_table_offset" / Int64ub * _header("Where the refcount table begins; cluster-aligned.", unit="bytes"),
    "refcount_table_clusters" / Int32ub * _header("Length of the refcount table.", unit="clusters"),
    "nb_snapshots" / Int32ub * _header("Internal snapshots.", unit="records", valid=range(Limit.SNAPSHOTS + 1)),
    "snapshots_offset" / Int64ub * _header("Where the snapshot table begins; cluster-aligned.", unit="bytes"),
)
"""Bytes 0 to 71, common to both versions. In version 2 the header ends here."""

INCOMPATIBLE_FEATURES = BitStruct(
    "reserved" / BitsInteger(59) * _header.reserved("Unknown bits: an image that sets one must not be opened."),
    "extended_l2" / Flag * _header("L2 entries are 128 bits wide and describe 32 subclusters."),
    "compression_type" / Flag * _header("Clusters are compressed by the method in compression_type, not deflate."),
    "data_file" / Flag * _header("Guest clusters are in an external data file, each at its guest offset."),
    "corrupt" / Flag * _header("Some structure may be corrupt: the image must not be written, except by repair."),
    "dirty" / Flag * _header("Refcounts may be stale: they must be rebuilt before the image is written."),
)

COMPATIBLE_FEATURES = BitStruct(
    "reserved" / BitsInteger(63) * _header.reserved("Unknown bits: may be ignored."),
    "lazy_refcounts" / Flag * _header("Refcount updates may be postponed while the dirty bit is set."),
)

AUTOCLEAR_FEATURES = BitStruct(
    "reserved" / BitsInteger(62) * _header.reserved("Unknown bits: must be cleared before the first write."),
    "data_file_raw" / Flag * _header("The external data file is a valid raw image by itself."),
    "bitmaps" / Flag * _header("The bitmaps extension is consistent with the image."),
)

HEADER_V3_TAIL = Struct(
    "incompatible_features"
    / Int64ub
    * _header("Features that a reader must know to open the image.", bits=INCOMPATIBLE_FEATURES),
    "compatible_features" / Int64ub * _header("Features that a program may ignore.", bits=COMPATIBLE_FEATURES),
    "autoclear_features"
    / Int64ub
    * _header("Features that a writer must clear unless it knows them.", bits=AUTOCLEAR_FEATURES),
    "refcount_order" / Int32ub * _header("log2 of the width of a refcount.", unit="bits", valid=Limit.REFCOUNT_ORDER),
    "header_length"
    / Int32ub
    * _header("Length of the header, with all additional fields.", unit="bytes", valid=range(104, (1 << 21) + 1, 8)),
)
"""Bytes 72 to 103, only in version 3: in version 2 these bytes already belong to the extensions."""

_additional = Section("Additional fields (version 3 and higher)")

HEADER_ADDITIONAL = Struct(
    "compression_type"
    / Enum(Int8ub, CompressionType)
    * _additional(
        "Method of compressed clusters; not deflate exactly when the feature bit is set.", valid=tuple(CompressionType)
    ),
    "padding" / Bytes(7) * _additional.reserved("Up to the next multiple of 8, zero: room for later fields."),
)
"""Bytes 104 to 111, present as far as header_length reaches."""

# --- header extensions ----------------------------------------------------------------------------------------------

_extensions = Section("Header extensions")

EXTENSION_HEADER = Struct(
    "type" / Enum(Int32ub, ExtensionType) * _extensions("What the extension holds; unknown types are kept."),
    "length" / Int32ub * _extensions("Length of the data, without the padding to a multiple of 8.", unit="bytes"),
)

_strings = Section("String header extensions")

BACKING_FORMAT = Struct(
    "name" / GreedyBytes * _strings("Format of the backing file, not null-terminated."),
)

DATA_FILE_NAME = Struct(
    "name" / GreedyBytes * _strings("Name of the external data file, not null-terminated."),
)

BACKING_FILE_NAME = Struct(
    "name" / GreedyBytes * _header("Name of the backing file, not null-terminated."),
)
"""Not an extension: it lies between the end of the extensions and the end of the first cluster."""

_feature_names = Section("Feature name table")

FEATURE_NAME = Struct(
    "type" / Enum(Int8ub, FeatureType) * _feature_names("Which feature field.", valid=tuple(FeatureType)),
    "bit" / Int8ub * _feature_names("Which bit of it.", valid=range(64)),
    "name" / Bytes(46) * _feature_names("The feature's name, padded with zeros."),
)

_bitmaps_extension = Section("Bitmaps extension")

BITMAPS_EXTENSION = Struct(
    "nb_bitmaps"
    / Int32ub
    * _bitmaps_extension("Bitmaps in the image.", unit="records", valid=range(1, Limit.BITMAPS + 1)),
    "reserved" / Int32ub * _bitmaps_extension.reserved(),
    "bitmap_directory_size"
    / Int64ub
    * _bitmaps_extension(
        "Length of all directory entries.", unit="bytes", valid=range(1, Limit.BITMAP_DIRECTORY_BYTES + 1)
    ),
    "bitmap_directory_offset"
    / Int64ub
    * _bitmaps_extension("Where the bitmap directory begins; cluster-aligned.", unit="bytes"),
)

_encryption = Section("Full disk encryption header pointer")

ENCRYPTION_HEADER_POINTER = Struct(
    "offset" / Int64ub * _encryption("Where the encryption header begins; cluster-aligned.", unit="bytes"),
    "length" / Int64ub * _encryption("Length of the encryption header as written.", unit="bytes"),
)

# --- LUKS1, at the offset of the encryption header ------------------------------------------------------------------

_luks = Section("Full disk encryption header pointer; LUKS On-Disk Format 1.2")

LUKS_KEY_SLOT = Struct(
    "active" / Enum(Int32ub, LuksKeySlotState) * _luks("Whether the slot holds a key.", valid=tuple(LuksKeySlotState)),
    "iterations" / Int32ub * _luks("PBKDF2 iterations of this slot."),
    "salt" / Bytes(32) * _luks("PBKDF2 salt of this slot."),
    "key_material_offset"
    / Int32ub
    * _luks("Where the slot's key material begins, from the start of the encryption header.", unit="sectors"),
    "stripes" / Int32ub * _luks("Anti-forensic stripes.", valid=(LUKS_STRIPES,)),
)

LUKS_HEADER = Struct(
    "magic" / Bytes(6) * _luks("Signature of a LUKS header.", valid=(LUKS_MAGIC,)),
    "version" / Int16ub * _luks("LUKS version.", valid=(1,)),
    "cipher_name" / Bytes(32) * _luks("Cipher, null-terminated."),
    "cipher_mode" / Bytes(32) * _luks("Mode and initialization vector generator, null-terminated."),
    "hash_spec" / Bytes(32) * _luks("Hash of PBKDF2 and of the splitter, null-terminated."),
    "payload_offset" / Int32ub * _luks("Where the payload would begin in a plain LUKS volume.", unit="sectors"),
    "key_bytes" / Int32ub * _luks("Length of the master key.", unit="bytes"),
    "mk_digest" / Bytes(20) * _luks("Digest by which a recovered master key is verified."),
    "mk_digest_salt" / Bytes(32) * _luks("PBKDF2 salt of the digest."),
    "mk_digest_iter" / Int32ub * _luks("PBKDF2 iterations of the digest."),
    "uuid" / Bytes(40) * _luks("UUID of the volume, null-terminated."),
    "key_slots" / Array(8, LUKS_KEY_SLOT) * _luks("The eight key slots."),
)

# --- words that hold an offset --------------------------------------------------------------------------------------

_HOST_OFFSET: Final = range(0, Limit.HOST_OFFSET_END, SECTOR_SIZE)


def _sectors(width: int) -> Construct:
    """An offset of which the entry stores all but the lowest nine bits, in place: decoded to bytes."""
    return ExprAdapter(
        BitsInteger(width),
        lambda stored, _context: stored * SECTOR_SIZE,
        lambda offset, _context: offset // SECTOR_SIZE,
    )


# --- host cluster management ----------------------------------------------------------------------------------------

_refcounts = Section("Host cluster management")

REFCOUNT_TABLE_ENTRY = BitStruct(
    "refcount_block_offset"
    / _sectors(55)
    * _refcounts("Where the refcount block begins; cluster-aligned. 0: none, all its refcounts are 0.", unit="bytes"),
    "reserved_0" / BitsInteger(9) * _refcounts.reserved(),
)


@cache
def refcount_group(refcount_order: int) -> Construct:
    """The refcounts that share the smallest whole number of bytes: one, or 8, 4 or 2 below a byte's width.

    Below a byte's width the first cluster's refcount is in the *least* significant bits.
    """
    width = 1 << refcount_order
    text = "References to the host cluster; 0: free, above 1: shared, so that a write must copy it first."
    if width < 8:
        return BitStruct(
            *(
                f"refcount_{index}" / BitsInteger(width) * _refcounts(text, unit="references")
                for index in reversed(range(8 // width))
            )
        )
    whole = {8: Int8ub, 16: Int16ub, 32: Int32ub, 64: Int64ub}[width]
    return Struct("refcount_0" / whole * _refcounts(text, unit="references"))


@cache
def refcount_block(refcount_order: int, cluster_bits: int) -> Construct:
    """One cluster of refcounts, as its groups."""
    group = refcount_group(refcount_order)
    return Array((1 << cluster_bits) // group.sizeof(), group)


# --- cluster mapping ------------------------------------------------------------------------------------------------

_mapping = Section("Cluster mapping")

L1_ENTRY = BitStruct(
    "copied" / Flag * _mapping("The L2 table's refcount is exactly one. Accurate only in the active L1 table."),
    "reserved_56" / BitsInteger(7) * _mapping.reserved(),
    "l2_table_offset"
    / _sectors(47)
    * _mapping(
        "Where the L2 table begins; cluster-aligned. 0: all its clusters are unallocated.",
        unit="bytes",
        valid=_HOST_OFFSET,
    ),
    "reserved_0" / BitsInteger(9) * _mapping.reserved(),
)

STANDARD_L2_ENTRY = BitStruct(
    "copied" / Flag * _mapping("The cluster's refcount is exactly one. Accurate only below the active L1 table."),
    "compressed" / Flag * _mapping("Set: the entry is a compressed cluster descriptor instead."),
    "reserved_56" / BitsInteger(6) * _mapping.reserved(),
    "host_cluster_offset"
    / _sectors(47)
    * _mapping(
        "Where the cluster is in the data file; cluster-aligned. 0: unallocated, except in an external "
        "data file with the copied bit.",
        unit="bytes",
        valid=_HOST_OFFSET,
    ),
    "reserved_1" / BitsInteger(8) * _mapping.reserved(),
    "zero"
    / Flag
    * _mapping(
        "The cluster reads as zeros, whatever the offset says. Never set in version 2 or with extended L2 entries."
    ),
)


@cache
def compressed_descriptor(cluster_bits: int) -> Construct:
    """An L2 entry whose bit 62 is set; the split between offset and length moves with the cluster size."""
    offset_bits = 62 - (cluster_bits - 8)
    return BitStruct(
        "copied" / Flag * _mapping("Always 0: a compressed cluster is never written in place.", valid=(0,)),
        "compressed" / Flag * _mapping("Set.", valid=(1,)),
        "additional_sectors"
        / BitsInteger(62 - offset_bits)
        * _mapping("Sectors of compressed data beyond the one that holds its first byte.", unit="sectors"),
        "host_offset"
        / BitsInteger(offset_bits)
        * _mapping(
            "The first byte of the compressed data; of any alignment.",
            unit="bytes",
            valid=range(min(1 << offset_bits, Limit.HOST_OFFSET_END)),
        ),
    )


_extended_l2 = Section("Extended L2 Entries")

SUBCLUSTER_BITMAP = BitStruct(
    "reads_as_zeros"
    / BitsInteger(SUBCLUSTERS_PER_CLUSTER)
    * _extended_l2("Bit x: subcluster x reads as zeros; its allocation bit must be unset."),
    "allocated"
    / BitsInteger(SUBCLUSTERS_PER_CLUSTER)
    * _extended_l2("Bit x: subcluster x is in the host cluster; else, without the zero bit, it is unallocated."),
)
"""All 64 bits are reserved where the entry is a compressed cluster descriptor."""

EXTENDED_L2_ENTRY = Struct(
    "descriptor" / STANDARD_L2_ENTRY * _extended_l2("As the standard entry, but the zero bit is reserved."),
    "subclusters" / SUBCLUSTER_BITMAP * _extended_l2("State of each subcluster."),
)

# --- snapshots ------------------------------------------------------------------------------------------------------

_snapshots = Section("Snapshots")

SNAPSHOT_HEADER = Struct(
    "l1_table_offset" / Int64ub * _snapshots("Where the snapshot's L1 table begins; cluster-aligned.", unit="bytes"),
    "l1_size" / Int32ub * _snapshots("Entries of it.", unit="entries", valid=range(Limit.L1_ENTRIES + 1)),
    "id_str_size" / Int16ub * _snapshots("Length of the unique ID.", unit="bytes"),
    "name_size" / Int16ub * _snapshots("Length of the name.", unit="bytes"),
    "date_sec" / Int32ub * _snapshots("When it was taken, since the Epoch.", unit="seconds"),
    "date_nsec" / Int32ub * _snapshots("Subsecond part of it.", unit="nanoseconds", valid=range(10**9)),
    "vm_clock_nsec" / Int64ub * _snapshots("How long the guest had been running.", unit="nanoseconds"),
    "vm_state_size" / Int32ub * _snapshots("Length of the VM state; 0: none.", unit="bytes"),
    "extra_data_size"
    / Int32ub
    * _snapshots("Length of the extra data.", unit="bytes", valid=range(Limit.SNAPSHOT_EXTRA_BYTES + 1)),
)

SNAPSHOT_EXTRA_DATA = Struct(
    "vm_state_size_large" / Int64ub * _snapshots("Length of the VM state; replaces vm_state_size.", unit="bytes"),
    "disk_size"
    / Int64ub
    * _snapshots("Virtual disk size when the snapshot was taken.", unit="bytes", valid=range(Limit.SIGNED_OFFSET_END)),
    "icount" / Int64ub * _snapshots("Instruction count of record and replay; all ones: disabled.", unit="instructions"),
)
"""The fields of the extra data known today, present as far as extra_data_size reaches; the rest is kept."""

SNAPSHOT_RECORD = Struct(
    "header" / SNAPSHOT_HEADER * _snapshots("The part of fixed length."),
    "extra_data" / Bytes(this.header.extra_data_size) * _snapshots("Fields added later; unknown ones are kept."),
    "id_str" / Bytes(this.header.id_str_size) * _snapshots("Unique ID, not null-terminated."),
    "name" / Bytes(this.header.name_size) * _snapshots("Name, not null-terminated."),
)
"""One entry of the snapshot table; the next begins at the next multiple of RECORD_ALIGNMENT."""

# --- bitmaps --------------------------------------------------------------------------------------------------------

_directory = Section("Bitmap directory")

BITMAP_FLAGS = BitStruct(
    "reserved" / BitsInteger(29) * _directory.reserved(),
    "extra_data_compatible" / Flag * _directory("A program that does not know the extra data may use the bitmap."),
    "auto" / Flag * _directory("The bitmap is enabled: every write must be recorded in it."),
    "in_use" / Flag * _directory("The bitmap was not saved and may be inconsistent."),
)

BITMAP_DIRECTORY_HEADER = Struct(
    "bitmap_table_offset" / Int64ub * _directory("Where the bitmap table begins; cluster-aligned.", unit="bytes"),
    "bitmap_table_size"
    / Int32ub
    * _directory("Entries of it.", unit="entries", valid=range(1, Limit.BITMAP_TABLE_ENTRIES + 1)),
    "flags" / Int32ub * _directory("State of the bitmap.", bits=BITMAP_FLAGS),
    "type" / Enum(Int8ub, BitmapType) * _directory("Sort of the bitmap.", valid=tuple(BitmapType)),
    "granularity_bits"
    / Int8ub
    * _directory("log2 of the guest bytes that one bit stands for.", unit="bits", valid=Limit.BITMAP_GRANULARITY_BITS),
    "name_size"
    / Int16ub
    * _directory("Length of the name.", unit="bytes", valid=range(1, Limit.BITMAP_NAME_BYTES + 1)),
    "extra_data_size" / Int32ub * _directory("Length of the extra data; none is defined.", unit="bytes", valid=(0,)),
)

BITMAP_DIRECTORY_RECORD = Struct(
    "header" / BITMAP_DIRECTORY_HEADER * _directory("The part of fixed length."),
    "extra_data" / Bytes(this.header.extra_data_size) * _directory("Data of the type; kept."),
    "name" / Bytes(this.header.name_size) * _directory("Unique name, not null-terminated."),
)
"""One entry of the bitmap directory; the next begins at the next multiple of RECORD_ALIGNMENT."""

_bitmap_table = Section("Bitmap table")

BITMAP_TABLE_ENTRY = BitStruct(
    "reserved_56" / BitsInteger(8) * _bitmap_table.reserved(),
    "host_cluster_offset"
    / _sectors(47)
    * _bitmap_table(
        "Where the cluster of bitmap data is; cluster-aligned. 0: all its bits equal all_ones.",
        unit="bytes",
        valid=_HOST_OFFSET,
    ),
    "reserved_1" / BitsInteger(8) * _bitmap_table.reserved(),
    "all_ones" / Flag * _bitmap_table("Without an offset: the cluster reads as ones; with one: must be zero."),
)
