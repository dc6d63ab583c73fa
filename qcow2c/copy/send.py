"""The targets of a copy, opened: which sort each is, and the order in which it comes into being."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, suppress

from qcow2c.bitmaps.copy import copy_bitmaps
from qcow2c.bitmaps.stored import Bitmap
from qcow2c.builder.empty_image import require_raw_preallocation, write_image, write_volume
from qcow2c.builder.image_builder import ImageBuilder
from qcow2c.builder.options import COMPRESSION_TYPES, CreateOptions, NewImageOptions, problems_of_extent_size
from qcow2c.builder.plan import l1_entries_of
from qcow2c.constants import Version
from qcow2c.copy.buffers import SLAB_BYTES
from qcow2c.copy.image_pipe import DataSurvey, ImagePipe
from qcow2c.copy.options import How
from qcow2c.copy.plan import Scope
from qcow2c.copy.targets import ImageTarget, NewImageTarget, Pipe, RawPipe, RawTarget
from qcow2c.copy.transfer import Copying
from qcow2c.disk.apart import require_apart
from qcow2c.disk.opening import open_image
from qcow2c.errors import MissingKey, UsageError
from qcow2c.format import codecs
from qcow2c.format.detection import LUKS
from qcow2c.light import TYPE_CHECKING, replace
from qcow2c.storage.gate import Gate, GateFunction, any_file, gate_for
from qcow2c.storage.locks import Use
from qcow2c.storage.new_file import FileHints, complete_file, is_there, new_file
from qcow2c.storage.sources import Store, opened

if TYPE_CHECKING:
    from typing import Any

    from qcow2c.bitmaps.edit import BitmapEdit
    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.new_encryption import MadeEncryption
    from qcow2c.crypto.secrets import Key

_ALIGNED_FROM = 64 << 20
"""Bytes of a disk from which on data begins where large writes are fast."""


def send(
    copy: Copying,
    target: Any,
    output_format: str,
    how: How,
    gate: str | Gate,
    create: NewImageOptions,
    bitmaps: Sequence[Bitmap] | None = None,
    key: Key | KeyRing = None,
) -> None:
    """Copy to a target of any sort, which is complete then; `key` is its own. Raises as `convert`."""
    if not how.existing:
        require_apart(
            target,
            backing_file=create.get("backing_file"),
            backing_format=create.get("backing_fmt"),
            data_file=create.get("data_file"),
            gate=gate,
        )
    if is_there(target) and not how.over_backing and create.get("backing_file") is None:
        copy.try_first()
    if isinstance(target, Pipe):
        _to_pipe(copy, target, output_format, how, create, bitmaps)
    elif output_format == LUKS:
        _to_luks(copy, target, how, create, key)
    elif output_format == "raw":
        _to_raw(copy, target, how, create)
    elif how.existing:
        _into_image(copy, target, how, gate, key, bitmaps=bitmaps)
    elif is_built(how, create):
        options, compress = _options(copy.size, create), _compressor(how, create)
        with _built_file(target, Use.WRITABLE_IMAGE, hints=options.hints, durable=how.durable) as store:
            _to_new_image(copy, store, how, options, compress, bitmaps)
    else:
        options, _ = _options(copy.size, create), _compressor(how, create)
        made = ExitStack()
        if options.data_file is not None and not os.path.exists(options.data_file):
            made.callback(_remove, options.data_file)
        with made, complete_file(target, Use.WRITABLE_IMAGE, hints=options.hints, durable=how.durable) as store:
            if options.encryption is not None:
                encryption = options.encryption.make()
                key = _opened(key, encryption)
                write_image(store, options, made=encryption)
            else:
                write_image(store, options)
            _into_image(copy, store, how, gate, key, options, bitmaps)
            made.pop_all()  # A data file without its image is of no use, but for this one.


def _built_file(target: Any, use: Use, *, hints: FileHints, durable: bool) -> AbstractContextManager[Store]:
    """Open the file of an image that is built: a new one under its own name, as it has no magic value until the end."""
    return (complete_file if is_there(target) else new_file)(target, use, hints=hints, durable=durable)


def is_built(how: How, create: NewImageOptions) -> bool:
    """Return whether a new image can be built in one pass: nothing lies below it, and nothing is there before."""
    plain = create.get("backing_file") is None and create.get("data_file") is None
    return plain and not how.existing and create.get("preallocation", "off") == "off"


def _to_raw(copy: Copying, target: Any, how: How, create: NewImageOptions) -> None:
    wipe = how.existing and not how.target_is_zero
    scope = Scope(with_zeros=wipe or not how.sparse_size, top_only=how.over_backing)
    if how.existing:
        with opened(target, Use.WRITABLE_DATA_FILE) as store:
            if store.size() < copy.size:
                raise UsageError("output file is smaller than input file")
            if not how.durable:
                store.expect_no_flush()
            copy.run(RawTarget(store, unit=how.sparse_size, wipe=wipe, durable=how.durable), scope)
        return
    preallocation = create.get("preallocation", "off")
    require_raw_preallocation(preallocation)
    hints = FileHints(create.get("nocow", False), create.get("extent_size_hint"))
    for problem in problems_of_extent_size(hints.extent_size):
        raise UsageError(problem)
    with complete_file(target, Use.WRITABLE_DATA_FILE, hints=hints, durable=how.durable) as store:
        store.require_capacity(copy.size)
        if preallocation != "off":
            store.allocate(0, copy.size)
        copy.run(RawTarget(store, unit=how.sparse_size, durable=how.durable), scope)


def _to_luks(copy: Copying, target: Any, how: How, create: NewImageOptions, key: Key | KeyRing) -> None:
    """Write a raw LUKS volume: all of it, for zeros of the file are no zeros of the disk."""
    from qcow2c.crypto.volume import LuksVolume

    if how.existing:
        _into_volume(copy, target, how, key)
        return
    encryption = create.get("encryption")
    assert encryption is not None, "it was judged"
    made = encryption.make()
    with complete_file(target, Use.WRITABLE_DATA_FILE, durable=how.durable) as store:
        write_volume(store, made, copy.size)
        volume = LuksVolume(store, made.length, made.cipher.from_payload(made.length))
        copy.run(RawTarget(volume, unit=0, wipe=True, durable=how.durable), Scope(with_zeros=True))


def _into_volume(copy: Copying, target: Any, how: How, key: Key | KeyRing) -> None:
    """Write into a raw LUKS volume that is there, with the key slots that it has."""
    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.volume import open_volume

    with opened(target, Use.WRITABLE_DATA_FILE) as store:
        secret = KeyRing(key).secret(store.name, store.path)
        if secret is None:
            message = f"Could not open {store.name!r}: Parameter 'key-secret' is required for cipher"
            raise MissingKey(message, spec="LUKS On-Disk Format 1.2")
        volume = open_volume(store, secret)
        if volume.size() < copy.size:
            raise UsageError("output file is smaller than input file")
        if not how.durable:
            store.expect_no_flush()
        wipe = not how.target_is_zero
        scope = Scope(with_zeros=wipe, top_only=how.over_backing)
        copy.run(RawTarget(volume, unit=0, wipe=wipe, durable=how.durable), scope)


def _options(size: int, create: NewImageOptions) -> CreateOptions:
    """Return the options of a new image, judged before anything is touched. Raises UsageError."""
    options = CreateOptions(size, **create)
    options.validate()
    l1_entries_of(options.geometry, options.disk_size)
    return options


def _compressor(how: How, create: NewImageOptions) -> codecs.Compressor | None:
    """Return what compresses clusters of a new image, None where nothing does. Raises UsageError."""
    if not how.compressed:
        return None
    return codecs.compressor(COMPRESSION_TYPES[create.get("compression_type", "zlib")], how.compression_level)


def _opened(key: Key | KeyRing, made: MadeEncryption) -> KeyRing:
    """Return the keys of a new image and of what lies below it."""
    from qcow2c.crypto.key_ring import KeyRing

    return KeyRing(key, opened=made.cipher)


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def _to_new_image(
    copy: Copying,
    store: Store,
    how: How,
    options: CreateOptions,
    compress: codecs.Compressor | None,
    bitmaps: Sequence[Bitmap] | None = None,
) -> None:
    aligned = copy.size >= _ALIGNED_FROM and not how.compressed
    builder = ImageBuilder(store, options, aligned=aligned, durable=how.durable)

    def add_bitmaps() -> None:
        if bitmaps is not None:
            builder.set_bitmaps(copy_bitmaps(bitmaps, copy.size, options.cluster_size, builder.place))

    find_zeros = bool(how.sparse_size) or how.compressed
    target = NewImageTarget(builder, find_zeros=find_zeros, compress=compress, before_end=add_bitmaps)
    # Without zero clusters, what is not allocated reads as zeros just as well.
    with_zeros = not how.sparse_size and (options.geometry.has_zero_bit or options.extended_l2)
    copy.run(target, Scope(with_zeros=with_zeros))


def _to_pipe(
    copy: Copying, pipe: Pipe, output_format: str, how: How, create: NewImageOptions, bitmaps: Sequence[Bitmap] | None
) -> None:
    if output_format == "raw":
        copy.run(RawPipe(pipe.write))
    elif is_built(how, create) and not how.compressed and not bitmaps:
        options = _options(copy.size, create)
        survey = DataSurvey(options.cluster_size, find_zeros=bool(how.sparse_size))
        copy.run(survey)
        copy.run(ImagePipe(pipe.write, options, survey.edges))
    elif is_built(how, create):
        # It is not known where bitmaps and compressed clusters lie before all is there.
        from tempfile import TemporaryFile

        with TemporaryFile() as kept, opened(f"/proc/self/fd/{kept.fileno()}", writable=True) as store:
            kept_how = replace(how, durable=False)
            store.expect_no_flush()
            options, compress = _options(copy.size, create), _compressor(how, create)
            _to_new_image(copy, store, kept_how, options, compress, bitmaps)
            for start in range(0, store.size(), SLAB_BYTES):
                pipe.write(memoryview(store.pread(SLAB_BYTES, start)))
    else:
        raise UsageError("standard output takes a new image without backing file, data file or preallocation")


def _into_image(
    copy: Copying,
    target: Any,
    how: How,
    gate: str | Gate,
    key: Key | KeyRing,
    options: CreateOptions | None = None,
    bitmaps: Sequence[Bitmap] | None = None,
) -> None:
    """Write through the engine: into an image that is there, or with `options` a new one that cannot be built."""
    over_backing = how.over_backing or (options is not None and options.backing_file is not None)
    data_file = options.data_file if options is not None else None
    with open_image(target, "r+", key=key, gate=_trusting(gate, options), data_file=data_file) as image:
        copy.require_other(image.layer.data_store.path)  # Which an image that is there names itself.
        if image.size() < copy.size:
            raise UsageError("output file is smaller than input file")
        if how.compressed and image.geometry.external_data:
            raise UsageError("Compression not supported for this file format")
        if bitmaps is not None and image.header.version < Version.V3:
            raise UsageError("Format driver 'qcow2' does not support bitmaps")
        if not how.durable:
            image.layer.store.expect_no_flush()
            image.layer.data_store.expect_no_flush()
        wipe = over_backing or (how.existing and not how.target_is_zero)
        target = ImageTarget(
            image,
            unit=how.sparse_size,
            wipe=wipe,
            compressed=how.compressed,
            level=how.compression_level,
            durable=how.durable,
        )
        with_zeros, below = wipe or not how.sparse_size, over_backing and how.compressed
        copy.run(target, Scope(with_zeros=with_zeros, top_only=over_backing, below=below))
        if bitmaps:
            with image.engine.changing_bitmaps() as edit:
                problem = _add_bitmaps(edit, bitmaps, copy.size)
            if problem is not None:
                raise problem


def _add_bitmaps(edit: BitmapEdit, bitmaps: Sequence[Bitmap], disk_size: int) -> UsageError | None:
    """Add bitmaps to an image in their order; return why one cannot be. As in QEMU, those behind it are there then."""
    before = len(edit.records)
    problem = None
    for bitmap in reversed(bitmaps):
        try:
            edit.add(bitmap.name, bitmap.granularity, enabled=bitmap.enabled)
        except UsageError as exc:
            problem = UsageError(f"Failed to create bitmap {bitmap.name}: {exc}")
            break
        try:
            edit.merge(bitmap.name, bitmap, disk_size)
        except UsageError as exc:
            edit.remove(bitmap.name)
            problem = UsageError(f"Failed to populate bitmap {bitmap.name}: {exc}")
            break
    edit.records[before:] = reversed(edit.records[before:])
    return problem


def _trusting(gate: str | Gate, options: CreateOptions | None) -> GateFunction:
    """Return a gate that allows, too, the backing file that the caller has just named for a new image."""
    usual = gate_for(gate)
    named = options.backing_file if options is not None else None
    return lambda request: any_file(request) if request.name == named else usual(request)
