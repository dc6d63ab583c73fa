"""`convert`: copy disks into a new image or file, or into one that is there; any of qcow2 and raw to any of them.

What is to be copied is planned from the maps of the disks (`slabs.py`), read and searched for zeros by threads, and
taken by a target (`targets.py`) in the order of the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any, BinaryIO

from qcow2c import codecs
from qcow2c.bitmap_copy import Place, bitmaps_to_copy, copy_bitmaps
from qcow2c.copying import Copying, DiskCopy, Progress, StreamCopy
from qcow2c.create_options import COMPRESSION_TYPES, VERSIONS, CreateOptions
from qcow2c.disk import Disk, open_disk
from qcow2c.errors import UsageError
from qcow2c.gate import Gate, any_file, gate_for
from qcow2c.geometry import Geometry
from qcow2c.image_builder import ImageBuilder
from qcow2c.image_pipe import ImagePipe, Survey
from qcow2c.local_file import LocalFile
from qcow2c.locks import Use
from qcow2c.new_image import complete_file, name_bitmaps, new_file, write_image
from qcow2c.opening import detect_format, open_image
from qcow2c.slabs import SLAB_BYTES, PlannedDisk
from qcow2c.storage import Memory, Source, Store, open_store
from qcow2c.structs import FORMAT_PROBE_BYTES, SECTOR_SIZE, Version
from qcow2c.targets import ImageTarget, NewImageTarget, Pipe, RawPipe, RawTarget

SPARSE_SIZE = 4096
"""Bytes of zeros that become a hole, unless the caller says otherwise."""

MAX_SPARSE_SIZE = 16 << 20

_ALIGNED_FROM = 64 << 20
"""Bytes of a disk from which on data begins where large writes are fast."""

Bitmaps = Callable[[Geometry, Place], bytes | None]
"""Places bitmaps in an image; returns the data of the header extension that names them, None without any."""


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
    bitmaps: bool = False
    """Copy the persistent bitmaps of the source, too."""
    skip_broken_bitmaps: bool = False
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
    warn: Callable[[str], object] | None = None,
    gate: str | Gate = "directory",
    **create: Any,
) -> None:
    """Copy open disks; see `convert`. The target may be a `Pipe`, too; `warn` is told what cannot be copied."""
    _judge(len(disks), output_format, how, create)
    bitmaps = _bitmaps(disks, output_format, how, create, warn or (lambda _message: None)) if how.bitmaps else None
    placed: list[PlannedDisk] = []
    for disk in disks:
        placed.append(PlannedDisk(disk, placed[-1].end if placed else 0))
        for file in (target, create.get("data_file")):
            placed[-1].require_other(file)
    copy = DiskCopy(placed, threads=how.threads, progress=progress)
    _copy(copy, target, output_format, how, gate, create, bitmaps)


def copy_stream(
    file: BinaryIO,
    target: Any,
    output_format: str,
    how: How,
    *,
    image_format: str | None = None,
    gate: str | Gate = "directory",
    **create: Any,
) -> None:
    """Copy an unbuffered file that can be read but once; see `convert`.

    What has to be read in another order, or needs its size first, goes through a temporary file.
    """
    _judge(1, output_format, how, create)
    copy = StreamCopy(file, threads=how.threads)
    head = copy.begin(FORMAT_PROBE_BYTES)
    found = image_format or detect_format(Memory(head))
    in_place = not how.existing if output_format == "raw" else _is_built(how, create) and not isinstance(target, Pipe)
    if found == "raw" and in_place:
        _copy(copy, target, output_format, how, gate, create)
        return
    import shutil
    from tempfile import TemporaryFile

    with TemporaryFile() as kept:
        kept.write(head)
        shutil.copyfileobj(file, kept, SLAB_BYTES)
        kept.flush()
        with open_disk(f"/proc/self/fd/{kept.fileno()}", image_format=found, gate=gate) as disk:
            copy_disks([disk], target, output_format, how, gate=gate, **create)


def _bitmaps(
    disks: Sequence[Disk], output_format: str, how: How, create: dict[str, Any], warn: Callable[[str], object]
) -> Bitmaps:
    """Return what places the bitmaps of the one source in the target. Raises UsageError, CorruptMetadata."""
    if len(disks) != 1:
        raise UsageError("Copying bitmaps only possible with single source")
    image = disks[0].image
    if image is None:
        raise UsageError("Source lacks bitmap support")
    store, header = image.layer.store, image.header
    records = bitmaps_to_copy(store, header, skip_broken=how.skip_broken_bitmaps, warn=warn)
    if output_format == "raw" or VERSIONS.get(create.get("compat", "1.1")) == Version.V2:
        raise UsageError(f"Format driver '{output_format}' does not support bitmaps")
    if how.existing and records:
        raise UsageError("bitmaps can be copied into a new image only, not with -n")

    def place_all(geometry: Geometry, place: Place) -> bytes | None:
        return copy_bitmaps(store, header, records, geometry, disks[0].size, place) if records else None

    return place_all


def _copy(
    copy: Copying,
    target: Any,
    output_format: str,
    how: How,
    gate: str | Gate,
    create: dict[str, Any],
    bitmaps: Bitmaps | None = None,
) -> None:
    if isinstance(target, Pipe):
        _to_pipe(copy, target, output_format, how, create, bitmaps)
    elif output_format == "raw":
        _to_raw(copy, target, how, create)
    elif _is_built(how, create):
        nocow = create.get("nocow", False)
        with new_file(target, Use.WRITABLE_IMAGE, nocow=nocow, durable=how.durable) as store:
            _to_new_image(copy, store, how, CreateOptions(copy.size, **create), bitmaps)
    elif how.existing:
        _into_image(copy, target, how, gate)
    else:
        nocow = create.get("nocow", False)
        with complete_file(target, Use.WRITABLE_IMAGE, nocow=nocow, durable=how.durable) as store:
            _without_writeback(store, how)
            options = CreateOptions(copy.size, **create)
            write_image(store, options)
            _into_image(copy, store, how, gate, options, bitmaps)


def _judge(sources: int, output_format: str, how: How, create: dict[str, Any]) -> None:
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
    if create.get("backing_file") is not None and sources > 1:
        raise UsageError(
            "Having a backing file for the target makes no sense when concatenating multiple input images"
        )


def _is_built(how: How, create: dict[str, Any]) -> bool:
    """Tell whether a new image can be built in one pass: nothing lies below it, and nothing is there before."""
    plain = create.get("backing_file") is None and create.get("data_file") is None
    return plain and not how.existing and create.get("preallocation", "off") == "off"


# --- targets --------------------------------------------------------------------------------------------------------


def _to_raw(copy: Copying, target: Any, how: How, create: dict[str, Any]) -> None:
    wipe = how.existing and not how.target_is_zero
    copy.with_zeros = wipe or not how.sparse_size
    if how.existing:
        store = open_store(target, writable=True)
        try:
            store.lock(Use.WRITABLE_DATA_FILE)
            if store.size() < copy.size:
                raise UsageError("output file is smaller than input file")
            _without_writeback(store, how)
            copy.run(RawTarget(store, unit=how.sparse_size, wipe=wipe, durable=how.durable))
        finally:
            if store is not target:
                store.close()
        return
    preallocation = create.get("preallocation", "off")
    if preallocation not in ("off", "falloc", "full"):
        raise UsageError(f"Parameter 'preallocation' does not accept value {preallocation!r}")
    nocow = create.get("nocow", False)
    with complete_file(target, Use.WRITABLE_DATA_FILE, nocow=nocow, durable=how.durable) as store:
        _without_writeback(store, how)
        if preallocation != "off":
            store.allocate(0, copy.size)
        copy.run(RawTarget(store, unit=how.sparse_size, durable=how.durable))


def _to_new_image(
    copy: Copying, store: Store, how: How, options: CreateOptions, bitmaps: Bitmaps | None = None
) -> None:
    _without_writeback(store, how)
    aligned = copy.size >= _ALIGNED_FROM and not how.compressed
    builder = ImageBuilder(store, options, aligned=aligned, durable=how.durable)
    compress = None
    if how.compressed:
        compress = codecs.compressor(COMPRESSION_TYPES[options.compression_type], how.compression_level)
    # Without zero clusters, what is not allocated reads as zeros just as well.
    copy.with_zeros = not how.sparse_size and (options.geometry.has_zero_bit or options.extended_l2)
    target = NewImageTarget(builder, find_zeros=bool(how.sparse_size) or how.compressed, compress=compress)
    if bitmaps is not None:
        target.before_end = lambda: builder.set_bitmaps(bitmaps(builder.geometry, builder.place))
    copy.run(target)


def _to_pipe(
    copy: Copying, pipe: Pipe, output_format: str, how: How, create: dict[str, Any], bitmaps: Bitmaps | None
) -> None:
    if output_format == "raw":
        copy.run(RawPipe(pipe.write))
    elif _is_built(how, create) and not how.compressed and bitmaps is None:
        options = CreateOptions(copy.size, **create)
        options.validate()
        survey = Survey(options.cluster_size)
        copy.run(survey)
        copy.run(ImagePipe(pipe.write, options, survey.edges))
    elif _is_built(how, create):
        # Nobody knows where bitmaps and compressed clusters lie before all is there.
        from tempfile import TemporaryFile

        with TemporaryFile() as kept:
            store = open_store(f"/proc/self/fd/{kept.fileno()}", writable=True)
            try:
                _to_new_image(copy, store, replace(how, durable=False), CreateOptions(copy.size, **create), bitmaps)
                for start in range(0, store.size(), SLAB_BYTES):
                    pipe.write(memoryview(store.pread(SLAB_BYTES, start)))
            finally:
                store.close()
    else:
        raise UsageError("standard output takes a new image without backing file, data file or preallocation")


def _into_image(
    copy: Copying,
    target: Any,
    how: How,
    gate: str | Gate,
    options: CreateOptions | None = None,
    bitmaps: Bitmaps | None = None,
) -> None:
    """Write through the engine: into an image that is there, or with `options` a new one that cannot be built."""
    over_backing = options is not None and options.backing_file is not None
    with open_image(target, "r+", gate=_trusting(gate, options)) as image:
        if image.size() < copy.size:
            raise UsageError("output file is smaller than input file")
        if how.compressed and image.geometry.external_data:
            raise UsageError("Compression not supported for this file format")
        _without_writeback(image.layer.store, how)
        _without_writeback(image.layer.data_store, how)
        wipe = over_backing or (how.existing and not how.target_is_zero)
        copy.with_zeros, copy.top_only = wipe or not how.sparse_size, over_backing
        copy.below = over_backing and how.compressed
        copy.run(ImageTarget(image, unit=how.sparse_size, wipe=wipe, compressed=how.compressed, durable=how.durable))
        extension = bitmaps(image.geometry, image.place) if bitmaps is not None else None
    if extension is not None and options is not None:
        name_bitmaps(target, options, extension)


def _trusting(gate: str | Gate, options: CreateOptions | None) -> Gate:
    """Return a gate that allows, too, what the caller has just named for a new image."""
    usual = gate_for(gate)
    named = (options.backing_file, options.data_file) if options is not None else ()
    return lambda request: any_file(request) if request.name in named else usual(request)


def _without_writeback(store: Store, how: How) -> None:
    if isinstance(store, LocalFile):
        store.starts_writeback = how.durable
