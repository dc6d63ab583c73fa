"""Ciphers over whole megabytes: what `sector_cipher.py` does sector by sector, in arrays; a property holds them equal.

AES itself is one call over all blocks, as in ECB mode; what makes a mode of it, tweaks, chains and counters, is
computed for all sectors at once. The library releases the interpreter's lock, so that threads share the work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from qcow2c.constants import SECTOR_SIZE
from qcow2c.crypto.cipher_kind import BLOCK, CipherKind, essiv_key
from qcow2c.format.array_types import U64Array

_CHUNK = 1 << 20
"""Bytes at once: what tweaks and results need stays in the processor's cache."""

_WORD = np.dtype("<u8")
_WORDS = SECTOR_SIZE // 8
_BLOCKS = SECTOR_SIZE // BLOCK
_LOW_32 = np.uint64((1 << 32) - 1)
_INDEXES = np.arange(_BLOCKS, dtype=_WORD)
_UP_TO_64 = np.uint64(64) - _INDEXES

_Context = Any
"""A context of the library; it has no name to import that would not import the library."""


class _Scratch(threading.local):
    """What a thread computes in, kept from call to call: fresh memory costs more than the work."""

    def __init__(self) -> None:
        words = _CHUNK // 8
        self.masks = np.empty(words, dtype=_WORD)
        self.work = np.empty(words, dtype=_WORD)
        # The library wants room for a block that it never writes.
        self.result = np.empty(words + 2, dtype=_WORD)


_scratch = _Scratch()


class _Blocks(threading.local):
    """AES of single blocks: a thread makes its contexts once, for they may be used on and on, but by one at a time."""

    def __init__(self, cipher: Any) -> None:
        self.encryption: _Context = cipher.encryptor()
        self.decryption: _Context = cipher.decryptor()


class BulkCipher:
    """A cipher with its key, in arrays. Several threads may use it; buffers are changed in place."""

    def __init__(self, kind: CipherKind, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        def blocks(part: bytes) -> _Blocks:
            return _Blocks(Cipher(algorithms.AES(part), modes.ECB()))

        self._kind = kind
        half = len(key) // 2
        self._data = blocks(key[:half] if kind.mode == "xts" else key)
        self._tweaks = blocks(key[half:]) if kind.mode == "xts" else None
        self._essiv = blocks(essiv_key(kind, key)) if kind.iv_generator == "essiv" else None
        forms: dict[str, tuple[Callable[[U64Array, int], None], Callable[[U64Array, int], None]]] = {
            "xts": (self._xts_encrypt, self._xts_decrypt),
            "cbc": (self._cbc_encrypt, self._cbc_decrypt),
            "ctr": (self._ctr, self._ctr),
            "ecb": (self._ecb_encrypt, self._ecb_decrypt),
        }
        self._encrypt, self._decrypt = forms[kind.mode]

    def encrypt(self, buffer: memoryview, sector: int) -> None:
        """Encrypt whole sectors in place, the first of which has a number."""
        _by_chunk(self._encrypt, buffer, sector)

    def decrypt(self, buffer: memoryview, sector: int) -> None:
        """Undo `encrypt`."""
        _by_chunk(self._decrypt, buffer, sector)

    # --- initialization vectors ---

    def _ivs(self, first: int, count: int) -> U64Array:
        """Return the vectors of sectors as little-endian words, shape (count, 2), dtype uint64."""
        ivs = np.zeros((count, 2), dtype=_WORD)
        ivs[:, 0] = np.arange(first, first + count, dtype=_WORD)
        if self._kind.iv_generator == "plain":
            ivs[:, 0] &= _LOW_32
        return ivs if self._essiv is None else _apply(self._essiv.encryption, ivs)

    # --- XTS ---

    def _xts_encrypt(self, data: U64Array, sector: int) -> None:
        self._xts(self._data.encryption, data, sector)

    def _xts_decrypt(self, data: U64Array, sector: int) -> None:
        self._xts(self._data.decryption, data, sector)

    def _xts(self, context: _Context, data: U64Array, sector: int) -> None:
        masks, work = _scratch.masks[: len(data)], _scratch.work[: len(data)]
        count = len(data) // _WORDS
        assert self._tweaks is not None
        first = _apply(self._tweaks.encryption, self._ivs(sector, count))
        _multiples(first, masks.reshape(count, _BLOCKS, 2), work)
        np.bitwise_xor(data, masks, out=work)
        np.bitwise_xor(_blocks(context, work), masks, out=data)

    # --- CBC ---

    def _cbc_decrypt(self, data: U64Array, sector: int) -> None:
        count = len(data) // _WORDS
        previous = _scratch.masks[: len(data)].reshape(count, _BLOCKS, 2)
        previous[:, 1:] = data.reshape(count, _BLOCKS, 2)[:, :-1]
        previous[:, 0] = self._ivs(sector, count)
        np.bitwise_xor(_blocks(self._data.decryption, data), previous.reshape(-1), out=data)

    def _cbc_encrypt(self, data: U64Array, sector: int) -> None:
        """Encrypt block after block, but of all sectors at once."""
        count = len(data) // _WORDS
        context, blocks = self._data.encryption, data.reshape(count, _BLOCKS, 2)
        chain, work = self._ivs(sector, count), _scratch.work[: count * 2]
        for index in range(_BLOCKS):
            np.bitwise_xor(blocks[:, index], chain, out=work.reshape(count, 2))
            chain = _blocks(context, work).reshape(count, 2)
            blocks[:, index] = chain

    # --- CTR and ECB ---

    def _ctr(self, data: U64Array, sector: int) -> None:
        count = len(data) // _WORDS
        counters = _scratch.work[: len(data)].reshape(count, _BLOCKS, 2)
        first = self._ivs(sector, count).byteswap()  # Counters are big-endian.
        counters[:, :, 1] = first[:, 1, None] + np.arange(_BLOCKS, dtype=_WORD)
        counters[:, :, 0] = first[:, 0, None] + (counters[:, :, 1] < first[:, 1, None])
        np.bitwise_xor(data, _blocks(self._data.encryption, counters.byteswap(inplace=True).reshape(-1)), out=data)

    def _ecb_encrypt(self, data: U64Array, _sector: int) -> None:
        data[:] = _blocks(self._data.encryption, data)

    def _ecb_decrypt(self, data: U64Array, _sector: int) -> None:
        data[:] = _blocks(self._data.decryption, data)


def _by_chunk(form: Callable[[U64Array, int], None], buffer: memoryview, sector: int) -> None:
    for start in range(0, len(buffer), _CHUNK):
        part = buffer[start : start + _CHUNK]
        form(np.frombuffer(part, dtype=_WORD), sector + start // SECTOR_SIZE)


def _blocks(context: _Context, words: U64Array) -> U64Array:
    """Return AES of consecutive blocks, in scratch memory that the next call uses again."""
    result = _scratch.result
    context.update_into(words.view(np.uint8), result.view(np.uint8)[: words.nbytes + BLOCK - 1])
    return result[: len(words)]


def _apply(context: _Context, vectors: U64Array) -> U64Array:
    """Return AES of vectors, as an array of its own."""
    return np.frombuffer(context.update(vectors.tobytes()), dtype=_WORD).reshape(vectors.shape)


def _multiples(first: U64Array, out: U64Array, work: U64Array) -> None:
    """Fill `out`, shape (sectors, 32, 2), with the tweaks of all blocks: `first` times x to the block's index.

    Both words move up by the index; what leaves the high one comes back times x^7 + x^2 + x + 1. All is computed in
    `work`, shape (sectors * 64,), with adjacent words, and `out`, whose words alternate, is written but once.
    """
    shape = len(first), _BLOCKS
    half = len(work) // 2
    part, over = work[:half].reshape(shape), work[half:].reshape(shape)
    low, high = first[:, :1], first[:, 1:]
    np.right_shift(high, _UP_TO_64, out=over)  # By 64 it is 0, as numpy has it.
    np.left_shift(low, _INDEXES, out=part)
    np.bitwise_xor(part, over, out=part)
    np.left_shift(over, np.uint64(1), out=over)
    np.bitwise_xor(part, over, out=part)
    np.left_shift(over, np.uint64(1), out=over)
    np.bitwise_xor(part, over, out=part)
    np.left_shift(over, np.uint64(5), out=over)
    np.bitwise_xor(part, over, out=out[:, :, 0])
    np.right_shift(low, _UP_TO_64, out=over)
    np.left_shift(high, _INDEXES, out=part)
    np.bitwise_or(part, over, out=out[:, :, 1])
