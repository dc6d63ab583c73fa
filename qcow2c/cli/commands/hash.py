"""What an image holds, as hashes: of the disk, of each snapshot, and of the file; or whether it still holds that.

The hash of a disk is the same in every format: zeros count by their number, so that a sparse disk of a terabyte takes
seconds. docs/hashing.md has the definition. The report is the same byte for byte each time, but for its times.

examples:
  qcow2c hash disk.qcow2
  qcow2c hash --output=json --ranges disk.qcow2 > manifest.json
  qcow2c hash --verify manifest.json copy.raw

exit status: 0 done, or all is as in the manifest; 2 something differs; 1 it could not be read
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from qcow2c.cli import arguments, image_names, progress, sizes, text

if TYPE_CHECKING:
    from typing import Any

    from qcow2c.ops.hash import ImageHashes

DIFFERENT = 2

LISTED = 20
"""Differences that are named."""


def add_arguments(parser: ArgumentParser) -> None:
    arguments.add_image(parser)
    image_names.add_arguments(parser)
    arguments.add_output(parser)
    parser.add_argument("--algorithm", choices=("sha256", "blake2b-256"), default="sha256", help="default: sha256")
    parser.add_argument("--ranges", action="store_true", help="JSON: the digest of each range, too")
    parser.add_argument("--range-size", type=sizes.parse_size, metavar="SIZE", help="bytes of a range (default: 1M)")
    parser.add_argument("--no-snapshots", action="store_true", help="the active disk only")
    parser.add_argument(
        "--file-hash", choices=("auto", "always", "never"), default="auto", help="the plain SHA-256 of the file"
    )
    parser.add_argument("--verify", metavar="MANIFEST", help="compare with a report of --output=json")
    parser.add_argument("--file", action="store_true", help="with --verify: the file must be the same, too")
    parser.add_argument("-p", "--progress", action="store_true", help="show progress")
    arguments.add_gate(parser)


def run(chosen: Namespace) -> int:
    from datetime import UTC, datetime

    from qcow2c.disk.content import RANGE_BYTES
    from qcow2c.ops.hash import hash_opened, read_manifest, verify_opened
    from qcow2c.storage.locks import Use
    from qcow2c.storage.sources import opened

    manifest = None if chosen.verify is None else read_manifest(chosen.verify)
    named = image_names.chosen_image(chosen, chosen.image, chosen.format)
    wanted = chosen.progress and chosen.output == "human"
    started = datetime.now(UTC)
    with (
        image_names.source_of(named) as source,
        opened(source, Use.of_reader(share=named.share)) as store,
        image_names.open_named(named, gate=chosen.gate, store=store) as disk,
        progress.shown(wanted=wanted) as report,
    ):
        snapshots = not chosen.no_snapshots
        if manifest is not None:
            different = verify_opened(store, disk, manifest, snapshots=snapshots, file=chosen.file, progress=report)
            return _tell([*map(str, different)])
        found = hash_opened(
            store,
            disk,
            algorithm=chosen.algorithm,
            range_bytes=chosen.range_size or RANGE_BYTES,
            ranges=chosen.ranges,
            snapshots=snapshots,
            file_hash=chosen.file_hash,
            progress=report,
        )
    if chosen.output == "json":
        import json

        times = {"started": started.isoformat(), "finished": datetime.now(UTC).isoformat()}
        text.write(json.dumps(_report(found, times), indent=2) + "\n")
    else:
        for line in _human(found):
            text.write(text.printable(line) + "\n")
    return 0


def _report(found: ImageHashes, times: dict[str, str]) -> dict[str, Any]:
    """Return the report: what it says is the same each time, but for `times`, which is one member."""
    import sys

    from qcow2c import __version__

    tool = {"name": "qcow2c", "version": __version__, "command": ["qcow2c", *sys.argv[1:]]}
    return found.as_dict() | {"tool": tool, "times": times}


def _human(found: ImageHashes) -> Iterator[str]:
    yield f"file: {found.filename} ({found.format}, {found.file_bytes} bytes)"
    if found.file_sha256 is not None:
        yield f"  sha256 {found.file_sha256}"
    yield f"  content {found.file_content.digest.hex()}"
    for disk in found.disks:
        name = "disk" if disk.snapshot is None else f"snapshot {disk.snapshot[1]} (ID {disk.snapshot[0]})"
        yield f"{name}: {disk.content.size} bytes, {disk.content.data_bytes} of them in ranges with data"
        yield f"  content {disk.content.digest.hex()}"


def _tell(differences: list[str]) -> int:
    for line in differences[:LISTED]:
        text.write(text.printable(line) + "\n")
    if len(differences) > LISTED:
        text.write(f"... and {len(differences) - LISTED} more\n")
    if not differences:
        text.write("All is as in the manifest.\n")
    return DIFFERENT if differences else 0
