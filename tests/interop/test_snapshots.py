"""Internal snapshots beside qemu-img: the same words, exit status and images; and histories that both share."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from tests.profile import DEEP

from .conftest import Outcome, older, run_qemu_img
from .workshop import IMAGE, KIB, MIB, Workshop

pytestmark = pytest.mark.usefixtures("requires_qemu")

OTHER = "other.qcow2"
SEEDS = range(60) if DEEP else range(1)
RunOurs = Callable[..., Outcome]

_DATE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """Return a function from a kind to such an image, which is made once."""
    made: dict[str, bytes] = {}

    def get(kind: str) -> bytes:
        if kind not in made:
            folder = tmp_path_factory.mktemp("snapshots")
            make(folder, kind)
            made[kind] = (folder / IMAGE).read_bytes()
        return made[kind]

    return get


def make(folder: Path, kind: str) -> None:
    shop = Workshop(folder, 1)
    if kind == "raw":
        shop.raw(IMAGE, MIB)
    elif kind == "data file":
        shop.create(MIB, "data_file=data.raw")
    else:
        shop.create(MIB, "refcount_bits=1" if kind == "narrow" else "cluster_size=4k")
        shop.io("write -P 1 0 64k")
    if kind == "snapshots":
        for number, name in enumerate(("one", "two", "1", "two", "", "n" * 255)):
            shop.img("snapshot", "-c", name, IMAGE)
            shop.io(f"write -P {number + 2} {number * 4}k 4k")
    elif kind == "bitmap":
        shop.img("snapshot", "-c", "one", IMAGE)
        shop.img("bitmap", "--add", IMAGE, "bits")


COMMANDS = {
    "snapshots": (
        "-l @", "-q -l @", "-U -l @", "@", "-c three @", "-c two @", "-c '' @", "-c N @", "-a one @", "-a 1 @",
        "-a 2 @", "-a two @", "-a '' @", "-a n @", "-a N @", "-a gone @", "-a 0 @", "-a 01 @", "-d one @",
        "-d 1 @", "-d 2 @", "-d two @", "-d '' @", "-d N @", "-d n @", "-d gone @", "-U -c x @", "-U @", "-l -c x @",
        "-c x -d x @", "-l -l @", "-a x -a y @", "", "-l", "-c x", "-c x @ @", "-l -- @", "@ -l", "-lq @",
        "--image-opts -l driver=qcow2,file.filename=@", "--image-opts -d two driver=qcow2,file.filename=@",
        "--image-opts -c x driver=qcow2,force-share=on,file.filename=@",
        "-U --image-opts -l driver=qcow2,file.filename=@,force-share=off",
    ),
    "raw": ("-l @", "@", "-c x @", "-a x @", "-d x @"),
    "data file": ("-l @", "-c x @", "-a x @", "-d x @"),
    "narrow": ("-c x @", "-l @", "-a x @", "-d x @"),
    "bitmap": ("-a one @", "-a gone @", "-c two @", "-d one @"),
}  # fmt: skip
CASES = [(kind, line) for kind, lines in COMMANDS.items() for line in lines]


def words_of(line: str, name: str) -> list[str]:
    long = {"''": "", "N": "n" * 255, "n": "n" * 256}
    return ["snapshot", *(long.get(word, word.replace("@", name)) for word in line.split())]


def first_line(outcome: Outcome, name: str) -> str:
    """Return what went wrong, without the name of the program; more lines than one are a hint, or say why."""
    lines = [line for line in outcome.err.splitlines() if not line.startswith(("WARNING", "  "))]
    words = lines[0] if lines else ""
    for program in ("qemu-img", "qcow2c"):
        words = words.removeprefix(f"{program}: ")
    return words.replace("'-d', '--rename'", "'-d'").replace(name, "@")


def state(path: Path) -> list[tuple[str, str, str]]:
    """Return ID, name and hash of the disk and of each snapshot."""
    with qcow2c.open(path) as image:
        found = [("", "", digest(image))]
        for snapshot in image.snapshots.list():
            with snapshot.open() as disk:
                found.append((snapshot.id, snapshot.name, digest(disk)))
    return found


def digest(image: qcow2c.Image) -> str:
    return f"{image.size()} {hashlib.sha256(image.pread(image.size(), 0)).hexdigest()}"


@pytest.mark.parametrize(("kind", "line"), CASES, ids=[f"{kind}: {line}" for kind, line in CASES])
def test_the_command_does_what_qemu_img_does(
    kind: str, line: str, tmp_path: Path, images: Callable[[str], bytes], run_ours: RunOurs
) -> None:
    for name in (IMAGE, OTHER):
        (tmp_path / name).write_bytes(images(kind))
    (tmp_path / "data.raw").write_bytes(bytes(MIB))
    ours = run_ours(tmp_path, *words_of(line, IMAGE))
    theirs = run_qemu_img(tmp_path, *words_of(line, OTHER))
    assert ours.status == theirs.status, (ours, theirs)
    assert _DATE.sub("", ours.out) == _DATE.sub("", theirs.out)
    assert first_line(ours, IMAGE) == first_line(theirs, OTHER)
    if kind in ("snapshots", "bitmap") and "-l" not in line:
        assert state(tmp_path / IMAGE) == state(tmp_path / OTHER)
        assert facts(tmp_path, IMAGE) == facts(tmp_path, OTHER)
        require_clean(tmp_path)


def facts(folder: Path, name: str) -> Any:
    found = json.loads(run_qemu_img(folder, "info", "--output=json", name).out)
    for snapshot in found.get("snapshots", []):
        snapshot["date-sec"] = snapshot["date-nsec"] = 0
    del found["filename"], found["actual-size"]
    return found


def require_clean(folder: Path) -> None:
    done = run_qemu_img(folder, "check", IMAGE)
    assert done.status == 0 and "No errors" in done.out, done
    assert qcow2c.check(folder / IMAGE).exit_code == 0


# --- histories ------------------------------------------------------------------------------------------------------

OPTIONS = (
    "cluster_size=4k", "cluster_size=64k", "cluster_size=512,refcount_bits=8", "cluster_size=16k,extended_l2=on",
    "compat=0.10,cluster_size=4k", "cluster_size=4k,refcount_bits=64", "cluster_size=4k,lazy_refcounts=on",
)  # fmt: skip


class History:
    """A random life of one image; each step is done by qemu, by our operations, or by an open image of ours."""

    def __init__(self, folder: Path, options: str, seed: int) -> None:
        self.folder = folder
        self.shop = Workshop(folder, seed)
        self.chooser = self.shop.random
        self.resizable = "0.10" not in options
        self.shop.create(2 * MIB, options)
        self.path = folder / IMAGE

    def step(self, number: int) -> None:
        before = state(self.path)
        active, kept = before[0][2], before[1:]
        who = self.chooser.choice(("qemu", "operation", "image"))
        act = self.chooser.choice("wwwpcccaadr" + ("s" if self.resizable else ""))
        key = self.chooser.choice(kept) if kept else ("", "", "")
        position = kept.index(key) if kept else 0
        name = f"s{number}"
        if act in "wps":
            self._change_disk(act)
            assert state(self.path)[1:] == kept
        elif act == "c":
            self._create(who, name)
            assert [found[1:] for found in state(self.path)] == [found[1:] for found in before] + [(name, active)]
        elif kept and act == "a":
            self._apply(who, key[1])
            assert state(self.path) == [("", "", key[2]), *kept]
        elif kept and act == "d":
            self._delete(who, key[1])
            assert state(self.path) == [before[0], *kept[:position], *kept[position + 1 :]]
        elif kept:
            self._rename(who, key[1], name)
            assert state(self.path) == [before[0], *kept[:position], (key[0], name, key[2]), *kept[position + 1 :]]
        require_clean(self.folder)
        assert qcow2c_info(self.path) == json.loads(run_qemu_img(self.folder, "info", "--output=json", IMAGE).out)

    def _change_disk(self, act: str) -> None:
        with qcow2c.open(self.path, "r+") as image:
            size = image.size()
            for _ in range(4):
                at = self.chooser.randrange(size)
                length = min(self.chooser.randrange(1, 40_000), size - at)
                if act == "p":
                    cluster = image.geometry.cluster_size
                    at -= at % cluster
                    image.write_compressed(b"packed! " * (min(cluster, size - at) // 8), at)
                elif act == "w":
                    image.pwrite(self.chooser.randbytes(length), at)
        if act == "s":
            self.shop.img("resize", "-q", "--shrink", IMAGE, str(self.chooser.randrange(64, 3072) * KIB))

    def _create(self, who: str, name: str) -> None:
        if who == "qemu":
            self.shop.img("snapshot", "-c", name, IMAGE)
        elif who == "operation":
            qcow2c.snapshots.create(self.path, name)
        else:
            with qcow2c.open(self.path, "r+") as image:
                image.snapshots.create(name)

    def _apply(self, who: str, name: str) -> None:
        if who == "qemu":
            self.shop.img("snapshot", "-a", name, IMAGE)
        elif who == "operation":
            qcow2c.snapshots.apply(self.path, name)
        else:
            with qcow2c.open(self.path, "r+") as image:
                image.pwrite(b"lost" * 128, 0)
                image.snapshots.apply(name)

    def _delete(self, who: str, name: str) -> None:
        if who == "qemu":
            self.shop.img("snapshot", "-d", name, IMAGE)
        elif who == "operation":
            qcow2c.snapshots.delete(self.path, name)
        else:
            with qcow2c.open(self.path, "r+") as image:
                image.snapshots.delete(name)

    def _rename(self, who: str, key: str, name: str) -> None:
        if who == "image":
            with qcow2c.open(self.path, "r+") as image:
                image.snapshots.rename(key, name)
        else:
            qcow2c.snapshots.rename(self.path, key, name)


def qcow2c_info(path: Path) -> Any:
    from qcow2c.ops.info import info

    found = older(info(path).as_dict())
    return found | {"filename": path.name}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_a_life_shared_with_qemu_img(options: str, seed: int, tmp_path: Path) -> None:
    history = History(tmp_path, options, seed)
    for number in range(12):
        history.step(number)


@pytest.mark.parametrize("options", OPTIONS)
def test_to_go_back_at_once_to_a_snapshot_of_qemu(options: str, tmp_path: Path) -> None:
    """Its L1 table has the copied bits of the time before: they are not to come back."""
    shop = Workshop(tmp_path, 1)
    shop.create(2 * MIB, options)
    shop.io("write -P 1 0 200k", "write -c -P 2 256k 64k", "write -z 400k 64k")
    shop.img("snapshot", "-c", "one", IMAGE)
    before = state(tmp_path / IMAGE)
    qcow2c.snapshots.apply(tmp_path / IMAGE, "one")
    require_clean(tmp_path)
    assert state(tmp_path / IMAGE) == before
    shop.io("write -P 7 100k 10k")
    assert state(tmp_path / IMAGE)[1:] == before[1:]
    require_clean(tmp_path)
