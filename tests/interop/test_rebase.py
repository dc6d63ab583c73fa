"""Rebase beside the real program: the same disk, the same names, clean images, the same complaints."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from qcow2c.cli import main

from .workshop import Workshop

pytestmark = pytest.mark.usefixtures("requires_qemu")

KIB, SIZE = 1024, 900 * 1024
OVERLAYS = {
    "4k": "cluster_size=4k",
    "64k": "",
    "version 2": "compat=0.10,cluster_size=4k",
    "subclusters": "extended_l2=on,cluster_size=16k",
    "lazy": "lazy_refcounts=on,cluster_size=512",
}
CHAINS = ("a.qcow2", "b.qcow2", "c.qcow2", "base.raw", "")


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with files to lie on: b on a, c on nothing, all of other sizes."""
    shop = Workshop(tmp_path_factory.mktemp("chains"), 7)
    shop.raw("base.raw", 700 * KIB + 100, (0, shop.noise(300 * KIB)))
    shop.create(SIZE, "cluster_size=64k", "-b", "base.raw", "-F", "raw", name="a.qcow2")
    shop.io(*shop.scattered(SIZE, 64 * KIB, 6), name="a.qcow2")
    shop.create(SIZE + 300 * KIB, "cluster_size=4k", "-b", "a.qcow2", "-F", "qcow2", name="b.qcow2")
    shop.io(shop.write(512 * KIB, 128 * KIB, flags="-c"), *shop.scattered(SIZE, 4 * KIB), name="b.qcow2")
    shop.create(SIZE // 2, "compression_type=zstd", name="c.qcow2")
    shop.io(shop.write(128 * KIB, 128 * KIB, flags="-c"), *shop.scattered(SIZE // 2, 64 * KIB, 6), name="c.qcow2")
    return shop.folder


def img(folder: Path, *words: str) -> str:
    return subprocess.run(["qemu-img", *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def guest(folder: Path, name: str, *chosen: str) -> bytes:
    img(folder, "convert", "-f", "qcow2", *chosen, "-O", "raw", name, "guest.raw")
    return (folder / "guest.raw").read_bytes()


def facts(folder: Path, name: str) -> dict[str, object]:
    found = json.loads(img(folder, "info", "--output=json", name))
    left_out = ("actual-size", "filename", "children")
    return {key: value for key, value in found.items() if key not in left_out}


@pytest.mark.parametrize("new", CHAINS)
@pytest.mark.parametrize("kind", OVERLAYS)
def test_the_disk_and_what_info_says_are_the_same(
    chains: Path, kind: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(chains)
    old = CHAINS[(CHAINS.index(new) + 1 + len(kind)) % 4]  # Another one each time, and never none: see below.
    shop = Workshop(chains, len(kind))
    image_format = {True: "raw", False: "qcow2"}
    shop.create(SIZE, OVERLAYS[kind], "-b", old, "-F", image_format[old == "base.raw"], name="ours.qcow2")
    shop.io(*shop.scattered(SIZE, 4 * KIB, 5), name="ours.qcow2")
    shutil.copy("ours.qcow2", "theirs.qcow2")
    before = guest(chains, "ours.qcow2")
    words = ["rebase", "-b", new, *(["-F", image_format[new == "base.raw"]] if new else [])]
    assert main([*words, "ours.qcow2"]) == 0
    img(chains, *words, "theirs.qcow2")
    assert guest(chains, "ours.qcow2") == before == guest(chains, "theirs.qcow2")
    assert facts(chains, "ours.qcow2") == facts(chains, "theirs.qcow2")
    img(chains, "check", "-q", "ours.qcow2")


def test_an_overlay_of_version_2_that_lay_on_nothing_keeps_its_zeros(
    chains: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the real program, for the lack of zero clusters, writes nothing: then the new backing file shows."""
    monkeypatch.chdir(chains)
    shop = Workshop(chains, 1)
    shop.create(SIZE, "compat=0.10", name="ours.qcow2")
    assert main(["rebase", "-b", "c.qcow2", "-F", "qcow2", "ours.qcow2"]) == 0
    assert guest(chains, "ours.qcow2") == bytes(SIZE)
    img(chains, "check", "-q", "ours.qcow2")


def test_snapshots_show_the_same_to_the_real_program(chains: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which lets them show the new backing file when it rebases an image itself."""
    monkeypatch.chdir(chains)
    shop = Workshop(chains, 2)
    shop.create(SIZE, "extended_l2=on,cluster_size=16k", "-b", "b.qcow2", "-F", "qcow2", name="ours.qcow2")
    for number in range(2):
        shop.io(*shop.scattered(SIZE, 4 * KIB, 5), name="ours.qcow2")
        shop.img("snapshot", "-c", f"s{number}", "ours.qcow2")
    shop.io("write -z 100k 300k", name="ours.qcow2")
    before = [guest(chains, "ours.qcow2", *chosen) for chosen in ((), ("-l", "s0"), ("-l", "s1"))]
    assert main(["rebase", "-b", "c.qcow2", "-F", "qcow2", "ours.qcow2"]) == 0
    assert [guest(chains, "ours.qcow2", *chosen) for chosen in ((), ("-l", "s0"), ("-l", "s1"))] == before
    img(chains, "check", "-q", "ours.qcow2")


WRONG = (
    ["-b", "b.qcow2", "over.qcow2"],
    ["-b", "nix.qcow2", "-F", "qcow2", "over.qcow2"],
    ["-u", "-b", "nix.qcow2", "over.qcow2"],
    ["-u", "-b", "nix.qcow2", "-F", "foo", "over.qcow2"],
    ["-b", "nix.qcow2", "-F", "foo", "over.qcow2"],
    ["-b", "", "-F", "foo", "over.qcow2"],
    ["-t", "foo", "-b", "b.qcow2", "-F", "qcow2", "over.qcow2"],
    ["-T", "foo", "-b", "b.qcow2", "-F", "qcow2", "over.qcow2"],
    ["-f", "raw", "-b", "b.qcow2", "-F", "qcow2", "over.qcow2"],
    ["-f", "raw", "-u", "over.qcow2"],
    ["-f", "raw", "-b", "", "over.qcow2"],
    ["-u", "-f", "raw", "-b", "x", "over.qcow2"],
    ["-u", "-b", "x" * 500, "-F", "raw", "over.qcow2"],
    ["over.qcow2"],
    ["-b", "b.qcow2"],
)


@pytest.mark.parametrize("words", WRONG, ids=lambda words: " ".join(words)[:30])
def test_the_complaints_are_the_same(
    chains: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(chains)
    img(chains, "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "-b", "a.qcow2", "-F", "qcow2", "over.qcow2")
    before = Path("over.qcow2").read_bytes()
    theirs = subprocess.run(["qemu-img", "rebase", *words], capture_output=True, text=True, check=False)
    Path("over.qcow2").write_bytes(before)  # Theirs may have begun to copy.
    capfd.readouterr()
    status = main(["rebase", *words])
    first = [theirs.stderr.replace("qemu-img: ", "qcow2c: "), capfd.readouterr().err]
    assert first[1].splitlines()[0] == first[0].splitlines()[0]
    assert status == theirs.returncode == 1
    assert Path("over.qcow2").read_bytes() == before
