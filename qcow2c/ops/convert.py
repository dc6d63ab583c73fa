"""`convert`: copy disks into a new image or file, or into one that is there; any of qcow2 and raw to any of them.

What is to be copied is planned from the maps of the disks (`slabs.py`), read and searched for zeros by threads, and
taken by a target (`targets.py`) in the order of the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from qcow2c import codecs, slabs
from qcow2c.create_options import COMPRESSION_TYPES, CreateOptions
from qcow2c.disk import Disk, open_disk
from qcow2c.errors import UsageError
from qcow2c.gate import Gate
from qcow2c.image_builder import ImageBuilder
from qcow2c.local_file import LocalFile
from qcow2c.locks import Use
from qcow2c.new_image import complete_file, new_file, write_image
from qcow2c.opening import open_image
from qcow2c.slabs import Buffers, PlannedDisk, Slab
from qcow2c.storage import Source, Store, open_store
from qcow2c.structs import SECTOR_SIZE
from qcow2c.targets import ImageTarget, NewImageTarget, RawTarget, Target

SPARSE_SIZE = 4096
"""Bytes of zeros that become a hole, unless the caller says otherwise."""

MAX_SPARSE_SIZE = 16 << 20

_ALIGNED_FROM = 64 << 20
"""Bytes of a disk from which on data begins where large writes are fast."""

_AHEAD = 4
"""Slabs that wait for their turn."""

_IN_USE = 5
"""Buffers that are in none of the slabs that wait: the one that is taken, and those that a target keeps for a while."""

Progress = Callable[[int, int], object]
"""Told how many bytes of how many are done."""


@dataclass(frozen=True)
class How:
    """How a copy is made; the words are those of `qemu-img convert`."""

    compressed: bool = False
    compression_level: int | None = None
    sparse_size: int = SPARSE_SIZE
    """Bytes of zeros that become a hole; 0 allocates everything."""
    existing: bool = False
    """Write into a target that is there."""
    target_is_zero: bool = False
    """An existing target reads as zeros."""
    durable: bool = True
    """The copy is durable before it counts as done."""
    threads: int | None = None


def convert(
    sources: Source | Store | Sequence[Source | Store],
    target: Any,
    *,
    output_format: str = "raw",
    image_format: str | None = None,
    snapshot: str | None = None,
    gate: str | Gate = "directory",
    share: bool = False,
    salvage: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> None:
    """Copy a disk, or several one behind the other, to a path or a writable binary file object.

    `output_format` is "raw" or "qcow2"; `options` are those of `How` and, for qcow2, of `create`. `snapshot` names the
    internal snapshot to copy. With `salvage`, what cannot be read is zeros. A new target has its name, or its magic
    value, only when it is complete. Identical disks and options give identical bytes.

    Raises UsageError, what `open_disk` raises, StoreError, ImageLocked.
    """
    several: Sequence[Any] = sources if isinstance(sources, list | tuple) else [sources]
    if snapshot is not None and len(several) > 1:
        raise UsageError("No support for concatenating multiple snapshot")
    names = {field.name for field in fields(How)}
    how = How(**{name: value for name, value in options.items() if name in names})
    create = {name: value for name, value in options.items() if name not in names}
    with ExitStack() as stack:
        disks = [
            stack.enter_context(
                open_disk(
                    source,
                    image_format=image_format,
                    gate=gate,
                    share=share,
                    snapshot=snapshot,
                    on_error="zero" if salvage else "raise",
                )
            )
            for source in several
        ]
        copy_disks(disks, target, output_format, how, progress=progress, gate=gate, **create)


def copy_disks(
    disks: Sequence[Disk],
    target: Any,
    output_format: str,
    how: How,
    *,
    progress: Progress | None = None,
    gate: str | Gate = "directory",
    **create: Any,
) -> None:
    """Copy open disks; see `convert`."""
    _judge(disks, output_format, how, create)
    placed: list[PlannedDisk] = []
    for disk in disks:
        placed.append(PlannedDisk(disk, placed[-1].end if placed else 0))
    size = placed[-1].end if placed else 0
    job = _Job(placed, size, how, progress)
    if output_format == "raw":
        _to_raw(job, target, create)
    elif how.existing or not _is_plain(create):
        _into_image(job, target, gate, create)
    else:
        with new_file(target, Use.WRITABLE_IMAGE, nocow=create.get("nocow", False), durable=how.durable) as store:
            _to_new_image(job, store, CreateOptions(size, **create))


def _judge(disks: Sequence[Disk], output_format: str, how: How, create: dict[str, Any]) -> None:
    """Raise UsageError for what makes no sense, in QEMU's words."""
    if output_format not in ("raw", "qcow2"):
        raise UsageError(f"Unknown file format '{output_format}'")
    if how.compressed and output_format == "raw":
        raise UsageError("Compression not supported for this file format")
    if how.target_is_zero and not how.existing:
        raise UsageError("--target-is-zero requires use of -n flag")
    if how.compressed and create.get("preallocation", "off") != "off":
        raise UsageError("Compression and preallocation not supported at the same time")
    if how.sparse_size % SECTOR_SIZE or not 0 <= how.sparse_size <= MAX_SPARSE_SIZE:
        message = "Invalid buffer size for sparse output specified. Valid sizes are multiples of "
        raise UsageError(
            f"{message}{SECTOR_SIZE} up to {MAX_SPARSE_SIZE}. "
            "Select 0 to disable sparse detection (fully allocates output)."
        )
    if create.get("backing_file") is not None and len(disks) > 1:
        raise UsageError(
            "Having a backing file for the target makes no sense when concatenating multiple input images"
        )


def _is_plain(create: dict[str, Any]) -> bool:
    """Tell whether a new image can be built in one pass: nothing lies below it, and nothing is there before."""
    return (
        create.get("backing_file") is None
        and create.get("data_file") is None
        and create.get("preallocation", "off") == "off"
    )


# --- targets --------------------------------------------------------------------------------------------------------


def _to_raw(job: _Job, target: Any, create: dict[str, Any]) -> None:
    how = job.how
    if how.existing:
        store = open_store(target, writable=True)
        try:
            store.lock(Use.WRITABLE_DATA_FILE)
            if store.size() < job.size:
                raise UsageError("output file is smaller than input file")
            raw = RawTarget(store, unit=how.sparse_size, wipe=not how.target_is_zero, durable=how.durable)
            job.run(raw, with_zeros=not how.target_is_zero)
        finally:
            if store is not target:
                store.close()
        return
    nocow = create.get("nocow", False)
    with complete_file(target, Use.WRITABLE_DATA_FILE, nocow=nocow, durable=how.durable) as store:
        _without_writeback(store, how)
        preallocation = create.get("preallocation", "off")
        if preallocation not in ("off", "falloc", "full"):
            raise UsageError(f"Parameter 'preallocation' does not accept value {preallocation!r}")
        if preallocation != "off":
            store.allocate(0, job.size)
        job.run(RawTarget(store, unit=how.sparse_size, durable=how.durable), with_zeros=not how.sparse_size)


def _to_new_image(job: _Job, store: Store, options: CreateOptions) -> None:
    how = job.how
    _without_writeback(store, how)
    aligned = job.size >= _ALIGNED_FROM and not how.compressed
    builder = ImageBuilder(store, options, aligned=aligned, durable=how.durable)
    compress = None
    if how.compressed:
        compress = codecs.compressor(COMPRESSION_TYPES[options.compression_type], how.compression_level)
    target = NewImageTarget(builder, find_zeros=bool(how.sparse_size) or how.compressed, compress=compress)
    has_zero = options.geometry.has_zero_bit or options.extended_l2
    job.run(target, with_zeros=not how.sparse_size and has_zero)


def _into_image(job: _Job, target: Any, gate: str | Gate, create: dict[str, Any]) -> None:
    """Write through the engine: into an image that is there, or one over a backing file, preallocated, ..."""
    how = job.how
    over_backing = create.get("backing_file") is not None
    if not how.existing:
        write_image(target, CreateOptions(job.size, **create))
    with open_image(target, "r+", gate=gate) as image:
        if image.size() < job.size:
            raise UsageError("output file is smaller than input file")
        if how.compressed and image.geometry.external_data:
            raise UsageError("Compression not supported for this file format")
        _without_writeback(image.layer.store, how)
        wipe = over_backing or (how.existing and not how.target_is_zero)
        image_target = ImageTarget(
            image, unit=how.sparse_size, wipe=wipe, compressed=how.compressed, durable=how.durable
        )
        job.run(image_target, with_zeros=wipe or not how.sparse_size, top_only=over_backing)


def _without_writeback(store: Store, how: How) -> None:
    if isinstance(store, LocalFile):
        store.starts_writeback = how.durable


# --- the copy -------------------------------------------------------------------------------------------------------


class _Job:
    """Copies planned disks to a target, with threads that read and search."""

    def __init__(self, disks: Sequence[PlannedDisk], size: int, how: How, progress: Progress | None) -> None:
        self.disks = disks
        self.size = size
        self.how = how
        self._progress = progress

    def run(self, target: Target, *, with_zeros: bool = False, top_only: bool = False) -> None:
        """Copy everything. Raises as reading and the target."""
        workers = self.how.threads or max(2, min(16, os.cpu_count() or 2))
        ahead = workers + _AHEAD
        buffers = Buffers(ahead + _IN_USE)
        blind = any(planned.disk.image is not None and planned.disk.image.layer.salvage for planned in self.disks)
        below = top_only and self.how.compressed

        def work(slab: Slab) -> tuple[Slab, memoryview | None, Any]:
            if not slab.pieces:
                return slab, None, None
            buffer = buffers.take()
            slabs.read(slab, buffer, below=below)
            return slab, buffer, target.prepare(slab, buffer)

        plan: Iterable[Slab] = slabs.plan(self.disks, with_zeros=with_zeros, top_only=top_only, blind=blind)
        for slab, buffer, prepared in slabs.in_order(plan, work, workers=workers, ahead=ahead):
            if buffer is None:
                for start, end in slab.zeros:
                    target.zero(start, end)
            else:
                target.take(slab, buffer, prepared, partial(buffers.give, buffer))
            if self._progress is not None:
                self._progress(slab.end, self.size)
        target.finish(self.size)
        if self._progress is not None:
            self._progress(self.size, self.size)
