"""What follows from each schema, by its name in `structs.py`; from a function, by its argument.

Made by formats/derive.py: do not edit it. After a change of `structs.py`, `make derived` makes it anew.
"""

from __future__ import annotations

from qcow2c.format.layout import BitField, Bits, Field, Layout, RecordPart, RecordLayout
from qcow2c.schema import Doc

_DOC_0 = Doc('Reserved, must be zero.', valid=(0,), spec='Cluster mapping', reserved=True)
_DOC_1 = Doc('Reserved, must be zero.', valid=(0,), spec='Bitmap table', reserved=True)
_DOC_2 = Doc('Always 0: a compressed cluster is never written in place.', valid=(0,), spec='Cluster mapping')
_DOC_3 = Doc('Set.', valid=(1,), spec='Cluster mapping')
_DOC_4 = Doc('Sectors of compressed data beyond the one that holds its first byte.', unit='sectors', spec='Cluster mapping')
_DOC_5 = Doc('The first byte of the compressed data; of any alignment.', unit='bytes', valid=range(0, 72057594037927936), spec='Cluster mapping')
_DOC_6 = Doc('References to the host cluster; 0: free, above 1: shared, so that a write must copy it first.', unit='references', spec='Host cluster management')

HEADER_V2 = Layout(72, (
    Field('magic', 0, 4, Doc("The format's signature.", valid=(b'QFI\xfb',), spec='Header'), is_integer=False),
    Field('version', 4, 4, Doc('Format version.', valid=(2, 3), spec='Header')),
    Field('backing_file_offset', 8, 8, Doc('Where the backing file name begins, in the first cluster; 0: no backing file.', unit='bytes', spec='Header')),
    Field('backing_file_size', 16, 4, Doc('Length of the backing file name; undefined without one.', unit='bytes', valid=range(0, 1024), spec='Header')),
    Field('cluster_bits', 20, 4, Doc('log2 of the cluster size.', unit='bits', valid=range(9, 22), spec='Header')),
    Field('size', 24, 8, Doc('Virtual disk size.', unit='bytes', valid=range(0, 9223372036854775808), spec='Header')),
    Field('crypt_method', 32, 4, Doc('How guest data is encrypted.', valid=(0, 1, 2), spec='Header'), names={0: 'NONE', 1: 'AES', 2: 'LUKS'}),
    Field('l1_size', 36, 4, Doc('Entries of the active L1 table.', unit='entries', valid=range(0, 4194305), spec='Header')),
    Field('l1_table_offset', 40, 8, Doc('Where the active L1 table begins; cluster-aligned.', unit='bytes', spec='Header')),
    Field('refcount_table_offset', 48, 8, Doc('Where the refcount table begins; cluster-aligned.', unit='bytes', spec='Header')),
    Field('refcount_table_clusters', 56, 4, Doc('Length of the refcount table.', unit='clusters', spec='Header')),
    Field('nb_snapshots', 60, 4, Doc('Internal snapshots.', unit='records', valid=range(0, 65537), spec='Header')),
    Field('snapshots_offset', 64, 8, Doc('Where the snapshot table begins; cluster-aligned.', unit='bytes', spec='Header')),
))

INCOMPATIBLE_FEATURES = Bits(64, (
    BitField('reserved', 5, 59, 0xffffffffffffffe0, 1, Doc('Unknown bits: an image that sets one must not be opened.', valid=(0,), spec='Header', reserved=True)),
    BitField('extended_l2', 4, 1, 0x10, 1, Doc('L2 entries are 128 bits wide and describe 32 subclusters.', spec='Header')),
    BitField('compression_type', 3, 1, 0x8, 1, Doc('Clusters are compressed by the method in compression_type, not deflate.', spec='Header')),
    BitField('data_file', 2, 1, 0x4, 1, Doc('Guest clusters are in an external data file, each at its guest offset.', spec='Header')),
    BitField('corrupt', 1, 1, 0x2, 1, Doc('Some structure may be corrupt: the image must not be written, except by repair.', spec='Header')),
    BitField('dirty', 0, 1, 0x1, 1, Doc('Refcounts may be stale: they must be rebuilt before the image is written.', spec='Header')),
))

COMPATIBLE_FEATURES = Bits(64, (
    BitField('reserved', 1, 63, 0xfffffffffffffffe, 1, Doc('Unknown bits: may be ignored.', valid=(0,), spec='Header', reserved=True)),
    BitField('lazy_refcounts', 0, 1, 0x1, 1, Doc('Refcount updates may be postponed while the dirty bit is set.', spec='Header')),
))

AUTOCLEAR_FEATURES = Bits(64, (
    BitField('reserved', 2, 62, 0xfffffffffffffffc, 1, Doc('Unknown bits: must be cleared before the first write.', valid=(0,), spec='Header', reserved=True)),
    BitField('data_file_raw', 1, 1, 0x2, 1, Doc('The external data file is a valid raw image by itself.', spec='Header')),
    BitField('bitmaps', 0, 1, 0x1, 1, Doc('The bitmaps extension is consistent with the image.', spec='Header')),
))

HEADER_V3_TAIL = Layout(32, (
    Field('incompatible_features', 0, 8, Doc('Features that a reader must know to open the image.', spec='Header'), flags=INCOMPATIBLE_FEATURES),
    Field('compatible_features', 8, 8, Doc('Features that a program may ignore.', spec='Header'), flags=COMPATIBLE_FEATURES),
    Field('autoclear_features', 16, 8, Doc('Features that a writer must clear unless it knows them.', spec='Header'), flags=AUTOCLEAR_FEATURES),
    Field('refcount_order', 24, 4, Doc('log2 of the width of a refcount.', unit='bits', valid=range(0, 7), spec='Header')),
    Field('header_length', 28, 4, Doc('Length of the header, with all additional fields.', unit='bytes', valid=range(104, 2097153, 8), spec='Header')),
))

HEADER_ADDITIONAL = Layout(8, (
    Field('compression_type', 0, 1, Doc('Method of compressed clusters; not deflate exactly when the feature bit is set.', valid=(0, 1), spec='Additional fields (version 3 and higher)'), names={0: 'ZLIB', 1: 'ZSTD'}),
    Field('padding', 1, 7, Doc('Up to the next multiple of 8, zero: room for later fields.', valid=(0,), spec='Additional fields (version 3 and higher)', reserved=True), is_integer=False),
))

EXTENSION_HEADER = Layout(8, (
    Field('type', 0, 4, Doc('What the extension holds; unknown types are kept.', spec='Header extensions'), names={0: 'END', 3799591626: 'BACKING_FORMAT', 1745090647: 'FEATURE_NAME_TABLE', 595929205: 'BITMAPS', 87539319: 'ENCRYPTION_HEADER', 1145132097: 'DATA_FILE'}),
    Field('length', 4, 4, Doc('Length of the data, without the padding to a multiple of 8.', unit='bytes', spec='Header extensions')),
))

BACKING_FORMAT = RecordLayout(None, (
    RecordPart('name', None, Doc('Format of the backing file, not null-terminated.', spec='String header extensions')),
))

DATA_FILE_NAME = RecordLayout(None, (
    RecordPart('name', None, Doc('Name of the external data file, not null-terminated.', spec='String header extensions')),
))

BACKING_FILE_NAME = RecordLayout(None, (
    RecordPart('name', None, Doc('Name of the backing file, not null-terminated.', spec='Header')),
))

FEATURE_NAME = Layout(48, (
    Field('type', 0, 1, Doc('Which feature field.', valid=(0, 1, 2), spec='Feature name table'), names={0: 'INCOMPATIBLE', 1: 'COMPATIBLE', 2: 'AUTOCLEAR'}),
    Field('bit', 1, 1, Doc('Which bit of it.', valid=range(0, 64), spec='Feature name table')),
    Field('name', 2, 46, Doc("The feature's name, padded with zeros.", spec='Feature name table'), is_integer=False),
))

BITMAPS_EXTENSION = Layout(24, (
    Field('nb_bitmaps', 0, 4, Doc('Bitmaps in the image.', unit='records', valid=range(1, 65536), spec='Bitmaps extension')),
    Field('reserved', 4, 4, Doc('Reserved, must be zero.', valid=(0,), spec='Bitmaps extension', reserved=True)),
    Field('bitmap_directory_size', 8, 8, Doc('Length of all directory entries.', unit='bytes', valid=range(1, 67107841), spec='Bitmaps extension')),
    Field('bitmap_directory_offset', 16, 8, Doc('Where the bitmap directory begins; cluster-aligned.', unit='bytes', spec='Bitmaps extension')),
))

ENCRYPTION_HEADER_POINTER = Layout(16, (
    Field('offset', 0, 8, Doc('Where the encryption header begins; cluster-aligned.', unit='bytes', spec='Full disk encryption header pointer')),
    Field('length', 8, 8, Doc('Length of the encryption header as written.', unit='bytes', spec='Full disk encryption header pointer')),
))

LUKS_KEY_SLOT = Layout(48, (
    Field('active', 0, 4, Doc('Whether the slot holds a key.', valid=(57005, 11301363), spec='Full disk encryption header pointer; LUKS On-Disk Format 1.2'), names={57005: 'DISABLED', 11301363: 'ENABLED'}),
    Field('iterations', 4, 4, Doc('PBKDF2 iterations of this slot.', spec='Full disk encryption header pointer; LUKS On-Disk Format 1.2')),
    Field('salt', 8, 32, Doc('PBKDF2 salt of this slot.', spec='Full disk encryption header pointer; LUKS On-Disk Format 1.2'), is_integer=False),
    Field('key_material_offset', 40, 4, Doc("Where the slot's key material begins, from the start of the encryption header.", unit='sectors', spec='Full disk encryption header pointer; LUKS On-Disk Format 1.2')),
    Field('stripes', 44, 4, Doc('Anti-forensic stripes.', valid=(4000,), spec='Full disk encryption header pointer; LUKS On-Disk Format 1.2')),
))

LUKS_HEADER = Layout(592, (
    Field('magic', 0, 6, Doc('Signature of a LUKS header.', valid=(b'LUKS\xba\xbe',), spec='Full disk encryption header pointer; LUKS On-Disk Format 1.2'), is_integer=False),
    Field('version', 6, 2, Doc('LUKS version.', valid=(1,), spec='Full disk encryption header pointer; LUKS On-Disk Format 1.2')),
    Field('cipher_name', 8, 32, Doc('Cipher, null-terminated.', spec='Full disk encryption header pointer; LUKS On-Disk Format 1.2'), is_integer=False),
    Field('cipher_mode', 40, 32, Doc('Mode and initialization vector generator, null-terminated.', spec='Full disk encryption header pointer; LUKS On-Disk Format 1.2'), is_integer=False),
    Field('hash_spec', 72, 32, Doc('Hash of PBKDF2 and of the splitter, null-terminated.', spec='Full disk encryption header pointer; LUKS On-Disk Format 1.2'), is_integer=False),
    Field('payload_offset', 104, 4, Doc('Where the payload would begin in a plain LUKS volume.', unit='sectors', spec='Full disk encryption header pointer; LUKS On-Disk Format 1.2')),
    Field('key_bytes', 108, 4, Doc('Length of the master key.', unit='bytes', spec='Full disk encryption header pointer; LUKS On-Disk Format 1.2')),
    Field('mk_digest', 112, 20, Doc('Digest by which a recovered master key is verified.', spec='Full disk encryption header pointer; LUKS On-Disk Format 1.2'), is_integer=False),
    Field('mk_digest_salt', 132, 32, Doc('PBKDF2 salt of the digest.', spec='Full disk encryption header pointer; LUKS On-Disk Format 1.2'), is_integer=False),
    Field('mk_digest_iter', 164, 4, Doc('PBKDF2 iterations of the digest.', spec='Full disk encryption header pointer; LUKS On-Disk Format 1.2')),
    Field('uuid', 168, 40, Doc('UUID of the volume, null-terminated.', spec='Full disk encryption header pointer; LUKS On-Disk Format 1.2'), is_integer=False),
    Field('key_slots', 208, 384, Doc('The eight key slots.', spec='Full disk encryption header pointer; LUKS On-Disk Format 1.2'), is_integer=False, parts=LUKS_KEY_SLOT),
))

REFCOUNT_TABLE_ENTRY = Bits(64, (
    BitField('refcount_block_offset', 9, 55, 0xfffffffffffffe00, 512, Doc('Where the refcount block begins; cluster-aligned. 0: none, all its refcounts are 0.', unit='bytes', spec='Host cluster management')),
    BitField('reserved_0', 0, 9, 0x1ff, 1, Doc('Reserved, must be zero.', valid=(0,), spec='Host cluster management', reserved=True)),
))

L1_ENTRY = Bits(64, (
    BitField('copied', 63, 1, 0x8000000000000000, 1, Doc("The L2 table's refcount is exactly one. Accurate only in the active L1 table.", spec='Cluster mapping')),
    BitField('reserved_56', 56, 7, 0x7f00000000000000, 1, _DOC_0),
    BitField('l2_table_offset', 9, 47, 0xfffffffffffe00, 512, Doc('Where the L2 table begins; cluster-aligned. 0: all its clusters are unallocated.', unit='bytes', valid=range(0, 72057594037927936, 512), spec='Cluster mapping')),
    BitField('reserved_0', 0, 9, 0x1ff, 1, _DOC_0),
))

STANDARD_L2_ENTRY = Bits(64, (
    BitField('copied', 63, 1, 0x8000000000000000, 1, Doc("The cluster's refcount is exactly one. Accurate only below the active L1 table.", spec='Cluster mapping')),
    BitField('compressed', 62, 1, 0x4000000000000000, 1, Doc('Set: the entry is a compressed cluster descriptor instead.', spec='Cluster mapping')),
    BitField('reserved_56', 56, 6, 0x3f00000000000000, 1, _DOC_0),
    BitField('host_cluster_offset', 9, 47, 0xfffffffffffe00, 512, Doc('Where the cluster is in the data file; cluster-aligned. 0: unallocated, except in an external data file with the copied bit.', unit='bytes', valid=range(0, 72057594037927936, 512), spec='Cluster mapping')),
    BitField('reserved_1', 1, 8, 0x1fe, 1, _DOC_0),
    BitField('zero', 0, 1, 0x1, 1, Doc('The cluster reads as zeros, whatever the offset says. Never set in version 2 or with extended L2 entries.', spec='Cluster mapping')),
))

SUBCLUSTER_BITMAP = Bits(64, (
    BitField('reads_as_zeros', 32, 32, 0xffffffff00000000, 1, Doc('Bit x: subcluster x reads as zeros; its allocation bit must be unset.', spec='Extended L2 Entries')),
    BitField('allocated', 0, 32, 0xffffffff, 1, Doc('Bit x: subcluster x is in the host cluster; else, without the zero bit, it is unallocated.', spec='Extended L2 Entries')),
))

EXTENDED_L2_ENTRY = Layout(16, (
    Field('descriptor', 0, 8, Doc('As the standard entry, but the zero bit is reserved.', spec='Extended L2 Entries'), is_integer=False, parts=STANDARD_L2_ENTRY),
    Field('subclusters', 8, 8, Doc('State of each subcluster.', spec='Extended L2 Entries'), is_integer=False, parts=SUBCLUSTER_BITMAP),
))

SNAPSHOT_HEADER = Layout(40, (
    Field('l1_table_offset', 0, 8, Doc("Where the snapshot's L1 table begins; cluster-aligned.", unit='bytes', spec='Snapshots')),
    Field('l1_size', 8, 4, Doc('Entries of it.', unit='entries', valid=range(0, 4194305), spec='Snapshots')),
    Field('id_str_size', 12, 2, Doc('Length of the unique ID.', unit='bytes', spec='Snapshots')),
    Field('name_size', 14, 2, Doc('Length of the name.', unit='bytes', spec='Snapshots')),
    Field('date_sec', 16, 4, Doc('When it was taken, since the Epoch.', unit='seconds', spec='Snapshots')),
    Field('date_nsec', 20, 4, Doc('Subsecond part of it.', unit='nanoseconds', valid=range(0, 1000000000), spec='Snapshots')),
    Field('vm_clock_nsec', 24, 8, Doc('How long the guest had been running.', unit='nanoseconds', spec='Snapshots')),
    Field('vm_state_size', 32, 4, Doc('Length of the VM state; 0: none.', unit='bytes', spec='Snapshots')),
    Field('extra_data_size', 36, 4, Doc('Length of the extra data.', unit='bytes', valid=range(0, 1025), spec='Snapshots')),
))

SNAPSHOT_EXTRA_DATA = Layout(24, (
    Field('vm_state_size_large', 0, 8, Doc('Length of the VM state; replaces vm_state_size.', unit='bytes', spec='Snapshots')),
    Field('disk_size', 8, 8, Doc('Virtual disk size when the snapshot was taken.', unit='bytes', valid=range(0, 9223372036854775808), spec='Snapshots')),
    Field('icount', 16, 8, Doc('Instruction count of record and replay; all ones: disabled.', unit='instructions', spec='Snapshots')),
))

SNAPSHOT_RECORD = RecordLayout(SNAPSHOT_HEADER, (
    RecordPart('extra_data', 'extra_data_size', Doc('Fields added later; unknown ones are kept.', spec='Snapshots')),
    RecordPart('id_str', 'id_str_size', Doc('Unique ID, not null-terminated.', spec='Snapshots')),
    RecordPart('name', 'name_size', Doc('Name, not null-terminated.', spec='Snapshots')),
))

BITMAP_FLAGS = Bits(32, (
    BitField('reserved', 3, 29, 0xfffffff8, 1, Doc('Reserved, must be zero.', valid=(0,), spec='Bitmap directory', reserved=True)),
    BitField('extra_data_compatible', 2, 1, 0x4, 1, Doc('A program that does not know the extra data may use the bitmap.', spec='Bitmap directory')),
    BitField('auto', 1, 1, 0x2, 1, Doc('The bitmap is enabled: every write must be recorded in it.', spec='Bitmap directory')),
    BitField('in_use', 0, 1, 0x1, 1, Doc('The bitmap was not saved and may be inconsistent.', spec='Bitmap directory')),
))

BITMAP_DIRECTORY_HEADER = Layout(24, (
    Field('bitmap_table_offset', 0, 8, Doc('Where the bitmap table begins; cluster-aligned.', unit='bytes', spec='Bitmap directory')),
    Field('bitmap_table_size', 8, 4, Doc('Entries of it.', unit='entries', valid=range(1, 134217729), spec='Bitmap directory')),
    Field('flags', 12, 4, Doc('State of the bitmap.', spec='Bitmap directory'), flags=BITMAP_FLAGS),
    Field('type', 16, 1, Doc('Sort of the bitmap.', valid=(1,), spec='Bitmap directory'), names={1: 'DIRTY_TRACKING'}),
    Field('granularity_bits', 17, 1, Doc('log2 of the guest bytes that one bit stands for.', unit='bits', valid=range(9, 32), spec='Bitmap directory')),
    Field('name_size', 18, 2, Doc('Length of the name.', unit='bytes', valid=range(1, 1024), spec='Bitmap directory')),
    Field('extra_data_size', 20, 4, Doc('Length of the extra data; none is defined.', unit='bytes', valid=(0,), spec='Bitmap directory')),
))

BITMAP_DIRECTORY_RECORD = RecordLayout(BITMAP_DIRECTORY_HEADER, (
    RecordPart('extra_data', 'extra_data_size', Doc('Data of the type; kept.', spec='Bitmap directory')),
    RecordPart('name', 'name_size', Doc('Unique name, not null-terminated.', spec='Bitmap directory')),
))

BITMAP_TABLE_ENTRY = Bits(64, (
    BitField('reserved_56', 56, 8, 0xff00000000000000, 1, _DOC_1),
    BitField('host_cluster_offset', 9, 47, 0xfffffffffffe00, 512, Doc('Where the cluster of bitmap data is; cluster-aligned. 0: all its bits equal all_ones.', unit='bytes', valid=range(0, 72057594037927936, 512), spec='Bitmap table')),
    BitField('reserved_1', 1, 8, 0x1fe, 1, _DOC_1),
    BitField('all_ones', 0, 1, 0x1, 1, Doc('Without an offset: the cluster reads as ones; with one: must be zero.', spec='Bitmap table')),
))

COMPRESSED_DESCRIPTOR: dict[int, Bits] = {
9: Bits(64, (
    BitField('copied', 63, 1, 0x8000000000000000, 1, _DOC_2),
    BitField('compressed', 62, 1, 0x4000000000000000, 1, _DOC_3),
    BitField('additional_sectors', 61, 1, 0x2000000000000000, 1, _DOC_4),
    BitField('host_offset', 0, 61, 0x1fffffffffffffff, 1, _DOC_5),
)),
10: Bits(64, (
    BitField('copied', 63, 1, 0x8000000000000000, 1, _DOC_2),
    BitField('compressed', 62, 1, 0x4000000000000000, 1, _DOC_3),
    BitField('additional_sectors', 60, 2, 0x3000000000000000, 1, _DOC_4),
    BitField('host_offset', 0, 60, 0xfffffffffffffff, 1, _DOC_5),
)),
11: Bits(64, (
    BitField('copied', 63, 1, 0x8000000000000000, 1, _DOC_2),
    BitField('compressed', 62, 1, 0x4000000000000000, 1, _DOC_3),
    BitField('additional_sectors', 59, 3, 0x3800000000000000, 1, _DOC_4),
    BitField('host_offset', 0, 59, 0x7ffffffffffffff, 1, _DOC_5),
)),
12: Bits(64, (
    BitField('copied', 63, 1, 0x8000000000000000, 1, _DOC_2),
    BitField('compressed', 62, 1, 0x4000000000000000, 1, _DOC_3),
    BitField('additional_sectors', 58, 4, 0x3c00000000000000, 1, _DOC_4),
    BitField('host_offset', 0, 58, 0x3ffffffffffffff, 1, _DOC_5),
)),
13: Bits(64, (
    BitField('copied', 63, 1, 0x8000000000000000, 1, _DOC_2),
    BitField('compressed', 62, 1, 0x4000000000000000, 1, _DOC_3),
    BitField('additional_sectors', 57, 5, 0x3e00000000000000, 1, _DOC_4),
    BitField('host_offset', 0, 57, 0x1ffffffffffffff, 1, _DOC_5),
)),
14: Bits(64, (
    BitField('copied', 63, 1, 0x8000000000000000, 1, _DOC_2),
    BitField('compressed', 62, 1, 0x4000000000000000, 1, _DOC_3),
    BitField('additional_sectors', 56, 6, 0x3f00000000000000, 1, _DOC_4),
    BitField('host_offset', 0, 56, 0xffffffffffffff, 1, _DOC_5),
)),
15: Bits(64, (
    BitField('copied', 63, 1, 0x8000000000000000, 1, _DOC_2),
    BitField('compressed', 62, 1, 0x4000000000000000, 1, _DOC_3),
    BitField('additional_sectors', 55, 7, 0x3f80000000000000, 1, _DOC_4),
    BitField('host_offset', 0, 55, 0x7fffffffffffff, 1, Doc('The first byte of the compressed data; of any alignment.', unit='bytes', valid=range(0, 36028797018963968), spec='Cluster mapping')),
)),
16: Bits(64, (
    BitField('copied', 63, 1, 0x8000000000000000, 1, _DOC_2),
    BitField('compressed', 62, 1, 0x4000000000000000, 1, _DOC_3),
    BitField('additional_sectors', 54, 8, 0x3fc0000000000000, 1, _DOC_4),
    BitField('host_offset', 0, 54, 0x3fffffffffffff, 1, Doc('The first byte of the compressed data; of any alignment.', unit='bytes', valid=range(0, 18014398509481984), spec='Cluster mapping')),
)),
17: Bits(64, (
    BitField('copied', 63, 1, 0x8000000000000000, 1, _DOC_2),
    BitField('compressed', 62, 1, 0x4000000000000000, 1, _DOC_3),
    BitField('additional_sectors', 53, 9, 0x3fe0000000000000, 1, _DOC_4),
    BitField('host_offset', 0, 53, 0x1fffffffffffff, 1, Doc('The first byte of the compressed data; of any alignment.', unit='bytes', valid=range(0, 9007199254740992), spec='Cluster mapping')),
)),
18: Bits(64, (
    BitField('copied', 63, 1, 0x8000000000000000, 1, _DOC_2),
    BitField('compressed', 62, 1, 0x4000000000000000, 1, _DOC_3),
    BitField('additional_sectors', 52, 10, 0x3ff0000000000000, 1, _DOC_4),
    BitField('host_offset', 0, 52, 0xfffffffffffff, 1, Doc('The first byte of the compressed data; of any alignment.', unit='bytes', valid=range(0, 4503599627370496), spec='Cluster mapping')),
)),
19: Bits(64, (
    BitField('copied', 63, 1, 0x8000000000000000, 1, _DOC_2),
    BitField('compressed', 62, 1, 0x4000000000000000, 1, _DOC_3),
    BitField('additional_sectors', 51, 11, 0x3ff8000000000000, 1, _DOC_4),
    BitField('host_offset', 0, 51, 0x7ffffffffffff, 1, Doc('The first byte of the compressed data; of any alignment.', unit='bytes', valid=range(0, 2251799813685248), spec='Cluster mapping')),
)),
20: Bits(64, (
    BitField('copied', 63, 1, 0x8000000000000000, 1, _DOC_2),
    BitField('compressed', 62, 1, 0x4000000000000000, 1, _DOC_3),
    BitField('additional_sectors', 50, 12, 0x3ffc000000000000, 1, _DOC_4),
    BitField('host_offset', 0, 50, 0x3ffffffffffff, 1, Doc('The first byte of the compressed data; of any alignment.', unit='bytes', valid=range(0, 1125899906842624), spec='Cluster mapping')),
)),
21: Bits(64, (
    BitField('copied', 63, 1, 0x8000000000000000, 1, _DOC_2),
    BitField('compressed', 62, 1, 0x4000000000000000, 1, _DOC_3),
    BitField('additional_sectors', 49, 13, 0x3ffe000000000000, 1, _DOC_4),
    BitField('host_offset', 0, 49, 0x1ffffffffffff, 1, Doc('The first byte of the compressed data; of any alignment.', unit='bytes', valid=range(0, 562949953421312), spec='Cluster mapping')),
)),
}

REFCOUNT_GROUP: dict[int, Bits | Layout] = {
0: Bits(8, (
    BitField('refcount_7', 7, 1, 0x80, 1, _DOC_6),
    BitField('refcount_6', 6, 1, 0x40, 1, _DOC_6),
    BitField('refcount_5', 5, 1, 0x20, 1, _DOC_6),
    BitField('refcount_4', 4, 1, 0x10, 1, _DOC_6),
    BitField('refcount_3', 3, 1, 0x8, 1, _DOC_6),
    BitField('refcount_2', 2, 1, 0x4, 1, _DOC_6),
    BitField('refcount_1', 1, 1, 0x2, 1, _DOC_6),
    BitField('refcount_0', 0, 1, 0x1, 1, _DOC_6),
)),
1: Bits(8, (
    BitField('refcount_3', 6, 2, 0xc0, 1, _DOC_6),
    BitField('refcount_2', 4, 2, 0x30, 1, _DOC_6),
    BitField('refcount_1', 2, 2, 0xc, 1, _DOC_6),
    BitField('refcount_0', 0, 2, 0x3, 1, _DOC_6),
)),
2: Bits(8, (
    BitField('refcount_1', 4, 4, 0xf0, 1, _DOC_6),
    BitField('refcount_0', 0, 4, 0xf, 1, _DOC_6),
)),
3: Layout(1, (
    Field('refcount_0', 0, 1, _DOC_6),
)),
4: Layout(2, (
    Field('refcount_0', 0, 2, _DOC_6),
)),
5: Layout(4, (
    Field('refcount_0', 0, 4, _DOC_6),
)),
6: Layout(8, (
    Field('refcount_0', 0, 8, _DOC_6),
)),
}
