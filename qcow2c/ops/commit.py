"""`commit`: copy what the upper layers of a chain decide into a layer below, and then empty the top one.

Which files there are is looked at first, with nothing but the top one locked. Then each is opened anew, from the bottom
up and with its locks: the base for writing, those above for reading, and without what lies below them, because what
they do not decide is in the base already.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import compress, pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from qcow2c.constants import SECTOR_SIZE
from qcow2c.copy.base_targets import BaseTarget, open_base
from qcow2c.copy.buffers import Buffers
from qcow2c.copy.plan import PlannedDisk, Scope, Slab
from qcow2c.copy.transfer import DiskCopy
from qcow2c.disk.disk import Disk
from qcow2c.disk.map import PRESENT, Columns, DiskMap
from qcow2c.disk.opening import open_image
from qcow2c.errors import ChainError, MissingKey, UsageError
from qcow2c.format.detection import Format, detect_format, known_format
from qcow2c.format.loaded_image import require_not_corrupt
from qcow2c.image import Image
from qcow2c.layers.chain import layers_of
from qcow2c.layers.layer import Layer
from qcow2c.storage.gate import Gate, full_name
from qcow2c.storage.integers import index_or_none
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import Memory, Store, opened
from qcow2c.storage.store import Progress

if TYPE_CHECKING:
    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.secrets import Key

FileName = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit has done."""

    base: str
    """The file that now holds what was in the layers above it."""
    grown: bool
    """The disk of the base was smaller than that of the top image."""
    emptied: bool
    """The top image no longer holds any data of its own."""


class Link(NamedTuple):
    """A layer, and how the one above it names it."""

    path: str
    image_format: str
    above: str
    """Name of the file above."""
    stored: str | None
    """The backing file name in the image above; None where the caller named the file."""
    probed: bool
    """The format is stated nowhere."""


@dataclass(frozen=True)
class Chain:
    """An image that is open for a commit, so that no other program uses it, and what was found below it, top first."""

    name: str
    """What the caller calls the image."""
    top: Store
    links: tuple[Link, ...]
    gate: str | Gate
    data_file: FileName | None
    """The external data file of the top image, where the caller has named it."""
    own_data_file: str | None
    """The same, however it was named, if only the active disk of the image uses it."""
    key: Key | KeyRing = None
    has_snapshots: bool = False
    """Whether the top image has internal snapshots that may show what lies below."""

    def key_at(self, depth: int) -> KeyRing:
        """Return the keys of a layer so far below the top image, and of what is below that."""
        from qcow2c.crypto.key_ring import KeyRing

        return KeyRing(self.key).below(depth)

    def depth_of(self, base: FileName | None) -> int:
        """Return how far below the top image a layer is: the next one, or that of a name, as QEMU understands it.

        A relative name is seen from the directory of the image above. Raises UsageError where there is none.
        """
        if base is None:
            if not self.links:
                raise UsageError("Image does not have a backing file")
            return 1
        wanted = os.fsdecode(base)
        for depth, link in enumerate(self.links, 1):
            if _names(wanted, link):
                return depth
        raise UsageError(f"Did not find '{wanted}' in the backing chain of '{self.name}'")


def commit(
    path: FileName,
    *,
    base: FileName | None = None,
    drop: bool = False,
    gate: str | Gate = "directory",
    progress: Progress | None = None,
    rate_limit: int | None = None,
    drop_trailing: bool = False,
    image_format: str | None = None,
    key: Key | KeyRing = None,
    backing: FileName | Literal[False] | None = None,
    data_file: FileName | None = None,
) -> Committed:
    """Copy what an image holds into its backing file, or with all between them into `base`, a layer further below.

    A smaller base grows. Then the image is emptied, so that it shows the base; not with `drop`, nor where a `base` is
    named: the image is then as good as the base, and layers between them show something else than before. Internal
    snapshots of the image show the same as before, which QEMU does not see to: they then hold what changes in the base;
    not with `drop`.
    `rate_limit` is in bytes of data a second. `gate`, `backing` and `data_file` are as in `qcow2c.open`.

    Durable order: the base, all of it; then the image is emptied. Whenever a crash comes, the image shows what it did.
    Raises UsageError, UnsupportedFeature, ImageLocked, and what opening the images for writing raises.
    """
    rate_limit = index_or_none(rate_limit)
    if rate_limit is not None and rate_limit < 0:
        raise UsageError(f"a rate limit of {rate_limit} bytes a second is negative")
    with open_chain(path, image_format=image_format, key=key, gate=gate, backing=backing, data_file=data_file) as chain:
        return commit_chain(
            chain, base, drop=drop, progress=progress, rate_limit=rate_limit, drop_trailing=drop_trailing
        )


@contextmanager
def open_chain(
    path: FileName,
    *,
    image_format: str | None = None,
    key: Key | KeyRing = None,
    gate: str | Gate = "directory",
    backing: FileName | Literal[False] | None = None,
    data_file: FileName | None = None,
    name: str | None = None,
) -> Iterator[Chain]:
    """Open an image for a commit, and find out what lies below it; see `commit`. Nothing is written.

    `name` is what errors call the image.
    """
    with opened(path, Use.WRITABLE_IMAGE) as top:
        found = known_format(top, image_format)
        links: tuple[Link, ...] = ()
        own, has_snapshots = None, False
        if found is Format.QCOW2:
            with open_image(top, key=key, backing=backing, data_file=data_file, gate=gate, share=True) as image:
                require_not_corrupt(image.header)
                links = tuple(_links(image.layer, named=backing is None))
                has_snapshots = bool(len(image.snapshots)) and not image.header.external_data
                if image.header.external_data and not image.header.data_file_raw and not len(image.snapshots):
                    own = image.layer.data_store.path
        yield Chain(name or top.name, top, links, gate, data_file, own, key, has_snapshots)


def _links(layer: Layer, *, named: bool) -> Iterator[Link]:
    """Yield the layers below; not `named`: the caller has given the first of them."""
    for above, below in pairwise(layers_of(layer)):
        assert above.header is not None, "only qcow2 images lie on others"
        stored = os.fsdecode(above.header.backing_file or b"") if named else None
        path = below.store.path or below.store.name
        yield Link(path, below.image_format, above.store.name, stored, not above.header.backing_format)
        named = True


def _names(wanted: str, link: Link) -> bool:
    """Return whether a name means a layer."""
    if link.stored is None:
        return wanted == link.path
    whole = full_name(link.above, link.stored)
    if _has_protocol(wanted) or _has_protocol(link.stored):
        return wanted in (link.stored, whole)
    try:
        return os.path.realpath(full_name(link.above, wanted), strict=True) == os.path.realpath(whole, strict=True)
    except (OSError, ValueError):
        return False


def _has_protocol(name: str) -> bool:
    head, colon, _ = name.partition(":")
    return bool(colon) and "/" not in head


# --- the commit itself ----------------------------------------------------------------------------------------------


def commit_chain(
    chain: Chain,
    base: FileName | None = None,
    *,
    drop: bool = False,
    progress: Progress | None = None,
    rate_limit: int | None = None,
    drop_trailing: bool = False,
) -> Committed:
    """Commit an open chain; see `commit`."""
    depth = chain.depth_of(base)
    link = chain.links[depth - 1]
    emptied = not drop and base is None
    if not drop:
        _keep_snapshots(chain)
    with ExitStack() as stack:
        closing = None
        if emptied:
            from qcow2c.atomic.empty import empty
            from qcow2c.atomic.successor import changing

            successor = stack.enter_context(changing(chain.top))
            closing = _own_data_file(chain, stack)
        planned = PlannedDisk(_disk(chain, depth, closing, stack), 0)
        with open_base(
            link.path, link.image_format, chain.gate, None if chain.key is None else chain.key_at(depth)
        ) as target:
            for store in target.stores():
                planned.require_other(store.path)
            if link.probed and link.image_format == "raw":
                _require_raw(planned.disk, link)
            grown = target.grow(planned.disk.size)
            copy(planned, target, progress=progress, rate_limit=rate_limit)
        if emptied:
            empty(successor, closing, drop_trailing=drop_trailing)
    return Committed(link.path, grown, emptied)


def _keep_snapshots(chain: Chain) -> None:
    """Let the internal snapshots of the top image show the same over the base as it will be, as a rebase does.

    They then hold themselves what they show of the base and what is about to change there. Durable order: as with any
    writing. A crash leaves the same disks, and leaks at most. Raises as writing, UnsupportedFeature.
    """
    if not chain.has_snapshots:
        return
    from qcow2c.copy.from_backing import keep_disks

    link = chain.links[0]
    how: dict[str, Any] = {"key": chain.key, "gate": chain.gate, "data_file": chain.data_file}
    how |= {"backing": link.path, "backing_format": link.image_format}
    with open_image(chain.top, **how) as seen:
        _require_readable(seen)
        with open_image(chain.top, "r+", **how) as image:
            # What the disk shows now is what the base will show.
            records = [snapshot.record for snapshot in image.snapshots.list()]
            keep_disks(image.engine, records, Disk(seen.layer, seen.name, seen))


def copy(planned: PlannedDisk, target: BaseTarget, *, progress: Progress | None, rate_limit: int | None) -> None:
    """Copy what a disk and the layers that are open below it decide into a layer, which is durable then."""
    _LayerCopy(planned, rate_limit, progress).run(target, Scope(with_zeros=True))


def _own_data_file(chain: Chain, stack: ExitStack) -> Store | None:
    """Open the data file of the top image for writing, where nothing but its active disk uses it."""
    if chain.own_data_file is None:
        return None
    return stack.enter_context(opened(chain.own_data_file, Use.WRITABLE_DATA_FILE))


def _disk(chain: Chain, depth: int, data_store: Store | None, stack: ExitStack) -> Disk:
    """Open the layers above the base, for reading; what they do not decide reads as zeros."""
    below: Image | Literal[False] = False
    for position in reversed(range(depth - 1)):
        image = stack.enter_context(_image(chain, position + 1, backing=below))
        _require_readable(image)
        if os.fsdecode(image.header.backing_file or b"") != chain.links[position + 1].stored:
            raise ChainError(f"{image.name!r} has got another backing file since the chain was looked at")
        below = image
    data_file = data_store or chain.data_file
    image = stack.enter_context(
        open_image(chain.top, key=chain.key, backing=below, data_file=data_file, gate=chain.gate)
    )
    _require_readable(image)
    return Disk(image.layer, image.name, image, _DecidedMap(image.layer, depth))


def _image(chain: Chain, depth: int, backing: Image | Literal[False]) -> Image:
    """Open a layer so far below the top image."""
    key = None if chain.key is None else chain.key_at(depth)
    return open_image(chain.links[depth - 1].path, key=key, backing=backing, gate=chain.gate)


def _require_readable(image: Image) -> None:
    """Raise MissingKey before anything is written, rather than at the first cluster."""
    if image.layer.needs_key:
        raise MissingKey(f"the image {image.name!r} is encrypted, and no key was given", spec="Data encryption")


def _require_raw(disk: Disk, link: Link) -> None:
    """Raise UsageError where a raw file that is not stated to be one would be taken for something else from now on."""
    start = bytearray(SECTOR_SIZE)
    disk.read_into(memoryview(start), 0)
    found = detect_format(Memory(start))
    if found != "raw":
        message = f"{link.path!r} would be taken for an image of format {found!r}: the disk begins like one"
        raise UsageError(f"{message}, and {link.above!r} does not say that its backing file is raw")


class _DecidedMap(DiskMap):
    """The map of some layers without anything below them: of that, only what they decide."""

    def __init__(self, top: Layer, layers: int) -> None:
        super().__init__(top)
        self._last = layers - 1

    def columns(self, start: int = 0, max_length: int | None = None) -> Iterator[Columns]:
        """Yield the runs as `DiskMap` does, without those in which every layer asks the one below.

        Zeros behind the end of a short layer are decided by the layer above it.
        """
        for found in super().columns(start, max_length):
            kept = [
                flags & PRESENT or depth < self._last for depth, flags in zip(found.depths, found.flags, strict=True)
            ]
            if any(kept):
                yield Columns(*(list(compress(column, kept)) for column in found))


class _LayerCopy(DiskCopy):
    """Copies a disk no faster than so many bytes of data a second."""

    def __init__(self, planned: PlannedDisk, rate_limit: int | None, progress: Progress | None) -> None:
        super().__init__([planned], progress=progress)
        self._rate_limit = rate_limit

    def slabs(self, scope: Scope, buffers: Buffers) -> Iterator[tuple[Slab, memoryview | None]]:
        started, copied = time.monotonic(), 0
        for slab in super().slabs(scope, buffers):
            yield slab
            if self._rate_limit:
                copied += sum(piece.length for piece in slab[0].pieces)
                buffers.wait(started + copied / self._rate_limit - time.monotonic())

    def read(self, slab: Slab, _scope: Scope, buffer: memoryview) -> None:
        """Fill what is copied and nothing between: where data is scattered, slabs are mostly that."""
        for piece in slab.pieces:
            assert piece.source is not None, "all is of disks"
            start = piece.start - slab.start
            piece.source.read(piece, buffer[start : start + piece.length])
