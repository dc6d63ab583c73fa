"""Facts of the machine that a figure is worth nothing without; none that tell whose it is."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

GIB = 1 << 30

CODECS = ("numpy", "zstandard", "isal", "zlib-ng", "deflate")
"""Packages that the speed depends on, as far as they are installed."""


def facts(directory: Path) -> dict[str, str]:
    """Return what is measured with and on; `directory` is where the inputs are."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return {
        "machine": f"{os.cpu_count()} cores ({_processor()}), {memory:.0f} GiB of memory, "
        f"{_file_system(directory)}, {platform.system()} {platform.release().split('-')[0]}",
        "programs": ", ".join([f"Python {platform.python_version()}", *_packages(), _qemu_img()]),
        "date": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _file_system(directory: Path) -> str:
    done = subprocess.run(["df", "--output=fstype", str(directory)], capture_output=True, text=True, check=False)
    return done.stdout.split()[-1] if done.stdout.split() else "unknown file system"


def _packages() -> list[str]:
    found = []
    for name in CODECS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def _qemu_img() -> str:
    done = subprocess.run(["qemu-img", "--version"], capture_output=True, text=True, check=True)
    return f"qemu-img {done.stdout.split()[2]}"
