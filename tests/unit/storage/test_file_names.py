"""File names in QEMU's forms: what is a local file, and what only QEMU can open."""

from __future__ import annotations

from pathlib import Path

import pytest

import qcow2c
from qcow2c.errors import UnsupportedFeature, UsageError
from qcow2c.storage.file_names import (
    PROTOCOLS,
    LocalName,
    is_url,
    local_name,
    parsed_json,
    plain_path,
    protocol_of,
    source_path,
)
from qcow2c.storage.sources import opened

NETWORK = ("nbd:localhost:10809", "nbd+unix:///x?socket=s", "rbd:pool/x", "ssh:h", "iscsi:x", "NBD:x")


@pytest.mark.parametrize("name", NETWORK)
def test_what_only_qemu_speaks_is_refused_by_name(name: str) -> None:
    for function in (local_name, plain_path):
        with pytest.raises(UnsupportedFeature, match="is no local file: only QEMU speaks the protocol") as caught:
            function(name)
        assert f"'./{name}'" in str(caught.value)


def test_a_url_is_a_source_and_no_local_file() -> None:
    for name in ("http://h/x", "HTTPS://h/x", "s3://bucket/x", "memory://x", "odd+one://x"):
        assert is_url(name) and source_path(name) == name
        for function in (local_name, plain_path):
            with pytest.raises(UnsupportedFeature, match="is a URL, and no local file"):
                function(name)
    for name in (*NETWORK, "http:x", "file://x", "x", "a/b://c", b"http://h/x", 7):
        assert not is_url(name)


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_each_protocol_of_qemu_is_known(protocol: str) -> None:
    assert protocol_of(f"{protocol}:x") == protocol
    assert protocol_of(f"./{protocol}:x") is None


@pytest.mark.parametrize("name", ["disk.qcow2", "at 12:30", "a:b", "./nbd:x", "dir/ssh:h", "/nbd:x", "nbd", "file"])
def test_any_other_name_is_a_local_file(name: str) -> None:
    assert local_name(name) == LocalName(name)
    assert plain_path(name) == name
    assert plain_path(f"file:{name}") == name


def test_only_text_is_understood_so() -> None:
    path = Path("nbd:x")
    assert plain_path(path) is path
    assert plain_path(b"nbd:x") == b"nbd:x"
    with pytest.raises(UnsupportedFeature, match="only the command line"):
        plain_path('json:{"driver":"raw"}')


def test_json_names_hold_one_file_and_perhaps_its_format() -> None:
    assert local_name('json:{"file":{"driver":"file","filename":"x"}}') == LocalName("x")
    assert local_name('json:{"driver":"raw","file.filename":"x","discard":"unmap"}') == LocalName("x", "raw")
    for words, kind in (("[]", UsageError), ('{"driver":"vmdk","file.filename":"x"}', UnsupportedFeature)):
        with pytest.raises(kind):
            local_name("json:" + words)


@pytest.mark.parametrize("name", NETWORK)
def test_the_library_makes_no_file_of_a_network_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    qcow2c.create("source.qcow2", 1 << 20)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UnsupportedFeature):
        qcow2c.create(name, 1 << 20)
    with pytest.raises(UnsupportedFeature):
        qcow2c.create("new.qcow2", 1 << 20, data_file=name)
    for image_format in ("raw", "qcow2"):
        with pytest.raises(UnsupportedFeature):
            qcow2c.convert("source.qcow2", name, output_format=image_format)
    with pytest.raises(UnsupportedFeature):
        qcow2c.compact("source.qcow2", name)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_library_understands_file_names_with_their_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    qcow2c.create("file:disk.qcow2", 1 << 20, data_file="file:guest.raw")
    with qcow2c.open("file:disk.qcow2", "r+") as image:
        assert image.header.data_file == b"guest.raw"
        image.pwrite(b"hello", 0)
    qcow2c.convert("file:disk.qcow2", "file:copy.raw")
    with opened("file:copy.raw") as store:
        assert store.pread(5, 0) == b"hello"
    assert {path.name for path in tmp_path.iterdir()} == {"disk.qcow2", "guest.raw", "copy.raw"}


@pytest.mark.parametrize(
    "name",
    [
        "json:{'driver':'qcow2','file':{'driver':'file','filename':'a\"b'}}",
        'json:{"driver":"qcow2",\'file\':{"driver":\'file\',"filename":"a\\"b"}}',
    ],
)
def test_strings_of_json_may_be_in_single_quotes(name: str) -> None:
    assert local_name(name) == LocalName('a"b', "qcow2")


def test_quotes_of_the_other_kind_and_backslashes_stay() -> None:
    assert parsed_json(r"""json:{"a": "it's", 'b': 'it\'s', 'c': 'x\\', "d": "'\"'"}""") == {
        "a": "it's",
        "b": "it's",
        "c": "x\\",
        "d": "'\"'",
    }
