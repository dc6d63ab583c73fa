"""`ImageMachine`: a Hypothesis state machine that writes to an image of any kind, and holds it against a bytearray.

Subclass it to test another writer: override `create` and `open`, which make the image and open it, and `judge`, which
looks at a closed one. Spec of the model: bytes read are bytes last written; zeroed bytes are zero; discarded whole
clusters are zero, but in version 2 over a backing file, where they may also stay as they are.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from qcow2c.image import Image
from qcow2c.ops.check import check
from qcow2c.testing.histories import Action, Operation, operations
from qcow2c.testing.images import ImageOptions, apply, image_options

_CHANGES = (Action.WRITE, Action.WRITE, Action.ZERO, Action.UNMAP, Action.DISCARD)


class ImageMachine(RuleBasedStateMachine):
    """One image in memory. `model` is what its disk must hold; `image` is open for writing between rules."""

    options: ImageOptions
    image: Image

    def __init__(self) -> None:
        super().__init__()
        self.target: Any = BytesIO()
        self.guest_data: Any = BytesIO()
        self.model = bytearray()
        self._started = False

    # --- what another writer overrides ---

    def create(self) -> None:
        """Create the image of `options`."""
        self.options.create(self.target, self.guest_data if self.options.has_data_file else None)

    def open(self, mode: str) -> Image:
        """Open the image with mode "r" or "r+"."""
        return self.options.open(self.target, mode, self.guest_data)

    def judge(self) -> None:
        """Look at the closed image; raise AssertionError where something is wrong."""
        result = check(self.target)
        assert result.exit_code == 0, list(result.messages)[:3]
        with self.open("r") as image:
            assert image.pread(image.size(), 0) == self.model
        if self.options.options.get("data_file_raw"):
            assert self.guest_data.getvalue().ljust(len(self.model), b"\0") == self.model

    # --- rules ---

    @initialize(options=image_options())
    def start(self, options: ImageOptions) -> None:
        self.options = options
        self.create()
        self.model = bytearray(options.content)
        self.image = self.open("r+")
        self._started = True

    @rule(data=st.data())
    def change(self, data: st.DataObject) -> None:
        self._do(data.draw(operations(self.options.size, self.options.cluster_size, _CHANGES)))

    @precondition(lambda self: self._started and not self.options.has_data_file)
    @rule(data=st.data())
    def compress(self, data: st.DataObject) -> None:
        self._do(data.draw(operations(self.options.size, self.options.cluster_size, (Action.COMPRESS,))))

    @rule()
    def flush(self) -> None:
        self.image.flush()

    @rule()
    def reopen(self) -> None:
        self.image.close()
        self.judge()
        self.image = self.open("r+")

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        where = data.draw(operations(self.options.size, self.options.cluster_size, (Action.WRITE,)))
        expected = self.model[where.offset : where.offset + where.length]
        assert self.image.pread(where.length, where.offset) == expected

    def teardown(self) -> None:
        if self._started:
            self.image.close()
            self.judge()

    def _do(self, operation: Operation) -> None:
        apply(self.image, operation)
        end = operation.offset + operation.length
        if operation.action in (Action.WRITE, Action.COMPRESS):
            self.model[operation.offset : end] = operation.data
        elif operation.action in (Action.ZERO, Action.UNMAP):
            self.model[operation.offset : end] = bytes(operation.length)
        elif operation.action is Action.DISCARD:
            self._discarded(*operation.zeroed(self.options.cluster_size, self.options.size))

    def _discarded(self, first: int, end: int) -> None:
        if self.options.hides_backing:
            self.model[first:end] = bytes(end - first)
            return
        size = self.options.cluster_size
        for start in range(first, end, size):
            found = self.image.pread(min(size, end - start), start)
            assert found in (bytes(len(found)), self.model[start : start + len(found)])
            self.model[start : start + len(found)] = found
