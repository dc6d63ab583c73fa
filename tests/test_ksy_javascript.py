"""The parser that the description compiles to in JavaScript reads images as the one in Python does.

Needs node and what `npm ci` installs in formats/; `make ksy-check` sees to that.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kaitaistruct import KaitaiStruct, KaitaiStructError

from qcow2c.attest._kaitai.qcow2 import Qcow2

ENDS = 8
"""Of a longer list, this many items at either end are looked at; as in formats/parse.mjs."""

EXACT = 1 << 53
"""Numbers below it are exact in JavaScript."""

FORMATS = Path(__file__).parent.parent / "formats"

SEEDS = sorted((Path(__file__).parent / "corpus" / "seeds").glob("*.qcow2.gz"))

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not (FORMATS / "node_modules" / "kaitai-struct").is_dir(),
    reason="no node, or no packages of formats/package.json: `make ksy-check` installs them",
)


def names(node: KaitaiStruct) -> Iterator[str]:
    computed = [name for name, value in vars(type(node)).items() if isinstance(value, property)]
    for name in dict.fromkeys([*vars(node), *computed]):
        if not name.startswith("_"):
            yield name


def shown(value: Any) -> str:
    if isinstance(value, bytes | str):
        return hashlib.sha256(value.encode() if isinstance(value, str) else value).hexdigest()
    number = int(value)
    return str(number if number < EXACT else int(float(number)))


def walk(node: KaitaiStruct, path: str, lines: list[str]) -> None:
    for name in names(node):
        here = f"{path}.{name.replace('_', '').lower()}"
        try:
            value = getattr(node, name)
        except (KaitaiStructError, EOFError, ValueError):
            lines.append(f"{here} !")
        else:
            collect(value, here, lines)


def collect(value: Any, here: str, lines: list[str]) -> None:
    if isinstance(value, list):
        lines.append(f"{here} {len(value)} items")
        for index, item in enumerate(value):
            if index < ENDS or index >= len(value) - ENDS:
                collect(item, f"{here}[{index}]", lines)
    elif isinstance(value, KaitaiStruct):
        walk(value, here, lines)
    elif value is not None:
        lines.append(f"{here} {shown(value)}")


def in_python(file: Path) -> list[str]:
    lines: list[str] = []
    try:
        walk(Qcow2.from_bytes(file.read_bytes()), "", lines)
    except (KaitaiStructError, EOFError):
        return [" !"]
    return sorted(lines)


def in_javascript(file: Path) -> list[str]:
    command = ["node", str(FORMATS / "parse.mjs"), str(file)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8").stdout
    return output.splitlines()[1:-1]


def compare(file: Path) -> list[str]:
    mine, theirs = in_python(file), in_javascript(file)
    different = [pair for pair in zip(mine, theirs, strict=False) if pair[0] != pair[1]]
    assert (different[:3], len(mine)) == ([], len(theirs))
    return mine


def test_the_demo_image_is_read_alike(examples: Path) -> None:
    found = compare(examples / "demo.qcow2")
    assert len(found) > 1000 and not [line for line in found if line.endswith("!")]


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.name.split(".")[0])
def test_each_image_of_the_corpus_is_read_alike(seed: Path, tmp_path: Path) -> None:
    file = tmp_path / "seed.qcow2"
    file.write_bytes(gzip.decompress(seed.read_bytes()))
    found = compare(file)
    assert len(found) > 300


@pytest.mark.parametrize("at", [7, 103, 0x6000])
def test_a_damaged_image_is_refused_at_the_same_place(at: int, examples: Path, tmp_path: Path) -> None:
    data = bytearray((examples / "demo.qcow2").read_bytes())
    data[at] ^= 0x7F
    file = tmp_path / "damaged.qcow2"
    file.write_bytes(data)
    found = compare(file)
    assert [line for line in found if line.endswith("!")]


def test_every_snapshot_is_there(examples: Path) -> None:
    """A list that ends at a count has as many items in every language."""
    assert ".snapshots 1 items" in in_javascript(examples / "demo.qcow2")
