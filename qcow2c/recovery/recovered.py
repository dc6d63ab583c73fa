"""What a recovery has to tell: disks, ranges with their evidence, totals; as objects, and as JSON. Writes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qcow2c.format.tables import Kind, compressed_extent
from qcow2c.recovery.found_ranges import FoundRange
from qcow2c.recovery.found_states import Level

if TYPE_CHECKING:
    from qcow2c.format.geometry import Geometry

SCHEMA_VERSION = 1
MOST_RANGES = 1_000_000
"""Ranges of a disk that a report holds; more are counted, and not listed."""

COMPLETE, FAILED, LOSSES, GUESSES = 0, 1, 2, 3
"""Exit status: all is there and named; it failed; something is lost; nothing is lost, but something is inferred."""

LEVEL_NAMES = {Level.NAMED: "named", Level.COPY: "copy", Level.INFERRED: "inferred", Level.LOST: "lost"}


class RecoveredRange:
    """One line of a report: adjacent guest bytes with the same evidence, and where in the file they are."""

    __slots__ = ("guest", "host", "kind", "length", "level", "reason")

    def __init__(self, found: FoundRange, host: int | None) -> None:
        self.guest, self.length = found.guest, found.length
        self.kind, self.level, self.reason = found.kind, found.level, found.reason
        self.host = host
        """Where the bytes begin in the file that holds them; None without any."""

    def joins(self, other: RecoveredRange) -> bool:
        """Return whether another range goes on where this one ends, in guest and file."""
        mine = self.kind, self.level, self.reason, self.guest + self.length
        if mine != (other.kind, other.level, other.reason, other.guest) or self.kind is Kind.COMPRESSED:
            return False
        return other.host == (None if self.host is None else self.host + self.length)

    def as_dict(self) -> dict[str, Any]:
        """Return the range as the report has it."""
        found: dict[str, Any] = {"start": self.guest, "length": self.length, "evidence": LEVEL_NAMES[self.level]}
        found["content"] = {Kind.DATA: "data", Kind.COMPRESSED: "compressed", Kind.ZERO: "zero"}.get(
            self.kind, "lost" if self.level is Level.LOST else "unmapped"
        )
        if self.host is not None:
            found["host"] = self.host
        if self.reason:
            found["reason"] = self.reason
        return found


@dataclass
class RecoveredDisk:
    """One disk: the active state, a snapshot, or a state that the image no longer has."""

    name: str
    kind: str
    snapshot_id: str
    size: int
    size_evidence: str
    image_offset: int
    evidence: list[str]
    output: str | None = None
    """The file that it was written to; None where it was not."""
    ranges: list[RecoveredRange] = field(default_factory=list)
    ranges_left_out: int = 0
    totals: Counter[Level] = field(default_factory=Counter)
    """Bytes of the disk for each level."""

    def add(self, found: FoundRange, geometry: Geometry) -> None:
        """Count a range, and list it."""
        self.totals[found.level] += found.length
        host = None
        if found.level is not Level.LOST:
            host = found.host if found.kind is Kind.DATA else None
            host = compressed_extent(found.host, geometry).host_offset if found.kind is Kind.COMPRESSED else host
        line = RecoveredRange(found, host)
        if self.ranges and self.ranges[-1].joins(line):
            self.ranges[-1].length += line.length
        elif len(self.ranges) < MOST_RANGES:
            self.ranges.append(line)
        else:
            self.ranges_left_out += 1

    @property
    def lost(self) -> list[RecoveredRange]:
        """The ranges that are lost, in order."""
        return [found for found in self.ranges if found.level is Level.LOST]

    def as_dict(self) -> dict[str, Any]:
        """Return the disk as the report has it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "snapshot-id": self.snapshot_id,
            "image-offset": self.image_offset,
            "virtual-size": self.size,
            "size-evidence": self.size_evidence,
            "evidence": self.evidence,
            "output": self.output,
            "bytes": {name: self.totals[level] for level, name in LEVEL_NAMES.items()},
            "ranges": [found.as_dict() for found in self.ranges],
            "ranges-left-out": self.ranges_left_out,
        }


@dataclass
class RecoveredImage:
    """One image of the file: its geometry and what speaks for it; what is in use and has no place."""

    offset: int
    has_header: bool
    cluster_size: int
    version: int
    extended_l2: bool
    external_data: bool
    score: dict[int, int]
    """Entries of tables that speak for each cluster size, by its logarithm."""
    doubts: list[str]
    refcounts_believed: bool
    fragments: list[dict[str, Any]] = field(default_factory=list)
    unplaced: int = 0
    """Bytes in use that belong to no disk."""

    def as_dict(self) -> dict[str, Any]:
        """Return the image as the report has it."""
        return {
            "offset": self.offset,
            "has-header": self.has_header,
            "cluster-size": self.cluster_size,
            "version": self.version,
            "extended-l2": self.extended_l2,
            "external-data-file": self.external_data,
            "cluster-size-votes": {str(1 << bits): count for bits, count in sorted(self.score.items())},
            "refcounts-believed": self.refcounts_believed,
            "doubts": self.doubts,
            "unplaced-bytes": self.unplaced,
            "fragments": self.fragments,
        }


@dataclass
class Recovery:
    """What `recover` found and wrote."""

    source: str
    source_size: int
    hash_method: str
    hash_before: str
    hash_after: str
    images: list[RecoveredImage]
    disks: list[RecoveredDisk]
    tool: str = ""
    command: str = ""

    @property
    def exit_status(self) -> int:
        """0: all of each disk is there and named; 2: something is lost; 3: something is only inferred."""
        states = [disk for disk in self.disks if disk.kind != "stale"]
        if not states or any(disk.totals[Level.LOST] for disk in states):
            return LOSSES
        if any(not disk.size_evidence or disk.totals[Level.INFERRED] for disk in states):
            return GUESSES
        return LOSSES if any(image.unplaced for image in self.images) else COMPLETE

    def as_dict(self) -> dict[str, Any]:
        """Return the report, as docs/recover-schema.md describes it."""
        return {
            "report": "qcow2c recover",
            "schema-version": SCHEMA_VERSION,
            "tool": self.tool,
            "source": {
                "filename": self.source,
                "size": self.source_size,
                "hash-method": self.hash_method,
                "hash-before": self.hash_before,
                "hash-after": self.hash_after,
            },
            "exit-status": self.exit_status,
            "images": [image.as_dict() for image in self.images],
            "disks": [disk.as_dict() for disk in self.disks],
        }
