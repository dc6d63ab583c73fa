"""Verdicts on files from strangers: each family of attacks is rejected, and what is sound is accepted."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.constants import IMAGE_SIGNATURES
from qcow2c.forensic.inspection import look
from qcow2c.forensic.policy import Policy
from qcow2c.forensic.signatures import image_likenesses
from qcow2c.forensic.verdicts import MAX_REASONS, Inspection, Reason, Verdict, inspection_of
from qcow2c.ops.inspect import inspect
from qcow2c.storage.sources import Memory
from tests.building import L2_COPIED, L2_ZERO, Builder, deflate, extension

SIZE = 1 << 20


def rules_of(found: Inspection) -> set[str]:
    return {reason.rule for reason in found.reasons}


def sound(**options: Any) -> bytes:
    builder = Builder(SIZE, **options)
    builder.data(0, b"guest data")
    builder.compressed(1, deflate(b"x" * builder.cluster_size))
    return builder.build()


def patched(image: bytes, at: int, data: bytes) -> bytes:
    return image[:at] + data + image[at + len(data) :]


def with_backing() -> bytes:
    builder = Builder(SIZE)
    builder.backing_file = b"/etc/shadow"
    return builder.build()


def with_data_file() -> bytes:
    return Builder(SIZE, incompatible=4).build()


def with_data_file_name() -> bytes:
    builder = Builder(SIZE)
    builder.extensions.append(extension(0x44415441, b"/dev/sda"))
    return builder.build()


def with_unknown_extension() -> bytes:
    builder = Builder(SIZE)
    builder.extensions.append(extension(0x12345678, b"?"))
    return builder.build()


def with_two_extensions() -> bytes:
    builder = Builder(SIZE)
    builder.extensions += [extension(0x6803F857, bytes(48))] * 2
    return builder.build()


def guest_with(start: bytes) -> Callable[[], bytes]:
    def make() -> bytes:
        builder = Builder(SIZE)
        builder.data(0, start)
        return builder.build()

    return make


def one_table_for_all() -> bytes:
    """Refcounts that agree: a check finds nothing."""
    builder = Builder(8 << 20)
    builder.data(0, b"x" * builder.cluster_size)
    builder.l1 = [builder.l1[0] & ~L2_COPIED] * len(builder.l1)
    table = (builder.l1[0]) // builder.cluster_size
    times = len(builder.l1)
    builder.refcounts[table] = times
    for at, word in enumerate(builder.l2[0]):
        if word:
            builder.refcounts[(word & ~L2_COPIED) // builder.cluster_size] = times
            builder.l2[0][at] = word & ~L2_COPIED
    return builder.build()


def bomb() -> bytes:
    """Many entries for one piece of compressed data, each of its own cluster of zeros."""
    builder = Builder(256 << 20, cluster_bits=16, refcount_order=6)
    at = builder.compressed(0, deflate(bytes(builder.cluster_size)))
    word = builder.l2[0][0]
    for cluster in range(1, 4096):
        builder.entry(cluster, word)
    builder.refcounts[at // builder.cluster_size] = 4096
    return builder.build()


def endless_stream() -> bytes:
    builder = Builder(SIZE)
    builder.compressed(0, deflate(b"y" * (8 * builder.cluster_size)))
    return builder.build()


def zero_cluster_in_v2() -> bytes:
    builder = Builder(SIZE, version=2)
    builder.entry(0, L2_ZERO)
    return builder.build()


def tar_too() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("QFI\udcfb")
        member.size = 0
        archive.addfile(member)
    return patched(sound(), 257, file.getvalue()[257:265])


def zip_too() -> bytes:
    file = io.BytesIO(sound())
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("page.html", "<html>")
    return file.getvalue()


def read_too_low() -> bytes:
    builder = Builder(SIZE)
    at = builder.data(0, b"data")
    builder.refcounts[at // builder.cluster_size] = 0
    return builder.build()


DESCRIPTOR = b'\n# comment\nversion=1\ncreateType="monolithicFlat"\nRW 1 FLAT "/etc/shadow" 0\n'

ATTACKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "backing file": (with_backing, "name.backing_file"),
    "a place of a backing file, and no name": (
        lambda: patched(sound(), 8, struct.pack(">QI", 0x300, 0)),
        "name.backing_file",
    ),
    "data file": (with_data_file, "feature.data_file"),
    "data file by name alone": (with_data_file_name, "name.data_file"),
    "unknown incompatible feature": (lambda: sound(incompatible=1 << 40), "header.incompatible_features"),
    "unknown compatible feature": (lambda: sound(compatible_features=1 << 9), "feature.compatible_features"),
    "unknown extension": (with_unknown_extension, "extension.unknown"),
    "doubled extension": (with_two_extensions, "extension.duplicate"),
    "marked corrupt": (lambda: sound(incompatible=2), "feature.corrupt"),
    "encrypted": (lambda: sound(crypt_method=1), "feature.encryption"),
    "a guest with a qcow2 header": (guest_with(with_backing()), "guest.other_format"),
    "a guest with a vmdk descriptor": (guest_with(DESCRIPTOR), "guest.other_format"),
    "a guest with a vdi header": (guest_with(bytes(64) + b"\x7f\x10\xda\xbe"), "guest.other_format"),
    "one L2 table for all": (one_table_for_all, "tables.shared"),
    "decompression bomb": (bomb, "size.expansion"),
    "a stream that goes on": (endless_stream, "data.compressed"),
    "zero cluster in version 2": (zero_cluster_in_v2, "tables.zero_in_v2"),
    "tar": (tar_too, "file.other_format"),
    "boot sector": (lambda: patched(sound(), 510, b"\x55\xaa"), "file.other_format"),
    "zip": (zip_too, "file.other_format"),
    "html": (lambda: patched(sound(), 1000, b"<SCRIPT>"), "file.other_format"),
    "vhd footer": (lambda: sound() + b"conectix" + bytes(504), "file.other_format"),
    "hidden behind the header": (lambda: patched(sound(), 2000, b"secret"), "file.hidden"),
    "appended": (lambda: sound() + b"appended", "file.trailing"),
    "a refcount that is too low": (read_too_low, "refcount.low"),
    "not qcow2": (lambda: b"KDMV" + bytes(508), "format.not_allowed"),
    "text": (lambda: b"hello\n", "format.not_allowed"),
    "nothing": (lambda: b"", "format.empty"),
    "cut": (lambda: sound()[:5000], "past_end"),
    "the header alone": (lambda: sound()[:50], "image.unreadable"),
    "a disk of 8 EiB": (lambda: patched(sound(), 24, struct.pack(">Q", (1 << 63) - 512)), "size.virtual"),
}


@pytest.mark.parametrize(("make", "rule"), ATTACKS.values(), ids=ATTACKS)
def test_an_attack_is_rejected_by_its_rule(make: Callable[[], bytes], rule: str) -> None:
    found = inspect(make())
    assert found.verdict is Verdict.REJECT and found.exit_code == 2
    assert rule in rules_of(found), found.reasons


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("cluster_bits", [9, 12, 16])
def test_a_sound_image_is_accepted(cluster_bits: int, version: int) -> None:
    found = inspect(sound(cluster_bits=cluster_bits, version=version))
    assert (found.verdict, found.reasons, found.exit_code) == (Verdict.ACCEPT, [], 0)
    assert found.facts["virtual-bytes"] == SIZE and found.facts["compressed-clusters"] == 1


def test_what_is_allowed_is_accepted() -> None:
    assert inspect(with_backing(), allow_backing_file=True).accepted
    assert inspect(with_unknown_extension(), allow_unknown_extensions=True).accepted
    assert inspect(sound(compatible_features=1 << 9), allow_unknown_features=True).accepted
    assert inspect(sound() + b"appended", allow_trailing_data=True).accepted
    assert inspect(guest_with(with_backing()[:4096])(), allow_other_formats=True).accepted
    assert inspect(bomb(), max_expansion=1 << 20).accepted
    assert inspect(b"hello\n", formats=("raw",)).accepted
    assert inspect(DESCRIPTOR, formats=("raw",)).verdict is Verdict.REJECT
    assert inspect(b"KDMV" + bytes(508), formats=("vmdk",)).verdict is Verdict.UNSURE


def test_what_is_sound_is_rejected_where_it_is_not_allowed() -> None:
    assert rules_of(inspect(sound(), allow_compression=False)) == {"feature.compression"}
    assert rules_of(inspect(sound(), max_virtual_bytes=SIZE - 1)) == {"size.virtual"}
    assert rules_of(inspect(sound(), max_file_bytes=100)) == {"size.file"}
    assert rules_of(inspect(sound(), max_metadata_bytes=100)) == {"size.metadata"}
    found = inspect(sound(), image_format="raw")
    assert rules_of(found) == {"format.stated"}


def test_snapshots_are_looked_at_where_they_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "vm.qcow2"
    qcow2c.create(path, SIZE)
    with qcow2c.open(path, "r+") as image:
        image.pwrite(with_backing()[:512], 0)
        image.snapshots.create("\x1b[2Jname")
        image.pwrite(bytes(512), 0)
    assert rules_of(inspect(path)) == {"feature.snapshots"}
    found = inspect(path, allow_snapshots=True)
    assert rules_of(found) == {"guest.other_format"}
    assert "snapshot 0" in str(found.reasons[0])


def test_leaks_and_an_image_that_was_not_closed_are_doubts() -> None:
    builder = Builder(SIZE)
    builder.allocate(1)
    leaking = builder.build()
    assert inspect(leaking).verdict is Verdict.UNSURE
    assert inspect(leaking, allow_leaks=True).accepted
    assert inspect(sound(incompatible=1)).verdict is Verdict.UNSURE
    assert inspect(sound(incompatible=1), allow_dirty=True).accepted
    assert inspect(patched(sound(), 24, struct.pack(">Q", SIZE - 1))).exit_code == 3


def test_the_time_is_bounded() -> None:
    found = look(Memory(sound()), Policy(max_seconds=0), clock=iter([0.0, 1.0]).__next__)
    assert rules_of(found) == {"limit.time"} and found.verdict is Verdict.UNSURE


def test_names_are_text() -> None:
    builder = Builder(SIZE)
    builder.backing_file = b"\x1b]0;x\x07\xff"
    found = inspect(builder.build())
    assert "\x1b" not in str(found.as_dict())


def test_a_verdict_survives_json_and_lists_no_more_than_it_may() -> None:
    found = inspect(with_backing())
    assert inspection_of(found.as_dict()) == found
    many = Inspection("x")
    for number in range(MAX_REASONS + 5):
        many.add(Reason(f"rule.{number}", Verdict.UNSURE, "m"))
    many.add(Reason("last", Verdict.REJECT, "m"))
    assert (len(many.reasons), many.reasons_unlisted, many.verdict) == (MAX_REASONS, 6, Verdict.REJECT)
    assert inspection_of(many.as_dict()).verdict is Verdict.REJECT


@pytest.mark.parametrize(("offset", "signature", "name"), IMAGE_SIGNATURES)
def test_each_signature_is_found_at_its_place(offset: int, signature: bytes, name: str) -> None:
    data = bytearray(2048)
    at = offset if offset >= 0 else len(data) + offset
    data[at : at + len(signature)] = signature
    found = {like.name for like in image_likenesses(lambda length, start: bytes(data[start : start + length]), 2048)}
    assert name in found


def test_another_process_has_the_same_verdict(tmp_path: Path) -> None:
    for name, image in (("good", sound()), ("bad", with_backing())):
        path = tmp_path / name
        path.write_bytes(image)
        apart = inspect(path, isolated=True)
        assert apart == inspect(path)
        descriptor = os.open(path, os.O_RDONLY)
        assert inspect(descriptor, isolated=True).verdict is apart.verdict
        os.close(descriptor)
    with pytest.raises(qcow2c.UsageError, match="takes a path or a descriptor"):
        inspect(sound(), isolated=True)


def test_another_process_that_needs_more_than_it_may_leaves_a_doubt(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(sound())
    found = inspect(path, isolated=True, memory_bytes=40 << 20)
    assert found.verdict is Verdict.UNSURE
    assert rules_of(found) <= {"limit.memory", "limit.process"}


def test_what_is_no_file_raises(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for source in (tmp_path, tmp_path / "fifo", tmp_path / "none"):
        for isolated in (False, True):
            with pytest.raises(qcow2c.StoreError):
                inspect(source, isolated=isolated)


def test_a_terabyte_of_tables_in_holes_is_rejected_at_once(tmp_path: Path) -> None:
    builder = Builder(1 << 44, cluster_bits=16)
    builder.l1 = [((1 << 30) + (number << 16)) | L2_COPIED for number in range(len(builder.l1))]
    path = tmp_path / "bomb"
    path.write_bytes(builder.build())
    os.truncate(path, 1 << 40)
    started = time.monotonic()
    found = inspect(path, max_file_bytes=1 << 41, max_virtual_bytes=1 << 45)
    assert rules_of(found) == {"size.metadata"}
    assert time.monotonic() - started < 10


def test_a_compressed_cluster_of_another_length_is_named() -> None:
    builder = Builder(SIZE)
    at = builder.compressed(0, deflate(b"y" * (builder.cluster_size - 1)))
    found = inspect(builder.build())
    (reason,) = [one for one in found.reasons if one.rule == "data.compressed"]
    assert reason.where is not None and reason.where.offset == at
