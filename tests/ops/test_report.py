"""The report: a page that holds what it shows, lets no name become markup, and whose script finds what is clicked."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.errors import Span
from qcow2c.forensic.nodes import Node
from qcow2c.forensic.report_maps import file_map
from qcow2c.ops.report import report
from tests.building import Builder

HOSTILE = b'</script><img src=x onerror=alert(1)>"\x1b[2J'


class Elements(HTMLParser):
    """The elements of a page, and the text of its scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.sources: dict[str, list[str]] = {"script": [], "style": []}
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside in self.sources:
            self.sources[self._inside].append(data)

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002
        self._inside = ""


def image() -> bytes:
    builder = Builder(1 << 20)
    builder.data(0, b"x")
    builder.data(7, b"y")
    builder.snapshot(HOSTILE)
    builder.allocate(1)
    return builder.build()


def page_of(source: Any) -> str:
    return "".join(report(source))


def maps_of(page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Elements(page).sources["script"][0])["maps"]
    return found


def runs_of(packed: dict[str, Any]) -> list[list[Any]]:
    numbers, value, shift = [], 0, 0
    for byte in zlib.decompress(base64.b64decode(packed["runs"])):
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(value)
            value = shift = 0
    width = 3 if packed["places"] else 2
    rows = [numbers[at : at + width] for at in range(0, len(numbers), width)]
    return [[row[0], packed["kinds"][row[1]][0], *row[2:]] for row in rows]


def test_the_page_asks_nothing_of_anybody_and_runs_only_its_own_script() -> None:
    page = page_of(image())
    elements = Elements(page)
    (policy,) = [attrs["content"] for tag, attrs in elements.found if attrs.get("http-equiv")]
    assert policy is not None and policy.startswith("default-src 'none';")
    for kind, source in (("script", elements.sources["script"][1]), ("style", elements.sources["style"][0])):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    for tag, attrs in elements.found:
        assert tag not in ("img", "link", "iframe") and not {"src", "href", "style", "onclick"} & attrs.keys()
    assert "http:" not in page and "https:" not in page


def test_a_hostile_name_is_text() -> None:
    page = page_of(image())
    assert "<img" not in page and "\x1b" not in page
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in page


def test_the_maps_cover_the_file_and_the_disk() -> None:
    whole = image()
    maps = maps_of(page_of(whole))
    assert sum(row[0] for row in runs_of(maps["file"])) == len(whole)
    disk = runs_of(maps["disk"])
    assert sum(row[0] for row in disk) == 1 << 20
    assert [row[:2] for row in disk[:3]] == [[4096, "data"], [6 * 4096, "unallocated"], [4096, "data"]]
    assert whole[disk[2][2] - 1 :][:1] == b"y"


def test_the_verdict_and_the_findings_come_first() -> None:
    page = page_of(image())
    assert page.index("clusters are leaked") < page.index("refcount.leak") < page.index("The image")


def test_damage_is_shown() -> None:
    builder = Builder(1 << 20)
    builder.data(0, b"x")
    builder.entry(3, (1 << 40) | 1 << 63)
    page = page_of(builder.build())
    assert "errors were found" in page
    assert [4096, "unreadable", 0] in runs_of(maps_of(page)["disk"])
    assert "header.unreadable" in page_of(b"QFI\xfb" + (9).to_bytes(4, "big") + bytes(600))
    with pytest.raises(qcow2c.NotQcow2):
        page_of(b"text")


def test_runs_of_one_kind_are_one() -> None:
    packed = file_map(Node("data", Span(at, 10), "owned") for at in range(0, 100, 10))
    assert runs_of(packed) == [[100, "data"]]


STUB = r"""
const fs = require("fs"), elements = {}, page = fs.readFileSync(process.argv[2], "utf8");
const scripts = [...page.matchAll(/<script[^>]*>([\s\S]*?)<\/script>/g)].map((match) => match[1]);
const context = { fillRect() {}, strokeRect() {} };
function element(id) {
  return elements[id] ??= { id, textContent: "", value: "", dataset: {}, handlers: {}, scrollIntoView() {},
    addEventListener(name, run) { this.handlers[name] = run; }, getContext: () => context,
    getBoundingClientRect: () => ({ left: 0, top: 0, width: 256, height: 64 }) };
}
element("data").textContent = scripts[0];
globalThis.document = { getElementById: element, querySelectorAll: () => [], body: { dataset: {} } };
(0, eval)(scripts[1]);
setTimeout(() => {
  const told = [];
  element("file").handlers.click({ clientX: 0.5, clientY: 0.5 });
  told.push(element("file-at").textContent);
  element("disk-find").value = "0x7000";
  element("disk-find").handlers.change();
  told.push(element("disk-at").textContent);
  element("disk-find").value = "0x700000000";
  element("disk-find").handlers.change();
  told.push(element("disk-at").textContent);
  element("disk").handlers.wheel({ clientX: 9, clientY: 9, deltaY: -1, preventDefault() {} });
  console.log(JSON.stringify([document.body.dataset.ready, ...told]));
}, 500);
"""


def test_a_click_finds_a_cluster_and_an_offset_is_found(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the script of a report is not run")
    (tmp_path / "page.html").write_text(page_of(image()), encoding="utf-8")
    (tmp_path / "stub.js").write_text(STUB)
    done = subprocess.run(
        [node, tmp_path / "stub.js", tmp_path / "page.html"], capture_output=True, text=True, check=True
    )
    ready, clicked, found, outside = json.loads(done.stdout)
    assert ready == "yes" and clicked.startswith("0x0: header, 0x0..")
    assert re.match(r"0x7000: data, 0x7000\.\.0x7fff, in the file from 0x[0-9a-f]+$", found)
    assert outside == "no such offset"
