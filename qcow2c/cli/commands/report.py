"""A report about an image as one HTML file: verdict, findings, geometry, snapshots, maps of the file and of the disk.

The file needs no network and allows none. The image is only read, and no other file is opened.

examples:
  qcow2c report --html report.html disk.qcow2

exit status: 0 the report is written, whatever is in it; 1 the image could not be read, or the report not be written
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace

from qcow2c.cli import arguments, pipes
from qcow2c.errors import UsageError
from qcow2c.light import TYPE_CHECKING

if TYPE_CHECKING:
    from qcow2c.storage.sources import Store


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="the image file")
    parser.add_argument(
        "--html", metavar="FILE", required=True, help="where the report goes; what is there is replaced"
    )
    arguments.add_share(parser)


def run(chosen: Namespace) -> int:
    if os.path.exists(chosen.html) and os.path.exists(chosen.image) and os.path.samefile(chosen.html, chosen.image):
        raise UsageError("the report would replace the image")
    if not pipes.is_pipe(chosen.image):
        return _write(chosen, chosen.image)
    with pipes.kept(chosen.image) as store:
        return _write(chosen, store)


def _write(chosen: Namespace, source: str | Store) -> int:
    """Write the report beside its place, and rename it when it is complete."""
    from datetime import UTC, datetime
    from tempfile import NamedTemporaryFile

    from qcow2c import __version__
    from qcow2c.ops.report import report

    made = (
        ("tool", f"qcow2c {__version__}"),
        ("command", " ".join(["qcow2c", *sys.argv[1:]])),
        ("made", datetime.now(UTC).isoformat(timespec="seconds")),
    )
    folder = os.path.dirname(os.path.abspath(chosen.html))
    with NamedTemporaryFile("w", encoding="utf-8", errors="backslashreplace", dir=folder, delete=False) as file:
        try:
            for piece in report(source, share=chosen.force_share, provenance=made):
                file.write(piece)
            file.close()
            os.chmod(file.name, 0o644)
            os.replace(file.name, chosen.html)
        except BaseException:
            os.unlink(file.name)
            raise
    return 0
