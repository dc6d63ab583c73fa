"""Progress as qemu-img draws it: from 0 to 100, in steps, and none at all unless it is wanted."""

from __future__ import annotations

from itertools import pairwise

import pytest

from qcow2c.cli.progress import shown


def drawn(capfdbinary: pytest.CaptureFixture[bytes], *steps: tuple[int, int]) -> list[str]:
    with shown(wanted=True) as report:
        assert report is not None
        for done, size in steps:
            report(done, size)
    return capfdbinary.readouterr().out.decode().split("\r")


def test_it_begins_with_0_and_ends_with_100(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert drawn(capfdbinary) == ["    (0.00/100%)", "    (100.00/100%)", "\n"]


def test_small_steps_are_not_shown(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    found = drawn(capfdbinary, *((done, 10_000) for done in range(0, 10_001, 10)))
    percent = [float(step.strip(" ()").split("/")[0]) for step in found[:-1]]
    assert percent == sorted(percent) and percent[-1] == 100
    assert all(later - earlier > 1 for earlier, later in pairwise(percent[:-1]))


def test_nothing_to_do_is_done(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert drawn(capfdbinary, (0, 0))[1] == "    (100.00/100%)"


def test_what_ends_early_ends_its_line(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with pytest.raises(ZeroDivisionError), shown(wanted=True):
        raise ZeroDivisionError
    assert capfdbinary.readouterr().out.endswith(b"\n")


def test_unwanted_there_is_none(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with shown(wanted=False) as report:
        assert report is None
    assert capfdbinary.readouterr().out == b""
