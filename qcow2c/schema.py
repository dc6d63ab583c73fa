"""What a field of a schema says of itself, beside its name and width: `structs.py` is written with it.

It knows no structure of the format.
"""

from __future__ import annotations

from qcow2c.light import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from construct import Construct


class Doc(str):
    """What a field means, with its `unit`, the values that are `valid`, and the section of the specification.

    `valid` is a range (bounds, and an alignment as its step) or a tuple of choices; None where every value is.
    `reserved` marks bits or bytes that must be zero; `bits`, in a declaration, is the schema of a field that is a set
    of flags.
    """

    unit: str
    valid: range | tuple[int | bytes, ...] | None
    spec: str
    reserved: bool
    bits: Construct | None

    def __new__(
        cls,
        text: str,
        *,
        unit: str = "",
        valid: range | tuple[int | bytes, ...] | None = None,
        spec: str = "",
        reserved: bool = False,
        bits: Construct | None = None,
    ) -> Doc:
        doc = super().__new__(cls, text)
        doc.unit, doc.valid, doc.spec, doc.reserved, doc.bits = unit, valid, spec, reserved, bits
        return doc


class Section:
    """A section of the specification: calling it documents a field of that section."""

    def __init__(self, title: str) -> None:
        self.title = title

    def __call__(self, text: str, **facts: Any) -> Doc:
        return Doc(text, spec=self.title, **facts)

    def reserved(self, text: str = "Reserved, must be zero.") -> Doc:
        return Doc(text, spec=self.title, valid=(0,), reserved=True)
