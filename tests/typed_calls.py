"""Calls that mypy must refuse: `make types` reads this file, where an `ignore` that hides no error is one itself."""

from __future__ import annotations

import qcow2c


def misspelled_options() -> None:
    qcow2c.create("new", 1, cluster_sise=512)  # type: ignore[call-arg]
    qcow2c.convert("old", "new", cluster_sise=512)  # type: ignore[call-arg]
    qcow2c.convert("old", "new", threds=2)  # type: ignore[call-arg]
    qcow2c.export("old", "snapshot", "new", cluster_sise=512)  # type: ignore[call-arg]
    qcow2c.measure("old", cluster_sise=512)  # type: ignore[call-arg]
    qcow2c.amend("old", refcount_bit=1)  # type: ignore[call-arg]
    qcow2c.bitmap.add("old", "name", gates="any")  # type: ignore[call-arg]
    qcow2c.open("old", writable=True)  # type: ignore[call-arg]


def values_of_another_type() -> None:
    qcow2c.create("new", 1, cluster_size="64k")  # type: ignore[arg-type]
    qcow2c.convert("old", "new", cluster_size="64k")  # type: ignore[arg-type]
    qcow2c.amend("old", lazy_refcounts="on")  # type: ignore[arg-type]
    qcow2c.bitmap.clear("old", "name", backing=7.5)  # type: ignore[arg-type]


def what_is_right() -> None:
    qcow2c.create("new", 1, cluster_size=512, backing_file="old", backing_fmt="raw")
    qcow2c.convert("old", "new", output_format="qcow2", cluster_size=512, compressed=True, threads=2)
    qcow2c.bitmap.merge("old", "name", "other", source="third", gate="any")


def what_is_returned() -> tuple[str | None, int, str, bool, list[qcow2c.ImageInfo]]:
    with qcow2c.open("old") as image:
        bitmap: qcow2c.Bitmap = image.bitmaps["name"]
        extent: qcow2c.Extent = next(image.extents(0, length=512))
        snapshot: str = image.snapshots["name"].name
    found: qcow2c.ImageInfo = qcow2c.info("old")
    chain = qcow2c.info("old", backing_chain=True)
    qcow2c.check("old", progress=lambda done, size: print(done / size))
    qcow2c.repair("old", "all", progress=lambda done, size: print(done / size))
    qcow2c.dump("old", progress=lambda done, size: print(done / size))
    print(found.virtual_sise)  # type: ignore[attr-defined]
    image.extents(maximum=1)  # type: ignore[call-arg]
    return found.backing_filename, bitmap.granularity, snapshot, extent.data, chain
