"""How time and memory grow with the size of a disk, from 1 GiB on: a table, and a picture with logarithmic axes.

Each command runs once on a sparse disk, which has a megabyte of data, and on one of full metadata: every cluster is
allocated, and none holds data. The larger ones need room: full metadata of 16 TiB are 2.5 GiB, and a copy of them.

examples:
  python -m bench.growth --directory build/growth --write docs/growth.svg
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bench import machine
from bench.table import seconds
from bench.timing import Spent, qcow2c, qemu_img, run
from qcow2c.cli.sizes import parse_size

GIB = 1 << 30
STEP = 4
"""Each disk is so many times as large as the one before."""

Command = Callable[[Path, Path], list[str]]
"""The words for an image, and for a target that is not there."""

COMMANDS: dict[str, Command] = {
    "check": lambda image, _target: qcow2c("check", image),
    "map": lambda image, _target: qcow2c("map", "--output=json", image),
    "dump": lambda image, _target: qcow2c("dump", "--output=jsonl", image),
    "convert": lambda image, target: qcow2c("convert", "-O", "qcow2", image, target),
    "snapshot": lambda image, _target: qcow2c("snapshot", "-c", "new", image),
    "compact": lambda image, target: qcow2c("compact", image, target),
}
"""The snapshot comes last of those that read: it changes the image, which `compact` then reads with it."""


class Point(NamedTuple):
    command: str
    kind: str
    disk_size: int
    spent: Spent


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="where images are made (default: a temporary one)"
    )
    parser.add_argument("--sparse", type=parse_size, default=64 << 40, help="largest sparse disk (default: 64T)")
    parser.add_argument("--full", type=parse_size, default=16 << 40, help="largest of full metadata (default: 16T)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="draw the picture into an SVG file")
    chosen = parser.parse_args(argv)
    with ExitStack() as stack:
        directory = chosen.directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qcow2c-growth-")))
        directory.mkdir(parents=True, exist_ok=True)
        for name, value in machine.facts(directory).items():
            print(f"{name}: {value}")
        points: list[Point] = []
        for kind, largest in (("sparse", chosen.sparse), ("full metadata", chosen.full)):
            size = GIB
            while size <= largest:
                points += measured(directory, kind, size)
                size *= STEP
    if chosen.write is not None:
        draw(points, chosen.write)
    return 0


def measured(directory: Path, kind: str, size: int) -> list[Point]:
    """Run each command on a disk that is made for it; print and return what they take."""
    image, target = directory / "grown.qcow2", directory / "grown.target"
    points: list[Point] = []
    try:
        preallocation = ["-o", "preallocation=metadata"] if kind != "sparse" else []
        run(qemu_img("create", "-q", "-f", "qcow2", *preallocation, image, str(size)))
        if kind == "sparse":
            run(["qemu-io", "-c", "write -P 1 0 1M", image])
        for name, words in COMMANDS.items():
            points.append(Point(name, kind, size, run(words(image, target))))
            print(line(points[-1]), flush=True)
            target.unlink(missing_ok=True)
    finally:
        image.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
    return points


def line(point: Point) -> str:
    memory = f"{point.spent.memory >> 20} MiB"
    return (
        f"{point.kind:14} {shown(point.disk_size):>8} {point.command:9} "
        f"{seconds(point.spent.wall):>8} {seconds(point.spent.cpu):>8} {memory:>9}"
    )


def shown(size: int) -> str:
    """Return a size in GiB or TiB."""
    return f"{size >> 40} TiB" if size >= 1 << 40 else f"{size >> 30} GiB"


def draw(points: Sequence[Point], file: Path) -> None:
    """Draw time and memory over the size of the disk, one line a command, for each kind of disk."""
    import matplotlib

    matplotlib.use("svg")
    # Text stays text, and the same figures make the same file.
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "qcow2c", "font.size": 9}
    from matplotlib import pyplot

    kinds = list(dict.fromkeys(point.kind for point in points))
    figure, rows = pyplot.subplots(
        2, len(kinds), figsize=(5 * len(kinds), 7), squeeze=False, sharex="col", sharey="row"
    )
    for column, kind in enumerate(kinds):
        for name in COMMANDS:
            found = [point for point in points if (point.kind, point.command) == (kind, name)]
            sizes = [point.disk_size / GIB for point in found]
            rows[0][column].plot(sizes, [point.spent.wall for point in found], marker="o", markersize=3, label=name)
            rows[1][column].plot(sizes, [point.spent.memory / (1 << 20) for point in found], marker="o", markersize=3)
        rows[0][column].set_title(f"disk: {kind}")
        rows[1][column].set_xlabel("virtual size, GiB")
        for axes in (rows[0][column], rows[1][column]):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.grid(visible=True, which="both", linewidth=0.3)
    rows[0][0].set_ylabel("seconds")
    rows[1][0].set_ylabel("memory at its peak, MiB")
    rows[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    if shutil.which("qemu-img") is None:
        sys.exit("qcow2c: qemu-img is needed (Debian: qemu-utils)")
    raise SystemExit(main())
