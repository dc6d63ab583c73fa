"""`inspect`: one verdict on a file from a stranger, `accept`, `reject` or `unsure`, with every reason.

The file is read, never written, and no other is opened. What is judged is in `forensic/inspection.py`, what is allowed
in `forensic/policy.py`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from qcow2c.errors import UsageError
from qcow2c.forensic.inspection import look
from qcow2c.forensic.isolation import MEMORY_BYTES, look_apart
from qcow2c.forensic.policy import Policy, read_policy
from qcow2c.forensic.verdicts import Inspection, Reason, Verdict
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import Source, Store, opened

if TYPE_CHECKING:
    from typing import Unpack

    from qcow2c.forensic.policy import PolicyRules

__all__ = ["Inspection", "Policy", "Reason", "Verdict", "inspect"]


def inspect(
    source: Source | Store,
    *,
    policy: Policy | str | os.PathLike[str] | None = None,
    image_format: str | None = None,
    share: bool = False,
    isolated: bool = False,
    memory_bytes: int = MEMORY_BYTES,
    **rules: Unpack[PolicyRules],
) -> Inspection:
    """Return the verdict on a file of any kind, with its reasons.

    `policy` is a `Policy` or the path of a TOML file, the strict default for None; further keywords change its rules.
    `image_format` is what the file is said to be. `isolated=True` looks at it in a process of its own, with no more
    than `memory_bytes` of memory, and no more time than the policy has: the source is then a path, or the descriptor
    of a file. Raises StoreError where the file cannot be read, ImageLocked, UsageError.
    """
    chosen = policy if isinstance(policy, Policy) else Policy() if policy is None else read_policy(policy)
    chosen = chosen.changed(rules) if rules else chosen
    use = Use.of_reader(share=share)
    if not isolated:
        with opened(source, use) as store:
            return look(store, chosen, image_format)
    if isinstance(source, int):
        with opened(source, use) as store:
            return look_apart(source, store.name, chosen, image_format, memory_bytes)
    if not isinstance(source, str | os.PathLike):
        raise UsageError(f"isolated=True takes a path or a descriptor, not {type(source).__name__}")
    with opened(source, use) as store:
        if store.path is None:
            raise UsageError(f"isolated=True takes a file, not {store.name!r}")
        descriptor = os.open(store.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return look_apart(descriptor, store.name, chosen, image_format, memory_bytes)
        finally:
            os.close(descriptor)
