"""The NBD server with the clients that people have: qemu-img, qemu-io, nbdinfo, nbdcopy, and TLS."""

from __future__ import annotations

import datetime
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import qcow2c
from tests.conftest import IN_CI

MIB = 1 << 20
SIZE = 16 * MIB
LIBNBD = pytest.mark.skipif(
    shutil.which("nbdinfo") is None and not IN_CI, reason="nbdinfo, nbdcopy (Debian: libnbd-bin) are missing"
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk with pieces of data, over a base that has others."""
    chooser = random.Random(1)
    for name, options in (("base", {}), ("disk", {"backing_file": "base", "backing_fmt": "qcow2"})):
        qcow2c.create(tmp_path / name, SIZE, **options)  # type: ignore[arg-type]
        with qcow2c.open(tmp_path / name, "r+") as disk:
            for _ in range(12):
                disk.pwrite(chooser.randbytes(70_000), chooser.randrange(SIZE - 70_000))
    with qcow2c.open(tmp_path / "disk", "r+") as disk:
        disk.write_zeroes(5 * MIB, MIB)
    return tmp_path / "disk"


def serve(script: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script while an image is served; `$uri` is where."""
    command = [sys.executable, "-m", "qcow2c", "serve", "nbd", "--log", "--run", f"set -e; {script}", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def done(script: str, *words: str | Path) -> str:
    result = serve(script, *words)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_qemu_reads_the_same_disk(image: Path) -> None:
    assert "Images are identical." in done(f'qemu-img compare -f raw -F qcow2 "$uri" {shlex.quote(str(image))}', image)


@LIBNBD
def test_the_map_is_that_of_qemu_nbd(image: Path, tmp_path: Path) -> None:
    contexts = ("base:allocation", "qemu:allocation-depth")
    script = "; ".join(f'nbdinfo --json --map={context} "$uri"' for context in contexts)
    ours = done(script, "-A", image)
    place = tmp_path / "s"
    with subprocess.Popen(["qemu-nbd", "-r", "-t", "-A", "-f", "qcow2", "-k", place, image]) as server:
        try:
            uri = f"nbd+unix:///?socket={place}"
            wait = f"for i in $(seq 100); do test -S {place} && break; sleep 0.1; done; "
            theirs = subprocess.run(
                ["sh", "-c", wait + script],
                env={"PATH": "/usr/bin:/bin", "uri": uri},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        finally:
            server.terminate()
    assert _extents(ours) == _extents(theirs)


def _extents(text: str) -> list[list[tuple[int, int, int]]]:
    decoder, found = json.JSONDecoder(), []
    while text.strip():
        extents, end = decoder.raw_decode(text.lstrip())
        text = text.lstrip()[end:]
        merged: list[tuple[int, int, int]] = []
        for extent in extents:
            start, length, kind = extent["offset"], extent["length"], extent["type"]
            if merged and merged[-1][2] == kind:
                merged[-1] = (merged[-1][0], merged[-1][1] + length, kind)
            else:
                merged.append((start, length, kind))
        found.append(merged)
    return found


@LIBNBD
@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
def test_a_copy_in_and_out_over_many_connections(image_format: str, image: Path, tmp_path: Path) -> None:
    raw, target, back = tmp_path / "raw", tmp_path / "target", tmp_path / "back"
    qcow2c.convert(image, raw)
    if image_format == "qcow2":
        qcow2c.create(target, SIZE)
    else:
        target.write_bytes(b"")
        os.truncate(target, SIZE)
    done(f'nbdcopy --flush {raw} "$uri"', "--rw", "-f", image_format, target)
    done(f'nbdcopy "$uri" {back}', "-f", image_format, target)
    assert back.read_bytes() == raw.read_bytes()
    if image_format == "qcow2":
        subprocess.run(["qemu-img", "check", "-q", target], check=True)


def test_qemu_io_writes_what_qemu_reads(image: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    qcow2c.convert(image, raw)
    commands = [
        "write -P 7 1M 200k",
        "write -z 3M 1M",
        "write -zu 7M 1M",
        "discard 9M 1M",
        "write -f -P 9 11M 3k",
        "flush",
    ]
    words = " ".join(f"-c {shlex.quote(command)}" for command in commands)
    done(f'qemu-io -f raw {words} "$uri"', "--rw", image)
    subprocess.run(["qemu-io", "-f", "raw", *[word for one in commands for word in ("-c", one)], raw], check=True)
    subprocess.run(["qemu-img", "check", "-q", image], check=True)
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, image], check=True)
    refused = serve('qemu-io -f raw -c "write 0 512" "$uri"', image)
    assert refused.returncode != 0


@LIBNBD
def test_many_clients_at_once_write_each_its_own(tmp_path: Path) -> None:
    target = tmp_path / "target"
    qcow2c.create(target, SIZE)
    lines = [
        f'qemu-io -f raw -c "write -P {part + 1} {part}M 1M" -c "read -P {part + 1} {part}M 1M" "$uri" & '
        for part in range(8)
    ]
    done("".join(lines) + "wait", "--rw", target)
    with qcow2c.open(target) as disk:
        assert disk.readall() == b"".join(bytes([part + 1]) * MIB for part in range(8)).ljust(SIZE, b"\0")
    subprocess.run(["qemu-img", "check", "-q", target], check=True)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with a CA, and the certificate of a server at 127.0.0.1."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path / "pki"
    folder.mkdir()
    begin, end = datetime.datetime(2020, 1, 1), datetime.datetime(2120, 1, 1)
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test's authority")])
    for name, key in (("ca", authority), ("server", ec.generate_private_key(ec.SECP256R1()))):
        subject = issuer if name == "ca" else x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
        builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number(), begin, end)
        builder = builder.add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
        place = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        signed = builder.add_extension(place, critical=False).sign(authority, hashes.SHA256())
        (folder / f"{name}-cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{name}-key.pem").write_bytes(secret)
    return folder


@LIBNBD
def test_connections_are_encrypted(image: Path, certificates: Path) -> None:
    words = ["-p", "0", "--tls", "require", "--tls-certificates", certificates, image]
    script = f'nbdinfo --size "$uri?tls-certificates={certificates}&tls-verify-peer=true"'
    assert done(script, *words).strip() == str(SIZE)
    script = f'nbdcopy "$uri?tls-certificates={certificates}" - | cmp - {image}.raw'
    qcow2c.convert(image, f"{image}.raw")
    done(script, *words)
    assert serve('nbdinfo --size "nbd:${uri#nbds:}"', *words).returncode != 0
