"""Turns: a read of what may go away is an error before and after, and any other read needs none."""

from __future__ import annotations

import pytest

from qcow2c.layers.turn import AT_ONCE, While


def test_it_is_asked_before_and_after_a_read() -> None:
    asked: list[str] = []
    with While(lambda: asked.append("asked")):
        asked.append("read")
    assert asked == ["asked", "read", "asked"]


def test_what_went_away_during_the_read_is_an_error_in_place_of_any_other() -> None:
    gone: list[bool] = []

    def require() -> None:
        if gone:
            raise LookupError("deleted")

    with pytest.raises(LookupError, match="deleted"), While(require):
        gone.append(True)
        raise ValueError("what was read made no sense")
    with pytest.raises(LookupError, match="deleted"), While(require):
        pytest.fail("nothing is read any more")


def test_a_turn_of_nobody_may_be_taken_again() -> None:
    with AT_ONCE, AT_ONCE:
        pass
