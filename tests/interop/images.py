"""A factory of real images: each recipe runs qemu-img and qemu-io with fixed data in a folder of its own.

The contents are seeded noise, different in each write, so that a read from a wrong place cannot look right.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence

from tests.corpus.make_seeds import SECRET_OBJECT, text
from tests.corpus.patch import (
    EXT_BACKING_FORMAT,
    EXT_UNKNOWN,
    Edit,
    extension,
    extension_area,
    extension_at,
    extensions,
    get,
    header_end,
    put,
    put_u64,
    set_bits,
    unpack_seed,
)
from tests.corpus.patch import field as header_field

from .workshop import IMAGE, KIB, MIB, Build, Recipe, Workshop

# --- edits of real images ------------------------------------------------------------------------------------------


def header_length_104(image: bytearray) -> None:
    """Drop the fields behind byte 104, as older writers do: the extensions move up."""
    old, limit = header_end(image), 1 << get(image, "cluster_bits")
    body = bytes(image[old:limit])
    image[104:limit] = body + bytes(limit - 104 - len(body))
    header_field("header_length", 104)(image)
    if get(image, "backing_file_offset"):
        put_u64(8, get(image, "backing_file_offset") - (old - 104))(image)


def unknown_extension(image: bytearray) -> None:
    """Add an extension that no program knows in front of the others."""
    old = [extension(kind, data) for _, kind, data in extensions(image)]
    extension_area(extension(EXT_UNKNOWN, b"nobody knows"), *old)(image)


def unknown_header_fields(image: bytearray) -> None:
    """Make the header 16 bytes longer by fields that no program knows; they hold zeros, which may be ignored."""
    items = [extension(kind, data) for _, kind, data in extensions(image)]
    header_field("header_length", 128)(image)
    image[112:128] = bytes(16)
    extension_area(*items)(image)


def no_backing_format(image: bytearray) -> None:
    """Turn the backing format into an unknown extension: the reader has to probe."""
    at = extension_at(image, EXT_BACKING_FORMAT)
    put(at - 8, struct.pack(">I", EXT_UNKNOWN))(image)


# --- recipes -------------------------------------------------------------------------------------------------------


def plain(options: str, size: int, grain: int, writes: int = 12) -> Build:
    def build(shop: Workshop) -> None:
        shop.create(size, options)
        shop.io(*shop.scattered(size, grain, writes))

    return build


def compressed(options: str, size: int, *, then: bool = False) -> Build:
    """Convert with -c; afterwards, if asked, overwrite some clusters and compress into others."""

    def build(shop: Workshop) -> None:
        pieces = [(at, text(length, at)) for at, length in ((0, 90_000), (size // 2, 140_000), (size - 70_000, 70_000))]
        shop.raw("source.raw", size, *pieces, (size // 4, shop.noise(70_000)))
        shop.img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, "source.raw", IMAGE)
        (shop.folder / "source.raw").unlink()
        if then:
            shop.io(shop.write(4096, 4096), shop.write(size // 2 + 1024, 8192), "discard 65536 65536")

    return build


def overlay(options: str, size: int, grain: int, backing_size: int, backing: str = "qcow2", *edits: Edit) -> Build:
    """An image over one backing file of another size."""

    def build(shop: Workshop) -> None:
        if backing == "raw":
            tail = max(0, backing_size - 3000)
            shop.raw(
                "base.img",
                backing_size,
                (0, shop.noise(min(backing_size, 50_000))),
                (tail, shop.noise(backing_size - tail)),
            )
        else:
            shop.create(backing_size, "cluster_size=4096", name="base.img")
            shop.io(
                *shop.scattered(backing_size, 4096, 30),
                shop.write(backing_size - 1024, 1024),
                name="base.img",
            )
        shop.create(size, options, "-b", "base.img", "-F", backing)
        shop.io(*shop.scattered(size, grain))
        if edits:
            shop.edit(*edits)

    return build


def huge(shop: Workshop) -> None:
    """8 TiB of virtual size, four L1 entries in use: too long to read as a whole."""
    shop.create(8 << 40, "cluster_size=2M")
    shop.io(*(shop.write(place << 40, 70_144) for place in (0, 3, 7)), f"write -z {5 << 40} 4M")


def chain_of_three(shop: Workshop) -> None:
    """raw <- 64 KiB clusters, shorter <- compressed 4 KiB, longer <- 512 bytes, longest."""
    shop.raw("0.raw", 3 * MIB + 1000, (0, shop.noise(200_000)), (3 * MIB - 5000, shop.noise(6000)))
    shop.create(2 * MIB, "", "-b", "0.raw", "-F", "raw", name="1.qcow2")
    shop.io(*shop.scattered(2 * MIB, 65536), name="1.qcow2")
    shop.create(5 * MIB + 512, "cluster_size=4096", "-b", "1.qcow2", "-F", "qcow2", name="2.qcow2")
    shop.io(shop.write(MIB, 4096, flags="-c"), *shop.scattered(5 * MIB + 512, 4096), name="2.qcow2")
    shop.create(6 * MIB, "cluster_size=512", "-b", "2.qcow2", "-F", "qcow2")
    shop.io(*shop.scattered(6 * MIB, 512), *shop.scattered(2 * MIB, 8192))


def external(options: str, size: int, grain: int) -> Build:
    def build(shop: Workshop) -> None:
        shop.create(size, f"data_file=data.img{options}")
        shop.io(*shop.scattered(size, grain, 18))

    return build


def snapshots(options: str, *, resized: int = 0, packed: bool = False) -> Build:
    """Snapshots "one" and "two" with changed data between; the second after a resize if asked."""

    def build(shop: Workshop) -> None:
        size = 3 * MIB
        shop.create(size, options)
        shop.io(*shop.scattered(size, 65536), *([shop.write(MIB, 65536, flags="-c")] if packed else []))
        shop.img("snapshot", "-c", "one", IMAGE)
        shop.io(*shop.scattered(size, 65536))
        if resized:
            shop.img("resize", "-q", *(["--shrink"] if resized < size else []), IMAGE, str(resized))
        size = resized or size
        shop.io(*shop.scattered(size, 65536))
        shop.img("snapshot", "-c", "two", IMAGE)
        shop.io(*shop.scattered(size, 65536))

    return build


def reverted(shop: Workshop) -> None:
    """A snapshot applied and another deleted: COPIED flags were rebuilt, clusters freed."""
    snapshots("cluster_size=4096")(shop)
    shop.img("snapshot", "-a", "one", IMAGE)
    shop.io(*shop.scattered(3 * MIB, 4096))
    shop.img("snapshot", "-d", "two", IMAGE)


def left_dirty(shop: Workshop) -> None:
    """Lazy refcounts, and the writer killed."""
    shop.create(2 * MIB, "lazy_refcounts=on,cluster_size=4096")
    words = ["qemu-io", "-f", "qcow2", IMAGE, "-c", shop.write(4096, 20_480), "-c", "flush", "-c", "abort"]
    subprocess.run(words, cwd=shop.folder, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def bitmaps(*granularities: str, disabled: bool = False) -> Build:
    def build(shop: Workshop) -> None:
        shop.create(4 * MIB, "cluster_size=4096")
        for granularity in granularities:
            how = ["--disable"] if disabled else []
            shop.img("bitmap", "--add", *how, "-g", granularity, IMAGE, f"bitmap-{granularity}")
        shop.io(*shop.scattered(4 * MIB, 65536))

    return build


def kept(seed: str) -> Build:
    """An image that the corpus keeps, because qemu-img makes its like only where the machine is not too busy."""

    def build(shop: Workshop) -> None:
        unpack_seed(f"{seed}.qcow2", shop.folder).rename(shop.folder / IMAGE)

    return build


def aes(shop: Workshop) -> None:
    shop.create(MIB, "encrypt.format=aes,encrypt.key-secret=s", "--object", SECRET_OBJECT)
    opts = f"driver=qcow2,file.filename={IMAGE},encrypt.format=aes,encrypt.key-secret=s"
    shop.io(shop.write(0, 70_144), opts=opts)


def edited(build: Build, *edits: Edit) -> Build:
    def both(shop: Workshop) -> None:
        build(shop)
        shop.edit(*edits)

    return both


def zero_clusters(options: str) -> Build:
    """Every kind of zero: over data and over nothing, keeping the host cluster and giving it back."""

    def build(shop: Workshop) -> None:
        shop.create(4 * MIB, options)
        shop.io(
            shop.write(0, MIB),
            "write -z 64k 64k",
            "write -z -u 256k 128k",
            "write -z 2M 64k",
            "discard 512k 64k",
            "write -z 100k 1k",
            "write -z -u 3M 512k",
            shop.write(2 * MIB + 4096, 512),
        )

    return build


def name_of(size: int) -> str:
    return f"{size // MIB}m" if size >= MIB else f"{size // KIB}k" if size >= KIB else str(size)


CLUSTERS: Sequence[int] = (512, 4096, 65536, 2 * MIB)
ODD = 512 * 7


def _recipes() -> list[Recipe]:
    recipes = [
        Recipe(
            f"plain-{compat}-{name_of(cluster)}",
            plain(f"compat={compat},cluster_size={cluster}", 3 * cluster + 5 * MIB + ODD, cluster, 18),
        )
        for compat in ("0.10", "1.1")
        for cluster in CLUSTERS
    ]
    recipes += [
        Recipe(
            f"refcount-{bits}-{name_of(cluster)}",
            plain(f"refcount_bits={bits},cluster_size={cluster}", 3 * MIB, cluster),
        )
        for bits in (1, 2, 4, 8, 16, 32, 64)
        for cluster in (512, 65536)
    ]
    recipes += [
        Recipe(
            f"preallocation-{mode}-{compat}-{name_of(cluster)}",
            plain(f"preallocation={mode},compat={compat},cluster_size={cluster}", 2 * MIB + 512, cluster),
        )
        for mode in ("off", "metadata", "falloc", "full")
        for compat, cluster in (("1.1", 65536), ("0.10", 4096))
    ]
    recipes += [
        Recipe(
            f"compressed-{kind}-{name_of(cluster)}{'-overwritten' if then else ''}",
            compressed(f"compression_type={kind},cluster_size={cluster}", 4 * MIB + ODD, then=then),
        )
        for kind in ("zlib", "zstd")
        for cluster in CLUSTERS
        for then in (False, True)
    ]
    recipes += [
        Recipe("compressed-v2", compressed("compat=0.10,cluster_size=4096", 4 * MIB, then=True)),
        Recipe("compressed-v2-64k", compressed("compat=0.10", 4 * MIB)),
        Recipe(
            "compressed-extended-l2",
            compressed("extended_l2=on,cluster_size=16384", 4 * MIB + ODD, then=True),
        ),
    ]
    recipes += [
        Recipe(
            f"extended-{name_of(cluster)}-{label}",
            plain(f"extended_l2=on,cluster_size={cluster}", 4 * MIB + ODD, cluster // 32, 60)
            if not backing
            else overlay(f"extended_l2=on,cluster_size={cluster}", 4 * MIB + ODD, cluster // 32, backing),
        )
        for cluster in (16384, 65536, 2 * MIB)
        for label, backing in (
            ("alone", 0),
            ("backing-shorter", 2 * MIB + 512 * 3),
            ("backing-longer", 6 * MIB),
        )
    ]
    recipes += [
        Recipe("extended-over-raw-1000", overlay("extended_l2=on", MIB, 2048, 1000, "raw")),
        Recipe("extended-preallocated", plain("extended_l2=on,preallocation=metadata", 3 * MIB, 2048, 40)),
        Recipe("extended-zeroes", zero_clusters("extended_l2=on,cluster_size=65536")),
        Recipe("zeroes-v3-64k", zero_clusters("")),
        Recipe("zeroes-v3-4k", zero_clusters("cluster_size=4096")),
        Recipe("zeroes-v2", zero_clusters("compat=0.10")),
    ]
    recipes += [
        Recipe("chain-raw-equal", overlay("", 3 * MIB, 65536, 3 * MIB, "raw")),
        Recipe("chain-raw-1000-bytes", overlay("cluster_size=4096", MIB, 4096, 1000, "raw")),
        Recipe("chain-raw-odd", overlay("", 8 * MIB, 65536, 5 * MIB + 512, "raw")),
        Recipe("chain-raw-odd-bytes", overlay("", 8 * MIB, 65536, 5 * MIB + 777, "raw")),
        Recipe("chain-qcow2-shorter", overlay("", 8 * MIB, 65536, 5 * MIB + 512)),
        Recipe("chain-qcow2-longer", overlay("cluster_size=4096", 2 * MIB + 512, 4096, 5 * MIB + 512)),
        Recipe("chain-v2-with-extensions", overlay("compat=0.10", 8 * MIB, 65536, 5 * MIB + 512)),
        Recipe("chain-v2-512", overlay("compat=0.10,cluster_size=512", 3 * MIB, 512, 2 * MIB)),
        Recipe("chain-2m", overlay("cluster_size=2M", 9 * MIB, 65536, 5 * MIB + 512)),
        Recipe("chain-of-three", chain_of_three),
        Recipe("chain-qcow2-probed", overlay("", 2 * MIB, 65536, MIB, "qcow2", no_backing_format)),
        Recipe("chain-raw-probed", overlay("", 2 * MIB, 65536, MIB, "raw", no_backing_format)),
    ]
    recipes += [
        Recipe("external", external("", 4 * MIB, 65536)),
        Recipe("external-4k-odd", external(",cluster_size=4096", 4 * MIB + ODD, 4096)),
        Recipe("external-raw", external(",data_file_raw=on", 4 * MIB, 65536)),
        Recipe("external-raw-odd", external(",data_file_raw=on,cluster_size=4096", 4 * MIB + ODD, 4096)),
        Recipe("external-extended", external(",extended_l2=on", 4 * MIB, 2048)),
        Recipe("external-preallocated", external(",preallocation=metadata", 4 * MIB, 65536)),
    ]
    recipes += [
        Recipe("empty-0", plain("", 0, 65536, 0)),
        Recipe("size-512", plain("", 512, 512, 3)),
        Recipe("size-one-cluster-and-sector", plain("", 65536 + 512, 65536)),
        *(
            Recipe(
                f"size-cut-by-{less}",
                edited(plain("cluster_size=4096", MIB, 4096), header_field("size", MIB - less)),
            )
            for less in (1, 511, 513, 4095)
        ),
        Recipe("huge-8t", huge, whole=False),
    ]
    both = ("one", "two")
    recipes += [
        Recipe("snapshots", snapshots(""), both),
        Recipe("snapshots-4k-grown", snapshots("cluster_size=4096", resized=5 * MIB + 512), both),
        Recipe("snapshots-grown-much", snapshots("cluster_size=512", resized=9 * MIB), both),
        Recipe("snapshots-shrunk", snapshots("", resized=MIB + ODD), both),
        Recipe("snapshots-v2", snapshots("compat=0.10"), both),
        Recipe("snapshots-compressed", snapshots("compression_type=zstd", packed=True), both),
        Recipe("snapshots-extended", snapshots("extended_l2=on", resized=4 * MIB), both),
        Recipe("snapshots-refcount-2", snapshots("refcount_bits=2"), both),
        Recipe("snapshots-refcount-64", snapshots("refcount_bits=64"), both),
        Recipe("snapshots-reverted", reverted, ("one",)),
    ]
    small = plain("cluster_size=4096", 2 * MIB, 4096)
    recipes += [
        Recipe("left-dirty", left_dirty),
        Recipe("corrupt-bit", edited(small, set_bits("incompatible", 2))),
        Recipe("unknown-compatible", edited(small, set_bits("compatible", 1 << 50 | 1 << 7))),
        Recipe("unknown-autoclear", edited(small, set_bits("autoclear", 1 << 50 | 1 << 7))),
        Recipe("header-length-104", edited(small, header_length_104)),
        Recipe("header-length-104-overlay", overlay("", 2 * MIB, 65536, MIB, "qcow2", header_length_104)),
        Recipe("header-length-128", edited(small, unknown_header_fields)),
        Recipe("unknown-extension", edited(small, unknown_extension)),
        Recipe("unknown-extension-overlay", overlay("", 2 * MIB, 65536, MIB, "qcow2", unknown_extension)),
        Recipe("lazy-refcounts", plain("lazy_refcounts=on", 2 * MIB, 65536)),
        Recipe("bitmaps", bitmaps("512", "64k", "2G")),
        Recipe("bitmaps-disabled", bitmaps("4096", disabled=True)),
        Recipe("bitmaps-autoclear-off", edited(bitmaps("64k"), header_field("autoclear", 0))),
        Recipe("luks", kept("luks"), sealed="luks"),
        Recipe("luks-serpent", kept("luks-serpent"), sealed="luks"),
        Recipe("aes", aes, sealed="aes"),
    ]
    return recipes


RECIPES: list[Recipe] = _recipes()
BY_NAME: dict[str, Recipe] = {recipe.name: recipe for recipe in RECIPES}

ONE_OF_EACH = (
    "plain-0.10-512", "refcount-1-512", "refcount-64-512", "preallocation-full-0.10-4k",
    "compressed-zlib-512-overwritten", "compressed-zstd-2m-overwritten", "compressed-v2", "compressed-extended-l2",
    "extended-64k-backing-shorter", "extended-preallocated", "extended-zeroes", "zeroes-v2", "chain-v2-512",
    "chain-of-three", "external-4k-odd", "external-raw-odd", "empty-0", "size-cut-by-511", "huge-8t",
    "snapshots-4k-grown", "snapshots-shrunk", "snapshots-v2", "snapshots-compressed", "snapshots-extended",
    "snapshots-refcount-2", "snapshots-reverted", "left-dirty", "unknown-compatible", "header-length-104-overlay",
    "unknown-extension-overlay", "bitmaps", "bitmaps-autoclear-off", "aes",
)  # fmt: skip
"""An image of each sort, for what need not be proved of every one."""
