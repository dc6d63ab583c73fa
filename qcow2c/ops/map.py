"""`map`: which bytes of a disk hold data or zeros, in which layer of the chain, and where in its file.

Read-only; it looks at tables, never at the data of the guest.
"""

from __future__ import annotations

from collections.abc import Iterator

from qcow2c.disk.disk import open_disk
from qcow2c.disk.map import Extent, extents
from qcow2c.image import Image
from qcow2c.light import TYPE_CHECKING
from qcow2c.storage.gate import Gate
from qcow2c.storage.sources import Source, Store

if TYPE_CHECKING:
    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.secrets import Key

__all__ = ["Extent", "map"]


def map(
    source: Image | Source | Store,
    *,
    start: int = 0,
    max_length: int | None = None,
    key: Key | KeyRing = None,
    gate: str | Gate = "directory",
    image_format: str | None = None,
    share: bool = False,
) -> Iterator[Extent]:
    """Yield the extents of a disk from byte `start` on, at most `max_length` bytes: what `qemu-img map` prints.

    `source` is an open `Image`, a snapshot's too, or a qcow2 or raw image that is open while the extents are taken; the
    other arguments are for that. Raises CorruptMetadata at the first table entry that breaks a rule, LimitExceeded,
    and as `open_disk`.
    """
    with open_disk(source, image_format=image_format, key=key, gate=gate, share=share) as disk:
        yield from extents(disk.layer, start, max_length)
