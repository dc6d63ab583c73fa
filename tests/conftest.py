"""What every test shares: the Hypothesis profiles and the real qemu programs."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

# HYPOTHESIS_PROFILE=deep searches at random and for long; `ci` tries the same examples each time.
# Neither has a deadline: one slow example on a busy machine is no defect; time limits have their own tests.
settings.register_profile("ci", derandomize=True, deadline=None, database=None, print_blob=True)
settings.register_profile("deep", max_examples=5_000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Commands that tests start compile the package once, not at each start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Where CI is set, pytest draws in full how two values differ: of whole disks, where a failure is expected, for ever.
# The processes that share the work have the environment of this one.
IN_CI = bool(os.environ.pop("CI", "") or os.environ.get("QCOW2C_IN_CI"))
if IN_CI:
    os.environ["QCOW2C_IN_CI"] = "true"

UNTRACED = ("bench", "crash", "interop", "properties")
"""Folders whose tests go over the same code again and again: coverage, which would slow them most, leaves them out."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).resolve().parent
    for item in items:
        if item.path.relative_to(here).parts[0] in UNTRACED:
            item.add_marker("no_cover")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why tests were skipped: a line a reason, wherever it was given."""
    skipped = Counter(report.longrepr[2] for report in terminalreporter.getreports("skipped"))
    for reason, count in skipped.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason.removeprefix('Skipped: ')}")
    if shutil.which("qemu-img") is None or shutil.which("qemu-io") is None:
        terminalreporter.write_line("without qemu-utils, crash states were judged by the check of qcow2c alone")


def _program(name: str) -> Path:
    """Path of a program of qemu-utils. Missing, it fails the test under CI and skips it elsewhere."""
    found = shutil.which(name)
    if found is not None:
        return Path(found)
    message = f"{name} is not installed (Debian package qemu-utils): nothing to compare with"
    if IN_CI:
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@pytest.fixture(scope="session")
def qemu_img() -> Path:
    """Path of the real qemu-img."""
    return _program("qemu-img")


@pytest.fixture(scope="session")
def qemu_io() -> Path:
    """Path of the real qemu-io."""
    return _program("qemu-io")


SECOND = "QCOW2C_SECOND_QEMU_IMG"
"""Of the environment: a qemu-img of another version, whose newer forms are compared with, too."""


@pytest.fixture(scope="session")
def second_qemu_img() -> Path:
    """Path of the qemu-img of another version."""
    found = os.environ.get(SECOND)
    if not found:
        pytest.skip(f"{SECOND} names no second qemu-img: newer forms are not compared")
    return Path(found)


@pytest.fixture(scope="session")
def requires_qemu(qemu_img: Path, qemu_io: Path) -> None:
    """For `pytest.mark.usefixtures("requires_qemu")` where the test finds the programs by itself."""


@pytest.fixture(scope="session")
def project_root() -> Path:
    """Directory of pyproject.toml."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def examples(project_root: Path) -> Path:
    """Directory of the demo image. Read only: a test that changes an image copies it first."""
    return project_root / "examples"
