"""The header of a new image, which is written last: only with it a file is an image."""

from __future__ import annotations

from qcow2c.constants import MAGIC, SECTOR_SIZE
from qcow2c.storage.store import Store


def write_final_header(store: Store, header: bytes, *, durable: bool = True) -> None:
    """Write the header of a new image, of which everything else is written.

    Durable order: everything else, and the header without its magic value; the first sector. A crash before leaves a
    file that is no image. Without `durable` this is the order of the writes, and nothing waits for the medium.
    Raises StoreError.
    """
    store.pwrite(bytes(len(MAGIC)) + header[len(MAGIC) :], 0)
    if durable:
        store.flush()
    store.pwrite(header[:SECTOR_SIZE], 0)
    if durable:
        store.flush()
