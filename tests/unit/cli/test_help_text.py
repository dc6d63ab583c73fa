"""Help: nothing is wider than it may be but a word that is, and examples can still be copied."""

from __future__ import annotations

import shlex

import pytest

from qcow2c.cli.help_text import wrapped

TEXT = """Do something to an image, in a sentence that is longer than a narrow terminal has columns.

Another paragraph, which
was wrapped by its author.

examples:
  qcow2c convert -c -O qcow2 -o compression_type=zstd,compression_level=9 disk.raw disk.qcow2
  qcow2c dump --offset 0x30000 disk.qcow2      what this byte of the file is, and who refers to it
"""


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_wider_than_the_terminal_unless_it_is_one_word(width: int) -> None:
    for line in wrapped(TEXT, width).split("\n"):
        assert len(line) <= width or len(line.removesuffix(" \\").split()) == 1


def test_paragraphs_are_filled_and_short_lines_stay() -> None:
    lines = wrapped(TEXT, 120).split("\n")
    assert lines[0] == TEXT.split("\n", maxsplit=1)[0]
    assert lines[2] == "Another paragraph, which was wrapped by its author."
    assert lines[5:] == TEXT.rstrip().split("\n")[6:]


def test_an_example_in_several_lines_is_still_the_command() -> None:
    found = wrapped(TEXT, 60).split("examples:\n")[1].split("  qcow2c dump")[0]
    assert "\\\n" in found
    assert shlex.split(found.replace("\\\n", "")) == shlex.split(
        TEXT.split("examples:\n")[1].split("\n", maxsplit=1)[0]
    )
