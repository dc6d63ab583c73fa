"""The overview of a dump: verdict, findings by severity, bytes by kind."""

from __future__ import annotations

from qcow2c.dump import Dump
from qcow2c.forensic.overview import SECTIONS, Overview
from tests.building import Builder


def overview(image: bytes) -> tuple[Overview, list[str]]:
    with Dump(image, SECTIONS) as dump:
        found = Overview(dump.root)
        return found, "".join(found.lines(dump.exit_code)).splitlines()


def test_the_bytes_of_the_file_add_up() -> None:
    builder = Builder(1 << 20)
    builder.data(0, b"x")
    image = builder.build()
    found, lines = overview(image)
    assert sum(found.kinds.values()) == len(image)
    assert lines[:2] == ["verdict: nothing is wrong", "findings: none"]
    assert "data, 4 KiB" in lines[2] or any("data, 4 KiB" in line for line in lines)


def test_findings_are_counted_by_severity() -> None:
    builder = Builder(1 << 20)
    builder.refcounts[builder.data(0, b"x") // builder.cluster_size] = 5
    builder.allocate(300 * builder.cluster_size)
    _, lines = overview(builder.build())
    assert lines[0] == "verdict: errors were found"
    assert lines[1] == "findings: 1 error, 301 warning"


def test_what_has_no_believable_header_has_a_verdict_too() -> None:
    _, lines = overview(b"QFI\xfb" + (9).to_bytes(4, "big") + bytes(600))
    assert lines == ["verdict: errors were found", "findings: 1 fatal"]
