"""A report as one HTML file: verdict, findings, geometry, snapshots, and maps of the file and of the disk.

The file holds all it shows and asks no network; its content security policy allows its own style and script, and no
other. Whatever comes from an image is text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

from qcow2c.errors import Span
from qcow2c.forensic.nodes import Node, printable, size_text
from qcow2c.forensic.overview import Overview
from qcow2c.forensic.report_maps import COLOURS
from qcow2c.forensic.report_page import SCRIPT, STYLE

_MAPS = {"file": "The file", "disk": "The guest's disk"}


class ReportParts:
    """What a report shows: the overview, findings, rows about the image and its snapshots, and the maps."""

    def __init__(self, name: str, overview: Overview, verdict: str) -> None:
        self.name = name
        self.overview = overview
        self.verdict = verdict
        self.findings: list[Node] = []
        self.facts: list[tuple[str, str]] = []
        self.snapshots: list[Node] = []
        self.maps: dict[str, dict[str, Any]] = {}
        self.provenance: list[tuple[str, str]] = []


def page(parts: ReportParts) -> Iterator[str]:
    """Yield the page, piece by piece."""
    policy = f"default-src 'none'; style-src '{_digest(STYLE)}'; script-src '{_digest(SCRIPT)}'; base-uri 'none'"
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    yield f"<title>{_text(parts.name)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    yield f'<h1>{_text(parts.name)}</h1>\n<p class="verdict">{_text(parts.verdict)}</p>\n'
    yield from _findings(parts)
    yield from _table("The image", ("field", "value"), parts.facts)
    yield from _snapshots(parts.snapshots)
    yield from _kinds(parts.overview)
    for name in parts.maps:
        yield from _map(name, parts.maps[name])
    yield from _table("This report", ("", ""), parts.provenance)
    data = json.dumps({"maps": parts.maps}).replace("<", "\\u003c")
    yield f'<script type="application/json" id="data">{data}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n'


def _digest(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode("ascii")


def _text(words: object) -> str:
    return escape(printable(str(words)))


def _place(span: Span | None) -> str:
    if span is None:
        return ""
    return f'<a class="place" data-offset="{span.offset}">{span.offset:#x}</a>, {span.length} bytes'


def _findings(parts: ReportParts) -> Iterator[str]:
    found = ", ".join(f"{count} {name}" for name, count in parts.overview.findings.items() if count)
    yield f"<h2>Findings</h2>\n<p>{_text(found or 'none')}</p>\n"
    if not parts.findings:
        return
    yield "<table><tr><th>severity</th><th>rule</th><th>what</th><th>where</th></tr>\n"
    for node in parts.findings:
        value = node.value if isinstance(node.value, str) else ""
        yield f"<tr><td>{_text(value)}</td><td>{_text(node.name)}</td><td>{_text(node.text)}</td>"
        yield f"<td>{_place(node.span)}</td></tr>\n"
    yield "</table>\n"


def _table(title: str, heads: tuple[str, str], rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield f"<h2>{title}</h2>\n<table><tr><th>{heads[0]}</th><th>{heads[1]}</th></tr>\n"
    for name, value in rows:
        yield f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>\n"
    yield "</table>\n"


def _snapshots(nodes: list[Node]) -> Iterator[str]:
    if not nodes:
        return
    yield "<h2>Snapshots</h2>\n<table><tr><th>record</th><th>name</th><th>what</th><th>where</th></tr>\n"
    for node in nodes:
        yield f"<tr><td>{_text(node.name)}</td><td>{_text(node.value)}</td><td>{_text(node.text)}</td>"
        yield f"<td>{_place(node.span)}</td></tr>\n"
    yield "</table>\n"


def _kinds(overview: Overview) -> Iterator[str]:
    total = max(1, sum(overview.kinds.values()))
    yield '<h2>Bytes of the file</h2>\n<table><tr><th>kind</th><th class="n">bytes</th><th class="n">share</th></tr>\n'
    for name, size in sorted(overview.kinds.items(), key=lambda kind: (-kind[1], kind[0])):
        yield f'<tr><td>{_text(name)}</td><td class="n">{size} ({size_text(size)})</td>'
        yield f'<td class="n">{100 * size / total:.2f} %</td></tr>\n'
    yield "</table>\n"


def _map(name: str, packed: dict[str, Any]) -> Iterator[str]:
    yield f'<h2>{_MAPS[name]}</h2>\n<canvas id="{name}" role="img" aria-label="{_MAPS[name]}"></canvas>\n'
    yield f'<p class="at" id="{name}-at"></p>\n<p class="tools">'
    yield f'<input id="{name}-find" placeholder="offset" aria-label="offset"><button id="{name}-in">closer</button>'
    yield f'<button id="{name}-out">all of it</button> The wheel zooms, a click marks.</p>\n<p class="key">'
    swatches = dict.fromkeys(kind for kind, _ in packed["kinds"])
    yield "".join(f"<span>{_swatch(kind)}{_text(kind)}</span>" for kind in swatches) + "</p>\n"


def _swatch(kind: str) -> str:
    """Return a square in the colour of a kind: a picture, because the policy allows no style of its own."""
    colour = COLOURS.get(kind, "#888888")
    return f'<svg width="12" height="12" aria-hidden="true"><rect width="12" height="12" fill="{colour}"/></svg> '
