from __future__ import annotations

import pytest

from qcow2c.crypto.cipher_kind import CipherKind, block_functions, essiv_key, hashed, iv_function, require_cipher
from qcow2c.errors import UnsupportedFeature


def test_the_key_of_xts_is_two_keys() -> None:
    assert [CipherKind(name, "xts", "plain64").key_bytes for name in ("aes-128", "aes-192", "aes-256")] == [32, 48, 64]
    assert CipherKind("aes-192", "cbc", "plain64").key_bytes == 24


def test_plain_counts_in_32_bits_and_plain64_in_64() -> None:
    plain, plain64 = (iv_function(CipherKind("aes-128", "cbc", name), bytes(16)) for name in ("plain", "plain64"))
    assert plain((5 << 32) + 7) == (7).to_bytes(16, "little")
    assert plain64((5 << 32) + 7) == ((5 << 32) + 7).to_bytes(16, "little")


def test_essiv_encrypts_the_number_with_the_hash_of_the_key() -> None:
    kind = CipherKind("aes-128", "cbc", "essiv", "sha256")
    expected = block_functions(hashed("sha256", b"k" * 16))[0]((9).to_bytes(16, "little"))
    assert iv_function(kind, b"k" * 16)(9) == expected


def test_a_hash_whose_length_is_no_key_of_aes_makes_no_essiv() -> None:
    with pytest.raises(UnsupportedFeature, match="20 bytes"):
        essiv_key(CipherKind("aes-128", "cbc", "essiv", "sha1"), bytes(16))


def test_a_hash_that_there_is_not_is_named() -> None:
    with pytest.raises(UnsupportedFeature, match="'whirlpool9'"):
        hashed("whirlpool9", b"")


@pytest.mark.parametrize("name", ["serpent-256", "twofish-128", "cast5-128"])
def test_other_ciphers_are_refused_by_name_in_one_line(name: str) -> None:
    with pytest.raises(UnsupportedFeature, match=name.partition("-")[0]) as found:
        require_cipher(CipherKind(name, "cbc", "plain64"))
    assert "\n" not in str(found.value) and "qemu-img" in str(found.value)
