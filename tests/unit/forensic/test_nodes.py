"""Nodes: words for sizes, names and numbers."""

from __future__ import annotations

from qcow2c.forensic.nodes import in_words, printable, size_text, text_of


def test_words_for_sizes_and_names() -> None:
    assert [size_text(size) for size in (0, 1023, 1536, 1 << 60)] == ["0 B", "1023 B", "1.5 KiB", "1 EiB"]
    assert in_words(100, "bytes") == "" and in_words(3, "entries") == "3 entries"
    assert printable("a\x1b\u202e") == "a\\x1b\\u202e"
    assert text_of(b"plain") == ("plain", "")
    assert text_of(b"\xff") == ("\\xff", "ff")
