# This is a generated file! Please edit source .ksy file and use kaitai-struct-compiler to rebuild
# type: ignore

import kaitaistruct
from kaitaistruct import KaitaiStruct, KaitaiStream, BytesIO
from enum import IntEnum


if getattr(kaitaistruct, 'API_VERSION', (0, 9)) < (0, 11):
    raise Exception("Incompatible Kaitai Struct Python API: 0.11 or later is required, but you have %s" % (kaitaistruct.__version__))

class Qcow2(KaitaiStruct):

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
            if hasattr(self, '_m_reserved'):
                return self._m_reserved

            self._m_reserved = (self.reserved_upper * 1073741824 + self.reserved_lower)
            return getattr(self, '_m_reserved', None)


    class BackingFileName(KaitaiStruct):
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
            if hasattr(self, '_m_name_str'):
                return self._m_name_str

            self._m_name_str = (self.name).decode(u"UTF-8")
            return getattr(self, '_m_name_str', None)


    class BackingFormat(KaitaiStruct):
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
            if hasattr(self, '_m_name_str'):
                return self._m_name_str

            self._m_name_str = (self.name).decode(u"UTF-8")
            return getattr(self, '_m_name_str', None)


    class BitmapDirectory(KaitaiStruct):
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
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.BitmapDirectoryHeader, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.ofs_bitmap_table = self._io.read_u8be()
            self.num_bitmap_table_entries = self._io.read_u4be()
            self.flags = Qcow2.BitmapFlags(self._io, self, self._root)
            self.type = KaitaiStream.resolve_enum(Qcow2.BitmapType, self._io.read_u1())
            self.granularity_bits = self._io.read_u1()
            self.len_name = self._io.read_u2be()
            self.len_extra_data = self._io.read_u4be()


        def _fetch_instances(self):
            pass
            self.flags._fetch_instances()


    class BitmapDirectoryRecord(KaitaiStruct):
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
            if hasattr(self, '_m_len_padding'):
                return self._m_len_padding

            self._m_len_padding = (8 - (self.header.len_extra_data + self.header.len_name) % 8) % 8
            return getattr(self, '_m_len_padding', None)

        @property
        def name_str(self):
            if hasattr(self, '_m_name_str'):
                return self._m_name_str

            self._m_name_str = (self.name).decode(u"UTF-8")
            return getattr(self, '_m_name_str', None)


    class BitmapFlags(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.BitmapFlags, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.reserved = self._io.read_bits_int_be(29)
            self.extra_data_compatible = self._io.read_bits_int_be(1) != 0
            self.is_auto = self._io.read_bits_int_be(1) != 0
            self.in_use = self._io.read_bits_int_be(1) != 0


        def _fetch_instances(self):
            pass


    class BitmapTable(KaitaiStruct):
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
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.BitmapTableEntry, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.reserved_56 = self._io.read_bits_int_be(8)
            self.ofs_host_cluster_upper = self._io.read_bits_int_be(24)
            self.ofs_host_cluster_lower = self._io.read_bits_int_be(23)
            self.reserved_1 = self._io.read_bits_int_be(8)
            self.all_ones = self._io.read_bits_int_be(1) != 0


        def _fetch_instances(self):
            pass
            _ = self.data
            if hasattr(self, '_m_data'):
                pass


        @property
        def data(self):
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
            if hasattr(self, '_m_ofs_host_cluster'):
                return self._m_ofs_host_cluster

            self._m_ofs_host_cluster = (self.ofs_host_cluster_upper * 4294967296 + self.ofs_host_cluster_lower * 512)
            return getattr(self, '_m_ofs_host_cluster', None)


    class BitmapTablePage(KaitaiStruct):
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
            if hasattr(self, '_m_first'):
                return self._m_first

            self._m_first = self.page * self._root.entries_per_page
            return getattr(self, '_m_first', None)

        @property
        def num_entries(self):
            if hasattr(self, '_m_num_entries'):
                return self._m_num_entries

            self._m_num_entries = (self.num_table_entries - self.first if self.num_table_entries - self.first < self._root.entries_per_page else self._root.entries_per_page)
            return getattr(self, '_m_num_entries', None)


    class BitmapsExtension(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.BitmapsExtension, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.num_bitmaps = self._io.read_u4be()
            self.reserved = self._io.read_u4be()
            self.len_bitmap_directory = self._io.read_u8be()
            self.ofs_bitmap_directory = self._io.read_u8be()


        def _fetch_instances(self):
            pass
            _ = self.bitmap_directory
            if hasattr(self, '_m_bitmap_directory'):
                pass
                self._m_bitmap_directory._fetch_instances()


        @property
        def bitmap_directory(self):
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
            if hasattr(self, '_m_reserved'):
                return self._m_reserved

            self._m_reserved = (self.reserved_upper * 2147483648 + self.reserved_lower)
            return getattr(self, '_m_reserved', None)


    class CompressedDescriptor(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.CompressedDescriptor, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.copied = self._io.read_bits_int_be(1) != 0
            self.compressed = self._io.read_bits_int_be(1) != 0
            self.length_and_offset = self._io.read_bits_int_be(13)
            self.ofs_data_upper = self._io.read_bits_int_be(17)
            self.ofs_data_lower = self._io.read_bits_int_be(32)


        def _fetch_instances(self):
            pass
            _ = self.data
            if hasattr(self, '_m_data'):
                pass


        @property
        def data(self):
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
            if hasattr(self, '_m_data_left'):
                return self._m_data_left

            self._m_data_left = (self._root._io.size() - self.ofs_data)
            return getattr(self, '_m_data_left', None)

        @property
        def data_room(self):
            if hasattr(self, '_m_data_room'):
                return self._m_data_room

            self._m_data_room = (self.num_additional_sectors + 1) * 512 - self.ofs_data % 512
            return getattr(self, '_m_data_room', None)

        @property
        def num_additional_sectors(self):
            if hasattr(self, '_m_num_additional_sectors'):
                return self._m_num_additional_sectors

            self._m_num_additional_sectors = self.length_and_offset >> self.num_offset_bits
            return getattr(self, '_m_num_additional_sectors', None)

        @property
        def num_offset_bits(self):
            if hasattr(self, '_m_num_offset_bits'):
                return self._m_num_offset_bits

            self._m_num_offset_bits = 21 - self._root.header.cluster_bits
            return getattr(self, '_m_num_offset_bits', None)

        @property
        def ofs_data(self):
            if hasattr(self, '_m_ofs_data'):
                return self._m_ofs_data

            self._m_ofs_data = (((self.length_and_offset % (1 << self.num_offset_bits)) * 562949953421312 + self.ofs_data_upper * 4294967296) + self.ofs_data_lower)
            return getattr(self, '_m_ofs_data', None)


    class DataFileName(KaitaiStruct):
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
            if hasattr(self, '_m_name_str'):
                return self._m_name_str

            self._m_name_str = (self.name).decode(u"UTF-8")
            return getattr(self, '_m_name_str', None)


    class EncryptionHeaderPointer(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.EncryptionHeaderPointer, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.ofs_encryption_header = self._io.read_u8be()
            self.len_encryption_header = self._io.read_u8be()


        def _fetch_instances(self):
            pass
            _ = self.luks_header
            if hasattr(self, '_m_luks_header'):
                pass
                self._m_luks_header._fetch_instances()


        @property
        def luks_header(self):
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
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.FeatureName, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.type = KaitaiStream.resolve_enum(Qcow2.FeatureType, self._io.read_u1())
            self.bit = self._io.read_u1()
            self.name = self._io.read_bytes(46)


        def _fetch_instances(self):
            pass

        @property
        def name_str(self):
            if hasattr(self, '_m_name_str'):
                return self._m_name_str

            self._m_name_str = (self.name).decode(u"UTF-8")
            return getattr(self, '_m_name_str', None)


    class FeatureNameTable(KaitaiStruct):
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
            if hasattr(self, '_m_l1_index'):
                return self._m_l1_index

            self._m_l1_index = (self.guest_offset // self._root.cluster_size) // self._root.num_l2_entries
            return getattr(self, '_m_l1_index', None)

        @property
        def l2_entry(self):
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
            if hasattr(self, '_m_l2_index'):
                return self._m_l2_index

            self._m_l2_index = (self.guest_offset // self._root.cluster_size) % self._root.num_l2_entries
            return getattr(self, '_m_l2_index', None)


    class HeaderAdditional(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.HeaderAdditional, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.compression_type = KaitaiStream.resolve_enum(Qcow2.CompressionType, self._io.read_u1())
            self.padding = self._io.read_bytes(7)


        def _fetch_instances(self):
            pass


    class HeaderExtension(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.HeaderExtension, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.type = KaitaiStream.resolve_enum(Qcow2.ExtensionType, self._io.read_u4be())
            self.len_data = self._io.read_u4be()
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
            if hasattr(self, '_m_len_padding'):
                return self._m_len_padding

            self._m_len_padding = (8 - self.len_data % 8) % 8
            return getattr(self, '_m_len_padding', None)


    class HeaderExtensionArea(KaitaiStruct):
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
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.HeaderV2, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.magic = self._io.read_bytes(4)
            self.version = KaitaiStream.resolve_enum(Qcow2.Version, self._io.read_u4be())
            self.ofs_backing_file = self._io.read_u8be()
            self.len_backing_file = self._io.read_u4be()
            self.cluster_bits = self._io.read_u4be()
            self.size = self._io.read_u8be()
            self.crypt_method = KaitaiStream.resolve_enum(Qcow2.CryptMethod, self._io.read_u4be())
            self.num_l1_entries = self._io.read_u4be()
            self.ofs_l1_table = self._io.read_u8be()
            self.ofs_refcount_table = self._io.read_u8be()
            self.num_refcount_table_clusters = self._io.read_u4be()
            self.num_snapshots = self._io.read_u4be()
            self.ofs_snapshots = self._io.read_u8be()


        def _fetch_instances(self):
            pass


    class HeaderV3Tail(KaitaiStruct):
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
            self.len_header = self._io.read_u4be()


        def _fetch_instances(self):
            pass
            self.incompatible_features._fetch_instances()
            self.compatible_features._fetch_instances()
            self.autoclear_features._fetch_instances()


    class HostCluster(KaitaiStruct):
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
            if hasattr(self, '_m_has_block'):
                return self._m_has_block

            self._m_has_block =  ((self.refcount_table_index < self.num_refcount_table_entries) and (self.table_entry.ofs_refcount_block != 0)) 
            return getattr(self, '_m_has_block', None)

        @property
        def num_refcount_block_entries(self):
            if hasattr(self, '_m_num_refcount_block_entries'):
                return self._m_num_refcount_block_entries

            self._m_num_refcount_block_entries = (self._root.cluster_size * 8) // self.refcount_bits
            return getattr(self, '_m_num_refcount_block_entries', None)

        @property
        def num_refcount_table_entries(self):
            if hasattr(self, '_m_num_refcount_table_entries'):
                return self._m_num_refcount_table_entries

            self._m_num_refcount_table_entries = self._root.header.num_refcount_table_clusters * (self._root.cluster_size // 8)
            return getattr(self, '_m_num_refcount_table_entries', None)

        @property
        def ofs_refcount(self):
            if hasattr(self, '_m_ofs_refcount'):
                return self._m_ofs_refcount

            if self.has_block:
                pass
                self._m_ofs_refcount = (self.table_entry.ofs_refcount_block + (self.refcount_block_index * self.refcount_bits) // 8)

            return getattr(self, '_m_ofs_refcount', None)

        @property
        def refcount(self):
            if hasattr(self, '_m_refcount'):
                return self._m_refcount

            self._m_refcount = (0 if (not (self.has_block)) else (self.refcount_8 if self._root.refcount_order == 6 else (self.refcount_4 if self._root.refcount_order == 5 else (self.refcount_2 if self._root.refcount_order == 4 else self.refcount_in_byte))))
            return getattr(self, '_m_refcount', None)

        @property
        def refcount_1(self):
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
            if hasattr(self, '_m_refcount_bit'):
                return self._m_refcount_bit

            self._m_refcount_bit = (self.refcount_block_index * self.refcount_bits) % 8
            return getattr(self, '_m_refcount_bit', None)

        @property
        def refcount_bits(self):
            if hasattr(self, '_m_refcount_bits'):
                return self._m_refcount_bits

            self._m_refcount_bits = 1 << self._root.refcount_order
            return getattr(self, '_m_refcount_bits', None)

        @property
        def refcount_block_index(self):
            if hasattr(self, '_m_refcount_block_index'):
                return self._m_refcount_block_index

            self._m_refcount_block_index = self.index % self.num_refcount_block_entries
            return getattr(self, '_m_refcount_block_index', None)

        @property
        def refcount_in_byte(self):
            if hasattr(self, '_m_refcount_in_byte'):
                return self._m_refcount_in_byte

            if  ((self.has_block) and (self._root.refcount_order <= 3)) :
                pass
                self._m_refcount_in_byte = self.refcount_1 >> self.refcount_bit & (1 << self.refcount_bits) - 1

            return getattr(self, '_m_refcount_in_byte', None)

        @property
        def refcount_table_index(self):
            if hasattr(self, '_m_refcount_table_index'):
                return self._m_refcount_table_index

            self._m_refcount_table_index = self.index // self.num_refcount_block_entries
            return getattr(self, '_m_refcount_table_index', None)

        @property
        def table_entry(self):
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
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.IncompatibleFeatures, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.reserved_upper = self._io.read_bits_int_be(32)
            self.reserved_lower = self._io.read_bits_int_be(27)
            self.extended_l2 = self._io.read_bits_int_be(1) != 0
            self.compression_type = self._io.read_bits_int_be(1) != 0
            self.data_file = self._io.read_bits_int_be(1) != 0
            self.corrupt = self._io.read_bits_int_be(1) != 0
            self.dirty = self._io.read_bits_int_be(1) != 0


        def _fetch_instances(self):
            pass

        @property
        def reserved(self):
            if hasattr(self, '_m_reserved'):
                return self._m_reserved

            self._m_reserved = (self.reserved_upper * 134217728 + self.reserved_lower)
            return getattr(self, '_m_reserved', None)


    class L1Entry(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.L1Entry, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.copied = self._io.read_bits_int_be(1) != 0
            self.reserved_56 = self._io.read_bits_int_be(7)
            self.ofs_l2_table_upper = self._io.read_bits_int_be(24)
            self.ofs_l2_table_lower = self._io.read_bits_int_be(23)
            self.reserved_0 = self._io.read_bits_int_be(9)


        def _fetch_instances(self):
            pass
            _ = self.l2_table
            if hasattr(self, '_m_l2_table'):
                pass
                self._m_l2_table._fetch_instances()


        @property
        def l2_table(self):
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
            if hasattr(self, '_m_ofs_l2_table'):
                return self._m_ofs_l2_table

            self._m_ofs_l2_table = (self.ofs_l2_table_upper * 4294967296 + self.ofs_l2_table_lower * 512)
            return getattr(self, '_m_ofs_l2_table', None)


    class L1Table(KaitaiStruct):
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
            if hasattr(self, '_m_first'):
                return self._m_first

            self._m_first = self.page * self._root.entries_per_page
            return getattr(self, '_m_first', None)

        @property
        def num_entries(self):
            if hasattr(self, '_m_num_entries'):
                return self._m_num_entries

            self._m_num_entries = (self.num_table_entries - self.first if self.num_table_entries - self.first < self._root.entries_per_page else self._root.entries_per_page)
            return getattr(self, '_m_num_entries', None)


    class L2Entry(KaitaiStruct):
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
            if hasattr(self, '_m_first_byte'):
                return self._m_first_byte

            _pos = self._io.pos()
            self._io.seek(self._io.pos())
            self._m_first_byte = self._io.read_u1()
            self._io.seek(_pos)
            return getattr(self, '_m_first_byte', None)

        @property
        def is_compressed(self):
            if hasattr(self, '_m_is_compressed'):
                return self._m_is_compressed

            self._m_is_compressed = self.first_byte & 64 != 0
            return getattr(self, '_m_is_compressed', None)


    class L2Table(KaitaiStruct):
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
            if hasattr(self, '_m_first'):
                return self._m_first

            self._m_first = self.page * self._root.entries_per_page
            return getattr(self, '_m_first', None)

        @property
        def num_entries(self):
            if hasattr(self, '_m_num_entries'):
                return self._m_num_entries

            self._m_num_entries = (self._root.num_l2_entries - self.first if self._root.num_l2_entries - self.first < self._root.entries_per_page else self._root.entries_per_page)
            return getattr(self, '_m_num_entries', None)


    class LuksHeader(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.LuksHeader, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.magic = self._io.read_bytes(6)
            self.version = self._io.read_u2be()
            self.cipher_name = self._io.read_bytes(32)
            self.cipher_mode = self._io.read_bytes(32)
            self.hash_spec = self._io.read_bytes(32)
            self.ofs_payload = self._io.read_u4be()
            self.len_key = self._io.read_u4be()
            self.mk_digest = self._io.read_bytes(20)
            self.mk_digest_salt = self._io.read_bytes(32)
            self.num_mk_digest_iterations = self._io.read_u4be()
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
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.LuksKeySlot, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.active = KaitaiStream.resolve_enum(Qcow2.LuksKeySlotState, self._io.read_u4be())
            self.num_iterations = self._io.read_u4be()
            self.salt = self._io.read_bytes(32)
            self.ofs_key_material = self._io.read_u4be()
            self.num_stripes = self._io.read_u4be()


        def _fetch_instances(self):
            pass
            _ = self.key_material
            if hasattr(self, '_m_key_material'):
                pass


        @property
        def key_material(self):
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
            if hasattr(self, '_m_len_group'):
                return self._m_len_group

            self._m_len_group = (1 if self._root.refcount_order <= 3 else 1 << self._root.refcount_order - 3)
            return getattr(self, '_m_len_group', None)

        @property
        def num_groups(self):
            if hasattr(self, '_m_num_groups'):
                return self._m_num_groups

            self._m_num_groups = self._root.cluster_size // self.len_group
            return getattr(self, '_m_num_groups', None)

        @property
        def pages(self):
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
            if hasattr(self, '_m_first'):
                return self._m_first

            self._m_first = self.page * self._root.entries_per_page
            return getattr(self, '_m_first', None)

        @property
        def num_entries(self):
            if hasattr(self, '_m_num_entries'):
                return self._m_num_entries

            self._m_num_entries = (self.num_block_groups - self.first if self.num_block_groups - self.first < self._root.entries_per_page else self._root.entries_per_page)
            return getattr(self, '_m_num_entries', None)


    class RefcountGroup1(KaitaiStruct):
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
            if hasattr(self, '_m_num_pages'):
                return self._m_num_pages

            self._m_num_pages = ((self.num_entries + self._root.entries_per_page) - 1) // self._root.entries_per_page
            return getattr(self, '_m_num_pages', None)

        @property
        def pages(self):
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
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.RefcountTableEntry, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.ofs_refcount_block_upper = self._io.read_bits_int_be(32)
            self.ofs_refcount_block_lower = self._io.read_bits_int_be(23)
            self.reserved_0 = self._io.read_bits_int_be(9)


        def _fetch_instances(self):
            pass
            _ = self.refcount_block
            if hasattr(self, '_m_refcount_block'):
                pass
                self._m_refcount_block._fetch_instances()


        @property
        def ofs_refcount_block(self):
            if hasattr(self, '_m_ofs_refcount_block'):
                return self._m_ofs_refcount_block

            self._m_ofs_refcount_block = (self.ofs_refcount_block_upper * 4294967296 + self.ofs_refcount_block_lower * 512)
            return getattr(self, '_m_ofs_refcount_block', None)

        @property
        def refcount_block(self):
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
            if hasattr(self, '_m_first'):
                return self._m_first

            self._m_first = self.page * self._root.entries_per_page
            return getattr(self, '_m_first', None)

        @property
        def num_entries(self):
            if hasattr(self, '_m_num_entries'):
                return self._m_num_entries

            self._m_num_entries = (self.num_table_entries - self.first if self.num_table_entries - self.first < self._root.entries_per_page else self._root.entries_per_page)
            return getattr(self, '_m_num_entries', None)


    class SnapshotExtraData(KaitaiStruct):
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
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.SnapshotHeader, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.ofs_l1_table = self._io.read_u8be()
            self.num_l1_entries = self._io.read_u4be()
            self.len_id_str = self._io.read_u2be()
            self.len_name = self._io.read_u2be()
            self.date_sec = self._io.read_u4be()
            self.date_nsec = self._io.read_u4be()
            self.vm_clock_nsec = self._io.read_u8be()
            self.vm_state_size = self._io.read_u4be()
            self.len_extra_data = self._io.read_u4be()


        def _fetch_instances(self):
            pass


    class SnapshotRecord(KaitaiStruct):
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
            if hasattr(self, '_m_l1_table'):
                return self._m_l1_table

            _pos = self._io.pos()
            self._io.seek(self.header.ofs_l1_table)
            self._m_l1_table = Qcow2.L1Table(self.header.ofs_l1_table, self.header.num_l1_entries, self._io, self, self._root)
            self._io.seek(_pos)
            return getattr(self, '_m_l1_table', None)

        @property
        def len_padding(self):
            if hasattr(self, '_m_len_padding'):
                return self._m_len_padding

            self._m_len_padding = (8 - ((self.header.len_extra_data + self.header.len_id_str) + self.header.len_name) % 8) % 8
            return getattr(self, '_m_len_padding', None)

        @property
        def name_str(self):
            if hasattr(self, '_m_name_str'):
                return self._m_name_str

            self._m_name_str = (self.name).decode(u"UTF-8")
            return getattr(self, '_m_name_str', None)


    class StandardL2Entry(KaitaiStruct):
        def __init__(self, _io, _parent=None, _root=None):
            super(Qcow2.StandardL2Entry, self).__init__(_io)
            self._parent = _parent
            self._root = _root
            self._read()

        def _read(self):
            self.copied = self._io.read_bits_int_be(1) != 0
            self.compressed = self._io.read_bits_int_be(1) != 0
            self.reserved_56 = self._io.read_bits_int_be(6)
            self.ofs_host_cluster_upper = self._io.read_bits_int_be(24)
            self.ofs_host_cluster_lower = self._io.read_bits_int_be(23)
            self.reserved_1 = self._io.read_bits_int_be(8)
            self.zero = self._io.read_bits_int_be(1) != 0


        def _fetch_instances(self):
            pass
            _ = self.data
            if hasattr(self, '_m_data'):
                pass


        @property
        def data(self):
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
            if hasattr(self, '_m_ofs_host_cluster'):
                return self._m_ofs_host_cluster

            self._m_ofs_host_cluster = (self.ofs_host_cluster_upper * 4294967296 + self.ofs_host_cluster_lower * 512)
            return getattr(self, '_m_ofs_host_cluster', None)


    class SubclusterBitmap(KaitaiStruct):
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
                i += 1



        def _fetch_instances(self):
            pass
            for i in range(len(self.zeros)):
                pass



    @property
    def active_l1_table(self):
        if hasattr(self, '_m_active_l1_table'):
            return self._m_active_l1_table

        _pos = self._io.pos()
        self._io.seek(self.header.ofs_l1_table)
        self._m_active_l1_table = Qcow2.L1Table(self.header.ofs_l1_table, self.header.num_l1_entries, self._io, self, self._root)
        self._io.seek(_pos)
        return getattr(self, '_m_active_l1_table', None)

    @property
    def additional_fields(self):
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
        if hasattr(self, '_m_cluster_size'):
            return self._m_cluster_size

        self._m_cluster_size = 1 << self.header.cluster_bits
        return getattr(self, '_m_cluster_size', None)

    @property
    def entries_per_page(self):
        if hasattr(self, '_m_entries_per_page'):
            return self._m_entries_per_page

        self._m_entries_per_page = 512
        return getattr(self, '_m_entries_per_page', None)

    @property
    def has_data_file(self):
        if hasattr(self, '_m_has_data_file'):
            return self._m_has_data_file

        self._m_has_data_file =  ((self.header.version != Qcow2.Version.v2) and (self.header_v3.incompatible_features.data_file)) 
        return getattr(self, '_m_has_data_file', None)

    @property
    def has_extended_l2(self):
        if hasattr(self, '_m_has_extended_l2'):
            return self._m_has_extended_l2

        self._m_has_extended_l2 =  ((self.header.version != Qcow2.Version.v2) and (self.header_v3.incompatible_features.extended_l2)) 
        return getattr(self, '_m_has_extended_l2', None)

    @property
    def header_extensions(self):
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
        if hasattr(self, '_m_header_extensions_end'):
            return self._m_header_extensions_end

        self._m_header_extensions_end = (self.header.ofs_backing_file if  ((self.header.ofs_backing_file != 0) and (self.header.ofs_backing_file < self.cluster_size))  else self.cluster_size)
        return getattr(self, '_m_header_extensions_end', None)

    @property
    def header_v3(self):
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
        if hasattr(self, '_m_len_header'):
            return self._m_len_header

        self._m_len_header = (72 if self.header.version == Qcow2.Version.v2 else self.header_v3.len_header)
        return getattr(self, '_m_len_header', None)

    @property
    def len_l2_entry(self):
        if hasattr(self, '_m_len_l2_entry'):
            return self._m_len_l2_entry

        self._m_len_l2_entry = (16 if self.has_extended_l2 else 8)
        return getattr(self, '_m_len_l2_entry', None)

    @property
    def num_l2_entries(self):
        if hasattr(self, '_m_num_l2_entries'):
            return self._m_num_l2_entries

        self._m_num_l2_entries = self.cluster_size // self.len_l2_entry
        return getattr(self, '_m_num_l2_entries', None)

    @property
    def refcount_order(self):
        if hasattr(self, '_m_refcount_order'):
            return self._m_refcount_order

        self._m_refcount_order = (4 if self.header.version == Qcow2.Version.v2 else self.header_v3.refcount_order)
        return getattr(self, '_m_refcount_order', None)

    @property
    def refcounts(self):
        if hasattr(self, '_m_refcounts'):
            return self._m_refcounts

        _pos = self._io.pos()
        self._io.seek(self.header.ofs_refcount_table)
        self._m_refcounts = Qcow2.RefcountTable(self.header.ofs_refcount_table, self.header.num_refcount_table_clusters * (self.cluster_size // 8), self._io, self, self._root)
        self._io.seek(_pos)
        return getattr(self, '_m_refcounts', None)

    @property
    def snapshots(self):
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
        if hasattr(self, '_m_unknown_header_fields'):
            return self._m_unknown_header_fields

        if self.len_header > 112:
            pass
            _pos = self._io.pos()
            self._io.seek(112)
            self._m_unknown_header_fields = self._io.read_bytes(self.len_header - 112)
            self._io.seek(_pos)

        return getattr(self, '_m_unknown_header_fields', None)


