"""`report`: what is in an image, as one HTML file for people: verdict and findings first, then maps. Reads one file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from qcow2c.dump import Dump
from qcow2c.forensic.nodes import Node
from qcow2c.forensic.overview import VERDICTS, Overview
from qcow2c.forensic.report_html import ReportParts, page
from qcow2c.forensic.report_maps import disk_map, file_map
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import Source, Store, opened

_READ_BYTES = 1 << 20
_HASHED_BYTES = 64 << 30
"""A longer file gets no hash: that is what `hash_image` is for."""

_FACTS = ("header", "features")


def report(
    source: Source | Store,
    *,
    share: bool = False,
    provenance: tuple[tuple[str, str], ...] = (),
) -> Iterator[str]:
    """Yield an HTML page about an image, piece by piece; the file is open while it is taken.

    `provenance` are rows for the end of the page, such as who made it and when. Damage is shown, not raised. Raises
    NotQcow2 where not even the magic is there, StoreError, ImageLocked.
    """
    with opened(source, Use.of_reader(share=share)) as store, Dump(store, ["map", "findings"], share=share) as dump:
        overview = Overview(dump.root)
        parts = ReportParts(store.name, overview, VERDICTS.get(dump.exit_code, "unknown"))
        parts.findings = [*_section(dump, "findings")]
        with Dump(store, ["header", "features", "snapshots"], share=share) as fields:
            parts.snapshots = [*_section(fields, "snapshots")]
            for name in _FACTS:
                parts.facts += [(leaf.name, _words(leaf)) for leaf in _leaves(_section(fields, name))]
        parts.maps["file"] = file_map(_section(dump, "map"))
        if dump.walk is not None:
            parts.maps["disk"] = disk_map(store, dump.walk.header)
        parts.provenance = [("file", f"{store.size()} bytes"), *_hash(store), *provenance]
        yield from page(parts)


def _section(dump: Dump, name: str) -> Iterator[Node]:
    for section in dump.root.children:
        if section.name == name:
            yield from section.children


def _leaves(nodes: Iterator[Node]) -> Iterator[Node]:
    for node in nodes:
        if node.make_children is None:
            yield node
        else:
            yield from _leaves(node.children)


def _words(node: Node) -> str:
    return "  ".join(str(part) for part in (node.value, node.text) if part not in (None, ""))


def _hash(store: Store) -> list[tuple[str, str]]:
    if store.size() > _HASHED_BYTES:
        return []
    whole = hashlib.sha256()
    for at in range(0, store.size(), _READ_BYTES):
        whole.update(store.pread(_READ_BYTES, at))
    return [("SHA-256 of the file", whole.hexdigest())]
