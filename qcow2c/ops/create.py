"""Create an image: what is asked for is completed from the backing file, and checked, before anything is touched."""

from __future__ import annotations

import os

from qcow2c.builder.empty_image import write_image
from qcow2c.builder.options import CreateOptions
from qcow2c.constants import SECTOR_SIZE
from qcow2c.disk.apart import require_apart
from qcow2c.disk.opening import open_image
from qcow2c.errors import NotQcow2, UsageError
from qcow2c.format.detection import detect_format
from qcow2c.light import TYPE_CHECKING
from qcow2c.storage.file_names import plain_path
from qcow2c.storage.gate import GateRequest, any_file
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import opened

if TYPE_CHECKING:
    from typing import Any

    from qcow2c.crypto.new_encryption import Encryption
    from qcow2c.crypto.secrets import OneKey

__all__ = ["backing_size", "create", "join_backing"]


def create(
    path: str | os.PathLike[str] | Any,
    size: int | None = None,
    *,
    compat: str = CreateOptions.compat,
    cluster_size: int = CreateOptions.cluster_size,
    refcount_bits: int = CreateOptions.refcount_bits,
    lazy_refcounts: bool = CreateOptions.lazy_refcounts,
    extended_l2: bool = CreateOptions.extended_l2,
    compression_type: str = CreateOptions.compression_type,
    backing_file: str | os.PathLike[str] | None = None,
    backing_fmt: str | None = None,
    data_file: str | os.PathLike[str] | None = None,
    data_file_raw: bool = CreateOptions.data_file_raw,
    preallocation: str = CreateOptions.preallocation,
    nocow: bool = CreateOptions.nocow,
    extent_size_hint: int | None = CreateOptions.extent_size_hint,
    encryption: str | Encryption | None = CreateOptions.encryption,
    key: OneKey | None = None,
    cipher: str | None = None,
    iter_time_ms: int | None = None,
    check_backing: bool = True,
    guest_data: Any = None,
) -> None:
    """Create a qcow2 image of `size` bytes at `path`, or in a writable binary file object or a bytearray.

    The options are those that qemu-img create takes with -o. An existing file is replaced. Without a size it is the
    backing file's; with `check_backing=False` the backing file is not looked at. An external data file is created, too,
    unless `guest_data`, a binary file object or a bytearray, is to be it. `nocow` and `extent_size_hint` ask the file
    system for something, which is all the same where it cannot.

    `encryption` is "luks", with a passphrase as `key`, the name of a `cipher` as in cryptsetup ("aes-256-xts-plain64"
    without), and `iter_time_ms`, which opening it takes; or "aes", for very old programs; or an `Encryption`.

    Durable order: everything but the magic value, the magic value, the file's name. A crash leaves no image.
    Raises UsageError before any file is touched, StoreError, ImageLocked, and what opening the backing file raises.
    """
    path = plain_path(path)
    backing = None if backing_file is None else os.fsdecode(backing_file)
    require_apart(path, backing_file=backing, backing_format=backing_fmt, data_file=data_file, with_chain=check_backing)
    if backing and check_backing:
        name = os.fsdecode(path) if isinstance(path, str | os.PathLike) else None
        found = backing_size(name, backing, backing_fmt)
        size = found if size is None else size
    if size is None:
        raise UsageError("Image creation needs a size parameter")
    options = CreateOptions(
        size,
        compat=compat,
        cluster_size=cluster_size,
        refcount_bits=refcount_bits,
        lazy_refcounts=lazy_refcounts,
        extended_l2=extended_l2,
        compression_type=compression_type,
        backing_file=backing,
        backing_fmt=backing_fmt,
        data_file=None if data_file is None else os.fsdecode(data_file),
        data_file_raw=data_file_raw,
        preallocation=preallocation,
        nocow=nocow,
        extent_size_hint=extent_size_hint,
        encryption=_encryption(encryption, key, cipher, iter_time_ms),
    )
    write_image(path, options, guest_data)


def _encryption(
    encryption: str | Encryption | None, key: OneKey | None, cipher: str | None, iter_time_ms: int | None
) -> Encryption | None:
    """Return what is asked for. Raises UsageError, UnsupportedFeature."""
    given = {"key": key, "cipher": cipher, "iter_time_ms": iter_time_ms}
    named: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if not isinstance(encryption, str):
        if named:
            raise UsageError(f"{', '.join(named)} without encryption=: is the image to be encrypted?")
        return encryption
    from qcow2c.crypto.new_encryption import Encryption

    if key is None:
        raise UsageError("Parameter 'encrypt.key-secret' is required for cipher: give a key")
    if encryption == "aes" and len(named) > 1:
        raise UsageError("legacy AES has no choice of a cipher, and nothing that could take time")
    return Encryption(encryption, **named)


def backing_size(image: str | None, backing_file: str, backing_format: str | None) -> int:
    """Return the size of a backing file, opened as it will be once the image names it. Raises Qcow2Error."""
    full = join_backing(image, backing_file)
    with opened(full) as store:
        detected = detect_format(store)
        if backing_format is None:
            raise UsageError(f"Backing file specified without backing format (detected format of {detected})")
        if backing_format == "raw":
            store.lock(Use.SHARED)
            return -(-store.size() // SECTOR_SIZE) * SECTOR_SIZE
        if backing_format != "qcow2":
            raise UsageError(f"Unknown driver {backing_format!r}: the backing file can be qcow2 or raw")
        if detected != "qcow2":
            raise NotQcow2(f"Image is not in qcow2 format: backing file {full!r}")
        # A running machine may have it: what is being made is the snapshot that it will go on with.
        with open_image(full, gate="any", share=True) as image_below:
            return image_below.size()


def join_backing(image: str | None, backing_file: str) -> str:
    """Return where a backing file is, seen from the image that will name it. Raises GateRefused."""
    from pathlib import Path

    return str(any_file(GateRequest("backing file", backing_file, Path(image if image is not None else "image"))))
