"""Key slots of an image that qemu-img made, and of headers that want to take all time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from qcow2c.crypto.key_slots import OpenedSlot, open_slot, stretched
from qcow2c.crypto.secrets import Secret
from qcow2c.errors import CorruptMetadata, LimitExceeded, Qcow2Error, UnsupportedFeature, UsageError, WrongKey
from qcow2c.format.header import Header
from qcow2c.format.luks import read_luks_header
from qcow2c.storage.sources import Memory
from tests.corpus.make_seeds import SECRET
from tests.corpus.patch import seed_bytes

SLOT_0 = 208
ACTIVE, ITERATIONS, OFFSET, STRIPES = SLOT_0, SLOT_0 + 4, SLOT_0 + 40, SLOT_0 + 44


def opened(image: bytes, secret: str = SECRET) -> OpenedSlot:
    store = Memory(image)
    pointer = Header.load(store).encryption_header
    assert pointer is not None
    return open_slot(store, pointer, read_luks_header(store, pointer), Secret(secret.encode()))


def patched(*changes: tuple[int, bytes]) -> bytes:
    image = bytearray(seed_bytes("luks.qcow2"))
    pointer = Header.load(Memory(bytes(image))).encryption_header
    assert pointer is not None
    for offset, content in changes:
        image[pointer.offset + offset : pointer.offset + offset + len(content)] = content
    return bytes(image)


def test_a_passphrase_opens_its_slot() -> None:
    found = opened(patched())
    assert (len(found.master_key), found.slot) == (16, 0)
    assert repr(found) == "<OpenedSlot 0>"


def test_a_wrong_passphrase_is_an_error_of_its_own_that_does_not_show_it() -> None:
    with pytest.raises(WrongKey) as found:
        opened(patched(), "guessed")
    assert "guessed" not in str(found.value) and "none of 1" in str(found.value)


def test_pbkdf2_is_as_published() -> None:
    """RFC 6070."""
    found = stretched("sha1", Secret(b"password"), b"salt", 4096, 20)
    assert found.hex() == "4b007901b765489abead49d926f721d065a429c1"
    with pytest.raises(UnsupportedFeature):
        stretched("nothing", Secret(b""), b"", 1, 1)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ([(ITERATIONS, b"\xff" * 4)], LimitExceeded, "4294967295 iterations"),
        ([(ITERATIONS, b"\0" * 4)], CorruptMetadata, "no iterations"),
        ([(164, b"\xff" * 4)], LimitExceeded, "master key digest: 4294967295"),
        ([(164, b"\0" * 4)], CorruptMetadata, "no iterations"),
        ([(STRIPES, b"\xff" * 4)], CorruptMetadata, "4294967295 stripes"),
        ([(OFFSET, b"\xff" * 4)], CorruptMetadata, "leaves the encryption header"),
        ([(OFFSET, b"\0" * 4)], CorruptMetadata, "over the LUKS header"),
        ([(OFFSET + 48, b"\0\0\0\x08")], CorruptMetadata, "over that of key slot 0"),
        ([(ACTIVE, b"\xff" * 4)], CorruptMetadata, "neither active nor free"),
        ([(108, b"\xff" * 4)], UnsupportedFeature, "4294967295 bytes"),
        ([(104, b"\0" * 4)], CorruptMetadata, "leaves the encryption header"),
        ([(ACTIVE, b"\0\0\xde\xad")], WrongKey, "none of 0"),
    ],
)
def test_a_hostile_header_is_refused_at_once(
    changes: list[tuple[int, bytes]], error: type[Qcow2Error], words: str
) -> None:
    start = time.process_time()
    with pytest.raises(error, match=words):
        opened(patched(*changes))
    assert time.process_time() - start < 1


def test_eight_slots_may_not_take_hours_together() -> None:
    many = (1 << 25).to_bytes(4, "big")
    changes = [(SLOT_0 + 48 * slot, b"\x00\xac\x71\xf3" + many) for slot in range(8)]
    with pytest.raises(LimitExceeded, match="all key slots"):
        opened(patched(*changes))


def test_key_material_that_the_file_does_not_have_is_missed() -> None:
    image = patched()
    cut = 8192 + 20000
    with pytest.raises(CorruptMetadata, match="cut short"):
        opened(image[:cut] if len(image) > cut else image)


def test_a_passphrase_is_no_disk() -> None:
    with pytest.raises(UsageError, match="at most"):
        stretched("sha1", Secret(bytes(1 << 20)), b"", 1, 20)


def test_other_ciphers_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hashlib.pbkdf2_hmac", _never)
    with pytest.raises(UnsupportedFeature, match="serpent"):
        opened(seed_bytes("luks-serpent.qcow2"))


_never: Callable[..., bytes] = lambda *_: pytest.fail("it was stretched")  # noqa: E731
