"""Changing the header of an image that exists: its fields, its extensions, the name of its backing file.

What changes lies in one sector, which is never torn, at the moment that counts. The header's fields are in it in any
case; where extensions or the backing file name reach beyond it, they are first written where nothing refers to them.
Nothing else writes the first sector of an image that exists, but for the journal of a repair: it writes stage by stage,
each durable before the next, so that all of it can be taken back.
Spec: "Header", "Header extensions".
"""

from __future__ import annotations

from qcow2c.constants import SECTOR_SIZE, ExtensionType, Limit
from qcow2c.errors import StoreError, UsageError
from qcow2c.format.header import Header, aligned
from qcow2c.format.header_writer import Extensions, HeaderChange, assembled, extensions_of, header_proper, with_fields
from qcow2c.storage.medium import Medium


class HeaderUpdate:
    """Other values of header fields, and how they reach the file.

    Durable order: what the new values refer to, and everything else before them; the first sector, which holds all
    fields. A sector is never torn: a crash leaves all the old values or all the new ones.
    """

    def __init__(self, medium: Medium) -> None:
        self._medium = medium
        self._waiting: dict[str, int] = {}

    def set(self, **fields: int) -> None:
        """Change fields, under the specification's names, with the next `write` that succeeds."""
        self._waiting |= fields

    def write(self, **fields: int) -> None:
        """Write the fields that were set, and `fields`; do nothing where there are none.

        Raises StoreError. Then what was set waits for the next call, and `fields` do not.
        """
        changed = self._waiting | fields
        if changed:
            _write_sector(self._medium, with_fields(self._medium.store.pread(SECTOR_SIZE, 0), changed))
            self._waiting.clear()


def change_header(medium: Medium, header: Header, change: HeaderChange) -> Header:
    """Change fields, extensions or the backing file name in the file, and return the new header.

    Durable order: everything before; where the first sector does not hold it all, the backing file name at a place of
    its own, then the first sector with what an image cannot do without (not the names of features), then the rest,
    then the first sector in full. A crash leaves the old header or the new one, perhaps without the names of features.
    Only where the extensions do not fit into the first sector without those names, all is written at once.
    Raises UsageError where it does not fit into the first cluster, StoreError.
    """
    old = medium.store.pread(header.cluster_size, 0).ljust(header.cluster_size, b"\0")
    name = header.backing_file or b"" if change.backing_file is None else change.backing_file
    extensions = extensions_of(header) if change.extensions is None else list(change.extensions)
    if len(name) > Limit.BACKING_FILE_NAME_BYTES:
        raise UsageError(f"backing file name of {len(name)} bytes exceeds {Limit.BACKING_FILE_NAME_BYTES}")
    head = header_proper(header, old, change.fields)
    whole = assembled(head, extensions, name)
    used = max(header.header_length, header.backing_file_offset + header.backing_file_size)
    used = max([used, *(found.span.end for found in header.extensions)])
    if len(whole) > header.cluster_size:
        raise UsageError(f"header, extensions and backing file name of {len(whole)} bytes exceed the first cluster")
    end = min(header.cluster_size, max(len(whole), used, SECTOR_SIZE))
    final = whole.ljust(end, b"\0")
    if final[SECTOR_SIZE:] != old[SECTOR_SIZE:end] and len(whole) > SECTOR_SIZE:
        _write_in_steps(medium, final, head, extensions, name, header.cluster_size)
    else:
        _write_sector(medium, final[:SECTOR_SIZE])
        if end > SECTOR_SIZE:  # Nothing refers to it any more.
            medium.write([final[SECTOR_SIZE:]], SECTOR_SIZE)
    medium.flush()
    return Header.load(medium.store)


def _write_in_steps(
    medium: Medium, final: bytes, head: bytes, extensions: Extensions, name: bytes, cluster_size: int
) -> None:
    """Write a header that the first sector does not hold, over another one that ends before `final` does."""
    needed = [found for found in extensions if found[0] != ExtensionType.FEATURE_NAME_TABLE]
    aside = aligned(len(final))
    first = assembled(head, needed, name, aside)
    if len(first) > SECTOR_SIZE or aside + len(name) > cluster_size:
        medium.flush()
        medium.write([final], 0)
        return
    if name:
        medium.write([name], aside)
    _write_sector(medium, first.ljust(SECTOR_SIZE, b"\0"))
    medium.write([final[SECTOR_SIZE:]], SECTOR_SIZE)
    _write_sector(medium, final[:SECTOR_SIZE])
    if name:
        medium.write([bytes(len(name))], aside)


def _write_sector(medium: Medium, sector: bytes) -> None:
    """Write the first sector after all that it refers to, and before anything else: see `HeaderUpdate`.

    Raises StoreError; where it says so, the sector may have been written all the same.
    """
    medium.flush()
    try:
        medium.write([sector], 0)
        medium.flush()
    except StoreError as exc:
        message = (
            f"{exc.message}; what the header was to say may or may not be there: doing it again says what is the case"
        )
        raise StoreError(message, where=exc.where, spec=exc.spec, errno=exc.errno, filename=exc.filename) from exc
