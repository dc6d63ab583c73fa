"""`hash_image`: what a disk holds, as hashes that are the same in every format; `verify_image`: whether it still does.

Reads only. Snapshots are hashed each by itself; the file is hashed as it is, too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from qcow2c.disk.content import ALGORITHMS, RANGE_BYTES, Content, ContentHash, RangeRun
from qcow2c.disk.disk import Disk, open_disk
from qcow2c.disk.map_layers import ZERO
from qcow2c.errors import UsageError, readable
from qcow2c.layers.compressed import read_compressed
from qcow2c.light import frozen
from qcow2c.storage.gate import Gate
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import Source, Store, opened
from qcow2c.storage.store import Progress, stage

if TYPE_CHECKING:
    from typing import Any, Literal

    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.secrets import Key

SCHEMA = "qcow2c-hash/1"

FILE_HOLES = 16 << 30
"""Bytes of holes in a file from which on its plain hash is only made where that is asked for: it takes their time."""

MANIFEST_BYTES = 1 << 30
"""No manifest is longer."""

_READ_BYTES = 1 << 20
_ZEROS = bytes(_READ_BYTES)

_BAD = "{name!r} is no manifest of the schema {schema}: {why}"


@frozen
class DiskHash:
    """The hash of one state: `snapshot` is None for the active one, else ID and name. `ranges` only where asked for."""

    snapshot: tuple[str, str] | None
    content: ContentHash
    ranges: tuple[RangeRun, ...] | None

    def as_dict(self) -> dict[str, Any]:
        """Return the members of the schema, in their order."""
        named = None if self.snapshot is None else {"id": self.snapshot[0], "name": self.snapshot[1]}
        content = self.content
        found: dict[str, Any] = {"snapshot": named, "virtual-bytes": content.size, "data-bytes": content.data_bytes}
        found["content-hash"] = content.digest.hex()
        if self.ranges is not None:
            found["ranges"] = [_plain(run) for run in self.ranges]
        return found


@frozen
class ImageHashes:
    """What a file and the disks in it hash to. `file_sha256` is what `sha256sum` says, None where it was left out."""

    filename: str
    format: str
    file_bytes: int
    file_content: ContentHash
    file_sha256: str | None
    algorithm: str
    range_bytes: int
    disks: tuple[DiskHash, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, the same each time: see docs/hashing.md."""
        return {
            "schema": SCHEMA,
            "algorithm": self.algorithm,
            "range-bytes": self.range_bytes,
            "source": {
                "filename": readable(self.filename),
                "format": self.format,
                "file-bytes": self.file_bytes,
                "content-hash": self.file_content.digest.hex(),
                "sha256": self.file_sha256,
            },
            "disks": [disk.as_dict() for disk in self.disks],
        }


@frozen
class HashDifference:
    """Where a disk is not what its manifest says: `what` is `missing`, `size`, `content` or `file`."""

    what: str
    snapshot: tuple[str, str] | None
    start: int | None = None
    length: int | None = None

    def __str__(self) -> str:
        name = "the disk" if self.snapshot is None else f"snapshot {self.snapshot[1]!r} (ID {self.snapshot[0]})"
        if self.what == "file":
            return "the file has another hash"
        if self.what == "missing":
            return f"{name} is not there"
        if self.what == "size":
            return f"{name} has another size"
        place = (
            ""
            if self.start is None or self.length is None
            else f" in {self.start:#x}..{self.start + self.length - 1:#x}"
        )
        return f"{name} has another content{place}"


def hash_image(
    source: Source | Store,
    *,
    algorithm: str = ALGORITHMS[0],
    range_bytes: int = RANGE_BYTES,
    ranges: bool = False,
    snapshots: bool = True,
    file_hash: Literal["auto", "always", "never"] = "auto",
    image_format: str | None = None,
    key: Key | KeyRing = None,
    gate: str | Gate = "directory",
    share: bool = False,
    progress: Progress | None = None,
) -> ImageHashes:
    """Return the hashes of an image's file, its disk, and with `snapshots` each snapshot's.

    `ranges=True` keeps the digest of each range of `range_bytes` bytes. `file_hash` says whether the plain SHA-256 of
    the file is made: "auto" leaves it out for a file with more than 16 GiB of holes. Raises UsageError, and as
    `open_disk` and reading: a disk that cannot be read in full has no hash.
    """
    if file_hash not in ("auto", "always", "never"):
        raise UsageError(f'file_hash={file_hash!r} is not "auto", "always" or "never"')
    with (
        opened(source, Use.of_reader(share=share)) as store,
        open_disk(store, image_format=image_format, key=key, gate=gate, share=share) as disk,
    ):
        return hash_opened(
            store,
            disk,
            algorithm=algorithm,
            range_bytes=range_bytes,
            ranges=ranges,
            snapshots=snapshots,
            file_hash=file_hash,
            progress=progress,
        )


def hash_opened(
    store: Store,
    disk: Disk,
    *,
    algorithm: str = ALGORITHMS[0],
    range_bytes: int = RANGE_BYTES,
    ranges: bool = False,
    snapshots: bool = True,
    file_hash: Literal["auto", "always", "never"] = "auto",
    progress: Progress | None = None,
) -> ImageHashes:
    """Return the hashes of a disk that is open, and of the file that it lies in; otherwise as `hash_image`."""
    content = _file_content(store, algorithm, range_bytes).hash(stage(progress, 0, 2))
    plain = _file_sha256(store) if file_hash == "always" or (file_hash == "auto" and _is_dense(store)) else None
    found = tuple(
        _disk_hash(one, named, algorithm, range_bytes, stage(progress, 1, 2), ranges=ranges)
        for one, named in _states(disk, snapshots=snapshots)
    )
    return ImageHashes(store.name, disk.image_format, store.size(), content, plain, algorithm, range_bytes, found)


def verify_image(
    source: Source | Store,
    manifest: Mapping[str, Any] | str | os.PathLike[str],
    *,
    snapshots: bool = True,
    file: bool = False,
    image_format: str | None = None,
    key: Key | KeyRing = None,
    gate: str | Gate = "directory",
    share: bool = False,
    progress: Progress | None = None,
) -> list[HashDifference]:
    """Return where an image of any format is not what a manifest says, a report of `hash_image` or the path of one.

    Without `snapshots` only the active disk counts; `file=True` compares the file, too. Raises UsageError for what is
    no manifest, and as `hash_image`.
    """
    wanted = read_manifest(manifest)
    with (
        opened(source, Use.of_reader(share=share)) as store,
        open_disk(store, image_format=image_format, key=key, gate=gate, share=share) as disk,
    ):
        return verify_opened(store, disk, wanted, snapshots=snapshots, file=file, progress=progress)


def verify_opened(
    store: Store,
    disk: Disk,
    wanted: Mapping[str, Any],
    *,
    snapshots: bool = True,
    file: bool = False,
    progress: Progress | None = None,
) -> list[HashDifference]:
    """Return where a disk that is open is not what a manifest of `read_manifest` says; as `verify_image`."""
    found = hash_opened(
        store,
        disk,
        algorithm=wanted["algorithm"],
        range_bytes=wanted["range-bytes"],
        ranges=any("ranges" in one for one in wanted["disks"]),
        snapshots=snapshots,
        file_hash="never",
        progress=progress,
    )
    differences = [HashDifference("file", None)] if file and _is_other_file(found, wanted) else []
    have = {one.snapshot: one for one in found.disks}
    for one in wanted["disks"]:
        named = None if one["snapshot"] is None else (str(one["snapshot"]["id"]), str(one["snapshot"]["name"]))
        if named is None or snapshots:
            differences += _differences(named, one, have.get(named))
    return differences


def read_manifest(manifest: Mapping[str, Any] | str | os.PathLike[str]) -> Mapping[str, Any]:
    """Return a manifest whose members have the right types. Raises UsageError, OSError."""
    name, found = "the manifest", manifest
    if not isinstance(manifest, Mapping):
        name = os.fspath(manifest)
        if os.path.getsize(name) > MANIFEST_BYTES:
            raise UsageError(_BAD.format(name=name, schema=SCHEMA, why=f"it is longer than {MANIFEST_BYTES} bytes"))
        with open(name, "rb") as file:
            try:
                found = json.load(file)
            except (ValueError, RecursionError) as exc:
                raise UsageError(_BAD.format(name=name, schema=SCHEMA, why=exc)) from exc
    try:
        return _required_manifest(found)
    except (KeyError, TypeError, ValueError) as exc:
        raise UsageError(_BAD.format(name=name, schema=SCHEMA, why=f"{type(exc).__name__}: {exc}")) from exc


def _required_manifest(found: Any) -> Mapping[str, Any]:
    """Return what is a manifest. Raises KeyError, TypeError, ValueError."""
    if found["schema"] != SCHEMA:
        raise ValueError(f"schema {found['schema']!r}")
    if not isinstance(found["range-bytes"], int) or not isinstance(found["algorithm"], str):
        raise TypeError("range-bytes or algorithm")
    bytes.fromhex(found["source"]["content-hash"])
    for disk in found["disks"]:
        bytes.fromhex(disk["content-hash"])
        if not isinstance(disk["virtual-bytes"], int):
            raise TypeError("virtual-bytes")
        if disk["snapshot"] is not None:
            _ = disk["snapshot"]["id"], disk["snapshot"]["name"]
        for run in disk.get("ranges", ()):
            if not isinstance(run["start"], int) or not isinstance(run["length"], int):
                raise TypeError("ranges")
            bytes.fromhex(run.get("digest", ""))
    return dict(found)


def _plain(run: RangeRun) -> dict[str, Any]:
    place: dict[str, Any] = {"start": run.start, "length": run.length}
    return place | ({"zero": True} if run.digest is None else {"digest": run.digest.hex()})


def _is_other_file(found: ImageHashes, wanted: Mapping[str, Any]) -> bool:
    return bool(found.file_content.digest.hex() != wanted["source"]["content-hash"])


def _differences(
    named: tuple[str, str] | None, wanted: Mapping[str, Any], found: DiskHash | None
) -> Iterator[HashDifference]:
    if found is None:
        yield HashDifference("missing", named)
        return
    if found.content.size != wanted["virtual-bytes"]:
        yield HashDifference("size", named)
    if found.content.digest.hex() == wanted["content-hash"]:
        return
    changed = list(_changed_ranges(found, wanted))
    yield from (HashDifference("content", named, start, length) for start, length in changed)
    if not changed and found.content.size == wanted["virtual-bytes"]:
        yield HashDifference("content", named)


def _changed_ranges(found: DiskHash, wanted: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Yield start and length of what differs, as far as both have ranges; adjacent ranges are one."""
    if found.ranges is None or "ranges" not in wanted:
        return
    mine = {run.start: (run.length, run.digest.hex()) for run in found.ranges if run.digest is not None}
    other = {run["start"]: (run["length"], run["digest"]) for run in wanted["ranges"] if "digest" in run}
    begin = end = 0
    for start in sorted(mine.keys() | other.keys()):
        if mine.get(start) == other.get(start):
            continue
        length = max(one[0] for one in (mine.get(start), other.get(start)) if one is not None)
        if start != end and end > begin:
            yield begin, end - begin
        begin = begin if start == end and end > begin else start
        end = start + length
    if end > begin:
        yield begin, end - begin


# --- reading --------------------------------------------------------------------------------------------------------


def _states(disk: Disk, *, snapshots: bool) -> Iterator[tuple[Disk, tuple[str, str] | None]]:
    """Yield the disk, and its snapshots with ID and name; each is open until the next."""
    yield disk, None
    if disk.image is None or not snapshots:
        return
    for found in disk.image.snapshots.list():
        with ExitStack() as stack:
            state = stack.enter_context(found.open())
            yield Disk(state.layer, disk.name, state), (found.id, readable(found.name))


def _disk_hash(
    disk: Disk,
    named: tuple[str, str] | None,
    algorithm: str,
    range_bytes: int,
    progress: Progress | None,
    *,
    ranges: bool,
) -> DiskHash:
    def spans() -> Iterator[tuple[int, int]]:
        for columns in disk.map.columns():
            for at, length, _, flags, _ in zip(*columns, strict=True):
                if not flags & ZERO:
                    yield at, at + length

    def read_into(buffer: memoryview, offset: int) -> None:
        read_compressed(disk.layer, buffer, offset)

    kept: list[RangeRun] = []
    content = Content(disk.size, spans, read_into, algorithm=algorithm, range_bytes=range_bytes)
    found = content.hash(progress, kept.append if ranges else None)
    return DiskHash(named, found, tuple(kept) if ranges else None)


def _file_content(store: Store, algorithm: str, range_bytes: int) -> Content:
    def spans() -> Iterator[tuple[int, int]]:
        return ((span.offset, span.end) for span, is_data in store.extents(0, store.size()) if is_data)

    return Content(store.size(), spans, store.readinto_at, algorithm=algorithm, range_bytes=range_bytes)


def _is_dense(store: Store) -> bool:
    size = store.size()
    if size <= FILE_HOLES:
        return True
    holes = sum(span.length for span, is_data in store.extents(0, size) if not is_data)
    return holes <= FILE_HOLES


def _file_sha256(store: Store) -> str:
    whole = hashlib.sha256()
    for span, is_data in store.extents(0, store.size()):
        for at in range(span.offset, span.end, _READ_BYTES):
            length = min(_READ_BYTES, span.end - at)
            whole.update(store.pread(length, at) if is_data else _ZEROS[:length])
    return whole.hexdigest()
