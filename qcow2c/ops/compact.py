"""`compact`: an image as small as it can be, without losing anything that it holds.

Kept: the active disk, every internal snapshot with its VM state, record and disk size, bitmaps with their flags, what
the header says, and that states share their clusters. Gone: free and leaked clusters, data that is nothing but zeros,
space that was only reserved, and gaps between compressed clusters. The copy itself is made in `compaction.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qcow2c.builder.compaction import Compaction
from qcow2c.constants import CryptMethod
from qcow2c.errors import CorruptMetadata, MissingKey, UnsupportedFeature, UsageError
from qcow2c.format import codecs
from qcow2c.format.header import Header
from qcow2c.format.loaded_image import load_image
from qcow2c.format.records import SnapshotTable, read_bitmaps
from qcow2c.references.admission import Admission, admit
from qcow2c.references.check_result import CheckResult
from qcow2c.references.full_check import Failed, FullCheck
from qcow2c.references.stored_refcounts import StoredRefcounts, used_end
from qcow2c.references.walk import Walk
from qcow2c.storage.file_names import plain_path
from qcow2c.storage.local_file import LocalFile
from qcow2c.storage.locks import Use
from qcow2c.storage.new_file import complete_file, replacement
from qcow2c.storage.sources import Source, Store, opened
from qcow2c.storage.store import Buffer, Progress
from qcow2c.storage.trailing_data import trailing_data

if TYPE_CHECKING:
    from qcow2c.crypto.guest_cipher import GuestCipher
    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.secrets import Key


@dataclass(frozen=True, slots=True)
class Compacted:
    """What was done, or would be. Lengths in bytes of the file; clusters as `compaction.Compaction` counts them."""

    length: int
    compacted_length: int
    data_clusters: int
    zero_clusters: int
    compressed_clusters: int
    snapshots: int
    bitmaps: int

    @property
    def saved(self) -> int:
        """Bytes that the file is shorter; below 0 where an image was small already."""
        return self.length - self.compacted_length


def compact(
    source: Source | Store,
    target: Any = None,
    *,
    compress: bool = False,
    compression_level: int | None = None,
    progress: Progress | None = None,
    key: Key | KeyRing = None,
) -> Compacted:
    """Write a compact copy of a qcow2 image to a path, where nothing may be yet, or a writable binary file object.

    Without a target nothing is written, and the result tells what would be. Backing file and data file are neither
    opened nor changed; the copy names them as the image does. `compress` compresses the clusters that are not, by the
    method of the image. The copy has its name, or its magic value, only when it is complete and durable. No other
    program may be writing to the image. `key` opens an image that is encrypted with LUKS, whose data is bound to its
    place in the file: the copy has the same key slots. Legacy AES needs no key, and none is looked at.

    Raises MissingKey for an image encrypted with LUKS without a key, WrongKey, UnsupportedFeature, CorruptMetadata
    where `check` would find an error that the copy would keep, UsageError, LimitExceeded, NotQcow2, StoreError,
    ImageLocked.
    """
    target = plain_path(target)
    if isinstance(target, str | os.PathLike) and os.path.lexists(target):
        raise UsageError(f"{os.fsdecode(target)!r} exists already: a compact copy is a new file")
    with opened(source, Use.IMAGE) as store:
        made, _ = _compaction(store, compression_level, progress, key, compress=compress)
        if target is None:
            return _report(store, made, made.write(_Nowhere()))
        with complete_file(target, Use.WRITABLE_IMAGE) as file:
            return _report(store, made, made.write(file))


def compact_in_place(
    path: str | os.PathLike[str],
    *,
    compress: bool = False,
    compression_level: int | None = None,
    progress: Progress | None = None,
    drop_trailing: bool = False,
    key: Key | KeyRing = None,
) -> Compacted:
    """Put a compact copy of an image in its place; it keeps mode, owner and links to its name.

    Durable order: the whole copy beside the image, then its name. A crash leaves the image as it was, or the compact
    one. There must be room for both. Where anything but zeros lies in the file behind the image's last cluster, which
    would be lost, it is refused, unless `drop_trailing`. A program that has the old file open keeps that: no other may
    use the image. Raises as `compact`, and UsageError where the file has several names.
    """
    with _exclusively(path) as store:
        made, admission = _compaction(store, compression_level, progress, key, compress=compress)
        if not drop_trailing:
            _require_nothing_behind(store, admission)
        with replacement(store, Use.WRITABLE_IMAGE) as file:
            return _report(store, made, made.write(file))


def _require_nothing_behind(store: Store, admission: Admission) -> None:
    """Raise UsageError where the file holds something behind the last cluster that the image uses."""
    header, snapshots, _notices = load_image(store)
    stored = StoredRefcounts(Walk(store, header, snapshots))
    end = used_end(stored.window, header.geometry.clusters(store.size()))
    end = max(end, *(cluster + 1 for cluster, _ in admission.undercounted), 0)
    found = trailing_data(store, end << header.cluster_bits)
    if found is not None:
        message = f"{found.length} bytes at {found.offset:#x} of {store.name!r}, behind the image's last cluster,"
        raise UsageError(
            f"{message} are not zeros, and would be lost: allow it with --drop-trailing (drop_trailing=True)"
        )


@contextmanager
def _exclusively(path: str | os.PathLike[str]) -> Iterator[LocalFile]:
    """Open a file for this use alone, by its path without links; errors call it by the name that was given."""
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"only a file with a name can be replaced, not {type(path).__name__}")
    path = plain_path(path)
    store = LocalFile(os.path.realpath(path), writable=True, name=os.fsdecode(path))
    try:
        store.lock(Use.WRITABLE_IMAGE)
        yield store
    finally:
        store.close()


def _compaction(
    store: Store, level: int | None, progress: Progress | None, key: Key | KeyRing, *, compress: bool
) -> tuple[Compaction, Admission]:
    """Return the copy of an image that is sound and that can be copied, and what is known of its refcounts.

    Raises as `compact`.
    """
    header, snapshots, _notices = load_image(store)
    compressor = None
    if compress or level is not None:
        if not compress:
            raise UsageError("a compression level is of no use without compression")
        if header.encrypted:
            raise UnsupportedFeature("encrypted data does not compress", spec="Data encryption")
        if header.external_data:
            raise UnsupportedFeature("guest data in an external data file cannot be compressed", spec="Header")
        compressor = codecs.compressor(header.compression_type, level)
    cipher = _cipher(store, header, key)
    admission = admit(store, header, snapshots)
    if header.external_data:
        _require_no_corruption(store, header, snapshots)
    return Compaction(store, header, snapshots, compress=compressor, cipher=cipher, progress=progress), admission


def _cipher(store: Store, header: Header, key: Key | KeyRing) -> GuestCipher | None:
    """Return what moves guest data that is encrypted by its place in the file. Raises MissingKey, WrongKey."""
    if header.crypt_method != CryptMethod.LUKS or header.external_data:
        return None  # What is moved need not be understood, and what lies elsewhere is not moved.
    from qcow2c.crypto.key_ring import KeyRing

    found = KeyRing(key).cipher(store, header, 0)
    if found is None:
        message = "the image is encrypted with LUKS, which binds data to its place in the file: moving it needs the key"
        raise MissingKey(f"{message}, and no key was given", spec="Data encryption")
    return found


def _require_no_corruption(store: Store, header: Header, snapshots: SnapshotTable) -> None:
    """Raise CorruptMetadata where check finds an error: entries that name an external data file are kept as they are.

    All others are written anew, so that what an admission lets pass, a wrong copied bit, is right in the copy.
    """
    found = CheckResult(filename=store.name)
    try:
        FullCheck(store, header, found).run(snapshots, read_bitmaps(store, header))
    except Failed as stop:
        raise CorruptMetadata(f"the image cannot be checked: {stop}") from stop
    if found.corruptions:
        raise CorruptMetadata(f"check finds {found.corruptions} errors in the image: run check -r first")


def _report(store: Store, made: Compaction, length: int) -> Compacted:
    return Compacted(
        length=store.size(),
        compacted_length=length,
        data_clusters=made.data_clusters,
        zero_clusters=made.zero_clusters,
        compressed_clusters=made.compressed_clusters,
        snapshots=made.snapshots,
        bitmaps=made.bitmaps,
    )


class _Nowhere(Store):
    """Takes everything, and keeps nothing."""

    name = "<nowhere>"
    writable = True

    def size(self) -> int:
        return 0

    def pread(self, length: int, offset: int) -> bytes:  # noqa: ARG002 - there is nothing, wherever one looks
        return b""

    def pwrite(self, data: Buffer, offset: int) -> None:
        """Free bytes."""

    def flush(self) -> None:
        """Nothing needs to last."""
