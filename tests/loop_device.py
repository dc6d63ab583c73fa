"""Block devices for tests: loop devices over files, where this process may have them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

requires_loop = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("losetup") is None or not os.path.exists("/dev/loop-control"),
    reason="loop devices need root, losetup and /dev/loop-control",
)


@contextmanager
def loop_device(path: Path, size_bytes: int) -> Iterator[str]:
    """Make a file of a size, unless it is there, and yield the block device over it."""
    if not path.exists():
        path.touch()
        os.truncate(path, size_bytes)
    made = subprocess.run(["losetup", "--find", "--show", str(path)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device can be had: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
