"""Which key belongs to which layer of a chain, and the cipher that it opens."""

from __future__ import annotations

import os
from collections.abc import Mapping

from qcow2c.crypto.guest_cipher import GuestCipher, guest_cipher
from qcow2c.crypto.secrets import Key, OneKey, Secret, secret_of
from qcow2c.format.header import Header
from qcow2c.storage.store import Store


class KeyRing:
    """The keys that a caller gave. `opened` is the cipher of the top layer where that is known already."""

    __slots__ = ("_key", "_opened")

    def __init__(self, key: Key | KeyRing, *, opened: GuestCipher | None = None) -> None:
        self._key: Key = key._key if isinstance(key, KeyRing) else key  # noqa: SLF001 - of the same class
        self._opened: GuestCipher | None = opened
        if isinstance(key, KeyRing) and opened is None:
            self._opened = key._opened  # noqa: SLF001 - as above

    def __repr__(self) -> str:
        return "<KeyRing>"

    def secret(self, name: str, path: str | None = None, depth: int = 0) -> Secret | None:
        """Return the secret of an encrypted layer, None where there is none. Raises UsageError for what is no key."""
        key = self._key
        if isinstance(key, Mapping):
            key = _chosen(key, path, depth)
        return None if key is None else secret_of(key, name)

    def below(self, depth: int) -> KeyRing:
        """Return the keys of the chain that begins so far below the top layer."""
        if not depth:
            return self
        key = self._key
        if isinstance(key, Mapping):
            key = {named - depth if isinstance(named, int) else named: one for named, one in key.items()}
        return KeyRing(key)

    def cipher(self, store: Store, header: Header, depth: int) -> GuestCipher | None:
        """Return the cipher of an encrypted layer, None without a key. Raises as `guest_cipher`."""
        if self._opened is not None and not depth:
            return self._opened
        secret = self.secret(store.name, store.path, depth)
        return None if secret is None else guest_cipher(store, header, secret)


def _chosen(keys: Mapping[str | os.PathLike[str] | int, OneKey], path: str | None, depth: int) -> OneKey | None:
    if depth in keys:
        return keys[depth]
    if path is None:
        return None
    here = os.path.realpath(path)
    for named, key in keys.items():
        if not isinstance(named, int) and os.path.realpath(named) == here:
            return key
    return None
