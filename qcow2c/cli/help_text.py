"""The text of a command's help, as wide as the terminal: paragraphs, lists, and examples that can be copied."""

from __future__ import annotations

from textwrap import fill, wrap

_COMMAND = "qcow2c "
_GAP = "    "
"""Of so many spaces, between a command and what it is an example of."""


def wrapped(text: str, width: int) -> str:
    """Return a text with its paragraphs wrapped; lines that are indented are wrapped one by one."""
    parts = text.strip().split("\n\n")
    return "\n\n".join(_listed(part, width) if "\n " in part else fill(" ".join(part.split()), width) for part in parts)


def _listed(part: str, width: int) -> str:
    return "\n".join(_line(line, width) for line in part.split("\n"))


def _line(line: str, width: int) -> str:
    """Return a line in lines: a command goes on behind a backslash, as in a shell; a long word stays whole."""
    if len(line) <= width:
        return line
    bare = line.lstrip()
    indent = line[: len(line) - len(bare)]
    is_command = bare.startswith(_COMMAND) and _GAP not in bare
    end = " \\" if is_command else ""
    rows = wrap(
        bare,
        width - len(end),
        initial_indent=indent,
        subsequent_indent=indent + _GAP,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{end}\n".join(rows)
