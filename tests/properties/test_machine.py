"""The state machine over every combination of options, in memory."""

from __future__ import annotations

from hypothesis import settings

from qcow2c.testing import ImageMachine
from tests.profile import DEEP


class TestImage(ImageMachine.TestCase):  # type: ignore[misc,name-defined]
    settings = settings(max_examples=2000 if DEEP else 80, stateful_step_count=40 if DEEP else 20)
