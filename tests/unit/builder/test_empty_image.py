"""New images without data: the magic value comes last, and what was allocated is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.builder.empty_image import create_raw, create_volume, require_raw_preallocation, write_image
from qcow2c.builder.options import CreateOptions
from qcow2c.crypto.new_encryption import Encryption
from qcow2c.crypto.secrets import Secret
from qcow2c.crypto.volume import open_volume
from qcow2c.errors import NotQcow2, UsageError
from qcow2c.storage.sources import Memory, opened
from qcow2c.structs import MAGIC
from tests.crash.recording import Kind, Recorder, crash_states

MIB = 1 << 20
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "old": {"compat": "0.10", "cluster_size": 4096},
    "metadata": {"preallocation": "metadata", "cluster_size": 4096},
    "full": {"preallocation": "full", "cluster_size": 512, "refcount_bits": 1},
    "subclusters": {"preallocation": "falloc", "extended_l2": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_image_is_sound_and_reads_as_zeros(kind: str) -> None:
    data = bytearray()
    write_image(data, CreateOptions(MIB + 512, **KINDS[kind]))
    assert qcow2c.check(bytes(data)).exit_code == 0
    with qcow2c.open(bytes(data)) as image:
        assert image.size() == MIB + 512 and not any(image.readall())


@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_leaves_no_image_or_a_whole_one(kind: str) -> None:
    recorder = Recorder()
    write_image(recorder.store(b""), CreateOptions(64 << 10, **KINDS[kind]))
    seen = set()
    for state in crash_states(recorder, 1):
        try:
            seen.add(qcow2c.check(Memory(state.files[0])).exit_code)
        except NotQcow2:
            seen.add(-1)
    assert seen == {-1, 0}


def test_the_magic_value_is_written_after_all_else_is_durable() -> None:
    recorder = Recorder()
    write_image(recorder.store(b"old contents of the file"), CreateOptions(MIB))
    last = max(time for time, event in enumerate(recorder.log) if event.kind is Kind.WRITE)
    assert recorder.log[last].data.startswith(MAGIC) and recorder.log[last - 1].kind is Kind.FLUSH
    assert not any(event.data.startswith(MAGIC) for event in recorder.log[:last])


def test_a_data_file_has_the_length_of_the_disk() -> None:
    data, outside = bytearray(), bytearray(b"leftover")
    write_image(data, CreateOptions(MIB, data_file="outside", preallocation="metadata"), outside)
    assert outside == bytes(MIB) and qcow2c.check(bytes(data)).exit_code == 0


@pytest.mark.parametrize(("preallocation", "allocated"), [("off", False), ("falloc", True), ("full", True)])
def test_a_raw_image_has_whole_sectors_and_its_space(tmp_path: Path, preallocation: str, *, allocated: bool) -> None:
    create_raw(tmp_path / "disk", MIB + 1, preallocation=preallocation)
    status = (tmp_path / "disk").stat()
    assert status.st_size == MIB + 512 and (status.st_blocks * 512 >= MIB) == allocated


def test_a_raw_image_has_no_metadata_to_preallocate() -> None:
    with pytest.raises(UsageError, match="does not accept value 'metadata'"):
        require_raw_preallocation("metadata")


def test_a_volume_is_there_with_its_key_slot_and_its_size(tmp_path: Path) -> None:
    create_volume(tmp_path / "v.luks", 5000, Encryption("luks", "pass", iter_time_ms=1))
    with opened(tmp_path / "v.luks", writable=True) as store:
        volume = open_volume(store, Secret(b"pass"))
        assert volume.size() == 5120
        volume.pwrite(b"text" * 256, 512)
    with opened(tmp_path / "v.luks") as store:
        assert open_volume(store, Secret(b"pass")).pread(8, 512) == b"texttext"
