"""Messages of NBD: what is too short or too long is a protocol error, never another one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcow2c.serve import nbd_messages as nbd
from qcow2c.serve.nbd_messages import Errno, OptionFields, ProtocolError


@given(st.binary(max_size=40), st.lists(st.sampled_from(["string", "number", "kinds"]), max_size=4))
def test_any_bytes_are_fields_or_a_protocol_error(data: bytes, methods: list[str]) -> None:
    fields = OptionFields(data)
    try:
        for method in methods:
            getattr(fields, method)()
        fields.require_end()
    except ProtocolError:
        return
    assert methods or not data


def test_fields_lie_one_behind_the_other() -> None:
    fields = OptionFields(nbd.text(b"name") + b"\0\0\0\7" + b"\0\2\0\1\0\3")
    assert (fields.string(), fields.number(), fields.kinds()) == (b"name", 7, [1, 3])
    fields.require_end()


def test_a_string_has_a_bound() -> None:
    with pytest.raises(ProtocolError, match="5000 bytes, more than 4096"):
        OptionFields(nbd.text(bytes(5000))).string()


def test_a_message_of_an_error_is_cut_where_the_protocol_has_no_room() -> None:
    assert len(nbd.error_chunk(1, Errno.IO, "x" * 10_000)) < 5000
