"""The state machine on real files: QEMU writes to the same image in turn, and judges it whenever it is closed."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from qcow2c.image import Image
from qcow2c.testing import Action, ImageMachine, operations
from tests.profile import DEEP

IMAGE, DATA, BACKING = "image.qcow2", "data", "backing"


class AlternatingMachine(ImageMachine):
    """The image is a file; between our own changes qemu-io makes some, of whole sectors."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.target = self.folder / IMAGE

    def create(self) -> None:
        if self.options.backing is not None:
            (self.folder / BACKING).write_bytes(self.options.backing.source().getvalue())
        named: dict[str, Any] = {}
        if self.options.backing is not None:
            named = {"backing_file": BACKING, "backing_fmt": self.options.backing.image_format}
        words = [
            f"{name}={('on' if value else 'off') if isinstance(value, bool) else value}"
            for name, value in {**self.options.options, **named}.items()
        ]
        self.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", ",".join(words), IMAGE, str(self.options.size))

    def open(self, mode: str) -> Image:
        from qcow2c.disk.opening import open_image

        return open_image(self.target, mode)

    def judge(self) -> None:
        self.run("qemu-img", "check", "-f", "qcow2", IMAGE)
        (self.folder / "model").write_bytes(self.model)
        self.run("qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", "model", IMAGE)

    @precondition(lambda self: self._started and self.options.size > 0)
    @rule(data=st.data())
    def let_qemu_write(self, data: st.DataObject) -> None:
        """Let qemu-io make some changes."""
        self.image.close()
        commands = []
        for _ in range(data.draw(st.integers(1, 3))):
            drawn = data.draw(operations(self.options.size, self.options.cluster_size, (Action.WRITE, Action.ZERO)))
            start, end = drawn.offset // 512 * 512, (drawn.offset + drawn.length) // 512 * 512
            if start < end:
                value = drawn.seed % 254 + 1 if drawn.action is Action.WRITE else 0
                commands.append(f"write {f'-P {value}' if value else '-z'} {start} {end - start}")
                self.model[start:end] = bytes([value]) * (end - start)
        if commands:
            self.run("qemu-io", "-f", "qcow2", *[word for command in commands for word in ("-c", command)], IMAGE)
        self.image = self.open("r+")

    def run(self, *words: str) -> None:
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "failed" not in done.stdout, (words, done.stdout, done.stderr)

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self._folder.cleanup()


@pytest.mark.usefixtures("requires_qemu")
def test_qemu_and_qcow2c_write_in_turn() -> None:
    chosen = settings(
        max_examples=500 if DEEP else 20, stateful_step_count=30 if DEEP else 12, deadline=None, database=None
    )
    run_state_machine_as_test(AlternatingMachine, settings=chosen)
