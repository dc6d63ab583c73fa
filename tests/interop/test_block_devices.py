"""Block devices that the caller names: the same as the real qemu-img does with the same device."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import qcow2c
from tests.loop_device import loop_device, requires_loop

from .conftest import Outcome, run_qemu_img

MIB = 1 << 20
SIZE = 16 * MIB
OLD = b"old content "

Run = Callable[..., Outcome]

pytestmark = [pytest.mark.usefixtures("requires_qemu"), requires_loop]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    """A device full of old bytes: nothing on it reads as zeros by itself."""
    (tmp_path / "device").write_bytes((OLD * (SIZE // len(OLD) + 1))[:SIZE])
    with loop_device(tmp_path / "device", SIZE) as device:
        yield device


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A raw disk of half the size, with data and zeros."""
    chooser = random.Random(3)
    content = bytearray(8 * MIB)
    for _ in range(20):
        start = chooser.randrange(7 * MIB)
        content[start : start + 70_000] = chooser.randbytes(70_000)
    (tmp_path / "disk").write_bytes(content)
    return tmp_path / "disk"


def content_of(device: str) -> bytes:
    with open(device, "rb") as file:
        return file.read()


@pytest.mark.parametrize(
    "words",
    [
        "info", "map -f raw --output=json", "map -f raw", "measure -O qcow2",
        "resize -f raw", "check",
    ],
)  # fmt: skip
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_reports(words: str, image_format: str, device: str, disk: Path, run_ours: Run) -> None:
    assert run_qemu_img(disk.parent, "convert", "-O", image_format, "disk", device).status == 0
    more = [str(SIZE)] if words.startswith("resize") else []
    ours = run_ours(disk.parent, *words.split(), device, *more)
    theirs = run_qemu_img(disk.parent, *words.split(), device, *more)
    assert ours.status == theirs.status
    assert ours.out.replace(' "compressed": false,', "") == theirs.out


def test_facts(device: str, disk: Path, run_ours: Run) -> None:
    assert run_qemu_img(disk.parent, "convert", "-O", "qcow2", "disk", device).status == 0
    ours, theirs = (run(disk.parent, "info", "--output=json", device).json() for run in (run_ours, run_qemu_img))
    (below,) = ours.pop("children")
    theirs.pop("children", None)
    assert ours == theirs
    assert (below["info"]["format"], below["info"]["virtual-size"]) == ("host_device", SIZE)


@pytest.mark.parametrize("words", ["8M", "--shrink 8M", "32M", "+1M"])
def test_raw_device_keeps_its_size(words: str, device: str, tmp_path: Path, run_ours: Run) -> None:
    *options, size = words.split()
    ours = run_ours(tmp_path, "resize", "-f", "raw", *options, device, size)
    theirs = run_qemu_img(tmp_path, "resize", "-f", "raw", *options, device, size)
    assert ours.status == theirs.status == 1
    if "Cannot resize" in theirs.err:
        assert "Cannot resize device files" in ours.err
    with open(device, "rb") as file:
        assert file.read(len(OLD)) == OLD


@pytest.mark.parametrize("existing", [[], ["-n"]])
def test_raw_copy_is_the_disk_and_what_is_behind_it_stays(
    existing: list[str], device: str, disk: Path, run_ours: Run
) -> None:
    assert run_ours(disk.parent, "convert", *existing, "-O", "raw", "disk", device).status == 0
    found = content_of(device)
    assert found[: 8 * MIB] == disk.read_bytes()
    assert found[8 * MIB :] == (OLD * (SIZE // len(OLD) + 1))[8 * MIB : SIZE]


@pytest.mark.parametrize("words", ["", "-c", "-o preallocation=metadata", "-o extended_l2=on,cluster_size=128k"])
def test_qcow2_copy_onto_a_device(words: str, device: str, disk: Path, run_ours: Run) -> None:
    assert run_ours(disk.parent, "convert", *words.split(), "-O", "qcow2", "disk", device).status == 0
    assert run_qemu_img(disk.parent, "compare", "-f", "raw", "-F", "qcow2", "disk", device).status == 0
    for found in (run_ours(disk.parent, "check", device), run_qemu_img(disk.parent, "check", device)):
        assert found.status == 0 and "No errors" in found.out


def test_qcow2_copy_over_an_image_on_a_device(device: str, disk: Path, run_ours: Run) -> None:
    assert run_qemu_img(disk.parent, "create", "-q", "-f", "qcow2", device, "8M").status == 0
    assert run_ours(disk.parent, "convert", "-n", "-O", "qcow2", "disk", device).status == 0
    assert run_qemu_img(disk.parent, "compare", "-f", "raw", "-F", "qcow2", "disk", device).status == 0
    assert run_qemu_img(disk.parent, "check", device).status == 0


def test_copy_from_a_device(device: str, disk: Path, run_ours: Run) -> None:
    assert run_qemu_img(disk.parent, "convert", "-O", "qcow2", "disk", device).status == 0
    assert run_ours(disk.parent, "convert", "-O", "raw", device, "copy").status == 0
    assert (disk.parent / "copy").read_bytes() == disk.read_bytes()
    assert run_ours(disk.parent, "compare", device, "disk").status == 0
    assert run_ours(disk.parent, "compare", "disk", device).status == 0


@pytest.mark.parametrize("output_format", ["raw", "qcow2"])
def test_dd(output_format: str, device: str, disk: Path, tmp_path: Path, run_ours: Run) -> None:
    words = ("dd", "-f", "raw", "-O", output_format, f"if={disk}", f"of={device}", "bs=64k", "skip=1", "count=90")
    assert run_ours(tmp_path, *words).status == 0
    part = tmp_path / "part"
    part.write_bytes(disk.read_bytes()[1 << 16 : 90 << 16])
    if output_format == "raw":
        assert content_of(device).startswith(part.read_bytes())
    else:
        assert run_qemu_img(tmp_path, "compare", "-f", "raw", "-F", "qcow2", str(part), device).status == 0
        assert run_qemu_img(tmp_path, "check", device).status == 0
    assert run_ours(tmp_path, "dd", f"if={device}", "of=back", "bs=512", "count=3").status == 0


@pytest.mark.parametrize(
    "words",
    [
        "convert -O raw large DEVICE", "convert -n -f raw -O raw large DEVICE", "dd -f raw if=large of=DEVICE bs=1M",
        "create -q -f raw DEVICE 17M", "create -q -f qcow2 -o preallocation=full DEVICE 17M",
    ],
)  # fmt: skip
def test_what_has_no_room_is_refused(words: str, device: str, tmp_path: Path, run_ours: Run) -> None:
    (tmp_path / "large").write_bytes(b"x" * (SIZE + MIB))
    named = words.replace("DEVICE", device).split()
    ours, theirs = run_ours(tmp_path, *named), run_qemu_img(tmp_path, *named)
    assert ours.status == theirs.status == 1
    assert "Cannot grow device files" in ours.err or "output file is smaller" in ours.err


def test_full_device_leaves_a_sound_image(device: str, tmp_path: Path) -> None:
    qcow2c.create(device, 64 * MIB)
    done = 0
    with qcow2c.open(device, "r+") as image:
        with pytest.raises(qcow2c.StoreError, match="No space left on device"):
            for done in range(0, 64 * MIB, MIB):
                image.pwrite(bytes([done >> 20 | 128]) * MIB, done)
        image.discard(0, 4 * MIB)
        image.flush()
    assert done >= 14 * MIB
    assert run_qemu_img(tmp_path, "check", device).status == 0
    with qcow2c.open(device) as image:
        assert image.pread(4 * MIB, 0) == bytes(4 * MIB)
        assert image.pread(MIB, 10 * MIB) == bytes([138]) * MIB


def test_changes_of_an_image_on_a_device(device: str, disk: Path, run_ours: Run) -> None:
    folder = disk.parent
    assert run_ours(folder, "create", "-q", "-f", "qcow2", device, "4M").status == 0
    for words in (
        ["snapshot", "-c", "one", device], ["resize", "-q", device, "8M"], ["bitmap", "--add", device, "b"],
        ["amend", "-o", "lazy_refcounts=on", device], ["snapshot", "-d", "one", device],
    ):  # fmt: skip
        assert run_ours(folder, *words).status == 0, words
        assert run_qemu_img(folder, "check", device).status == 0, words
    assert run_ours(folder, "create", "-q", "-f", "qcow2", "-b", device, "-F", "qcow2", "over").status == 0
    refused = run_ours(folder, "info", "--backing-chain", "over")
    assert refused.status == 1 and "--gate" in refused.err
    with qcow2c.open(folder / "over", "r+", gate="any") as image:
        image.pwrite(b"above", MIB)
    assert run_ours(folder, "commit", "-q", "--gate", "any", "over").status == 0
    with qcow2c.open(device) as image:
        assert image.pread(5, MIB) == b"above"


def test_commit_into_a_raw_device(device: str, tmp_path: Path, run_ours: Run) -> None:
    assert run_ours(tmp_path, "create", "-q", "-f", "qcow2", "-b", device, "-F", "raw", "over").status == 0
    with qcow2c.open(tmp_path / "over", "r+", gate="any") as image:
        image.pwrite(b"above", 1000)
        image.write_zeroes(MIB, 100_000)
    assert run_ours(tmp_path, "commit", "-q", "--gate", "any", "over").status == 0
    found, old = content_of(device), (OLD * (SIZE // len(OLD) + 1))[:SIZE]
    assert found == old[:1000] + b"above" + old[1005:MIB] + bytes(100_000) + old[MIB + 100_000 :]


def test_device_is_served(device: str, tmp_path: Path) -> None:
    script = 'qemu-io -f raw -c "write -P 7 1M 64k" -c "write -z 2M 64k" -c "discard 3M 64k" -c flush "$uri"'
    command = [sys.executable, "-m", "qcow2c", "serve", "nbd", "-f", "raw", "--rw", "--run", script, device]
    served = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60)
    assert served.returncode == 0, served.stderr
    found = content_of(device)
    assert found[MIB : MIB + 65536] == b"\7" * 65536 and found[2 * MIB : 2 * MIB + 65536] == bytes(65536)


def test_copy_onto_what_is_mounted_is_refused(device: str, disk: Path, run_ours: Run) -> None:
    subprocess.run(["mkfs.ext4", "-q", "-F", device], check=True)
    place = disk.parent / "mounted"
    place.mkdir()
    if subprocess.run(["mount", device, place], check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        found = run_ours(disk.parent, "convert", "-O", "raw", "disk", device)
        assert found.status == 1 and "busy" in found.err
        assert run_ours(disk.parent, "info", device).status == 0
    finally:
        subprocess.run(["umount", place], check=True)
