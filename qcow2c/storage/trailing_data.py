"""What lies in a file behind all that an image uses, which a shorter file would lose. Reads only.

It may be a footer that another program has appended, or the rest of a disk whose guest wrote a header of its own.
"""

from __future__ import annotations

from qcow2c.errors import Span
from qcow2c.storage.store import Store

_READ_BYTES = 1 << 20


def trailing_data(store: Store, used_end: int) -> Span | None:
    """Return the bytes from `used_end` to the end of a store, None where there are none but zeros. Raises StoreError.

    Holes are not read; of the rest no more than up to the first byte that is not zero.
    """
    end = store.size()
    for span, is_data in store.extents(used_end, end) if used_end < end else ():
        for at in range(span.offset, span.end, _READ_BYTES) if is_data else ():
            part = store.pread(min(_READ_BYTES, span.end - at), at)
            if part.count(0) < len(part):
                return Span(used_end, end - used_end)
    return None
