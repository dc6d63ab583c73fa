"""Encrypted images of all kinds, written in turn with qemu-io: each program reads what the other one wrote."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import main
from qcow2c.disk.size import resize
from qcow2c.errors import MissingKey, UnsupportedFeature, WrongKey
from tests.bitmap_bits import bitmap_bits

pytestmark = pytest.mark.usefixtures("requires_qemu")

PASSPHRASE = "pass phrase"
SECRET = ("--object", f"secret,id=s,data={PASSPHRASE}")
SIZE = 1 << 20
VOLUME = "driver=luks,key-secret=s,file.filename=a.luks"
BUSY = "Unable to get accurate CPU usage"

LUKS = [
    f"encrypt.cipher-alg={algorithm},encrypt.cipher-mode={mode}"
    for algorithm in ("aes-128", "aes-192", "aes-256")
    for mode in ("xts", "cbc", "ctr", "ecb")
    if algorithm != "aes-192" or mode == "xts"  # qemu-img dies of half a sector of key material.
]
MORE = [
    "encrypt.cipher-mode=xts,encrypt.ivgen-alg=plain,encrypt.hash-alg=sha1",
    "encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256,encrypt.hash-alg=sha512",
    "encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=md5,encrypt.hash-alg=ripemd160",
    "encrypt.hash-alg=sha224",
    "encrypt.hash-alg=sha384",
    "encrypt.hash-alg=md5",
    "cluster_size=512",
    "cluster_size=2M",
    "extended_l2=on",
    "compat=0.10",
    "data_file=disk.data",
    "data_file=disk.data,data_file_raw=on",
]


def qemu(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program of QEMU; what fails for a busy machine is tried again."""
    for _ in range(20):
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        if BUSY not in done.stderr:
            break
    return done


def make(folder: Path, options: str, size: int = SIZE, name: str = "disk.qcow2") -> Path:
    more = "" if "encrypt.format=aes" in options else "encrypt.format=luks,encrypt.iter-time=10,"
    words = ("qemu-img", "create", "-q", *SECRET, "-f", "qcow2", "-o", f"{more}encrypt.key-secret=s,{options}")
    done = qemu(folder, *words, name, str(size))
    if BUSY in done.stderr or "Unsupported" in done.stderr:
        pytest.skip(done.stderr)
    assert not done.stderr and not done.returncode
    return folder / name


def named(options: str, name: str = "disk.qcow2") -> list[str]:
    kind = "aes" if "encrypt.format=aes" in options else "luks"
    return [*SECRET, "--image-opts", f"driver=qcow2,encrypt.format={kind},encrypt.key-secret=s,file.filename={name}"]


def qemu_io(folder: Path, options: str, *commands: str) -> None:
    words = [word for command in commands for word in ("-c", command)]
    done = qemu(folder, "qemu-io", *named(options), *words)
    assert not done.returncode and "failed" not in done.stdout, done


def disk_by_qemu(folder: Path, options: str) -> bytes:
    assert not qemu(folder, "qemu-img", "convert", *named(options), "-O", "raw", "disk.raw").returncode
    return (folder / "disk.raw").read_bytes()


def play(image: qcow2c.Image, model: bytearray, seed: str) -> None:
    """Change an image and the model of its disk in the same way."""
    drawn = random.Random(seed)
    size = image.geometry.cluster_size
    can_zero = image.header.version > 2
    for step in range(30):
        length = drawn.choice((1, 7, 512, 700, 4096, 65536, 100_000))
        offset = drawn.randrange(len(model) - length)
        kind = drawn.randrange(4)
        if kind < 2:
            data = drawn.randbytes(length)
            image.pwrite(data, offset)
            model[offset : offset + length] = data
        elif kind == 2:
            image.write_zeroes(offset, length, unmap=drawn.random() < 0.5)
            model[offset : offset + length] = bytes(length)
        elif can_zero:
            image.discard(offset, length)
            start, end = -(-offset // size) * size, (offset + length) // size * size
            if offset + length == len(model):
                end = len(model)
            model[start:end] = bytes(max(0, end - start))
        if step == 15:
            image.flush()


@pytest.mark.parametrize("options", [*LUKS, *MORE, "encrypt.format=aes", "encrypt.format=aes,cluster_size=512"])
def test_both_programs_write_in_turn_and_read_each_other(options: str, tmp_path: Path) -> None:
    path = make(tmp_path, options)
    model = bytearray(SIZE)
    packs = not {"data_file", "cluster_size"} & {part.partition("=")[0] for part in options.split(",")}
    for turn in range(2):
        commands = ["write -P 0x11 0 300k", "write -P 0x22 4096 5000", "write -P 0x33 500001 33333"]
        commands += ["discard 512k 64k", "write -z 700k 8k"]
        if packs and not turn:  # Clusters that are there already cannot be packed.
            commands.append("write -c -P 0x44 768k 64k")
        qemu_io(tmp_path, options, *commands)
        model[:] = disk_by_qemu(tmp_path, options)
        with qcow2c.open(path, key=PASSPHRASE) as image:
            assert image.pread(SIZE, 0) == model
            assert image.pread(777, 500_003) == model[500_003:500_780]
        with qcow2c.open(path, "r+", key=PASSPHRASE) as image:
            play(image, model, f"{options} {turn}")
            assert image.pread(SIZE, 0) == model
        assert disk_by_qemu(tmp_path, options) == model
        checked = qemu(tmp_path, "qemu-img", "check", *named(options))
        assert checked.returncode == 0, checked


@pytest.mark.parametrize("options", ["encrypt.cipher-alg=aes-256", "encrypt.format=aes"])
def test_a_snapshot_and_a_new_size_are_what_qemu_reads(options: str, tmp_path: Path) -> None:
    path = make(tmp_path, options)
    with qcow2c.open(path, "r+", key=PASSPHRASE) as image:
        image.pwrite(b"then" * 25_000, 1000)
        then = image.pread(SIZE, 0)
        image.snapshots.create("then")
        image.pwrite(b"now " * 25_000, 2000)
        resize(image, 100_352)
        resize(image, 300_032)
        resize(image, 500_224, preallocation="falloc")
        now = image.pread(500_224, 0)
        assert now[100_352:] == bytes(500_224 - 100_352)
    assert disk_by_qemu(tmp_path, options) == now
    assert qemu(tmp_path, "qemu-img", "check", *named(options)).returncode == 0
    qemu(tmp_path, "qemu-img", "snapshot", "-a", "then", *named(options))
    assert disk_by_qemu(tmp_path, options) == then


def test_each_layer_of_a_chain_has_its_own_key(tmp_path: Path) -> None:
    base = make(tmp_path, "encrypt.cipher-alg=aes-128", name="base.qcow2")
    with qcow2c.open(base, "r+", key=PASSPHRASE) as image:
        image.pwrite(b"base" * 50_000, 0)
    words = ("-o", "encrypt.format=luks,encrypt.iter-time=10,encrypt.key-secret=t")
    other = ("--object", "secret,id=t,data=other")
    assert not qemu(
        tmp_path, "qemu-img", "create", "-q", *other, *words, "-u", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2",
        "top.qcow2", str(SIZE),
    ).returncode  # fmt: skip
    top = tmp_path / "top.qcow2"
    for keys in ({0: "other", 1: PASSPHRASE}, {str(top): "other", base: PASSPHRASE.encode()}):
        with qcow2c.open(top, "r+", key=keys) as image:  # type: ignore[arg-type]
            image.pwrite(b"top", 10)
            assert image.pread(200_000, 0) == b"basebaseba" + b"top" + (b"base" * 50_000)[13:]
    with pytest.raises(WrongKey):
        qcow2c.open(top, key="other")
    with qcow2c.open(top, key={0: "other"}) as image:
        assert image.pread(3, 10) == b"top"
        with pytest.raises(MissingKey):
            image.pread(SIZE, 0)


@pytest.mark.parametrize("cipher", ["serpent-256", "twofish-128", "cast5-128"])
def test_other_ciphers_are_refused_by_name(cipher: str, tmp_path: Path) -> None:
    path = make(tmp_path, f"encrypt.cipher-alg={cipher},encrypt.cipher-mode=cbc")
    with pytest.raises(UnsupportedFeature, match=cipher.partition("-")[0]):
        qcow2c.open(path, key=PASSPHRASE)
    assert qcow2c.info(path)["format-specific"]["data"]["encrypt"]["cipher-alg"] == cipher  # type: ignore[call-overload]


# --- what is made here ----------------------------------------------------------------------------------------------

CIPHERS = ("aes-128", "aes-256-cbc-essiv:sha256", "aes-192-xts-plain", "aes-256-ctr", "aes-128-ecb")


@pytest.mark.parametrize("cipher", [*CIPHERS, "legacy"])
@pytest.mark.parametrize("options", [{}, {"cluster_size": 512}, {"extended_l2": True}, {"preallocation": "metadata"}])
def test_qemu_reads_what_is_made_here(cipher: str, options: dict[str, object], tmp_path: Path) -> None:
    content = (bytes(3000) + b"guest" * 30_000 + bytes(400_000) + b"more" * 9000).ljust(SIZE, b"\0")
    (tmp_path / "a.raw").write_bytes(content)
    names = "encrypt.format=aes" if cipher == "legacy" else ""
    kind = "aes" if names else "luks"
    wanted = qcow2c.Encryption(kind, PASSPHRASE, "aes-128" if names else cipher, iter_time_ms=5)
    path = tmp_path / "disk.qcow2"
    qcow2c.convert(tmp_path / "a.raw", path, output_format="qcow2", image_format="raw", encryption=wanted, **options)  # type: ignore[arg-type]
    assert disk_by_qemu(tmp_path, names) == content
    assert qemu(tmp_path, "qemu-img", "check", *named(names)).returncode == 0
    path.unlink()
    qcow2c.create(path, SIZE, encryption=wanted, **options)  # type: ignore[arg-type]
    qemu_io(tmp_path, names, "write -P 7 5000 70000")
    with qcow2c.open(path, key=PASSPHRASE) as image:
        found = image.pread(SIZE, 0)
        assert found[5000:75_000] == b"\7" * 70_000
        if options.get("preallocation") is None:
            assert found == (bytes(5000) + b"\7" * 70_000).ljust(SIZE, b"\0")
    assert qemu(tmp_path, "qemu-img", "check", *named(names)).returncode == 0


def amend(folder: Path, secret: str, *words: str) -> subprocess.CompletedProcess[str]:
    objects = [("--object", f"secret,id={name},data={name}") for name in ("one", "two", "three")]
    given = [word for pair in objects for word in pair]
    opts = f"driver=qcow2,encrypt.format=luks,encrypt.key-secret={secret},file.filename=disk.qcow2"
    options = ",".join(f"encrypt.{word}" for word in words)
    return qemu(folder, "qemu-img", "amend", *given, "--image-opts", opts, "-o", options)


def test_both_programs_change_the_keys_of_one_image(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qcow2c.create(path, SIZE, encryption="luks", key="one", iter_time_ms=5)
    assert not amend(tmp_path, "one", "state=active", "new-secret=two", "iter-time=10").returncode
    assert qcow2c.key_slots(path, key="two").opened == 1
    assert qcow2c.add_key(path, "two", "three", iter_time_ms=5) == 2
    assert not amend(tmp_path, "three", "state=inactive", "keyslot=0").returncode
    with pytest.raises(WrongKey):
        qcow2c.key_slots(path, key="one")
    assert qcow2c.change_key(path, "two", "one", iter_time_ms=5) == 0
    assert amend(tmp_path, "two", "state=inactive", "keyslot=0").returncode
    assert not amend(tmp_path, "one", "state=inactive", "old-secret=three").returncode
    found = qcow2c.key_slots(path, key="one")
    assert found.opened == 0 and [slot.number for slot in found.slots if slot.active] == [0]
    checked = qemu(tmp_path, "qemu-img", "check", "--object", "secret,id=one,data=one", "--image-opts",
                   "driver=qcow2,encrypt.key-secret=one,file.filename=disk.qcow2")  # fmt: skip
    assert checked.returncode == 0


@pytest.mark.skipif(shutil.which("cryptsetup") is None, reason="cryptsetup is not installed")
@pytest.mark.parametrize("cipher", ["aes-256", "aes-128-cbc-essiv:sha256", "aes-128"])
def test_cryptsetup_opens_our_key_slots_and_we_its_own(cipher: str, tmp_path: Path) -> None:
    made = qcow2c.Encryption("luks", "one", cipher, "sha512", iter_time_ms=5).make()
    volume = tmp_path / "volume"
    volume.write_bytes(made.header.ljust(made.length + SIZE, b"\0"))

    def cryptsetup(*words: str, key: str) -> int:
        (tmp_path / "key").write_text(key)
        done = subprocess.run(
            ["cryptsetup", *words], cwd=tmp_path, input=key, text=True, capture_output=True, check=False
        )
        return done.returncode

    def opens(key: str) -> bool:
        return cryptsetup("open", "--test-passphrase", "--key-file", "key", "volume", key=key) == 0

    assert cryptsetup("luksDump", "volume", key="") == 0
    assert opens("one") and not opens("two")
    assert qcow2c.add_key(volume, "one", "two", iter_time_ms=5) == 1
    assert opens("two")
    (tmp_path / "new").write_text("three")
    words = ("luksAddKey", "-q", "--pbkdf-force-iterations", "1500", "--key-file", "key", "volume", "new")
    assert cryptsetup(*words, key="two") == 0
    assert qcow2c.key_slots(volume, key="three").opened == 2
    assert qcow2c.remove_key(volume, key="two") == (1,)
    assert opens("one") and opens("three") and not opens("two")


def test_raw_volumes_go_both_ways(tmp_path: Path) -> None:
    content = (bytes(3000) + b"guest" * 30_000 + bytes(400_000) + b"more" * 9000).ljust(SIZE, b"\0")
    (tmp_path / "a.raw").write_bytes(content)
    words = ("convert", *SECRET, "-f", "raw", "-O", "luks", "-o", "key-secret=s,iter-time=10", "a.raw", "theirs.luks")
    if BUSY in qemu(tmp_path, "qemu-img", *words).stderr:
        pytest.skip(BUSY)
    wanted = qcow2c.Encryption("luks", PASSPHRASE, "aes-128-cbc-essiv", iter_time_ms=5)
    qcow2c.convert(tmp_path / "a.raw", tmp_path / "ours.luks", output_format="luks", encryption=wanted)
    for name in ("theirs.luks", "ours.luks"):
        qcow2c.convert(tmp_path / name, tmp_path / "b.raw", key=PASSPHRASE)
        assert (tmp_path / "b.raw").read_bytes() == content
        volume = f"driver=luks,key-secret=s,file.filename={name}"
        compared = qemu(
            tmp_path, "qemu-img", "compare", *SECRET, "--image-opts", volume, "driver=raw,file.filename=a.raw"
        )
        assert compared.returncode == 0, compared
        theirs = json.loads(qemu(tmp_path, "qemu-img", "info", "--output=json", name).stdout)
        mine = qcow2c.info(tmp_path / name).as_dict()  # type: ignore[union-attr]
        assert mine["format-specific"]["data"].items() >= theirs.pop("format-specific")["data"].items()
        assert {key: mine[key] for key in theirs if key != "actual-size"} == {
            key: value for key, value in theirs.items() if key != "actual-size"
        } | {"filename": mine["filename"]}


@pytest.mark.parametrize(
    "options",
    [
        "encrypt.cipher-mode=xts",
        "cluster_size=512",
        "extended_l2=on",
        "compat=0.10",
        "encrypt.format=aes",
        "data_file=d",
    ],
)
def test_a_compact_copy_is_what_qemu_reads_and_writes(options: str, tmp_path: Path) -> None:
    path = make(tmp_path, options)
    qemu_io(tmp_path, options, "write -P 0x11 0 300k", "write -P 0x22 301k 5000", "write -P 0 400k 128k")
    if "data_file" not in options:
        with qcow2c.open(path, "r+", key=PASSPHRASE) as image:
            image.snapshots.create("one")
    qemu_io(tmp_path, options, "write -P 0x33 64k 100k", "discard 0 64k")
    if "compat" not in options:
        assert not qemu(tmp_path, "qemu-img", "bitmap", *named(options), "--add", "marks").returncode
        qemu_io(tmp_path, options, "write -P 0x55 900k 1k")
    before, states = disk_by_qemu(tmp_path, options), []
    with qcow2c.open(path, key=PASSPHRASE) as image:
        states = [found.open().pread(SIZE, 0) for found in image.snapshots.list()]
    sealed = "aes" not in options and "data_file" not in options
    if sealed:
        with pytest.raises(MissingKey, match="moving it needs the key"):
            qcow2c.compact(path)
        with pytest.raises(WrongKey):
            qcow2c.compact(path, tmp_path / "copy.qcow2", key="wrong")
    made = qcow2c.compact(path, tmp_path / "copy.qcow2", key=PASSPHRASE if sealed else None)
    assert not sealed or made.saved > 0
    if sealed and "512" in options:
        assert made.zero_clusters >= 256
    assert bitmap_bits((tmp_path / "copy.qcow2").read_bytes()) == bitmap_bits(path.read_bytes())
    path.unlink()
    (tmp_path / "copy.qcow2").rename(path)
    assert qemu(tmp_path, "qemu-img", "check", "-q", *named(options)).returncode == 0
    assert qcow2c.check(path).exit_code == 0
    assert disk_by_qemu(tmp_path, options) == before
    with qcow2c.open(path, key=PASSPHRASE) as image:
        assert [found.open().pread(SIZE, 0) for found in image.snapshots.list()] == states
    qemu_io(tmp_path, options, "write -P 0x44 0 700k")
    assert disk_by_qemu(tmp_path, options)[: 700 << 10] == b"\x44" * (700 << 10)
    assert qemu(tmp_path, "qemu-img", "check", "-q", *named(options)).returncode == 0


def test_volumes_are_created_amended_and_filled_by_both_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = (b"guest" * 30_000 + bytes(400_000)).ljust(SIZE, b"\0")
    Path("a.raw").write_bytes(content)
    made = ("create", "-q", *SECRET, "-f", "luks", "-o", "key-secret=s,iter-time=5", "ours.luks", "1M")
    assert main(list(made)) == 0
    if qemu(tmp_path, "qemu-img", *made[:-2], "theirs.luks", "1M").returncode:
        pytest.skip(BUSY)
    assert Path("ours.luks").stat().st_size == Path("theirs.luks").stat().st_size
    for name in ("ours.luks", "theirs.luks"):
        volume = f"driver=luks,key-secret=s,file.filename={name}"
        filled = ("convert", *SECRET, "-n", "-f", "raw", "--target-image-opts", "a.raw", volume)
        renewed = ("amend", *SECRET, "--object", "secret,id=n,data=new", "--image-opts", volume, "-o")
        renewed = (*renewed, "state=active,new-secret=n,keyslot=3,iter-time=10")
        if name == "ours.luks":
            assert qemu(tmp_path, "qemu-img", *filled).returncode == 0
            done = qemu(tmp_path, "qemu-img", *renewed)
            if BUSY in done.stderr:
                pytest.skip(BUSY)
        else:
            assert main(list(filled)) == 0 and main(list(renewed)) == 0
        assert [slot.active for slot in qcow2c.key_slots(name, key="new").slots].count(True) == 2
        compared = (
            "compare",
            "--object",
            "secret,id=s,data=new",
            "--image-opts",
            volume,
            "driver=raw,file.filename=a.raw",
        )
        assert qemu(tmp_path, "qemu-img", *compared).returncode == 0
        assert main(list(compared)) == 0


@pytest.mark.parametrize(
    "words",
    [
        ("create", "-f", "luks", "x.luks", "1M"),
        ("create", *SECRET, "-f", "luks", "-o", "key-secret=s", "x.luks"),
        ("create", *SECRET, "-f", "luks", "-o", "key-secret=z", "x.luks", "1M"),
        ("create", *SECRET, "-f", "luks", "-o", "key-secret=s,cipher-alg=zz", "x.luks", "1M"),
        ("create", *SECRET, "-f", "luks", "-o", "key-secret=s,backing_file=zz", "x.luks", "1M"),
        ("create", *SECRET, "-f", "luks", "-b", "a.raw", "-F", "raw", "-o", "key-secret=s", "x.luks", "1M"),
        ("amend", "-f", "luks", "-o", "state=active", "a.luks"),
        ("amend", "-o", "state=active", "a.luks"),
        ("amend", *SECRET, "--image-opts", VOLUME, "-o", "size=3M"),
        ("amend", *SECRET, "--image-opts", VOLUME, "-o", "encrypt.state=active"),
        ("amend", *SECRET, "--image-opts", VOLUME, "-o", "new-secret=s"),
        ("amend", *SECRET, "--image-opts", VOLUME, "-o", "state=inactive,old-secret=s"),
        ("amend", "-f", "luks", "-o", "help"),
        ("convert", "-n", "-f", "raw", "-O", "luks", "a.raw", "a.luks"),
        ("convert", *SECRET, "-n", "-f", "raw", "--target-image-opts", "big.raw", VOLUME),
    ],
)
def test_what_volumes_cannot_is_told_in_the_words_of_qemu(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.raw").write_bytes(bytes(SIZE))
    Path("big.raw").write_bytes(bytes(2 * SIZE))
    options = ("-O", "luks", "-o", "key-secret=s,iter-time=5")
    assert main(["convert", "-q", *SECRET, "-f", "raw", *options, "a.raw", "a.luks"]) == 0
    theirs = qemu(tmp_path, "qemu-img", *words)
    capfd.readouterr()
    status = main(list(words))
    out, err = capfd.readouterr()
    assert status == theirs.returncode
    for prefix in ("qcow2c: ", "a.luks: ", f"{VOLUME}: "):
        err = err.removeprefix(prefix)
    assert err == (theirs.stderr.removeprefix("qemu-img: "))
    assert not out or out == theirs.stdout


@pytest.mark.parametrize("stated", ["luks", "aes", "zz", ""])
def test_the_stated_encryption_is_compared_with_the_header(
    stated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    qcow2c.create("luks.qcow2", SIZE, encryption="luks", key=PASSPHRASE, iter_time_ms=1)
    qcow2c.create("aes.qcow2", SIZE, encryption="aes", key=PASSPHRASE)
    qcow2c.create("plain.qcow2", SIZE)
    for name in ("luks", "aes", "plain"):
        image = f"driver=qcow2,encrypt.format={stated},encrypt.key-secret=s,file.filename={name}.qcow2"
        for words in (("convert", *SECRET, "--image-opts", image, "out.raw"), ("info", *SECRET, "--image-opts", image)):
            theirs = qemu(tmp_path, "qemu-img", *words)
            capfd.readouterr()
            status = main(list(words))
            told = capfd.readouterr().err.removeprefix("qcow2c: ").removeprefix(f"{image}: ")
            assert (status, told) == (theirs.returncode, theirs.stderr.removeprefix("qemu-img: "))


def test_a_new_backing_file_is_opened_with_the_key_that_its_options_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.raw").write_bytes(b"old!" * (SIZE // 4))
    qcow2c.create("sealed.qcow2", SIZE, encryption="luks", key=PASSPHRASE, iter_time_ms=1)
    with qcow2c.open("sealed.qcow2", "r+", key=PASSPHRASE) as image:
        image.pwrite(b"old!" * (SIZE // 8), 0)
    name = 'json:{"driver":"qcow2","encrypt.key-secret":"s","file.filename":"sealed.qcow2"}'
    headers = []
    for program in ("qemu-img", "qcow2c"):
        qcow2c.create("top.qcow2", SIZE, backing_file="old.raw", backing_fmt="raw")
        refused = ("rebase", "-F", "qcow2", "-b", "sealed.qcow2", "top.qcow2")
        without = ("rebase", *SECRET, "-b", name, "top.qcow2")
        words = ("rebase", *SECRET, "-F", "qcow2", "-b", name, "top.qcow2")
        if program == "qemu-img":
            told = [qemu(tmp_path, program, *line).stderr.removeprefix("qemu-img: ") for line in (refused, without)]
            assert qemu(tmp_path, program, *words).returncode == 0
        else:
            for line, wanted in zip((refused, without), told, strict=True):
                capfd.readouterr()
                assert main(list(line)) == 1
                assert capfd.readouterr().err.removeprefix("qcow2c: ") == wanted
            assert main(list(words)) == 0
        with qcow2c.open("top.qcow2", key={1: PASSPHRASE}) as image:
            headers.append((image.header.backing_file, image.header.backing_format))
            assert image.pread(SIZE, 0) == b"old!" * (SIZE // 4)
        compared = (
            "compare",
            *SECRET,
            "--image-opts",
            "driver=qcow2,file.filename=top.qcow2",
            "driver=raw,file.filename=old.raw",
        )
        assert qemu(tmp_path, "qemu-img", *compared).returncode == 0
    assert headers[0] == headers[1]
