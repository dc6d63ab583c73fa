"""compare: output and exit status are those of the real qemu-img on the same two images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

from tests.corpus.patch import Edit, put_u64

from .conftest import Outcome, run_qemu_img
from .images import RECIPES
from .workshop import IMAGE, KIB, MIB, RealImage, Workshop

Run = Callable[..., Outcome]

OPEN = [recipe.name for recipe in RECIPES if not recipe.sealed and recipe.whole]
SEALED = [recipe.name for recipe in RECIPES if recipe.sealed]
SOME = [
    "chain-of-three",
    "chain-qcow2-shorter",
    "compressed-zlib-4k",
    "compressed-zstd-64k-overwritten",
    "extended-64k-backing-shorter",
    "extended-zeroes",
    "external-raw",
    "plain-1.1-4k",
    "preallocation-metadata-1.1-64k",
    "snapshots",
    "zeroes-v3-64k",
]

MOVABLE = [name for name in SOME if not name.startswith("external")]
"""QEMU looks for an external data file in the directory that it was started in."""

pytestmark = pytest.mark.usefixtures("requires_qemu")


def compare(run_ours: Run, folder: Path, *words: str) -> Outcome:
    """Compare with both programs, demand that they say the same, and return what it is."""
    theirs = run_qemu_img(folder, "compare", *words)
    ours = run_ours(folder, "compare", "--gate=any", *words)
    assert (ours.out, ours.status) == (theirs.out, theirs.status), (words, ours.err, theirs.err)
    assert not ours.err or theirs.err
    return ours


def both_ways(run_ours: Run, folder: Path, one: str, other: str, *words: str) -> list[Outcome]:
    return [compare(run_ours, folder, *words, *pair) for pair in ((one, other), (other, one))]


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path, 11)


@pytest.fixture
def as_raw(image: RealImage) -> Iterator[str]:
    """The name of a raw copy of the image's disk, beside it, and removed in the end."""
    path = image.folder / "compared.raw"
    path.write_bytes(image.guest_data())
    yield path.name
    path.unlink()


@pytest.mark.parametrize("image", OPEN, indirect=True)
def test_an_image_and_its_raw_form(image: RealImage, as_raw: str, run_ours: Run) -> None:
    outcome = compare(run_ours, image.folder, "-f", "qcow2", "-F", "raw", IMAGE, as_raw)
    assert (outcome.status, outcome.out) == (0, "Images are identical.\n")
    compare(run_ours, image.folder, "-s", "-f", "raw", "-F", "qcow2", as_raw, IMAGE)


COPIES = ("compat=1.1", "cluster_size=4096,extended_l2=off", "preallocation=metadata,extended_l2=on")


@pytest.mark.parametrize("image", OPEN, indirect=True)
def test_strict_comparison_finds_the_same_difference_of_allocation(image: RealImage, run_ours: Run) -> None:
    """With a copy, which is allocated in another way; the copy knows no data file and no backing file."""
    options = COPIES[OPEN.index(image.recipe.name) % len(COPIES)]
    run_qemu_img(image.folder, "convert", "-O", "qcow2", "-o", options, IMAGE, "copy.qcow2")
    for name in (IMAGE, "copy.qcow2"):  # ext4 finds fewer holes of a new file when it is asked again.
        run_qemu_img(image.folder, "map", name)
    compare(run_ours, image.folder, "-s", IMAGE, "copy.qcow2")
    (image.folder / "copy.qcow2").unlink()
    assert compare(run_ours, image.folder, "-s", IMAGE, IMAGE).status == 0


@pytest.mark.parametrize("image", SOME, indirect=True)
def test_one_byte_is_found_wherever_it_is(image: RealImage, as_raw: str, run_ours: Run) -> None:
    path, data = image.folder / as_raw, image.guest_data()
    places = [0, 1, 511, 512, 65535, 65536, len(data) // 2, 2 * MIB - 1, 2 * MIB, len(data) - 512, len(data) - 1]
    for at in places:
        changed = bytearray(data)
        changed[at] ^= 1
        path.write_bytes(changed)
        for outcome in both_ways(run_ours, image.folder, as_raw, IMAGE):
            assert outcome.out == f"Content mismatch at offset {at & ~511}!\n"


@pytest.mark.parametrize(("one", "other"), [pair for pair in product(MOVABLE, MOVABLE) if pair[0] < pair[1]])
def test_images_that_have_nothing_in_common(
    one: str, other: str, made: Callable[[str], RealImage], run_ours: Run
) -> None:
    first, second = made(one), made(other)
    second_name = f"../{second.folder.name}/{IMAGE}"
    for words in ((), ("-s",)):
        compare(run_ours, first.folder, *words, IMAGE, second_name)


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 511, 512, 1000, 4096, 65536, 65537, 2 * MIB + 100, 5 * MIB + 777])
@pytest.mark.parametrize("kind", ["raw", "qcow2", "qcow2-4k"])
def test_sizes_that_differ(length: int, kind: str, shop: Workshop, run_ours: Run) -> None:
    """Against one of 5 MiB and a bit: with zeros behind the end, and with something else there."""
    content = shop.noise(length)
    shop.raw("short.raw", length, (0, content))
    size = 5 * MIB + 1024
    shop.raw("zeros.raw", size, (0, content))
    shop.raw("last.raw", size, (0, content), (size - 1, b"x"))
    shop.raw("next.raw", size, (0, content), (length, b"x"))
    names = ["zeros.raw", "last.raw", "next.raw"]
    if kind != "raw":
        for name in names:
            options = "cluster_size=4096" if kind.endswith("4k") else "cluster_size=65536"
            shop.img("convert", "-q", "-f", "raw", "-O", "qcow2", "-o", options, name, name[:-3] + "qcow2")
        names = [name[:-3] + "qcow2" for name in names]
    for name in names:
        image_format = name.rpartition(".")[2]
        for words in ((), ("-s",)):
            compare(run_ours, shop.folder, *words, "-f", "raw", "-F", image_format, "short.raw", name)
            compare(run_ours, shop.folder, *words, "-f", image_format, "-F", "raw", name, "short.raw")
    whole = compare(run_ours, shop.folder, "-f", "raw", "-F", names[0].rpartition(".")[2], "short.raw", names[0])
    assert (whole.status, whole.out[-22:]) == (0, "Images are identical.\n")


# --- backing chains, snapshots, what nobody reads -------------------------------------------------------------------


def test_overlays_of_one_backing_file(shop: Workshop, run_ours: Run) -> None:
    shop.raw("base.raw", 8 * MIB, (0, shop.noise(6 * MIB)))
    for name in ("one.qcow2", "two.qcow2"):
        shop.create(8 * MIB, "", "-b", "base.raw", "-F", "raw", name=name)
    both_ways(run_ours, shop.folder, "one.qcow2", "two.qcow2", "-s")
    shop.io("write -P 7 3M 512", name="one.qcow2")
    assert both_ways(run_ours, shop.folder, "one.qcow2", "two.qcow2")[0].status == 1
    shop.io("write -P 7 3M 512", name="two.qcow2")
    assert both_ways(run_ours, shop.folder, "one.qcow2", "two.qcow2", "-s")[0].status == 0


@pytest.mark.parametrize("below", ["raw", "qcow2"])
@pytest.mark.parametrize("length", [1000, 3 * MIB, 3 * MIB + 512, 5 * MIB])
def test_chains_of_layers_that_end_at_different_places(below: str, length: int, shop: Workshop, run_ours: Run) -> None:
    """What QEMU calls allocated behind the end of a short layer, and at its end, shows in strict mode."""
    if below == "raw":
        shop.raw("base", length, (0, shop.noise(min(length, MIB))))
    else:
        shop.create(length & -512, "", name="base")
        shop.io(shop.write(0, 512), name="base")
    shop.create(4 * MIB, "", "-b", "base", "-F", below, name="middle.qcow2")
    shop.create(6 * MIB, "extended_l2=on", "-b", "middle.qcow2", "-F", "qcow2", name="top.qcow2")
    shop.create(6 * MIB, "", "-b", "base", "-F", below, name="other.qcow2")
    shop.create(6 * MIB, "", name="alone.qcow2")
    names = ["top.qcow2", "other.qcow2", "alone.qcow2"]
    for commands in ((), ("write -P 0 0 1M", "write -P 3 5M 2k"), ("discard 2M 2M",)):
        for name in names:
            if commands:
                shop.io(*commands, name=name)
        for one, other in product(names, names):
            for words in ((), ("-s",)):
                compare(run_ours, shop.folder, *words, one, other)


def test_large_images_in_which_tables_are_read_in_parts(shop: Workshop, run_ours: Run) -> None:
    """QEMU sees one run end with each part: the last one tells two images apart that are otherwise the same."""
    for number, commands in enumerate([(), ("write -z 1G 64k",), ("write -z 0 64k",)]):
        for size, cluster in (("300G", 65536), ("20G", 4096), ("4G", 512)):
            name = f"{cluster}-{number}.qcow2"
            shop.img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", name, size)
            if commands:
                shop.io(*commands, name=name)
    for one, other in product(range(3), range(3)):
        for cluster in (65536, 4096, 512):
            compare(run_ours, shop.folder, "-s", f"{cluster}-{one}.qcow2", f"{cluster}-{other}.qcow2")


def test_empty_images_of_other_cluster_sizes_differ_only_strictly(shop: Workshop, run_ours: Run) -> None:
    for cluster in (512, 4096, 65536, 2 * MIB):
        shop.create(100 * MIB, f"cluster_size={cluster}", name=f"{cluster}.qcow2")
    shop.raw("empty.raw", 100 * MIB)
    names = ["512.qcow2", "4096.qcow2", "65536.qcow2", f"{2 * MIB}.qcow2", "empty.raw"]
    for one, other in product(names, names):
        assert compare(run_ours, shop.folder, one, other).status == 0
        compare(run_ours, shop.folder, "-s", one, other)


def test_the_active_state_is_compared_not_a_snapshot(shop: Workshop, run_ours: Run) -> None:
    shop.create(MIB)
    shop.io(shop.write(0, 128 * KIB))
    shop.img("convert", "-O", "raw", IMAGE, "before.raw")
    shop.img("snapshot", "-c", "one", IMAGE)
    assert compare(run_ours, shop.folder, "before.raw", IMAGE).status == 0
    shop.io(shop.write(64 * KIB, 512))
    found = compare(run_ours, shop.folder, "before.raw", IMAGE)
    assert (found.status, found.out) == (1, "Content mismatch at offset 65536!\n")


# --- options --------------------------------------------------------------------------------------------------------


def test_quiet_progress_and_cache_modes(shop: Workshop, run_ours: Run) -> None:
    shop.raw("one.raw", MIB, (0, shop.noise(MIB)))
    shop.raw("two.raw", MIB)
    shop.raw("none.raw", 0)
    for words in (("-p",), ("-q",), ("-p", "-q"), ("-U", "-p", "-s")):
        for one, other in product(("one.raw", "two.raw", "none.raw"), repeat=2):
            compare(run_ours, shop.folder, *words, "-f", "raw", "-F", "raw", one, other)
    for mode in ("writeback", "unsafe", "writethrough", "nonsense", ""):
        outcome = compare(run_ours, shop.folder, "-T", mode, "-f", "raw", "-F", "raw", "one.raw", "one.raw")
        assert outcome.status == (0 if mode.startswith(("w", "u")) else 2)


def test_progress_rises_to_a_hundred(shop: Workshop, run_ours: Run) -> None:
    shop.raw("one.raw", 64 * MIB, (0, shop.noise(64 * MIB)))
    (shop.folder / "two.raw").write_bytes((shop.folder / "one.raw").read_bytes())
    words = ("compare", "-p", "-f", "raw", "-F", "raw", "one.raw", "two.raw")
    for outcome in (run_ours(shop.folder, *words), run_qemu_img(shop.folder, *words)):
        *steps, last = outcome.out.split("\r")
        assert last == "Images are identical.\n\n"
        assert steps[0] == "    (0.00/100%)" and steps[-1] == "    (100.00/100%)"
        values = [float(step.strip(" (").partition("/")[0]) for step in steps]
        assert values == sorted(values)


# --- errors ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_opened(shop: Workshop, run_ours: Run) -> None:
    shop.create(MIB)
    shop.raw("one.raw", MIB)
    shop.create(MIB, "", "-u", "-b", "gone.qcow2", "-F", "qcow2", name="orphan.qcow2")
    for words in (
        ("missing", IMAGE),
        (IMAGE, "missing"),
        (".", IMAGE),
        ("-f", "qcow2", "one.raw", IMAGE),
        ("-F", "qcow2", IMAGE, "one.raw"),
        ("-f", "nonsense", IMAGE, IMAGE),
        ("-p", IMAGE, "missing"),
        (IMAGE, "orphan.qcow2"),
    ):
        assert compare(run_ours, shop.folder, *words).status == 2
    for words in ((), (IMAGE,), (IMAGE, IMAGE, IMAGE), ("--nonsense", IMAGE, IMAGE)):
        assert compare(run_ours, shop.folder, *words).status == 1


@pytest.mark.parametrize("image", SEALED, indirect=True)
def test_an_encrypted_image_cannot_be_opened(image: RealImage, run_ours: Run) -> None:
    assert compare(run_ours, image.folder, IMAGE, IMAGE).status == 2


def corrupt_l2_offset(image: bytearray) -> None:
    """The second L2 table is at no cluster's beginning."""
    l1_table = int.from_bytes(image[40:48], "big")
    put_u64(l1_table + 8, int.from_bytes(image[l1_table + 8 : l1_table + 16], "big") | 0x200)(image)


def corrupt_compressed(image: bytearray) -> None:
    """The data of the compressed cluster at 3 MiB is overwritten."""
    l1_table = int.from_bytes(image[40:48], "big")
    table = int.from_bytes(image[l1_table + 8 : l1_table + 16], "big") & 0x00FFFFFFFFFFFE00
    entry = int.from_bytes(image[table + 256 * 8 : table + 257 * 8], "big")
    offset = entry & (1 << 58) - 1
    image[offset : offset + 32] = b"\xff" * 32


@pytest.mark.parametrize(
    ("edit", "status", "words"),
    [
        (corrupt_l2_offset, 3, "Sector allocation test failed for image.qcow2"),
        (corrupt_compressed, 4, "Error while reading offset 3145728 of image.qcow2"),
    ],
)
def test_what_cannot_be_read(edit: Edit, status: int, words: str, shop: Workshop, run_ours: Run) -> None:
    """The disk is 4 MiB of 4 KiB clusters, so that there are two L2 tables; the damage is in the second half."""
    shop.raw("disk.raw", 4 * MIB, (0, b"some words, again and again" * 150_000))
    shop.img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4096", "disk.raw", IMAGE)
    shop.edit(edit)
    for outcome in both_ways(run_ours, shop.folder, "disk.raw", IMAGE):
        assert outcome.status == status
        assert words in outcome.err
        assert words in run_qemu_img(shop.folder, "compare", "disk.raw", IMAGE).err
    both_ways(run_ours, shop.folder, "disk.raw", IMAGE, "-p", "-q")
    # What comes before the damage is told; what comes behind it is not.
    for at, expected in ((0, 1), (2 * MIB - 1, 1), (4 * MIB - 1, status)):
        changed = bytearray((shop.folder / "disk.raw").read_bytes())
        changed[at] ^= 1
        (shop.folder / "changed.raw").write_bytes(changed)
        assert both_ways(run_ours, shop.folder, "changed.raw", IMAGE)[0].status == expected
    # In the tail that only one of the disks has, too, after the warning.
    shop.raw("short.raw", 2 * MIB, (0, (shop.folder / "disk.raw").read_bytes()[: 2 * MIB]))
    both_ways(run_ours, shop.folder, "short.raw", IMAGE)
    shop.raw("short.raw", MIB, (0, (shop.folder / "disk.raw").read_bytes()[:MIB]))
    both_ways(run_ours, shop.folder, "short.raw", IMAGE)
