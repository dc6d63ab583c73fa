"""Strategies of whole images: the options of `create` in every combination that is valid, and images with contents."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from qcow2c.builder.options import CreateOptions
from qcow2c.constants import SECTOR_SIZE, Limit
from qcow2c.disk.opening import open_image
from qcow2c.image import Image
from qcow2c.ops.create import create
from qcow2c.testing.histories import Action, Operation, operations

MAX_CLUSTERS = 64
"""Clusters of a disk at most: what is special about a disk is special about a small one."""


@dataclass(frozen=True)
class Backing:
    """What an image lies on: `image_format` is "raw" or "qcow2"; the content follows from a seed."""

    image_format: str
    size: int
    seed: int

    @property
    def content(self) -> bytes:
        return random.Random(self.seed).randbytes(self.size)

    def source(self) -> BytesIO:
        """Return it as a file object, in its format."""
        if self.image_format == "raw":
            return BytesIO(self.content)
        file = BytesIO()
        create(file, self.size, cluster_size=4096)
        with open_image(file, "r+") as image:
            image.pwrite(self.content, 0)
        return BytesIO(file.getvalue())


@dataclass(frozen=True)
class ImageOptions:
    """A valid combination of options of `create`, and what the image lies on."""

    size: int
    options: dict[str, Any] = field(default_factory=dict)
    backing: Backing | None = None

    @property
    def cluster_size(self) -> int:
        return int(self.options["cluster_size"])

    @property
    def has_data_file(self) -> bool:
        return "data_file" in self.options

    @property
    def hides_backing(self) -> bool:
        """Whether what is discarded reads as zeros: version 2 has nothing that would hide a backing file."""
        return self.backing is None or self.options["compat"] != "0.10"

    @property
    def content(self) -> bytes:
        """What the new disk holds."""
        below = b"" if self.backing is None else self.backing.content
        return below[: self.size].ljust(self.size, b"\0")

    def create(self, target: Any, guest_data: Any = None) -> None:
        """Create the image in a path or a file object, with its guest data in another where it has a data file."""
        options = dict(self.options)
        if self.backing is not None:
            options |= {"backing_file": "backing", "backing_fmt": self.backing.image_format}
        create(target, self.size, check_backing=False, guest_data=guest_data, **options)

    def open(self, source: Any, mode: str = "r", guest_data: Any = None) -> Image:
        """Open the image over its backing file."""
        backing = None if self.backing is None else self.backing.source()
        return open_image(source, mode, backing=backing, data_file=guest_data if self.has_data_file else None)


@st.composite
def image_options(draw: DrawFn) -> ImageOptions:
    """Draw a valid combination of options; small clusters and small disks more often than large ones."""
    version_2 = draw(st.integers(0, 4)) == 0
    extended = not version_2 and draw(st.integers(0, 3)) == 0
    bits = Limit.EXTENDED_L2_CLUSTER_BITS if extended else Limit.CLUSTER_BITS
    cluster_bits = draw(st.sampled_from([bits[0], bits[0], 12, 12, 14, 16, bits[-1]]).filter(bits.__contains__))
    cluster_size = 1 << cluster_bits
    options: dict[str, Any] = {"compat": "0.10" if version_2 else "1.1", "cluster_size": cluster_size}
    if extended:
        options["extended_l2"] = True
    if not version_2:
        options["refcount_bits"] = 1 << draw(st.sampled_from(Limit.REFCOUNT_ORDER))
        options["lazy_refcounts"] = draw(st.booleans())
        options["compression_type"] = draw(st.sampled_from(["zlib", "zstd"]))
        if draw(st.integers(0, 4)) == 0:
            options |= {"data_file": "data", "data_file_raw": draw(st.booleans())}
    clusters = min(MAX_CLUSTERS, (8 << 20) // cluster_size)
    sectors = draw(st.integers(0, clusters * cluster_size // SECTOR_SIZE))
    size = sectors * SECTOR_SIZE
    backing = None
    if not options.get("data_file_raw") and draw(st.booleans()):
        backing_size = draw(st.integers(1, 2 * max(1, sectors))) * SECTOR_SIZE
        backing = Backing(
            draw(st.sampled_from(["raw", "qcow2"])), min(backing_size, 2 << 20), draw(st.integers(0, 255))
        )
    if backing is None or extended:
        options["preallocation"] = draw(st.sampled_from(["off", "off", "metadata", "falloc", "full"]))
    found = ImageOptions(size, options, backing)
    CreateOptions(size, **options).validate()
    return found


@st.composite
def images(draw: DrawFn, *, max_operations: int = 8) -> bytes:
    """Draw a valid image that stands alone, as bytes, with contents of every kind that its options allow."""
    options = draw(image_options().filter(lambda found: found.backing is None and not found.has_data_file))
    target = bytearray()
    options.create(target)
    actions = tuple(action for action in Action if action is not Action.REOPEN)
    with options.open(target, "r+") as image:
        for _ in range(draw(st.integers(0, max_operations))):
            apply(image, draw(operations(options.size, options.cluster_size, actions)))
    return bytes(target)


def apply(image: Image, operation: Operation) -> None:
    """Do an operation, but for reopening, to an image."""
    if operation.action is Action.WRITE:
        image.pwrite(operation.data, operation.offset)
    elif operation.action in (Action.ZERO, Action.UNMAP):
        image.write_zeroes(operation.offset, operation.length, unmap=operation.action is Action.UNMAP)
    elif operation.action is Action.DISCARD:
        image.discard(operation.offset, operation.length)
    elif operation.action is Action.COMPRESS:
        image.write_compressed(operation.data, operation.offset)
    elif operation.action is Action.FLUSH:
        image.flush()
