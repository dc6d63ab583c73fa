"""Keys on the command line: secrets as objects, encrypted images by their options, and what commands do with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import main
from qcow2c.cli.secrets import Secrets
from qcow2c.errors import Qcow2Error, UnsupportedFeature, UsageError

Run = Callable[..., tuple[int, str, str]]
SIZE = 1 << 20
LUKS = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1,encrypt.cipher-alg=aes-128"
KEY = ("--object", "secret,id=s,file=key")
OPTS = "driver=qcow2,encrypt.key-secret=s,file.filename={}"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    Path("key").write_text("pass,phrase")

    def call(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        return (main(list(words)), *capfd.readouterr())

    return call


@pytest.fixture
def disk(run: Run) -> Path:
    assert run("create", "-q", *KEY, "-f", "qcow2", "-o", LUKS, "disk.qcow2", "1M") == (0, "", "")
    with qcow2c.open("disk.qcow2", "r+", key="pass,phrase") as image:
        image.pwrite(b"text" * 50_000, 1000)
    return Path("disk.qcow2")


def read(path: str, key: object = "pass,phrase") -> bytes:
    with qcow2c.open(path, key=key) as image:  # type: ignore[arg-type]
        return image.pread(image.size(), 0)


def test_secrets_are_given_in_files_in_words_and_in_base64(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\0binary\n")
    found = Secrets(
        [
            f"secret,id=a,file={tmp_path / 'key'}", "secret,id=b,data=with,,comma", "qom-type=secret,id=c,data=x",
            "secret,id=d,data=cGFzcw==,format=base64",
        ]
    )  # fmt: skip
    assert [found.get(name) for name in "abcd"] == [b"\0binary\n", b"with,comma", b"x", b"pass"]
    assert repr(found) == "<Secrets: a, b, c, d>"
    assert found.asked("b")("image") == b"with,comma"


@pytest.mark.parametrize(
    ("objects", "error", "words"),
    [
        (["tls-creds,id=a"], UnsupportedFeature, "only secrets are known"),
        (["secret,id=a,data=hush,keyid=b"], UnsupportedFeature, "'keyid'"),
        (["secret,data=hush"], UsageError, "'id' is missing"),
        (["secret,id=a"], UsageError, "Either 'file' or 'data'"),
        (["secret,id=a,data=hush,file=b"], UsageError, "mutually exclusive"),
        (["secret,id=a,data=hush,zap=1"], UsageError, "'zap' is unexpected"),
        (["secret,id=a,data=hush,format=hex"], UsageError, "'hex'"),
        (["secret,id=a,data=hush!,format=base64"], UsageError, "not valid"),
        (["secret,id=a,file=/nowhere"], UsageError, "Unable to read /nowhere"),
        (["secret,id=a,data=hush", "secret,id=a,data=hush"], UsageError, "duplicate"),
    ],
)
def test_what_is_no_secret_is_refused_and_not_shown(objects: list[str], error: type[Qcow2Error], words: str) -> None:
    with pytest.raises(error, match=words) as found:
        Secrets(objects)
    assert "hush" not in str(found.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("encrypt.format=luks", "'encrypt.key-secret' is required"),
        ("encrypt.key-secret=s", "'encrypt.format' is missing"),
        ("encrypt.format=luks,encrypt.key-secret=t", "No secret with id 't'"),
        ("encrypt.format=zip,encrypt.key-secret=s", "does not accept value 'zip'"),
        ("encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=rot-13", "'cipher-alg' does not accept"),
        ("encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=serpent-256", "serpent"),
        ("encrypt.format=aes,encrypt.key-secret=s,encrypt.cipher-alg=aes-128", "'encrypt.cipher-alg' is unexpected"),
        ("encryption=on,encrypt.format=aes,encrypt.key-secret=s", "mutually exclusive"),
        ("encrypt.format=luks,encrypt.key-secret=s,encrypt.zap=1", "Invalid parameter 'encrypt.zap'"),
    ],
)
def test_what_cannot_be_encrypted_so_is_not_made(run: Run, options: str, words: str) -> None:
    status, _, err = run("create", *KEY, "-f", "qcow2", "-o", options, "new.qcow2", "1M")
    assert status == 1 and words in err and "pass" not in err
    assert not Path("new.qcow2").exists()


def test_an_image_is_created_as_its_first_line_says(run: Run) -> None:
    options = f"{LUKS},encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256"
    status, out, _ = run("create", *KEY, "-f", "qcow2", "-o", f"{options},encrypt.hash-alg=sha512", "disk.qcow2", "1M")
    assert (status, out.split(" cluster_size")[0]) == (
        0,
        "Formatting 'disk.qcow2', fmt=qcow2 encrypt.format=luks encrypt.key-secret=s encrypt.cipher-alg=aes-128 "
        "encrypt.cipher-mode=cbc encrypt.ivgen-alg=essiv encrypt.ivgen-hash-alg=sha256 encrypt.hash-alg=sha512 "
        "encrypt.iter-time=1",
    )
    found = qcow2c.key_slots("disk.qcow2", key="pass,phrase")
    assert (found.cipher, found.hash, found.opened) == ("aes-128-cbc-essiv:sha256", "sha512", 0)
    assert run("create", "-q", *KEY, "-f", "qcow2", "-o", "encryption=on,encrypt.key-secret=s", "a", "1M")[0] == 0
    assert read("a") == bytes(SIZE)


def test_copies_and_comparisons(run: Run, disk: Path) -> None:
    named = OPTS.format(disk)
    assert run("convert", *KEY, "--image-opts", "-O", "raw", named, "disk.raw") == (0, "", "")
    assert Path("disk.raw").read_bytes() == read("disk.qcow2")
    assert run("compare", *KEY, "--image-opts", named, "driver=raw,file.filename=disk.raw")[0] == 0
    other = ("--object", "secret,id=t,data=other")
    options = "encrypt.format=luks,encrypt.key-secret=t,encrypt.iter-time=1"
    assert run("convert", *other, "-f", "raw", "-O", "qcow2", "-o", options, "disk.raw", "two.qcow2") == (0, "", "")
    assert read("two.qcow2", "other") == read("disk.qcow2")
    two = "driver=qcow2,encrypt.key-secret=t,file.filename=two.qcow2"
    assert run("compare", *KEY, *other, "--image-opts", named, two)[0] == 0
    into = ("convert", *KEY, *other, "--image-opts", "-n", "--target-image-opts", named, two)
    assert run(*into) == (0, "", "")
    assert read("two.qcow2", "other") == read("disk.qcow2")
    assert run("dd", *KEY, "--image-opts", f"if={named}", "of=part", "bs=1k", "count=2")[0] == 0
    assert Path("part").read_bytes() == read("disk.qcow2")[:2048]
    status, _, err = run("convert", *KEY, "-c", "-O", "qcow2", "-o", LUKS, "disk.raw", "no.qcow2")
    assert status == 1 and "Compression and encryption not supported at the same time" in err


def test_a_missing_and_a_wrong_key_are_one_line_each(run: Run, disk: Path) -> None:
    named = OPTS.format(disk)
    for words, complaint in (
        ((str(disk),), "is encrypted, and no key was given"),
        (("--image-opts", named), "No secret with id 's'"),
        (("--object", "secret,id=s,data=hush", "--image-opts", named), "Invalid password"),
    ):
        status, out, err = run("convert", "-O", "raw", *words, "no.raw")
        assert (status, out) == (1, "") and complaint in err and err.count("\n") == 1 and "hush" not in err
    assert not Path("no.raw").exists()
    assert run("info", "--image-opts", named)[0] == 0  # Which needs none.
    assert run("check", str(disk))[0] == run("map", "--output=json", str(disk))[0] == 0


def test_a_chain_is_changed_with_the_keys_of_all_its_layers(run: Run, disk: Path) -> None:
    other = ("--object", "secret,id=t,data=other")
    options = "encrypt.format=aes,encrypt.key-secret=t"
    assert (
        run("create", "-q", *other, "-f", "qcow2", "-b", disk.name, "-F", "qcow2", "-o", options, "top.qcow2")[0] == 0
    )
    keys = {0: "other", 1: "pass,phrase"}
    with qcow2c.open("top.qcow2", "r+", key=keys) as image:
        image.pwrite(b"top" * 1000, 70_000)
    expected = read("top.qcow2", keys)
    top = "driver=qcow2,encrypt.key-secret=t,file.filename=top.qcow2,backing.encrypt.key-secret=s"
    assert run("commit", "-q", *KEY, *other, "--image-opts", top) == (0, "", "")
    assert read("disk.qcow2") == read("top.qcow2", keys) == expected
    assert run("rebase", *KEY, *other, "--image-opts", "-b", "", top) == (0, "", "")
    assert read("top.qcow2", "other") == expected
    named = OPTS.format(disk)
    assert run("resize", "-q", *KEY, "--image-opts", named, "2M") == (0, "", "")
    assert run("bitmap", *KEY, "--image-opts", "--add", named, "b") == (0, "", "")
    assert run("snapshot", "-c", "one", "disk.qcow2") == (0, "", "")
    assert run("export", *KEY, "--image-opts", "-O", "raw", named, "one", "one.raw") == (0, "", "")
    assert Path("one.raw").read_bytes() == expected + bytes(SIZE)
    status, out, _ = run("diff", *KEY, "--image-opts", "--from-snapshot", "one", named)
    assert (status, out.splitlines()) == (0, ["Offset          Length          Kind"])
    assert qcow2c.check("disk.qcow2").exit_code == 0


def test_a_json_name_has_a_key_too(run: Run, disk: Path) -> None:
    name = '{"driver":"qcow2","encrypt.key-secret":"s","file":{"driver":"file","filename":"disk.qcow2"}}'
    assert run("convert", *KEY, "-O", "raw", f"json:{name}", "disk.raw") == (0, "", "")
    assert Path("disk.raw").read_bytes() == read(str(disk))


def test_sizes_are_measured_with_the_header(run: Run) -> None:
    plain = run("measure", "-O", "qcow2", "--size", "10G")[1].splitlines()
    status, out, _ = run(
        "measure", *KEY, "-O", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s", "--size", "10G"
    )
    difference = [
        int(mine.split()[-1]) - int(other.split()[-1]) for mine, other in zip(out.splitlines(), plain, strict=True)
    ]
    assert (status, difference) == (0, [2 << 20, 2 << 20])


def test_key_slots_are_amended(run: Run, disk: Path) -> None:
    secrets = (*KEY, "--object", "secret,id=n,data=new", "--object", "secret,id=m,data=none")
    named = OPTS.format(disk)

    def amend(options: str, *more: str) -> tuple[int, str]:
        words = ",".join(f"encrypt.{part}" for part in options.split(","))
        status, _, err = run("amend", *secrets, *more, "--image-opts", "-o", words, named)
        return status, err

    def slots() -> list[int]:
        return [slot.number for slot in qcow2c.key_slots(disk).slots if slot.active]

    assert amend("state=active,new-secret=n,iter-time=1") == (0, "") and slots() == [0, 1]
    assert amend("state=active,new-secret=n,keyslot=5,iter-time=1") == (0, "") and slots() == [0, 1, 5]
    for words, complaint in (
        ("state=active", "'new-secret' is required"),
        ("state=active,new-secret=n,old-secret=n", "'old-secret' must not"),
        ("state=active,new-secret=n,keyslot=0", "Refusing to overwrite active keyslot 0"),
        ("state=inactive", "To erase keyslot(s)"),
        ("state=inactive,new-secret=n", "'new-secret' must not"),
        ("state=inactive,keyslot=1,iter-time=1", "'iter-time' must not"),
        ("state=inactive,keyslot=9", "between 0 and 7"),
        ("state=inactive,keyslot=3", "already erased"),
        ("state=inactive,old-secret=m", "No keyslots match"),
        ("state=inactive,keyslot=0,old-secret=n", "doesn't contain the given old password"),
        ("state=asleep,keyslot=0", "does not accept value 'asleep'"),
        ("keyslot=0", "'state' is missing"),
        ("state=active,new-secret=zap", "No secret with id 'zap'"),
    ):
        status, err = amend(words)
        assert status == 1 and complaint in err, words
    assert slots() == [0, 1, 5]
    assert amend("state=inactive,old-secret=n") == (0, "") and slots() == [0]
    for words in ("state=inactive,keyslot=0", "state=inactive,old-secret=s"):
        assert "refusing operation" in amend(words)[1]
    assert amend("state=active,keyslot=0,new-secret=n,iter-time=1", "--force") == (0, "") and slots() == [0]
    assert read("disk.qcow2", "new")[1000:1004] == b"text"


def test_raw_volumes_are_copied_and_shown(run: Run, disk: Path) -> None:
    made = run("convert", *KEY, "--image-opts", "-O", "luks", "-o", "key-secret=s,iter-time=1", OPTS.format(disk), "v")
    assert made == (0, "", "")
    volume = "driver=luks,key-secret=s,file.filename=v"
    assert run("convert", *KEY, "--image-opts", "-O", "raw", volume, "disk.raw") == (0, "", "")
    assert Path("disk.raw").read_bytes() == read(str(disk))
    status, out, _ = run("info", "v")
    assert status == 0 and "file format: luks\n" in out and "encrypted: yes\n" in out and "cipher alg: aes-256" in out
    status, out, _ = run("measure", *KEY, "-O", "luks", "-o", "key-secret=s", "--size", "1M")
    assert (status, out.split()[2]) == (0, str(Path("v").stat().st_size))
    for words, complaint in (
        (("-O", "luks", "disk.raw", "no"), "'key-secret' is required"),
        (("-O", "raw", "v", "no"), "no key was given"),
        (("-c", *KEY, "-O", "luks", "-o", "key-secret=s", "disk.raw", "no"), "Compression not supported"),
    ):
        status, _, err = run("convert", *words)
        assert status == 1 and complaint in err and not Path("no").exists()


def test_a_compact_copy_needs_the_key_and_has_the_same(run: Run, disk: Path) -> None:
    before = read("disk.qcow2")
    status, out, err = run("compact", "disk.qcow2", "small.qcow2")
    assert (status, out) == (1, "") and "moving it needs the key, and no key was given" in err
    assert not Path("small.qcow2").exists()
    opts = ("--image-opts", OPTS.format(disk))
    assert run("compact", "-q", *KEY, *opts, "small.qcow2") == (0, "", "")
    assert run("compact", "-q", *KEY, *opts, "--in-place") == (0, "", "")
    assert read("small.qcow2") == read("disk.qcow2") == before
    status, _, err = run("compact", *KEY, "--image-opts", "driver=luks,key-secret=s,file.filename=disk.qcow2", "no")
    assert status == 1 and "only a qcow2 image" in err


def test_a_volume_is_created_and_filled_and_its_slots_change(run: Run) -> None:
    Path("a.raw").write_bytes(b"guest" * 100_000 + bytes(SIZE - 500_000))
    made = ("create", *KEY, "-f", "luks", "-o", "key-secret=s,iter-time=1", "v.luks", "1M")
    assert run(*made) == (0, "Formatting 'v.luks', fmt=luks size=1048576 key-secret=s iter-time=1\n", "")
    volume = "driver=luks,key-secret=s,file.filename=v.luks"
    assert run("convert", *KEY, "-n", "-f", "raw", "--target-image-opts", "a.raw", volume) == (0, "", "")
    named = 'json:{"driver":"luks","key-secret":"s","file.filename":"v.luks"}'
    assert run("convert", *KEY, "-n", "-f", "raw", "-O", "luks", "a.raw", named) == (0, "", "")
    assert run("convert", *KEY, "--image-opts", "-O", "raw", volume, "b.raw") == (0, "", "")
    assert Path("a.raw").read_bytes() == Path("b.raw").read_bytes()
    new = ("--object", "secret,id=n,data=new")
    changed = ("amend", *KEY, *new, "--image-opts", volume, "-o")
    assert run(*changed, "state=active,new-secret=n,iter-time=1") == (0, "", "")
    assert run(*changed, "state=inactive,old-secret=s") == (0, "", "")
    assert [slot.active for slot in qcow2c.key_slots("v.luks", key="new").slots] == [False, True, *[False] * 6]
    status, _, err = run("convert", *KEY, "-n", "-f", "raw", "--target-image-opts", "a.raw", volume)
    assert status == 1 and "Invalid password" in err
