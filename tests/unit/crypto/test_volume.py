"""Raw LUKS volumes: made by a copy, read again, judged where they are none."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from dissect.fve.luks import LUKS

import qcow2c
from qcow2c.crypto.new_encryption import Encryption
from qcow2c.crypto.secrets import Secret
from qcow2c.crypto.volume import LuksVolume, open_volume
from qcow2c.errors import CorruptMetadata, MissingKey, Qcow2Error, UnsupportedFeature, UsageError, WrongKey
from qcow2c.storage.sources import Memory, WritableMemory

SIZE = 100 << 10


def made() -> tuple[bytearray, LuksVolume]:
    new = Encryption("luks", "k", "aes-128", iter_time_ms=1).make()
    data = bytearray(new.header.ljust(new.length + SIZE, b"\0"))
    return data, open_volume(WritableMemory(data), Secret(b"k"))


def test_what_is_written_is_read_by_sectors_and_by_parts() -> None:
    data, volume = made()
    assert volume.size() == SIZE
    volume.write_zeroes(0, SIZE)
    model, drawn = bytearray(SIZE), random.Random(1)
    for _ in range(40):
        length = drawn.choice((1, 511, 512, 700, 5000, 30_000))
        offset = drawn.randrange(SIZE - length)
        piece = drawn.randbytes(length)
        volume.pwrite(piece, offset)
        model[offset : offset + length] = piece
        assert volume.pread(length + 10, max(0, offset - 5)) == model[max(0, offset - 5) :][: length + 10]
    assert volume.pread(2 * SIZE, 0) == model
    assert open_volume(Memory(bytes(data)), Secret(b"k")).pread(SIZE, 0) == model
    volume.pwrite(b"text" * 128, 512)
    assert b"text" * 16 not in data


def test_a_volume_that_cannot_be_opened_says_why() -> None:
    data, _ = made()
    for change, error in (
        (data[:500], CorruptMetadata),
        (b"other" + data[5:], CorruptMetadata),
        (data[:6] + b"\0\2" + data[8:], UnsupportedFeature),
    ):
        with pytest.raises(error):
            open_volume(Memory(bytes(change)), Secret(b"k"))
    with pytest.raises(WrongKey):
        open_volume(Memory(bytes(data)), Secret(b"j"))


def test_copies_go_from_volumes_and_to_them(tmp_path: Path) -> None:
    raw, volume, image, again = (tmp_path / name for name in ("a.raw", "a.luks", "a.qcow2", "b.raw"))
    raw.write_bytes(b"text" * 3000 + bytes(900_000) + b"end!" * 1000)
    whole = raw.read_bytes().ljust(-(-raw.stat().st_size // 512) * 512, b"\0")
    wanted = Encryption("luks", "k", "aes-128", iter_time_ms=1)
    qcow2c.convert(raw, volume, output_format="luks", image_format="raw", encryption=wanted)
    assert b"texttext" not in volume.read_bytes()
    assert qcow2c.measure(raw, output_format="luks", image_format="raw", encryption=wanted).required == (
        volume.stat().st_size
    )
    facts: Any = qcow2c.info(volume)
    assert (facts["format"], facts["virtual-size"], facts["encrypted"]) == ("luks", len(whole), True)
    assert facts["format-specific"]["type"] == "luks" and "format" not in facts["format-specific"]["data"]
    qcow2c.convert(volume, image, output_format="qcow2", key="k")
    assert qcow2c.compare(volume, image, key="k").identical
    qcow2c.convert(volume, again, key="k")
    assert again.read_bytes() == whole
    with pytest.raises(MissingKey):
        qcow2c.convert(volume, again)
    with pytest.raises(WrongKey):
        qcow2c.convert(volume, again, key="j")
    assert again.read_bytes() == whole


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"encryption": Encryption("aes", "k")},
        {"encryption": Encryption("luks", "k"), "cluster_size": 4096},
        {"encryption": Encryption("luks", "k"), "compressed": True},
    ],
    ids=str,
)
def test_what_a_volume_cannot_be_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    raw = tmp_path / "a.raw"
    raw.write_bytes(bytes(512))
    with pytest.raises(Qcow2Error) as found:
        qcow2c.convert(raw, tmp_path / "no.luks", output_format="luks", image_format="raw", **options)
    assert isinstance(found.value, UsageError)
    assert not (tmp_path / "no.luks").exists()


@pytest.mark.parametrize(
    ("cipher", "hash_name"),
    [
        ("aes-256-xts-plain64", "sha256"),
        ("aes-128-xts-plain", "sha1"),
        ("aes-256-cbc-essiv:sha256", "sha512"),
        ("aes-128-ecb-plain64", "sha256"),
    ],
)
def test_another_library_reads_our_volumes_and_opens_our_key_slots(cipher: str, hash_name: str, tmp_path: Path) -> None:
    content = random.Random(cipher).randbytes(300_000).ljust(1 << 19, b"\0")
    wanted = Encryption("luks", "one", cipher, hash_name, iter_time_ms=1)
    qcow2c.convert(content, tmp_path / "v", image_format="raw", output_format="luks", encryption=wanted)
    assert qcow2c.add_key(tmp_path / "v", "one", "two", iter_time_ms=1) == 1
    assert qcow2c.remove_key(tmp_path / "v", key="one") == (0,)
    with (tmp_path / "v").open("rb") as file:
        other = LUKS(file)
        with pytest.raises(ValueError, match="No valid keyslot"):
            other.unlock_with_passphrase("one")
        other.unlock_with_passphrase("two")
        assert other.open().read(len(content)) == content


def test_a_volume_that_is_there_is_filled_with_its_key_and_keeps_its_slots(tmp_path: Path) -> None:
    data = bytes(4096) + b"text" * 1024
    path = tmp_path / "v.luks"
    wanted = Encryption("luks", "k", iter_time_ms=1)
    qcow2c.convert(bytes(16384), path, image_format="raw", output_format="luks", encryption=wanted)
    header = path.read_bytes()[:4096]

    def fill(source: bytes, **options: Any) -> None:
        qcow2c.convert(source, path, image_format="raw", output_format="luks", existing=True, **options)

    with pytest.raises(MissingKey, match="'key-secret' is required"):
        fill(data)
    with pytest.raises(WrongKey):
        fill(data, target_key="j")
    with pytest.raises(UsageError, match="output file is smaller"):
        fill(bytes(20480), target_key="k")
    fill(data, target_key="k")
    assert path.read_bytes()[:4096] == header
    qcow2c.convert(path, tmp_path / "out.raw", key="k")
    assert (tmp_path / "out.raw").read_bytes() == data.ljust(16384, b"\0")
