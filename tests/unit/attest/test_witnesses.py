"""The two witnesses: each reads a structure as flat fields, and the compiled parser does not read without end."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from kaitaistruct import KaitaiStream, KaitaiStruct

from qcow2c import structs
from qcow2c.attest.witnesses import (
    READ_BYTES,
    WINDOW_BYTES,
    Kaitai,
    OversizedRead,
    StoreFile,
    bit_values,
    kaitai_values,
    leaves,
)
from qcow2c.errors import Span
from qcow2c.storage.sources import Memory

CONTENT = bytes(range(256)) * 100


def test_leaves_of_a_schema_have_their_bytes_and_bits_are_taken_apart() -> None:
    data = structs.HEADER_V3_TAIL.build(
        {
            "incompatible_features": 1 << 3,
            "compatible_features": 1,
            "autoclear_features": 0,
            "refcount_order": 4,
            "header_length": 112,
        }
    )
    found = {leaf.name: leaf for leaf in leaves(structs.HEADER_V3_TAIL, data, 72)}
    assert (found["refcount_order"].value, found["refcount_order"].where) == (4, Span(96, 4))
    assert found["incompatible_features.compression_type"].value == 1
    assert found["incompatible_features.dirty"].value == 0
    assert found["compatible_features.lazy_refcounts"].where == Span(80, 8)


def test_bits_of_a_word_have_their_names() -> None:
    found = bit_values(structs.L1_ENTRY, (1 << 63 | 4096).to_bytes(8, "big"), "entry.")
    assert found["entry.copied"] == 1 and found["entry.l2_table_offset"] == 4096


def test_a_range_of_a_store_reads_as_a_file() -> None:
    file = StoreFile(Memory(CONTENT), 100, 20_000)
    assert file.read(5) == CONTENT[100:105] and file.tell() == 5
    assert file.seek(-10, io.SEEK_END) == 19_890
    assert file.read(100) == CONTENT[19_990:20_000]
    assert file.read(1) == b"" and file.read() == b""
    file.seek(0)
    assert file.read() == CONTENT[100:20_000]


def test_many_small_reads_are_few_reads_of_the_store() -> None:
    class Counting(Memory):
        reads = 0

        def pread(self, length: int, offset: int) -> bytes:
            self.reads += 1
            return super().pread(length, offset)

    store = Counting(CONTENT)
    file = StoreFile(store)
    assert b"".join(file.read(4) for _ in range(len(CONTENT) // 4)) == CONTENT
    assert store.reads == -(-len(CONTENT) // WINDOW_BYTES)


def test_more_than_a_structure_has_is_not_read_at_once() -> None:
    with pytest.raises(OversizedRead, match=f"more than {READ_BYTES}"):
        StoreFile(Memory(CONTENT)).read(READ_BYTES + 1)
    assert len(StoreFile(Memory(CONTENT)).read(READ_BYTES)) == len(CONTENT)


class Word(KaitaiStruct):  # type: ignore[misc]
    """A compiled type, as the compiler writes them: one word, and the root that every type is told."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(arguments[-3] if len(arguments) >= 3 else arguments[0])
        self._parent, self._root = None, None
        self.extra = arguments[0] if len(arguments) > 3 else 0
        self.ofs_host_cluster_upper = self._io.read_u2be()
        self.ofs_host_cluster_lower = self._io.read_u2be()
        self.entries = [1, 2]

    @property
    def ofs_host_cluster(self) -> int:
        return int(self.ofs_host_cluster_upper * 65536 + self.ofs_host_cluster_lower)


def test_the_compiled_parser_reads_where_it_is_told_and_says_where_it_ended() -> None:
    Word.Word = Word
    kaitai = Kaitai(SimpleNamespace(Qcow2=Word), Memory(CONTENT))
    made = kaitai.at("Word", 16, 7)
    assert (made.extra, made.ofs_host_cluster, kaitai.position) == (7, 0x10111213, 20)
    inside = kaitai.within("Word", Span(32, 8), 34)
    assert (inside.ofs_host_cluster, kaitai.position) == (0x22232425, 38)
    with pytest.raises(EOFError):
        kaitai.within("Word", Span(32, 4), 34)


def test_parts_of_a_value_are_replaced_by_the_value_with_its_original_name_and_lists_are_left_out() -> None:
    word = Word(KaitaiStream(io.BytesIO(b"\0\1\0\1")))
    assert kaitai_values(word) == {"extra": 0, "host_cluster_offset": 65537}
    assert kaitai_values(b"plain") == {"": b"plain"}
