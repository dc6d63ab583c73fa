"""The simulator finds a writer that breaks the order: each promise broken on purpose must be seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qcow2c.engine import Engine
from qcow2c.storage.medium import Medium
from qcow2c.writer.cache import MetadataCache
from qcow2c.writer.cow import GuestBytes

from .model import DiskModel
from .recording import Event, Kind, Recorder, crash_states
from .scenarios import SCENARIOS
from .test_crash import test_no_crash_loses_what_was_flushed as judge_scenario

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def mapping_before_refcounts(patch: pytest.MonkeyPatch) -> None:
    raising, mapping = MetadataCache._write_what_nothing_names, MetadataCache._write_mapping
    patch.setattr(MetadataCache, "_write_what_nothing_names", mapping)
    patch.setattr(MetadataCache, "_write_mapping", raising)


def no_flush_in(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Return what takes the flushes out of one step of a commit."""
    original = getattr(MetadataCache, name)

    def step(cache: MetadataCache) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Medium, "flush", lambda _medium: None)
            original(cache)

    return lambda patch: patch.setattr(MetadataCache, name, step)


def nothing_is_ever_flushed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Medium, "flush", lambda _medium: None)


def freed_clusters_free_at_once(patch: pytest.MonkeyPatch) -> None:
    def release(cache: MetadataCache, first: int, count: int = 1, **_how: bool) -> None:
        cache.lower_at_once(first, first + count)

    patch.setattr(MetadataCache, "release", release)


def data_file_not_flushed(patch: pytest.MonkeyPatch) -> None:
    original = Medium.flush

    def flush(medium: Medium) -> None:
        if medium.store.name != "<recorded 1>":
            original(medium)

    patch.setattr(Medium, "flush", flush)


def header_before_the_table(patch: pytest.MonkeyPatch) -> None:
    original = MetadataCache._publish_refcounts

    def publish(cache: MetadataCache) -> None:
        cache.header.write()
        original(cache)

    patch.setattr(MetadataCache, "_publish_refcounts", publish)


def copies_left_out(patch: pytest.MonkeyPatch) -> None:
    original = Engine._put

    def put(engine: Engine, pieces: list[GuestBytes], guest_cluster: int, host_offset: int) -> None:
        original(
            engine, [max(pieces, key=lambda piece: isinstance(piece.data, memoryview))], guest_cluster, host_offset
        )

    patch.setattr(Engine, "_put", put)


BROKEN: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "the mapping before refcounts": (mapping_before_refcounts, "4k clusters"),
    "the mapping before its data": (no_flush_in("_write_what_nothing_names"), "64k clusters"),
    "a flush without its end": (no_flush_in("_write_mapping"), "4k clusters"),
    "no flush at all": (nothing_is_ever_flushed, "4k clusters"),
    "freed clusters used at once": (freed_clusters_free_at_once, "freed clusters used again"),
    "freed compressed clusters used at once": (freed_clusters_free_at_once, "compressed clusters rewritten"),
    "the mapping before the data file": (data_file_not_flushed, "data file"),
    "the header before the table": (header_before_the_table, "growing refcount table"),
    "no copy on write": (copies_left_out, "short backing file"),
}


@pytest.mark.parametrize(("breaking", "name"), BROKEN.values(), ids=BROKEN)
def test_a_broken_order_is_found(
    breaking: Callable[[pytest.MonkeyPatch], None], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch)
    with pytest.raises(AssertionError):
        judge_scenario(BY_NAME[name], 1, tmp_path)


def test_states_of_two_writes_are_all_there() -> None:
    recorder = Recorder()
    store = recorder.store(bytes(1024))
    store.pwrite(b"a" * 512, 0)
    store.flush()
    store.pwrite(b"b" * 512, 0)
    store.pwrite(b"c" * 512, 512)
    found = {(state.files[0][:1], state.files[0][512:513]) for state in crash_states(recorder, 1)}
    assert found == {(b"\0", b"\0"), (b"a", b"\0"), (b"b", b"\0"), (b"a", b"c"), (b"b", b"c")}


def test_a_state_is_judged_again_after_a_flush_was_acknowledged() -> None:
    recorder = Recorder()
    store = recorder.store(bytes(512))
    model = DiskModel(bytes(512))
    model.write(0, 0, b"x" * 512)
    store.pwrite(b"x" * 512, 0)
    model.flushed(1)
    problems = [model.problem(state.time, state.files[0]) for state in crash_states(recorder, 1, model.acknowledged)]
    assert any(problems)


def test_stores_lose_writes_independently() -> None:
    recorder = Recorder()
    one, other = recorder.store(b"\0"), recorder.store(b"\0")
    one.pwrite(b"1", 0)
    other.pwrite(b"2", 0)
    one.flush()
    last = [state.files for state in crash_states(recorder, 1) if state.time == 3]
    assert sorted(last) == [(b"1", b"\0"), (b"1", b"2")]


def test_a_torn_write_arrives_in_whole_sectors() -> None:
    recorder = Recorder()
    store = recorder.store(bytes(2048))
    store.pwrite(b"x" * 1024, 256)
    for state in crash_states(recorder, 1):
        for sector in range(4):
            inside = state.files[0][sector * 512 : sector * 512 + 512]
            assert inside in (bytes(512), b"x" * 512, bytes(256) + b"x" * 256, b"x" * 256 + bytes(256))


def test_a_lost_write_leaves_the_file_shorter() -> None:
    recorder = Recorder()
    recorder.store(b"").pwrite(b"y" * 600, 0)
    assert {len(state.files[0]) for state in crash_states(recorder, 1)} == {0, 512, 600}
    assert Event(0, Kind.WRITE, 500, b"z" * 100).sectors == 2


def test_the_model_allows_what_was_flushed_or_written_later() -> None:
    model = DiskModel(b"0" * 1024)
    model.write(1, 0, b"1" * 512)
    model.flushed(2)
    model.write(3, 0, b"2" * 512)
    rest = b"0" * 512
    assert model.problem(1, b"0" * 512 + rest) is None
    assert model.problem(2, b"1" * 512 + rest) is None
    assert model.problem(2, b"0" * 512 + rest) is not None
    assert model.problem(4, b"2" * 512 + rest) is None
    assert model.problem(4, b"1" * 512 + rest) is None
    assert model.problem(4, b"3" * 512 + rest) is not None
    assert model.problem(4, b"1" * 512) is not None
