"""Recover disks from an image, however damaged: new, sound files, and a report of what each byte of them stands on."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from qcow2c.builder.image_builder import ImageBuilder
from qcow2c.builder.options import CreateOptions
from qcow2c.disk.disk import Disk, open_disk
from qcow2c.disk.opening import named_file
from qcow2c.errors import GateRefused, Qcow2Error, Span, StoreError, UnsupportedFeature, UsageError
from qcow2c.recovery.found_image import FoundImage, images_in
from qcow2c.recovery.found_ranges import FoundRange
from qcow2c.recovery.found_states import FoundDisk, Level
from qcow2c.recovery.range_data import Below, GuestPiece, RangeData
from qcow2c.recovery.recovered import RecoveredDisk, RecoveredImage, Recovery
from qcow2c.storage.file_names import plain_path
from qcow2c.storage.gate import Gate, gate_for
from qcow2c.storage.locks import Use
from qcow2c.storage.new_file import complete_file
from qcow2c.storage.sources import Source, Store, opened
from qcow2c.storage.store import Progress

if TYPE_CHECKING:
    from collections.abc import Collection

_SLAB = 2 << 20
_OUTPUT_CLUSTER = 1 << 16
_HASH_BYTES = 4 << 20
_WHOLE_HASH_BYTES = 64 << 30
"""Files that are larger are hashed by their data alone, with its places."""

ACCEPTED = ("inferred",)


def recover(
    source: Source | Store,
    output: str | os.PathLike[str] | None = None,
    *,
    output_format: str = "qcow2",
    accept: Collection[str] = (),
    offset: int | None = None,
    data_file: Source | Store | None = None,
    backing: Source | Store | None = None,
    backing_format: str | None = None,
    fragments: str | os.PathLike[str] | None = None,
    gate: str | Gate = "directory",
    share: bool = False,
    progress: Progress | None = None,
) -> Recovery:
    """Find the disks of a damaged image, write each as a sound image that stands alone, and tell what is where.

    The active disk goes to `output`, a path where nothing may be yet; each snapshot, and each disk of another image in
    the same file, beside it, with its name in the file's. Without `output` nothing is written: the report tells what
    would be. The source is opened for reading only, and locked against writers, unless
    `share`.

    What an intact table names, or a copy of it, is written. What is only inferred is left out, as zeros, unless
    `accept` has "inferred"; so are states that the image no longer has. What is lost is zeros, and listed. `offset` is
    where the image begins in the file. `data_file` and `backing` are the files that the image needs, where it does not
    name them, or the gate refuses them. `fragments` is a directory that does not exist: it receives what is in use and
    has no place, and an index.

    Raises NotQcow2 where nothing of an image is found, UnsupportedFeature for encrypted images, UsageError, StoreError,
    ImageLocked.
    """
    _require(output, output_format, accept, fragments)
    with ExitStack() as stack:
        store = stack.enter_context(opened(source, Use.of_reader(share=share)))
        method, before = source_hash(store)
        found = images_in(store, offset=offset, external=data_file is not None, progress=progress)
        result = Recovery(store.name, store.size(), method, before, "", [], [])
        names = _Names(output)
        for image in found:
            result.images.append(_told(image))
            files = _Files(stack, store, image, data_file, backing, backing_format, gate)
            for disk in image.states.disks():
                if files.below_size > disk.size and not disk.size_is_known:
                    disk.size, disk.size_evidence = files.below_size, "the backing file"
                taken = disk.kind != "stale" or "inferred" in accept
                place = names.of(disk, image, output_format) if taken and disk.size else None
                result.disks.append(_recovered(image, disk, files, place, output_format, accept))
        if fragments is not None:
            _export(result, found, plain_path(fragments))
        result.hash_after = source_hash(store)[1]
    return result


def _require(
    output: str | os.PathLike[str] | None,
    output_format: str,
    accept: Collection[str],
    fragments: str | os.PathLike[str] | None,
) -> None:
    if output_format not in ("qcow2", "raw"):
        raise UsageError(f"Unknown file format {output_format!r}")
    unknown = [word for word in accept if word not in ACCEPTED]
    if unknown:
        raise UsageError(f"only {', '.join(ACCEPTED)} can be accepted, not {unknown[0]!r}")
    for path in (output, fragments):
        if path is not None and os.path.lexists(path):
            raise UsageError(f"{os.fsdecode(path)!r} exists already: what is recovered is a new file")


def source_hash(store: Store) -> tuple[str, str]:
    """Return how a source is hashed, and its hash. A file of more than 64 GiB is hashed by its data and its places."""
    digest = hashlib.sha256()
    size = store.size()
    whole = size <= _WHOLE_HASH_BYTES
    for span, is_data in store.extents(0, size):
        if not whole:
            if not is_data:
                continue
            digest.update(f"{span.offset}+{span.length}\n".encode())
        for at in range(span.offset, span.end, _HASH_BYTES):
            digest.update(store.pread(min(_HASH_BYTES, span.end - at), at))
    return "sha256" if whole else "sha256 of data extents", digest.hexdigest()


def _told(image: FoundImage) -> RecoveredImage:
    header = image.header
    told = RecoveredImage(
        offset=image.offset,
        has_header=image.believed.present,
        cluster_size=header.cluster_size,
        version=header.version,
        extended_l2=header.extended_l2,
        external_data=header.external_data,
        score=image.shape.votes,
        doubts=image.doubts,
        refcounts_believed=image.refcounts.usable,
    )
    for span in image.fragments():
        told.unplaced += span.length
        told.fragments.append({"host": image.offset + span.offset, "length": span.length})
    return told


class _Names:
    """The names of the files that are written."""

    def __init__(self, output: str | os.PathLike[str] | None) -> None:
        self._output = None if output is None else os.fsdecode(plain_path(output))
        self._given: set[str] = set()

    def of(self, disk: FoundDisk, image: FoundImage, output_format: str) -> str | None:
        """Return where a disk goes, None where nothing is written. Raises UsageError where a file is there already."""
        if self._output is None:
            return None
        if not self._given:
            self._given.add(self._output)
            return self._output
        stem, ending = os.path.splitext(self._output)
        words = [f"at-{image.offset}"] if image.offset else []
        words += [disk.kind] if disk.kind != "active" or not words else []
        words += [re.sub(r"[^\w.+-]", "_", word) for word in (disk.snapshot_id, disk.name) if word]
        place = f"{stem}.{'-'.join(words)[:150]}{ending or '.' + output_format}"
        number = 1
        while place in self._given:
            number += 1
            place = f"{stem}.{'-'.join(words)[:150]}-{number}{ending or '.' + output_format}"
        if os.path.lexists(place):
            raise UsageError(f"{place!r} exists already: what is recovered is a new file")
        self._given.add(place)
        return place


class _Files:
    """The files beside an image: with the guest's data, and below it."""

    def __init__(
        self,
        stack: ExitStack,
        whole: Store,
        image: FoundImage,
        data_file: Source | Store | None,
        backing: Source | Store | None,
        backing_format: str | None,
        gate: str | Gate,
    ) -> None:
        header = image.header
        if header.encrypted:
            raise UnsupportedFeature("the image is encrypted: what it holds cannot be judged", spec="Data encryption")
        self.data: Store | None = image.store
        self.below: Below | None = None
        self.below_size = 0
        allow = gate_for(gate)
        if header.external_data:
            name = data_file
            if name is None and header.data_file:
                name = _allowed(whole, allow, "data file", header.data_file, image)
            self.data = None if name is None else stack.enter_context(opened(name, Use.SHARED))
        name = backing
        if name is None and header.backing_file:
            name = _allowed(whole, allow, "backing file", header.backing_file, image)
        if name is not None:
            stated = backing_format
            if stated is None and header.backing_format in (b"raw", b"qcow2"):
                stated = header.backing_format.decode()
            try:
                disk = stack.enter_context(open_disk(name, image_format=stated, gate=gate, share=True))
            except Qcow2Error as exc:
                image.states.doubts.append(f"the backing file cannot be opened: {exc}")
            else:
                self.below, self.below_size = _reader(disk), disk.size

    @property
    def data_size(self) -> int:
        return 1 << 63 if self.data is None else self.data.size()


def _allowed(whole: Store, gate: object, role: str, name: bytes, image: FoundImage) -> str | os.PathLike[str] | None:
    try:
        found = named_file(whole, gate, role, name)  # type: ignore[arg-type]
    except GateRefused as exc:
        image.states.doubts.append(str(exc))
        return None
    if not os.path.exists(found):
        image.states.doubts.append(f"the {role} {os.fsdecode(name)!r} is not there")
        return None
    return found


def _reader(disk: Disk) -> Below:
    def read(length: int, offset: int) -> bytes:
        buffer = bytearray(length)
        there = max(0, min(length, disk.size - offset))
        if there:
            disk.read_into(memoryview(buffer)[:there], offset)
        return bytes(buffer)

    return read


def _recovered(
    image: FoundImage,
    disk: FoundDisk,
    files: _Files,
    place: str | None,
    output_format: str,
    accept: Collection[str],
) -> RecoveredDisk:
    """Write one disk, or only look at it, and return what is to be told of it."""
    evidence = list(disk.evidence)
    told = RecoveredDisk(
        disk.name, disk.kind, disk.snapshot_id, disk.size, disk.size_evidence, image.offset, evidence, place
    )
    doubt = image.has_lost_clusters
    data = RangeData(image.store, image.header, files.data, files.below, doubt_zeros=doubt)
    pieces = _pieces(image, disk, files, data, told)
    if place is None:
        for _ in pieces:
            pass
        return told
    wanted = (piece for piece in pieces if piece.found.level is not Level.INFERRED or "inferred" in accept)
    with complete_file(place, Use.WRITABLE_IMAGE) as store:
        _write(store, wanted, disk.size, output_format)
    return told


def _pieces(
    image: FoundImage, disk: FoundDisk, files: _Files, data: RangeData, told: RecoveredDisk
) -> Iterator[GuestPiece]:
    geometry = image.header.geometry
    ranges: Iterator[FoundRange] = iter(image.ranges(disk, files.data_size))
    for found in ranges:
        for piece in data.pieces(found):
            told.add(piece.found, geometry)
            yield piece


def _write(store: Store, pieces: Iterator[GuestPiece], size: int, output_format: str) -> None:
    """Write a disk from its pieces, which come in order; zeros are left out."""
    builder = None
    if output_format == "qcow2":
        builder = ImageBuilder(store, CreateOptions(size, cluster_size=_OUTPUT_CLUSTER))
    for at, slab in _slabs(pieces):
        for start in range(0, len(slab), _OUTPUT_CLUSTER):
            cluster = slab[start : start + _OUTPUT_CLUSTER]
            if cluster.count(0) != len(cluster):
                if builder is None:
                    store.pwrite(cluster[: max(0, size - at - start)], at + start)
                else:
                    builder.add_data(at + start, memoryview(cluster))
        if builder is not None:
            builder.write_data()
    if builder is None:
        store.truncate(size)
    else:
        builder.finish()


def _slabs(pieces: Iterator[GuestPiece]) -> Iterator[tuple[int, bytes]]:
    """Yield aligned parts of a disk that are not all zeros, in order, each whole."""
    base, slab = -1, bytearray()
    for piece in pieces:
        if piece.data is None:
            continue
        at, data = piece.found.guest, memoryview(piece.data)
        while data:
            start = at // _SLAB * _SLAB
            if start != base:
                if base >= 0:
                    yield base, bytes(slab)
                base, slab = start, bytearray(_SLAB)
            count = min(len(data), base + _SLAB - at)
            slab[at - base : at - base + count] = data[:count]
            data, at = data[count:], at + count
    if base >= 0:
        yield base, bytes(slab)


def _export(result: Recovery, found: list[FoundImage], directory: str | os.PathLike[str]) -> None:
    """Write each fragment as a file of its own, and an index of them. Raises StoreError."""
    import json

    index = []
    try:
        os.mkdir(directory)
        for image, told in zip(found, result.images, strict=True):
            for number, span in enumerate(image.fragments()):
                name = f"fragment-{image.offset + span.offset:012x}.bin"
                digest = hashlib.sha256()
                with open(os.path.join(directory, name), "xb") as file:
                    for part in _parts(span):
                        data = image.store.pread(part.length, part.offset)
                        digest.update(data)
                        file.write(data)
                line = {"file": name, "host": image.offset + span.offset, "length": span.length}
                told.fragments[number]["file"] = name
                index.append({**line, "sha256": digest.hexdigest()})
        with open(os.path.join(directory, "index.json"), "x", encoding="utf-8") as file:
            json.dump({"source": result.source, "fragments": index}, file, indent=2)
    except OSError as exc:
        raise StoreError(f"Could not write fragments to {os.fsdecode(directory)!r}: {exc.strerror}") from exc


def _parts(span: Span) -> Iterator[Span]:
    for at in range(span.offset, span.end, _HASH_BYTES):
        yield Span(at, min(_HASH_BYTES, span.end - at))
