from __future__ import annotations

from typing import Any

import pytest

import qcow2c
from tests.corpus.make_seeds import SECRET
from tests.corpus.patch import seed_bytes


def nodes(key: str | None = None, name: str = "luks.qcow2") -> list[Any]:
    with qcow2c.dump(seed_bytes(name), ["encryption"], key=key) as dump:
        found: list[Any] = []

        def walk(node: Any) -> None:
            found.append(node)
            for child in node.children:
                walk(child)

        walk(dump.root)
        return found


def test_each_slot_has_its_key_material() -> None:
    found = [node for node in nodes() if node.name == "key_material"]
    assert len(found) == 8
    assert {node.span.length for node in found} == {16 * 4000}
    assert found[0].text.startswith("of key_slot 0, ENABLED") and found[7].text.startswith("of key_slot 7, DISABLED")


@pytest.mark.parametrize(
    ("key", "words"), [(SECRET, "the key opens key_slot 0"), ("guess", "the key opens nothing"), (None, "key material")]
)
def test_a_key_is_said_to_open_its_slot(key: str | None, words: str) -> None:
    luks = next(node for node in nodes(key) if node.name == "luks")
    assert words in luks.text
    assert "guess" not in luks.text and SECRET not in luks.text
    assert ("opens" in luks.text) == (key is not None)


def test_legacy_aes_has_no_header() -> None:
    assert "128 bits" in next(node for node in nodes(name="aes.qcow2") if node.name == "aes").text
