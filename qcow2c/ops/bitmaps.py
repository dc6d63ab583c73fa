"""Bitmaps of an image: add, remove, clear, enable, disable and merge them, and read which guest ranges are dirty.

Durable order of each change: new bits, tables and directory in free space, the header, then what they replace is freed
of. A crash leaves the bitmaps as they were or as they are to be, and leaks at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from typing import NamedTuple, Unpack

from qcow2c.bitmaps.edit import BitmapEdit
from qcow2c.bitmaps.stored import Bitmaps
from qcow2c.disk.opening import Opening, open_image
from qcow2c.errors import Span, UsageError
from qcow2c.format.detection import Format, known_format
from qcow2c.image import Image
from qcow2c.storage.integers import index_or_none
from qcow2c.storage.sources import Source, Store, opened

__all__ = ["add", "clear", "dirty_ranges", "disable", "enable", "merge", "remove"]

STALE = "a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent"

Warn = Callable[[str], object]


class Verb(StrEnum):
    ADD = "add"
    REMOVE = "remove"
    CLEAR = "clear"
    ENABLE = "enable"
    DISABLE = "disable"
    MERGE = "merge"


class BitmapChange(NamedTuple):
    """One thing to do to a bitmap."""

    verb: Verb
    source: str = ""
    """Of a merge: the name of the bitmap that is merged into this one."""


class SourceImage(NamedTuple):
    """The image whose bitmaps are merged, where that is another one; without a format, it is detected."""

    path: Source | Store
    image_format: str | None = None


class ChangeOptions(Opening, total=False):
    """What `change` may be told, beside what it is to do."""

    image_format: str | None
    warn: Warn | None


def add(
    image: Source | Store,
    name: str,
    *,
    granularity: int | None = None,
    enabled: bool = True,
    **opening: Unpack[ChangeOptions],
) -> None:
    """Add a bitmap, without a bit set; `granularity` bytes are one bit, by default a cluster, of 4 to 64 KiB.

    `opening` are arguments of `change`. Raises UsageError, and as `qcow2c.open` with "r+".
    """
    actions = [BitmapChange(Verb.ADD)] if enabled else [BitmapChange(Verb.ADD), BitmapChange(Verb.DISABLE)]
    change(image, name, actions, granularity=granularity, **opening)


def remove(image: Source | Store, name: str, **opening: Unpack[ChangeOptions]) -> None:
    """Remove a bitmap: also one that is inconsistent. Raises as `add`."""
    change(image, name, [BitmapChange(Verb.REMOVE)], **opening)


def clear(image: Source | Store, name: str, **opening: Unpack[ChangeOptions]) -> None:
    """Clear all bits of a bitmap. Raises as `add`."""
    change(image, name, [BitmapChange(Verb.CLEAR)], **opening)


def enable(image: Source | Store, name: str, **opening: Unpack[ChangeOptions]) -> None:
    """Let a bitmap record every write from now on. Raises as `add`."""
    change(image, name, [BitmapChange(Verb.ENABLE)], **opening)


def disable(image: Source | Store, name: str, **opening: Unpack[ChangeOptions]) -> None:
    """Let a bitmap stay as it is, whatever is written. Raises as `add`."""
    change(image, name, [BitmapChange(Verb.DISABLE)], **opening)


def merge(
    image: Source | Store,
    name: str,
    source_name: str,
    *,
    source: Source | Store | None = None,
    **opening: Unpack[ChangeOptions],
) -> None:
    """Set the bits of a bitmap that are set in another one, of the same image or of `source`. Raises as `add`."""
    other = None if source is None else SourceImage(source)
    change(image, name, [BitmapChange(Verb.MERGE, source_name)], source=other, **opening)


def change(
    image: Source | Store,
    name: str,
    actions: Sequence[BitmapChange],
    *,
    granularity: int | None = None,
    source: SourceImage | None = None,
    image_format: str | None = None,
    warn: Warn | None = None,
    **opening: Unpack[Opening],
) -> None:
    """Do one thing after the other to a bitmap, all of them by one change of the header.

    Where one cannot be done, those before it are, as with qemu-img. `opening` are arguments of `qcow2c.open`: `gate`,
    `data_file`. Raises UsageError, and as `qcow2c.open` with "r+".
    """
    granularity = index_or_none(granularity)
    with ExitStack() as stack:
        opening.setdefault("backing", False)
        target = stack.enter_context(_image(image, "r+", image_format, opening))
        others, size = None, 0
        if source is not None:
            read = Opening(backing=opening["backing"], gate=opening.get("gate", "directory"))
            other = stack.enter_context(_image(source.path, "r", source.image_format, read))
            others, size = (Bitmaps(), 0) if other is None else (other.bitmaps, other.size())
        if target is None:
            raise _failed(actions[0], name, _without_bitmaps(actions[0], name, image))
        problem = None
        with target.engine.changing_bitmaps() as edit:
            if edit.stale and warn is not None:
                warn(STALE)
            for action in actions:
                try:
                    _do(edit, name, action, granularity, others, size)
                except UsageError as exc:
                    problem = _failed(action, name, exc.message)
                    break
        if problem is not None:
            raise problem


def _do(
    edit: BitmapEdit, name: str, action: BitmapChange, granularity: int | None, others: Bitmaps | None, size: int
) -> None:
    """Do one thing; `others` are the bitmaps of another disk of `size` bytes. Raises UsageError."""
    if action.verb is Verb.ADD:
        edit.add(name, granularity)
    elif action.verb is Verb.REMOVE:
        edit.remove(name)
    elif action.verb is Verb.CLEAR:
        edit.clear(name)
    elif action.verb is Verb.MERGE:
        edit.find(name)  # It is missed first.
        if others is None:
            edit.merge(name, edit.find(action.source))
        else:
            edit.merge(name, others.find(action.source), size)
    else:
        edit.enable(name, enabled=action.verb is Verb.ENABLE)


def _failed(action: BitmapChange, name: str, reason: str) -> UsageError:
    return UsageError(f"Operation {action.verb} on bitmap {name} failed: {reason}")


def _without_bitmaps(action: BitmapChange, name: str, image: Source | Store) -> str:
    """Return what is wrong with an action on a raw file."""
    if action.verb is Verb.ADD:
        shown = image if isinstance(image, str) else getattr(image, "name", "the image")
        return f"Can't store persistent bitmaps to {shown}: Operation not supported"
    return f"Dirty bitmap '{name}' not found"


@contextmanager
def _image(source: Source | Store, mode: str, image_format: str | None, opening: Opening) -> Iterator[Image | None]:
    """Open an image; a raw file gives None: it has no bitmaps. Raises as `qcow2c.open`, and UnsupportedFeature."""
    with opened(source, writable="+" in mode) as store:
        if known_format(store, image_format) is Format.RAW:
            yield None
        else:
            with open_image(store, mode, **opening) as image:
                yield image


def dirty_ranges(image: Source | Store, name: str, **opening: Unpack[Opening]) -> Iterator[Span]:
    """Yield the dirty spans of the disk that a bitmap has, in order.

    Adjacent ones come as one, and none lies behind the disk. `opening` are arguments of `qcow2c.open`. Raises
    UsageError where there is no such bitmap, or it is inconsistent, and as `qcow2c.open`.
    """
    opening.setdefault("backing", False)
    with open_image(image, **opening) as found:
        yield from found.bitmaps.find(name).ranges()
