"""Encryption: ciphers of whole sectors, LUKS key slots, and the secrets that open them.

Owns how guest data is encrypted, by host or by guest offset, how a master key lies in its slots, and how a key of the
caller's is found for a layer. It knows no tables. Never: a secret in a repr, an exception or a log.
May import: format.
Durable order: of key slots alone, in `slot_changes.py`; a crash never leaves an image that no key opens.
numpy at import: bulk_cipher.

The library `cryptography` is imported when a key is used, and not before. What stays in memory: the master key and
what the ciphers made of it, as long as an image is open; Python cannot wipe it.
"""
