"""Show which bytes of the disk hold data, in which layer, and where in its file.

The output is that of qemu-img map: as text only data, as JSON everything.

examples:
  qcow2c map disk.qcow2
  qcow2c map --output=json --start-offset 1G --max-length 64M disk.qcow2
  qcow2c map --gate any overlay.qcow2
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from qcow2c.cli import arguments, image_names, sizes, text
from qcow2c.errors import UnsupportedFeature
from qcow2c.light import TYPE_CHECKING

if TYPE_CHECKING:
    from qcow2c.disk.map import Columns, DiskMap


def add_arguments(parser: ArgumentParser) -> None:
    arguments.add_image(parser)
    image_names.add_arguments(parser)
    arguments.add_output(parser)
    parser.add_argument("-s", "--start-offset", type=sizes.parse_size, default=0, metavar="OFFSET", help="begin here")
    parser.add_argument("-l", "--max-length", type=sizes.parse_size, metavar="LENGTH", help="bytes to map at most")
    arguments.add_gate(parser)


def run(chosen: Namespace) -> int:
    named = image_names.chosen_image(chosen, chosen.image, chosen.format)
    with image_names.open_named(named, gate=chosen.gate) as disk:
        if chosen.output == "json":
            from qcow2c.disk.map_json import map_json

            for piece in map_json(disk.map, chosen.start_offset, chosen.max_length):
                text.write(piece)
        else:
            _write_human(disk.map, chosen.start_offset, chosen.max_length)
    return 0


def _write_human(disk: DiskMap, start: int, max_length: int | None) -> None:
    text.write(f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File\n")
    names = [text.printable(name) for name in disk.file_names()]
    for columns in disk.located(start, max_length):
        _write_data(columns, names)


def _write_data(columns: Columns, names: list[str]) -> None:
    from qcow2c.disk.map import DATA, OFFSET, ZERO

    lines: list[str] = []
    for at, length, depth, flags, offset in zip(*columns, strict=True):
        if flags & DATA and not flags & OFFSET:
            text.write("".join(lines))
            raise UnsupportedFeature("File contains external, encrypted or compressed clusters.")
        if flags & (DATA | ZERO) == DATA:
            lines.append(f"{_hex(at):<16}{_hex(length):<16}{_hex(offset):<16}{names[depth]}\n")
    text.write("".join(lines))


def _hex(number: int) -> str:
    return f"{number:#x}" if number else "0"
