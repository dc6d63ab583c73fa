"""The command line: finds the command, and turns errors into one line and an exit status.

One file a command, in `commands/`, imported only when it is asked for; each has `add_arguments(parser)`,
`run(arguments) -> int`, and a docstring that is its help. Nothing here knows the format.

May import: __init__, ops, serve, testing.
"""

# PYTHON_ARGCOMPLETE_OK: where argcomplete completes for all programs, it looks for this.

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from qcow2c.cli import output, text
from qcow2c.errors import Qcow2Error
from qcow2c.light import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from typing import Any, NoReturn

COMMANDS = {
    "convert": "copy an image into another format, or another image",
    "create": "a new image, empty or over a backing file",
    "info": "what an image is: sizes, features, snapshots, bitmaps",
    "map": "which bytes of the disk hold data, and where",
    "commit": "copy what an image holds into its backing file, and empty it",
    "rebase": "let an image lie on another backing file, or on none",
    "resize": "make a disk larger or smaller",
    "amend": "change options of an image: its version, its refcounts, its size",
    "dd": "copy a part of an image, measured in blocks",
    "measure": "how large a file would become: a copy of an image, or a new one",
    "compact": "make an image small, with its snapshots and bitmaps",
    "diff": "what differs between two states: ranges, a stream, or an overlay",
    "patch": "write a stream of diff over an image",
    "export": "an internal snapshot as an image or overlay of its own",
    "compare": "whether two images hold the same data",
    "snapshot": "list, take, apply, delete, rename internal snapshots",
    "bitmap": "change the bitmaps that record what is written, or show them",
    "check": "compare references with refcounts, find and repair corruption",
    "undo": "take a repair back: an image as it was before",
    "recover": "disks out of what is left of a damaged image, and what each byte stands on",
    "serve": "let other programs use a disk, over NBD",
    "mount": "show a disk, its snapshots and bitmaps as files of a directory",
    "report": "a page about an image for people: findings and maps, as HTML",
    "hash": "hashes of a disk, its snapshots and its file; compare with a manifest",
    "inspect": "a verdict on a file from a stranger: accept, reject, unsure",
    "dump": "every structure, field by field",
    "completion": "a script that completes commands and options in a shell",
}

_WIDTH, _NARROW, _WIDE = 80, 40, 120
"""Columns of help where no terminal shows it, and bounds for what a terminal says."""

_COMPLETION_VARIABLE = "_ARGCOMPLETE"
"""Of the environment: a shell asks what could be typed next."""

_NO_OPTION = "\0"
"""What a word begins with, for a while, that begins with "-" and is no option: none can have it."""

GARBAGE_FROM = 50_000
"""Objects made and not given back from which on the collector looks for garbage."""

INTERRUPTED = 130
"""Exit status after Ctrl-C: what a shell shows for the signal."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status. Prints errors as one line on standard error.

    Without `argv` the process is taken to live for this one command.
    """
    if argv is not None:
        return _guarded(list(argv))
    if _COMPLETION_VARIABLE in os.environ:
        from qcow2c.cli.commands import completion

        return completion.answer(COMMANDS)
    # Most of a short command's time goes into importing modules, which are no garbage, and into giving them back:
    # look through objects rarely, and not at all in the end.
    gc.set_threshold(GARBAGE_FROM)
    output.occupy_closed()
    status = _guarded(sys.argv[1:])
    gc.freeze()
    return status


def _guarded(words: list[str]) -> int:
    """Run one command; an interrupt and a reader who has gone end it quietly.

    Output that is lost is named as such. It is the failure of a command whose result it was, and no other's.
    """
    output.begin()
    try:
        status = _run(words)
        output.flush()
    except output.OutputLost as lost:
        if isinstance(lost.reason, BrokenPipeError):
            return output.BROKEN_PIPE
        status = 1
    except BrokenPipeError:
        return output.BROKEN_PIPE
    except KeyboardInterrupt as interrupt:
        return int(getattr(interrupt, "status", INTERRUPTED))
    reason = output.lost()
    if reason is not None:
        text.complain(f"cannot write to standard output: {reason.strerror}")
    return status


def _run(words: list[str]) -> int:
    command = words[0] if words else ""
    if command in ("-h", "--help"):
        text.write(_usage())
        return 0
    if command in ("-V", "--version"):
        from qcow2c import __version__

        text.write(f"qcow2c {__version__}\n")
        return 0
    if command not in COMMANDS:
        _complain_of_command(command)
        return 1
    try:
        arguments = _arguments(command, words[1:])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return _answer(arguments)


def _complain_of_command(command: str) -> None:
    """Say that a command is none, with the one that may have been meant; without any command, list them."""
    if not command:
        text.complain("no command given")
        for line in _usage().splitlines():
            text.note(line)
        return
    from difflib import get_close_matches

    close = get_close_matches(command, COMMANDS, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    text.complain(f"unknown command {command!r}{meant}", hint="qcow2c --help")


def _arguments(command: str, words: list[str]) -> Namespace:
    """Return the arguments of a command. Raises SystemExit with 0 after help, with 1 after a complaint."""
    from argparse import ArgumentParser, RawDescriptionHelpFormatter
    from importlib import import_module

    class Parser(ArgumentParser):
        def error(self, message: str) -> NoReturn:
            text.complain(f"{command}: {message.replace(_NO_OPTION, '')}", hint=f"{self.prog} --help")
            raise SystemExit(1)

    class Formatter(RawDescriptionHelpFormatter):
        def __init__(self, prog: str) -> None:
            super().__init__(prog, width=_columns())  # argparse would import a module to ask the terminal.

        def _fill_text(self, text: str, width: int, indent: str) -> str:  # noqa: ARG002 - there is none
            from qcow2c.cli.help_text import wrapped

            return wrapped(text, width)

    module = import_module(f"qcow2c.cli.commands.{command}")
    parser = Parser(prog=f"qcow2c {command}", description=module.__doc__, formatter_class=Formatter)
    module.add_arguments(parser)
    parser.set_defaults(run=module.run)
    if getattr(module, "LAST_WORD_IS_NO_OPTION", False) and words[1:] and words[-1] not in ("-h", "--help"):
        words = [*words[:-1], _NO_OPTION + words[-1]]
    arguments = parser.parse_intermixed_args(_with_values(parser, _with_end_of_options(words)))
    for name, value in list(vars(arguments).items()):
        setattr(arguments, name, _unmarked(value))
    return arguments


def _columns() -> int:
    """Return how wide help may be: as the terminal is, or the environment says."""
    try:
        columns = int(os.environ.get("COLUMNS") or 0) or os.get_terminal_size(1).columns
    except (OSError, ValueError):
        columns = _WIDTH
    return min(max(columns, _NARROW), _WIDE)


def _unmarked(value: Any) -> Any:
    """Return a value, or several, without what marks words that are no options."""
    if type(value) in (list, tuple):
        return type(value)(map(_unmarked, value))
    return value.removeprefix(_NO_OPTION) if isinstance(value, str) else value


def _with_values(parser: ArgumentParser, words: list[str]) -> list[str]:
    """Return words where those behind an option that takes values are its values, whatever they begin with."""
    values = {
        name: 1 if action.nargs is None else action.nargs
        for action in parser._actions  # noqa: SLF001 - argparse says it nowhere else
        if action.nargs is None or isinstance(action.nargs, int)
        for name in action.option_strings
    }
    marked: list[str] = []
    awaited = 0
    for word in words:
        marked.append(_NO_OPTION + word if awaited and word.startswith("-") and word != "-" else word)
        awaited = awaited - 1 if awaited else values.get(word, 0)
    return marked


def _with_end_of_options(words: list[str]) -> list[str]:
    """Return words without a "--", which argparse does not honour among mixed ones; what follows is marked."""
    if "--" not in words:
        return words
    end = words.index("--")
    return words[:end] + [_NO_OPTION + word if word.startswith("-") else word for word in words[end + 1 :]]


def _secrets(objects: list[str]) -> object:
    """Return the secrets of a command, None without any. Raises UsageError, UnsupportedFeature."""
    if not objects:
        return None
    from qcow2c.cli.secrets import Secrets

    return Secrets(objects)


def _with_warnings(arguments: Namespace) -> int:
    """Run a command; warnings about what was done all the same are lines like errors."""
    import warnings

    def show(message: Warning | str, *_where: object, **_more: object) -> None:
        named = f"{arguments.image}: " if arguments.image else ""
        text.note(f"qcow2c: warning: {named}{message}")

    before, warnings.showwarning = warnings.showwarning, show
    try:
        status: int = arguments.run(arguments)
        return status
    finally:
        warnings.showwarning = before


def _answer(arguments: Namespace) -> int:
    """Run a command, with whatever goes wrong as one line."""
    try:
        arguments.secrets = _secrets(getattr(arguments, "object", []))
    except Qcow2Error as error:  # It is about no image.
        text.complain(str(error))
        return 1
    try:
        return _with_warnings(arguments)
    except Qcow2Error as error:
        reason, status = str(error), error.exit_code
    except BrokenPipeError:
        raise
    except OSError as error:
        reason, status = error.strerror or str(error), 1
    except MemoryError:
        reason, status = "not enough memory", 1
    first, *more = reason.splitlines() or [""]
    # A name that could not be understood is in the reason already.
    text.complain(f"{arguments.image}: {first}" if arguments.image else first)
    for line in more:
        text.complain(line)
    return status


def _usage() -> str:
    lines = ["usage: qcow2c COMMAND [OPTIONS] IMAGE", "", "Read, write, check and take apart qcow2 disk images.", ""]
    lines += [f"  {name:12}{purpose}" for name, purpose in COMMANDS.items()]
    lines += ["", "'qcow2c COMMAND --help' shows the options and examples of a command."]
    return "\n".join(lines) + "\n"
