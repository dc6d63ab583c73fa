"""What else a file may be taken for: signatures of other formats at their places. Reads little; judges nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from qcow2c.constants import FILE_SIGNATURES, IMAGE_SIGNATURES, TEXT_SIGNATURES, ZIP_END, ZIP_END_BYTES
from qcow2c.errors import Span
from qcow2c.light import NamedTuple

Read = Callable[[int, int], bytes]
"""Returns bytes: how many, and where."""

_SHORT = 2
"""A signature of so few bytes means something only where nothing else is."""

_VMDK_TEXT = re.compile(rb"(#[^\n]*\n|[ \r]*\n)*version=[0-9]+[ \r]*\n")
"""What QEMU takes for the descriptor of a VMDK image, with no signature at all."""

_TEXT_BYTES = 1024
_ZIP_BYTES = (1 << 16) + ZIP_END_BYTES


class Likeness(NamedTuple):
    """A format that something may be taken for, and the bytes that say so."""

    name: str
    where: Span
    is_image: bool


def image_likenesses(read: Read, size: int) -> Iterator[Likeness]:
    """Yield the formats of images that some bytes may be taken for, by their beginning and their end."""
    for offset, signature, name in IMAGE_SIGNATURES:
        at = offset if offset >= 0 else size + offset
        if at >= 0 and read(len(signature), at) == signature:
            yield Likeness(name, Span(at, len(signature)), is_image=True)
    if found := _VMDK_TEXT.match(read(_TEXT_BYTES, 0)):
        yield Likeness("vmdk", Span(0, found.end()), is_image=True)


def file_likenesses(read: Read, size: int, header_bytes: int) -> Iterator[Likeness]:
    """Yield what a file may be taken for besides an image; of its first `header_bytes` nothing is a guest's data."""
    for at, signature, name in FILE_SIGNATURES:
        is_sure = len(signature) > _SHORT or at + len(signature) <= header_bytes
        if is_sure and read(len(signature), at) == signature:
            yield Likeness(name, Span(at, len(signature)), is_image=False)
    start = read(header_bytes, 0).lower()
    for signature, name in TEXT_SIGNATURES:
        if (at := start.find(signature.lower())) >= 0:
            yield Likeness(name, Span(at, len(signature)), is_image=False)
    yield from _archive(read, size)


def _archive(read: Read, size: int) -> Iterator[Likeness]:
    """Yield a ZIP archive that ends where the file does: it may begin with anything."""
    first = max(0, size - _ZIP_BYTES)
    tail = read(size - first, first)
    at = tail.rfind(ZIP_END)
    if at >= 0 and len(tail) - at >= ZIP_END_BYTES:
        comment = int.from_bytes(tail[at + ZIP_END_BYTES - 2 : at + ZIP_END_BYTES], "little")
        if at + ZIP_END_BYTES + comment == len(tail):
            yield Likeness("zip", Span(first + at, len(tail) - at), is_image=False)
