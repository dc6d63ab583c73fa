meta:
  id: qcow2
  title: QEMU copy-on-write disk image, versions 2 and 3 (qcow2)
  application: QEMU
  file-extension:
    - qcow2
    - qcow
  xref:
    forensicswiki: qcow_image_format
    justsolve: Qcow
    mime: application/x-qemu-disk
    wikidata: Q105857901
  license: CC0-1.0
  ks-version: 0.11
  encoding: UTF-8
  endian: be
  bit-endian: be
doc: |
  A qcow2 file holds a virtual disk of which only the written parts take space,
  with internal snapshots, compressed and encrypted clusters, dirty bitmaps, and
  a backing file from which unwritten parts are read.

  The file is divided into clusters of one size, 512 bytes to 2 MiB. The first
  cluster holds the header, its extensions and the name of the backing file.
  Everything else is found through offsets:

  * the L1 table points to L2 tables, whose entries say where each guest cluster
    is: `active_l1_table`; each snapshot has an L1 table of its own:
    `snapshots`,
  * the refcount table points to refcount blocks, which count the references to
    each host cluster: `refcounts`,
  * header extensions point to the bitmap directory and to the LUKS header:
    `header_extensions`.

  Tables can be large, and their lengths come from the file. They are therefore
  split into pages of up to 512 entries which are read when they are looked at;
  `guest_address` and `host_cluster` look up a single entry without reading a
  table. Counts and lengths are bounded by `valid`, with the specification's
  bounds or, where it has none, with those that QEMU itself enforces.

  Every target of the compiler reads the format by this description. No bit
  field is wider than 32 bits, which is what JavaScript can read: a wider one is
  two, `..._upper` and `..._lower`, with an instance that joins them. Values of
  64 bits are exact in JavaScript up to 2^53. No check is an `expr`, which not
  every target has.

  Names in the file have no declared encoding, so they are bytes; `name_str`
  decodes them as UTF-8.

  Version 1 (qcow) shares the magic, but is another format.
doc-ref:
  - https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.rst
  - https://www.qemu.org/docs/master/interop/qcow2.html

seq:
  - id: header
    type: header_v2
    doc: The part of the header that both versions have.

instances:
  header_v3:
    pos: 72
    type: header_v3_tail
    if: header.version != version::v2
    doc: |
      The rest of the header in version 3. In version 2 these bytes already
      belong to the header extensions.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Header
  len_header:
    value: 'header.version == version::v2 ? 72 : header_v3.len_header'
    doc: |
      Length of the header in bytes, without extensions. Version 2 has no such
      field.
  additional_fields:
    pos: 104
    type: header_additional
    if: len_header > 104
    doc: |
      Additional fields; a field is absent where the header ends at or before
      it, and then counts as zero.
  unknown_header_fields:
    pos: 112
    size: len_header - 112
    if: len_header > 112
    doc: |
      Fields that were added to the header later. They may be ignored unless a
      feature bit forbids it, and must be kept when the header is rewritten.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Additional fields (version 3 and higher)
  cluster_size:
    value: 1 << header.cluster_bits
    doc: Size of a cluster in bytes.
  refcount_order:
    # One byte: Java and C# cannot switch on a wider number.
    value: >-
      (header.version == version::v2 ? 4 : header_v3.refcount_order).as<u1>
    doc: |
      Binary logarithm of the width of a refcount in bits. Version 2 has no such
      field.
  has_extended_l2:
    value: >-
      header.version != version::v2 and
      header_v3.incompatible_features.extended_l2
    doc: Whether L2 entries are 128 bits wide.
  has_data_file:
    value: >-
      header.version != version::v2 and
      header_v3.incompatible_features.data_file
    doc: |
      Whether guest clusters are in an external data file; offsets in L2 entries
      then belong to that file.
  len_l2_entry:
    value: 'has_extended_l2 ? 16 : 8'
    doc: Length of an L2 entry in bytes.
  num_l2_entries:
    value: cluster_size / len_l2_entry
    doc: Number of entries in an L2 table, which is one cluster long.
  entries_per_page:
    value: 512
    doc: |
      Number of entries in one page of a table, apart from its last one. A
      choice of this description.
  header_extensions_end:
    value: |
      header.ofs_backing_file != 0 and header.ofs_backing_file < cluster_size ?
        header.ofs_backing_file : cluster_size
    doc: |
      Where the header extensions end at the latest, at the backing file name or
      with the first cluster.
  header_extensions:
    pos: len_header
    size: >-
      (_io.size < header_extensions_end ? _io.size : header_extensions_end) -
      len_header
    type: header_extension_area
    if: len_header < header_extensions_end and len_header < _io.size
    doc: Optional sections that follow the header directly.
  backing_file:
    pos: header.ofs_backing_file
    size: header.len_backing_file
    type: backing_file_name
    if: header.ofs_backing_file != 0
    doc: Name of the file from which unallocated clusters are read.
  active_l1_table:
    pos: header.ofs_l1_table
    type: l1_table(header.ofs_l1_table, header.num_l1_entries)
    doc: The active L1 table, which maps the virtual disk as it is now.
  refcounts:
    pos: header.ofs_refcount_table
    type: >-
      refcount_table(header.ofs_refcount_table,
      header.num_refcount_table_clusters * (cluster_size / 8))
    doc: The first level of the reference counts of host clusters.
  snapshots:
    pos: header.ofs_snapshots
    type: snapshot_record
    repeat: expr
    repeat-expr: header.num_snapshots
    if: header.num_snapshots > 0
    doc: The snapshot table. QEMU accepts one of at most 64 MiB.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Snapshots

types:

  # --- header -----------------------------------------------------------------

  header_v2:
    doc: Bytes 0 to 71, which both versions have.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Header
    seq:
      - id: magic
        contents: ['QFI', 0xfb]
        doc: The signature of the format.
      - id: version
        type: u4
        enum: version
        valid:
          in-enum: true
        doc: Version of the format.
      - id: ofs_backing_file
        -orig-id: backing_file_offset
        type: u8
        doc: |
          Where the name of the backing file starts, or 0 if there is no backing
          file. In bytes.
      - id: len_backing_file
        -orig-id: backing_file_size
        type: u4
        valid:
          max: 'ofs_backing_file == 0 ? 0xffff_ffff : 1023'
        doc: Length of that name in bytes. Undefined without a backing file.
      - id: cluster_bits
        type: u4
        valid:
          min: 9
          max: 21
        doc: |
          Binary logarithm of the cluster size. The specification asks for at
          least 9, and 14 with extended L2 entries; QEMU accepts at most 21.
      - id: size
        type: u8
        valid:
          max: '0x7fff_ffff_ffff_ffff'
        doc: |
          Size of the virtual disk in bytes. QEMU computes with signed offsets.
      - id: crypt_method
        type: u4
        enum: crypt_method
        valid:
          in-enum: true
        doc: How guest data is encrypted.
      - id: num_l1_entries
        -orig-id: l1_size
        type: u4
        valid:
          max: 4194304
        doc: |
          Number of entries in the active L1 table. QEMU accepts a table of at
          most 32 MiB.
      - id: ofs_l1_table
        -orig-id: l1_table_offset
        type: u8
        valid: ofs_l1_table - ofs_l1_table % (1 << cluster_bits)
        doc: Where the active L1 table starts, in bytes, aligned to a cluster.
      - id: ofs_refcount_table
        -orig-id: refcount_table_offset
        type: u8
        valid: ofs_refcount_table - ofs_refcount_table % (1 << cluster_bits)
        doc: Where the refcount table starts, in bytes, aligned to a cluster.
      - id: num_refcount_table_clusters
        -orig-id: refcount_table_clusters
        type: u4
        valid:
          max: 8388608 >> cluster_bits
        doc: |
          Length of the refcount table in clusters. QEMU accepts a table of at
          most 8 MiB.
      - id: num_snapshots
        -orig-id: nb_snapshots
        type: u4
        valid:
          max: 65536
        doc: Number of internal snapshots. The bound is QEMU's.
      - id: ofs_snapshots
        -orig-id: snapshots_offset
        type: u8
        valid: ofs_snapshots - ofs_snapshots % (1 << cluster_bits)
        doc: Where the snapshot table starts, in bytes, aligned to a cluster.

  header_v3_tail:
    doc: Bytes 72 to 103, which only version 3 has.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Header
    seq:
      - id: incompatible_features
        type: incompatible_features
        doc: Features that a program must know to open the image at all.
      - id: compatible_features
        type: compatible_features
        doc: Features that a program may ignore.
      - id: autoclear_features
        type: autoclear_features
        doc: |
          Features whose bits a program that does not know them clears before it
          writes to the image.
      - id: refcount_order
        type: u4
        valid:
          max: 6
        doc: Binary logarithm of the width of a refcount in bits.
      - id: len_header
        -orig-id: header_length
        type: u4
        valid: >-
          len_header < 104 ? 104 :
          len_header > _root.cluster_size ? _root.cluster_size :
          len_header - len_header % 8
        doc: |
          Length of the header in bytes, with additional fields and padding,
          without extensions.

  incompatible_features:
    doc: Bitmask; an image with an unknown bit set must not be opened.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Header
    seq:
      - id: reserved_upper
        type: b32
        valid: 0
        doc: Bits 32 to 63, reserved.
      - id: reserved_lower
        type: b27
        valid: 0
        doc: Bits 5 to 31, reserved.
      - id: extended_l2
        type: b1
        doc: Bit 4. L2 entries are 128 bits wide and allocate subclusters.
      - id: compression_type
        type: b1
        doc: |
          Bit 3. Clusters are compressed by another method than deflate, named
          in the additional fields.
      - id: data_file
        type: b1
        doc: |
          Bit 2. Guest clusters are in an external data file, each at its guest
          offset.
      - id: corrupt
        type: b1
        doc: |
          Bit 1. Any structure may be corrupt; the image may be written only to
          repair it.
      - id: dirty
        type: b1
        doc: |
          Bit 0. Refcounts may be inconsistent and must be rebuilt from the L1
          and L2 tables before use.
    instances:
      reserved:
        value: (reserved_upper * 0x8000000 + reserved_lower).as<u8>
        doc: The reserved bits as one number.

  compatible_features:
    doc: Bitmask; unknown bits may be ignored.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Header
    seq:
      - id: reserved_upper
        type: b32
        doc: Bits 32 to 63, reserved.
      - id: reserved_lower
        type: b31
        doc: Bits 1 to 31, reserved.
      - id: lazy_refcounts
        type: b1
        doc: |
          Bit 0. Refcount updates may be postponed while the image is marked
          dirty.
    instances:
      reserved:
        value: (reserved_upper * 0x80000000 + reserved_lower).as<u8>
        doc: The reserved bits as one number.

  autoclear_features:
    doc: Bitmask; unknown bits must be cleared before the image is written.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Header
    seq:
      - id: reserved_upper
        type: b32
        doc: Bits 32 to 63, reserved.
      - id: reserved_lower
        type: b30
        doc: Bits 2 to 31, reserved.
      - id: data_file_raw
        type: b1
        doc: |
          Bit 1. The external data file can be read as a raw image without this
          file.
      - id: bitmaps
        type: b1
        doc: |
          Bit 0. The bitmaps extension is consistent with the image; otherwise
          it must not be trusted.
    instances:
      reserved:
        value: (reserved_upper * 0x40000000 + reserved_lower).as<u8>
        doc: The reserved bits as one number.

  header_additional:
    doc: |
      Bytes 104 to 111, the additional fields that are known, with their
      padding.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Additional fields (version 3 and higher)
    seq:
      - id: compression_type
        type: u1
        enum: compression_type
        valid:
          in-enum: true
        doc: |
          Method of all compressed clusters. Not zero exactly if the
          incompatible feature bit is set.
      - id: padding
        contents: [0, 0, 0, 0, 0, 0, 0]
        doc: |
          Zeros up to the next multiple of 8, so that a field added here later
          counts as absent.

  backing_file_name:
    doc: |
      The name of the backing file, the only thing that may follow the header
      extensions in the first cluster.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Header
    seq:
      - id: name
        size-eos: true
        doc: |
          File name, relative to the image that names it, or a URL or JSON
          description that QEMU understands.
    instances:
      name_str:
        value: name.to_s('UTF-8')
        doc: The name as text.

  # --- header extensions ------------------------------------------------------

  header_extension_area:
    doc: |
      The list of header extensions. It ends with an extension of type
      `end_of_extensions`, or with its space.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Header extensions
    seq:
      - id: extensions
        type: header_extension
        repeat: until
        repeat-until: >-
          _.type == extension_type::end_of_extensions or
          _io.size - _io.pos < 8
        if: _io.size >= 8
        doc: |
          The extensions. Each type may occur once; types that are unknown may
          be ignored.

  header_extension:
    -webide-representation: '{type}'
    doc: One optional section of the header.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Header extensions
    seq:
      - id: type
        type: u4
        enum: extension_type
        doc: What the extension holds.
      - id: len_data
        -orig-id: length
        type: u4
        valid:
          max: >-
            type == extension_type::end_of_extensions ? 0xffff_ffff :
            _io.size - _io.pos
        doc: Length of the data in bytes, without the padding.
      - id: data
        size: len_data
        type:
          switch-on: type
          cases:
            extension_type::backing_format: backing_format
            extension_type::feature_name_table: feature_name_table
            extension_type::bitmaps: bitmaps_extension
            extension_type::encryption_header: encryption_header_pointer
            extension_type::data_file: data_file_name
        if: type != extension_type::end_of_extensions
        doc: The data; raw bytes where the type is unknown.
      - id: padding
        size: >-
          len_padding < _io.size - _io.pos ? len_padding : _io.size - _io.pos
        if: type != extension_type::end_of_extensions
        doc: Bytes of any value up to the next multiple of 8.
    instances:
      len_padding:
        value: (8 - len_data % 8) % 8
        doc: Length of the padding, were there room for it.

  backing_format:
    doc: |
      The format of the backing file, such as `raw` or `qcow2`. Without it a
      program would have to guess.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      String header extensions
    seq:
      - id: name
        size-eos: true
        doc: |
          Name of the format, not null-terminated. QEMU accepts at most 15
          bytes.
    instances:
      name_str:
        value: name.to_s('UTF-8')
        doc: The name as text.

  data_file_name:
    doc: The external data file.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      String header extensions
    seq:
      - id: name
        size-eos: true
        doc: Name of the file, not null-terminated.
    instances:
      name_str:
        value: name.to_s('UTF-8')
        doc: The name as text.

  feature_name_table:
    doc: |
      Names of feature bits, for the messages of programs that do not know the
      features.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Feature name table
    seq:
      - id: entries
        type: feature_name
        repeat: expr
        repeat-expr: _io.size / 48
        doc: One entry for each name.

  feature_name:
    -webide-representation: '{type} {bit:dec}: {name_str}'
    doc: The name of one feature bit.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Feature name table
    seq:
      - id: type
        type: u1
        enum: feature_type
        valid:
          in-enum: true
        doc: The feature field that the bit belongs to.
      - id: bit
        type: u1
        valid:
          max: 63
        doc: Number of the bit, 0 being the least significant.
      - id: name
        size: 46
        doc: Name, padded with zeros, without any zero if it fills the field.
    instances:
      name_str:
        value: name.to_s('UTF-8')
        doc: The name as text, with the zeros that pad it.

  bitmaps_extension:
    doc: Where the directory of the persistent bitmaps is.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Bitmaps extension
    seq:
      - id: num_bitmaps
        -orig-id: nb_bitmaps
        type: u4
        valid:
          min: 1
          max: 65535
        doc: Number of bitmaps. The upper bound is QEMU's.
      - id: reserved
        type: u4
        valid: 0
        doc: Reserved.
      - id: len_bitmap_directory
        -orig-id: bitmap_directory_size
        type: u8
        valid:
          min: 1
          max: 67107840
        doc: |
          Length of all directory entries together, in bytes. The upper bound,
          1024 for each bitmap, is QEMU's.
      - id: ofs_bitmap_directory
        -orig-id: bitmap_directory_offset
        type: u8
        valid: ofs_bitmap_directory - ofs_bitmap_directory % _root.cluster_size
        doc: Where the directory starts, in bytes, aligned to a cluster.
    instances:
      bitmap_directory:
        io: _root._io
        pos: ofs_bitmap_directory
        size: len_bitmap_directory
        type: bitmap_directory(num_bitmaps)
        doc: The bitmap directory, read no further than its declared length.

  encryption_header_pointer:
    doc: |
      Where the encryption header is. Present exactly if the crypt method is
      LUKS.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Full disk encryption header pointer
    seq:
      - id: ofs_encryption_header
        -orig-id: offset
        type: u8
        valid: >-
          ofs_encryption_header - ofs_encryption_header % _root.cluster_size
        doc: Where the encryption header starts, in bytes, aligned to a cluster.
      - id: len_encryption_header
        -orig-id: length
        type: u8
        doc: |
          Length of the encryption header as written, in bytes; its last cluster
          is filled up with zeros.
    instances:
      luks_header:
        io: _root._io
        pos: ofs_encryption_header
        type: luks_header
        if: _root.header.crypt_method == crypt_method::luks
        doc: The LUKS partition header.

  # --- encryption -------------------------------------------------------------

  luks_header:
    doc: |
      The first 592 bytes of the encryption header: a LUKS partition header,
      version 1. QEMU checks the bounds given here.
    doc-ref:
      - >-
        https://www.qemu.org/docs/master/interop/qcow2.html
        Full disk encryption header pointer
      - >-
        https://gitlab.com/cryptsetup/cryptsetup/-/wikis/LUKS-standard/on-disk-format.pdf
        LUKS On-Disk Format 1.2
    seq:
      - id: magic
        contents: ['LUKS', 0xba, 0xbe]
        doc: The signature of LUKS.
      - id: version
        type: u2
        valid: 1
        doc: Version of LUKS.
      - id: cipher_name
        size: 32
        doc: Name of the cipher, null-terminated.
      - id: cipher_mode
        size: 32
        doc: |
          Mode of the cipher and generator of initialization vectors,
          null-terminated.
      - id: hash_spec
        size: 32
        doc: Name of the hash, null-terminated.
      - id: ofs_payload
        -orig-id: payload_offset
        type: u4
        valid:
          min: 8
        doc: |
          Where encrypted data would start in a LUKS volume, in sectors of 512
          bytes. Without use in qcow2.
      - id: len_key
        -orig-id: key_bytes
        type: u4
        valid:
          min: 1
          max: 64
        doc: |
          Length of the master key in bytes. No cipher that QEMU knows has a
          longer one than AES-256 in XTS mode.
      - id: mk_digest
        size: 20
        doc: Digest of the master key, by which it is recognised.
      - id: mk_digest_salt
        size: 32
        doc: Salt of the digest.
      - id: num_mk_digest_iterations
        -orig-id: mk_digest_iter
        type: u4
        valid:
          min: 1
        doc: Iterations of the digest.
      - id: uuid
        size: 40
        doc: UUID of the volume as text, null-terminated.
      - id: key_slots
        type: luks_key_slot
        repeat: expr
        repeat-expr: 8
        doc: The eight key slots.

  luks_key_slot:
    -webide-representation: '{active}'
    doc: A copy of the master key, encrypted with one passphrase.
    doc-ref: >-
      https://gitlab.com/cryptsetup/cryptsetup/-/wikis/LUKS-standard/on-disk-format.pdf
      LUKS On-Disk Format 1.2
    seq:
      - id: active
        type: u4
        enum: luks_key_slot_state
        valid:
          in-enum: true
        doc: Whether the slot is in use.
      - id: num_iterations
        -orig-id: iterations
        type: u4
        valid:
          min: 'active == luks_key_slot_state::disabled ? 0 : 1'
        doc: Iterations of the key derivation.
      - id: salt
        size: 32
        doc: Salt of the key derivation.
      - id: ofs_key_material
        -orig-id: key_material_offset
        type: u4
        valid:
          min: 8
        doc: |
          Where the key material starts, in sectors of 512 bytes from the start
          of the LUKS header.
      - id: num_stripes
        -orig-id: stripes
        type: u4
        valid: 4000
        doc: Number of anti-forensic stripes. QEMU accepts only this one.
    instances:
      key_material:
        io: _root._io
        pos: _parent._parent.ofs_encryption_header + ofs_key_material * 512
        size: _parent.len_key * num_stripes
        if: active == luks_key_slot_state::enabled
        doc: The master key, split into stripes and encrypted.

  # --- host cluster management ------------------------------------------------

  refcount_table:
    doc: The first level of the reference counts, as pages.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Host cluster management
    params:
      - id: ofs_table
        type: u8
        doc: Where the table starts, in bytes.
      - id: num_entries
        type: u8
        doc: Number of its entries.
    instances:
      num_pages:
        value: >-
          (num_entries + _root.entries_per_page - 1) / _root.entries_per_page
        doc: Number of pages.
      pages:
        pos: ofs_table
        type: refcount_table_page(ofs_table, num_entries, _index)
        repeat: expr
        repeat-expr: num_pages
        doc: The pages of the table.

  refcount_table_page:
    doc: Up to 512 entries of the refcount table.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Host cluster management
    params:
      - id: ofs_table
        type: u8
        doc: Where the table starts, in bytes.
      - id: num_table_entries
        type: u8
        doc: Number of entries of the whole table.
      - id: page
        type: u8
        doc: Number of this page.
    instances:
      first:
        value: page * _root.entries_per_page
        doc: Index of the first entry in the table.
      num_entries:
        value: >-
          num_table_entries - first < _root.entries_per_page ? num_table_entries
          - first : _root.entries_per_page
        doc: Number of entries of this page.
      entries:
        pos: ofs_table + first * 8
        type: refcount_table_entry
        repeat: expr
        repeat-expr: num_entries
        doc: The entries.

  refcount_table_entry:
    -webide-representation: '{ofs_refcount_block:hex}'
    doc: Where one refcount block is.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Host cluster management
    seq:
      - id: ofs_refcount_block_upper
        type: b32
        doc: Bits 32 to 63 of the offset.
      - id: ofs_refcount_block_lower
        type: b23
        valid: >-
          ofs_refcount_block_lower -
          ofs_refcount_block_lower % (_root.cluster_size / 512)
        doc: Bits 9 to 31 of the offset.
      - id: reserved_0
        type: b9
        valid: 0
        doc: Reserved.
    instances:
      ofs_refcount_block:
        -orig-id: refcount_block_offset
        value: >-
          (ofs_refcount_block_upper * 0x1_0000_0000 +
          ofs_refcount_block_lower * 512).as<u8>
        doc: |
          Where the refcount block starts, in bytes, aligned to a cluster. 0 if
          there is none: all the refcounts it would hold are 0.
      refcount_block:
        pos: ofs_refcount_block
        type: refcount_block(ofs_refcount_block)
        if: ofs_refcount_block != 0
        doc: The refcount block, one cluster long.

  refcount_block:
    doc: |
      The second level of the reference counts, as pages of groups. A group is
      the least number of whole bytes.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Host cluster management
    params:
      - id: ofs_block
        type: u8
        doc: Where the block starts, in bytes.
    instances:
      len_group:
        value: '_root.refcount_order <= 3 ? 1 : 1 << (_root.refcount_order - 3)'
        doc: Length of a group in bytes.
      num_groups:
        value: _root.cluster_size / len_group
        doc: Number of groups.
      pages:
        pos: ofs_block
        type: refcount_block_page(ofs_block, len_group, num_groups, _index)
        repeat: expr
        repeat-expr: >-
          (num_groups + _root.entries_per_page - 1) / _root.entries_per_page
        doc: The pages of the block.

  refcount_block_page:
    doc: Up to 512 groups of refcounts.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Host cluster management
    params:
      - id: ofs_block
        type: u8
        doc: Where the block starts, in bytes.
      - id: len_group
        type: u8
        doc: Length of a group in bytes.
      - id: num_block_groups
        type: u8
        doc: Number of groups of the whole block.
      - id: page
        type: u8
        doc: Number of this page.
    instances:
      first:
        value: page * _root.entries_per_page
        doc: Index of the first group in the block.
      num_entries:
        value: >-
          num_block_groups - first < _root.entries_per_page ? num_block_groups -
          first : _root.entries_per_page
        doc: Number of groups of this page.
      entries:
        pos: ofs_block + first * len_group
        type:
          switch-on: _root.refcount_order
          cases:
            0: refcount_group_1
            1: refcount_group_2
            2: refcount_group_4
            3: refcount_group_8
            4: refcount_group_16
            5: refcount_group_32
            6: refcount_group_64
        repeat: expr
        repeat-expr: num_entries
        doc: The groups.

  refcount_group_1:
    meta:
      bit-endian: le
    doc: |
      Eight refcounts of one bit. Bit 0, the least significant, belongs to the
      first cluster.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Host cluster management
    seq:
      - id: refcount_0
        type: b1
        doc: Whether the first host cluster is in use.
      - id: refcount_1
        type: b1
        doc: Whether the second host cluster is in use.
      - id: refcount_2
        type: b1
        doc: Whether the third host cluster is in use.
      - id: refcount_3
        type: b1
        doc: Whether the fourth host cluster is in use.
      - id: refcount_4
        type: b1
        doc: Whether the fifth host cluster is in use.
      - id: refcount_5
        type: b1
        doc: Whether the sixth host cluster is in use.
      - id: refcount_6
        type: b1
        doc: Whether the seventh host cluster is in use.
      - id: refcount_7
        type: b1
        doc: Whether the eighth host cluster is in use.

  refcount_group_2:
    meta:
      bit-endian: le
    doc: |
      Four refcounts of two bits. Bits 0 and 1, the least significant, belong to
      the first cluster.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Host cluster management
    seq:
      - id: refcount_0
        type: b2
        doc: References to the first host cluster.
      - id: refcount_1
        type: b2
        doc: References to the second host cluster.
      - id: refcount_2
        type: b2
        doc: References to the third host cluster.
      - id: refcount_3
        type: b2
        doc: References to the fourth host cluster.

  refcount_group_4:
    meta:
      bit-endian: le
    doc: |
      Two refcounts of four bits. Bits 0 to 3, the least significant, belong to
      the first cluster.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Host cluster management
    seq:
      - id: refcount_0
        type: b4
        doc: References to the first host cluster.
      - id: refcount_1
        type: b4
        doc: References to the second host cluster.

  refcount_group_8:
    doc: A refcount of eight bits.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Host cluster management
    seq:
      - id: refcount_0
        type: u1
        doc: |
          References to the host cluster. 0 means free; more than 1 means that a
          write must copy it first.

  refcount_group_16:
    doc: |
      A refcount of 16 bits, the only width of version 2 and the usual one of
      version 3.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Host cluster management
    seq:
      - id: refcount_0
        type: u2
        doc: |
          References to the host cluster. 0 means free; more than 1 means that a
          write must copy it first.

  refcount_group_32:
    doc: A refcount of 32 bits.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Host cluster management
    seq:
      - id: refcount_0
        type: u4
        doc: |
          References to the host cluster. 0 means free; more than 1 means that a
          write must copy it first.

  refcount_group_64:
    doc: A refcount of 64 bits.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Host cluster management
    seq:
      - id: refcount_0
        type: u8
        doc: |
          References to the host cluster. 0 means free; more than 1 means that a
          write must copy it first.

  host_cluster:
    doc: |
      Looks up the refcount of one host cluster, reading nothing else. Not part
      of the file's structure: a program creates it, with the image as its root.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Host cluster management
    params:
      - id: index
        type: u8
        doc: |
          Number of the cluster, its offset in the file divided by the cluster
          size.
    instances:
      refcount_bits:
        value: 1 << _root.refcount_order
        doc: Width of a refcount.
      num_refcount_block_entries:
        value: _root.cluster_size * 8 / refcount_bits
        doc: Number of refcounts in a block.
      refcount_table_index:
        value: index / num_refcount_block_entries
        doc: Index of the block in the refcount table.
      refcount_block_index:
        value: index % num_refcount_block_entries
        doc: Index of the refcount in the block.
      num_refcount_table_entries:
        value: >-
          _root.header.num_refcount_table_clusters * (_root.cluster_size / 8)
        doc: Number of entries of the refcount table.
      table_entry:
        pos: _root.header.ofs_refcount_table + refcount_table_index * 8
        type: refcount_table_entry
        if: refcount_table_index < num_refcount_table_entries
        doc: The entry of the refcount table, unless the table ends before it.
      has_block:
        value: |
          refcount_table_index < num_refcount_table_entries and
          table_entry.ofs_refcount_block != 0
        doc: |
          Whether there is a refcount block for this cluster. If not, its
          refcount is 0.
      ofs_refcount:
        value: >-
          (table_entry.ofs_refcount_block +
          refcount_block_index * refcount_bits / 8).as<u8>
        if: has_block
        doc: Where the first byte is that holds the refcount.
      refcount_1:
        pos: ofs_refcount
        type: u1
        if: has_block and _root.refcount_order <= 3
        doc: The byte that holds the refcount, where it is no longer than that.
      refcount_2:
        pos: ofs_refcount
        type: u2
        if: has_block and _root.refcount_order == 4
        doc: A refcount of 16 bits.
      refcount_4:
        pos: ofs_refcount
        type: u4
        if: has_block and _root.refcount_order == 5
        doc: A refcount of 32 bits.
      refcount_8:
        pos: ofs_refcount
        type: u8
        if: has_block and _root.refcount_order == 6
        doc: A refcount of 64 bits.
      refcount_bit:
        value: refcount_block_index * refcount_bits % 8
        doc: Number of the lowest bit of the refcount in its byte.
      refcount_in_byte:
        value: refcount_1 >> refcount_bit & ((1 << refcount_bits) - 1)
        if: has_block and _root.refcount_order <= 3
        doc: A refcount of up to eight bits.
      refcount:
        value: |
          (not has_block ? 0 :
            _root.refcount_order == 6 ? refcount_8 :
            _root.refcount_order == 5 ? refcount_4 :
            _root.refcount_order == 4 ? refcount_2 : refcount_in_byte).as<u8>
        doc: Number of references to the cluster.

  # --- cluster mapping --------------------------------------------------------

  l1_table:
    doc: An L1 table, as pages.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Cluster mapping
    params:
      - id: ofs_table
        type: u8
        doc: Where the table starts, in bytes.
      - id: num_entries
        type: u8
        doc: Number of its entries.
    instances:
      pages:
        pos: ofs_table
        type: l1_table_page(ofs_table, num_entries, _index)
        repeat: expr
        repeat-expr: >-
          (num_entries + _root.entries_per_page - 1) / _root.entries_per_page
        doc: The pages of the table.

  l1_table_page:
    doc: Up to 512 entries of an L1 table.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Cluster mapping
    params:
      - id: ofs_table
        type: u8
        doc: Where the table starts, in bytes.
      - id: num_table_entries
        type: u8
        doc: Number of entries of the whole table.
      - id: page
        type: u8
        doc: Number of this page.
    instances:
      first:
        value: page * _root.entries_per_page
        doc: Index of the first entry in the table.
      num_entries:
        value: >-
          num_table_entries - first < _root.entries_per_page ? num_table_entries
          - first : _root.entries_per_page
        doc: Number of entries of this page.
      entries:
        pos: ofs_table + first * 8
        type: l1_entry
        repeat: expr
        repeat-expr: num_entries
        doc: The entries.

  l1_entry:
    -webide-representation: '{ofs_l2_table:hex}'
    doc: Where one L2 table is.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Cluster mapping
    seq:
      - id: copied
        type: b1
        doc: |
          Bit 63. The refcount of the L2 table is exactly one, so that it may be
          written in place. Accurate only in the active L1 table.
      - id: reserved_56
        type: b7
        valid: 0
        doc: Bits 56 to 62, reserved.
      - id: ofs_l2_table_upper
        type: b24
        doc: Bits 32 to 55 of the offset.
      - id: ofs_l2_table_lower
        type: b23
        valid: >-
          ofs_l2_table_lower -
          ofs_l2_table_lower % (_root.cluster_size / 512)
        doc: Bits 9 to 31 of the offset.
      - id: reserved_0
        type: b9
        valid: 0
        doc: Bits 0 to 8, reserved.
    instances:
      ofs_l2_table:
        -orig-id: l2_table_offset
        value: >-
          (ofs_l2_table_upper * 0x1_0000_0000 +
          ofs_l2_table_lower * 512).as<u8>
        doc: |
          Where the L2 table starts, in bytes, aligned to a cluster. 0 if there
          is none: all its clusters are unallocated.
      l2_table:
        pos: ofs_l2_table
        type: l2_table(ofs_l2_table)
        if: ofs_l2_table != 0
        doc: The L2 table, one cluster long.

  l2_table:
    doc: An L2 table, as pages.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Cluster mapping
    params:
      - id: ofs_table
        type: u8
        doc: Where the table starts, in bytes.
    instances:
      pages:
        pos: ofs_table
        type: l2_table_page(ofs_table, _index)
        repeat: expr
        repeat-expr: >-
          (_root.num_l2_entries + _root.entries_per_page - 1) /
          _root.entries_per_page
        doc: The pages of the table.

  l2_table_page:
    doc: Up to 512 entries of an L2 table.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Cluster mapping
    params:
      - id: ofs_table
        type: u8
        doc: Where the table starts, in bytes.
      - id: page
        type: u8
        doc: Number of this page.
    instances:
      first:
        value: page * _root.entries_per_page
        doc: Index of the first entry in the table.
      num_entries:
        value: >-
          _root.num_l2_entries - first < _root.entries_per_page ?
          _root.num_l2_entries - first : _root.entries_per_page
        doc: Number of entries of this page.
      entries:
        pos: ofs_table + first * _root.len_l2_entry
        type: l2_entry
        repeat: expr
        repeat-expr: num_entries
        doc: The entries.

  l2_entry:
    doc: |
      How one guest cluster is stored. 64 bits, or 128 bits with extended L2
      entries.
    doc-ref:
      - https://www.qemu.org/docs/master/interop/qcow2.html Cluster mapping
      - https://www.qemu.org/docs/master/interop/qcow2.html Extended L2 Entries
    seq:
      - id: descriptor
        type:
          switch-on: is_compressed
          cases:
            true: compressed_descriptor
            false: standard_l2_entry
        doc: Where the cluster is; bit 62 tells the two forms apart.
      - id: subclusters
        type: subcluster_bitmap
        if: _root.has_extended_l2
        doc: |
          State of each subcluster. Without use, and zero, where the cluster is
          compressed.
    instances:
      first_byte:
        pos: _io.pos
        type: u1
        doc: |
          Bits 56 to 63 of the descriptor, looked at before the form is known.
      is_compressed:
        value: first_byte & 0x40 != 0
        doc: Bit 62 of the descriptor.

  standard_l2_entry:
    -webide-representation: '{ofs_host_cluster:hex}'
    doc: |
      A guest cluster that is stored as it is, reads as zeros, or is
      unallocated.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Cluster mapping
    seq:
      - id: copied
        type: b1
        doc: |
          Bit 63. The refcount of the cluster is exactly one, so that it may be
          written in place. Accurate only in tables below the active L1 table.
          Set for every allocated cluster of an external data file.
      - id: compressed
        type: b1
        valid: false
        doc: Bit 62. Set in the other form of the entry.
      - id: reserved_56
        type: b6
        valid: 0
        doc: Bits 56 to 61, reserved.
      - id: ofs_host_cluster_upper
        type: b24
        doc: Bits 32 to 55 of the offset.
      - id: ofs_host_cluster_lower
        type: b23
        valid: >-
          ofs_host_cluster_lower -
          ofs_host_cluster_lower % (_root.cluster_size / 512)
        doc: Bits 9 to 31 of the offset.
      - id: reserved_1
        type: b8
        valid: 0
        doc: Bits 1 to 8, reserved.
      - id: zero
        type: b1
        valid: >-
          zero and _root.header.version != version::v2 and
          not _root.has_extended_l2
        doc: |
          Bit 0. The cluster reads as zeros, whatever the offset says. Always 0
          in version 2 and with extended L2 entries.
    instances:
      ofs_host_cluster:
        -orig-id: host_cluster_offset
        value: >-
          (ofs_host_cluster_upper * 0x1_0000_0000 +
          ofs_host_cluster_lower * 512).as<u8>
        doc: |
          Where the cluster is, in bytes, aligned to a cluster. 0 if it is
          unallocated, unless there is an external data file and `copied` is
          set.
      data:
        io: _root._io
        pos: ofs_host_cluster
        size: _root.cluster_size
        if: ofs_host_cluster != 0 and not _root.has_data_file
        doc: The cluster as it lies in this file, encrypted where the image is.

  compressed_descriptor:
    -webide-representation: '{ofs_data:hex}, {num_additional_sectors:dec} more'
    doc: |
      A guest cluster that is stored compressed. The offset has `62 -
      (cluster_bits - 8)` bits, 49 to 61; the length has the bits between it and
      bit 61.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Cluster mapping
    seq:
      - id: copied
        type: b1
        valid: false
        doc: |
          Bit 63. Always 0, as a compressed cluster is never written in place.
      - id: compressed
        type: b1
        valid: true
        doc: Bit 62. Set.
      - id: length_and_offset
        type: b13
        valid:
          max: >-
            length_and_offset % (1 << num_offset_bits) <= 0x7f ? 0x1fff : 0
        doc: |
          Bits 49 to 61, which hold the length and, in images of clusters below
          2 MiB, upper bits of the offset.
      - id: ofs_data_upper
        type: b17
        doc: |
          Bits 32 to 48, which belong to the offset whatever the cluster size.
      - id: ofs_data_lower
        type: b32
        doc: Bits 0 to 31, which belong to the offset as well.
    instances:
      num_offset_bits:
        value: 21 - _root.header.cluster_bits
        doc: Number of bits of the offset beyond bit 48.
      num_additional_sectors:
        -orig-id: additional_sectors
        value: length_and_offset >> num_offset_bits
        doc: |
          Number of sectors of 512 bytes that the data extends over, beyond the
          one that holds its first byte.
      ofs_data:
        -orig-id: host_offset
        value: >-
          (length_and_offset % (1 << num_offset_bits) * 0x2_0000_0000_0000 +
          ofs_data_upper * 0x1_0000_0000 + ofs_data_lower).as<u8>
        doc: Where the compressed data starts, in bytes. Of any alignment.
      data_room:
        value: (num_additional_sectors + 1) * 512 - ofs_data % 512
        doc: Length of the data with the rest of its last sector, in bytes.
      data_left:
        value: (_root._io.size - ofs_data).as<s8>
        doc: Number of bytes between the start of the data and the file's end.
      data:
        io: _root._io
        pos: ofs_data
        size: 'data_room < data_left ? data_room : data_left'
        doc: |
          The compressed data. Decompression stops when it has produced a
          cluster, so that other data may follow in the last sector; the file
          may end within that sector.

  subcluster_bitmap:
    doc: |
      State of the 32 subclusters of a cluster. Bit x, counted from the least
      significant, is subcluster x.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Extended L2 Entries
    seq:
      - id: reads_as_zeros
        type: b32
        doc: Bits 32 to 63. The subcluster reads as zeros and is not allocated.
      - id: allocated
        type: b32
        doc: |
          Bits 0 to 31. The subcluster is in the host cluster. Otherwise, if it
          does not read as zeros, it is read from the backing file.

  guest_address:
    doc: |
      Looks up one address of the virtual disk in the active tables, reading
      nothing else. Not part of the file's structure: a program creates it, with
      the image as its root.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Cluster mapping
    params:
      - id: guest_offset
        type: u8
        doc: Address on the virtual disk in bytes.
    instances:
      l2_index:
        value: guest_offset / _root.cluster_size % _root.num_l2_entries
        doc: Index of the cluster in its L2 table.
      l1_index:
        value: guest_offset / _root.cluster_size / _root.num_l2_entries
        doc: Index of the L2 table in the L1 table.
      l1_entry:
        pos: _root.header.ofs_l1_table + l1_index * 8
        type: l1_entry
        if: l1_index < _root.header.num_l1_entries
        doc: The entry of the L1 table, unless the table ends before it.
      l2_entry:
        pos: l1_entry.ofs_l2_table + l2_index * _root.len_l2_entry
        type: l2_entry
        if: >-
          l1_index < _root.header.num_l1_entries and l1_entry.ofs_l2_table != 0
        doc: The entry of the L2 table, unless there is no such table.

  # --- snapshots --------------------------------------------------------------

  snapshot_record:
    -webide-representation: '{name_str}'
    doc: One internal snapshot, an entry of the snapshot table.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Snapshots
    seq:
      - id: header
        type: snapshot_header
        doc: The part of fixed length.
      - id: extra_data
        size: header.len_extra_data
        type: snapshot_extra_data
        doc: Fields that were added later.
      - id: id_str
        size: header.len_id_str
        doc: ID, unique in the image, not null-terminated.
      - id: name
        size: header.len_name
        doc: Name, not null-terminated.
      - id: padding
        size: >-
          len_padding < _io.size - _io.pos ? len_padding : _io.size - _io.pos
        doc: |
          Bytes up to the next multiple of 8. The file may end before those of
          the last record.
    instances:
      len_padding:
        value: >-
          (8 - (header.len_extra_data + header.len_id_str + header.len_name) %
          8) % 8
        doc: Length of the padding, were there room for it.
      name_str:
        value: name.to_s('UTF-8')
        doc: The name as text.
      l1_table:
        pos: header.ofs_l1_table
        type: l1_table(header.ofs_l1_table, header.num_l1_entries)
        doc: |
          The L1 table of the snapshot, which maps the virtual disk as it was.
          The VM state, where there is one, follows the disk in the same table.

  snapshot_header:
    doc: The part of a snapshot record that has a fixed length, 40 bytes.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Snapshots
    seq:
      - id: ofs_l1_table
        -orig-id: l1_table_offset
        type: u8
        valid: ofs_l1_table - ofs_l1_table % _root.cluster_size
        doc: |
          Where the L1 table of the snapshot starts, in bytes, aligned to a
          cluster.
      - id: num_l1_entries
        -orig-id: l1_size
        type: u4
        valid:
          max: 4194304
        doc: Number of entries of that table.
      - id: len_id_str
        -orig-id: id_str_size
        type: u2
        doc: Length of the ID in bytes.
      - id: len_name
        -orig-id: name_size
        type: u2
        doc: Length of the name in bytes.
      - id: date_sec
        type: u4
        doc: When the snapshot was taken, in seconds since the Epoch.
      - id: date_nsec
        type: u4
        valid:
          max: 999999999
        doc: Subsecond part of that time in nanoseconds.
      - id: vm_clock_nsec
        type: u8
        doc: How long the guest had been running, in nanoseconds.
      - id: vm_state_size
        type: u4
        doc: |
          Length of the VM state in bytes, 0 if there is none. Ignored if the
          extra data has the larger field.
      - id: len_extra_data
        -orig-id: extra_data_size
        type: u4
        valid:
          max: 1024
        doc: |
          Length of the extra data in bytes. The upper bound is QEMU's. The
          specification asks for 16 at least in version 3, but QEMU reads
          records with less.

  snapshot_extra_data:
    doc: |
      Fields of a snapshot record that were added later. Each is present if the
      extra data is long enough for it.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Snapshots
    seq:
      - id: vm_state_size_large
        type: u8
        if: _io.size >= 8
        doc: Length of the VM state in bytes, 0 if there is none.
      - id: disk_size
        type: u8
        valid:
          max: '0x7fff_ffff_ffff_ffff'
        if: _io.size >= 16
        doc: Size of the virtual disk when the snapshot was taken, in bytes.
      - id: icount
        type: u8
        if: _io.size >= 24
        doc: |
          Instruction count of record and replay, all ones if that was not in
          use.
      - id: unknown
        size-eos: true
        doc: Fields unknown today; they must be ignored, and kept.

  # --- bitmaps ----------------------------------------------------------------

  bitmap_directory:
    doc: The list of the persistent bitmaps.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Bitmap directory
    params:
      - id: num_records
        type: u4
        doc: Number of its entries.
    seq:
      - id: records
        type: bitmap_directory_record
        repeat: expr
        repeat-expr: num_records
        doc: One entry for each bitmap.

  bitmap_directory_record:
    -webide-representation: '{name_str}'
    doc: One persistent bitmap, an entry of the bitmap directory.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Bitmap directory
    seq:
      - id: header
        type: bitmap_directory_header
        doc: The part of fixed length.
      - id: extra_data
        size: header.len_extra_data
        doc: |
          Data of the bitmap's type; none is defined. It never refers to
          clusters.
      - id: name
        size: header.len_name
        doc: Name, unique in the image, not null-terminated.
      - id: padding
        size: >-
          len_padding < _io.size - _io.pos ? len_padding : _io.size - _io.pos
        type: zero_padding
        doc: |
          Zeros up to the next multiple of 8. The file may end before those of
          the last record.
    instances:
      len_padding:
        value: (8 - (header.len_extra_data + header.len_name) % 8) % 8
        doc: Length of the padding, were there room for it.
      name_str:
        value: name.to_s('UTF-8')
        doc: The name as text.
      bitmap_table:
        io: _root._io
        pos: header.ofs_bitmap_table
        type: >-
          bitmap_table(header.ofs_bitmap_table, header.num_bitmap_table_entries)
        doc: Where the clusters of the bitmap are.

  zero_padding:
    doc: Bytes that must be zero.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Bitmap directory
    seq:
      - id: zeros
        type: u1
        valid: 0
        repeat: eos
        doc: The bytes.

  bitmap_directory_header:
    doc: |
      The part of a bitmap directory record that has a fixed length, 24 bytes.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Bitmap directory
    seq:
      - id: ofs_bitmap_table
        -orig-id: bitmap_table_offset
        type: u8
        valid: ofs_bitmap_table - ofs_bitmap_table % _root.cluster_size
        doc: Where the bitmap table starts, in bytes, aligned to a cluster.
      - id: num_bitmap_table_entries
        -orig-id: bitmap_table_size
        type: u4
        valid:
          min: 1
          max: 0x20000000 / _root.cluster_size
        doc: |
          Number of entries of that table. QEMU accepts a bitmap of at most 512
          MiB.
      - id: flags
        type: bitmap_flags
        doc: State of the bitmap.
      - id: type
        type: u1
        enum: bitmap_type
        valid:
          in-enum: true
        doc: Sort of the bitmap.
      - id: granularity_bits
        type: u1
        valid:
          min: 9
          max: 31
        doc: |
          Binary logarithm of the number of guest bytes that a bit stands for.
          The specification allows 0 to 63, QEMU 9 to 31.
      - id: len_name
        -orig-id: name_size
        type: u2
        valid:
          min: 1
          max: 1023
        doc: Length of the name in bytes. The upper bound is QEMU's.
      - id: len_extra_data
        -orig-id: extra_data_size
        type: u4
        valid:
          max: 67107840
        doc: |
          Length of the extra data in bytes. Should be zero, as none is defined;
          a directory is never larger.

  bitmap_flags:
    doc: State of a bitmap.
    doc-ref: >-
      https://www.qemu.org/docs/master/interop/qcow2.html
      Bitmap directory
    seq:
      - id: reserved
        type: b29
        valid: 0
        doc: Bits 3 to 31, reserved.
      - id: extra_data_compatible
        type: b1
        doc: |
          Bit 2. A program that does not know the extra data may use the bitmap
          all the same.
      - id: is_auto
        -orig-id: auto
        type: b1
        doc: |
          Bit 1. The bitmap is enabled; every write to the virtual disk must be
          recorded in it.
      - id: in_use
        type: b1
        doc: Bit 0. The bitmap was not saved properly and may be out of date.

  bitmap_table:
    doc: Where the data of a bitmap is, as pages.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Bitmap table
    params:
      - id: ofs_table
        type: u8
        doc: Where the table starts, in bytes.
      - id: num_entries
        type: u8
        doc: Number of its entries.
    instances:
      pages:
        pos: ofs_table
        type: bitmap_table_page(ofs_table, num_entries, _index)
        repeat: expr
        repeat-expr: >-
          (num_entries + _root.entries_per_page - 1) / _root.entries_per_page
        doc: The pages of the table.

  bitmap_table_page:
    doc: Up to 512 entries of a bitmap table.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Bitmap table
    params:
      - id: ofs_table
        type: u8
        doc: Where the table starts, in bytes.
      - id: num_table_entries
        type: u8
        doc: Number of entries of the whole table.
      - id: page
        type: u8
        doc: Number of this page.
    instances:
      first:
        value: page * _root.entries_per_page
        doc: Index of the first entry in the table.
      num_entries:
        value: >-
          num_table_entries - first < _root.entries_per_page ? num_table_entries
          - first : _root.entries_per_page
        doc: Number of entries of this page.
      entries:
        pos: ofs_table + first * 8
        type: bitmap_table_entry
        repeat: expr
        repeat-expr: num_entries
        doc: The entries.

  bitmap_table_entry:
    -webide-representation: '{ofs_host_cluster:hex}'
    doc: Where one cluster of bitmap data is.
    doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Bitmap table
    seq:
      - id: reserved_56
        type: b8
        valid: 0
        doc: Bits 56 to 63, reserved.
      - id: ofs_host_cluster_upper
        type: b24
        doc: Bits 32 to 55 of the offset.
      - id: ofs_host_cluster_lower
        type: b23
        valid: >-
          ofs_host_cluster_lower -
          ofs_host_cluster_lower % (_root.cluster_size / 512)
        doc: Bits 9 to 31 of the offset.
      - id: reserved_1
        type: b8
        valid: 0
        doc: Bits 1 to 8, reserved.
      - id: all_ones
        type: b1
        valid: all_ones and ofs_host_cluster == 0
        doc: |
          Bit 0. Without an offset, the cluster reads as ones instead of zeros.
          With one it must be unset.
    instances:
      ofs_host_cluster:
        -orig-id: host_cluster_offset
        value: >-
          (ofs_host_cluster_upper * 0x1_0000_0000 +
          ofs_host_cluster_lower * 512).as<u8>
        doc: |
          Where the cluster is, in bytes, aligned to a cluster. 0 if all its
          bits equal `all_ones`.
      data:
        pos: ofs_host_cluster
        size: _root.cluster_size
        if: ofs_host_cluster != 0
        doc: |
          A cluster of bitmap data. Bit x of a byte, counted from the least
          significant, is the x-th of its bits. Bits beyond the end of the
          virtual disk are zero.
        doc-ref: https://www.qemu.org/docs/master/interop/qcow2.html Bitmap data

enums:
  version:
    2:
      id: v2
      doc: Called "compat 0.10" by qemu-img.
    3:
      id: v3
      doc: |
        Adds feature bits, zero clusters and other widths of refcounts. Called
        "compat 1.1" by qemu-img.
  crypt_method:
    0:
      id: none
      doc: Guest data is not encrypted.
    1:
      id: aes
      doc: |
        AES-CBC with 256 bit keys and plain64 initialization vectors; insecure,
        kept to recover data.
    2:
      id: luks
      doc: |
        As the LUKS header says, which the encryption header pointer points to.
  compression_type:
    0:
      id: zlib
      doc: Deflate (RFC 1951), without a zlib header.
    1:
      id: zstd
      doc: Zstandard (RFC 8878).
  extension_type:
    0x00000000:
      id: end_of_extensions
      -orig-id: end
      doc: End of the header extension area.
    0xe2792aca:
      id: backing_format
      doc: Name of the format of the backing file.
    0x6803f857:
      id: feature_name_table
      doc: Names of feature bits.
    0x23852875:
      id: bitmaps
      doc: Where the bitmap directory is.
    0x0537be77:
      id: encryption_header
      doc: Where the full disk encryption header is.
    0x44415441:
      id: data_file
      doc: Name of the external data file.
  feature_type:
    0:
      id: incompatible
      doc: A bit of `incompatible_features`.
    1:
      id: compatible
      doc: A bit of `compatible_features`.
    2:
      id: autoclear
      doc: A bit of `autoclear_features`.
  bitmap_type:
    1:
      id: dirty_tracking
      doc: Records which parts of the virtual disk were written to.
  luks_key_slot_state:
    0x0000dead:
      id: disabled
      doc: The slot is free.
    0x00ac71f3:
      id: enabled
      doc: The slot holds a key.
