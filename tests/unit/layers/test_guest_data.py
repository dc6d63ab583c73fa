from __future__ import annotations

import io

import pytest

import qcow2c
from qcow2c.errors import CorruptData, MissingKey, WrongKey
from tests.corpus.make_seeds import SECRET
from tests.corpus.patch import seed_bytes


@pytest.mark.parametrize("name", ["luks.qcow2", "aes.qcow2"])
def test_encrypted_data_is_read_with_its_key_and_written(name: str) -> None:
    file = io.BytesIO(seed_bytes(name))
    with qcow2c.open(file, "r+", key=SECRET) as image:
        before = image.pread(image.size(), 0)
        assert before[:4096] == bytes((before[0],)) * 4096 != bytes(4096)
        model = bytearray(before)
        for offset, data in ((0, b"one"), (1000, b"t" * 600), (4095, b"ab"), (20_000, b"w" * 9000)):
            image.pwrite(data, offset)
            model[offset : offset + len(data)] = data
        image.write_zeroes(300, 5000)
        model[300:5300] = bytes(5000)
        image.discard(8192, 4096)
        model[8192:12288] = bytes(4096)
        assert image.pread(image.size(), 0) == model
        image.snapshots.create("then")
        image.pwrite(b"later", 0)
        with image.snapshots["then"].open() as then:
            assert then.pread(then.size(), 0) == model
    model[:5] = b"later"
    with qcow2c.open(file, key=lambda _name: SECRET) as image:
        assert image.pread(image.size(), 0) == model
        assert image.pread(1, 5) == model[5:6]
    assert b"w" * 100 not in file.getvalue()
    assert qcow2c.check(file.getvalue()).exit_code == 0


def test_without_a_key_there_is_metadata_and_no_data() -> None:
    data = seed_bytes("luks.qcow2")
    with qcow2c.open(data) as image:
        assert image.size() and image.layer.needs_key
        with pytest.raises(MissingKey, match="no key was given"):
            image.pread(1, 0)
    with pytest.raises(MissingKey):
        qcow2c.open(io.BytesIO(data), "r+")


def test_a_wrong_key_is_told_at_once() -> None:
    with pytest.raises(WrongKey):
        qcow2c.open(seed_bytes("luks.qcow2"), key=b"no")


def test_a_key_is_asked_for_only_where_it_is_needed() -> None:
    def never(_name: str) -> bytes:
        pytest.fail("asked")

    with qcow2c.open(seed_bytes("v3.qcow2"), key=never):
        pass


def test_a_cluster_past_the_end_of_an_encrypted_file_is_an_error() -> None:
    whole = seed_bytes("aes.qcow2")
    with qcow2c.open(whole, key=SECRET) as image:
        run = next(run for run in image.layer.runs(0, image.size()) if run.host_offset)
    with qcow2c.open(whole[: run.host_offset], key=SECRET, on_error="zero") as image:
        image.pread(image.size(), 0)
        assert image.salvaged and isinstance(image.salvaged[0].error, CorruptData | qcow2c.Qcow2Error)


@pytest.mark.parametrize("key", [SECRET, None])
@pytest.mark.parametrize("name", ["luks.qcow2", "aes.qcow2"])
def test_no_reader_is_led_to_encrypted_bytes_of_the_file(name: str, key: str | None) -> None:
    """Who reads files directly asks `locate`, or a map: neither has a place of encrypted data."""
    with qcow2c.open(seed_bytes(name), key=key) as image:
        image.layer.run_at(0, 4096)  # Its table is loaded.
        assert image.layer.locate(0, 512) < 0
        assert all(extent.offset is None for extent in qcow2c.map(image))
