"""Images by options: what the real qemu-img says of the same words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Outcome, run_qemu_img

Run = Callable[..., Outcome]

pytestmark = pytest.mark.usefixtures("requires_qemu")

DISK = "driver=qcow2,file.filename=disk.qcow2"
OVER = "driver=qcow2,file.filename=over.qcow2"
JSON = "json:" + json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": "disk.qcow2"}})

# What the programs must agree on to the letter; a first word "opts" stands for --image-opts.
WORDS = [
    f"opts {DISK}", f"opts {DISK} -U", f"opts {DISK},force-share=on -U", f"opts {DISK},force-share=off -U",
    "opts file.filename=disk.qcow2", "opts disk.qcow2", f"opts -f qcow2 {DISK}", f"opts {DISK},colour=red",
    "opts driver=foo,file.filename=disk.qcow2", "opts driver=qcow2", "opts driver=qcow2,file.driver=foo",
    "opts driver=qcow2,file.driver=file", "opts driver=file", "opts driver=file,filename=disk.qcow2,colour=red",
    "opts file.driver=file,file.filename=disk.qcow2,file.colour=red", "opts a=b", f"opts {DISK},force-share=maybe",
    f"opts {OVER}", f"opts {OVER},backing=", f"opts {OVER},lazy-refcounts=on,l2-cache-size=1M",
    'json:[1]', 'json:"x"', 'json:{"driver":"foo"}', 'json:{"driver":"qcow2"}', 'json:{"filename":"disk.qcow2"}',
    'json:{"driver":"qcow2","file":"node"}', '-f raw json:{"driver":"file","filename":"disk.qcow2"}',
    'json:{"driver":"qcow2","file.filename":"over.qcow2","backing":null}', "--object secret,id=a,data=b disk.qcow2",
    'json:{"driver":"qcow2","file.filename":"over.qcow2"}',
    "opts driver=raw,offset=100,size=1000,file.filename=data",
    "opts driver=raw,size=10M,file.filename=data", "opts driver=raw,offset=10M,file.filename=data",
    "opts driver=qcow2,offset=512,file.filename=disk.qcow2",
]  # fmt: skip

# Only for what reads the backing file.
CHAINS = [
    f"opts {OVER},backing.driver=foo", f"opts {OVER},backing.driver=qcow2",
    f"opts {OVER},backing.driver=qcow2,backing.file.filename=disk.qcow2",
    f"opts {OVER},backing.driver=qcow2,backing.file.filename=disk.qcow2,backing.colour=red",
    f"opts {OVER},backing.driver=raw", f"opts {OVER},backing.driver=raw,backing.file.filename=data",
    f"opts {OVER},backing.driver=raw,backing.file.filename=data,backing.offset=512,backing.size=64k",
    "opts driver=raw,offset=512,size=1024,file.filename=data", "opts driver=raw,size=4k,file.filename=data",
    "opts driver=raw,offset=512,size=1024,file.driver=raw,file.offset=1024,file.file.filename=data",
    'json:{"driver":"qcow2","file.filename":"over.qcow2","backing":{"driver":"qcow2","backing":null,"file.filename":'
    '"disk.qcow2"}}',
    'json:{"driver":"qcow2","file.filename":"over.qcow2","backing":{"driver":"qcow2","file.filename":"over2.qcow2",'
    '"backing":{"driver":"raw","file.filename":"data"}}}',
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").write_bytes(b"data" * 50_000)
    for words in (
        "convert -O qcow2 data disk.qcow2",
        "create -q -f qcow2 -b disk.qcow2 -F qcow2 over.qcow2",
        "create -q -f qcow2 -b disk.qcow2 -F qcow2 over2.qcow2",
    ):
        assert run_qemu_img(tmp_path, *words.split()).status == 0
    return tmp_path


def agree(folder: Path, run_ours: Run, command: str, words: str, *more: str) -> None:
    line = [command, *words.replace("opts", "--image-opts", 1).split(), *more]
    theirs = run_qemu_img(folder, *line)
    ours = run_ours(folder, *line)
    assert (ours.status, ours.out) == (theirs.status, theirs.out)
    assert ours.err == theirs.err.replace("qemu-img: ", "qcow2c: ")


@pytest.mark.parametrize("command", ["info", "map", "check", "measure"])
@pytest.mark.parametrize("words", [*WORDS, JSON.replace(" ", ""), f"-f qcow2 {JSON.replace(' ', '')}"])
def test_one_image(command: str, words: str, folder: Path, run_ours: Run) -> None:
    agree(folder, run_ours, command, words)


@pytest.mark.parametrize("command", ["map", "measure"])
@pytest.mark.parametrize("words", CHAINS)
def test_a_chain(command: str, words: str, folder: Path, run_ours: Run) -> None:
    agree(folder, run_ours, command, words)


@pytest.mark.parametrize("words", WORDS)
def test_compare(words: str, folder: Path, run_ours: Run) -> None:
    agree(folder, run_ours, "compare", words, "file.filename=over.qcow2" if "opts" in words else "over.qcow2")


@pytest.mark.parametrize("words", ["-F qcow2", "-f qcow2", "-f qcow2 -F qcow2", ""])
def test_compare_with_formats(words: str, folder: Path, run_ours: Run) -> None:
    agree(folder, run_ours, "compare", f"opts {words} {DISK} {OVER}")


@pytest.mark.parametrize("words", ["opts", "opts --size 1M", f"opts {DISK} --size 1M", f"opts {DISK} {DISK}"])
def test_measure_without_an_image(words: str, folder: Path, run_ours: Run) -> None:
    agree(folder, run_ours, "measure", f"{words} ")
