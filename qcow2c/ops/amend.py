"""Amend: change the options of an image that exists, as far as the format and QEMU allow.

What is asked for is judged as a whole before anything is written. Then each step is one change of the header, which
leaves a sound image with the same disk and the same snapshots: a crash leaves some of the steps done, each of them
wholly or not at all. Backing files and data files are not opened. Spec: "Header", "Header extensions".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, Unpack

from qcow2c.atomic.successor import Successor, changing
from qcow2c.atomic.version import (
    complete_records,
    expand_zero_clusters,
    has_compressed_clusters,
    has_zero_clusters,
    widest_refcount,
)
from qcow2c.builder.options import NAMES_ABOVE, VERSIONS
from qcow2c.constants import SECTOR_SIZE, V2_REFCOUNT_ORDER, ExtensionType, Limit, Version
from qcow2c.disk.opening import BackingChoice, Opening, open_image
from qcow2c.disk.size import resize
from qcow2c.errors import UsageError
from qcow2c.format.derived import AUTOCLEAR_FEATURES, COMPATIBLE_FEATURES, INCOMPATIBLE_FEATURES, SNAPSHOT_HEADER
from qcow2c.format.detection import detect_format, known_format
from qcow2c.format.header import Header
from qcow2c.format.header_writer import HeaderChange, extensions_of, feature_name_table, with_extension
from qcow2c.layers.guest_data import require_key
from qcow2c.storage.gate import Gate
from qcow2c.storage.integers import settle_integers
from qcow2c.storage.locks import Use
from qcow2c.storage.medium import Medium
from qcow2c.storage.sources import Source, Store, opened
from qcow2c.writer.header_update import change_header

if TYPE_CHECKING:
    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.secrets import Key

_NEWER = "compatibility level 1.1 {} above (use compat=1.1 or greater)"
_COMPRESSION = INCOMPATIBLE_FEATURES["compression_type"].mask
_DIRTY = INCOMPATIBLE_FEATURES["dirty"].mask
_LAZY = COMPATIBLE_FEATURES["lazy_refcounts"].mask
_DATA_FILE_RAW = AUTOCLEAR_FEATURES["data_file_raw"].mask
_UNKNOWN_AUTOCLEAR = AUTOCLEAR_FEATURES.reserved
_V2_REFCOUNT_BITS = 1 << V2_REFCOUNT_ORDER
_V2_MOST_VM_STATE = SNAPSHOT_HEADER["vm_state_size"].all_ones


class AmendOptions(TypedDict, total=False):
    """The options of `Amendment`, as keyword arguments."""

    compat: str | None
    backing_file: str | None
    backing_fmt: str | None
    data_file: str | None
    data_file_raw: bool | None
    lazy_refcounts: bool | None
    refcount_bits: int | None
    size: int | None


@dataclass(frozen=True)
class Amendment:
    """What is to be, under the names that qemu-img amend takes with -o; None stays as it is."""

    compat: str | None = None
    backing_file: str | None = None
    """Only what it is already: `rebase` changes it."""
    backing_fmt: str | None = None
    data_file: str | None = None
    """"" for no name."""
    data_file_raw: bool | None = None
    lazy_refcounts: bool | None = None
    refcount_bits: int | None = None
    size: int | None = None
    """Of the disk, in bytes; a smaller one drops what lies behind it. 0 stays as it is, too."""

    def __post_init__(self) -> None:
        settle_integers(self)


def amend(
    source: Source | Store,
    *,
    image_format: str | None = None,
    key: Key | KeyRing = None,
    gate: str | Gate = "directory",
    backing: BackingChoice = None,
    data: Source | Store | None = None,
    **options: Unpack[AmendOptions],
) -> None:
    """Change options of an image; `options` are those of `Amendment`.

    Only for another size the files below are opened: `gate` decides about them, `backing` and `data` replace those that
    the image names, and `key` is needed where it is encrypted.

    Durable order: see `header_update.change_header` and `Successor.switch`; a downgrade first makes an image without
    zero clusters, which shows the same disk. Raises UsageError, in QEMU's words, before anything is written; and as
    `open_image` with "r+".
    """
    unknown = options.keys() - Amendment.__dataclass_fields__.keys()
    if unknown:
        raise UsageError(f"Invalid parameter {sorted(unknown)[0]!r}")
    with open_amendable(source, image_format=image_format) as store:
        amend_store(store, Amendment(**options), key=key, gate=gate, backing=backing, data_file=data)


@contextmanager
def open_amendable(source: Source | Store, *, image_format: str | None = None) -> Iterator[Store]:
    """Open a file that is to be amended, and exclude other programs. Raises StoreError, ImageLocked, UsageError."""
    with opened(source, Use.WRITABLE_IMAGE) as store:
        require_amendable(known_format(store, image_format))
        yield store


def format_of_amendable(source: Source | Store, image_format: str | None) -> str:
    """Return the format of a file that is to be amended, by its first bytes unless it is given. Raises StoreError."""
    if image_format is not None:
        return image_format
    with opened(source) as store:
        return detect_format(store)


def require_amendable(image_format: str) -> None:
    """Raise UsageError for formats whose images have no options that could change."""
    if image_format == "raw":
        raise UsageError("Format driver 'raw' does not support option amendment")
    if image_format != "qcow2":
        raise UsageError(f"Unknown file format '{image_format}'")


def amend_store(store: Store, wish: Amendment, **opening: Unpack[Opening]) -> None:
    """Change options of an image that no other program uses; see `amend`. `opening` are arguments of `open_image`."""
    if wish.size:
        with open_image(store, **opening) as image_now:  # What is below must be there before anything is changed.
            require_key(image_now.layer)
    with changing(store) as image:
        for problem in _problems(image, wish):
            raise UsageError(problem)
        if image.header.dirty:  # Its refcounts are made right, so that all else can rely on them.
            image.switch()
    _amend(store, wish, opening)


# --- what cannot be -------------------------------------------------------------------------------------------------


def _problems(image: Successor, wish: Amendment) -> Iterator[str]:
    """Yield what is wrong, in the order and the words of QEMU."""
    header = image.header
    if wish.compat is not None and wish.compat not in VERSIONS:
        yield f"Unknown compatibility level {wish.compat}"
    if wish.data_file is not None and not header.external_data:
        yield "data-file can only be set for images that use an external data file"
    if wish.data_file and image.medium.store.path and _leads_to(wish.data_file, image.medium.store.path):
        yield "The image cannot be its own external data file"
    if wish.data_file_raw and not header.data_file_raw:
        yield "data-file-raw cannot be set on existing images"
    version = _version(header, wish)
    width = 1 << header.refcount_order if wish.refcount_bits is None else wish.refcount_bits
    yield from _problems_of_refcount_width(image, width, version)
    named = _stored(wish.backing_file), _stored(wish.backing_fmt)
    if named not in ((None, None), (header.backing_file, header.backing_format)):
        yield "Cannot amend the backing file\nYou can use 'qcow2c rebase' instead."
    if wish.lazy_refcounts and not header.lazy_refcounts and version < Version.V3:
        yield f"Lazy refcounts only supported with {_NEWER.format('and')}"
    size = wish.size or header.size // SECTOR_SIZE * SECTOR_SIZE
    if size % SECTOR_SIZE:
        yield f"The new size must be a multiple of {SECTOR_SIZE}"
    if wish.size not in (None, 0, header.size) and header.version == version == Version.V2 and image.snapshots.records:
        yield "Can't resize a v2 image which has snapshots"
    if version < header.version:
        yield from _problems_of_version_2(image, width, size)


def _leads_to(name: str, path: str) -> bool:
    """Return whether a name, as seen from the directory of an image, means the image."""
    with suppress(OSError, ValueError):
        return os.path.samefile(os.path.join(os.path.dirname(path), name), path)
    return False


def _problems_of_refcount_width(image: Successor, width: int, version: int) -> Iterator[str]:
    """Yield what is wrong with a refcount width in bits, in an image that shall be of this version."""
    before = 1 << image.header.refcount_order
    if width <= 0 or width & (width - 1) or width.bit_length() - 1 not in Limit.REFCOUNT_ORDER:
        yield "Refcount width must be a power of two and may not exceed 64 bits"
    if width not in (before, _V2_REFCOUNT_BITS) and version < Version.V3:
        yield f"Refcount widths other than 16 bits require {_NEWER.format('or')}"
    if width < before and (widest := widest_refcount(image, (1 << width) - 1)) is not None:
        message = f"Cannot decrease refcount entry width to {width} bits: Cluster at offset"
        yield f"{message} {widest[0]:#x} has a refcount of {widest[1]}"


def _problems_of_version_2(image: Successor, refcount_bits: int, disk_size: int) -> Iterator[str]:
    header = image.header
    if refcount_bits != _V2_REFCOUNT_BITS:
        yield "compat=0.10 requires refcount_bits=16"
    if header.external_data:
        yield "Cannot downgrade an image with a data file"
    for record in image.snapshots.records:
        if record.vm_state_size > _V2_MOST_VM_STATE or record.disk_size != disk_size:
            yield "Internal snapshots prevent downgrade of image"
    incompatible = header.incompatible_features & ~(_COMPRESSION | _DIRTY)
    if incompatible:
        yield f"Cannot downgrade an image with incompatible features {incompatible:#x} set"
    if header.incompatible_features & _COMPRESSION and has_compressed_clusters(image):
        yield "Cannot downgrade an image with zstd compression type and existing compressed clusters"
    if header.encrypted and has_zero_clusters(image):
        yield "Cannot downgrade an encrypted image with zero clusters: zeros would have to be encrypted"
    if header.bitmaps is not None and header.bitmaps_consistent:
        yield "Cannot downgrade an image with bitmaps, which would be lost: remove them first"


def _version(header: Header, wish: Amendment) -> int:
    return header.version if wish.compat is None else VERSIONS[wish.compat]


def _stored(words: str | None) -> bytes | None:
    return None if words is None else os.fsencode(words)


# --- the steps ------------------------------------------------------------------------------------------------------


def _amend(store: Store, wish: Amendment, opening: Opening) -> None:
    """Do what was judged: a newer version first, because other options need it, and an older one last."""
    header = Header.load(store)
    version = _version(header, wish)
    if version > header.version:
        # A record of version 2 may lack what version 3 demands; both versions allow it.
        with changing(store, trust=True) as image:
            if complete_records(image):
                image.switch()
        names = feature_name_table() if header.cluster_size > NAMES_ABOVE else None
        extensions = with_extension(header, ExtensionType.FEATURE_NAME_TABLE, names)
        _change_header(store, HeaderChange({"version": version}, extensions))
    if wish.refcount_bits not in (None, 1 << header.refcount_order):
        assert wish.refcount_bits is not None, "it was just looked at"
        with changing(store, trust=True, refcount_order=wish.refcount_bits.bit_length() - 1) as image:
            image.switch()
    _change_features(store, wish)
    if wish.size and wish.size != header.size:
        with open_image(store, "r+", **opening) as opened_image:
            resize(opened_image, wish.size)
    if version < header.version:
        with changing(store, trust=True) as image:
            if expand_zero_clusters(image):
                image.switch(discard=True)
        header = Header.load(store)
        kept = [found for found in extensions_of(header) if found[0] != ExtensionType.FEATURE_NAME_TABLE]
        _change_header(store, HeaderChange({"version": version}, kept))


def _change_features(store: Store, wish: Amendment) -> None:
    """Change what the header alone says."""
    header = Header.load(store)
    if header.version < Version.V3:
        return
    compatible, autoclear = header.compatible_features, header.autoclear_features & ~_UNKNOWN_AUTOCLEAR
    if wish.lazy_refcounts is not None:
        compatible = compatible & ~_LAZY | (_LAZY if wish.lazy_refcounts else 0)
    if wish.data_file_raw is False:
        autoclear &= ~_DATA_FILE_RAW
    extensions = None
    if wish.data_file is not None and _stored(wish.data_file) != (header.data_file or b""):
        extensions = with_extension(header, ExtensionType.DATA_FILE, _stored(wish.data_file) or None)
    if (compatible, autoclear) != (header.compatible_features, header.autoclear_features) or extensions is not None:
        fields = {"compatible_features": compatible, "autoclear_features": autoclear}
        _change_header(store, HeaderChange(fields, extensions))


def _change_header(store: Store, change: HeaderChange) -> None:
    header = Header.load(store)
    change_header(Medium(store, header.cluster_size), header, change)
