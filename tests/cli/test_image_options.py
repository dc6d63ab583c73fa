"""Images by options (--image-opts, json:{...}), the gate from the environment, and words in the order of getopt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import qcow2c
from qcow2c.cli import COMMANDS, main

Run = Callable[..., tuple[int, str, str]]

OPTIONS = "driver=qcow2,file.filename=disk.qcow2"
JSON = json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": "disk.qcow2"}})
DATA = b"data" * 1024


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command beside `disk.qcow2`, `over.qcow2` and `raw`: status, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QCOW2C_GATE", raising=False)
    qcow2c.create("disk.qcow2", 1 << 20)
    with qcow2c.open("disk.qcow2", "r+") as image:
        image.pwrite(DATA, 0)
    qcow2c.create("over.qcow2", 1 << 20, backing_file="disk.qcow2", backing_fmt="qcow2")
    (tmp_path / "raw").write_bytes(DATA)

    def run_command(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(list(words))
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run_command


@pytest.mark.parametrize("command", ["info", "map", "check", "measure"])
def test_an_image_by_its_options_is_the_same_image(command: str, run: Run) -> None:
    plain = run(command, "disk.qcow2")
    assert plain[0] == 0
    for words in (["--image-opts", OPTIONS], [f"json:{JSON}"], [f"json:{JSON}", "-f", "qcow2"], ["file:disk.qcow2"]):
        assert run(command, *words) == plain
    assert run(command, "--image-opts", "file.filename=disk.qcow2,cache.direct=on,read-only") == plain
    assert run(command, "--object", "secret,id=a,data=b", "disk.qcow2") == plain


def test_the_format_of_the_command_line_comes_before_that_of_the_name(run: Run) -> None:
    assert "file format: raw\n" in run("info", "-f", "raw", f"json:{JSON}")[1]
    assert "file format: raw\n" in run("info", "--image-opts", "driver=file,filename=disk.qcow2")[1]


def test_check_tells_the_name_as_it_was_given(run: Run) -> None:
    assert json.loads(run("check", "--output=json", "--image-opts", OPTIONS)[1])["filename"] == OPTIONS


def test_both_images_of_compare_are_given_by_options(run: Run) -> None:
    assert run("compare", "--image-opts", OPTIONS, "file.filename=over.qcow2")[0] == 0
    assert run("compare", f"json:{JSON}", "over.qcow2")[0] == 0
    complaint = "qcow2c: --image-opts and --format are mutually exclusive\n"
    assert run("compare", "--image-opts", "-F", "qcow2", OPTIONS, OPTIONS) == (2, "", complaint)
    complaint = "qcow2c: Could not open 'raw': Cannot find device='raw' nor node-name='raw'\n"
    assert run("compare", "--image-opts", OPTIONS, "raw") == (2, "", complaint)
    status, _, err = run("compare", "--image-opts", OPTIONS, "file.filename=gone")
    assert (status, err) == (2, "qcow2c: file.filename=gone: Could not open 'gone': No such file or directory\n")


@pytest.mark.parametrize("no_backing", ["", None])
def test_an_image_without_its_backing_file(no_backing: str | None, run: Run) -> None:
    name = "json:" + json.dumps({"driver": "qcow2", "file.filename": "over.qcow2", "backing": no_backing})
    status, out, err = run("map", "--output=json", name)
    assert (status, json.loads(out)[0]["data"]) == (0, False)
    assert err.startswith("qcow2c: warning: Use of") == (no_backing == "")


def test_another_backing_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "disk.qcow2").rename(tmp_path / "moved.qcow2")
    assert run("map", "over.qcow2")[0] == 1
    for driver in ("", "backing.driver=qcow2,", "backing.driver=qcow2,backing.file.driver=file,"):
        name = f"driver=qcow2,file.filename=over.qcow2,{driver}backing.file.filename=moved.qcow2"
        status, out, _ = run("map", "--image-opts", name)
        assert (status, "moved.qcow2" in out) == (0, True)


def test_a_backing_file_is_read_in_the_format_that_the_user_says(run: Run) -> None:
    name = "driver=qcow2,file.filename=over.qcow2,backing.driver=raw"
    status, out, _ = run("map", "--image-opts", name)
    assert (status, out.splitlines()[1].split()[2:]) == (0, ["0", "disk.qcow2"])
    qcow2c.create("over-raw.qcow2", 1 << 20, backing_file="raw", backing_fmt="raw")
    name = "driver=qcow2,file.filename=over-raw.qcow2,backing.driver={},backing.{}filename=raw"
    for driver, file in (("raw", "file."), ("file", "")):
        assert run("compare", "--image-opts", name.format(driver, file), OPTIONS)[0] == 0
    assert run("compare", "--image-opts", name.format("qcow2", "file."), OPTIONS)[0] == 2


def test_an_image_in_a_part_of_a_file(run: Run, tmp_path: Path) -> None:
    inner = (tmp_path / "disk.qcow2").read_bytes()
    (tmp_path / "whole").write_bytes(bytes(4096) + inner + bytes(512))
    file = {"driver": "raw", "offset": 4096, "size": str(len(inner)), "file": {"filename": "whole"}}
    name = "json:" + json.dumps({"driver": "qcow2", "file": file})
    assert run("compare", name, "disk.qcow2")[0] == 0
    for command in ("info", "map", "check", "measure"):
        assert run(command, name)[0] == 0
    assert run("snapshot", "-l", name) == (0, "", "")
    before = (tmp_path / "whole").read_bytes()
    changes = ["resize", name, "2M"], ["snapshot", "-c", "x", name], ["amend", "-o", "size=2M", name], ["commit", name]
    for words in (
        *changes,
        ["bitmap", "--add", name, "b"],
        ["rebase", "-u", "-b", "", name],
        ["check", "-r", "all", name],
    ):
        status, _, err = run(*words)
        assert status == 1 and "in a part of a file (offset=, size=) is read, and never changed" in err
    assert (tmp_path / "whole").read_bytes() == before


def test_a_part_of_a_raw_file_is_a_disk(run: Run, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(512) + b"x" * 1024 + b"y" * 512)
    name = "driver=raw,offset=512,size=1024,file.filename=raw"
    assert run("convert", "-O", "raw", "--image-opts", name, "part")[0] == 0
    assert (tmp_path / "part").read_bytes() == b"x" * 1024
    assert run("map", "--image-opts", name)[1].splitlines()[1].split() == ["0", "0x400", "0x200", "raw"]


def test_a_backing_file_has_options_of_its_own(run: Run, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(512) + b"x" * 4096)
    qcow2c.create("top.qcow2", 1 << 20, backing_file="over.qcow2", backing_fmt="qcow2")
    lower: dict[str, object] = {"driver": "raw", "offset": 512, "size": 4096, "file.filename": "raw"}

    def data(backing: object) -> bytes:
        name = "json:" + json.dumps({"driver": "qcow2", "file.filename": "top.qcow2", "backing": backing})
        assert run("convert", "-O", "raw", name, "out")[0] == 0
        return (tmp_path / "out").read_bytes()[:4096]

    assert data({"file.filename": "over.qcow2"}) == DATA
    assert data({"driver": "qcow2", "file.filename": "over.qcow2", "backing": None}) == bytes(4096)
    assert data({"driver": "qcow2", "file.filename": "over.qcow2", "backing": lower}) == b"x" * 4096
    assert data(lower) == b"x" * 4096
    name = "json:" + json.dumps({"driver": "qcow2", "file.filename": "top.qcow2", "backing": lower})
    for words in (["resize", name, "2M"], ["commit", name], ["rebase", "-b", "", name], ["info", name]):
        assert run(*words)[0] == 1
    assert data({"file.filename": "over.qcow2"}) == DATA


def test_an_external_data_file_that_has_moved(run: Run, tmp_path: Path) -> None:
    qcow2c.create("split.qcow2", 1 << 20, data_file="split.data")
    (tmp_path / "split.data").rename(tmp_path / "moved.data")
    assert run("map", "split.qcow2")[0] == 1
    for words, status in {
        "data-file.filename=moved.data": 0,
        "data-file.driver=file,data-file.filename=moved.data": 0,
        "data-file.driver=raw,data-file.file.filename=moved.data": 0,
        "data-file.driver=qcow2,data-file.file.filename=moved.data": 1,
        "data-file.driver=foo,data-file.filename=moved.data": 1,
        "data-file.colour=red": 1,
    }.items():
        assert run("map", "--image-opts", f"file.filename=split.qcow2,{words}")[0] == status


def test_what_is_shared(run: Run) -> None:
    with qcow2c.open("disk.qcow2", "r+"):
        assert run("map", "--image-opts", OPTIONS)[0] == 1
        assert run("map", "--image-opts", f"{OPTIONS},force-share=on")[0] == 0
        assert run("map", "-U", "--image-opts", OPTIONS)[0] == 0
    complaint = "qcow2c: --force-share/-U conflicts with image options\n"
    assert run("map", "-U", "--image-opts", f"{OPTIONS},force-share=off") == (1, "", complaint)


WRONG = {
    "a=b": "Must specify either driver or file",
    "disk.qcow2": "Cannot find device='disk.qcow2' nor node-name='disk.qcow2'",
    "driver=vmdk,file.filename=x": "Unknown driver 'vmdk'",
    "driver=qcow2": 'A block device must be specified for "file"',
    "driver=file": "The 'file' block driver requires a file name",
    "driver=qcow2,file.driver=nbd,file.host=x": "Unknown driver 'nbd'",
    "driver=qcow2,file.filename=x,colour=red": "Block format 'qcow2' does not support the option 'colour'",
    "driver=qcow2,file.filename=x,offset=512": "Block format 'qcow2' does not support the option 'offset'",
    "driver=raw,file.filename=raw,offset=5k": "Offset (5120) cannot be greater than size of the containing file (4096)",
    "driver=raw,file.filename=raw,size=100": "Specified size is not multiple of 512",
    "driver=qcow2,file.driver=raw,file.size=1M,file.file.filename=raw": (
        "The sum of offset (0) and size (1048576) has to be smaller or equal to the  actual size of the containing "
        "file (4096)"
    ),
    "driver=raw,file.driver=raw,file.offset=3584,offset=1024,file.file.filename=raw": (
        "Offset (1024) cannot be greater than size of the containing file (512)"
    ),
    "driver=file,filename=x,colour=red": "Block protocol 'file' doesn't support the option 'colour'",
    "file.filename=x,force-share=maybe": "Parameter 'force-share' expects 'on' or 'off'",
    "file.filename=x,backing.driver=foo": "Could not open backing file: Unknown driver 'foo'",
    "file.filename=x,backing.colour=red": (
        "Could not open backing file: Block format 'qcow2' does not support the option 'colour'"
    ),
    "json:[1]": "Invalid JSON object given",
    'json:"x"': "Invalid JSON object given",
    'json:{"driver": "foo"}': "Unknown driver 'foo'",
    'json:{"driver": "qcow2", "file": "node"}': "Cannot find device='node' nor node-name='node'",
    'json:{"driver": "qcow2", "file": {"filename": 5}}': "The 'file' block driver requires a file name",
}


@pytest.mark.parametrize("command", ["info", "map", "convert"])
@pytest.mark.parametrize("word", WRONG)
def test_what_is_wrong_with_options_is_said(word: str, command: str, run: Run) -> None:
    words = [word] if word.startswith("json:") else ["--image-opts", word]
    target = ["target"] if command == "convert" else []
    assert run(command, *words, *target) == (1, "", f"qcow2c: Could not open {word!r}: {WRONG[word]}\n")


@pytest.mark.parametrize("word", ["json:{", "json:{} x", "json:" + "[" * 100_000])
def test_bad_json_is_said(word: str, run: Run) -> None:
    status, out, err = run("info", word)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"qcow2c: Could not open {word!r}: Could not parse the JSON options: JSON parse error, ")


def test_info_of_another_chain_is_refused(run: Run) -> None:
    complaint = "Block format 'qcow2' does not support the option 'backing.driver'"
    name = "file.filename=over.qcow2,backing.driver=qcow2"
    assert run("info", "--image-opts", name) == (1, "", f"qcow2c: Could not open {name!r}: {complaint}\n")


# --- the gate -------------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(run: Run, tmp_path: Path) -> str:  # noqa: ARG001 - a fixture cannot be marked to use another
    """The name of an image over a backing file in another directory."""
    (tmp_path / "inner").mkdir()
    qcow2c.create(tmp_path / "inner/top.qcow2", 1 << 20, backing_file="../disk.qcow2", backing_fmt="qcow2")
    return "inner/top.qcow2"


def test_the_gate_comes_from_the_environment(run: Run, outside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("map", outside)[0] == 1
    monkeypatch.setenv("QCOW2C_GATE", "any")
    assert run("map", outside)[0] == 0
    assert run("map", "--gate", "directory", outside)[0] == 1
    monkeypatch.setenv("QCOW2C_GATE", "deny")
    assert run("map", "over.qcow2")[0] == 1
    monkeypatch.setenv("QCOW2C_GATE", "")
    assert run("map", "over.qcow2")[0] == 0


def test_the_gate_can_be_directories(run: Run, outside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pool").mkdir()
    status, _, err = run("map", outside)
    assert status == 1 and err.count("\n") == 1 and f"--gate {tmp_path}" in err
    assert run("map", "--gate", str(tmp_path), outside)[0] == 0
    assert run("map", "--gate", f"pool:{tmp_path}", outside)[0] == 0
    assert run("map", "--gate", "pool", outside)[0] == 1
    monkeypatch.setenv("QCOW2C_GATE", f"pool:{tmp_path}")
    assert run("info", "--backing-chain", outside)[0] == run("map", outside)[0] == 0


def test_an_absolute_and_a_json_name_beside_the_image_are_opened(run: Run, tmp_path: Path) -> None:
    inner = '{"driver":"qcow2","file":{"driver":"file","filename":"' + str(tmp_path / "disk.qcow2") + '"}}'
    qcow2c.create("absolute.qcow2", 1 << 20, backing_file=str(tmp_path / "disk.qcow2"), backing_fmt="qcow2")
    qcow2c.create("json.qcow2", 1 << 20, backing_file="json:" + inner, backing_fmt="qcow2")
    for name in ("absolute.qcow2", "json.qcow2"):
        assert run("compare", name, "disk.qcow2") == (0, "Images are identical.\n", "")
        assert run("info", "--backing-chain", name)[0] == 0
        assert run("map", "--gate=deny", name)[0] == 1


def test_a_gate_that_is_none_opens_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOW2C_GATE", "open")
    status, out, err = run("map", "over.qcow2")
    assert (status, out) == (1, "")
    assert "'open' is no gate and no directory: it can be deny, directory, any, or directories, DIR[:DIR...]" in err
    assert "(QCOW2C_GATE is the default)" in err
    assert run("map", "--gate", "any", "over.qcow2")[0] == 0
    assert "QCOW2C_GATE" in run("map", "--help")[1]
    assert "'all' is no gate" in run("map", "--gate=all", "over.qcow2")[2]


# --- the order of words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("info", "disk.qcow2", "--output=json", "-f", "qcow2"),
        ("map", "disk.qcow2", "-s", "64k", "--output", "json"),
        ("check", "disk.qcow2", "-q"),
        ("compare", "disk.qcow2", "-q", "over.qcow2", "-s"),
        ("measure", "disk.qcow2", "-O", "qcow2"),
        ("create", "new.qcow2", "-f", "qcow2", "1M", "-q"),
        ("convert", "disk.qcow2", "-O", "raw", "out", "-q"),
        ("dd", "if=disk.qcow2", "-f", "qcow2", "of=out", "-O", "raw"),
        ("dump", "disk.qcow2", "--section", "header"),
    ],
    ids=lambda words: words[0],
)
def test_options_may_follow_names(words: tuple[str, ...], run: Run) -> None:
    status, _, err = run(*words)
    assert (status, err) == (0, "")


def test_nothing_after_two_dashes_is_an_option(run: Run, tmp_path: Path) -> None:
    (tmp_path / "disk.qcow2").rename(tmp_path / "-disk")
    for command in ("info", "map", "check", "measure", "dump"):
        assert run(command, "--", "-disk")[0] == 0
        assert run(command, "-U", "--", "-disk")[0] == 0
    assert run("compare", "-q", "--", "-disk", "-disk") == (0, "", "")
    assert run("create", "-q", "-f", "qcow2", "--", "-new", "1M") == (0, "", "")
    assert run("convert", "-q", "--", "-disk", "-new") == (0, "", "")
    assert (tmp_path / "-new").read_bytes()[: len(DATA)] == DATA
    assert run("dd", "--", "if=-disk", "of=-new", "--", "-O")[2] == "qcow2c: unrecognized operand --\n"
    assert run("info", "--", "-disk", "-f")[2].startswith("qcow2c: info: unrecognized arguments: -f\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_short_option_helps(command: str, run: Run) -> None:
    status, out, err = run(command, "-h")
    assert (status, err) == (0, "")
    assert out == run(command, "--help")[1] and out.startswith(f"usage: qcow2c {command} ")
    assert run(command, "nothing", "-h")[:2] == (0, out)
    assert run("-h")[1] == run("--help")[1]
