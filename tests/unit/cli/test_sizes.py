"""Sizes as users type them and as qemu-img prints them."""

from __future__ import annotations

from argparse import ArgumentTypeError

import pytest

from qcow2c.cli.sizes import parse_size, rounded


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("1k", 1024),
        ("1K", 1024),
        ("1.5G", 3 << 29),
        ("0.1k", 102),
        (" +3M", 3 << 20),
        ("0x200", 512),
        ("0x10k", 16 << 10),
        ("7E", 7 << 60),
        ("9223372036854775807", (1 << 63) - 1),
    ],
)
def test_a_size_stands_for_bytes(words: str, size: int) -> None:
    assert parse_size(words) == size


@pytest.mark.parametrize(
    "words", ["", "k", "-1", "1.5", "1.5B", "1kk", "1z", "8E", "9223372036854775808", "1,5k", "0x"]
)
def test_what_is_no_size_is_refused(words: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is no size"):
        parse_size(words)


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (1536, "1.5 KiB"), (1 << 30, "1 GiB"), (1 << 62, "4 EiB")],
)
def test_a_size_is_printed_with_three_digits(size: int, words: str) -> None:
    assert rounded(size) == words
