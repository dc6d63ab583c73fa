"""`Policy`: what a service takes from strangers. The defaults are strict; a TOML file or keywords change them.

It judges nothing: that is done by `inspection.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypedDict

from qcow2c.errors import UsageError

GIB = 1 << 30


class PolicyRules(TypedDict, total=False):
    """The fields of a `Policy`, as keywords."""

    formats: tuple[str, ...]
    allow_backing_file: bool
    allow_data_file: bool
    allow_encryption: bool
    allow_compression: bool
    allow_snapshots: bool
    allow_bitmaps: bool
    allow_unknown_features: bool
    allow_unknown_extensions: bool
    allow_other_formats: bool
    allow_trailing_data: bool
    allow_leaks: bool
    allow_dirty: bool
    max_virtual_bytes: int
    max_file_bytes: int
    max_metadata_bytes: int
    max_expansion: int
    max_seconds: float


@dataclass(frozen=True)
class Policy:
    """What is allowed. Each field is a keyword of `inspect`, and a key of a policy file; docs/untrusted.md has a table.

    Sizes are in bytes. Unknown incompatible features, corrupt metadata, and what two parsers read differently can not
    be allowed.
    """

    formats: tuple[str, ...] = ("qcow2",)
    """By the names of `qemu-img`; only of qcow2 and raw more is known than the name."""
    allow_backing_file: bool = False
    allow_data_file: bool = False
    allow_encryption: bool = False
    allow_compression: bool = True
    allow_snapshots: bool = False
    allow_bitmaps: bool = True
    allow_unknown_features: bool = False
    """Compatible and autoclear ones."""
    allow_unknown_extensions: bool = False
    allow_other_formats: bool = False
    """Signatures of other formats in the file, or at the beginning or the end of the guest's disk."""
    allow_trailing_data: bool = False
    """Behind the image, or in the header's cluster."""
    allow_leaks: bool = False
    allow_dirty: bool = False
    max_virtual_bytes: int = 2048 * GIB
    """Of the disk, and of each snapshot's."""
    max_file_bytes: int = 128 * GIB
    max_metadata_bytes: int = GIB // 2
    max_expansion: int = 200
    """Bytes of guest data for each byte of the file, from 64 MiB of guest data on."""
    max_seconds: float = 60.0

    def __post_init__(self) -> None:
        for known in fields(self):
            _require(known.name, getattr(self, known.name), known.default)

    def changed(self, rules: Mapping[str, Any], source: str = "the policy") -> Policy:
        """Return a policy with other values. Raises UsageError for a rule that is none, or a value of another type."""
        known = {field.name for field in fields(self)}
        for name in rules:
            if name not in known:
                raise UsageError(f"{source}: unknown rule {name!r}, not one of {', '.join(sorted(known))}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in rules.items()
        }
        return replace(self, **values)

    def as_dict(self) -> dict[str, Any]:
        """Return the rules as plain values, as in JSON and TOML."""
        return asdict(self) | {"formats": list(self.formats)}


def _require(name: str, value: Any, default: Any) -> None:
    """Raise UsageError for a value of another type than the default's, or one below zero."""
    if isinstance(default, tuple):
        if not isinstance(value, tuple) or not all(isinstance(word, str) for word in value):
            raise UsageError(f"policy: {name} is {value!r}, not a list of names")
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise UsageError(f"policy: {name} is {value!r}, neither true nor false")
    elif isinstance(value, bool) or not isinstance(value, int if isinstance(default, int) else int | float):
        raise UsageError(f"policy: {name} is {value!r}, not a number")
    elif not value >= 0:
        raise UsageError(f"policy: {name} is {value!r}, below 0")


def read_policy(path: str | os.PathLike[str]) -> Policy:
    """Return the policy of a TOML file, whose keys are the fields of a `Policy`, what it leaves out by default.

    Raises UsageError, OSError.
    """
    import tomllib

    with open(path, "rb") as file:
        try:
            rules = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise UsageError(f"{os.fspath(path)!r} is no TOML file: {exc}") from exc
    return Policy().changed(rules, repr(os.fspath(path)))
