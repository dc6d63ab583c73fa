"""Make an image as small as it can be, without losing anything that it holds.

Internal snapshots with their VM states, and bitmaps, are kept, and clusters that they share are stored once. Free and
leaked clusters go, and so do data that is nothing but zeros and space that was only reserved. Backing file and data
file are neither opened nor changed: the result names them as the image does, so that it belongs into the same folder.

The result is a new file, OUTPUT, which must not be there yet and has its name only when it is complete. With
--in-place it then takes the place of IMAGE, in one step: after a crash IMAGE is the old or the new one. For that there
must be room for both, and nothing that another program has appended to IMAGE, unless --drop-trailing. No other program
may use the image. An image in which check finds an error is refused.

An image that is encrypted with LUKS, whose data is bound to its place in the file, needs its key (--object secret and
--image-opts); the result has the same key slots. Legacy AES needs none.

examples:
  qcow2c compact --dry-run disk.qcow2
  qcow2c compact -p disk.qcow2 small.qcow2
  qcow2c compact --in-place -c disk.qcow2
  qcow2c compact --object secret,id=k,file=key --image-opts encrypt.key-secret=k,file.filename=disk.qcow2 small.qcow2
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from qcow2c.cli import arguments, image_names, interrupts, progress, sizes, text
from qcow2c.errors import UsageError

if TYPE_CHECKING:
    from qcow2c.ops.compact import Compacted


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--in-place", action="store_true", help="put the result in the place of IMAGE")
    parser.add_argument("--dry-run", action="store_true", help="write nothing, and tell what would be saved")
    parser.add_argument("-c", "--compress", action="store_true", help="compress clusters, by the image's method")
    parser.add_argument("--compression-level", metavar="N", type=int, help="with -c: 1 to 9 for zlib, 1 to 22 for zstd")
    arguments.add_drop_trailing(parser)
    parser.add_argument("-p", "--progress", action="store_true", help="show progress")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    arguments.add_output(parser)
    image_names.add_arguments(parser)
    parser.add_argument("image", metavar="IMAGE", help="the image file, which is qcow2")
    parser.add_argument("target", metavar="OUTPUT", nargs="?", help="the new file")


def run(chosen: Namespace) -> int:
    if (chosen.target is not None) + chosen.in_place + chosen.dry_run != 1:
        raise UsageError("give one of OUTPUT, --in-place and --dry-run: where the result goes")
    named = image_names.named_image(chosen.image, image_opts=chosen.image_opts, secrets=chosen.secrets)
    if named.format not in (None, "qcow2"):
        raise UsageError(f"an image in format {named.format!r} cannot be made compact, only a qcow2 image")
    from qcow2c.ops.compact import compact, compact_in_place

    with ExitStack() as stack:
        stack.enter_context(interrupts.handled())
        wanted = chosen.progress and not chosen.quiet and chosen.output == "human"
        how: dict[str, Any] = {
            "compress": chosen.compress,
            "compression_level": chosen.compression_level,
            "key": named.options.get("key"),
            "progress": stack.enter_context(progress.shown(wanted=wanted)),
        }
        if chosen.in_place:
            found = compact_in_place(named.filename, drop_trailing=chosen.drop_trailing, **how)
        else:
            found = compact(named.filename, chosen.target, **how)
    if not chosen.quiet:
        _write(chosen, found)
        _warn_of_names(named.filename, chosen.target)
    return 0


def _write(chosen: Namespace, found: Compacted) -> None:
    if chosen.output == "json":
        facts = {
            "filename": chosen.image,
            "length": found.length,
            "compacted-length": found.compacted_length,
            "saved": found.saved,
            "data-clusters": found.data_clusters,
            "zero-clusters": found.zero_clusters,
            "compressed-clusters": found.compressed_clusters,
            "snapshots": found.snapshots,
            "bitmaps": found.bitmaps,
        }
        text.report(text.pretty_json(facts) + "\n")
        return
    saved, verb = found.saved, "would be" if chosen.dry_run else "is"
    change = f"{sizes.rounded(abs(saved))} ({abs(saved)} bytes) {'less' if saved >= 0 else 'more'}"
    text.report(f"{chosen.image}: {found.length} bytes\n")
    text.report(f"compacted {verb} {found.compacted_length} bytes: {change}\n")
    text.report(f"clusters: {found.data_clusters} data, {found.zero_clusters} zero, ")
    text.report(f"{found.compressed_clusters} newly compressed\n")
    text.report(f"kept: {found.snapshots} snapshots, {found.bitmaps} bitmaps\n")


def _warn_of_names(image: str, target: str | None) -> None:
    """Tell where a name in the copy means another file than it does in the image."""
    if target is None or os.path.realpath(os.path.dirname(target)) == os.path.realpath(os.path.dirname(image)):
        return
    from qcow2c.format.header import Header
    from qcow2c.storage.sources import opened

    with opened(target) as store:
        name = Header.load(store).backing_file
    if name and not os.path.isabs(name):
        where = f"{os.fsdecode(name)!r}, as seen from the folder of {target!r}"
        text.note(f"qcow2c: warning: the copy names the backing file {where}")
