"""Whatever the image, the map of a dump covers the file, and leaves lie in their parents."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

import qcow2c
from qcow2c.dump import Dump
from qcow2c.forensic.nodes import Node
from qcow2c.references.check_result import LEAK
from tests.building import Builder, deflate


def sample() -> bytes:
    builder = Builder(1 << 20, cluster_bits=9)
    for cluster in range(0, 90, 7):
        builder.data(cluster, b"x")
    builder.compressed(3, deflate(bytes(512)), inside=100)
    builder.snapshot(b"one")
    builder.data(0, b"y")
    return builder.build()


SAMPLE = sample()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The sample with some bytes changed, metadata above all, and perhaps cut short."""
    chosen = random.Random(draw(st.integers(0, 1 << 32)))
    data = bytearray(SAMPLE)
    for _ in range(draw(st.integers(0, 12))):
        limit = chosen.choice([112, 1024, 4096, len(data)])
        data[chosen.randrange(8, limit)] = chosen.choice([0, 1, 2, 255, chosen.randrange(256)])
    return bytes(data[: draw(st.integers(104, len(data)))])


def walk(node: Node) -> list[Node]:
    found = [node]
    for child in node.children:
        found += walk(child)
    return found


@settings(max_examples=120)
@given(damaged())
def test_the_map_covers_every_byte_once(data: bytes) -> None:
    with qcow2c.dump(data, ["map"]) as tree:
        spans = [node.span for node in walk(tree.root)[2:] if node.name != "stopped" and node.span]
    if spans:
        assert spans[0].offset == 0 and spans[-1].end == len(data)
        assert all(one.end == other.offset for one, other in itertools.pairwise(spans))


@settings(max_examples=80)
@given(damaged())
def test_any_damage_is_dumped_with_its_findings(data: bytes) -> None:
    with Dump(data) as tree:
        nodes = walk(tree.root)
        severe = [finding for node in nodes for finding in node.findings if finding.severity >= 2]
        leaks = any(finding.rule in (LEAK, "map.leak") for node in nodes for finding in node.findings)
        assert tree.exit_code == (2 if severe else 3 if leaks else 0)
    assert nodes[0].name == "file"


@settings(max_examples=80)
@given(damaged())
def test_fields_lie_in_their_structure_and_do_not_overlap(data: bytes) -> None:
    with qcow2c.dump(data, ["header", "extensions", "snapshots", "l1", "l2"]) as tree:
        for part in tree.root.children:
            for structure in part.children:
                spans = [child.span for child in structure.children if child.span]
                if structure.span is None or not spans:
                    continue
                assert min(span.offset for span in spans) >= structure.span.offset
                ordered = sorted(spans, key=lambda span: (span.offset, span.end))
                assert all(one.end <= other.offset for one, other in itertools.pairwise(ordered))
