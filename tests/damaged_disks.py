"""Disks of many kinds, damage of many kinds, and a score of what is recovered, sector by sector against the truth.

An image is made by the engine out of a fixed seed, and its states are read back before anything is damaged.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import qcow2c
from qcow2c import structs
from qcow2c.format.header import Header, field_span
from qcow2c.format.tables import L1_OFFSET
from qcow2c.recovery.recovered import Recovery
from qcow2c.storage.sources import open_store

if TYPE_CHECKING:
    from numpy.typing import NDArray

SECTOR = 512


@dataclass
class Sample:
    """An image, the truth of each state (the active one is ""), and the files that it needs."""

    name: str
    image: bytes
    truth: dict[str, bytes]
    files: dict[str, Any] = field(default_factory=dict)


def _content(rng: random.Random, length: int) -> bytes:
    """Return bytes that are no zeros in any sector, some of them compressible."""
    if rng.random() < 0.5:
        return rng.randbytes(length)
    return (b"%08d the quick brown fox \n" % rng.randrange(10**8) * (length // 24 + 1))[:length]


def _write(image: qcow2c.Image, rng: random.Random, size: int, unit: int, count: int) -> None:
    for _ in range(count):
        at = rng.randrange(size // unit) * unit
        image.pwrite(_content(rng, min(unit * rng.randrange(1, 4), size - at)), at)


SHAPES: dict[str, dict[str, Any]] = {
    "512": {"cluster_size": 512, "size": 1 << 20},
    "4k": {"cluster_size": 4096, "size": 8 << 20},
    "4k v2": {"cluster_size": 4096, "compat": "0.10", "size": 8 << 20},
    "64k": {"cluster_size": 65536, "size": 12 << 20},
    "64k v2": {"cluster_size": 65536, "compat": "0.10", "size": 12 << 20},
    "2M": {"cluster_size": 2 << 20, "size": 64 << 20},
    "1 bit": {"cluster_size": 4096, "refcount_bits": 1, "size": 8 << 20},
    "64 bit": {"cluster_size": 4096, "refcount_bits": 64, "size": 8 << 20},
    "extended": {"cluster_size": 16384, "extended_l2": True, "size": 16 << 20},
    "extended 64k": {"cluster_size": 65536, "extended_l2": True, "size": 12 << 20},
    "prealloc": {"cluster_size": 4096, "preallocation": "metadata", "size": 4 << 20},
    "64k snapshots": {"cluster_size": 65536, "size": 12 << 20, "snapshots": 2},
    "4k snapshots": {"cluster_size": 4096, "size": 8 << 20, "snapshots": 2},
    "512 snapshots": {"cluster_size": 512, "size": 1 << 20, "snapshots": 2},
    "extended snapshots": {"cluster_size": 16384, "extended_l2": True, "size": 16 << 20, "snapshots": 1},
    "compressed": {"cluster_size": 65536, "size": 8 << 20, "compressed": "zlib"},
    "compressed 4k": {"cluster_size": 4096, "size": 4 << 20, "compressed": "zlib"},
    "zstd": {"cluster_size": 65536, "size": 8 << 20, "compressed": "zstd"},
    "chain": {"cluster_size": 4096, "size": 8 << 20, "chain": True},
    "data file": {"cluster_size": 65536, "size": 12 << 20, "data_file": True},
}


def sample(name: str, directory: Path) -> Sample:
    """Return the image of a kind; the directory receives its files."""
    how = dict(SHAPES[name])
    rng = random.Random(name)
    size, snapshots = how.pop("size"), how.pop("snapshots", 0)
    method, has_chain, external = how.pop("compressed", None), how.pop("chain", False), how.pop("data_file", False)
    unit = max(4096, min(how["cluster_size"], 65536)) if how["cluster_size"] > 512 else 512
    path = directory / "image.qcow2"
    files: dict[str, Any] = {}
    if has_chain:
        base = directory / "base.raw"
        base.write_bytes(_content(rng, size))
        how |= {"backing_file": "base.raw", "backing_fmt": "raw"}
        files["backing"], files["backing_format"] = base, "raw"
    if external:
        how["data_file"] = "data.bin"
        files["data_file"] = directory / "data.bin"
        qcow2c.create(path, size, **(how | {"data_file": str(directory / "data.bin")}))
    else:
        qcow2c.create(path, size, **how)
    truth: dict[str, bytes] = {}
    with qcow2c.open(path, "r+") as image:
        _write(image, rng, size, unit, 60)
        for number in range(snapshots):
            image.snapshots.create(f"state {number}")
            truth[f"state {number}"] = image.pread(size, 0)
            _write(image, rng, size, unit, 25)
        truth[""] = image.pread(size, 0)
    if method is not None:
        packed = directory / "packed.qcow2"
        qcow2c.convert(
            path,
            packed,
            output_format="qcow2",
            compressed=True,
            cluster_size=how["cluster_size"],
            compression_type=method,
        )
        path = packed
    return Sample(name, path.read_bytes(), truth, files)


# --- damage ---------------------------------------------------------------------------------------------------------

Damage = Callable[[bytearray, random.Random], None]


def _zeros(image: bytearray, at: int, length: int) -> None:
    length = max(0, min(length, len(image) - at))
    image[at : at + length] = bytes(length)


def _header_zeroed(image: bytearray, _rng: random.Random) -> None:
    _zeros(image, 0, 512)


def _first_cluster_junk(image: bytearray, rng: random.Random) -> None:
    image[:512] = rng.randbytes(512)


def _flipped(name: str, bit: int) -> Damage:
    def damage(image: bytearray, _rng: random.Random) -> None:
        span = field_span(name)
        value = int.from_bytes(image[span.offset : span.end], "big") ^ 1 << bit
        image[span.offset : span.end] = value.to_bytes(span.length, "big")

    return damage


def _l2_tables(image: bytearray) -> list[int]:
    header = Header.load(open_store(bytes(image)))
    at = header.l1_table_offset
    words = [int.from_bytes(image[at + 8 * index : at + 8 * index + 8], "big") for index in range(header.l1_size)]
    return [word & L1_OFFSET for word in words if word & L1_OFFSET]


def _l1_zeroed(image: bytearray, _rng: random.Random) -> None:
    header = Header.load(open_store(bytes(image)))
    _zeros(image, header.l1_table_offset, header.l1_size * 8)


def _l2_zeroed(share: float) -> Damage:
    def damage(image: bytearray, rng: random.Random) -> None:
        size = Header.load(open_store(bytes(image))).cluster_size
        found = _l2_tables(image)
        for at in rng.sample(found, max(1, int(len(found) * share))):
            _zeros(image, at, size)

    return damage


def _l2_sector(content: str) -> Damage:
    def damage(image: bytearray, rng: random.Random) -> None:
        size = Header.load(open_store(bytes(image))).cluster_size
        at = rng.choice(_l2_tables(image)) + rng.randrange(size // 512) * 512
        image[at : at + 512] = bytes(512) if content == "zeros" else rng.randbytes(512)

    return damage


def _refcounts_zeroed(image: bytearray, _rng: random.Random) -> None:
    header = Header.load(open_store(bytes(image)))
    at = header.refcount_table_offset
    words = structs.ENTRY_BYTES * (header.cluster_size // 8)
    for start in range(at, at + words, 8):
        block = int.from_bytes(image[start : start + 8], "big")
        if block:
            _zeros(image, block, header.cluster_size)
    _zeros(image, at, header.refcount_table_clusters * header.cluster_size)


def _snapshot_table(image: bytearray, _rng: random.Random) -> None:
    header = Header.load(open_store(bytes(image)))
    if header.snapshots_offset:
        _zeros(image, header.snapshots_offset, 512)


def _all_metadata(image: bytearray, rng: random.Random) -> None:
    for damage in (_refcounts_zeroed, _snapshot_table, _l2_zeroed(1), _l1_zeroed, _header_zeroed):
        damage(image, rng)


def _cut(share: float) -> Damage:
    def damage(image: bytearray, _rng: random.Random) -> None:
        del image[int(len(image) * share) :]

    return damage


def _holes(image: bytearray, rng: random.Random) -> None:
    for _ in range(4):
        _zeros(image, rng.randrange(len(image) // 4096) * 4096, 8192)


def _header_and(other: Damage) -> Damage:
    def damage(image: bytearray, rng: random.Random) -> None:
        other(image, rng)
        _header_zeroed(image, rng)

    return damage


def _bytes_in_front(image: bytearray, rng: random.Random) -> None:
    image[:0] = rng.randbytes(1000)


def _behind_another(image: bytearray, _rng: random.Random) -> None:
    other = bytearray()
    qcow2c.create(other, 1 << 20, cluster_size=4096)
    with qcow2c.open(other, "r+") as first:
        first.pwrite(b"another" * 9000, 4096)
    image[:0] = other


DAMAGES: dict[str, Damage] = {
    "none": lambda _image, _rng: None,
    "header zeroed": _header_zeroed,
    "header junk": _first_cluster_junk,
    "magic flipped": _flipped("magic", 3),
    "version flipped": _flipped("version", 0),
    "version far": _flipped("version", 7),
    "cluster_bits flipped": _flipped("cluster_bits", 0),
    "cluster_bits far": _flipped("cluster_bits", 1),
    "size grown": _flipped("size", 33),
    "l1_size flipped": _flipped("l1_size", 0),
    "l1_table_offset flipped": _flipped("l1_table_offset", 14),
    "l1_table_offset far": _flipped("l1_table_offset", 40),
    "refcount table flipped": _flipped("refcount_table_offset", 16),
    "crypt_method flipped": _flipped("crypt_method", 0),
    "backing offset flipped": _flipped("backing_file_offset", 4),
    "nb_snapshots flipped": _flipped("nb_snapshots", 0),
    "extended bit flipped": _flipped("incompatible_features", 4),
    "compression bit flipped": _flipped("incompatible_features", 3),
    "L1 lost": _l1_zeroed,
    "one L2 lost": _l2_zeroed(0),
    "half of L2 lost": _l2_zeroed(0.5),
    "all L2 lost": _l2_zeroed(1),
    "L2 sector zeroed": _l2_sector("zeros"),
    "L2 sector junk": _l2_sector("junk"),
    "refcounts lost": _refcounts_zeroed,
    "header and refcounts": _header_and(_refcounts_zeroed),
    "snapshot table lost": _snapshot_table,
    "header and snapshot table": _header_and(_snapshot_table),
    "all metadata": _all_metadata,
    "cut at 50": _cut(0.5),
    "cut at 90": _cut(0.9),
    "holes": _holes,
    "bytes in front": _bytes_in_front,
    "behind another": _behind_another,
}

FIXED = (
    "none", "header zeroed", "header junk", "magic flipped", "version flipped", "version far", "cluster_bits flipped",
    "cluster_bits far", "size grown", "l1_size flipped", "l1_table_offset flipped", "l1_table_offset far",
    "refcount table flipped", "crypt_method flipped", "backing offset flipped", "nb_snapshots flipped",
    "extended bit flipped", "compression bit flipped", "refcounts lost", "header and refcounts", "snapshot table lost",
    "bytes in front", "behind another",
)  # fmt: skip
"""Damage after which surviving tables still fix all places."""


# --- score ----------------------------------------------------------------------------------------------------------


@dataclass
class Score:
    """Bytes of one state: right, wrong although named, wrong and not said to be right, lost and said to be."""

    right: int = 0
    wrong: int = 0
    inferred_wrong: int = 0
    lost: int = 0
    found: bool = True


def _differing(content: bytes, truth: bytes) -> NDArray[np.bool_]:
    """Return which sectors differ."""
    both = (
        np.frombuffer(part.ljust(-(-len(truth) // SECTOR) * SECTOR, b"\0"), dtype=np.uint8) for part in (content, truth)
    )
    mine, other = both
    found: NDArray[np.bool_] = (mine != other).reshape(-1, SECTOR).any(axis=1)
    return found


def scored(result: Recovery, sample: Sample, state: str) -> Score:
    """Return the score of the state that fits its name best; of the active one, if there are several, the best."""
    scores = [_score(disk, sample.truth[state]) for disk in result.disks if disk.output and _fits(disk, state)]
    return max(scores, key=lambda score: score.right - score.wrong) if scores else Score(found=False)


def _fits(disk: Any, state: str) -> bool:
    return disk.name == state or (disk.name.startswith("l1-") and bool(state))


def _score(disk: Any, truth: bytes) -> Score:
    score = Score()
    with open(disk.output, "rb") as file:
        content = file.read(len(truth)).ljust(len(truth), b"\0")
    differing = _differing(content, truth)
    for found in disk.ranges:
        level = found.level.name
        part = differing[found.guest // SECTOR : min(found.guest + found.length, len(truth)) // SECTOR]
        wrong = int(part.sum()) * SECTOR
        if level == "LOST":
            score.lost += len(part) * SECTOR
            continue
        score.right += len(part) * SECTOR - wrong
        if level == "INFERRED":
            score.inferred_wrong += wrong
        else:
            score.wrong += wrong
    rest = truth[disk.size :]
    score.right += rest.count(0)
    score.lost += len(rest) - rest.count(0)
    return score


def cell(sample: Sample, damage: str, directory: Path) -> tuple[Recovery, dict[str, Score]]:
    """Damage an image, recover what is there, and return the report and the score of each state."""
    image = bytearray(sample.image)
    DAMAGES[damage](image, random.Random(f"{sample.name} {damage}"))
    broken = directory / "broken.qcow2"
    broken.write_bytes(image)
    result = qcow2c.recover(broken, directory / "out.raw", output_format="raw", accept=["inferred"], **sample.files)
    return result, {state: scored(result, sample, state) for state in sample.truth}
