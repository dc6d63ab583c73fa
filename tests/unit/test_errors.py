"""Errors: what they say."""

from __future__ import annotations

from qcow2c.errors import CorruptMetadata, Span


def test_errors_say_where_in_words() -> None:
    error = CorruptMetadata("wrong", where=Span(16, 8), guest=Span(4096, 1))
    assert str(error) == "wrong (file bytes 0x10..0x17, guest bytes 0x1000..0x1000)"
    assert str(CorruptMetadata("wrong")) == "wrong"
