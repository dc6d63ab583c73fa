"""`Geometry`: the sizes that follow from a header, and index arithmetic. Frozen; reads nothing.

Ranges have a type where they leave a module: `errors.Span` is offset and length in a file or on a disk, `ByteRange`
and `ClusterRun` are what lies between a start and an end.
"""

from __future__ import annotations

from functools import cached_property

from qcow2c.constants import ENTRY_BYTES, SECTOR_SIZE, SUBCLUSTERS_PER_CLUSTER, Version
from qcow2c.light import NamedTuple, frozen


class ByteRange(NamedTuple):
    """Bytes from `start` up to, not including, `end`."""

    start: int
    end: int


class ClusterRun(NamedTuple):
    """Adjacent host clusters from `first` up to, not including, `end`."""

    first: int
    end: int


@frozen
class Geometry:
    """Sizes in bytes, counts in entries; `*_bits` are binary logarithms."""

    cluster_bits: int
    refcount_order: int
    extended_l2: bool = False
    external_data: bool = False
    """Guest clusters are in an external data file, so that host offset 0 is valid with the copied bit."""
    version: int = Version.V3

    @cached_property
    def cluster_size(self) -> int:
        return 1 << self.cluster_bits

    @cached_property
    def l2_entry_words(self) -> int:
        """64-bit words of one L2 entry: the descriptor, and the subcluster bitmap of an extended one."""
        return 2 if self.extended_l2 else 1

    @cached_property
    def l2_entry_bytes(self) -> int:
        return self.l2_entry_words * ENTRY_BYTES

    @cached_property
    def has_zero_bit(self) -> bool:
        """Whether an L2 entry's lowest bit means that the cluster reads as zeros."""
        return self.version >= Version.V3 and not self.extended_l2

    @cached_property
    def l2_bits(self) -> int:
        """log2 of the entries of an L2 table."""
        return self.cluster_bits - (4 if self.extended_l2 else 3)

    @cached_property
    def l2_entries(self) -> int:
        return 1 << self.l2_bits

    @cached_property
    def l2_coverage_bits(self) -> int:
        """log2 of the guest bytes that one L2 table maps."""
        return self.cluster_bits + self.l2_bits

    @cached_property
    def subclusters(self) -> int:
        return SUBCLUSTERS_PER_CLUSTER if self.extended_l2 else 1

    @cached_property
    def subcluster_size(self) -> int:
        return self.cluster_size // self.subclusters

    @cached_property
    def refcount_bits(self) -> int:
        return 1 << self.refcount_order

    @cached_property
    def refcount_max(self) -> int:
        return (1 << self.refcount_bits) - 1

    @cached_property
    def refcount_block_bits(self) -> int:
        """log2 of the refcounts in one block."""
        return self.cluster_bits + 3 - self.refcount_order

    @cached_property
    def words_per_cluster(self) -> int:
        """64-bit words in a cluster: entries of one cluster of an L1, refcount or bitmap table."""
        return self.cluster_size // ENTRY_BYTES

    def clusters(self, size: int) -> int:
        """Return the clusters that `size` bytes need."""
        return -(-size >> self.cluster_bits)

    def leaves(self, end: int, file_size: int) -> bool:
        """Return whether bytes up to `end` leave a file by a cluster or more.

        The last cluster of a file may be cut short: what it lacks reads as zeros, as for QEMU.
        """
        return self.clusters(end) > self.clusters(file_size)

    def l1_entries(self, disk_size: int) -> int:
        """Return the L1 entries that a virtual disk needs."""
        return -(-disk_size >> self.l2_coverage_bits)

    def compressed_length(self, host_offset: int, additional_sectors: int) -> int:
        """Return the most bytes that compressed data at `host_offset` can have: to the end of its last sector."""
        return (additional_sectors + 1) * SECTOR_SIZE - host_offset % SECTOR_SIZE
