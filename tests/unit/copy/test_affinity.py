"""Processors for threads: each has its own share, or all have any."""

from __future__ import annotations

import os

import pytest

from qcow2c.copy import affinity


@pytest.mark.parametrize(("cpus", "threads"), [(8, 3), (2, 2), (64, 16)])
def test_all_processors_are_shared_out(cpus: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cpus)))
    shares = affinity.shares(threads)
    assert len(shares) == threads and set().union(*shares) == set(range(cpus))
    assert sum(map(len, shares)) == cpus and max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("cpus", "threads"), [(8, 1), (2, 3), (1, 2)])
def test_without_a_choice_all_have_any(cpus: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cpus)))
    assert affinity.shares(threads) == [set()] * threads


def test_a_thread_keeps_to_what_it_was_given_and_to_nothing_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[set[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _pid, cpus: kept.append(cpus))
    affinity.keep_to(set())
    affinity.keep_to({3})
    assert kept == [{3}]
