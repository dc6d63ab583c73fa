"""Options in QEMU's form: commas, values of each kind, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from qcow2c.cli.option_list import Option, asks_for_help, listing, parse, split
from qcow2c.errors import UsageError

OPTIONS = (
    Option("size", "size", "how large"),
    Option("bits", "num", "how wide"),
    Option("lazy", "bool (on/off)", "whether"),
    Option("file", "str", "which"),
)


@pytest.mark.parametrize(
    ("lists", "found"),
    [
        (["size=1M,bits=16"], {"size": 1 << 20, "bits": 16}),
        (["bits=0x10", "bits=8"], {"bits": 8}),
        (["lazy"], {"lazy": True}),
        (["lazy=off"], {"lazy": False}),
        (["file=a,,b,lazy=y"], {"file": "a,b", "lazy": True}),
        (["file="], {"file": ""}),
        ([], {}),
    ],
)
def test_values_come_by_name(lists: list[str], found: dict[str, Any]) -> None:
    assert parse(lists, OPTIONS) == found


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("colour=red", "Invalid parameter 'colour'"),
        ("size=big", "'size' expects a non-negative number"),
        ("bits=-1", "'bits' expects a number"),
        ("bits=1k", "'bits' expects a number"),
        ("lazy=perhaps", "'lazy' expects 'on' or 'off'"),
        ("encrypt.format=luks", "Invalid parameter 'encrypt.format'"),
    ],
)
def test_what_is_no_value_is_refused(words: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse([words], OPTIONS)


def test_two_commas_stand_for_one() -> None:
    assert split("a,b,,c,d") == ["a", "b,c", "d"]


def test_help_is_a_word_of_its_own() -> None:
    assert asks_for_help(["size=1,help"]) and asks_for_help(["?"])
    assert not asks_for_help(["file=help"]) and not asks_for_help([])


def test_the_list_has_a_line_for_each_option() -> None:
    assert listing("qcow2", OPTIONS[:2]).splitlines() == [
        "Supported qcow2 options:",
        "  size=<size>            - how large",
        "  bits=<num>             - how wide",
    ]
