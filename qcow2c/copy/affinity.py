"""Which processors threads run on. It starts none."""

from __future__ import annotations

import os


def shares(threads: int) -> list[set[int]]:
    """Return which processors each of some threads may use; nothing where there is no choice.

    Left to itself, the system often keeps several on one: they hand a lock to and fro, which looks like taking turns.
    """
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    if not 1 < threads <= len(cpus):
        return [set()] * threads
    return [set(cpus[number::threads]) for number in range(threads)]


def keep_to(cpus: set[int]) -> None:
    """Let this thread alone run on some processors only; on any where there are none given."""
    if cpus:
        os.sched_setaffinity(0, cpus)
