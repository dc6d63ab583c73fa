"""The real images, made once a session when first asked for, and qcow2c's commands run beside qemu-img's."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qcow2c.cli import main

from .images import BY_NAME
from .workshop import RealImage, make_image


@dataclass(frozen=True)
class Outcome:
    """What a command did: exit status, standard output, standard error."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="session")
def made(
    requires_qemu: None,  # noqa: ARG001 - a fixture cannot be marked to use another
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], RealImage]:
    """Return a function from a recipe's name to its image."""
    folder = tmp_path_factory.mktemp("images")
    images: dict[str, RealImage] = {}

    def get(name: str) -> RealImage:
        if name not in images:
            images[name] = make_image(BY_NAME[name], folder)
        return images[name]

    return get


@pytest.fixture
def image(request: pytest.FixtureRequest, made: Callable[[str], RealImage]) -> RealImage:
    """The real image named by the test's parameter (indirect)."""
    return made(request.param)


NEWER = ("children", "compressed", "detached-header")
"""Keys of JSON that qemu-img has since version 8; ours has those of both."""


def older(value: Any) -> Any:
    """Return parsed JSON of ours without the keys that older versions of qemu-img lack."""
    if isinstance(value, dict):
        return {key: older(found) for key, found in value.items() if key not in NEWER}
    return [older(found) for found in value] if isinstance(value, list) else value


def older_text(words: str) -> str:
    """Return the JSON that map prints without what older versions of qemu-img lack, and else as it is."""
    return re.sub(r', "compressed": (true|false)', "", words)


def run_qemu_img(folder: Path, *words: str, program: str | Path = "qemu-img") -> Outcome:
    """Run qemu-img in a folder; a run of more than two minutes is an error."""
    done = subprocess.run([program, *words], cwd=folder, capture_output=True, timeout=120, check=False)
    return Outcome(done.returncode, *(os.fsdecode(piece) for piece in (done.stdout, done.stderr)))


@pytest.fixture
def run_ours(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Return a function that runs qcow2c's command line in this process, in a folder."""

    def run(folder: Path, *words: str) -> Outcome:
        monkeypatch.chdir(folder)
        capfdbinary.readouterr()
        try:
            status = main(list(words))
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        return Outcome(status, *(os.fsdecode(piece) for piece in capfdbinary.readouterr()))

    return run
