"""Print a script that lets a shell complete what is typed after qcow2c: commands, options, formats, file names.

It needs the library argcomplete, which comes with the extra qcow2c[completion]. Let the shell read the script when it
starts; for zsh, after compinit has run.

examples:
  eval "$(qcow2c completion bash)"      # in ~/.bashrc
  eval "$(qcow2c completion zsh)"       # in ~/.zshrc
  qcow2c completion fish | source       # in ~/.config/fish/config.fish
"""

from __future__ import annotations

import os
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from qcow2c.cli import arguments, text
from qcow2c.errors import UsageError

PROGRAM = "qcow2c"
SHELLS = ("bash", "zsh", "fish")

_FORMATS = ("qcow2", "raw")
_OPERANDS = ("bs=", "count=", "if=", "of=", "skip=")

Completer = Callable[..., Iterable[str]]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell to complete in")
    parser.set_defaults(image="")  # There is none that an error could be about.


def run(chosen: Namespace) -> int:
    try:
        from argcomplete.shell_integration import shellcode
    except ImportError:
        raise UsageError(f"argcomplete is not installed: pip install '{PROGRAM}[completion]'") from None
    text.write(shellcode([PROGRAM], shell=chosen.shell))
    return 0


def answer(commands: Mapping[str, str]) -> int:
    """Write what a shell has asked for by the environment, as argcomplete does, and end the process.

    `commands` are all there are, with what they are for. Returns an exit status where there is no argcomplete.
    """
    try:
        import argcomplete
    except ImportError:
        return 1
    argcomplete.autocomplete(
        parser_of_all(commands),
        always_complete_options=False,
        default_completer=_offers,  # type: ignore[arg-type] # It calls it, no more.
    )
    return 0


def parser_of_all(commands: Mapping[str, str]) -> ArgumentParser:
    """Return one parser for all commands."""
    from importlib import import_module

    parser = ArgumentParser(prog=PROGRAM)
    parser.add_argument("-V", "--version", action="store_true", help="show the version")
    parsers = parser.add_subparsers()
    for name, purpose in commands.items():
        import_module(f"qcow2c.cli.commands.{name}").add_arguments(parsers.add_parser(name, help=purpose))
    return parser


def _offers(prefix: str, action: Action, **_: Any) -> Iterable[str]:
    """Return what could complete an argument, by what its help calls it: any other operand is a file."""
    known: dict[object, Completer] = {
        "FMT": lambda **_: _FORMATS,
        "K=V,...": _format_options,
        "NAME=VALUE": _operands,
        "FILE": _files,
        "CACHE": _cache_modes,
        "MODE": _cache_modes,
        "SIZE": _nothing,
    }
    completer: Completer = known.get(action.metavar, _nothing if action.option_strings else _files)
    return completer(prefix=prefix)


def _nothing(**_: Any) -> Iterable[str]:
    return ()


def _cache_modes(**_: Any) -> Iterable[str]:
    return arguments.CACHE_MODES


def _format_options(prefix: str, **_: Any) -> Iterable[str]:
    """Yield the names of the options of qcow2, after those that are there already."""
    from qcow2c.cli.commands.create import QCOW2_OPTIONS

    before = prefix[: prefix.rfind(",") + 1]
    return [f"{before}{option.name}=" for option in QCOW2_OPTIONS]


def _operands(prefix: str, **_: Any) -> Iterable[str]:
    name, equals, value = prefix.partition("=")
    if equals and name in ("if", "of"):
        return [f"{name}={file}" for file in _files(value)]
    return () if equals else _OPERANDS


def _files(prefix: str, **_: Any) -> Iterable[str]:
    """Return the files and directories whose names begin with a prefix; hidden ones only where it asks for them."""
    directory, start = prefix[: prefix.rfind("/") + 1], prefix[prefix.rfind("/") + 1 :]
    try:
        with os.scandir(os.path.expanduser(directory) or os.curdir) as entries:
            return sorted(
                directory + entry.name + ("/" if entry.is_dir() else "")
                for entry in entries
                if entry.name.startswith(start) and (start or not entry.name.startswith("."))
            )
    except OSError:
        return ()
