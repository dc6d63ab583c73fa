"""Properties of copies: any image to any options is equal and sound; plans and zeros against naive models."""

from __future__ import annotations

from contextlib import ExitStack
from io import BytesIO
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

import qcow2c
from qcow2c.copy.plan import PlannedDisk, plan
from qcow2c.copy.targets import Pipe, RawPipe
from qcow2c.copy.transfer import DiskCopy
from qcow2c.copy.zero_detection import data_ranges
from qcow2c.disk.disk import open_disk
from qcow2c.ops.convert import How, convert, copy_disks, copy_stream
from qcow2c.storage.sources import Memory
from qcow2c.structs import SECTOR_SIZE
from qcow2c.testing import ImageOptions, image_options, images, operations
from qcow2c.testing.histories import Action
from qcow2c.testing.images import apply
from tests.streams import Taken

CHANGES = (Action.WRITE, Action.ZERO, Action.UNMAP, Action.DISCARD)
SPARSE = st.sampled_from([4096, 4096, 512, 0, 1536, 65536])


def disk_of(source: Any, **opening: Any) -> bytes:
    with open_disk(source, **opening) as disk:
        buffer = memoryview(bytearray(disk.size))
        disk.read_into(buffer, 0)
        return bytes(buffer)


def assert_equal(target: Any, expected: bytes) -> None:
    with qcow2c.open(target) as image:
        assert image.pread(image.size(), 0) == expected
    result = qcow2c.check(target)
    assert result.exit_code == 0, list(result.messages)[:5]


@st.composite
def created(draw: st.DrawFn) -> dict[str, Any]:
    """Draw options of a new image that stands alone, compressed or not."""
    found = draw(image_options().filter(lambda options: options.backing is None and not options.has_data_file))
    options = dict(found.options)
    if options.get("preallocation", "off") == "off":
        options["compressed"] = draw(st.booleans())
    return options


@settings(max_examples=30)
@given(source=images(), options=created(), sparse_size=SPARSE, threads=st.sampled_from([1, 2, 7]))
def test_an_image_and_its_copy_hold_the_same(
    source: bytes, options: dict[str, Any], sparse_size: int, threads: int
) -> None:
    expected = disk_of(source)
    how: dict[str, Any] = {"output_format": "qcow2", "sparse_size": sparse_size, "threads": threads, **options}
    target, again = bytearray(), bytearray()
    convert(source, target, **how)
    assert_equal(target, expected)
    raw = bytearray()
    convert(bytes(target), raw, sparse_size=sparse_size)
    assert raw == expected
    if sparse_size:
        convert(bytes(raw), again, image_format="raw", **how)
        assert again == target, "the same disk makes the same bytes"


@settings(max_examples=20)
@given(several=st.lists(images(max_operations=3), min_size=2, max_size=3), options=created())
def test_concatenated_images(several: list[bytes], options: dict[str, Any]) -> None:
    expected = b"".join(map(disk_of, several))
    target = bytearray()
    convert(several, target, output_format="qcow2", **options)
    assert_equal(target, expected)


@settings(max_examples=20)
@given(source=images(), old=images(), sparse_size=SPARSE, compressed=st.booleans())
def test_an_image_that_is_there_holds_the_new_disk_and_its_own_end(
    source: bytes, old: bytes, sparse_size: int, *, compressed: bool
) -> None:
    new, kept = disk_of(source), disk_of(old)
    if len(new) > len(kept) or (compressed and len(new) != len(kept)):
        new, source = kept[::-1], kept[::-1]
    target = bytearray(old)
    how: dict[str, Any] = {"existing": True, "sparse_size": sparse_size, "compressed": compressed}
    convert(source, target, output_format="qcow2", **how)
    assert_equal(target, new + kept[len(new) :])
    raw = bytearray(kept)
    convert(source, raw, existing=True, sparse_size=sparse_size)
    assert raw == new + kept[len(new) :]


@settings(max_examples=20)
@given(found=image_options().filter(lambda options: options.backing is not None), data=st.data())
def test_a_copy_over_the_same_backing_file(found: ImageOptions, data: st.DataObject, tmp_path_factory: Any) -> None:
    """Whatever the overlay decides itself is in the copy, and nothing else has changed."""
    assert found.backing is not None
    folder = tmp_path_factory.mktemp("over")
    (folder / "backing").write_bytes(found.backing.source().getvalue())
    guest_data = bytearray() if found.has_data_file else None
    image = bytearray()
    found.create(image, guest_data)
    with found.open(image, "r+", guest_data) as opened:
        for _ in range(data.draw(st.integers(0, 5))):
            apply(opened, data.draw(operations(found.size, found.cluster_size, CHANGES)))
        expected = opened.pread(found.size, 0)
    how = How(compressed=data.draw(st.booleans()), sparse_size=data.draw(SPARSE.filter(bool)), durable=False)
    bits = data.draw(st.sampled_from([9, 12, 16]))
    names = {"backing_file": "backing", "backing_fmt": found.backing.image_format, "cluster_size": 1 << bits}
    below = {} if guest_data is None else {"data_file": Memory(guest_data)}
    with open_disk(Memory(image), image_format="qcow2", backing=found.backing.source(), **below) as disk:
        copy_disks([disk], folder / "copy", "qcow2", how, **names)
    assert_equal(folder / "copy", bytes(expected))


# --- pipes ----------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(source=images(), options=created().filter(lambda options: options.get("preallocation", "off") == "off"))
def test_what_goes_through_pipes(source: bytes, options: dict[str, Any]) -> None:
    """Out as an image or raw; and a raw disk in, whose size nobody knows before its end."""
    expected = disk_of(source)
    compressed = options.pop("compressed")
    with open_disk(source) as disk:
        for output_format, create in (("qcow2", options), ("raw", {})):
            taken = Taken()
            how = How(compressed=compressed and output_format == "qcow2")
            copy_disks([disk], Pipe(taken, "pipe"), output_format, how, **create)
            if output_format == "raw":
                assert taken.data == expected
            else:
                assert_equal(taken.data, expected)
    target = bytearray()
    copy_stream(BytesIO(expected), target, "qcow2", How(compressed=compressed), image_format="raw", **options)
    assert_equal(target, expected)
    taken = Taken()
    copy_stream(BytesIO(source), Pipe(taken, "pipe"), "raw", How())
    assert taken.data == expected


# --- zeros and plans ------------------------------------------------------------------------------------------------

letters = st.lists(
    st.tuples(st.sampled_from([bytes(8), bytes(8), b"\0\0\0\0\0\0\0\1", b"x" * 8]), st.integers(1, 200)), max_size=30
).map(lambda found: b"".join(word * count for word, count in found))


@given(letters, st.sampled_from([8, 16, 24, 512, 1536, 4096, 1 << 24]))
@example(b"", 512)
def test_ranges_with_data_are_those_of_a_naive_search(buffer: bytes, unit: int) -> None:
    assert merged(data_ranges(memoryview(buffer), unit)) == naive(buffer, unit)


def naive(buffer: bytes, unit: int) -> list[tuple[int, int]]:
    units = [(at, min(len(buffer), at + unit)) for at in range(0, len(buffer), unit)]
    return merged([(start, end) for start, end in units if any(buffer[start:end])])


def merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, end in ranges:
        if start < end:
            first = found.pop()[0] if found and found[-1][1] == start else start
            found.append((first, end))
    return found


@settings(max_examples=15)
@given(several=st.lists(images(max_operations=5), min_size=1, max_size=3), with_zeros=st.booleans())
def test_a_plan_names_each_byte_at_most_once_and_all_that_is_not_zero(
    several: list[bytes], *, with_zeros: bool
) -> None:
    expected = b"".join(map(disk_of, several))
    with ExitStack() as stack:
        planned: list[PlannedDisk] = []
        for disk in [stack.enter_context(open_disk(source)) for source in several]:
            planned.append(PlannedDisk(disk, planned[-1].end if planned else 0))
        covered = bytearray(len(expected) // SECTOR_SIZE)
        data = bytearray(len(expected) // SECTOR_SIZE)
        last = 0
        for slab in plan(planned, with_zeros=with_zeros):
            assert last <= slab.start < slab.end
            last = slab.end
            ranges = [(piece.start, piece.start + piece.length) for piece in slab.pieces]
            for start, end in ranges + list(slab.zeros):
                assert slab.start <= start < end <= slab.end
                sectors = slice(start // SECTOR_SIZE, end // SECTOR_SIZE)
                assert not any(covered[sectors]), "nothing is named twice"
                covered[sectors] = b"\1" * (sectors.stop - sectors.start)
            for start, end in ranges:
                data[start // SECTOR_SIZE : end // SECTOR_SIZE] = b"\1" * ((end - start) // SECTOR_SIZE)
        assert all(covered) or not with_zeros
        for sector in range(len(data)):
            if not data[sector]:
                assert not any(expected[sector * SECTOR_SIZE : (sector + 1) * SECTOR_SIZE])
        sent = bytearray()
        DiskCopy(planned).run(RawPipe(sent.extend))
        assert sent == expected
