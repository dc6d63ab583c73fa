"""How 9P messages lie on the wire."""

from __future__ import annotations

import pytest

from qcow2c.serve.ninep_messages import DIRECTORY, Dialect, Malformed, MessageFields, Qid, Stat, attributes, message


def test_fields_are_taken_in_order_and_no_further() -> None:
    fields = MessageFields(memoryview(b"\x01\x02\x03\x00abc!"))
    assert fields.number(2) == 0x201 and fields.text() == b"abc" and fields.left() == 1
    with pytest.raises(Malformed, match="1 bytes are left over"):
        fields.end()
    with pytest.raises(Malformed, match="4 bytes are due at 7, and 1 are there"):
        fields.number(4)


def test_message_says_its_length() -> None:
    assert b"".join(message(101, 0xFFFF, b"ab", b"c")) == b"\x0a\0\0\0\x65\xff\xffabc"


def test_records_have_the_lengths_of_the_protocol() -> None:
    stat = Stat(Qid(DIRECTORY, 1 << 32, 5), 0o555, 1, 0, b"name", b"me", 1, 2)
    plain, unix = stat.packed(Dialect.PLAIN), stat.packed(Dialect.UNIX)
    assert len(plain) == 49 + 4 + 6 and len(unix) == len(plain) + 14
    assert plain[8:21] == b"\x80" + bytes(4) + b"\5" + bytes(7)
    assert len(attributes(stat)) == 153
