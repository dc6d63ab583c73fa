"""What format a file has, by its first bytes. It decides nothing and opens nothing."""

from __future__ import annotations

from qcow2c.storage.store import Store
from qcow2c.structs import FOREIGN_FORMATS, FORMAT_PROBE_BYTES, MAGIC


def detect_format(store: Store) -> str:
    """Return "qcow2", "raw", or the name of another known format, by the first bytes."""
    start = store.pread(FORMAT_PROBE_BYTES, 0)
    for offset, signature, name in FOREIGN_FORMATS:
        if start[offset : offset + len(signature)] == signature:
            return name
    return "qcow2" if start[: len(MAGIC)] == MAGIC else "raw"
