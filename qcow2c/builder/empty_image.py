"""New images: the order in which a file comes into being. The magic value is written last.

A half-made image never looks complete.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from qcow2c.builder.final_header import write_final_header
from qcow2c.builder.options import CreateOptions, Places, header_of, problems_of_extent_size
from qcow2c.builder.plan import ImageLayout, plan
from qcow2c.constants import SECTOR_SIZE
from qcow2c.errors import UsageError
from qcow2c.light import TYPE_CHECKING
from qcow2c.storage.locks import Use
from qcow2c.storage.new_file import FileHints, complete_file, new_file
from qcow2c.storage.preallocation import _fill
from qcow2c.storage.sources import Store

if TYPE_CHECKING:
    from typing import Any

    from qcow2c.crypto.new_encryption import Encryption, MadeEncryption


def write_image(
    path: str | os.PathLike[str] | Any,
    options: CreateOptions,
    guest_data: Any = None,
    made: MadeEncryption | None = None,
) -> None:
    """Create an image whose options are complete; see `create`. `made` is its encryption, which else is made here."""
    options.validate()
    encryption = options.encryption
    planned = plan(options.geometry, options.disk_size, allocated=options.allocates, encryption=encryption)
    if encryption is not None and made is None:
        made = encryption.make()
    header = header_of(options, _places(planned))
    with ExitStack() as stack:
        store = stack.enter_context(new_file(path, Use.WRITABLE_IMAGE, hints=options.hints))
        data = store
        if options.data_file is not None:
            target = options.data_file if guest_data is None else guest_data
            data = stack.enter_context(new_file(target, Use.WRITABLE_DATA_FILE, hints=options.hints))
            data.truncate(options.disk_size)
        if made is not None and made.header:
            store.pwrite(made.header, planned.encryption_header * options.cluster_size)
        _write(store, data, header, planned, options)


def _write(store: Store, data: Store, header: bytes, planned: ImageLayout, options: CreateOptions) -> None:
    """Write all there is of a new image.

    Durable order: guest data and metadata; then the header, as `write_final_header` does it.
    """
    size = options.cluster_size
    for offset, part in planned.parts():
        store.pwrite(part, offset)
    store.truncate(planned.end * size)
    if planned.data_clusters:
        start = 0 if data is not store else planned.first_data * size
        length = options.disk_size if data is not store else planned.data_clusters * size
        if options.preallocation in ("falloc", "full"):
            store.allocate(0, planned.end * size)
            data.allocate(start, length)
        if options.preallocation == "full":
            _fill(data, start, length)
    if data is not store:
        data.flush()
    write_final_header(store, header)


def _places(planned: ImageLayout) -> Places:
    size = planned.geometry.cluster_size
    return Places(
        planned.l1_table * size,
        planned.l1_entries,
        planned.refcount_table * size,
        planned.refcount_table_clusters,
        planned.encryption_header * size,
    )


def require_raw_preallocation(preallocation: str) -> None:
    """Raise UsageError for a mode that a raw file cannot have: it has no metadata."""
    if preallocation not in ("off", "falloc", "full"):
        raise UsageError(f"Parameter 'preallocation' does not accept value {preallocation!r}")


def create_raw(
    path: str | os.PathLike[str],
    size: int,
    *,
    preallocation: str = "off",
    nocow: bool = False,
    extent_size_hint: int | None = None,
) -> None:
    """Create a raw image. Raises UsageError, StoreError, ImageLocked."""
    require_raw_preallocation(preallocation)
    for problem in problems_of_extent_size(extent_size_hint):
        raise UsageError(problem)
    whole = -(-size // SECTOR_SIZE) * SECTOR_SIZE
    with new_file(path, Use.WRITABLE_DATA_FILE, hints=FileHints(nocow, extent_size_hint)) as store:
        store.truncate(whole)
        if preallocation == "falloc":
            store.allocate(0, whole)
        elif preallocation == "full":
            _fill(store, 0, whole)
        store.flush()


def create_volume(path: str | os.PathLike[str], size: int, encryption: Encryption) -> None:
    """Create a raw LUKS volume of whole sectors. What nobody has written in it reads as noise, as QEMU has it.

    Durable order: the file has its name only when header and key slot are there. Raises UsageError, StoreError,
    ImageLocked.
    """
    made = encryption.make(os.fsdecode(path))
    with complete_file(path, Use.WRITABLE_DATA_FILE) as store:
        write_volume(store, made, -(-size // SECTOR_SIZE) * SECTOR_SIZE)


def write_volume(store: Store, made: MadeEncryption, size: int) -> None:
    """Write header and key slot of a raw LUKS volume into an empty file, and give it its size. Raises StoreError."""
    store.pwrite(made.header, 0)
    store.truncate(made.length + size)
