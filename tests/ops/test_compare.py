"""compare_disks against a bytearray: what is found first, what is never read, and what becomes of errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import qcow2c
from qcow2c.disk.disk import Disk, open_disk
from qcow2c.errors import CorruptData, CorruptMetadata, MissingKey, Qcow2Error, StoreError
from qcow2c.ops.compare import SLAB_BYTES, Comparison, Why, compare_disks
from qcow2c.storage.sources import LocalFile, Memory, Store
from tests.building import L2_COPIED, Builder, deflate

CLUSTER = 4096


class Watched(Memory):
    """Memory that writes down what is read of it, by which thread, and can fail from an offset on."""

    def __init__(self, data: bytes | bytearray, fails_from: int | None = None) -> None:
        super().__init__(data, "watched")
        self.reads: list[tuple[int, int]] = []
        self.threads: set[int] = set()
        self.fails_from = fails_from
        self.exception: type[BaseException] = StoreError

    def readinto_at(self, buffer: memoryview, offset: int) -> int:
        self.reads.append((offset, len(buffer)))
        self.threads.add(threading.get_ident())
        if self.fails_from is not None and offset + len(buffer) > self.fails_from:
            raise self.exception("it is broken")
        return super().readinto_at(buffer, offset)


@contextmanager
def opened(*sources: bytes | bytearray | Store | Path, image_format: str | None = None) -> Iterator[list[Disk]]:
    with ExitStack() as stack:
        yield [stack.enter_context(open_disk(source, image_format=image_format)) for source in sources]


def compared(first: bytes | Store | Path, second: bytes | Store | Path, *, strict: bool = False) -> Comparison:
    with opened(first, second) as (one, other):
        return compare_disks(one, other, strict=strict)


def noise(length: int) -> bytearray:
    return bytearray((bytes(range(251)) * (length // 251 + 1))[:length])


def image_of(content: bytes, *, packed: bool = False) -> bytes:
    """Return a qcow2 image of 4 KiB clusters with a disk's content; zero clusters are not allocated."""
    builder = Builder(len(content))
    for at in range(0, len(content), CLUSTER):
        cluster = bytes(content[at : at + CLUSTER]).ljust(CLUSTER, b"\0")
        if any(cluster):
            if packed and at // CLUSTER % 3:
                builder.compressed(at // CLUSTER, deflate(cluster))
            else:
                builder.data(at // CLUSTER, cluster)
    return builder.build()


sectors = st.lists(st.sampled_from([b"\0", b"\0", b"a", b"b"]), max_size=40).map(
    lambda found: b"".join(letter * 512 for letter in found)
)


@given(first=sectors, second=sectors, change=st.none() | st.integers(0, 1 << 14), packed=st.booleans())
@example(first=b"", second=b"", change=None, packed=False)
@example(first=b"a" * 512, second=b"", change=None, packed=True)
def test_the_first_sector_that_differs(first: bytes, second: bytes, change: int | None, *, packed: bool) -> None:
    if change is not None and first:  # Else two disks are hardly ever similar.
        changed = bytearray(first)
        changed[change % len(first)] ^= 1
        second = bytes(changed)
    length = max(len(first), len(second))
    one, other = first.ljust(length, b"\0"), second.ljust(length, b"\0")
    expected = next((at for at in range(0, length, 512) if one[at : at + 512] != other[at : at + 512]), None)
    for pair in ((first, second), (first, image_of(second, packed=packed)), (image_of(first), image_of(second))):
        found = compared(*pair)
        assert (found.offset, found.identical) == (expected, expected is None)
        assert found.why is (None if expected is None else Why.CONTENT)
        assert (found.first_size, found.second_size) == (len(first), len(second))


def test_the_public_function_opens_files(tmp_path: Path) -> None:
    raw, qcow2 = tmp_path / "raw", tmp_path / "qcow2"
    content = noise(3 * SLAB_BYTES + 1024)
    raw.write_bytes(content)
    qcow2.write_bytes(image_of(content))
    steps: list[tuple[int, int]] = []
    found = qcow2c.compare(raw, qcow2, first_format="raw", progress=lambda *step: steps.append(step))
    assert found == Comparison(identical=True, offset=None, why=None, first_size=len(content), second_size=len(content))
    assert {total for _, total in steps} == {len(content)}
    assert all(one <= other for (one, _), (other, _) in pairwise(steps))
    assert steps[0][0] == 0 and steps[-1][0] == len(content)
    assert qcow2c.compare(raw, qcow2, second_format="raw").identical is False
    assert qcow2c.compare(qcow2, qcow2, strict=True).identical


def test_progress_stops_where_the_shorter_disk_ends() -> None:
    content = bytes(noise(1 << 20))
    steps: list[int] = []
    with opened(content, content + bytes(1 << 20)) as (one, other):
        assert compare_disks(one, other, progress=lambda done, _total: steps.append(done)).identical
        assert 1 << 20 in steps
        assert compare_disks(one, other, strict=True) == Comparison(
            identical=False, offset=None, why=Why.SIZE, first_size=1 << 20, second_size=2 << 20
        )


@pytest.mark.parametrize("slab", range(5))
def test_the_first_of_several_differences_counts(slab: int) -> None:
    """Whichever thread comes upon a later one."""
    content = noise(5 * SLAB_BYTES)
    changed = bytearray(content)
    for later in range(slab, 5):
        changed[later * SLAB_BYTES + 700_000 - 100_000 * later] ^= 1
    found = compared(bytes(content), bytes(changed))
    assert found.offset == (slab * SLAB_BYTES + 700_000 - 100_000 * slab) & ~511


def test_two_threads_read_a_large_disk() -> None:
    class Meeting(Watched):
        barrier = threading.Barrier(2)

        def readinto_at(self, buffer: memoryview, offset: int) -> int:
            if self.reads and threading.get_ident() not in self.threads:  # The first slab is read alone.
                self.barrier.wait(20)
            return super().readinto_at(buffer, offset)

    one, other = Meeting(noise(8 * SLAB_BYTES)), Watched(noise(8 * SLAB_BYTES))
    assert compared(one, other).identical
    assert sum(length for _, length in one.reads) == 8 * SLAB_BYTES
    assert len(one.threads - {threading.get_ident()}) == 2


def test_a_difference_in_the_first_slab_is_all_that_is_read() -> None:
    one, other = Watched(noise(32 * SLAB_BYTES)), Watched(bytes(32 * SLAB_BYTES))
    assert compared(one, other).offset == 0
    assert one.reads == [(0, SLAB_BYTES)]


def test_what_is_one_place_of_one_file_is_not_read() -> None:
    """Two overlays of one store; then each writes a cluster."""
    base = Watched(noise(1 << 20))
    images = []
    for number in range(2):
        builder = Builder(1 << 20)
        builder.data(7, bytes([number]) * CLUSTER)
        builder.backing_file = b"base"
        images.append(builder.build())
    with ExitStack() as stack:
        disks = [stack.enter_context(open_disk(data, backing=base, image_format="qcow2")) for data in images]
        assert compare_disks(*disks).offset == 7 * CLUSTER
        assert base.reads == []
        found = compare_disks(disks[0], disks[0])
        assert found.identical and base.reads == []


def test_zeros_of_both_maps_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    one, other = LocalFile(path), LocalFile(path)
    other.identity = lambda: "another"  # type: ignore[method-assign]
    assert compared(one, other).identical
    one.close()
    other.close()


def test_what_a_file_cuts_short_is_zeros_as_far_as_the_layer_says_so() -> None:
    builder = Builder()
    builder.data(0, b"x" * CLUSTER)
    builder.data(1, b"y" * 100)
    image = builder.build()
    end = image.rindex(b"y") + 1
    assert compared(image[:end], b"x" * CLUSTER + b"y" * 100).identical
    builder.entry(5, 1 << 30 | L2_COPIED)
    with pytest.raises(CorruptData, match=r"^Error while reading offset 20480 of <bytes>: ") as caught:
        compared(builder.build(), b"x" * CLUSTER + b"y" * 100)
    assert caught.value.exit_code == 4


# --- errors ---------------------------------------------------------------------------------------------------------


def test_a_broken_entry_counts_only_if_no_difference_comes_before() -> None:
    builder = Builder()
    builder.data(0, b"x" * CLUSTER)
    builder.entry(9, CLUSTER + 512 | L2_COPIED)
    image = builder.build()
    with pytest.raises(CorruptMetadata, match=r"^Sector allocation test failed for <bytes>: ") as caught:
        compared(image, b"x" * CLUSTER)
    assert caught.value.exit_code == 3
    assert compared(b"y" * CLUSTER, image).offset == 0
    with pytest.raises(CorruptMetadata, match=r"^Sector allocation"):
        compared(image, image, strict=True)


@pytest.mark.parametrize("slab", [0, 1, 6])
def test_an_error_counts_only_if_no_difference_comes_before(slab: int) -> None:
    content = noise(8 * SLAB_BYTES)
    changed = bytearray(content)
    one = Watched(content, fails_from=slab * SLAB_BYTES + 5000)
    with opened(one, Memory(changed)) as disks, pytest.raises(Qcow2Error) as caught:
        compare_disks(*disks)
    assert caught.value.exit_code == 4
    assert str(caught.value) == f"Error while reading offset {slab * SLAB_BYTES} of watched: it is broken"
    if slab:
        changed[slab * SLAB_BYTES - 1] ^= 1
        assert compared(one, bytes(changed)).offset == slab * SLAB_BYTES - 512


def test_a_difference_in_the_step_before_the_error_is_found() -> None:
    """The error spoils a whole slab: then it is read again in the steps that QEMU takes."""
    content = noise(2 * CLUSTER)
    builder = Builder(6 * SLAB_BYTES)
    builder.fields["size"] = 2 * CLUSTER
    builder.compressed(0, deflate(bytes(content[:CLUSTER])))
    builder.compressed(1, b"\xff" * 64)
    image = builder.build()
    with pytest.raises(CorruptData, match=r"^Error while reading offset 4096 of"):
        compared(image, bytes(content))
    content[700] ^= 1
    assert compared(image, bytes(content)).offset == 512
    assert compared(bytes(content), image).offset == 512
    builder.data(5 * SLAB_BYTES // CLUSTER, b"behind all that is read again")
    builder.fields["size"] = 6 * SLAB_BYTES
    assert compared(builder.build(), bytes(content)).offset == 512


def test_a_read_that_fails_only_once_is_forgiven() -> None:
    class Moody(Watched):
        def readinto_at(self, buffer: memoryview, offset: int) -> int:
            if not self.reads:
                self.reads.append((offset, 0))
                raise StoreError("not now")
            return super().readinto_at(buffer, offset)

    content = noise(2 * SLAB_BYTES)
    content[SLAB_BYTES:-CLUSTER] = bytes(SLAB_BYTES - CLUSTER)
    assert compared(Moody(content), image_of(content)).identical


def test_what_a_thread_dies_of_is_raised() -> None:
    class Deadly(Watched):
        def readinto_at(self, buffer: memoryview, offset: int) -> int:
            if threading.current_thread() is not threading.main_thread():
                raise MemoryError("in the thread")
            return super().readinto_at(buffer, offset)

    with pytest.raises(MemoryError, match="in the thread"):
        compared(Deadly(noise(64 * SLAB_BYTES)), bytes(noise(64 * SLAB_BYTES)))


def test_an_interrupt_ends_both_threads() -> None:
    def interrupt(done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    content = bytes(noise(16 * SLAB_BYTES))
    with opened(content, content) as disks, pytest.raises(KeyboardInterrupt):
        compare_disks(*disks, progress=interrupt)
    assert threading.active_count() == 1


def test_an_encrypted_layer_anywhere_is_refused() -> None:
    sealed = Builder(crypt_method=1).build()
    overlay = Builder()
    overlay.backing_file = b"sealed"
    with opened(sealed) as (disk,), pytest.raises(MissingKey) as caught:
        compare_disks(disk, disk)
    assert caught.value.exit_code == 2
    with qcow2c.open(sealed) as below, open_disk(overlay.build(), backing=below) as disk, pytest.raises(MissingKey):
        compare_disks(disk, disk)
