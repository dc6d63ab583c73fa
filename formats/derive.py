"""Writes qcow2c/format/derived.py: what follows from the schemas of qcow2c/structs.py, so that it needs no Construct.

    python formats/derive.py            writes it
    python formats/derive.py --check    fails if that would change it

`make derived` and `make derived-check` do the same; tests/unit/format/test_derived.py holds the file current.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from construct import Construct

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "qcow2c" / "format" / "derived.py"

sys.path.insert(0, str(ROOT))

from qcow2c import structs  # noqa: E402
from qcow2c.format.derivation import derived  # noqa: E402
from qcow2c.format.layout import BitField, Bits, Field, Layout, RecordLayout, RecordPart  # noqa: E402
from qcow2c.schema import Doc  # noqa: E402

HEAD = '''"""What follows from each schema, by its name in `structs.py`; from a function, by its argument.

Made by formats/derive.py: do not edit it. After a change of `structs.py`, `make derived` makes it anew.
"""

from __future__ import annotations

from qcow2c.format.layout import BitField, Bits, Field, Layout, RecordPart, RecordLayout
from qcow2c.schema import Doc

'''


Known = Bits | Layout | RecordLayout


def declared() -> dict[str, Known]:
    """Return what follows from each schema, in the order of their declaration."""
    return {name: derived(one) for name, one in vars(structs).items() if name.isupper() and isinstance(one, Construct)}


def families() -> dict[str, dict[int, Known]]:
    """Return what follows from the schemas that depend on the image, by the argument of their function."""
    return {
        "COMPRESSED_DESCRIPTOR: dict[int, Bits]": {
            cluster_bits: derived(structs.compressed_descriptor(cluster_bits))
            for cluster_bits in structs.Limit.CLUSTER_BITS
        },
        "REFCOUNT_GROUP: dict[int, Bits | Layout]": {
            refcount_order: derived(structs.refcount_group(refcount_order))
            for refcount_order in structs.Limit.REFCOUNT_ORDER
        },
    }


class Source:
    """The source text: what is the same in several places is written once."""

    def __init__(self) -> None:
        self._named: dict[Known, str] = {}
        self._docs: dict[str, str] = {}

    def text(self) -> str:
        """Return the whole module."""
        whole = declared()
        every = [*whole.values(), *(one for family in families().values() for one in family.values())]
        counted = Counter(_doc(member.doc) for one in every for member in _members(one))
        self._docs = {doc: f"_DOC_{index}" for index, doc in enumerate(doc for doc in counted if counted[doc] > 1)}
        parts = [HEAD, *(f"{name} = {doc}\n" for doc, name in self._docs.items())]
        for name, one in whole.items():
            parts.append(f"\n{name} = {self._whole(one)}\n")
            self._named[one] = name
        for name, family in families().items():
            entries = "".join(f"{argument}: {self._whole(one)},\n" for argument, one in family.items())
            parts.append(f"\n{name} = {{\n{entries}}}\n")
        return "".join(parts)

    def _whole(self, one: Known) -> str:
        lines = "".join(f"    {self._member(member)},\n" for member in _members(one))
        if isinstance(one, Bits):
            return f"Bits({one.width}, (\n{lines}))"
        if isinstance(one, Layout):
            return f"Layout({one.size}, (\n{lines}))"
        return f"RecordLayout({self._named[one.header] if one.header is not None else None}, (\n{lines}))"

    def _member(self, member: BitField | Field | RecordPart) -> str:
        if isinstance(member, BitField):
            return self._bit_field(member)
        return self._field(member) if isinstance(member, Field) else self._part(member)

    def _bit_field(self, member: BitField) -> str:
        place = f"{member.shift}, {member.width}, {member.mask:#x}, {member.unit}"
        return f"BitField({member.name!r}, {place}, {self._doc(member)})"

    def _field(self, member: Field) -> str:
        facts = "" if member.is_integer else ", is_integer=False"
        facts += f", names={dict(member.names)}" if member.names else ""
        facts += f", flags={self._named[member.flags]}" if member.flags is not None else ""
        facts += f", parts={self._named[member.parts]}" if member.parts is not None else ""
        return f"Field({member.name!r}, {member.offset}, {member.size}, {self._doc(member)}{facts})"

    def _part(self, member: RecordPart) -> str:
        return f"RecordPart({member.name!r}, {member.length!r}, {self._doc(member)})"

    def _doc(self, member: BitField | Field | RecordPart) -> str:
        doc = _doc(member.doc)
        return self._docs.get(doc, doc)


def _members(one: Known) -> tuple[Any, ...]:
    if isinstance(one, Bits):
        return one.members
    return one.fields if isinstance(one, Layout) else one.parts


def _doc(doc: Doc) -> str:
    facts: Mapping[str, object] = {
        "unit": doc.unit,
        "valid": _plain(doc.valid),
        "spec": doc.spec,
        "reserved": doc.reserved,
    }
    return f"Doc({str(doc)!r}{''.join(f', {name}={value!r}' for name, value in facts.items() if value)})"


def _plain(valid: range | tuple[int | bytes, ...] | None) -> object:
    """Return choices without the names that an enumeration gives them."""
    if not isinstance(valid, tuple):
        return valid
    return tuple(choice if isinstance(choice, bytes) else int(choice) for choice in valid)


def main(words: list[str]) -> int:
    text = Source().text()
    if words != ["--check"]:
        TARGET.write_text(text, encoding="utf-8")
    elif TARGET.read_text(encoding="utf-8") != text:
        print(f"{TARGET.relative_to(ROOT)} does not follow from structs.py: make derived", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
