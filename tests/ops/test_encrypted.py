"""All operations on encrypted images: each does what it does to plain ones, given a key, and says so without."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.errors import MissingKey, UsageError

SIZE = 1 << 20
SECRETS = (b"plain text of the guest", b"other text of the guest")


def made(path: Path, key: str, kind: str = "luks", size: int = SIZE, **options: Any) -> Path:
    more = {"cipher": "aes-128", "iter_time_ms": 1} if kind == "luks" else {}
    qcow2c.create(path, size, encryption=kind, key=key, check_backing=False, **more, **options)  # type: ignore[arg-type]
    return path


def write(path: Path, key: Any, *pieces: tuple[bytes, int]) -> None:
    with qcow2c.open(path, "r+", key=key) as image:
        for data, offset in pieces:
            image.pwrite(data, offset)


def disk(path: Path, key: Any) -> bytes:
    with qcow2c.open(path, key=key) as image:
        return image.pread(image.size(), 0)


@pytest.fixture(params=["luks", "aes"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = made(tmp_path / "image.qcow2", "k", request.param)
    write(path, "k", (SECRETS[0] * 9000, 1000), (SECRETS[1], 900_000))
    return path


def test_comparing_needs_the_keys_of_both(image: Path, tmp_path: Path) -> None:
    other = made(tmp_path / "other.qcow2", "j")
    write(other, "j", (SECRETS[0] * 9000, 1000), (SECRETS[1], 900_000))
    keys = {image: "k", other: "j"}
    assert qcow2c.compare(image, other, key=keys).identical
    write(other, "j", (b"!", 150_000))
    found = qcow2c.compare(image, other, key=keys)
    assert (found.identical, found.offset) == (False, 149_504)
    with pytest.raises(MissingKey):
        qcow2c.compare(image, other)
    with pytest.raises(MissingKey):
        qcow2c.compare(image, other, key={image: "k"})


def test_two_images_with_the_same_tables_and_other_data_differ(tmp_path: Path) -> None:
    paths = [made(tmp_path / name, "k", "aes") for name in ("a", "b")]
    for path, text in zip(paths, SECRETS, strict=True):
        write(path, "k", (text * 4000, 0))
    assert not qcow2c.compare(*paths, key="k").identical
    assert list(qcow2c.diff(*paths, key="k"))
    twin = tmp_path / "c"
    twin.write_bytes(paths[0].read_bytes())
    assert qcow2c.compare(paths[0], twin, key="k").identical
    assert not list(qcow2c.diff(paths[0], twin, key="k"))


def test_differences_of_snapshots_are_streamed_and_patched(image: Path, tmp_path: Path) -> None:
    from qcow2c.disk.disk import open_disk
    from qcow2c.ops.diff import open_states, write_stream

    twin = tmp_path / "twin.qcow2"
    qcow2c.snapshots.create(image, "then")
    twin.write_bytes(image.read_bytes())
    write(image, "k", (b"now", 5000))
    found = list(qcow2c.diff(image, from_snapshot="then", key="k"))
    assert [(one.start, one.length) for one in found] == [(4608, 512)]
    stream = io.BytesIO()
    with open_states(image, from_snapshot="then", key="k") as (before, after):
        write_stream(before, after, stream.write)
    stream.seek(0)
    with pytest.raises(MissingKey):
        qcow2c.patch(twin, stream)
    stream.seek(0)
    assert qcow2c.patch(twin, stream, key="k") == 1
    assert disk(twin, "k") == disk(image, "k")
    with open_disk(image, key="k", snapshot="then") as then:
        assert then.size == SIZE


def test_parts_snapshots_and_measures_are_taken(image: Path, tmp_path: Path) -> None:
    whole = disk(image, "k")
    part, old = tmp_path / "part", tmp_path / "old.raw"
    qcow2c.dd(image, part, block_size=512, count=9, skip=1, key="k")
    assert part.read_bytes() == whole[512:4608]
    qcow2c.snapshots.create(image, "then")
    write(image, "k", (b"now", 0))
    qcow2c.export(image, "then", old, output_format="raw", key="k")
    assert old.read_bytes() == whole
    wanted = qcow2c.Encryption("luks", "n", "aes-128", iter_time_ms=1)
    qcow2c.export(image, "then", tmp_path / "old.qcow2", key="k", encryption=wanted)
    assert disk(tmp_path / "old.qcow2", "n") == whole
    assert SECRETS[0] not in (tmp_path / "old.qcow2").read_bytes()
    with pytest.raises(MissingKey):
        qcow2c.export(image, "then", tmp_path / "none.raw", output_format="raw")
    assert qcow2c.measure(image, output_format="qcow2").required > 0
    assert sum(extent.length for extent in qcow2c.map(image)) == SIZE


def chain(tmp_path: Path) -> tuple[Path, Path, dict[Any, str]]:
    base = made(tmp_path / "base.qcow2", "b")
    top = made(tmp_path / "top.qcow2", "t", backing_file="base.qcow2", backing_fmt="qcow2")
    write(base, "b", (SECRETS[0] * 9000, 1000))
    keys: dict[Any, str] = {0: "t", 1: "b"}
    write(top, keys, (SECRETS[1] * 900, 50_000))
    return base, top, keys


@pytest.mark.parametrize("by_depth", [True, False])
def test_a_commit_encrypts_with_the_key_of_the_base(by_depth: bool, tmp_path: Path) -> None:  # noqa: FBT001
    base, top, keys = chain(tmp_path)
    expected = disk(top, keys)
    assert SECRETS[0] not in base.read_bytes() + top.read_bytes()
    with pytest.raises(MissingKey):
        qcow2c.commit(top)
    assert disk(top, keys) == expected
    qcow2c.commit(top, key=keys if by_depth else {top: "t", base: "b"})
    assert disk(base, "b") == disk(top, keys) == expected
    assert SECRETS[1] not in base.read_bytes()
    for path in (base, top):
        assert qcow2c.check(path).exit_code == 0


def test_a_rebase_keeps_the_disk(tmp_path: Path) -> None:
    _base, top, keys = chain(tmp_path)
    expected = disk(top, keys)
    new = made(tmp_path / "new.qcow2", "n")
    write(new, "n", (b"something else", 60_000))
    qcow2c.rebase(top, "new.qcow2", backing_format="qcow2", key=keys, new_key="n")
    assert disk(top, {0: "t", 1: "n"}) == expected
    qcow2c.rebase(top, None, key={0: "t", 1: "n"})
    assert disk(top, "t") == expected
    assert SECRETS[0] not in top.read_bytes() and qcow2c.check(top).exit_code == 0


def test_a_disk_of_another_size_ends_in_zeros(image: Path) -> None:
    before = disk(image, "k")
    with pytest.raises(MissingKey):
        qcow2c.resize(image, 100_352, shrink=True)
    qcow2c.resize(image, 100_352, shrink=True, key="k")
    qcow2c.resize(image, 200_192, key="k")
    assert disk(image, "k") == before[:100_352] + bytes(200_192 - 100_352)
    for preallocation in ("metadata", "falloc", "full"):
        size = qcow2c.info(image)["virtual-size"] + 100_352  # type: ignore[call-overload]
        qcow2c.resize(image, size, preallocation=preallocation, key="k")  # type: ignore[arg-type]
    assert disk(image, "k") == before[:100_352] + bytes(size - 100_352)
    assert qcow2c.check(image).exit_code == 0


METADATA: dict[str, Callable[[Path], object]] = {
    "snapshot": lambda path: qcow2c.snapshots.create(path, "one"),
    "bitmap": lambda path: qcow2c.bitmap.add(path, "one", key="k"),
    "amend": lambda path: qcow2c.amend(path, refcount_bits=64, lazy_refcounts=True),
    "version": lambda path: qcow2c.amend(path, compat="0.10"),
    "size": lambda path: qcow2c.amend(path, size=2 * SIZE, key="k"),
    "unsafe rebase": lambda path: qcow2c.rebase(path, None, unsafe=True),
    "repair": qcow2c.repair,
}


@pytest.mark.parametrize("change", METADATA.values(), ids=METADATA)
def test_what_changes_metadata_leaves_the_data_readable(image: Path, change: Callable[[Path], object]) -> None:
    before = disk(image, "k")
    change(image)
    assert disk(image, "k")[:SIZE] == before
    assert qcow2c.check(image).exit_code == 0


def test_zeros_of_an_older_version_cannot_be_written_without_a_key(image: Path) -> None:
    with qcow2c.open(image, "r+", key="k") as opened:
        opened.write_zeroes(0, 65536)
    with pytest.raises(UsageError, match="zero clusters"):
        qcow2c.amend(image, compat="0.10")


def test_a_copy_into_an_image_that_is_there_is_encrypted(image: Path, tmp_path: Path) -> None:
    target = made(tmp_path / "target.qcow2", "t")
    qcow2c.convert(image, target, output_format="qcow2", existing=True, key="k", target_key="t")
    assert disk(target, "t") == disk(image, "k")
    assert SECRETS[0] not in target.read_bytes()
    over = tmp_path / "over.qcow2"
    wanted = qcow2c.Encryption("luks", "o", "aes-128", iter_time_ms=1)
    qcow2c.convert(
        image, over, output_format="qcow2", backing_file="target.qcow2", backing_fmt="qcow2", key="k",
        target_key={1: "t"}, encryption=wanted,
    )  # fmt: skip
    assert disk(over, {0: "o", 1: "t"}) == disk(image, "k")


def test_no_error_and_no_repr_shows_a_key(image: Path) -> None:
    shown: list[str] = []
    for call in (
        lambda: qcow2c.open(image, key="hush-hush", backing="none"),
        lambda: qcow2c.key_slots(image, key="hush-hush"),
        lambda: qcow2c.remove_key(image, key="hush-hush"),
    ):
        try:
            with call() as opened:  # type: ignore[attr-defined]
                shown.append(repr(opened))
        except (qcow2c.Qcow2Error, AttributeError, TypeError) as error:
            shown.append(f"{error!r} {error}")
    assert shown and not any("hush" in words for words in shown)


@pytest.mark.parametrize("kind", ["luks", "aes"])
def test_copies_into_pipes_and_overlays_are_encrypted(kind: str, tmp_path: Path) -> None:
    from qcow2c.copy.options import How
    from qcow2c.copy.targets import Pipe
    from qcow2c.disk.disk import open_disk
    from qcow2c.ops.convert import copy_disks
    from qcow2c.ops.diff import write_overlay

    raw = tmp_path / "a.raw"
    raw.write_bytes((bytes(70_000) + SECRETS[0] * 9000 + bytes(500_000) + SECRETS[1] * 1001).ljust(SIZE, b"\0"))
    wanted = qcow2c.Encryption(kind, "k", "aes-128", iter_time_ms=1)
    piped = io.BytesIO()
    with open_disk(raw, image_format="raw") as disk_:
        copy_disks([disk_], Pipe(piped, "pipe"), "qcow2", How(), encryption=wanted)
    whole = raw.read_bytes()
    with qcow2c.open(piped.getvalue(), key="k") as image:
        assert image.pread(len(whole), 0) == whole
    assert SECRETS[0] not in piped.getvalue() and qcow2c.check(piped.getvalue()).exit_code == 0
    other = tmp_path / "b.raw"
    other.write_bytes(whole[:80_000] + SECRETS[1] * 3000 + whole[80_000 + len(SECRETS[1]) * 3000 :])
    over = tmp_path / "over.qcow2"
    with open_disk(raw, image_format="raw") as before, open_disk(other, image_format="raw") as after:
        write_overlay(before, after, over, backing_file="a.raw", backing_fmt="raw", encryption=wanted)
    assert disk(over, "k")[: len(whole)] == other.read_bytes()
    assert SECRETS[1] not in over.read_bytes() and qcow2c.check(over).exit_code == 0
