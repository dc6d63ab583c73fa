from __future__ import annotations

import os

import pytest

from qcow2c.crypto.splitter import merge, split
from qcow2c.errors import UnsupportedFeature

KEY = bytes.fromhex("000102030405060708090a0b0c0d0e0fa0a1a2a3a4a5a6a7a8a9aaabacadaeaf")
SPLIT = bytes.fromhex(
    "fdd273b17d99933470defa07c5ac58d230672f1a3543607d7702db623ccb2c33"
    "4808b6f17ca320a0ad2d4cf3cd186f53f9e8e759273ca9546187b3aff6f77e64"
    "86aa897f1f9fdb86f4a216ffa34f8ca159c4233428c4777183d4cd8e891bc7c5"
    "ae4da9cdc972857013685283fcb81172ba3dc64a28fae2867b27ab58e1a4caf6"
    "9ebcfe0c9279b3ec1c5f793b0d1eaa1a770f70194bc880ee277c6e4a91965cf4"
)
"""QEMU's vector: sha256, five stripes."""


def test_a_published_vector_is_merged_and_split() -> None:
    assert merge(SPLIT, 32, "sha256") == KEY
    assert split(KEY, "sha256", 5, lambda count: SPLIT[:count]) == SPLIT


@pytest.mark.parametrize("name", ["sha1", "sha256", "sha512", "md5"])
@pytest.mark.parametrize("key_bytes", [16, 24, 32, 48, 64])
def test_what_is_split_is_merged_again(name: str, key_bytes: int) -> None:
    key = os.urandom(key_bytes)
    material = split(key, name, 40)
    assert len(material) == 40 * key_bytes
    assert merge(material, key_bytes, name) == key
    assert merge(bytes((material[0] ^ 1,)) + material[1:], key_bytes, name) != key


def test_a_hash_that_there_is_not_is_refused() -> None:
    with pytest.raises(UnsupportedFeature, match="'nothing'"):
        merge(SPLIT, 32, "nothing")
