"""A header that is believed although it cannot be: what a dump shows of images whose own says no geometry.

It changes what is read of a few fields, and nothing in the file.
"""

from __future__ import annotations

from qcow2c.constants import MAGIC, V2_REFCOUNT_ORDER, Limit, Version
from qcow2c.errors import UsageError
from qcow2c.format.derived import HEADER_V2, HEADER_V3_TAIL
from qcow2c.format.header import V2_LENGTH, V3_LENGTH
from qcow2c.format.layout import integer, stored_integer
from qcow2c.storage.patched import PatchedBytes
from qcow2c.storage.store import Store

_USUAL_CLUSTER_BITS = 16
"""What nearly every image has."""


def forced_store(store: Store, *, force: bool = False, cluster_bits: int | None = None) -> Store:
    """Return a store whose header has another size of clusters, and with `force` a magic, a version and sizes at all.

    What is right stays as it is. Raises UsageError for a size of clusters that is none.
    """
    if cluster_bits is not None and cluster_bits not in Limit.CLUSTER_BITS:
        raise UsageError(f"cluster_bits {cluster_bits} is not {Limit.CLUSTER_BITS[0]}..{Limit.CLUSTER_BITS[-1]}")
    start = store.pread(V3_LENGTH, 0).ljust(V3_LENGTH, b"\0")
    wanted: dict[str, int] = {}
    patches: dict[int, bytes] = {}
    if force:
        if start[: len(MAGIC)] != MAGIC:
            patches[0] = MAGIC
        version = _value(start, "version")
        if version not in tuple(Version):
            wanted["version"] = version = Version.V3
        if _value(start, "cluster_bits") not in Limit.CLUSTER_BITS:
            wanted["cluster_bits"] = _USUAL_CLUSTER_BITS
        if version == Version.V3 and _value(start, "refcount_order") not in Limit.REFCOUNT_ORDER:
            wanted["refcount_order"] = V2_REFCOUNT_ORDER
        if version == Version.V3 and _value(start, "header_length") < V3_LENGTH:
            wanted["header_length"] = V3_LENGTH
    if cluster_bits is not None:
        wanted["cluster_bits"] = cluster_bits
    for name, value in wanted.items():
        at, size = _place(name)
        patches[at] = stored_integer(value, size)
    return PatchedBytes(store, patches) if patches else store


def _place(name: str) -> tuple[int, int]:
    for part, base in ((HEADER_V2, 0), (HEADER_V3_TAIL, V2_LENGTH)):
        for member in part.fields:
            if member.name == name:
                return base + member.offset, member.size
    raise KeyError(name)


def _value(start: bytes, name: str) -> int:
    at, size = _place(name)
    return integer(start[at : at + size])
