"""commit against a bytearray: every kind of image above and below, and what it leaves alone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.copy.buffers import Buffers, Closed
from qcow2c.errors import (
    ChainError,
    CorruptData,
    CorruptMetadata,
    GateRefused,
    ImageLocked,
    MissingKey,
    StoreError,
    UnsupportedFeature,
    UsageError,
)
from qcow2c.ops import snapshots
from qcow2c.ops.commit import Committed, commit, commit_chain, open_chain
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import LocalFile
from tests.building import Builder

KIB, MIB = 1 << 10, 1 << 20
SIZE = 3 * MIB


def make(path: Path, size: int | None = SIZE, *, seed: int = 1, below: str = "", **options: Any) -> Path:
    """Make an image, over a file of the same directory, with writes of all sorts at random places."""
    if below:
        options |= {"backing_file": below, "backing_fmt": "raw" if below.endswith("raw") else "qcow2"}
    if options.get("data_file"):
        options["data_file"] = str(path.parent / options["data_file"])
    qcow2c.create(path, size, **options)
    with qcow2c.open(path, "r+", gate="any") as image:
        scribble(image, seed)
    return path


def scribble(image: qcow2c.Image, seed: int) -> None:
    chooser = random.Random(seed)
    cluster, size = image.geometry.cluster_size, image.size()
    for step in range(24):
        unit = chooser.choice((512, 4096, cluster))
        start = chooser.randrange(size // unit) * unit
        length = min(size - start, chooser.choice((512, 5 * 512, cluster, 3 * cluster)))
        if step % 4 == 3:
            image.write_zeroes(start, length, unmap=step % 8 == 3)
        elif step % 6 == 1 and not image.geometry.external_data:
            start -= start % cluster
            image.write_compressed(b"packed! " * (min(cluster, size - start) // 8), start)
        elif step % 7 == 5:
            image.discard(start, length)
        else:
            image.pwrite(chooser.randbytes(length), start)


def raw(path: Path, size: int = SIZE, seed: int = 9) -> Path:
    chooser = random.Random(seed)
    with path.open("wb") as file:
        for at in range(0, size, 300_000):
            file.seek(at)
            file.write(chooser.randbytes(min(size - at, 100_000)))
        file.truncate(size)
    return path


def view(path: Path) -> bytes:
    """Return what a guest sees of a file, raw or qcow2."""
    if path.suffix == ".raw":
        return path.read_bytes()
    with qcow2c.open(path, gate="any") as image:
        return bytes(image.pread(image.size(), 0))


def holds_nothing(path: Path) -> bool:
    with qcow2c.open(path, gate="any") as image:
        return not any(image.layer.l1_table)


def cluster_size_of(path: Path) -> int:
    with qcow2c.open(path, gate="any") as image:
        return image.geometry.cluster_size


def is_clean(path: Path) -> bool:
    return path.suffix == ".raw" or qcow2c.check(path).exit_code == 0


BASES: dict[str, dict[str, Any] | None] = {
    "raw": None,
    "version 3": {},
    "version 2": {"compat": "0.10", "cluster_size": 4096},
    "subclusters": {"extended_l2": True},
    "512 byte clusters": {"cluster_size": 512},
    "2 MiB clusters": {"cluster_size": 2 * MIB},
    "data file": {"data_file": "base.bin"},
    "raw data file": {"data_file": "base.bin", "data_file_raw": True},
}
TOPS: dict[str, dict[str, Any]] = {
    "version 3": {},
    "version 2": {"compat": "0.10"},
    "subclusters": {"extended_l2": True, "cluster_size": 16384},
    "512 byte clusters": {"cluster_size": 512},
    "narrow refcounts": {"cluster_size": 4096, "refcount_bits": 1},
    "lazy refcounts": {"lazy_refcounts": True, "compression_type": "zstd"},
    "data file": {"data_file": "top.bin"},
}


@pytest.mark.parametrize("top", TOPS)
@pytest.mark.parametrize("base", BASES)
def test_the_base_holds_what_the_image_showed_and_the_image_nothing(base: str, top: str, tmp_path: Path) -> None:
    options = BASES[base]
    below = raw(tmp_path / "base.raw") if options is None else make(tmp_path / "base.qcow2", seed=2, **options)
    image = make(tmp_path / "top.qcow2", below=below.name, **TOPS[top])
    before = view(image)
    done = commit(image, gate="any")
    assert done == Committed(str(below), grown=False, emptied=True)
    assert view(below) == before
    assert view(image) == before
    assert holds_nothing(image)
    assert is_clean(below) and is_clean(image)
    assert image.stat().st_size < 100 * KIB + 6 * cluster_size_of(image)
    if top == "data file":
        assert (tmp_path / "top.bin").stat().st_blocks == 0
    with qcow2c.open(image, "r+", gate="any") as opened:
        opened.pwrite(b"goes on" * 512, 4096)
    assert is_clean(image)


def test_a_dropped_image_is_not_touched(tmp_path: Path) -> None:
    below = make(tmp_path / "base.qcow2", seed=2)
    image = make(tmp_path / "top.qcow2", below="base.qcow2")
    before, shown = image.read_bytes(), view(image)
    assert not commit(image, drop=True).emptied
    assert image.read_bytes() == before
    assert view(below) == shown


# --- several layers -------------------------------------------------------------------------------------------------


def chain(folder: Path, *sizes: int) -> list[Path]:
    """Make a raw file and images over each other, of these sizes from below; return them from the top."""
    paths = [raw(folder / "0.raw", sizes[0])]
    for number, size in enumerate(sizes[1:], 1):
        paths.append(make(folder / f"{number}.qcow2", size, seed=number, below=paths[-1].name, cluster_size=4096))
    return paths[::-1]


@pytest.mark.parametrize(
    ("sizes", "depth"),
    [
        ((SIZE,) * 4, 2),
        ((SIZE,) * 4, 3),
        ((SIZE, MIB, MIB // 2, SIZE), 3),
        ((SIZE, SIZE, SIZE // 3, SIZE // 2), 2),
        ((SIZE, SIZE, SIZE // 3, SIZE // 2), 3),
    ],
)
def test_a_layer_further_below_takes_what_all_above_it_decide(
    sizes: tuple[int, ...], depth: int, tmp_path: Path
) -> None:
    paths = chain(tmp_path, *sizes)
    before, files = view(paths[0]), [path.read_bytes() for path in paths]
    tail = view(paths[depth])[len(before) :]
    done = commit(paths[0], base=paths[depth].name)
    assert done == Committed(str(paths[depth]), grown=False, emptied=False)
    assert view(paths[0]) == before
    assert view(paths[depth]) == before + tail
    unchanged = [*range(depth), *range(depth + 1, len(paths))]
    assert [paths[number].read_bytes() for number in unchanged] == [files[number] for number in unchanged]
    assert is_clean(paths[depth])


def test_without_a_name_the_next_layer_takes_it(tmp_path: Path) -> None:
    paths = chain(tmp_path, SIZE, SIZE, SIZE)
    before, bottom = view(paths[0]), paths[2].read_bytes()
    commit(paths[0])
    assert view(paths[1]) == view(paths[0]) == before
    assert paths[2].read_bytes() == bottom


NAMES: dict[str, Callable[[Path], str]] = {
    "relative": lambda _folder: "0.raw",
    "with a detour": lambda _folder: "../images/./0.raw",
    "absolute": lambda folder: str(folder / "0.raw"),
    "a link": lambda _folder: "link.raw",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_is_found_by_any_name_of_its_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    paths = chain(folder, MIB, MIB, MIB)
    (folder / "link.raw").symlink_to("0.raw")
    before = view(paths[0])
    monkeypatch.chdir(tmp_path)  # Names are seen from the image, not from here.
    commit("images/2.qcow2", base=NAMES[name](folder))
    assert view(paths[2]) == before


@pytest.mark.parametrize("name", ["2.qcow2", "images/0.raw", "gone.raw", "", "file:0.raw", "nbd://0.raw", "0.raw\0"])
def test_other_names_are_no_layer(name: str, tmp_path: Path) -> None:
    paths = chain(tmp_path, MIB, MIB, MIB)
    files = [path.read_bytes() for path in paths]
    with pytest.raises(UsageError, match="in the backing chain of"):
        commit(paths[0], base=name)
    assert [path.read_bytes() for path in paths] == files


def test_a_backing_file_with_a_protocol_is_found_by_its_very_name(tmp_path: Path) -> None:
    raw(tmp_path / "base.raw")
    image = tmp_path / "top.qcow2"
    qcow2c.create(image, SIZE, backing_file="file:base.raw", backing_fmt="raw", check_backing=False)
    with pytest.raises(UsageError, match="Did not find"):
        commit(image, base="base.raw")
    assert commit(image, base="file:base.raw").base == str(tmp_path / "base.raw")


def test_the_caller_may_name_another_backing_file(tmp_path: Path) -> None:
    make(tmp_path / "base.qcow2", seed=2)
    other = make(tmp_path / "other.qcow2", seed=3)
    image = make(tmp_path / "top.qcow2", below="base.qcow2")
    with qcow2c.open(image, backing=other) as opened:
        shown = bytes(opened.pread(SIZE, 0))
    with pytest.raises(UsageError, match="Did not find 'other"):
        commit(image, base="other.qcow2", backing=other)
    commit(image, base=str(other), backing=other)
    assert view(other) == shown
    with pytest.raises(UsageError, match="Image does not have a backing file"):
        commit(image, backing=False)


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [MIB, MIB + 1000, 512])
def test_a_smaller_raw_base_grows(size: int, tmp_path: Path) -> None:
    below = raw(tmp_path / "base.raw", size)
    image = make(tmp_path / "top.qcow2", below="base.raw", cluster_size=4096)
    before = view(image)
    assert commit(image).grown
    assert view(below) == before == view(image)


@pytest.mark.parametrize("base", [name for name in BASES if name != "raw"])
def test_a_smaller_image_grows(base: str, tmp_path: Path) -> None:
    below = make(tmp_path / "base.qcow2", 2 * MIB + 512, seed=2, **(BASES[base] or {}))
    image = make(tmp_path / "top.qcow2", below="base.qcow2", cluster_size=4096)
    before = view(image)
    assert commit(image, gate="any").grown
    assert view(below) == before == view(image)
    assert is_clean(below) and is_clean(image)


def test_the_new_part_of_a_base_hides_what_lies_below_it(tmp_path: Path) -> None:
    paths = chain(tmp_path, SIZE, MIB, SIZE)
    before = view(paths[0])
    assert commit(paths[0]).grown
    assert view(paths[1]) == before == view(paths[0])
    assert is_clean(paths[1])


def test_a_raw_base_whose_last_sector_is_not_whole_stays_so(tmp_path: Path) -> None:
    below = raw(tmp_path / "base.raw", 1000)
    image = tmp_path / "top.qcow2"
    qcow2c.create(image, backing_file="base.raw", backing_fmt="raw")
    with qcow2c.open(image, "r+") as opened:
        assert opened.size() == 1024
        opened.write_zeroes(0, 1024)
    assert not commit(image).grown
    assert below.read_bytes() == bytes(1000)


def test_the_rest_of_a_larger_base_stays(tmp_path: Path) -> None:
    below = make(tmp_path / "base.qcow2", seed=2)
    image = make(tmp_path / "top.qcow2", MIB, below="base.qcow2")
    before, rest = view(image), view(below)[MIB:]
    commit(image)
    assert view(below) == before + rest
    assert view(image) == before


def test_zeros_give_back_the_space_of_a_raw_base(tmp_path: Path) -> None:
    below = tmp_path / "base.raw"
    below.write_bytes(b"x" * (2 * MIB))
    qcow2c.create(tmp_path / "top.qcow2", 2 * MIB, backing_file="base.raw", backing_fmt="raw")
    with qcow2c.open(tmp_path / "top.qcow2", "r+") as opened:
        opened.write_zeroes(0, MIB)
        opened.write_zeroes(MIB + 512, 1024)
    commit(tmp_path / "top.qcow2")
    assert below.read_bytes() == bytes(MIB) + b"x" * 512 + bytes(1024) + b"x" * (MIB - 1536)
    assert below.stat().st_blocks * 512 < 2 * MIB


# --- what else there is ---------------------------------------------------------------------------------------------


def test_snapshots_show_what_they_did(tmp_path: Path) -> None:
    below = make(tmp_path / "base.qcow2", seed=2)
    image = make(tmp_path / "top.qcow2", below="base.qcow2", cluster_size=4096)
    for path in (below, image):
        snapshots.create(path, "before")
    with qcow2c.open(image, "r+") as opened:
        scribble(opened, 3)
    old_base, before = snapshot_of(below), view(image)
    kept = snapshot_of(image)
    commit(image)
    assert view(image) == before == view(below)
    assert snapshot_of(below) == old_base
    assert snapshot_of(image) == kept
    assert is_clean(below) and is_clean(image)


def snapshot_of(path: Path) -> bytes:
    with qcow2c.open(path) as image:
        return bytes(image.snapshots["before"].open().pread(SIZE, 0))


def test_the_first_sector_of_a_raw_base_stays_raw(tmp_path: Path) -> None:
    """Else the guest could make its own image of a raw file of which nobody says that it is raw."""
    below = raw(tmp_path / "base.raw")
    builder = Builder(MIB, cluster_bits=16)
    builder.backing_file = b"base.raw"
    builder.data(0, b"QFI\xfb\0\0\0\x03")
    image = tmp_path / "top.qcow2"
    image.write_bytes(builder.build())
    before = below.read_bytes()
    with pytest.raises(UsageError, match="would be taken for an image of format 'qcow2'"):
        commit(image)
    assert below.read_bytes() == before


def test_a_rate_is_kept(tmp_path: Path) -> None:
    raw(tmp_path / "base.raw")
    image = tmp_path / "top.qcow2"
    qcow2c.create(image, SIZE, backing_file="base.raw", backing_fmt="raw")
    with qcow2c.open(image, "r+") as opened:
        opened.pwrite(b"r" * MIB, 0)
        opened.write_zeroes(MIB, MIB)
    started = time.monotonic()
    commit(image, drop=True, rate_limit=4 * MIB)
    assert 0.25 <= time.monotonic() - started < 60  # A busy machine is no defect; a rate in the wrong unit would be.
    commit(image, rate_limit=0)
    with pytest.raises(UsageError, match="negative"):
        commit(image, rate_limit=-1)


def test_nobody_waits_for_a_copy_that_has_failed() -> None:
    buffers = Buffers(1)
    buffers.close()
    with pytest.raises(Closed):
        buffers.wait(1000)


def test_progress_is_told(tmp_path: Path) -> None:
    raw(tmp_path / "base.raw")
    image = make(tmp_path / "top.qcow2", below="base.raw")
    told: list[tuple[int, int]] = []
    commit(image, progress=lambda done, size: told.append((done, size)))
    assert told[-1] == (SIZE, SIZE) and told == sorted(told)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_files_that_others_use_are_not_touched(tmp_path: Path) -> None:
    paths = [*chain(tmp_path, SIZE, SIZE, SIZE, SIZE)]
    files = [path.read_bytes() for path in paths]
    for number, mode in ((0, "r"), (0, "r+"), (1, "r+"), (2, "r"), (2, "r+")):
        with qcow2c.open(paths[number], mode), pytest.raises(ImageLocked):
            commit(paths[0], base=paths[2].name)
    user = LocalFile(paths[3], writable=True)
    try:
        user.lock(Use.WRITABLE_IMAGE)
        with pytest.raises(ImageLocked):
            commit(paths[0], base=paths[3].name)
    finally:
        user.close()
    assert [path.read_bytes() for path in paths] == files


def test_the_gate_decides_about_the_base(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    below = raw(tmp_path / "elsewhere" / "base.raw")
    (tmp_path / "tops").mkdir()
    image = tmp_path / "tops" / "top.qcow2"
    qcow2c.create(image, SIZE, backing_file="../elsewhere/base.raw", backing_fmt="raw")
    with qcow2c.open(image, "r+", gate="any") as opened:
        opened.pwrite(b"g" * 512, 0)
    before = below.read_bytes()
    with pytest.raises(GateRefused):
        commit(image)
    assert below.read_bytes() == before
    commit(image, gate="any")
    assert below.read_bytes() == b"g" * 512 + before[512:]


def test_images_that_cannot_be_committed_say_why(tmp_path: Path) -> None:
    below = raw(tmp_path / "base.raw", MIB)
    before = below.read_bytes()
    path = tmp_path / "top.qcow2"

    def refused(error: type[Exception], words: str, data: bytes, **options: Any) -> None:
        path.write_bytes(data)
        with pytest.raises(error, match=words):
            commit(path, **options)
        assert path.read_bytes() == data and below.read_bytes() == before

    refused(UsageError, "does not have a backing file", b"raw" * 500)
    refused(UsageError, "does not have a backing file", Builder(MIB).build())
    refused(UnsupportedFeature, "format 'vmdk'", b"KDMV" * 500)
    refused(UnsupportedFeature, "Unknown driver 'vpc'", b"", image_format="vpc")
    over = Builder(MIB)
    over.backing_file = b"base.raw"
    refused(UsageError, "does not have a backing file", over.build(), image_format="raw")
    for drop in (False, True):
        refused(CorruptMetadata, "marked corrupt", over_base(incompatible=2).build(), drop=drop)
        refused(MissingKey, "encrypted", over_base(crypt_method=1).build(), drop=drop)
    refused(StoreError, "No such file", over_base(name=b"gone.raw").build())


def over_base(name: bytes = b"base.raw", **fields: Any) -> Builder:
    builder = Builder(MIB, **fields)
    builder.backing_file = name
    return builder


def test_a_chain_that_changes_meanwhile_is_left_alone(tmp_path: Path) -> None:
    paths = chain(tmp_path, MIB, MIB, MIB)
    with open_chain(paths[0]) as found:
        other = bytearray(paths[1].read_bytes())
        at = other.index(b"0.raw")
        other[at : at + 5] = b"1.raw"
        paths[1].write_bytes(other)
        before = paths[2].read_bytes()
        with pytest.raises(ChainError, match="another backing file since"):
            commit_chain(found, "0.raw")
    assert paths[2].read_bytes() == before


def test_an_image_that_cannot_be_read_is_not_emptied(tmp_path: Path) -> None:
    raw(tmp_path / "base.raw", MIB)
    builder = over_base()
    builder.data(1, b"here" * 1000)
    builder.compressed(5, b"\xff" * 100)
    image = tmp_path / "top.qcow2"
    image.write_bytes(builder.build())
    before = image.read_bytes()
    with pytest.raises(CorruptData, match="compressed"):
        commit(image)
    assert image.read_bytes() == before


@pytest.mark.parametrize("drop_trailing", [False, True])
def test_what_is_appended_to_an_image_that_is_emptied_stays(tmp_path: Path, *, drop_trailing: bool) -> None:
    paths = chain(tmp_path, MIB, MIB)
    with qcow2c.open(paths[0], "r+") as image:
        image.pwrite(b"x" * MIB, 0)
    ours = paths[0].stat().st_size
    with paths[0].open("ab") as file:
        file.write(b"appended")
    commit(paths[0], drop_trailing=drop_trailing)
    assert paths[0].read_bytes()[ours:].startswith(b"appended") != drop_trailing
    assert (paths[0].stat().st_size < ours) == drop_trailing
    assert qcow2c.check(paths[0]).exit_code == 0
    with qcow2c.open(paths[0]) as image:
        assert image.pread(MIB, 0) == b"x" * MIB


@pytest.mark.parametrize("base_format", ["raw", "qcow2"])
@pytest.mark.parametrize("named", [False, True])
def test_internal_snapshots_show_the_same_after_it(base_format: str, tmp_path: Path, *, named: bool) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    if base_format == "raw":
        raw(base, MIB)
    else:
        qcow2c.create(base, MIB)
    noise = random.Random(5).randbytes(MIB)
    qcow2c.convert(_file(tmp_path / "noise", noise), base, output_format=base_format)
    qcow2c.create(top, backing_file="base", backing_fmt=base_format)
    with qcow2c.open(top, "r+") as image:
        image.pwrite(b"first" * 40000, 1000)
        image.snapshots.create("first")
        image.pwrite(b"then" * 40000, 300_000)
        image.write_zeroes(600_000, 200_000)
        shown = image.snapshots["first"].open().readall()
        disk = image.pread(MIB, 0)
    commit(top, base="base" if named else None)
    assert qcow2c.check(top).exit_code == 0
    with qcow2c.open(top) as image:
        assert image.pread(MIB, 0) == disk
        assert image.snapshots["first"].open().readall() == shown
    qcow2c.convert(base, tmp_path / "flat", image_format=base_format)
    assert (tmp_path / "flat").read_bytes() == disk


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
