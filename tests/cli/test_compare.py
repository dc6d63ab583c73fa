"""The command compare: what it prints, and its exit status."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qcow2c.cli import main
from tests.building import L2_COPIED, L2_ZERO, Builder

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def raw(tmp_path: Path) -> str:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"data".ljust(1 << 20, b"\0"))
    return str(path)


@pytest.fixture
def qcow2(tmp_path: Path) -> str:
    builder = Builder()
    builder.data(0, b"data")
    path = tmp_path / "disk.qcow2"
    path.write_bytes(builder.build())
    return str(path)


def changed(name: str, offset: int, to: bytes) -> str:
    content = bytearray(Path(name).read_bytes())
    content[offset : offset + len(to)] = to
    path = Path(f"{name}-changed")
    path.write_bytes(content)
    return str(path)


def run(capfd: Capture, *words: str) -> tuple[int, str, str]:
    status = main(["compare", *words])
    return status, *capfd.readouterr()


def test_identical_images(raw: str, qcow2: str, capfd: Capture) -> None:
    assert run(capfd, raw, qcow2) == (0, "Images are identical.\n", "")
    assert run(capfd, "-q", "-p", "-f", "raw", "-F", "qcow2", "-U", "-T", "none", raw, qcow2) == (0, "", "")
    status, shown, said = run(capfd, "-p", raw, qcow2)
    # A busy machine tells of what lies between, too.
    shown = re.sub(r"    \([1-9]\d?\.\d\d/100%\)\r", "", shown)
    assert (status, shown, said) == (
        0,
        "    (0.00/100%)\r    (100.00/100%)\rImages are identical.\n\n",
        "",
    )


def test_different_images(raw: str, qcow2: str, capfd: Capture) -> None:
    other = changed(raw, 70_000, b"x")
    assert run(capfd, other, qcow2) == (1, "Content mismatch at offset 69632!\n", "")
    assert run(capfd, "-q", other, qcow2) == (1, "", "")


def test_different_allocation(tmp_path: Path, capfd: Capture) -> None:
    builder = Builder()
    builder.data(9, b"data")
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(builder.build())
    builder.entry(3, L2_ZERO)
    other.write_bytes(builder.build())
    assert run(capfd, str(one), str(other)) == (0, "Images are identical.\n", "")
    assert run(capfd, "-s", str(one), str(other)) == (1, "Strict mode: Offset 12288 block status mismatch!\n", "")


def test_different_sizes(raw: str, qcow2: str, capfd: Capture) -> None:
    longer = changed(raw, 1 << 20, bytes(1 << 20))
    assert run(capfd, longer, qcow2) == (0, "Warning: Image size mismatch!\nImages are identical.\n", "")
    assert run(capfd, "-s", longer, qcow2) == (1, "Strict mode: Image size mismatch!\n", "")
    longer = changed(raw, (2 << 20) - 1, b"x")
    expected = "Warning: Image size mismatch!\nContent mismatch at offset 1048576!\n"
    assert run(capfd, qcow2, longer) == (1, expected, "")
    shorter = changed(raw, 0, b"x")
    Path(shorter).write_bytes(b"xyz")
    assert run(capfd, shorter, qcow2) == (1, "Content mismatch at offset 0!\n", "")
    Path(shorter).write_bytes(b"")
    expected = "    (0.00/100%)\rWarning: Image size mismatch!\nContent mismatch at offset 0!\n\n"
    assert run(capfd, "-p", shorter, qcow2) == (1, expected, "")


def test_progress_of_nothing(tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "empty").touch()
    name = str(tmp_path / "empty")
    assert run(capfd, "-p", name, name) == (0, "    (0.00/100%)\rImages are identical.\n\n", "")


def test_what_cannot_be_opened(raw: str, qcow2: str, capfd: Capture) -> None:
    for words in ((raw, "missing"), ("missing", raw), ("-f", "qcow2", raw, qcow2), ("-f", "vmdk", raw, qcow2)):
        status, out, err = run(capfd, *words)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("qcow2c: ")
    assert run(capfd, "-p", "missing", raw)[:2] == (2, "\n")
    expected = "qcow2c: Invalid source cache option: nonsense\n"
    assert run(capfd, "-T", "nonsense", raw, qcow2) == (2, "", expected)


def test_a_wrong_command_line_is_one(capfd: Capture) -> None:
    for words in ((), ("one",), ("--nonsense", "one", "two")):
        status, out, err = run(capfd, *words)
        assert (status, out) == (1, "")
        assert "Try 'qcow2c compare --help'" in err


def test_tables_and_data_that_cannot_be_read(tmp_path: Path, raw: str, capfd: Capture) -> None:
    builder = Builder(2 << 20)
    builder.data(0, b"data")
    builder.entry(300, 1 << 30 | L2_COPIED)
    path = tmp_path / "lost"
    path.write_bytes(builder.build())
    status, out, err = run(capfd, str(path), raw)
    assert (status, out) == (4, "Warning: Image size mismatch!\n")
    assert err.startswith(f"qcow2c: Error while reading offset 1228800 of {path}: the host cluster is past the end of ")
    builder.entry(300, 512 | L2_COPIED)
    path.write_bytes(builder.build())
    status, out, err = run(capfd, raw, str(path))
    assert (status, out) == (3, "Warning: Image size mismatch!\n")
    assert err.startswith(f"qcow2c: Sector allocation test failed for {path}: L2 entry ")
    assert run(capfd, changed(raw, 0, b"x"), str(path))[0] == 1


def test_encrypted_images_cannot_be_opened(tmp_path: Path, capfd: Capture) -> None:
    path = tmp_path / "sealed"
    path.write_bytes(Builder(crypt_method=1).build())
    status, out, err = run(capfd, str(path), str(path))
    assert (status, out) == (2, "")
    assert "no key was given" in err


def test_the_gate_refuses_a_backing_file_elsewhere(tmp_path: Path, raw: str, capfd: Capture) -> None:
    builder = Builder()
    builder.backing_file = raw.encode()
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / "overlay"
    path.write_bytes(builder.build())
    assert run(capfd, str(path), raw)[0] == 2
    assert run(capfd, "--gate=any", str(path), raw)[0] == 0
