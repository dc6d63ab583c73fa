# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO
from enum import IntEnum


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class Qcow2(KaitaiStruct):
    """A qcow2 file holds a virtual disk of which only the written parts take space,
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
    
    .. seealso::
       Source - https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.rst
    
    
    .. seealso::
       Source - https://www.qemu.org/docs/master/interop/qcow2.html
    """

    class BitmapType(IntEnum):
        dirty_tracking = 1

    class CompressionType(IntEnum):
        zlib = 0
        zstd = 1

    class CryptMethod(IntEnum):
        none = 0
        aes = 1
        luks = 2

    class ExtensionType(IntEnum):
        end_of_extensions = 0
        encryption_header = 87539319
        bitmaps = 595929205
        data_file = 1145132097
        feature_name_table = 1745090647
        backing_format = 3799591626

    class FeatureType(IntEnum):
        incompatible = 0
        compatible = 1
        autoclear = 2

    class LuksKeySlotState(IntEnum):
        disabled = 57005
        enabled = 11301363

    class Version(IntEnum):
        v2 = 2
        v3 = 3
    def __init__(self, _io, _parent=None, _root=None):
        super(Qcow2, self).__init__(_io)
        self._parent = _parent
        self._root = _root or self
        self._read()

    def _read(self):
        self.header = Qcow2.HeaderV2(self._io, self, self._root)


    def _fetch_instances(self):
        pass
        self.header._fetch_instances()
        _ = self.active_l1_table
        if hasattr(self, '_m_active_l1_table'):
            pass
            self._m_active_l1_table._fetch_instances()

        _ = self.additional_fields
        if hasattr(self, '_m_additional_fields'):
            pass
            self._m_additional_fields._fetch_instances()

        _ = self.backing_file
        if hasattr(self, '_m_backing_file'):
            pass
            self._m_backing_file._fetch_instances()

        _ = self.header_extensions
        if hasattr(self, '_m_header_extensions'):
            pass
            self._m_header_extensions._fetch_instances()

        _ = self.header_v3
        if hasattr(self, '_m_header_v3'):
            pass
            self._m_header_v3._fetch_instances()

        _ = self.refcounts
        if hasattr(self, '_m_refcounts'):
            pass
            self._m_refcounts._fetch_instances()

        _ = self.snapshots
        if hasattr(self, '_m_snapshots'):
            pass
            for i in range(len(self._m_snapshots)):
                pass
                self._m_snapshots[i]._fetch_instances()


        _ = self.unknown_header_fields
        if hasattr(self, '_m_unknown_header_fields'):
            pass


    class AutoclearFeatures(KaitaiStruct):
        """Bitmask; unknown bits must be cleared before the image is written.
        
        .. seealso::
           Header - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.AutoclearFeatures, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.reserved_upper = self._io.read_bits_int_be(32)
            self.reserved_lower = self._io.read_bits_int_be(30)
            self.data_file_raw = self._io.read_bits_int_be(1) != 0
            self.bitmaps = self._io.read_bits_int_be(1) != 0


        def _fetch_instances(self):
            pass

        @property
        def reserved(self):
            """The reserved bits as one number."""
            if hasattr(self, '_m_reserved'):
                return self._m_reserved

            self._m_reserved = (self.reserved_upper * 1073741824 + self.reserved_lower)
            return getattr(self, '_m_reserved', None)


    class BackingFileName(KaitaiStruct):
        """The name of the backing file, the only thing that may follow the header
        extensions in the first cluster.
        
        .. seealso::
           Header - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.BackingFileName, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.name = self._io.read_bytes_full()


        def _fetch_instances(self):
            pass

        @property
        def name_str(self):
            """The name as text."""
            if hasattr(self, '_m_name_str'):
                return self._m_name_str

            self._m_name_str = (self.name).decode(u"UTF-8")
            return getattr(self, '_m_name_str', None)


    class BackingFormat(KaitaiStruct):
        """The format of the backing file, such as `raw` or `qcow2`. Without it a
        program would have to guess.
        
        .. seealso::
           String header extensions - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.BackingFormat, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.name = self._io.read_bytes_full()


        def _fetch_instances(self):
            pass

        @property
        def name_str(self):
            """The name as text."""
            if hasattr(self, '_m_name_str'):
                return self._m_name_str

            self._m_name_str = (self.name).decode(u"UTF-8")
            return getattr(self, '_m_name_str', None)


    class BitmapDirectory(KaitaiStruct):
        """The list of the persistent bitmaps.
        
        .. seealso::
           Bitmap directory - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, num_records, _io, _parent=None, _root=None):
            super(Qcow2.BitmapDirectory, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.num_records = num_records
            self._read()

        def _read(self):
            self.records = []
            for i in range(self.num_records):
                self.records.append(Qcow2.BitmapDirectoryRecord(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.records)):
                pass
                self.records[i]._fetch_instances()



    class BitmapDirectoryHeader(KaitaiStruct):
        """The part of a bitmap directory record that has a fixed length, 24 bytes.
        
        .. seealso::
           Bitmap directory - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.BitmapDirectoryHeader, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.ofs_bitmap_table = self._io.read_u8be()
            if not self.ofs_bitmap_table == self.ofs_bitmap_table - self.ofs_bitmap_table % self._root.cluster_size:
                raise kaitaistruct.ValidationNotEqualError(self.ofs_bitmap_table - self.ofs_bitmap_table % self._root.cluster_size, self.ofs_bitmap_table, self._io, u"/types/bitmap_directory_header/seq/0")
            self.num_bitmap_table_entries = self._io.read_u4be()
            if not self.num_bitmap_table_entries >= 1:
                raise kaitaistruct.ValidationLessThanError(1, self.num_bitmap_table_entries, self._io, u"/types/bitmap_directory_header/seq/1")
            if not self.num_bitmap_table_entries <= 536870912 // self._root.cluster_size:
                raise kaitaistruct.ValidationGreaterThanError(536870912 // self._root.cluster_size, self.num_bitmap_table_entries, self._io, u"/types/bitmap_directory_header/seq/1")
            self.flags = Qcow2.BitmapFlags(self._io, self, self._root)
            self.type = KaitaiStream.resolve_enum(Qcow2.BitmapType, self._io.read_u1())
            if not isinstance(self.type, Qcow2.BitmapType):
                raise kaitaistruct.ValidationNotInEnumError(self.type, self._io, u"/types/bitmap_directory_header/seq/3")
            self.granularity_bits = self._io.read_u1()
            if not self.granularity_bits >= 9:
                raise kaitaistruct.ValidationLessThanError(9, self.granularity_bits, self._io, u"/types/bitmap_directory_header/seq/4")
            if not self.granularity_bits <= 31:
                raise kaitaistruct.ValidationGreaterThanError(31, self.granularity_bits, self._io, u"/types/bitmap_directory_header/seq/4")
            self.len_name = self._io.read_u2be()
            if not self.len_name >= 1:
                raise kaitaistruct.ValidationLessThanError(1, self.len_name, self._io, u"/types/bitmap_directory_header/seq/5")
            if not self.len_name <= 1023:
                raise kaitaistruct.ValidationGreaterThanError(1023, self.len_name, self._io, u"/types/bitmap_directory_header/seq/5")
            self.len_extra_data = self._io.read_u4be()
            if not self.len_extra_data <= 67107840:
                raise kaitaistruct.ValidationGreaterThanError(67107840, self.len_extra_data, self._io, u"/types/bitmap_directory_header/seq/6")


        def _fetch_instances(self):
            pass
            self.flags._fetch_instances()


    class BitmapDirectoryRecord(KaitaiStruct):
        """One persistent bitmap, an entry of the bitmap directory.
        
        .. seealso::
           Bitmap directory - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.BitmapDirectoryRecord, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.header = Qcow2.BitmapDirectoryHeader(self._io, self, self._root)
            self.extra_data = self._io.read_bytes(self.header.len_extra_data)
            self.name = self._io.read_bytes(self.header.len_name)
            self._raw_padding = self._io.read_bytes((self.len_padding if self.len_padding < self._io.size() - self._io.pos() else self._io.size() - self._io.pos()))
            _io__raw_padding = KaitaiStream(BytesIO(self._raw_padding))
            self.padding = Qcow2.ZeroPadding(_io__raw_padding, self, self._root)


        def _fetch_instances(self):
            pass
            self.header._fetch_instances()
            self.padding._fetch_instances()
            _ = self.bitmap_table
            if hasattr(self, '_m_bitmap_table'):
                pass
                self._m_bitmap_table._fetch_instances()


        @property
        def bitmap_table(self):
            """Where the clusters of the bitmap are."""
            if hasattr(self, '_m_bitmap_table'):
                return self._m_bitmap_table

            io = self._root._io
            _pos = io.pos()
            io.seek(self.header.ofs_bitmap_table)
            self._m_bitmap_table = Qcow2.BitmapTable(self.header.ofs_bitmap_table, self.header.num_bitmap_table_entries, io, self, self._root)
            io.seek(_pos)
            return getattr(self, '_m_bitmap_table', None)

        @property
        def len_padding(self):
            """Length of the padding, were there room for it."""
            if hasattr(self, '_m_len_padding'):
                return self._m_len_padding

            self._m_len_padding = (8 - (self.header.len_extra_data + self.header.len_name) % 8) % 8
            return getattr(self, '_m_len_padding', None)

        @property
        def name_str(self):
            """The name as text."""
            if hasattr(self, '_m_name_str'):
                return self._m_name_str

            self._m_name_str = (self.name).decode(u"UTF-8")
            return getattr(self, '_m_name_str', None)


    class BitmapFlags(KaitaiStruct):
        """State of a bitmap.
        
        .. seealso::
           Bitmap directory - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.BitmapFlags, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.reserved = self._io.read_bits_int_be(29)
            if not self.reserved == 0:
                raise kaitaistruct.ValidationNotEqualError(0, self.reserved, self._io, u"/types/bitmap_flags/seq/0")
            self.extra_data_compatible = self._io.read_bits_int_be(1) != 0
            self.is_auto = self._io.read_bits_int_be(1) != 0
            self.in_use = self._io.read_bits_int_be(1) != 0


        def _fetch_instances(self):
            pass


    class BitmapTable(KaitaiStruct):
        """Where the data of a bitmap is, as pages.
        
        .. seealso::
           Bitmap table - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, ofs_table, num_entries, _io, _parent=None, _root=None):
            super(Qcow2.BitmapTable, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.ofs_table = ofs_table
            self.num_entries = num_entries
            self._read()

        def _read(self):
            pass


        def _fetch_instances(self):
            pass
            _ = self.pages
            if hasattr(self, '_m_pages'):
                pass
                for i in range(len(self._m_pages)):
                    pass
                    self._m_pages[i]._fetch_instances()



        @property
        def pages(self):
            """The pages of the table."""
            if hasattr(self, '_m_pages'):
                return self._m_pages

            _pos = self._io.pos()
            self._io.seek(self.ofs_table)
            self._m_pages = []
            for i in range(((self.num_entries + self._root.entries_per_page) - 1) // self._root.entries_per_page):
                self._m_pages.append(Qcow2.BitmapTablePage(self.ofs_table, self.num_entries, i, self._io, self, self._root))

            self._io.seek(_pos)
            return getattr(self, '_m_pages', None)


    class BitmapTableEntry(KaitaiStruct):
        """Where one cluster of bitmap data is.
        
        .. seealso::
           Bitmap table - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.BitmapTableEntry, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.reserved_56 = self._io.read_bits_int_be(8)
            if not self.reserved_56 == 0:
                raise kaitaistruct.ValidationNotEqualError(0, self.reserved_56, self._io, u"/types/bitmap_table_entry/seq/0")
            self.ofs_host_cluster_upper = self._io.read_bits_int_be(24)
            self.ofs_host_cluster_lower = self._io.read_bits_int_be(23)
            if not self.ofs_host_cluster_lower == self.ofs_host_cluster_lower - self.ofs_host_cluster_lower % (self._root.cluster_size // 512):
                raise kaitaistruct.ValidationNotEqualError(self.ofs_host_cluster_lower - self.ofs_host_cluster_lower % (self._root.cluster_size // 512), self.ofs_host_cluster_lower, self._io, u"/types/bitmap_table_entry/seq/2")
            self.reserved_1 = self._io.read_bits_int_be(8)
            if not self.reserved_1 == 0:
                raise kaitaistruct.ValidationNotEqualError(0, self.reserved_1, self._io, u"/types/bitmap_table_entry/seq/3")
            self.all_ones = self._io.read_bits_int_be(1) != 0
            if not self.all_ones ==  ((self.all_ones) and (self.ofs_host_cluster == 0)) :
                raise kaitaistruct.ValidationNotEqualError( ((self.all_ones) and (self.ofs_host_cluster == 0)) , self.all_ones, self._io, u"/types/bitmap_table_entry/seq/4")


        def _fetch_instances(self):
            pass
            _ = self.data
            if hasattr(self, '_m_data'):
                pass


        @property
        def data(self):
            """A cluster of bitmap data. Bit x of a byte, counted from the least
            significant, is the x-th of its bits. Bits beyond the end of the
            virtual disk are zero.
            
            .. seealso::
               Bitmap data - https://www.qemu.org/docs/master/interop/qcow2.html
            """
            if hasattr(self, '_m_data'):
                return self._m_data

            if self.ofs_host_cluster != 0:
                pass
                _pos = self._io.pos()
                self._io.seek(self.ofs_host_cluster)
                self._m_data = self._io.read_bytes(self._root.cluster_size)
                self._io.seek(_pos)

            return getattr(self, '_m_data', None)

        @property
        def ofs_host_cluster(self):
            """Where the cluster is, in bytes, aligned to a cluster. 0 if all its
            bits equal `all_ones`.
            """
            if hasattr(self, '_m_ofs_host_cluster'):
                return self._m_ofs_host_cluster

            self._m_ofs_host_cluster = (self.ofs_host_cluster_upper * 4294967296 + self.ofs_host_cluster_lower * 512)
            return getattr(self, '_m_ofs_host_cluster', None)


    class BitmapTablePage(KaitaiStruct):
        """Up to 512 entries of a bitmap table.
        
        .. seealso::
           Bitmap table - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, ofs_table, num_table_entries, page, _io, _parent=None, _root=None):
            super(Qcow2.BitmapTablePage, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.ofs_table = ofs_table
            self.num_table_entries = num_table_entries
            self.page = page
            self._read()

        def _read(self):
            pass


        def _fetch_instances(self):
            pass
            _ = self.entries
            if hasattr(self, '_m_entries'):
                pass
                for i in range(len(self._m_entries)):
                    pass
                    self._m_entries[i]._fetch_instances()



        @property
        def entries(self):
            """The entries."""
            if hasattr(self, '_m_entries'):
                return self._m_entries

            _pos = self._io.pos()
            self._io.seek(self.ofs_table + self.first * 8)
            self._m_entries = []
            for i in range(self.num_entries):
                self._m_entries.append(Qcow2.BitmapTableEntry(self._io, self, self._root))

            self._io.seek(_pos)
            return getattr(self, '_m_entries', None)

        @property
        def first(self):
            """Index of the first entry in the table."""
            if hasattr(self, '_m_first'):
                return self._m_first

            self._m_first = self.page * self._root.entries_per_page
            return getattr(self, '_m_first', None)

        @property
        def num_entries(self):
            """Number of entries of this page."""
            if hasattr(self, '_m_num_entries'):
                return self._m_num_entries

            self._m_num_entries = (self.num_table_entries - self.first if self.num_table_entries - self.first < self._root.entries_per_page else self._root.entries_per_page)
            return getattr(self, '_m_num_entries', None)


    class BitmapsExtension(KaitaiStruct):
        """Where the directory of the persistent bitmaps is.
        
        .. seealso::
           Bitmaps extension - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.BitmapsExtension, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.num_bitmaps = self._io.read_u4be()
            if not self.num_bitmaps >= 1:
                raise kaitaistruct.ValidationLessThanError(1, self.num_bitmaps, self._io, u"/types/bitmaps_extension/seq/0")
            if not self.num_bitmaps <= 65535:
                raise kaitaistruct.ValidationGreaterThanError(65535, self.num_bitmaps, self._io, u"/types/bitmaps_extension/seq/0")
            self.reserved = self._io.read_u4be()
            if not self.reserved == 0:
                raise kaitaistruct.ValidationNotEqualError(0, self.reserved, self._io, u"/types/bitmaps_extension/seq/1")
            self.len_bitmap_directory = self._io.read_u8be()
            if not self.len_bitmap_directory >= 1:
                raise kaitaistruct.ValidationLessThanError(1, self.len_bitmap_directory, self._io, u"/types/bitmaps_extension/seq/2")
            if not self.len_bitmap_directory <= 67107840:
                raise kaitaistruct.ValidationGreaterThanError(67107840, self.len_bitmap_directory, self._io, u"/types/bitmaps_extension/seq/2")
            self.ofs_bitmap_directory = self._io.read_u8be()
            if not self.ofs_bitmap_directory == self.ofs_bitmap_directory - self.ofs_bitmap_directory % self._root.cluster_size:
                raise kaitaistruct.ValidationNotEqualError(self.ofs_bitmap_directory - self.ofs_bitmap_directory % self._root.cluster_size, self.ofs_bitmap_directory, self._io, u"/types/bitmaps_extension/seq/3")


        def _fetch_instances(self):
            pass
            _ = self.bitmap_directory
            if hasattr(self, '_m_bitmap_directory'):
                pass
                self._m_bitmap_directory._fetch_instances()


        @property
        def bitmap_directory(self):
            """The bitmap directory, read no further than its declared length."""
            if hasattr(self, '_m_bitmap_directory'):
                return self._m_bitmap_directory

            io = self._root._io
            _pos = io.pos()
            io.seek(self.ofs_bitmap_directory)
            self._raw__m_bitmap_directory = io.read_bytes(self.len_bitmap_directory)
            _io__raw__m_bitmap_directory = KaitaiStream(BytesIO(self._raw__m_bitmap_directory))
            self._m_bitmap_directory = Qcow2.BitmapDirectory(self.num_bitmaps, _io__raw__m_bitmap_directory, self, self._root)
            io.seek(_pos)
            return getattr(self, '_m_bitmap_directory', None)


    class CompatibleFeatures(KaitaiStruct):
        """Bitmask; unknown bits may be ignored.
        
        .. seealso::
           Header - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.CompatibleFeatures, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.reserved_upper = self._io.read_bits_int_be(32)
            self.reserved_lower = self._io.read_bits_int_be(31)
            self.lazy_refcounts = self._io.read_bits_int_be(1) != 0


        def _fetch_instances(self):
            pass

        @property
        def reserved(self):
            """The reserved bits as one number."""
            if hasattr(self, '_m_reserved'):
                return self._m_reserved

            self._m_reserved = (self.reserved_upper * 2147483648 + self.reserved_lower)
            return getattr(self, '_m_reserved', None)


    class CompressedDescriptor(KaitaiStruct):
        """A guest cluster that is stored compressed. The offset has `62 -
        (cluster_bits - 8)` bits, 49 to 61; the length has the bits between it and
        bit 61.
        
        .. seealso::
           Cluster mapping - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.CompressedDescriptor, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.copied = self._io.read_bits_int_be(1) != 0
            if not self.copied == False:
                raise kaitaistruct.ValidationNotEqualError(False, self.copied, self._io, u"/types/compressed_descriptor/seq/0")
            self.compressed = self._io.read_bits_int_be(1) != 0
            if not self.compressed == True:
                raise kaitaistruct.ValidationNotEqualError(True, self.compressed, self._io, u"/types/compressed_descriptor/seq/1")
            self.length_and_offset = self._io.read_bits_int_be(13)
            if not self.length_and_offset <= (8191 if self.length_and_offset % (1 << self.num_offset_bits) <= 127 else 0):
                raise kaitaistruct.ValidationGreaterThanError((8191 if self.length_and_offset % (1 << self.num_offset_bits) <= 127 else 0), self.length_and_offset, self._io, u"/types/compressed_descriptor/seq/2")
            self.ofs_data_upper = self._io.read_bits_int_be(17)
            self.ofs_data_lower = self._io.read_bits_int_be(32)


        def _fetch_instances(self):
            pass
            _ = self.data
            if hasattr(self, '_m_data'):
                pass


        @property
        def data(self):
            """The compressed data. Decompression stops when it has produced a
            cluster, so that other data may follow in the last sector; the file
            may end within that sector.
            """
            if hasattr(self, '_m_data'):
                return self._m_data

            io = self._root._io
            _pos = io.pos()
            io.seek(self.ofs_data)
            self._m_data = io.read_bytes((self.data_room if self.data_room < self.data_left else self.data_left))
            io.seek(_pos)
            return getattr(self, '_m_data', None)

        @property
        def data_left(self):
            """Number of bytes between the start of the data and the file's end."""
            if hasattr(self, '_m_data_left'):
                return self._m_data_left

            self._m_data_left = (self._root._io.size() - self.ofs_data)
            return getattr(self, '_m_data_left', None)

        @property
        def data_room(self):
            """Length of the data with the rest of its last sector, in bytes."""
            if hasattr(self, '_m_data_room'):
                return self._m_data_room

            self._m_data_room = (self.num_additional_sectors + 1) * 512 - self.ofs_data % 512
            return getattr(self, '_m_data_room', None)

        @property
        def num_additional_sectors(self):
            """Number of sectors of 512 bytes that the data extends over, beyond the
            one that holds its first byte.
            """
            if hasattr(self, '_m_num_additional_sectors'):
                return self._m_num_additional_sectors

            self._m_num_additional_sectors = self.length_and_offset >> self.num_offset_bits
            return getattr(self, '_m_num_additional_sectors', None)

        @property
        def num_offset_bits(self):
            """Number of bits of the offset beyond bit 48."""
            if hasattr(self, '_m_num_offset_bits'):
                return self._m_num_offset_bits

            self._m_num_offset_bits = 21 - self._root.header.cluster_bits
            return getattr(self, '_m_num_offset_bits', None)

        @property
        def ofs_data(self):
            """Where the compressed data starts, in bytes. Of any alignment."""
            if hasattr(self, '_m_ofs_data'):
                return self._m_ofs_data

            self._m_ofs_data = (((self.length_and_offset % (1 << self.num_offset_bits)) * 562949953421312 + self.ofs_data_upper * 4294967296) + self.ofs_data_lower)
            return getattr(self, '_m_ofs_data', None)


    class DataFileName(KaitaiStruct):
        """The external data file.
        
        .. seealso::
           String header extensions - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.DataFileName, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.name = self._io.read_bytes_full()


        def _fetch_instances(self):
            pass

        @property
        def name_str(self):
            """The name as text."""
            if hasattr(self, '_m_name_str'):
                return self._m_name_str

            self._m_name_str = (self.name).decode(u"UTF-8")
            return getattr(self, '_m_name_str', None)


    class EncryptionHeaderPointer(KaitaiStruct):
        """Where the encryption header is. Present exactly if the crypt method is
        LUKS.
        
        .. seealso::
           Full disk encryption header pointer - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.EncryptionHeaderPointer, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.ofs_encryption_header = self._io.read_u8be()
            if not self.ofs_encryption_header == self.ofs_encryption_header - self.ofs_encryption_header % self._root.cluster_size:
                raise kaitaistruct.ValidationNotEqualError(self.ofs_encryption_header - self.ofs_encryption_header % self._root.cluster_size, self.ofs_encryption_header, self._io, u"/types/encryption_header_pointer/seq/0")
            self.len_encryption_header = self._io.read_u8be()


        def _fetch_instances(self):
            pass
            _ = self.luks_header
            if hasattr(self, '_m_luks_header'):
                pass
                self._m_luks_header._fetch_instances()


        @property
        def luks_header(self):
            """The LUKS partition header."""
            if hasattr(self, '_m_luks_header'):
                return self._m_luks_header

            if self._root.header.crypt_method == Qcow2.CryptMethod.luks:
                pass
                io = self._root._io
                _pos = io.pos()
                io.seek(self.ofs_encryption_header)
                self._m_luks_header = Qcow2.LuksHeader(io, self, self._root)
                io.seek(_pos)

            return getattr(self, '_m_luks_header', None)


    class FeatureName(KaitaiStruct):
        """The name of one feature bit.
        
        .. seealso::
           Feature name table - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.FeatureName, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.type = KaitaiStream.resolve_enum(Qcow2.FeatureType, self._io.read_u1())
            if not isinstance(self.type, Qcow2.FeatureType):
                raise kaitaistruct.ValidationNotInEnumError(self.type, self._io, u"/types/feature_name/seq/0")
            self.bit = self._io.read_u1()
            if not self.bit <= 63:
                raise kaitaistruct.ValidationGreaterThanError(63, self.bit, self._io, u"/types/feature_name/seq/1")
            self.name = self._io.read_bytes(46)


        def _fetch_instances(self):
            pass

        @property
        def name_str(self):
            """The name as text, with the zeros that pad it."""
            if hasattr(self, '_m_name_str'):
                return self._m_name_str

            self._m_name_str = (self.name).decode(u"UTF-8")
            return getattr(self, '_m_name_str', None)


    class FeatureNameTable(KaitaiStruct):
        """Names of feature bits, for the messages of programs that do not know the
        features.
        
        .. seealso::
           Feature name table - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.FeatureNameTable, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.entries = []
            for i in range(self._io.size() // 48):
                self.entries.append(Qcow2.FeatureName(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.entries)):
                pass
                self.entries[i]._fetch_instances()



    class GuestAddress(KaitaiStruct):
        """Looks up one address of the virtual disk in the active tables, reading
        nothing else. Not part of the file's structure: a program creates it, with
        the image as its root.
        
        .. seealso::
           Cluster mapping - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, guest_offset, _io, _parent=None, _root=None):
            super(Qcow2.GuestAddress, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.guest_offset = guest_offset
            self._read()

        def _read(self):
            pass


        def _fetch_instances(self):
            pass
            _ = self.l1_entry
            if hasattr(self, '_m_l1_entry'):
                pass
                self._m_l1_entry._fetch_instances()

            _ = self.l2_entry
            if hasattr(self, '_m_l2_entry'):
                pass
                self._m_l2_entry._fetch_instances()


        @property
        def l1_entry(self):
            """The entry of the L1 table, unless the table ends before it."""
            if hasattr(self, '_m_l1_entry'):
                return self._m_l1_entry

            if self.l1_index < self._root.header.num_l1_entries:
                pass
                _pos = self._io.pos()
                self._io.seek(self._root.header.ofs_l1_table + self.l1_index * 8)
                self._m_l1_entry = Qcow2.L1Entry(self._io, self, self._root)
                self._io.seek(_pos)

            return getattr(self, '_m_l1_entry', None)

        @property
        def l1_index(self):
            """Index of the L2 table in the L1 table."""
            if hasattr(self, '_m_l1_index'):
                return self._m_l1_index

            self._m_l1_index = (self.guest_offset // self._root.cluster_size) // self._root.num_l2_entries
            return getattr(self, '_m_l1_index', None)

        @property
        def l2_entry(self):
            """The entry of the L2 table, unless there is no such table."""
            if hasattr(self, '_m_l2_entry'):
                return self._m_l2_entry

            if  ((self.l1_index < self._root.header.num_l1_entries) and (self.l1_entry.ofs_l2_table != 0)) :
                pass
                _pos = self._io.pos()
                self._io.seek(self.l1_entry.ofs_l2_table + self.l2_index * self._root.len_l2_entry)
                self._m_l2_entry = Qcow2.L2Entry(self._io, self, self._root)
                self._io.seek(_pos)

            return getattr(self, '_m_l2_entry', None)

        @property
        def l2_index(self):
            """Index of the cluster in its L2 table."""
            if hasattr(self, '_m_l2_index'):
                return self._m_l2_index

            self._m_l2_index = (self.guest_offset // self._root.cluster_size) % self._root.num_l2_entries
            return getattr(self, '_m_l2_index', None)


    class HeaderAdditional(KaitaiStruct):
        """Bytes 104 to 111, the additional fields that are known, with their
        padding.
        
        .. seealso::
           Additional fields (version 3 and higher) - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.HeaderAdditional, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.compression_type = KaitaiStream.resolve_enum(Qcow2.CompressionType, self._io.read_u1())
            if not isinstance(self.compression_type, Qcow2.CompressionType):
                raise kaitaistruct.ValidationNotInEnumError(self.compression_type, self._io, u"/types/header_additional/seq/0")
            self.padding = self._io.read_bytes(7)
            if not self.padding == b"\x00\x00\x00\x00\x00\x00\x00":
                raise kaitaistruct.ValidationNotEqualError(b"\x00\x00\x00\x00\x00\x00\x00", self.padding, self._io, u"/types/header_additional/seq/1")


        def _fetch_instances(self):
            pass


    class HeaderExtension(KaitaiStruct):
        """One optional section of the header.
        
        .. seealso::
           Header extensions - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.HeaderExtension, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.type = KaitaiStream.resolve_enum(Qcow2.ExtensionType, self._io.read_u4be())
            self.len_data = self._io.read_u4be()
            if not self.len_data <= (4294967295 if self.type == Qcow2.ExtensionType.end_of_extensions else self._io.size() - self._io.pos()):
                raise kaitaistruct.ValidationGreaterThanError((4294967295 if self.type == Qcow2.ExtensionType.end_of_extensions else self._io.size() - self._io.pos()), self.len_data, self._io, u"/types/header_extension/seq/1")
            if self.type != Qcow2.ExtensionType.end_of_extensions:
                pass
                _on = self.type
                if _on == Qcow2.ExtensionType.backing_format:
                    pass
                    self._raw_data = self._io.read_bytes(self.len_data)
                    _io__raw_data = KaitaiStream(BytesIO(self._raw_data))
                    self.data = Qcow2.BackingFormat(_io__raw_data, self, self._root)
                elif _on == Qcow2.ExtensionType.bitmaps:
                    pass
                    self._raw_data = self._io.read_bytes(self.len_data)
                    _io__raw_data = KaitaiStream(BytesIO(self._raw_data))
                    self.data = Qcow2.BitmapsExtension(_io__raw_data, self, self._root)
                elif _on == Qcow2.ExtensionType.data_file:
                    pass
                    self._raw_data = self._io.read_bytes(self.len_data)
                    _io__raw_data = KaitaiStream(BytesIO(self._raw_data))
                    self.data = Qcow2.DataFileName(_io__raw_data, self, self._root)
                elif _on == Qcow2.ExtensionType.encryption_header:
                    pass
                    self._raw_data = self._io.read_bytes(self.len_data)
                    _io__raw_data = KaitaiStream(BytesIO(self._raw_data))
                    self.data = Qcow2.EncryptionHeaderPointer(_io__raw_data, self, self._root)
                elif _on == Qcow2.ExtensionType.feature_name_table:
                    pass
                    self._raw_data = self._io.read_bytes(self.len_data)
                    _io__raw_data = KaitaiStream(BytesIO(self._raw_data))
                    self.data = Qcow2.FeatureNameTable(_io__raw_data, self, self._root)
                else:
                    pass
                    self.data = self._io.read_bytes(self.len_data)

            if self.type != Qcow2.ExtensionType.end_of_extensions:
                pass
                self.padding = self._io.read_bytes((self.len_padding if self.len_padding < self._io.size() - self._io.pos() else self._io.size() - self._io.pos()))



        def _fetch_instances(self):
            pass
            if self.type != Qcow2.ExtensionType.end_of_extensions:
                pass
                _on = self.type
                if _on == Qcow2.ExtensionType.backing_format:
                    pass
                    self.data._fetch_instances()
                elif _on == Qcow2.ExtensionType.bitmaps:
                    pass
                    self.data._fetch_instances()
                elif _on == Qcow2.ExtensionType.data_file:
                    pass
                    self.data._fetch_instances()
                elif _on == Qcow2.ExtensionType.encryption_header:
                    pass
                    self.data._fetch_instances()
                elif _on == Qcow2.ExtensionType.feature_name_table:
                    pass
                    self.data._fetch_instances()
                else:
                    pass

            if self.type != Qcow2.ExtensionType.end_of_extensions:
                pass


        @property
        def len_padding(self):
            """Length of the padding, were there room for it."""
            if hasattr(self, '_m_len_padding'):
                return self._m_len_padding

            self._m_len_padding = (8 - self.len_data % 8) % 8
            return getattr(self, '_m_len_padding', None)


    class HeaderExtensionArea(KaitaiStruct):
        """The list of header extensions. It ends with an extension of type
        `end_of_extensions`, or with its space.
        
        .. seealso::
           Header extensions - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.HeaderExtensionArea, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            if self._io.size() >= 8:
                pass
                self.extensions = []
                i = 0
                while True:
                    _ = Qcow2.HeaderExtension(self._io, self, self._root)
                    self.extensions.append(_)
                    if  ((_.type == Qcow2.ExtensionType.end_of_extensions) or (self._io.size() - self._io.pos() < 8)) :
                        break
                    i += 1



        def _fetch_instances(self):
            pass
            if self._io.size() >= 8:
                pass
                for i in range(len(self.extensions)):
                    pass
                    self.extensions[i]._fetch_instances()




    class HeaderV2(KaitaiStruct):
        """Bytes 0 to 71, which both versions have.
        
        .. seealso::
           Header - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.HeaderV2, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.magic = self._io.read_bytes(4)
            if not self.magic == b"\x51\x46\x49\xFB":
                raise kaitaistruct.ValidationNotEqualError(b"\x51\x46\x49\xFB", self.magic, self._io, u"/types/header_v2/seq/0")
            self.version = KaitaiStream.resolve_enum(Qcow2.Version, self._io.read_u4be())
            if not isinstance(self.version, Qcow2.Version):
                raise kaitaistruct.ValidationNotInEnumError(self.version, self._io, u"/types/header_v2/seq/1")
            self.ofs_backing_file = self._io.read_u8be()
            self.len_backing_file = self._io.read_u4be()
            if not self.len_backing_file <= (4294967295 if self.ofs_backing_file == 0 else 1023):
                raise kaitaistruct.ValidationGreaterThanError((4294967295 if self.ofs_backing_file == 0 else 1023), self.len_backing_file, self._io, u"/types/header_v2/seq/3")
            self.cluster_bits = self._io.read_u4be()
            if not self.cluster_bits >= 9:
                raise kaitaistruct.ValidationLessThanError(9, self.cluster_bits, self._io, u"/types/header_v2/seq/4")
            if not self.cluster_bits <= 21:
                raise kaitaistruct.ValidationGreaterThanError(21, self.cluster_bits, self._io, u"/types/header_v2/seq/4")
            self.size = self._io.read_u8be()
            if not self.size <= 9223372036854775807:
                raise kaitaistruct.ValidationGreaterThanError(9223372036854775807, self.size, self._io, u"/types/header_v2/seq/5")
            self.crypt_method = KaitaiStream.resolve_enum(Qcow2.CryptMethod, self._io.read_u4be())
            if not isinstance(self.crypt_method, Qcow2.CryptMethod):
                raise kaitaistruct.ValidationNotInEnumError(self.crypt_method, self._io, u"/types/header_v2/seq/6")
            self.num_l1_entries = self._io.read_u4be()
            if not self.num_l1_entries <= 4194304:
                raise kaitaistruct.ValidationGreaterThanError(4194304, self.num_l1_entries, self._io, u"/types/header_v2/seq/7")
            self.ofs_l1_table = self._io.read_u8be()
            if not self.ofs_l1_table == self.ofs_l1_table - self.ofs_l1_table % (1 << self.cluster_bits):
                raise kaitaistruct.ValidationNotEqualError(self.ofs_l1_table - self.ofs_l1_table % (1 << self.cluster_bits), self.ofs_l1_table, self._io, u"/types/header_v2/seq/8")
            self.ofs_refcount_table = self._io.read_u8be()
            if not self.ofs_refcount_table == self.ofs_refcount_table - self.ofs_refcount_table % (1 << self.cluster_bits):
                raise kaitaistruct.ValidationNotEqualError(self.ofs_refcount_table - self.ofs_refcount_table % (1 << self.cluster_bits), self.ofs_refcount_table, self._io, u"/types/header_v2/seq/9")
            self.num_refcount_table_clusters = self._io.read_u4be()
            if not self.num_refcount_table_clusters <= 8388608 >> self.cluster_bits:
                raise kaitaistruct.ValidationGreaterThanError(8388608 >> self.cluster_bits, self.num_refcount_table_clusters, self._io, u"/types/header_v2/seq/10")
            self.num_snapshots = self._io.read_u4be()
            if not self.num_snapshots <= 65536:
                raise kaitaistruct.ValidationGreaterThanError(65536, self.num_snapshots, self._io, u"/types/header_v2/seq/11")
            self.ofs_snapshots = self._io.read_u8be()
            if not self.ofs_snapshots == self.ofs_snapshots - self.ofs_snapshots % (1 << self.cluster_bits):
                raise kaitaistruct.ValidationNotEqualError(self.ofs_snapshots - self.ofs_snapshots % (1 << self.cluster_bits), self.ofs_snapshots, self._io, u"/types/header_v2/seq/12")


        def _fetch_instances(self):
            pass


    class HeaderV3Tail(KaitaiStruct):
        """Bytes 72 to 103, which only version 3 has.
        
        .. seealso::
           Header - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.HeaderV3Tail, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.incompatible_features = Qcow2.IncompatibleFeatures(self._io, self, self._root)
            self.compatible_features = Qcow2.CompatibleFeatures(self._io, self, self._root)
            self.autoclear_features = Qcow2.AutoclearFeatures(self._io, self, self._root)
            self.refcount_order = self._io.read_u4be()
            if not self.refcount_order <= 6:
                raise kaitaistruct.ValidationGreaterThanError(6, self.refcount_order, self._io, u"/types/header_v3_tail/seq/3")
            self.len_header = self._io.read_u4be()
            if not self.len_header == (104 if self.len_header < 104 else (self._root.cluster_size if self.len_header > self._root.cluster_size else self.len_header - self.len_header % 8)):
                raise kaitaistruct.ValidationNotEqualError((104 if self.len_header < 104 else (self._root.cluster_size if self.len_header > self._root.cluster_size else self.len_header - self.len_header % 8)), self.len_header, self._io, u"/types/header_v3_tail/seq/4")


        def _fetch_instances(self):
            pass
            self.incompatible_features._fetch_instances()
            self.compatible_features._fetch_instances()
            self.autoclear_features._fetch_instances()


    class HostCluster(KaitaiStruct):
        """Looks up the refcount of one host cluster, reading nothing else. Not part
        of the file's structure: a program creates it, with the image as its root.
        
        .. seealso::
           Host cluster management - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, index, _io, _parent=None, _root=None):
            super(Qcow2.HostCluster, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.index = index
            self._read()

        def _read(self):
            pass


        def _fetch_instances(self):
            pass
            _ = self.refcount_1
            if hasattr(self, '_m_refcount_1'):
                pass

            _ = self.refcount_2
            if hasattr(self, '_m_refcount_2'):
                pass

            _ = self.refcount_4
            if hasattr(self, '_m_refcount_4'):
                pass

            _ = self.refcount_8
            if hasattr(self, '_m_refcount_8'):
                pass

            _ = self.table_entry
            if hasattr(self, '_m_table_entry'):
                pass
                self._m_table_entry._fetch_instances()


        @property
        def has_block(self):
            """Whether there is a refcount block for this cluster. If not, its
            refcount is 0.
            """
            if hasattr(self, '_m_has_block'):
                return self._m_has_block

            self._m_has_block =  ((self.refcount_table_index < self.num_refcount_table_entries) and (self.table_entry.ofs_refcount_block != 0)) 
            return getattr(self, '_m_has_block', None)

        @property
        def num_refcount_block_entries(self):
            """Number of refcounts in a block."""
            if hasattr(self, '_m_num_refcount_block_entries'):
                return self._m_num_refcount_block_entries

            self._m_num_refcount_block_entries = (self._root.cluster_size * 8) // self.refcount_bits
            return getattr(self, '_m_num_refcount_block_entries', None)

        @property
        def num_refcount_table_entries(self):
            """Number of entries of the refcount table."""
            if hasattr(self, '_m_num_refcount_table_entries'):
                return self._m_num_refcount_table_entries

            self._m_num_refcount_table_entries = self._root.header.num_refcount_table_clusters * (self._root.cluster_size // 8)
            return getattr(self, '_m_num_refcount_table_entries', None)

        @property
        def ofs_refcount(self):
            """Where the first byte is that holds the refcount."""
            if hasattr(self, '_m_ofs_refcount'):
                return self._m_ofs_refcount

            if self.has_block:
                pass
                self._m_ofs_refcount = (self.table_entry.ofs_refcount_block + (self.refcount_block_index * self.refcount_bits) // 8)

            return getattr(self, '_m_ofs_refcount', None)

        @property
        def refcount(self):
            """Number of references to the cluster."""
            if hasattr(self, '_m_refcount'):
                return self._m_refcount

            self._m_refcount = (0 if (not (self.has_block)) else (self.refcount_8 if self._root.refcount_order == 6 else (self.refcount_4 if self._root.refcount_order == 5 else (self.refcount_2 if self._root.refcount_order == 4 else self.refcount_in_byte))))
            return getattr(self, '_m_refcount', None)

        @property
        def refcount_1(self):
            """The byte that holds the refcount, where it is no longer than that."""
            if hasattr(self, '_m_refcount_1'):
                return self._m_refcount_1

            if  ((self.has_block) and (self._root.refcount_order <= 3)) :
                pass
                _pos = self._io.pos()
                self._io.seek(self.ofs_refcount)
                self._m_refcount_1 = self._io.read_u1()
                self._io.seek(_pos)

            return getattr(self, '_m_refcount_1', None)

        @property
        def refcount_2(self):
            """A refcount of 16 bits."""
            if hasattr(self, '_m_refcount_2'):
                return self._m_refcount_2

            if  ((self.has_block) and (self._root.refcount_order == 4)) :
                pass
                _pos = self._io.pos()
                self._io.seek(self.ofs_refcount)
                self._m_refcount_2 = self._io.read_u2be()
                self._io.seek(_pos)

            return getattr(self, '_m_refcount_2', None)

        @property
        def refcount_4(self):
            """A refcount of 32 bits."""
            if hasattr(self, '_m_refcount_4'):
                return self._m_refcount_4

            if  ((self.has_block) and (self._root.refcount_order == 5)) :
                pass
                _pos = self._io.pos()
                self._io.seek(self.ofs_refcount)
                self._m_refcount_4 = self._io.read_u4be()
                self._io.seek(_pos)

            return getattr(self, '_m_refcount_4', None)

        @property
        def refcount_8(self):
            """A refcount of 64 bits."""
            if hasattr(self, '_m_refcount_8'):
                return self._m_refcount_8

            if  ((self.has_block) and (self._root.refcount_order == 6)) :
                pass
                _pos = self._io.pos()
                self._io.seek(self.ofs_refcount)
                self._m_refcount_8 = self._io.read_u8be()
                self._io.seek(_pos)

            return getattr(self, '_m_refcount_8', None)

        @property
        def refcount_bit(self):
            """Number of the lowest bit of the refcount in its byte."""
            if hasattr(self, '_m_refcount_bit'):
                return self._m_refcount_bit

            self._m_refcount_bit = (self.refcount_block_index * self.refcount_bits) % 8
            return getattr(self, '_m_refcount_bit', None)

        @property
        def refcount_bits(self):
            """Width of a refcount."""
            if hasattr(self, '_m_refcount_bits'):
                return self._m_refcount_bits

            self._m_refcount_bits = 1 << self._root.refcount_order
            return getattr(self, '_m_refcount_bits', None)

        @property
        def refcount_block_index(self):
            """Index of the refcount in the block."""
            if hasattr(self, '_m_refcount_block_index'):
                return self._m_refcount_block_index

            self._m_refcount_block_index = self.index % self.num_refcount_block_entries
            return getattr(self, '_m_refcount_block_index', None)

        @property
        def refcount_in_byte(self):
            """A refcount of up to eight bits."""
            if hasattr(self, '_m_refcount_in_byte'):
                return self._m_refcount_in_byte

            if  ((self.has_block) and (self._root.refcount_order <= 3)) :
                pass
                self._m_refcount_in_byte = self.refcount_1 >> self.refcount_bit & (1 << self.refcount_bits) - 1

            return getattr(self, '_m_refcount_in_byte', None)

        @property
        def refcount_table_index(self):
            """Index of the block in the refcount table."""
            if hasattr(self, '_m_refcount_table_index'):
                return self._m_refcount_table_index

            self._m_refcount_table_index = self.index // self.num_refcount_block_entries
            return getattr(self, '_m_refcount_table_index', None)

        @property
        def table_entry(self):
            """The entry of the refcount table, unless the table ends before it."""
            if hasattr(self, '_m_table_entry'):
                return self._m_table_entry

            if self.refcount_table_index < self.num_refcount_table_entries:
                pass
                _pos = self._io.pos()
                self._io.seek(self._root.header.ofs_refcount_table + self.refcount_table_index * 8)
                self._m_table_entry = Qcow2.RefcountTableEntry(self._io, self, self._root)
                self._io.seek(_pos)

            return getattr(self, '_m_table_entry', None)


    class IncompatibleFeatures(KaitaiStruct):
        """Bitmask; an image with an unknown bit set must not be opened.
        
        .. seealso::
           Header - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.IncompatibleFeatures, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.reserved_upper = self._io.read_bits_int_be(32)
            if not self.reserved_upper == 0:
                raise kaitaistruct.ValidationNotEqualError(0, self.reserved_upper, self._io, u"/types/incompatible_features/seq/0")
            self.reserved_lower = self._io.read_bits_int_be(27)
            if not self.reserved_lower == 0:
                raise kaitaistruct.ValidationNotEqualError(0, self.reserved_lower, self._io, u"/types/incompatible_features/seq/1")
            self.extended_l2 = self._io.read_bits_int_be(1) != 0
            self.compression_type = self._io.read_bits_int_be(1) != 0
            self.data_file = self._io.read_bits_int_be(1) != 0
            self.corrupt = self._io.read_bits_int_be(1) != 0
            self.dirty = self._io.read_bits_int_be(1) != 0


        def _fetch_instances(self):
            pass

        @property
        def reserved(self):
            """The reserved bits as one number."""
            if hasattr(self, '_m_reserved'):
                return self._m_reserved

            self._m_reserved = (self.reserved_upper * 134217728 + self.reserved_lower)
            return getattr(self, '_m_reserved', None)


    class L1Entry(KaitaiStruct):
        """Where one L2 table is.
        
        .. seealso::
           Cluster mapping - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.L1Entry, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.copied = self._io.read_bits_int_be(1) != 0
            self.reserved_56 = self._io.read_bits_int_be(7)
            if not self.reserved_56 == 0:
                raise kaitaistruct.ValidationNotEqualError(0, self.reserved_56, self._io, u"/types/l1_entry/seq/1")
            self.ofs_l2_table_upper = self._io.read_bits_int_be(24)
            self.ofs_l2_table_lower = self._io.read_bits_int_be(23)
            if not self.ofs_l2_table_lower == self.ofs_l2_table_lower - self.ofs_l2_table_lower % (self._root.cluster_size // 512):
                raise kaitaistruct.ValidationNotEqualError(self.ofs_l2_table_lower - self.ofs_l2_table_lower % (self._root.cluster_size // 512), self.ofs_l2_table_lower, self._io, u"/types/l1_entry/seq/3")
            self.reserved_0 = self._io.read_bits_int_be(9)
            if not self.reserved_0 == 0:
                raise kaitaistruct.ValidationNotEqualError(0, self.reserved_0, self._io, u"/types/l1_entry/seq/4")


        def _fetch_instances(self):
            pass
            _ = self.l2_table
            if hasattr(self, '_m_l2_table'):
                pass
                self._m_l2_table._fetch_instances()


        @property
        def l2_table(self):
            """The L2 table, one cluster long."""
            if hasattr(self, '_m_l2_table'):
                return self._m_l2_table

            if self.ofs_l2_table != 0:
                pass
                _pos = self._io.pos()
                self._io.seek(self.ofs_l2_table)
                self._m_l2_table = Qcow2.L2Table(self.ofs_l2_table, self._io, self, self._root)
                self._io.seek(_pos)

            return getattr(self, '_m_l2_table', None)

        @property
        def ofs_l2_table(self):
            """Where the L2 table starts, in bytes, aligned to a cluster. 0 if there
            is none: all its clusters are unallocated.
            """
            if hasattr(self, '_m_ofs_l2_table'):
                return self._m_ofs_l2_table

            self._m_ofs_l2_table = (self.ofs_l2_table_upper * 4294967296 + self.ofs_l2_table_lower * 512)
            return getattr(self, '_m_ofs_l2_table', None)


    class L1Table(KaitaiStruct):
        """An L1 table, as pages.
        
        .. seealso::
           Cluster mapping - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, ofs_table, num_entries, _io, _parent=None, _root=None):
            super(Qcow2.L1Table, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.ofs_table = ofs_table
            self.num_entries = num_entries
            self._read()

        def _read(self):
            pass


        def _fetch_instances(self):
            pass
            _ = self.pages
            if hasattr(self, '_m_pages'):
                pass
                for i in range(len(self._m_pages)):
                    pass
                    self._m_pages[i]._fetch_instances()



        @property
        def pages(self):
            """The pages of the table."""
            if hasattr(self, '_m_pages'):
                return self._m_pages

            _pos = self._io.pos()
            self._io.seek(self.ofs_table)
            self._m_pages = []
            for i in range(((self.num_entries + self._root.entries_per_page) - 1) // self._root.entries_per_page):
                self._m_pages.append(Qcow2.L1TablePage(self.ofs_table, self.num_entries, i, self._io, self, self._root))

            self._io.seek(_pos)
            return getattr(self, '_m_pages', None)


    class L1TablePage(KaitaiStruct):
        """Up to 512 entries of an L1 table.
        
        .. seealso::
           Cluster mapping - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, ofs_table, num_table_entries, page, _io, _parent=None, _root=None):
            super(Qcow2.L1TablePage, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.ofs_table = ofs_table
            self.num_table_entries = num_table_entries
            self.page = page
            self._read()

        def _read(self):
            pass


        def _fetch_instances(self):
            pass
            _ = self.entries
            if hasattr(self, '_m_entries'):
                pass
                for i in range(len(self._m_entries)):
                    pass
                    self._m_entries[i]._fetch_instances()



        @property
        def entries(self):
            """The entries."""
            if hasattr(self, '_m_entries'):
                return self._m_entries

            _pos = self._io.pos()
            self._io.seek(self.ofs_table + self.first * 8)
            self._m_entries = []
            for i in range(self.num_entries):
                self._m_entries.append(Qcow2.L1Entry(self._io, self, self._root))

            self._io.seek(_pos)
            return getattr(self, '_m_entries', None)

        @property
        def first(self):
            """Index of the first entry in the table."""
            if hasattr(self, '_m_first'):
                return self._m_first

            self._m_first = self.page * self._root.entries_per_page
            return getattr(self, '_m_first', None)

        @property
        def num_entries(self):
            """Number of entries of this page."""
            if hasattr(self, '_m_num_entries'):
                return self._m_num_entries

            self._m_num_entries = (self.num_table_entries - self.first if self.num_table_entries - self.first < self._root.entries_per_page else self._root.entries_per_page)
            return getattr(self, '_m_num_entries', None)


    class L2Entry(KaitaiStruct):
        """How one guest cluster is stored. 64 bits, or 128 bits with extended L2
        entries.
        
        .. seealso::
           Cluster mapping - https://www.qemu.org/docs/master/interop/qcow2.html
        
        
        .. seealso::
           Extended L2 Entries - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.L2Entry, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            _on = self.is_compressed
            if _on == False:
                pass
                self.descriptor = Qcow2.StandardL2Entry(self._io, self, self._root)
            elif _on == True:
                pass
                self.descriptor = Qcow2.CompressedDescriptor(self._io, self, self._root)
            if self._root.has_extended_l2:
                pass
                self.subclusters = Qcow2.SubclusterBitmap(self._io, self, self._root)



        def _fetch_instances(self):
            pass
            _on = self.is_compressed
            if _on == False:
                pass
                self.descriptor._fetch_instances()
            elif _on == True:
                pass
                self.descriptor._fetch_instances()
            if self._root.has_extended_l2:
                pass
                self.subclusters._fetch_instances()

            _ = self.first_byte
            if hasattr(self, '_m_first_byte'):
                pass


        @property
        def first_byte(self):
            """Bits 56 to 63 of the descriptor, looked at before the form is known.
            """
            if hasattr(self, '_m_first_byte'):
                return self._m_first_byte

            _pos = self._io.pos()
            self._io.seek(self._io.pos())
            self._m_first_byte = self._io.read_u1()
            self._io.seek(_pos)
            return getattr(self, '_m_first_byte', None)

        @property
        def is_compressed(self):
            """Bit 62 of the descriptor."""
            if hasattr(self, '_m_is_compressed'):
                return self._m_is_compressed

            self._m_is_compressed = self.first_byte & 64 != 0
            return getattr(self, '_m_is_compressed', None)


    class L2Table(KaitaiStruct):
        """An L2 table, as pages.
        
        .. seealso::
           Cluster mapping - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, ofs_table, _io, _parent=None, _root=None):
            super(Qcow2.L2Table, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.ofs_table = ofs_table
            self._read()

        def _read(self):
            pass


        def _fetch_instances(self):
            pass
            _ = self.pages
            if hasattr(self, '_m_pages'):
                pass
                for i in range(len(self._m_pages)):
                    pass
                    self._m_pages[i]._fetch_instances()



        @property
        def pages(self):
            """The pages of the table."""
            if hasattr(self, '_m_pages'):
                return self._m_pages

            _pos = self._io.pos()
            self._io.seek(self.ofs_table)
            self._m_pages = []
            for i in range(((self._root.num_l2_entries + self._root.entries_per_page) - 1) // self._root.entries_per_page):
                self._m_pages.append(Qcow2.L2TablePage(self.ofs_table, i, self._io, self, self._root))

            self._io.seek(_pos)
            return getattr(self, '_m_pages', None)


    class L2TablePage(KaitaiStruct):
        """Up to 512 entries of an L2 table.
        
        .. seealso::
           Cluster mapping - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, ofs_table, page, _io, _parent=None, _root=None):
            super(Qcow2.L2TablePage, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.ofs_table = ofs_table
            self.page = page
            self._read()

        def _read(self):
            pass


        def _fetch_instances(self):
            pass
            _ = self.entries
            if hasattr(self, '_m_entries'):
                pass
                for i in range(len(self._m_entries)):
                    pass
                    self._m_entries[i]._fetch_instances()



        @property
        def entries(self):
            """The entries."""
            if hasattr(self, '_m_entries'):
                return self._m_entries

            _pos = self._io.pos()
            self._io.seek(self.ofs_table + self.first * self._root.len_l2_entry)
            self._m_entries = []
            for i in range(self.num_entries):
                self._m_entries.append(Qcow2.L2Entry(self._io, self, self._root))

            self._io.seek(_pos)
            return getattr(self, '_m_entries', None)

        @property
        def first(self):
            """Index of the first entry in the table."""
            if hasattr(self, '_m_first'):
                return self._m_first

            self._m_first = self.page * self._root.entries_per_page
            return getattr(self, '_m_first', None)

        @property
        def num_entries(self):
            """Number of entries of this page."""
            if hasattr(self, '_m_num_entries'):
                return self._m_num_entries

            self._m_num_entries = (self._root.num_l2_entries - self.first if self._root.num_l2_entries - self.first < self._root.entries_per_page else self._root.entries_per_page)
            return getattr(self, '_m_num_entries', None)


    class LuksHeader(KaitaiStruct):
        """The first 592 bytes of the encryption header: a LUKS partition header,
        version 1. QEMU checks the bounds given here.
        
        .. seealso::
           Full disk encryption header pointer - https://www.qemu.org/docs/master/interop/qcow2.html
        
        
        .. seealso::
           LUKS On-Disk Format 1.2 - https://gitlab.com/cryptsetup/cryptsetup/-/wikis/LUKS-standard/on-disk-format.pdf
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.LuksHeader, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.magic = self._io.read_bytes(6)
            if not self.magic == b"\x4C\x55\x4B\x53\xBA\xBE":
                raise kaitaistruct.ValidationNotEqualError(b"\x4C\x55\x4B\x53\xBA\xBE", self.magic, self._io, u"/types/luks_header/seq/0")
            self.version = self._io.read_u2be()
            if not self.version == 1:
                raise kaitaistruct.ValidationNotEqualError(1, self.version, self._io, u"/types/luks_header/seq/1")
            self.cipher_name = self._io.read_bytes(32)
            self.cipher_mode = self._io.read_bytes(32)
            self.hash_spec = self._io.read_bytes(32)
            self.ofs_payload = self._io.read_u4be()
            if not self.ofs_payload >= 8:
                raise kaitaistruct.ValidationLessThanError(8, self.ofs_payload, self._io, u"/types/luks_header/seq/5")
            self.len_key = self._io.read_u4be()
            if not self.len_key >= 1:
                raise kaitaistruct.ValidationLessThanError(1, self.len_key, self._io, u"/types/luks_header/seq/6")
            if not self.len_key <= 64:
                raise kaitaistruct.ValidationGreaterThanError(64, self.len_key, self._io, u"/types/luks_header/seq/6")
            self.mk_digest = self._io.read_bytes(20)
            self.mk_digest_salt = self._io.read_bytes(32)
            self.num_mk_digest_iterations = self._io.read_u4be()
            if not self.num_mk_digest_iterations >= 1:
                raise kaitaistruct.ValidationLessThanError(1, self.num_mk_digest_iterations, self._io, u"/types/luks_header/seq/9")
            self.uuid = self._io.read_bytes(40)
            self.key_slots = []
            for i in range(8):
                self.key_slots.append(Qcow2.LuksKeySlot(self._io, self, self._root))



        def _fetch_instances(self):
            pass
            for i in range(len(self.key_slots)):
                pass
                self.key_slots[i]._fetch_instances()



    class LuksKeySlot(KaitaiStruct):
        """A copy of the master key, encrypted with one passphrase.
        
        .. seealso::
           LUKS On-Disk Format 1.2 - https://gitlab.com/cryptsetup/cryptsetup/-/wikis/LUKS-standard/on-disk-format.pdf
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.LuksKeySlot, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.active = KaitaiStream.resolve_enum(Qcow2.LuksKeySlotState, self._io.read_u4be())
            if not isinstance(self.active, Qcow2.LuksKeySlotState):
                raise kaitaistruct.ValidationNotInEnumError(self.active, self._io, u"/types/luks_key_slot/seq/0")
            self.num_iterations = self._io.read_u4be()
            if not self.num_iterations >= (0 if self.active == Qcow2.LuksKeySlotState.disabled else 1):
                raise kaitaistruct.ValidationLessThanError((0 if self.active == Qcow2.LuksKeySlotState.disabled else 1), self.num_iterations, self._io, u"/types/luks_key_slot/seq/1")
            self.salt = self._io.read_bytes(32)
            self.ofs_key_material = self._io.read_u4be()
            if not self.ofs_key_material >= 8:
                raise kaitaistruct.ValidationLessThanError(8, self.ofs_key_material, self._io, u"/types/luks_key_slot/seq/3")
            self.num_stripes = self._io.read_u4be()
            if not self.num_stripes == 4000:
                raise kaitaistruct.ValidationNotEqualError(4000, self.num_stripes, self._io, u"/types/luks_key_slot/seq/4")


        def _fetch_instances(self):
            pass
            _ = self.key_material
            if hasattr(self, '_m_key_material'):
                pass


        @property
        def key_material(self):
            """The master key, split into stripes and encrypted."""
            if hasattr(self, '_m_key_material'):
                return self._m_key_material

            if self.active == Qcow2.LuksKeySlotState.enabled:
                pass
                io = self._root._io
                _pos = io.pos()
                io.seek(self._parent._parent.ofs_encryption_header + self.ofs_key_material * 512)
                self._m_key_material = io.read_bytes(self._parent.len_key * self.num_stripes)
                io.seek(_pos)

            return getattr(self, '_m_key_material', None)


    class RefcountBlock(KaitaiStruct):
        """The second level of the reference counts, as pages of groups. A group is
        the least number of whole bytes.
        
        .. seealso::
           Host cluster management - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, ofs_block, _io, _parent=None, _root=None):
            super(Qcow2.RefcountBlock, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.ofs_block = ofs_block
            self._read()

        def _read(self):
            pass


        def _fetch_instances(self):
            pass
            _ = self.pages
            if hasattr(self, '_m_pages'):
                pass
                for i in range(len(self._m_pages)):
                    pass
                    self._m_pages[i]._fetch_instances()



        @property
        def len_group(self):
            """Length of a group in bytes."""
            if hasattr(self, '_m_len_group'):
                return self._m_len_group

            self._m_len_group = (1 if self._root.refcount_order <= 3 else 1 << self._root.refcount_order - 3)
            return getattr(self, '_m_len_group', None)

        @property
        def num_groups(self):
            """Number of groups."""
            if hasattr(self, '_m_num_groups'):
                return self._m_num_groups

            self._m_num_groups = self._root.cluster_size // self.len_group
            return getattr(self, '_m_num_groups', None)

        @property
        def pages(self):
            """The pages of the block."""
            if hasattr(self, '_m_pages'):
                return self._m_pages

            _pos = self._io.pos()
            self._io.seek(self.ofs_block)
            self._m_pages = []
            for i in range(((self.num_groups + self._root.entries_per_page) - 1) // self._root.entries_per_page):
                self._m_pages.append(Qcow2.RefcountBlockPage(self.ofs_block, self.len_group, self.num_groups, i, self._io, self, self._root))

            self._io.seek(_pos)
            return getattr(self, '_m_pages', None)


    class RefcountBlockPage(KaitaiStruct):
        """Up to 512 groups of refcounts.
        
        .. seealso::
           Host cluster management - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, ofs_block, len_group, num_block_groups, page, _io, _parent=None, _root=None):
            super(Qcow2.RefcountBlockPage, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.ofs_block = ofs_block
            self.len_group = len_group
            self.num_block_groups = num_block_groups
            self.page = page
            self._read()

        def _read(self):
            pass


        def _fetch_instances(self):
            pass
            _ = self.entries
            if hasattr(self, '_m_entries'):
                pass
                for i in range(len(self._m_entries)):
                    pass
                    _on = self._root.refcount_order
                    if _on == 0:
                        pass
                        self._m_entries[i]._fetch_instances()
                    elif _on == 1:
                        pass
                        self._m_entries[i]._fetch_instances()
                    elif _on == 2:
                        pass
                        self._m_entries[i]._fetch_instances()
                    elif _on == 3:
                        pass
                        self._m_entries[i]._fetch_instances()
                    elif _on == 4:
                        pass
                        self._m_entries[i]._fetch_instances()
                    elif _on == 5:
                        pass
                        self._m_entries[i]._fetch_instances()
                    elif _on == 6:
                        pass
                        self._m_entries[i]._fetch_instances()



        @property
        def entries(self):
            """The groups."""
            if hasattr(self, '_m_entries'):
                return self._m_entries

            _pos = self._io.pos()
            self._io.seek(self.ofs_block + self.first * self.len_group)
            self._m_entries = []
            for i in range(self.num_entries):
                _on = self._root.refcount_order
                if _on == 0:
                    pass
                    self._m_entries.append(Qcow2.RefcountGroup1(self._io, self, self._root))
                elif _on == 1:
                    pass
                    self._m_entries.append(Qcow2.RefcountGroup2(self._io, self, self._root))
                elif _on == 2:
                    pass
                    self._m_entries.append(Qcow2.RefcountGroup4(self._io, self, self._root))
                elif _on == 3:
                    pass
                    self._m_entries.append(Qcow2.RefcountGroup8(self._io, self, self._root))
                elif _on == 4:
                    pass
                    self._m_entries.append(Qcow2.RefcountGroup16(self._io, self, self._root))
                elif _on == 5:
                    pass
                    self._m_entries.append(Qcow2.RefcountGroup32(self._io, self, self._root))
                elif _on == 6:
                    pass
                    self._m_entries.append(Qcow2.RefcountGroup64(self._io, self, self._root))

            self._io.seek(_pos)
            return getattr(self, '_m_entries', None)

        @property
        def first(self):
            """Index of the first group in the block."""
            if hasattr(self, '_m_first'):
                return self._m_first

            self._m_first = self.page * self._root.entries_per_page
            return getattr(self, '_m_first', None)

        @property
        def num_entries(self):
            """Number of groups of this page."""
            if hasattr(self, '_m_num_entries'):
                return self._m_num_entries

            self._m_num_entries = (self.num_block_groups - self.first if self.num_block_groups - self.first < self._root.entries_per_page else self._root.entries_per_page)
            return getattr(self, '_m_num_entries', None)


    class RefcountGroup1(KaitaiStruct):
        """Eight refcounts of one bit. Bit 0, the least significant, belongs to the
        first cluster.
        
        .. seealso::
           Host cluster management - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.RefcountGroup1, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.refcount_0 = self._io.read_bits_int_le(1) != 0
            self.refcount_1 = self._io.read_bits_int_le(1) != 0
            self.refcount_2 = self._io.read_bits_int_le(1) != 0
            self.refcount_3 = self._io.read_bits_int_le(1) != 0
            self.refcount_4 = self._io.read_bits_int_le(1) != 0
            self.refcount_5 = self._io.read_bits_int_le(1) != 0
            self.refcount_6 = self._io.read_bits_int_le(1) != 0
            self.refcount_7 = self._io.read_bits_int_le(1) != 0


        def _fetch_instances(self):
            pass


    class RefcountGroup16(KaitaiStruct):
        """A refcount of 16 bits, the only width of version 2 and the usual one of
        version 3.
        
        .. seealso::
           Host cluster management - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.RefcountGroup16, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.refcount_0 = self._io.read_u2be()


        def _fetch_instances(self):
            pass


    class RefcountGroup2(KaitaiStruct):
        """Four refcounts of two bits. Bits 0 and 1, the least significant, belong to
        the first cluster.
        
        .. seealso::
           Host cluster management - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.RefcountGroup2, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.refcount_0 = self._io.read_bits_int_le(2)
            self.refcount_1 = self._io.read_bits_int_le(2)
            self.refcount_2 = self._io.read_bits_int_le(2)
            self.refcount_3 = self._io.read_bits_int_le(2)


        def _fetch_instances(self):
            pass


    class RefcountGroup32(KaitaiStruct):
        """A refcount of 32 bits.
        
        .. seealso::
           Host cluster management - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.RefcountGroup32, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.refcount_0 = self._io.read_u4be()


        def _fetch_instances(self):
            pass


    class RefcountGroup4(KaitaiStruct):
        """Two refcounts of four bits. Bits 0 to 3, the least significant, belong to
        the first cluster.
        
        .. seealso::
           Host cluster management - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.RefcountGroup4, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.refcount_0 = self._io.read_bits_int_le(4)
            self.refcount_1 = self._io.read_bits_int_le(4)


        def _fetch_instances(self):
            pass


    class RefcountGroup64(KaitaiStruct):
        """A refcount of 64 bits.
        
        .. seealso::
           Host cluster management - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.RefcountGroup64, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.refcount_0 = self._io.read_u8be()


        def _fetch_instances(self):
            pass


    class RefcountGroup8(KaitaiStruct):
        """A refcount of eight bits.
        
        .. seealso::
           Host cluster management - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.RefcountGroup8, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.refcount_0 = self._io.read_u1()


        def _fetch_instances(self):
            pass


    class RefcountTable(KaitaiStruct):
        """The first level of the reference counts, as pages.
        
        .. seealso::
           Host cluster management - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, ofs_table, num_entries, _io, _parent=None, _root=None):
            super(Qcow2.RefcountTable, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.ofs_table = ofs_table
            self.num_entries = num_entries
            self._read()

        def _read(self):
            pass


        def _fetch_instances(self):
            pass
            _ = self.pages
            if hasattr(self, '_m_pages'):
                pass
                for i in range(len(self._m_pages)):
                    pass
                    self._m_pages[i]._fetch_instances()



        @property
        def num_pages(self):
            """Number of pages."""
            if hasattr(self, '_m_num_pages'):
                return self._m_num_pages

            self._m_num_pages = ((self.num_entries + self._root.entries_per_page) - 1) // self._root.entries_per_page
            return getattr(self, '_m_num_pages', None)

        @property
        def pages(self):
            """The pages of the table."""
            if hasattr(self, '_m_pages'):
                return self._m_pages

            _pos = self._io.pos()
            self._io.seek(self.ofs_table)
            self._m_pages = []
            for i in range(self.num_pages):
                self._m_pages.append(Qcow2.RefcountTablePage(self.ofs_table, self.num_entries, i, self._io, self, self._root))

            self._io.seek(_pos)
            return getattr(self, '_m_pages', None)


    class RefcountTableEntry(KaitaiStruct):
        """Where one refcount block is.
        
        .. seealso::
           Host cluster management - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.RefcountTableEntry, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.ofs_refcount_block_upper = self._io.read_bits_int_be(32)
            self.ofs_refcount_block_lower = self._io.read_bits_int_be(23)
            if not self.ofs_refcount_block_lower == self.ofs_refcount_block_lower - self.ofs_refcount_block_lower % (self._root.cluster_size // 512):
                raise kaitaistruct.ValidationNotEqualError(self.ofs_refcount_block_lower - self.ofs_refcount_block_lower % (self._root.cluster_size // 512), self.ofs_refcount_block_lower, self._io, u"/types/refcount_table_entry/seq/1")
            self.reserved_0 = self._io.read_bits_int_be(9)
            if not self.reserved_0 == 0:
                raise kaitaistruct.ValidationNotEqualError(0, self.reserved_0, self._io, u"/types/refcount_table_entry/seq/2")


        def _fetch_instances(self):
            pass
            _ = self.refcount_block
            if hasattr(self, '_m_refcount_block'):
                pass
                self._m_refcount_block._fetch_instances()


        @property
        def ofs_refcount_block(self):
            """Where the refcount block starts, in bytes, aligned to a cluster. 0 if
            there is none: all the refcounts it would hold are 0.
            """
            if hasattr(self, '_m_ofs_refcount_block'):
                return self._m_ofs_refcount_block

            self._m_ofs_refcount_block = (self.ofs_refcount_block_upper * 4294967296 + self.ofs_refcount_block_lower * 512)
            return getattr(self, '_m_ofs_refcount_block', None)

        @property
        def refcount_block(self):
            """The refcount block, one cluster long."""
            if hasattr(self, '_m_refcount_block'):
                return self._m_refcount_block

            if self.ofs_refcount_block != 0:
                pass
                _pos = self._io.pos()
                self._io.seek(self.ofs_refcount_block)
                self._m_refcount_block = Qcow2.RefcountBlock(self.ofs_refcount_block, self._io, self, self._root)
                self._io.seek(_pos)

            return getattr(self, '_m_refcount_block', None)


    class RefcountTablePage(KaitaiStruct):
        """Up to 512 entries of the refcount table.
        
        .. seealso::
           Host cluster management - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, ofs_table, num_table_entries, page, _io, _parent=None, _root=None):
            super(Qcow2.RefcountTablePage, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self.ofs_table = ofs_table
            self.num_table_entries = num_table_entries
            self.page = page
            self._read()

        def _read(self):
            pass


        def _fetch_instances(self):
            pass
            _ = self.entries
            if hasattr(self, '_m_entries'):
                pass
                for i in range(len(self._m_entries)):
                    pass
                    self._m_entries[i]._fetch_instances()



        @property
        def entries(self):
            """The entries."""
            if hasattr(self, '_m_entries'):
                return self._m_entries

            _pos = self._io.pos()
            self._io.seek(self.ofs_table + self.first * 8)
            self._m_entries = []
            for i in range(self.num_entries):
                self._m_entries.append(Qcow2.RefcountTableEntry(self._io, self, self._root))

            self._io.seek(_pos)
            return getattr(self, '_m_entries', None)

        @property
        def first(self):
            """Index of the first entry in the table."""
            if hasattr(self, '_m_first'):
                return self._m_first

            self._m_first = self.page * self._root.entries_per_page
            return getattr(self, '_m_first', None)

        @property
        def num_entries(self):
            """Number of entries of this page."""
            if hasattr(self, '_m_num_entries'):
                return self._m_num_entries

            self._m_num_entries = (self.num_table_entries - self.first if self.num_table_entries - self.first < self._root.entries_per_page else self._root.entries_per_page)
            return getattr(self, '_m_num_entries', None)


    class SnapshotExtraData(KaitaiStruct):
        """Fields of a snapshot record that were added later. Each is present if the
        extra data is long enough for it.
        
        .. seealso::
           Snapshots - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.SnapshotExtraData, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            if self._io.size() >= 8:
                pass
                self.vm_state_size_large = self._io.read_u8be()

            if self._io.size() >= 16:
                pass
                self.disk_size = self._io.read_u8be()
                if not self.disk_size <= 9223372036854775807:
                    raise kaitaistruct.ValidationGreaterThanError(9223372036854775807, self.disk_size, self._io, u"/types/snapshot_extra_data/seq/1")

            if self._io.size() >= 24:
                pass
                self.icount = self._io.read_u8be()

            self.unknown = self._io.read_bytes_full()


        def _fetch_instances(self):
            pass
            if self._io.size() >= 8:
                pass

            if self._io.size() >= 16:
                pass

            if self._io.size() >= 24:
                pass



    class SnapshotHeader(KaitaiStruct):
        """The part of a snapshot record that has a fixed length, 40 bytes.
        
        .. seealso::
           Snapshots - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.SnapshotHeader, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.ofs_l1_table = self._io.read_u8be()
            if not self.ofs_l1_table == self.ofs_l1_table - self.ofs_l1_table % self._root.cluster_size:
                raise kaitaistruct.ValidationNotEqualError(self.ofs_l1_table - self.ofs_l1_table % self._root.cluster_size, self.ofs_l1_table, self._io, u"/types/snapshot_header/seq/0")
            self.num_l1_entries = self._io.read_u4be()
            if not self.num_l1_entries <= 4194304:
                raise kaitaistruct.ValidationGreaterThanError(4194304, self.num_l1_entries, self._io, u"/types/snapshot_header/seq/1")
            self.len_id_str = self._io.read_u2be()
            self.len_name = self._io.read_u2be()
            self.date_sec = self._io.read_u4be()
            self.date_nsec = self._io.read_u4be()
            if not self.date_nsec <= 999999999:
                raise kaitaistruct.ValidationGreaterThanError(999999999, self.date_nsec, self._io, u"/types/snapshot_header/seq/5")
            self.vm_clock_nsec = self._io.read_u8be()
            self.vm_state_size = self._io.read_u4be()
            self.len_extra_data = self._io.read_u4be()
            if not self.len_extra_data <= 1024:
                raise kaitaistruct.ValidationGreaterThanError(1024, self.len_extra_data, self._io, u"/types/snapshot_header/seq/8")


        def _fetch_instances(self):
            pass


    class SnapshotRecord(KaitaiStruct):
        """One internal snapshot, an entry of the snapshot table.
        
        .. seealso::
           Snapshots - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.SnapshotRecord, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.header = Qcow2.SnapshotHeader(self._io, self, self._root)
            self._raw_extra_data = self._io.read_bytes(self.header.len_extra_data)
            _io__raw_extra_data = KaitaiStream(BytesIO(self._raw_extra_data))
            self.extra_data = Qcow2.SnapshotExtraData(_io__raw_extra_data, self, self._root)
            self.id_str = self._io.read_bytes(self.header.len_id_str)
            self.name = self._io.read_bytes(self.header.len_name)
            self.padding = self._io.read_bytes((self.len_padding if self.len_padding < self._io.size() - self._io.pos() else self._io.size() - self._io.pos()))


        def _fetch_instances(self):
            pass
            self.header._fetch_instances()
            self.extra_data._fetch_instances()
            _ = self.l1_table
            if hasattr(self, '_m_l1_table'):
                pass
                self._m_l1_table._fetch_instances()


        @property
        def l1_table(self):
            """The L1 table of the snapshot, which maps the virtual disk as it was.
            The VM state, where there is one, follows the disk in the same table.
            """
            if hasattr(self, '_m_l1_table'):
                return self._m_l1_table

            _pos = self._io.pos()
            self._io.seek(self.header.ofs_l1_table)
            self._m_l1_table = Qcow2.L1Table(self.header.ofs_l1_table, self.header.num_l1_entries, self._io, self, self._root)
            self._io.seek(_pos)
            return getattr(self, '_m_l1_table', None)

        @property
        def len_padding(self):
            """Length of the padding, were there room for it."""
            if hasattr(self, '_m_len_padding'):
                return self._m_len_padding

            self._m_len_padding = (8 - ((self.header.len_extra_data + self.header.len_id_str) + self.header.len_name) % 8) % 8
            return getattr(self, '_m_len_padding', None)

        @property
        def name_str(self):
            """The name as text."""
            if hasattr(self, '_m_name_str'):
                return self._m_name_str

            self._m_name_str = (self.name).decode(u"UTF-8")
            return getattr(self, '_m_name_str', None)


    class StandardL2Entry(KaitaiStruct):
        """A guest cluster that is stored as it is, reads as zeros, or is
        unallocated.
        
        .. seealso::
           Cluster mapping - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.StandardL2Entry, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.copied = self._io.read_bits_int_be(1) != 0
            self.compressed = self._io.read_bits_int_be(1) != 0
            if not self.compressed == False:
                raise kaitaistruct.ValidationNotEqualError(False, self.compressed, self._io, u"/types/standard_l2_entry/seq/1")
            self.reserved_56 = self._io.read_bits_int_be(6)
            if not self.reserved_56 == 0:
                raise kaitaistruct.ValidationNotEqualError(0, self.reserved_56, self._io, u"/types/standard_l2_entry/seq/2")
            self.ofs_host_cluster_upper = self._io.read_bits_int_be(24)
            self.ofs_host_cluster_lower = self._io.read_bits_int_be(23)
            if not self.ofs_host_cluster_lower == self.ofs_host_cluster_lower - self.ofs_host_cluster_lower % (self._root.cluster_size // 512):
                raise kaitaistruct.ValidationNotEqualError(self.ofs_host_cluster_lower - self.ofs_host_cluster_lower % (self._root.cluster_size // 512), self.ofs_host_cluster_lower, self._io, u"/types/standard_l2_entry/seq/4")
            self.reserved_1 = self._io.read_bits_int_be(8)
            if not self.reserved_1 == 0:
                raise kaitaistruct.ValidationNotEqualError(0, self.reserved_1, self._io, u"/types/standard_l2_entry/seq/5")
            self.zero = self._io.read_bits_int_be(1) != 0
            if not self.zero ==  ((self.zero) and (self._root.header.version != Qcow2.Version.v2) and ((not (self._root.has_extended_l2)))) :
                raise kaitaistruct.ValidationNotEqualError( ((self.zero) and (self._root.header.version != Qcow2.Version.v2) and ((not (self._root.has_extended_l2)))) , self.zero, self._io, u"/types/standard_l2_entry/seq/6")


        def _fetch_instances(self):
            pass
            _ = self.data
            if hasattr(self, '_m_data'):
                pass


        @property
        def data(self):
            """The cluster as it lies in this file, encrypted where the image is."""
            if hasattr(self, '_m_data'):
                return self._m_data

            if  ((self.ofs_host_cluster != 0) and ((not (self._root.has_data_file)))) :
                pass
                io = self._root._io
                _pos = io.pos()
                io.seek(self.ofs_host_cluster)
                self._m_data = io.read_bytes(self._root.cluster_size)
                io.seek(_pos)

            return getattr(self, '_m_data', None)

        @property
        def ofs_host_cluster(self):
            """Where the cluster is, in bytes, aligned to a cluster. 0 if it is
            unallocated, unless there is an external data file and `copied` is
            set.
            """
            if hasattr(self, '_m_ofs_host_cluster'):
                return self._m_ofs_host_cluster

            self._m_ofs_host_cluster = (self.ofs_host_cluster_upper * 4294967296 + self.ofs_host_cluster_lower * 512)
            return getattr(self, '_m_ofs_host_cluster', None)


    class SubclusterBitmap(KaitaiStruct):
        """State of the 32 subclusters of a cluster. Bit x, counted from the least
        significant, is subcluster x.
        
        .. seealso::
           Extended L2 Entries - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.SubclusterBitmap, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.reads_as_zeros = self._io.read_bits_int_be(32)
            self.allocated = self._io.read_bits_int_be(32)


        def _fetch_instances(self):
            pass


    class ZeroPadding(KaitaiStruct):
        """Bytes that must be zero.
        
        .. seealso::
           Bitmap directory - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.ZeroPadding, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.zeros = []
            i = 0
            while not self._io.is_eof():
                self.zeros.append(self._io.read_u1())
                if not self.zeros[i] == 0:
                    raise kaitaistruct.ValidationNotEqualError(0, self.zeros[i], self._io, u"/types/zero_padding/seq/0")
                i += 1



        def _fetch_instances(self):
            pass
            for i in range(len(self.zeros)):
                pass



    @property
    def active_l1_table(self):
        """The active L1 table, which maps the virtual disk as it is now."""
        if hasattr(self, '_m_active_l1_table'):
            return self._m_active_l1_table

        _pos = self._io.pos()
        self._io.seek(self.header.ofs_l1_table)
        self._m_active_l1_table = Qcow2.L1Table(self.header.ofs_l1_table, self.header.num_l1_entries, self._io, self, self._root)
        self._io.seek(_pos)
        return getattr(self, '_m_active_l1_table', None)

    @property
    def additional_fields(self):
        """Additional fields; a field is absent where the header ends at or before
        it, and then counts as zero.
        """
        if hasattr(self, '_m_additional_fields'):
            return self._m_additional_fields

        if self.len_header > 104:
            pass
            _pos = self._io.pos()
            self._io.seek(104)
            self._m_additional_fields = Qcow2.HeaderAdditional(self._io, self, self._root)
            self._io.seek(_pos)

        return getattr(self, '_m_additional_fields', None)

    @property
    def backing_file(self):
        """Name of the file from which unallocated clusters are read."""
        if hasattr(self, '_m_backing_file'):
            return self._m_backing_file

        if self.header.ofs_backing_file != 0:
            pass
            _pos = self._io.pos()
            self._io.seek(self.header.ofs_backing_file)
            self._raw__m_backing_file = self._io.read_bytes(self.header.len_backing_file)
            _io__raw__m_backing_file = KaitaiStream(BytesIO(self._raw__m_backing_file))
            self._m_backing_file = Qcow2.BackingFileName(_io__raw__m_backing_file, self, self._root)
            self._io.seek(_pos)

        return getattr(self, '_m_backing_file', None)

    @property
    def cluster_size(self):
        """Size of a cluster in bytes."""
        if hasattr(self, '_m_cluster_size'):
            return self._m_cluster_size

        self._m_cluster_size = 1 << self.header.cluster_bits
        return getattr(self, '_m_cluster_size', None)

    @property
    def entries_per_page(self):
        """Number of entries in one page of a table, apart from its last one. A
        choice of this description.
        """
        if hasattr(self, '_m_entries_per_page'):
            return self._m_entries_per_page

        self._m_entries_per_page = 512
        return getattr(self, '_m_entries_per_page', None)

    @property
    def has_data_file(self):
        """Whether guest clusters are in an external data file; offsets in L2 entries
        then belong to that file.
        """
        if hasattr(self, '_m_has_data_file'):
            return self._m_has_data_file

        self._m_has_data_file =  ((self.header.version != Qcow2.Version.v2) and (self.header_v3.incompatible_features.data_file)) 
        return getattr(self, '_m_has_data_file', None)

    @property
    def has_extended_l2(self):
        """Whether L2 entries are 128 bits wide."""
        if hasattr(self, '_m_has_extended_l2'):
            return self._m_has_extended_l2

        self._m_has_extended_l2 =  ((self.header.version != Qcow2.Version.v2) and (self.header_v3.incompatible_features.extended_l2)) 
        return getattr(self, '_m_has_extended_l2', None)

    @property
    def header_extensions(self):
        """Optional sections that follow the header directly."""
        if hasattr(self, '_m_header_extensions'):
            return self._m_header_extensions

        if  ((self.len_header < self.header_extensions_end) and (self.len_header < self._io.size())) :
            pass
            _pos = self._io.pos()
            self._io.seek(self.len_header)
            self._raw__m_header_extensions = self._io.read_bytes((self._io.size() if self._io.size() < self.header_extensions_end else self.header_extensions_end) - self.len_header)
            _io__raw__m_header_extensions = KaitaiStream(BytesIO(self._raw__m_header_extensions))
            self._m_header_extensions = Qcow2.HeaderExtensionArea(_io__raw__m_header_extensions, self, self._root)
            self._io.seek(_pos)

        return getattr(self, '_m_header_extensions', None)

    @property
    def header_extensions_end(self):
        """Where the header extensions end at the latest, at the backing file name or
        with the first cluster.
        """
        if hasattr(self, '_m_header_extensions_end'):
            return self._m_header_extensions_end

        self._m_header_extensions_end = (self.header.ofs_backing_file if  ((self.header.ofs_backing_file != 0) and (self.header.ofs_backing_file < self.cluster_size))  else self.cluster_size)
        return getattr(self, '_m_header_extensions_end', None)

    @property
    def header_v3(self):
        """The rest of the header in version 3. In version 2 these bytes already
        belong to the header extensions.
        
        .. seealso::
           Header - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        if hasattr(self, '_m_header_v3'):
            return self._m_header_v3

        if self.header.version != Qcow2.Version.v2:
            pass
            _pos = self._io.pos()
            self._io.seek(72)
            self._m_header_v3 = Qcow2.HeaderV3Tail(self._io, self, self._root)
            self._io.seek(_pos)

        return getattr(self, '_m_header_v3', None)

    @property
    def len_header(self):
        """Length of the header in bytes, without extensions. Version 2 has no such
        field.
        """
        if hasattr(self, '_m_len_header'):
            return self._m_len_header

        self._m_len_header = (72 if self.header.version == Qcow2.Version.v2 else self.header_v3.len_header)
        return getattr(self, '_m_len_header', None)

    @property
    def len_l2_entry(self):
        """Length of an L2 entry in bytes."""
        if hasattr(self, '_m_len_l2_entry'):
            return self._m_len_l2_entry

        self._m_len_l2_entry = (16 if self.has_extended_l2 else 8)
        return getattr(self, '_m_len_l2_entry', None)

    @property
    def num_l2_entries(self):
        """Number of entries in an L2 table, which is one cluster long."""
        if hasattr(self, '_m_num_l2_entries'):
            return self._m_num_l2_entries

        self._m_num_l2_entries = self.cluster_size // self.len_l2_entry
        return getattr(self, '_m_num_l2_entries', None)

    @property
    def refcount_order(self):
        """Binary logarithm of the width of a refcount in bits. Version 2 has no such
        field.
        """
        if hasattr(self, '_m_refcount_order'):
            return self._m_refcount_order

        self._m_refcount_order = (4 if self.header.version == Qcow2.Version.v2 else self.header_v3.refcount_order)
        return getattr(self, '_m_refcount_order', None)

    @property
    def refcounts(self):
        """The first level of the reference counts of host clusters."""
        if hasattr(self, '_m_refcounts'):
            return self._m_refcounts

        _pos = self._io.pos()
        self._io.seek(self.header.ofs_refcount_table)
        self._m_refcounts = Qcow2.RefcountTable(self.header.ofs_refcount_table, self.header.num_refcount_table_clusters * (self.cluster_size // 8), self._io, self, self._root)
        self._io.seek(_pos)
        return getattr(self, '_m_refcounts', None)

    @property
    def snapshots(self):
        """The snapshot table. QEMU accepts one of at most 64 MiB.
        
        .. seealso::
           Snapshots - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        if hasattr(self, '_m_snapshots'):
            return self._m_snapshots

        if self.header.num_snapshots > 0:
            pass
            _pos = self._io.pos()
            self._io.seek(self.header.ofs_snapshots)
            self._m_snapshots = []
            for i in range(self.header.num_snapshots):
                self._m_snapshots.append(Qcow2.SnapshotRecord(self._io, self, self._root))

            self._io.seek(_pos)

        return getattr(self, '_m_snapshots', None)

    @property
    def unknown_header_fields(self):
        """Fields that were added to the header later. They may be ignored unless a
        feature bit forbids it, and must be kept when the header is rewritten.
        
        .. seealso::
           Additional fields (version 3 and higher) - https://www.qemu.org/docs/master/interop/qcow2.html
        """
        if hasattr(self, '_m_unknown_header_fields'):
            return self._m_unknown_header_fields

        if self.len_header > 112:
            pass
            _pos = self._io.pos()
            self._io.seek(112)
            self._m_unknown_header_fields = self._io.read_bytes(self.len_header - 112)
            self._io.seek(_pos)

        return getattr(self, '_m_unknown_header_fields', None)


