"""`info`: what qemu-img info says of an image, in the form and order of its JSON.

It looks at metadata only, and opens no second file unless asked for the backing chain. It never imports numpy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from qcow2c.constants import MAGIC, SECTOR_SIZE, CompressionType, CryptMethod, Limit, Version
from qcow2c.disk.image_info import BitmapInfo, ChildInfo, ImageInfo, SnapshotInfo
from qcow2c.errors import ChainError
from qcow2c.format.detection import LUKS, Format, detect_format, known_format
from qcow2c.format.findings import Severity
from qcow2c.format.header import Header
from qcow2c.format.loaded_image import load_header, load_snapshots, readable_bitmap_records
from qcow2c.light import TYPE_CHECKING, overload
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import Source, Store, opened

if TYPE_CHECKING:
    from typing import Any, Literal

    from qcow2c.format.luks import LuksHeader
    from qcow2c.format.records import SnapshotRecord
    from qcow2c.storage.gate import Gate

__all__ = ["BitmapInfo", "ChildInfo", "ImageInfo", "SnapshotInfo", "info"]

Facts = dict[str, "Any"]

_ID_BYTES, _NAME_BYTES, _FORMAT_BYTES = 127, 255, 15
"""QEMU cuts a snapshot's ID and name, and the name of a format, to these lengths."""

_REFUSED = ("header.crypt_method", "header.no_refcount_table")
"""Rules, by the start of their names, of what info would have to tell of, or what QEMU refuses to open."""

_COMPAT = {Version.V2: "0.10", Version.V3: "1.1"}

# QEMU prints dictionaries in the order of their hash table: one order for each object.
IMAGE_KEYS = (
    "children",
    "backing-filename-format",
    "snapshots",
    "virtual-size",
    "filename",
    "cluster-size",
    "format",
    "actual-size",
    "format-specific",
    "full-backing-filename",
    "encrypted",
    "backing-filename",
    "dirty-flag",
)
QCOW2_KEYS = (
    "compat",
    "compression-type",
    "lazy-refcounts",
    "bitmaps",
    "bitmaps-broken",
    "refcount-bits",
    "data-file",
    "encrypt",
    "data-file-raw",
    "corrupt",
    "extended-l2",
)
ENCRYPT_KEYS = (
    "ivgen-alg",
    "detached-header",
    "hash-alg",
    "cipher-alg",
    "uuid",
    "ivgen-hash-alg",
    "format",
    "cipher-mode",
    "slots",
    "payload-offset",
    "master-key-iters",
)
SLOT_KEYS = ("active", "iters", "key-offset", "stripes")
SNAPSHOT_KEYS = (
    "icount",
    "vm-clock-nsec",
    "name",
    "date-sec",
    "date-nsec",
    "vm-clock-sec",
    "id",
    "vm-state-size",
)
BITMAP_KEYS = ("flags", "name", "granularity")


@overload
def info(
    source: Source | Store,
    *,
    backing_chain: Literal[False] = False,
    gate: str | Gate = "directory",
    image_format: str | None = None,
    share: bool = False,
) -> ImageInfo: ...


@overload
def info(
    source: Source | Store,
    *,
    backing_chain: Literal[True],
    gate: str | Gate = "directory",
    image_format: str | None = None,
    share: bool = False,
) -> list[ImageInfo]: ...


@overload
def info(
    source: Source | Store,
    *,
    backing_chain: bool,
    gate: str | Gate = "directory",
    image_format: str | None = None,
    share: bool = False,
) -> ImageInfo | list[ImageInfo]: ...


def info(
    source: Source | Store,
    *,
    backing_chain: bool = False,
    gate: str | Gate = "directory",
    image_format: str | None = None,
    share: bool = False,
) -> ImageInfo | list[ImageInfo]:
    """Return what qemu-img info says of an image, or with `backing_chain` of each layer, the top image first.

    `ImageInfo.as_dict` is what it prints as JSON; its keys are those of the newest QEMU, with `children`, where the
    image is a local file. `image_format` is "qcow2", "raw", or None: qcow2 by its magic, or raw.
    `share=True` looks at images although another process may be writing to them.
    Raises NotQcow2, UnsupportedFeature, CorruptMetadata, StoreError, ImageLocked; with `backing_chain` GateRefused,
    ChainError.
    """
    use = Use.of_reader(share=share)
    with opened(source) as store:
        top, header = _describe(store, store.name, image_format, use)
        if not backing_chain:
            return ImageInfo(top)
        return [ImageInfo(facts) for facts in (top, *_below(store, top, header, gate, use))]


def _below(store: Store, facts: Facts, header: Header | None, gate: str | Gate, use: Use) -> Iterator[Facts]:
    """Yield the layers below an image, each opened only while it is looked at."""
    from pathlib import Path

    from qcow2c.storage.gate import GateRequest, format_in, gate_for

    seen, path, url = {store.identity()}, store.path, store.url
    while header is not None and "backing-filename" in facts:
        name = os.fsdecode(_c_string(header.backing_file))
        request = GateRequest("backing file", name, Path(path) if path else None, url)
        with opened(gate_for(gate)(request)) as below:
            if below.identity() in seen:
                raise ChainError(f"Backing file {below.name!r} creates an infinite loop")
            if len(seen) > Limit.BACKING_CHAIN_DEPTH:
                message = f"the backing chain has more than {Limit.BACKING_CHAIN_DEPTH} layers, at {below.name!r}"
                raise ChainError(message)
            seen.add(below.identity())
            name, path, url = facts["full-backing-filename"], below.path, below.url
            stated = facts.get("backing-filename-format") or format_in(request.name)
            facts, header = _describe(below, name, stated, use)
        yield facts


def _describe(store: Store, name: str, image_format: str | None, use: Use) -> tuple[Facts, Header | None]:
    """Return the facts of one image, and its header if it is qcow2; `use` is its lock, which a raw one does without."""
    if image_format is None and store.pread(len(MAGIC), 0) == MAGIC:
        image_format = Format.QCOW2  # Of any version, even where that is another format: the header says so.
    if (image_format or detect_format(store)) == LUKS:
        store.lock(use)
        return _volume_facts(store, name), None
    if known_format(store, image_format) is Format.RAW:
        store.lock(Use.SHARED)
        return _raw_facts(store, name), None
    store.lock(use)
    header, _notices = load_header(store, Severity.FATAL, _REFUSED)
    return _qcow2_facts(store, name, header), header


def _raw_facts(store: Store, name: str) -> Facts:
    facts = _file_facts(store, name, "raw")
    if store.path is not None:
        facts["children"] = _children(store, name)
    return _ordered(facts, IMAGE_KEYS)


def _volume_facts(store: Store, name: str) -> Facts:
    """Return the facts of a raw LUKS volume."""
    from qcow2c.crypto.volume import read_volume_header

    luks = read_volume_header(store)
    data = _luks_facts(luks)
    del data["format"]
    facts = _file_facts(store, name, LUKS) | {"encrypted": True, "format-specific": {"type": LUKS, "data": data}}
    facts["virtual-size"] = max(0, facts["virtual-size"] - luks.payload_offset)
    if store.path is not None:
        facts["children"] = _children(store, name)
    return _ordered(facts, IMAGE_KEYS)


def _file_facts(store: Store, name: str, image_format: str) -> Facts:
    size = -(-store.size() // SECTOR_SIZE) * SECTOR_SIZE
    facts: Facts = {"virtual-size": size, "filename": name, "format": image_format, "dirty-flag": False}
    allocated = store.allocated_size()
    if allocated is not None:
        facts["actual-size"] = allocated
    return facts


def _children(store: Store, name: str) -> list[Facts]:
    """Return what newer versions of QEMU say of the file that an image lies in."""
    hint = store.extent_size_hint()
    data = {} if hint is None else {"extent-size-hint": hint}
    driver = "file" if store.capacity() is None else "host_device"
    facts = _file_facts(store, name, driver) | {"format-specific": {"type": "file", "data": data}, "children": []}
    return [{"name": "file", "info": _ordered(facts, IMAGE_KEYS)}]


def _qcow2_facts(store: Store, name: str, header: Header) -> Facts:
    facts: Facts = {
        "filename": name,
        "format": "qcow2",
        "virtual-size": header.size // SECTOR_SIZE * SECTOR_SIZE,
        "cluster-size": header.cluster_size,
        "dirty-flag": header.dirty,
        "format-specific": {"type": "qcow2", "data": _specific(store, header)},
    }
    allocated = store.allocated_size()
    if allocated is not None:
        # The data file is not looked at, no more than qemu-img does.
        facts["actual-size"] = allocated
    if store.path is not None:
        facts["children"] = _children(store, name)
    if header.encrypted:
        facts["encrypted"] = True
    backing = _text(header.backing_file)
    if backing:
        from qcow2c.storage.gate import full_name

        facts["backing-filename"] = backing
        facts["full-backing-filename"] = full_name(name, backing)
        backing_format = _text(header.backing_format, _FORMAT_BYTES)
        if backing_format:
            facts["backing-filename-format"] = backing_format
    snapshots = _snapshots(store, header)
    if snapshots:
        facts["snapshots"] = snapshots
    return _ordered(facts, IMAGE_KEYS)


def _specific(store: Store, header: Header) -> Facts:
    facts: Facts = {
        "compat": _COMPAT[Version(header.version)],
        "compression-type": CompressionType(header.compression_type).name.lower(),
        "refcount-bits": header.geometry.refcount_bits,
    }
    if header.version >= Version.V3:
        facts["lazy-refcounts"] = header.lazy_refcounts
        facts["corrupt"] = header.corrupt
        facts["extended-l2"] = header.extended_l2
        facts |= _bitmaps(store, header)
        if header.data_file is not None:
            facts["data-file"] = _text(header.data_file)
        if header.external_data:
            facts["data-file-raw"] = header.data_file_raw
    encrypt = _encryption(store, header)
    if encrypt is not None:
        facts["encrypt"] = encrypt
    return _ordered(facts, QCOW2_KEYS)


def _encryption(store: Store, header: Header) -> Facts | None:
    if header.crypt_method == CryptMethod.AES:
        return {"format": "aes"}
    if header.crypt_method != CryptMethod.LUKS or header.encryption_header is None:
        return None
    from qcow2c.format.luks import read_luks_header

    return _luks_facts(read_luks_header(store, header.encryption_header))


def _luks_facts(luks: LuksHeader) -> Facts:
    slots = []
    for slot in luks.slots:
        facts = {"active": slot.active, "key-offset": slot.key_offset}
        if slot.active:
            facts |= {"iters": slot.iterations, "stripes": slot.stripes}
        slots.append(_ordered(facts, SLOT_KEYS))
    found: Facts = {
        "format": "luks",
        "cipher-alg": luks.cipher,
        "cipher-mode": luks.cipher_mode,
        "ivgen-alg": luks.iv_generator,
        "hash-alg": luks.hash,
        "payload-offset": luks.payload_offset,
        "master-key-iters": luks.iterations,
        "uuid": luks.uuid,
        "slots": slots,
        "detached-header": False,  # As newer versions say; in qcow2 the header is always in the image.
    }
    if luks.iv_hash is not None:
        found["ivgen-hash-alg"] = luks.iv_hash
    return _ordered(found, ENCRYPT_KEYS)


def _snapshots(store: Store, header: Header) -> list[Facts]:
    if not header.nb_snapshots:
        return []
    return [_snapshot(record) for record in load_snapshots(store, header).records]


def _snapshot(record: SnapshotRecord) -> Facts:
    seconds, nanoseconds = divmod(record.vm_clock_nsec, 10**9)
    facts = {
        "id": _text(record.id_str, _ID_BYTES),
        "name": _text(record.name, _NAME_BYTES),
        "vm-state-size": record.vm_state_size,
        "date-sec": record.date_sec,
        "date-nsec": record.date_nsec,
        "vm-clock-sec": seconds,
        "vm-clock-nsec": nanoseconds,
    }
    if record.icount is not None:
        facts["icount"] = record.icount
    return _ordered(facts, SNAPSHOT_KEYS)


def _bitmaps(store: Store, header: Header) -> Facts:
    """Return the bitmaps that can be read, and what is broken of them."""
    readable, found = readable_bitmap_records(store, header), []
    for record in readable.records:
        flags = [name for name, is_set in (("in-use", record.in_use), ("auto", record.auto)) if is_set]
        facts = {"flags": flags, "name": _text(record.name), "granularity": 1 << record.granularity_bits}
        found.append(_ordered(facts, BITMAP_KEYS))
    facts = {"bitmaps": found} if found else {}
    return facts if readable.broken is None else facts | {"bitmaps-broken": str(readable.broken.exception())}


def _ordered(facts: Facts, keys: tuple[str, ...]) -> Facts:
    return {key: facts[key] for key in keys if key in facts}


def _c_string(data: bytes | None, limit: int | None = None) -> bytes:
    """Return the bytes before the first NUL, as a C program sees them, at most `limit`."""
    return (data or b"").partition(b"\0")[0][:limit]


def _text(data: bytes | None, limit: int | None = None) -> str:
    return _c_string(data, limit).decode("utf-8", "surrogateescape")
