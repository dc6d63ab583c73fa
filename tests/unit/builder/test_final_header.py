"""The header of a new image: with it everything else is there, and without it the file is no image."""

from __future__ import annotations

from qcow2c.builder.final_header import write_final_header
from qcow2c.structs import MAGIC
from tests.crash.recording import Kind, Recorder, crash_states

HEADER = MAGIC + bytes(range(256)) * 4
BODY = b"b" * 4096


def test_what_has_the_magic_value_after_a_crash_is_complete() -> None:
    recorder = Recorder()
    store = recorder.store(b"")
    store.pwrite(BODY, 4096)
    write_final_header(store, HEADER)
    states = [state.files[0] for state in crash_states(recorder, 1)]
    whole = HEADER.ljust(4096, b"\0") + BODY
    assert {state for state in states if state.startswith(MAGIC)} == {whole}
    assert whole != states[0]
    assert recorder.log[-1].kind is Kind.FLUSH


def test_what_is_not_to_be_durable_waits_for_nothing_and_has_the_same_order() -> None:
    recorder = Recorder()
    write_final_header(recorder.store(b""), HEADER, durable=False)
    body, sector = recorder.log
    assert (body.offset, body.data[: len(HEADER)]) == (0, bytes(len(MAGIC)) + HEADER[len(MAGIC) :])
    assert (sector.offset, sector.data) == (0, HEADER[:512])
