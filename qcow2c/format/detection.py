"""What format a file has: as stated, or by its first bytes. Opens nothing."""

from __future__ import annotations

import enum

from qcow2c.constants import FOREIGN_FORMATS, FORMAT_PROBE_BYTES, MAGIC
from qcow2c.errors import UnsupportedFeature
from qcow2c.storage.store import Store

LUKS = "luks"
"""Raw LUKS volumes: what they hold is read, and a copy can be one."""


class Format(enum.StrEnum):
    """The formats of images that are read and written here."""

    QCOW2 = "qcow2"
    RAW = "raw"


def detect_format(store: Store) -> str:
    """Return "qcow2", "raw", or the name of another known format, by the first bytes."""
    start = store.pread(FORMAT_PROBE_BYTES, 0)
    for offset, signature, name in FOREIGN_FORMATS:
        if start[offset : offset + len(signature)] == signature:
            return name
    return "qcow2" if start[: len(MAGIC)] == MAGIC else "raw"


_STATED = "Could not open {name!r}: Unknown driver {found!r}: it can be qcow2 or raw"
_DETECTED = "image {name!r} has format {found!r}, not qcow2 or raw"


def known_format(store: Store, stated: str | None, refusal: str | None = None) -> Format:
    """Return the format of an image: as stated, or for None as detected.

    Raises UnsupportedFeature where that is no `Format`; without a `refusal` it says whether the caller or the image is
    to blame.
    """
    found = detect_format(store) if stated is None else stated
    if found not in (Format.QCOW2, Format.RAW):
        refusal = refusal or (_DETECTED if stated is None else _STATED)
        raise UnsupportedFeature(refusal.format(name=store.name, found=found))
    return Format(found)
