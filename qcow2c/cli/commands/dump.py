"""Take an image apart: every structure, field by field, and every byte of the file with what it belongs to.

Works on damaged and truncated images: it goes on past what it cannot read, and lists what it found wrong. No other
file is opened without --backing-chain.

examples:
  qcow2c dump disk.qcow2
  qcow2c dump --summary disk.qcow2             the verdict, findings, and bytes by what they are
  qcow2c dump --section header --section l2 --doc disk.qcow2
  qcow2c dump --offset 0x30000 disk.qcow2      what this byte of the file is, and who refers to it
  qcow2c dump --guest 1G disk.qcow2            where this byte of the disk comes from, in each snapshot too
  qcow2c dump --free disk.qcow2                what lies where nothing refers to
  qcow2c dump --force --cluster-bits 16 --offset-in-file 1M broken.img
  qcow2c dump --output=json --verify disk.qcow2

exit status: 0 nothing is wrong, 2 errors were found (they are in the output), 3 leaked clusters only, 1 the image could
not be read at all
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qcow2c.cli import arguments, output, pipes, sizes, text

if TYPE_CHECKING:
    from qcow2c.dump import Dump
    from qcow2c.forensic.nodes import Node
    from qcow2c.storage.sources import Store

SECTIONS = (
    *("header", "features", "extensions", "encryption", "snapshots", "bitmaps"),
    *("l1", "l2", "refcounts", "map", "findings"),
)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="the image file")
    parser.add_argument("--output", choices=("text", "json", "jsonl"), default="text", help="form of the output")
    parser.add_argument(
        "--section",
        action="append",
        choices=SECTIONS,
        metavar="SECTION",
        help=f"only this part; may be given again: {', '.join(SECTIONS)}",
    )
    parser.add_argument("--offset", type=sizes.parse_size, metavar="HOST", help="explain one byte of the file")
    parser.add_argument("--guest", type=sizes.parse_size, metavar="OFFSET", help="trace one byte of the virtual disk")
    parser.add_argument("--verify", action="store_true", help="compare with a second, independent parser")
    parser.add_argument("--raw", action="store_true", help="show the bytes of each field")
    parser.add_argument("--doc", action="store_true", help="show what each field means, and where that is specified")
    parser.add_argument("--zeros", action="store_true", help="text: also show runs of zero entries")
    parser.add_argument("--free", action="store_true", help="what lies in slack, free and leaked clusters, by a guess")
    parser.add_argument(
        "--force", action="store_true", help="go on where magic, version or sizes in the header are wrong"
    )
    parser.add_argument(
        "--cluster-bits", type=int, metavar="N", help="clusters have 2**N bytes, whatever the header says"
    )
    parser.add_argument(
        "--offset-in-file", type=sizes.parse_size, metavar="OFFSET", help="where in the file the image begins"
    )
    parser.add_argument("--all", action="store_true", help="text: all rows, also what every image has")
    parser.add_argument("--summary", action="store_true", help="the verdict, and the findings")
    parser.add_argument("--backing-chain", action="store_true", help="go on with the backing files")
    parser.add_argument("--key-secret", metavar="ID", help="say which key slot this secret opens")
    arguments.add_object(parser)
    arguments.add_share(parser)
    arguments.add_gate(parser)


def run(chosen: Namespace) -> int:
    if not chosen.backing_chain:
        if not pipes.is_pipe(chosen.image):
            return _dump(chosen, chosen.image)
        with pipes.kept(chosen.image) as store:
            return _dump(chosen, store)
    from qcow2c.dump import chain

    # As with info: one array for the chain, closed even where the chain breaks off.
    is_array, status, separator = chosen.output == "json", 0, "["
    try:
        for store in chain(chosen.image, chosen.gate):
            if is_array:
                text.write(separator)
            separator = ","
            status = max(status, _dump(chosen, store))
    finally:
        if is_array and separator == ",":
            text.write("]\n")
    return status


def _dump(chosen: Namespace, source: str | Store) -> int:
    from qcow2c.dump import Dump

    key = None
    if chosen.key_secret is not None:
        from qcow2c.cli.secrets import Secrets

        key = (chosen.secrets or Secrets()).get(chosen.key_secret)
    sections = chosen.section or (["findings"] if chosen.summary else ["map"] if chosen.free else None)
    with (
        _believed(chosen, source) as store,
        Dump(store, sections, verify=chosen.verify, share=chosen.force_share, key=key) as dump,
    ):
        node = dump.question(host_offset=chosen.offset, guest_offset=chosen.guest)
        if chosen.free and dump.walk is not None:
            node = _with_free(dump, node, is_alone=chosen.section is None)
        for piece in _rendered(chosen, dump, node):
            text.write(piece)
        return dump.exit_code


@contextmanager
def _believed(chosen: Namespace, source: str | Store) -> Iterator[str | Store]:
    """Give out what is taken apart: the file, a part of it, or what it would be with another header."""
    if chosen.offset_in_file is None and chosen.cluster_bits is None and not chosen.force:
        yield source
        return
    from qcow2c.forensic.forced_header import forced_store
    from qcow2c.storage.file_part import FilePart
    from qcow2c.storage.locks import Use
    from qcow2c.storage.sources import opened

    with opened(source, Use.of_reader(share=chosen.force_share)) as store:
        part = store if chosen.offset_in_file is None else FilePart(store, chosen.offset_in_file)
        yield forced_store(part, force=chosen.force, cluster_bits=chosen.cluster_bits)


def _with_free(dump: Dump, node: Node, *, is_alone: bool) -> Node:
    """Return a tree with the section `free`, or that section alone."""
    from dataclasses import replace
    from itertools import chain

    from qcow2c.dump import Dump
    from qcow2c.forensic.free_space import free_section

    def of_map() -> Iterator[Node]:
        if is_alone:  # It is a dump of the map alone, and has its status.
            yield from next(node.children).children
            return
        with Dump(dump.store, ["map"], share=True) as brief:
            yield from next(brief.root.children).children

    assert dump.walk is not None, "the caller has looked"
    free = free_section(of_map, dump.store, dump.walk.geometry.cluster_size)
    return replace(node, make_children=lambda: [free] if is_alone else chain(node.children, [free]))


def _overview(chosen: Namespace, dump: Dump) -> Iterable[str]:
    """Yield what stands above the sections: not where only some of them, or an answer, are asked for."""
    is_whole = chosen.section is None and not chosen.free and chosen.offset is None and chosen.guest is None
    if not (is_whole or chosen.summary):
        return
    from qcow2c.dump import Dump
    from qcow2c.forensic.overview import SECTIONS as BRIEF
    from qcow2c.forensic.overview import Overview

    with Dump(dump.store, BRIEF, share=chosen.force_share) as brief:
        yield from Overview(brief.root).lines(brief.exit_code)


def _width() -> int | None:
    """Return the columns of the terminal, None where there is none."""
    try:
        return int(os.environ.get("COLUMNS") or 0) or os.get_terminal_size(1).columns
    except (OSError, ValueError):
        return None


def _rendered(chosen: Namespace, dump: Dump, node: Node) -> Iterable[str]:
    if chosen.output == "text":
        from qcow2c.forensic.render_text import Style

        is_terminal = output.is_terminal()
        style = Style(
            colour=is_terminal and "NO_COLOR" not in os.environ,
            raw=chosen.raw,
            doc=chosen.doc,
            zeros=chosen.zeros or chosen.all,
            heads=not chosen.summary,
            folds=not chosen.all,
            width=_width() if is_terminal else None,
        )
        return dump.text(node, style, _overview(chosen, dump))
    render = dump.json if chosen.output == "json" else dump.json_lines
    return render(node, raw=chosen.raw, doc=chosen.doc)
