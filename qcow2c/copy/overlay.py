"""A new overlay that holds what differs between two disks: whole clusters, built in one pass."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Unpack

from qcow2c.builder.image_builder import ImageBuilder
from qcow2c.builder.options import COMPRESSION_TYPES, CreateOptions, NewImageOptions, require_known
from qcow2c.builder.plan import l1_entries_of
from qcow2c.constants import Version
from qcow2c.copy.plan import PlannedDisk
from qcow2c.copy.zero_detection import data_ranges
from qcow2c.disk.apart import require_apart
from qcow2c.disk.differences import Difference, differences
from qcow2c.disk.disk import Disk
from qcow2c.errors import UsageError
from qcow2c.format import codecs
from qcow2c.storage.locks import Use
from qcow2c.storage.new_file import complete_file
from qcow2c.storage.store import Progress
from qcow2c.storage.zeros import zeros

_READ_BYTES = 2 << 20
"""Bytes that are read at a time: whole clusters of any size."""


def write_overlay(
    before: Disk,
    after: Disk,
    target: str | os.PathLike[str] | Any,
    *,
    exact: bool = True,
    compress: bool = False,
    compression_level: int | None = None,
    progress: Progress | None = None,
    **create: Unpack[NewImageOptions],
) -> None:
    """Write a qcow2 image that shows the later disk over a backing file that shows the earlier one.

    `create` are options of the new image, with `backing_file` and `backing_fmt`. The target has its name, or its magic
    value, only when it is complete and durable. Raises UsageError, ImageLocked for a target that is read, StoreError,
    and as `differences`.
    """
    found = differences(before, after, exact=exact, progress=progress)
    write_differences(found, [before, after], target, compress=compress, compression_level=compression_level, **create)


def write_differences(
    found: Iterator[Difference],
    disks: Sequence[Disk],
    target: str | os.PathLike[str] | Any,
    *,
    compress: bool = False,
    compression_level: int | None = None,
    **create: Unpack[NewImageOptions],
) -> None:
    """Write a qcow2 image that holds ranges of the last of some disks, which are read, in whole clusters.

    The rest is as in `write_overlay`.
    """
    after = disks[-1]
    require_known(create, "preallocation", "data_file_raw")
    options = CreateOptions(after.size, **create)
    options.validate()
    if options.backing_file is None or options.data_file is not None:
        raise UsageError("an overlay has a backing file, and no data file")
    l1_entries_of(options.geometry, options.disk_size)
    if compression_level is not None and not compress:
        raise UsageError("a compression level is of no use without compression")
    packer = None
    if compress:
        packer = codecs.compressor(COMPRESSION_TYPES[options.compression_type], compression_level)
    require_apart(target, backing_file=options.backing_file, backing_format=options.backing_fmt)
    for disk in disks:
        PlannedDisk(disk, 0).require_other(target)
    with complete_file(target, Use.WRITABLE_IMAGE, hints=options.hints) as store:
        builder = ImageBuilder(store, options)
        _OverlayBuild(builder, after, packer).take(found)
        builder.finish()


class _OverlayBuild:
    """Differences on their way to an image that is built."""

    def __init__(self, builder: ImageBuilder, disk: Disk, compress: codecs.Compressor | None) -> None:
        self._builder = builder
        self._disk = disk
        self._compress = compress
        self._size = builder.geometry.cluster_size
        self._done = 0
        """Up to where clusters have been decided."""

    def take(self, found: Iterator[Difference]) -> None:
        for one in found:
            if not one.zero:
                self._copy(one.start, one.end)
                continue
            # Whole clusters of zeros need not be read; the disk may end within one.
            first = -(-one.start // self._size) * self._size
            last = one.end if one.end == self._disk.size else one.end // self._size * self._size
            if first < last:
                self._copy(one.start, first)
                self._zero(first, last)
                self._copy(last, one.end)
            else:
                self._copy(one.start, one.end)

    def _copy(self, start: int, end: int) -> None:
        """Copy the clusters that hold a range, but for those that have been decided."""
        if start == end:
            return
        start = max(self._done, start // self._size * self._size)
        end = min(self._disk.size, -(-end // self._size) * self._size)
        for at in range(start, end, _READ_BYTES):
            data = bytearray(min(_READ_BYTES, end - at))
            self._disk.read_into(memoryview(data), at)
            self._place(at, data)
        self._done = max(self._done, end)

    def _place(self, start: int, data: bytearray) -> None:
        done = 0
        whole = data.ljust(-(-len(data) // self._size) * self._size, b"\0")
        for first, last in [*data_ranges(memoryview(whole), self._size), (len(whole), len(whole))]:
            if first > done:
                self._zero(start + done, start + min(first, len(data)))
            done = last
            if self._compress is None and first < last:
                self._builder.add_data(start + first, memoryview(bytes(data[first:last])))
                continue
            for at in range(first, last, self._size):
                cluster = bytes(whole[at : at + self._size])
                packed = self._compress(cluster) if self._compress is not None else cluster
                if len(packed) < self._size:
                    self._builder.add_compressed(start + at, packed)
                else:
                    self._builder.add_data(start + at, memoryview(cluster))

    def _zero(self, start: int, end: int) -> None:
        """Let whole clusters read as zeros."""
        if self._builder.options.version >= Version.V3:
            self._builder.add_zeros(start, end - start)
        else:
            for at in range(start, end, _READ_BYTES):
                self._builder.add_data(at, zeros(min(_READ_BYTES, end - at)))
        self._done = end
