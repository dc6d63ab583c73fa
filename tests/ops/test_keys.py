"""Key slots of images that are made here, changed, and opened again; legacy AES has none."""

from __future__ import annotations

from pathlib import Path

import pytest

import qcow2c
from qcow2c.errors import MissingKey, UsageError, WrongKey

SIZE = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "image.qcow2"
    qcow2c.create(path, SIZE, encryption="luks", key="one", cipher="aes-128", iter_time_ms=1)
    with qcow2c.open(path, "r+", key="one") as image:
        image.pwrite(b"data" * 1000, 5)
    return path


def reads(path: Path, key: str) -> bool:
    try:
        with qcow2c.open(path, key=key) as image:
            return image.pread(4000, 5) == b"data" * 1000
    except WrongKey:
        return False


def test_slots_are_told(path: Path) -> None:
    found = qcow2c.key_slots(path)
    assert (found.cipher, found.hash, found.opened) == ("aes-128-xts-plain64", "sha256", None)
    assert [(slot.number, slot.active) for slot in found.slots] == [
        (0, True),
        *((number, False) for number in range(1, 8)),
    ]
    assert found.slots[0].iterations >= 1000 and found.slots[1].iterations == 0
    assert qcow2c.key_slots(path, key="one").opened == 0
    with pytest.raises(WrongKey):
        qcow2c.key_slots(path, key="two")


def test_keys_come_and_go(path: Path) -> None:
    assert qcow2c.add_key(path, "one", "two", iter_time_ms=1) == 1
    assert qcow2c.add_key(path, "two", b"three", slot=6, iter_time_ms=1) == 6
    assert all(reads(path, key) for key in ("one", "two", "three"))
    assert qcow2c.change_key(path, "two", "four", iter_time_ms=1) == 2
    assert [reads(path, key) for key in ("one", "two", "three", "four")] == [True, False, True, True]
    assert qcow2c.remove_key(path, slot=0) == (0,)
    assert qcow2c.remove_key(path, key="three") == (6,)
    assert [reads(path, key) for key in ("one", "three", "four")] == [False, False, True]
    assert qcow2c.check(path).exit_code == 0


def test_a_key_goes_from_each_slot_that_it_opens(path: Path) -> None:
    for key in ("two", "one", "one"):
        qcow2c.add_key(path, "one", key, iter_time_ms=1)
    assert qcow2c.remove_key(path, key="one") == (0, 2, 3)
    assert reads(path, "two") and not reads(path, "one")


def test_the_last_key_stays(path: Path) -> None:
    before = path.read_bytes()
    for how in ({"key": "one"}, {"slot": 0}):
        with pytest.raises(UsageError, match="all that is left"):
            qcow2c.remove_key(path, **how)  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert qcow2c.remove_key(path, slot=0, force=True) == (0,)
    assert not reads(path, "one")


def test_what_makes_no_sense_is_refused(path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(UsageError):
        qcow2c.remove_key(path)
    with pytest.raises(UsageError):
        qcow2c.remove_key(path, key="one", slot=0)
    with pytest.raises(UsageError, match="not in use"):
        qcow2c.remove_key(path, slot=3)
    with pytest.raises(UsageError, match="greater than zero"):
        qcow2c.add_key(path, "one", "two", iter_time_ms=0)
    with pytest.raises(WrongKey):
        qcow2c.add_key(path, "guess", "two")
    with pytest.raises(WrongKey):
        qcow2c.change_key(path, "guess", "two")
    with pytest.raises(WrongKey):
        qcow2c.remove_key(path, key="guess")
    assert path.read_bytes() == before
    qcow2c.create(tmp_path / "plain.qcow2", SIZE)
    qcow2c.create(tmp_path / "aes.qcow2", SIZE, encryption="aes", key="k")
    for name in ("plain", "aes"):
        with pytest.raises(UsageError, match="no key slots"):
            qcow2c.key_slots(tmp_path / f"{name}.qcow2")


@pytest.mark.parametrize(
    "options",
    [
        {}, {"cluster_size": 512}, {"cluster_size": 2 << 20}, {"extended_l2": True}, {"compat": "0.10"},
        {"preallocation": "metadata"}, {"preallocation": "full"}, {"data_file": "x", "data_file_raw": True},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["luks", "aes"])
def test_a_new_image_is_empty_clean_and_closed_without_its_key(kind: str, options: dict[str, object]) -> None:
    data, outside = bytearray(), bytearray()
    more: dict[str, object] = {"iter_time_ms": 1, "cipher": "aes-128"} if kind == "luks" else {}
    if "data_file" in options:
        more["guest_data"] = outside
    qcow2c.create(data, SIZE, encryption=kind, key="one", **more, **options)  # type: ignore[arg-type]
    assert qcow2c.check(bytes(data)).exit_code == 0
    given = {"data_file": outside} if "data_file" in options else {}
    with qcow2c.open(data, "r+", key="one", **given) as image:  # type: ignore[arg-type]
        assert image.pread(SIZE, 0) == bytes(SIZE)
        image.pwrite(b"guest" * 20_000, 3)
    with qcow2c.open(data, key="one", **given) as image:  # type: ignore[arg-type]
        assert image.pread(SIZE, 0) == (bytes(3) + b"guest" * 20_000).ljust(SIZE, b"\0")
    with qcow2c.open(data, **given) as image, pytest.raises(MissingKey):  # type: ignore[arg-type]
        image.pread(1, 0)
    assert b"guestguest" not in data and b"guestguest" not in outside


def test_encryption_is_asked_for_as_a_whole() -> None:
    with pytest.raises(UsageError, match="give a key"):
        qcow2c.create(bytearray(), SIZE, encryption="luks")
    with pytest.raises(UsageError, match="without encryption"):
        qcow2c.create(bytearray(), SIZE, key="k")
    with pytest.raises(UsageError, match="no choice"):
        qcow2c.create(bytearray(), SIZE, encryption="aes", key="k", cipher="aes-256")


def test_copies_are_encrypted_and_decrypted(tmp_path: Path) -> None:
    raw, image, again = tmp_path / "a.raw", tmp_path / "a.qcow2", tmp_path / "b.raw"
    content = bytes(70_000) + b"text" * 60_000 + bytes(300_000) + b"end" * 1000
    raw.write_bytes(content.ljust(-(-len(content) // 512) * 512, b"\0"))
    for kind in ("luks", "aes"):
        for options in ({}, {"preallocation": "metadata"}, {"cluster_size": 512}):
            wanted = qcow2c.Encryption(kind, "k", "aes-128", iter_time_ms=1)
            qcow2c.convert(raw, image, output_format="qcow2", image_format="raw", encryption=wanted, **options)  # type: ignore[arg-type]
            assert b"texttext" not in image.read_bytes()
            assert qcow2c.check(image).exit_code == 0
            qcow2c.convert(image, again, key="k")
            assert again.read_bytes() == raw.read_bytes()
    with pytest.raises(UsageError, match="Compression and encryption"):
        qcow2c.convert(raw, image, output_format="qcow2", compressed=True, encryption=wanted)
    with pytest.raises(UsageError, match="not supported for file format 'raw'"):
        qcow2c.convert(raw, again, encryption=wanted)
    with pytest.raises(MissingKey):
        qcow2c.convert(image, again)
    measured = qcow2c.measure(image_format="raw", source=raw, output_format="qcow2", encryption=wanted)
    assert measured.required >= wanted.header_bytes
