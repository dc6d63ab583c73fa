"""How a copy is made: the choices that a caller has."""

from __future__ import annotations

from qcow2c.light import TypedDict, frozen
from qcow2c.storage.integers import settle_integers

SPARSE_SIZE = 4096
"""Bytes of zeros that become a hole, unless the caller says otherwise."""


class CopyOptions(TypedDict, total=False):
    """The choices of `How`, as keyword arguments."""

    compressed: bool
    compression_level: int | None
    sparse_size: int
    existing: bool
    target_is_zero: bool
    over_backing: bool
    salvage: bool
    bitmaps: bool
    skip_broken_bitmaps: bool
    durable: bool
    threads: int | None


@frozen
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
    over_backing: bool = False
    """An existing target lies on a backing file that holds what the top layers of the source do not."""
    salvage: bool = False
    """What cannot be read is zeros."""
    bitmaps: bool = False
    """Copy the persistent bitmaps of the source, too."""
    skip_broken_bitmaps: bool = False
    durable: bool = True
    """The copy is durable before it counts as done."""
    threads: int | None = None

    def __post_init__(self) -> None:
        settle_integers(self)
