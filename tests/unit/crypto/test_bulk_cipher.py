"""The forms over arrays are the simple form: for each cipher, mode and generator, at any place, of any length."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcow2c.crypto.bulk_cipher import BulkCipher
from qcow2c.crypto.cipher_kind import CipherKind
from qcow2c.crypto.sector_cipher import SectorCipher

ALGORITHMS, MODES = ("aes-128", "aes-192", "aes-256"), ("xts", "cbc", "ctr", "ecb")
GENERATORS = (("plain", None), ("plain64", None), ("essiv", "sha256"), ("essiv", "md5"))

sectors = st.one_of(st.integers(0, 1 << 20), st.integers((1 << 32) - 40, (1 << 32) + 4), st.integers(0, (1 << 55) - 64))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(generator=st.sampled_from(GENERATORS), sector=sectors, count=st.integers(1, 40), seed=st.integers(0, 1 << 30))
def test_bulk_is_simple(
    algorithm: str, mode: str, generator: tuple[str, str | None], sector: int, count: int, seed: int
) -> None:
    drawn = random.Random(seed)
    kind = CipherKind(algorithm, mode, *generator)
    key, data = drawn.randbytes(kind.key_bytes), drawn.randbytes(count * 512)
    simple, bulk = SectorCipher(kind, key), BulkCipher(kind, key)
    one, other = bytearray(data), bytearray(data)
    simple.encrypt_simply(memoryview(one), sector)
    bulk.encrypt(memoryview(other), sector)
    assert one == other
    bulk.decrypt(memoryview(one), sector)
    simple.decrypt_simply(memoryview(other), sector)
    assert one == other == data


@pytest.mark.parametrize("mode", MODES)
def test_what_is_longer_than_a_chunk_goes_on_counting(mode: str) -> None:
    kind = CipherKind("aes-128", mode, "plain64")
    key, data = random.Random(1).randbytes(kind.key_bytes), random.Random(2).randbytes((1 << 20) + 1536)
    one, other = bytearray(data), bytearray(data)
    SectorCipher(kind, key).encrypt_simply(memoryview(one), 3)
    BulkCipher(kind, key).encrypt(memoryview(other), 3)
    assert one == other


def test_a_counter_goes_over_its_end() -> None:
    """An essiv vector may end in ones: the counter carries, through all 128 bits."""
    kind = CipherKind("aes-128", "ctr", "plain64")
    key = bytes(16)
    simple, bulk = SectorCipher(kind, key), BulkCipher(kind, key)
    ones = b"\xff" * 16
    simple._iv = lambda _sector: ones
    bulk._ivs = lambda _first, count: np.frombuffer(ones * count, dtype="<u8").reshape(count, 2)
    one, other = bytearray(2048), bytearray(2048)
    simple.encrypt_simply(memoryview(one), 0)
    bulk.encrypt(memoryview(other), 0)
    assert one == other


def test_threads_do_not_disturb_each_other() -> None:
    kind = CipherKind("aes-256", "xts", "plain64")
    bulk = BulkCipher(kind, random.Random(3).randbytes(64))
    data = random.Random(4).randbytes(1 << 20)

    def there_and_back(sector: int) -> bool:
        buffer = bytearray(data)
        bulk.encrypt(memoryview(buffer), sector)
        bulk.decrypt(memoryview(buffer), sector)
        return buffer == data

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(there_and_back, range(24)))
