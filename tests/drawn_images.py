"""Images drawn by Hypothesis, with clusters of every kind, and with a few things wrong."""

from __future__ import annotations

from hypothesis import strategies as st

from qcow2c.format import derived
from tests.building import L2_COMPRESSED, L2_COPIED, L2_ZERO, Builder, deflate

EXTENDED_L2 = derived.INCOMPATIBLE_FEATURES["extended_l2"].mask


@st.composite
def images(draw: st.DrawFn) -> Builder:
    """Images with clusters of every kind, snapshots, and a few wrong entries and refcounts."""
    extended = draw(st.booleans())
    builder = Builder(
        1 << 22,
        cluster_bits=14 if extended else draw(st.sampled_from([9, 12])),
        refcount_order=draw(st.integers(2, 6)),
        incompatible=EXTENDED_L2 if extended else 0,
    )
    for step in range(draw(st.integers(0, 12))):
        cluster = draw(st.integers(0, (1 << 22) // builder.cluster_size - 1))
        kind = draw(st.sampled_from(["data", "zero", "compressed", "wild", "again", "snapshot", "gap"]))
        if kind == "data":
            builder.data(cluster, bytes([step]))
        elif kind == "zero":
            builder.entry(cluster, 0 if extended else L2_ZERO, 3 << 32 if extended else 0)
        elif kind == "compressed":
            builder.compressed(cluster, deflate(bytes(builder.cluster_size)), inside=draw(st.integers(0, 500)))
        elif kind == "wild":
            offset = draw(st.integers(0, 200)) * 512
            flags = draw(st.sampled_from([0, L2_COPIED, L2_COMPRESSED, L2_COMPRESSED | L2_COPIED, 1 << 57]))
            # QEMU's check leaves out a compressed entry that has a subcluster bitmap; the walk does not.
            bitmap = 0 if flags & L2_COMPRESSED or not extended else draw(st.sampled_from([0, 1, 1 << 32 | 1]))
            builder.entry(cluster, offset | flags, bitmap)
        elif kind == "again" and builder.l2:
            builder.l1[draw(st.integers(0, len(builder.l1) - 1))] = builder.l1[next(iter(builder.l2))]
        elif kind == "gap":
            builder.end += 300 * builder.cluster_size
        elif kind == "snapshot" and len(builder.snapshots) < 2:
            builder.snapshot(b"s%d" % step, id_str=b"%d" % step)
    for _ in range(draw(st.integers(0, 3))):
        builder.refcounts[draw(st.integers(0, 30))] = draw(st.integers(0, 2))
    return builder
