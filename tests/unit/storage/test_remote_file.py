"""Files at URLs: the same bytes as of local ones, in few requests; errors of ours, and no other files than allowed."""

from __future__ import annotations

import builtins
import os
import random
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import qcow2c
from qcow2c.errors import GateRefused, StoreError, UnsupportedFeature
from qcow2c.storage import remote_file
from qcow2c.storage.gate import GateRequest, any_file, directories, same_directory
from qcow2c.storage.remote_file import BLOCK_BYTES, RemoteFile
from qcow2c.storage.sources import open_store
from qcow2c.testing import StoreContract
from qcow2c.testing.stores import Made
from tests.web_server import Web, web_server

fsspec = pytest.importorskip("fsspec")

SIZE = 4 << 20


class TestRemoteFiles(StoreContract):
    @contextmanager
    def make(self, content: bytes, *, writable: bool) -> Iterator[Made]:
        if writable:
            pytest.skip("what is at a URL is only read")
        name = f"/{uuid.uuid4()}"
        system = fsspec.filesystem("memory")
        system.pipe_file(name, content)
        try:
            yield Made(RemoteFile(f"memory:/{name}"), lambda: system.cat_file(name))
        finally:
            system.rm_file(name)


@pytest.fixture
def web() -> Iterator[Web]:
    files = {"/noise": random.Random(1).randbytes(10 * BLOCK_BYTES + 17)}
    with web_server(files) as found:
        yield found


def test_any_read_gives_the_bytes_of_the_file(web: Web) -> None:
    data = web.files["/noise"]
    store = open_store(f"{web.url}/noise")
    chooser = random.Random(2)
    assert store.size() == len(data)
    for _ in range(60):
        offset, length = chooser.randrange(len(data) + 10), chooser.choice([0, 1, 512, 70_000, 3 * BLOCK_BYTES])
        assert store.pread(length, offset) == data[offset : offset + length]
    assert store.pread(len(data) + 5, 0) == data
    assert store.pread(5, len(data)) == b""


def test_who_reads_on_is_given_ever_more_at_once_and_nothing_twice(web: Web) -> None:
    store = open_store(f"{web.url}/noise")
    data = web.files["/noise"]
    for offset in range(0, len(data), 10_000):
        assert store.pread(10_000, offset) == data[offset : offset + 10_000]
    gets = [wanted for command, _, wanted in web.requests if command == "GET"]
    assert len(gets) < 8
    assert len(set(gets)) == len(gets)
    before = len(web.requests)
    assert store.pread(1000, 0) == data[:1000]
    assert len(web.requests) == before


def test_memory_is_bounded(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_file, "CACHE_BYTES", 3 * BLOCK_BYTES)
    store = RemoteFile(f"{web.url}/noise")
    for number in (9, 7, 5, 3, 1):
        store.pread(1, number * BLOCK_BYTES)
        assert len(store._blocks) <= 3
    assert set(store._blocks) == {5, 3, 1}


def test_a_server_that_gives_whole_files_for_parts_is_refused(web: Web) -> None:
    web.ranges = False
    store = RemoteFile(f"{web.url}/noise")
    with pytest.raises(StoreError, match="could not read"):
        store.pread(1, 5 * BLOCK_BYTES)


def test_what_is_not_there_or_fails_is_said(web: Web) -> None:
    with pytest.raises(StoreError, match="No such file") as caught:
        open_store(f"{web.url}/none")
    assert caught.value.errno == 2
    store = open_store(f"{web.url}/noise")
    web.fails = True
    with pytest.raises(StoreError, match="could not read"):
        store.pread(1, 0)
    with pytest.raises(StoreError, match="could not open"):
        open_store("http://127.0.0.1:9/nobody-listens")
    with pytest.raises(UnsupportedFeature, match="known"):
        open_store("nosuch://place/file")
    with pytest.raises(StoreError, match="no file"):
        fsspec.filesystem("memory").mkdir("/a-folder")
        open_store("memory://a-folder")


def test_a_file_that_shrinks_is_an_error() -> None:
    files = {"/noise": bytearray(b"x" * (4 * BLOCK_BYTES))}
    with web_server(files) as web:
        store = open_store(f"{web.url}/noise")
        store.pread(1, 0)
        del files["/noise"][BLOCK_BYTES + 10 :]
        with pytest.raises(StoreError, match="10 bytes came where"):
            store.pread(1, BLOCK_BYTES)


def test_without_fsspec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name in ("fsspec", "aiohttp"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UnsupportedFeature, match=r"install qcow2c\[remote\]"):
        open_store("memory://x")


def test_nothing_is_written_at_a_url(web: Web, tmp_path: Path) -> None:
    for call in (
        lambda url: qcow2c.open(url, "r+"),
        lambda url: qcow2c.create(url, SIZE),
        lambda url: qcow2c.convert(b"x" * 512, url),
    ):
        with pytest.raises(UnsupportedFeature, match="only read"):
            call(f"{web.url}/noise")
    assert not os.listdir(tmp_path)


def test_a_child_opens_its_own(web: Web) -> None:
    store = open_store(f"{web.url}/noise")
    child = os.fork()
    if not child:
        try:
            store.pread(1, 0)
        except StoreError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


# --- images and their chains ----------------------------------------------------------------------------------------


@pytest.fixture
def chain(tmp_path: Path) -> dict[str, bytes]:
    """An overlay and its base, as files of a web server, and other overlays that lead elsewhere."""
    qcow2c.create(tmp_path / "base 1", SIZE)
    with qcow2c.open(tmp_path / "base 1", "r+") as disk:
        disk.pwrite(b"from below", 70_000)
    found = {"/vm/base 1": (tmp_path / "base 1").read_bytes()}
    for number, name in enumerate(("base 1", "../secret", "/etc/passwd", "http://127.0.0.1:9/x", "file:base 1")):
        qcow2c.create(tmp_path / "top", SIZE, backing_file=name, backing_fmt="qcow2", check_backing=False)
        found[f"/vm/top{number}"] = (tmp_path / "top").read_bytes()
    return {path.replace(" ", "%20"): data for path, data in found.items()}


def test_a_chain_is_found_beside_its_url_and_nowhere_else(chain: dict[str, bytes]) -> None:
    with web_server(chain) as web:
        for number in (0, 4):
            with qcow2c.open(f"{web.url}/vm/top{number}") as disk:
                assert disk.pread(10, 70_000) == b"from below"
        for gate in ("directory", "any", ["/etc"]):
            for number in (1, 2, 3):
                with pytest.raises(GateRefused):
                    qcow2c.open(f"{web.url}/vm/top{number}", gate=gate)
        with pytest.raises(GateRefused):
            qcow2c.open(f"{web.url}/vm/top0", gate="deny")


@pytest.mark.parametrize("gate", [same_directory, any_file, directories(["/srv"])])
def test_the_gate_joins_names_to_urls(gate: Any) -> None:
    def asked(url: str, name: str) -> str:
        return str(gate(GateRequest("backing file", name, None, url)))

    assert asked("http://h/a/img?key=1", "b c") == "http://h/a/b%20c"
    assert asked("s3://bucket/img", "sub/base") == "s3://bucket/sub/base"
    for name in ("", "..", "a/../../b", "/x", "https://h/x", "json:{}", "nbd:x", "a\0b"):
        with pytest.raises(GateRefused):
            asked("http://h/a/img", name)


def test_looking_at_an_image_takes_few_requests(tmp_path: Path) -> None:
    qcow2c.create(tmp_path / "image", 1 << 30)
    with qcow2c.open(tmp_path / "image", "r+") as disk:
        for number in range(40):
            disk.pwrite(b"x" * 65536, number * (25 << 20))
    with web_server({"/image": (tmp_path / "image").read_bytes()}) as web:
        for look, most in ((qcow2c.info, 4), (qcow2c.check, 16), (lambda url: list(qcow2c.map(url)), 8)):
            web.requests.clear()
            look(f"{web.url}/image")  # type: ignore[operator]
            assert len(web.requests) <= most, look
        web.requests.clear()
        qcow2c.convert(f"{web.url}/image", tmp_path / "copy", output_format="qcow2")
        assert len(web.requests) <= 30
    assert qcow2c.compare(tmp_path / "image", tmp_path / "copy").identical


def test_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a server of this machine that speaks S3: a chain in a bucket."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            monkeypatch.setenv(name, value)
        qcow2c.create(tmp_path / "base", SIZE)
        with qcow2c.open(tmp_path / "base", "r+") as disk:
            disk.pwrite(b"from below", 70_000)
        qcow2c.create(tmp_path / "top", backing_file="base", backing_fmt="qcow2")
        system = fsspec.filesystem("s3")
        system.mkdir("bucket")
        for name in ("base", "top"):
            system.pipe_file(f"bucket/{name}", (tmp_path / name).read_bytes())
        with qcow2c.open("s3://bucket/top") as disk:
            assert disk.pread(10, 70_000) == b"from below"
        assert qcow2c.check("s3://bucket/top").exit_code == 0
        with pytest.raises(StoreError, match="could not open"):
            qcow2c.open("s3://bucket/none")
    finally:
        server.stop()
