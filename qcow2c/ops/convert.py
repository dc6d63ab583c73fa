"""`convert`: copy disks into a new image or file, or into one that is there; any of qcow2 and raw to any of them.

What is to be copied is planned from the maps of the disks (`copy/plan.py`), read and searched for zeros by threads, and
taken by a target (`copy/targets.py`, `copy/send.py`) in the order of the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing

from qcow2c.bitmaps.copy import bitmaps_to_copy
from qcow2c.bitmaps.stored import Bitmap
from qcow2c.builder.options import VERSIONS, NewImageOptions, require_known
from qcow2c.constants import FORMAT_PROBE_BYTES, SECTOR_SIZE, Version
from qcow2c.copy.options import CopyOptions, How
from qcow2c.copy.plan import PlannedDisk
from qcow2c.copy.send import is_built, send
from qcow2c.copy.targets import Pipe
from qcow2c.copy.transfer import DiskCopy, StreamCopy
from qcow2c.disk.disk import Disk, open_disk
from qcow2c.errors import MissingKey, Span, UsageError
from qcow2c.format.detection import LUKS, detect_format
from qcow2c.light import TYPE_CHECKING
from qcow2c.storage.descriptors import DescriptorFile
from qcow2c.storage.gate import Gate
from qcow2c.storage.sources import Memory, Source, Store, opened
from qcow2c.storage.store import Progress

if TYPE_CHECKING:
    from typing import Any, BinaryIO, Unpack

    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.secrets import Key

MAX_SPARSE_SIZE = 16 << 20


class ConvertOptions(CopyOptions, NewImageOptions, total=False):
    """How a copy is made, and the options of a new qcow2 image."""


def convert(
    sources: Source | Store | Sequence[Source | Store],
    target: Any,
    *,
    output_format: str = "raw",
    image_format: str | None = None,
    snapshot: str | None = None,
    key: Key | KeyRing = None,
    target_key: Key | KeyRing = None,
    gate: str | Gate = "directory",
    share: bool = False,
    progress: Progress | None = None,
    **options: Unpack[ConvertOptions],
) -> None:
    """Copy a disk, or several consecutively, to a path or a writable binary file object.

    `output_format` is "raw", "qcow2" or "luks"; `options` are those of `How` and, for qcow2, of `create`. `snapshot`
    names the internal snapshot to copy. `key` opens encrypted sources, `target_key` a target that is there, or what
    lies below it; `encryption`, an `Encryption`, lets a new one be encrypted. A new target has its name, or its magic
    value, only when it is complete. Identical disks and options give identical bytes, but for encryption, whose keys
    are random.

    Raises UsageError, what `open_disk` raises, StoreError, ImageLocked.
    """
    several: Sequence[Any] = sources if isinstance(sources, list | tuple) else [sources]
    if not several:
        raise UsageError("Must specify image file name")
    if snapshot is not None and len(several) > 1:
        raise UsageError("No support for concatenating multiple snapshot")
    given: dict[str, Any] = dict(options)
    how = How(**{name: given.pop(name) for name in CopyOptions.__annotations__ if name in given})
    with ExitStack() as stack:
        disks = [
            stack.enter_context(
                open_disk(
                    source,
                    image_format=image_format,
                    gate=gate,
                    share=share,
                    snapshot=snapshot,
                    on_error="zero" if how.salvage else "raise",
                    key=key,
                )
            )
            for source in several
        ]
        copy_disks(disks, target, output_format, how, progress=progress, gate=gate, target_key=target_key, **given)


def copy_disks(
    disks: Sequence[Disk],
    target: Any,
    output_format: str,
    how: How,
    *,
    progress: Progress | None = None,
    warn: Callable[[str], object] | None = None,
    lost: Callable[[Span, Exception], object] | None = None,
    gate: str | Gate = "directory",
    target_key: Key | KeyRing = None,
    **create: Unpack[NewImageOptions],
) -> None:
    """Copy open disks; see `convert`. The target may be a `Pipe`, too; `warn` is told what could not be copied, and
    `lost` which ranges of the target are zeros for that, each with the reason.
    """
    judge(len(disks), output_format, how, create)
    warn = warn or (lambda _message: None)
    bitmaps = _bitmaps(disks, output_format, how, create, warn) if how.bitmaps else None
    placed: list[PlannedDisk] = []
    for disk in disks:
        if disk.layer.needs_key:
            raise MissingKey(f"{disk.name!r} is encrypted, and no key was given", spec="Data encryption")
        placed.append(PlannedDisk(disk, placed[-1].end if placed else 0, salvage=how.salvage))
        for file in (target, create.get("data_file")):
            placed[-1].require_other(file)
    copy = DiskCopy(placed, threads=how.threads, progress=progress)
    send(copy, target, output_format, how, gate, create, bitmaps, target_key)
    for planned in placed:
        for offset, error in planned.salvaged():
            warn(f"error while reading offset {offset}: {error}")
        if lost is not None:
            for span, reason in planned.lost_ranges():
                lost(span, reason)


def copy_stream(
    file: BinaryIO,
    target: Any,
    output_format: str,
    how: How,
    *,
    image_format: str | None = None,
    gate: str | Gate = "directory",
    **create: Unpack[NewImageOptions],
) -> None:
    """Copy an unbuffered file that can be read but once; see `convert`.

    What has to be read in another order, or needs its size first, goes through a temporary file.
    """
    judge(1, output_format, how, create)
    copy = StreamCopy(file, threads=how.threads)
    head = copy.begin(FORMAT_PROBE_BYTES)
    found = detect_format(Memory(head)) if image_format is None else image_format
    in_place = not how.existing if output_format == "raw" else is_built(how, create) and not isinstance(target, Pipe)
    if found == "raw" and in_place:
        send(copy, target, output_format, how, gate, create)
        return
    from tempfile import TemporaryFile

    with TemporaryFile() as kept:
        copy.keep(kept)
        kept.flush()
        name = getattr(file, "name", None)
        name = name if isinstance(name, str) else "standard input"
        with (
            closing(DescriptorFile(kept.fileno(), name=name)) as store,
            open_disk(store, image_format=found, gate=gate) as disk,
        ):
            copy_disks([disk], target, output_format, how, gate=gate, **create)


def _bitmaps(
    disks: Sequence[Disk], output_format: str, how: How, create: NewImageOptions, warn: Callable[[str], object]
) -> Sequence[Bitmap]:
    """Return the bitmaps of the one source that are to be copied. Raises UsageError, CorruptMetadata."""
    if len(disks) != 1:
        raise UsageError("Copying bitmaps only possible with single source")
    image = disks[0].image
    if image is None:
        raise UsageError("Source lacks bitmap support")
    found = bitmaps_to_copy(image.layer.store, image.header, skip_broken=how.skip_broken_bitmaps, warn=warn)
    if output_format == "raw" or VERSIONS.get(create.get("compat", "1.1")) == Version.V2:
        raise UsageError(f"Format driver '{output_format}' does not support bitmaps")
    return found


def judge(sources: int, output_format: str, how: How, create: Mapping[str, Any]) -> None:
    """Raise UsageError for what makes no sense, in QEMU's words; nothing is opened for that."""
    if output_format not in ("raw", "qcow2", LUKS):
        raise UsageError(f"Unknown file format '{output_format}'")
    if output_format == LUKS:
        _judge_volume(how, create)
    if how.compressed and output_format != "qcow2":
        raise UsageError("Compression not supported for this file format")
    if create.get("encryption") is not None:
        _judge_encryption(output_format, how)
    if how.target_is_zero and not how.existing:
        raise UsageError("--target-is-zero requires use of -n flag")
    if how.compressed and create.get("preallocation", "off") != "off":
        raise UsageError("Compression and preallocation not supported at the same time")
    require_sparse_size(how.sparse_size)
    require_known(create)
    _judge_backing(sources, output_format, how, create)


def _judge_volume(how: How, create: Mapping[str, Any]) -> None:
    """Raise UsageError for what a raw LUKS volume cannot be."""
    encryption = create.get("encryption")
    if not how.existing and (encryption is None or encryption.format != LUKS):
        raise UsageError("Parameter 'key-secret' is required for cipher")
    for option in create:
        if option != "encryption" and create[option] is not None:
            raise UsageError(f"Invalid parameter {option!r}")


def _judge_encryption(output_format: str, how: How) -> None:
    """Raise UsageError for what cannot be encrypted."""
    if how.compressed:
        raise UsageError("Compression and encryption not supported at the same time")
    if output_format == "raw":
        raise UsageError("Encryption not supported for file format 'raw'")


def _judge_backing(sources: int, output_format: str, how: How, create: Mapping[str, Any]) -> None:
    """Raise UsageError for a backing file that the target cannot have."""
    has_backing = create.get("backing_file") is not None
    for option, shown in (("backing_file", "Backing file"), ("backing_fmt", "Backing file format")):
        if output_format == "raw" and create.get(option) is not None:
            raise UsageError(f"{shown} not supported for file format 'raw'")
    if has_backing and create.get("backing_fmt") is None:
        raise UsageError("Use of backing file requires explicit backing format")
    if how.target_is_zero and (has_backing or how.over_backing):
        raise UsageError("Cannot use --target-is-zero when the destination image has a backing file")
    if has_backing and sources > 1:
        raise UsageError("Having a backing file for the target makes no sense when concatenating multiple input images")


def require_sparse_size(size: int) -> None:
    """Raise UsageError for a size of holes that cannot be."""
    if size % SECTOR_SIZE or not 0 <= size <= MAX_SPARSE_SIZE:
        message = "Invalid buffer size for sparse output specified. Valid sizes are multiples of "
        raise UsageError(
            f"{message}{SECTOR_SIZE} up to {MAX_SPARSE_SIZE}. "
            "Select 0 to disable sparse detection (fully allocates output)."
        )


def format_of(target: Any) -> str:
    """Return the format of a file that is there, by its first bytes. Raises StoreError."""
    with opened(target) as store:
        return detect_format(store)
