"""Guest data that is not compressed, fetched from the file that has it, and decrypted. It maps nothing. Reads only.

Spec: "Cluster mapping", "Data encryption".
"""

from __future__ import annotations

from qcow2c.errors import CorruptData, MissingKey, Span, StoreError
from qcow2c.format.geometry import Geometry
from qcow2c.layers.layer import Layer, Run
from qcow2c.light import TYPE_CHECKING
from qcow2c.storage.store import Store
from qcow2c.storage.zeros import fill_zeros

if TYPE_CHECKING:
    from qcow2c.crypto.guest_cipher import GuestCipher


def require_key(layer: Layer, guest: Span | None = None) -> None:
    """Raise MissingKey where guest data is to be read of an encrypted image that was opened without a key."""
    if layer.needs_key:
        raise MissingKey("the image is encrypted, and no key was given", guest=guest, spec="Data encryption")


def require_uncut(store: Store, known_size: int) -> None:
    """Raise StoreError where a file was cut off since it was opened, when it had a known size."""
    size = store.size()
    if size < known_size:
        message = f"{store.name!r} was cut off since it was opened: it had {known_size} bytes, and has {size}"
        raise StoreError(message, where=Span(size, known_size - size), filename=store.path)


def fetch_data(
    store: Store, geometry: Geometry, cipher: GuestCipher | None, buffer: memoryview, run: Run, *, known_size: int = 0
) -> CorruptData | None:
    """Fill a buffer with a run of data clusters; return an error for what the file does not have, which are zeros then.

    The last cluster of a file may be cut short, and then ends in zeros. One that begins past the end is lost, and so is
    every byte that a file of a `known_size` had when it was opened, and has no more. Raises StoreError.
    """
    if cipher is None:
        done = store.readinto_at(buffer, run.host_offset)
        if done == len(buffer):
            return None
        fill_zeros(buffer[done:])
    else:
        cipher.read_into(store, buffer, run.host_offset, run.guest_offset)
        if store.size() >= run.host_offset + len(buffer):
            return None
    size = store.size()
    cluster_start = run.host_offset & -geometry.cluster_size
    first_lost = max(cluster_start, geometry.clusters(size) * geometry.cluster_size)
    was_cut = size < known_size
    if was_cut:
        first_lost = size
    kept = max(0, min(len(buffer), first_lost - run.host_offset))
    if kept == len(buffer):
        return None
    fill_zeros(buffer[kept:])
    guest = Span(run.guest_offset + kept, len(buffer) - kept)
    where = Span(run.host_offset + kept, len(buffer) - kept)
    message = f"the host cluster is past the end of the file at {size:#x}"
    if was_cut:
        message += f", which was cut off since it was opened: it had {known_size} bytes"
    return CorruptData(message, where=where, guest=guest, spec="Cluster mapping")
