"""Show what an image is: sizes, features, snapshots, bitmaps, encryption.

The output is that of qemu-img info. No other file is opened without --backing-chain. Sizes are whole sectors of 512
bytes, as there: of a qcow2 disk that ends within one, the rest is not counted; that of a raw file counts whole.

examples:
  qcow2c info disk.qcow2
  qcow2c info --output=json disk.qcow2
  qcow2c info --backing-chain --gate any overlay.qcow2
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping

from qcow2c.cli import arguments, image_names, sizes, text
from qcow2c.errors import UnsupportedFeature
from qcow2c.light import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


_INDENT = "    "

_JSON_ALONE = "detached-header"
"""What is always the same, and no news for a reader."""


def add_arguments(parser: ArgumentParser) -> None:
    arguments.add_image(parser)
    image_names.add_arguments(parser)
    arguments.add_output(parser)
    parser.add_argument("-b", "--backing-chain", action="store_true", help="show the backing files, too")
    arguments.add_gate(parser)


def run(chosen: Namespace) -> int:
    from qcow2c.ops.info import info

    named = image_names.chosen_image(chosen, chosen.image, chosen.format)
    if named.options.get("backing") or named.backing_format:
        # What the chain looks like is what the images say.
        chosen.image = ""
        reason = "Block format 'qcow2' does not support the option 'backing.driver'"
        raise UnsupportedFeature(f"Could not open {named.name!r}: {reason}")
    with image_names.source_of(named) as source:
        found = info(
            source,
            backing_chain=chosen.backing_chain,
            gate=chosen.gate,
            image_format=named.format,
            share=named.share,
        )
    if chosen.output == "json":
        facts = [one.as_dict() for one in found] if isinstance(found, list) else found.as_dict()
        text.write(text.pretty_json(facts) + "\n")
    else:
        images = found if isinstance(found, list) else [found]
        text.write("\n".join("".join(line + "\n" for line in human(image)) for image in images))
    return 0


def human(image: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of one image."""
    size = image["virtual-size"]
    yield f"image: {text.printable(image['filename'])}"
    yield f"file format: {image['format']}"
    yield f"virtual size: {sizes.rounded(size)} ({size} bytes)"
    yield f"disk size: {sizes.rounded(image['actual-size']) if 'actual-size' in image else 'unavailable'}"
    if image.get("encrypted"):
        yield "encrypted: yes"
    if "cluster-size" in image:
        yield f"cluster_size: {image['cluster-size']}"
    if image.get("dirty-flag"):
        yield "cleanly shut down: no"
    yield from _backing(image)
    if "snapshots" in image:
        yield from snapshot_list(image["snapshots"])
    if "format-specific" in image:
        yield "Format specific information:"
        yield from _tree(image["format-specific"]["data"], 1)


def _backing(image: Mapping[str, Any]) -> Iterator[str]:
    name = image.get("backing-filename")
    if name is None:
        return
    full = image["full-backing-filename"]
    actual = "" if full == name else f" (actual path: {text.printable(full)})"
    yield f"backing file: {text.printable(name)}{actual}"
    if "backing-filename-format" in image:
        yield f"backing file format: {text.printable(image['backing-filename-format'])}"


def snapshot_list(snapshots: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the snapshots of an image that has some."""
    yield "Snapshot list:"
    yield f"{'ID':<10}{'TAG':<17}{'VM SIZE':>8}{'DATE':>20}{'VM CLOCK':>13}{'ICOUNT':>11}"
    yield from map(_snapshot, snapshots)


def _snapshot(snapshot: dict[str, Any]) -> str:
    hours, rest = divmod(snapshot["vm-clock-sec"], 3600)
    clock = f"{hours:02}:{rest // 60:02}:{rest % 60:02}.{snapshot['vm-clock-nsec'] // 10**6:03}"
    date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot["date-sec"]))
    name = _padded(snapshot["id"], 9) + " " + _padded(snapshot["name"], 16)
    return f"{name} {sizes.rounded(snapshot['vm-state-size']):>8}{date:>20}{clock:>13}{snapshot.get('icount', ''):>11}"


def _padded(words: str, width: int) -> str:
    """Return printable words padded to a width that counts bytes, as C does."""
    return text.printable(words) + " " * (width - len(words.encode("utf-8", "surrogateescape")))


def _tree(value: dict[str, Any] | list[Any], depth: int) -> Iterator[str]:
    """Yield nested values line by line; keys are words, elements of lists are numbered."""
    if isinstance(value, dict):
        named = [(key.replace("-", " "), found) for key, found in value.items() if key != _JSON_ALONE]
    else:
        named = [(f"[{number}]", found) for number, found in enumerate(value)]
    for name, found in named:
        if isinstance(found, dict | list):
            yield f"{_INDENT * depth}{name}:"
            yield from _tree(found, depth + 1)
        elif isinstance(found, bool):
            yield f"{_INDENT * depth}{name}: {'true' if found else 'false'}"
        else:
            yield f"{_INDENT * depth}{name}: {text.printable(str(found))}"
