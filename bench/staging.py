"""Real files for the file system of the inputs: a copy of what any machine has, with a hard bound on bytes."""

from __future__ import annotations

import os
import stat
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

BLOCK = 4096
BYTES_PER_INODE = 8192

_JOURNAL = 8 << 20
"""What a small file system keeps for itself, more or less."""

_LARGEST_PART = 8
"""No file takes more than this fraction of the whole."""

_ENOUGH = 100
"""What is left may be this fraction of the whole."""


def sources() -> list[Path]:
    """Return the directories that are taken, in this order."""
    places = [sysconfig.get_path("stdlib"), "/usr/lib", "/usr/share", "/usr/bin"]
    return [path for path in map(Path, places) if path.is_dir()]


def most_bytes(disk_size: int) -> int:
    """Return how much is put into a file system: three quarters, which leaves room for its own structures."""
    return (disk_size - _JOURNAL) * 3 // 4


def most_files(disk_size: int) -> int:
    return disk_size // BYTES_PER_INODE * 3 // 4


def fill(folder: Path, limit: int, files: int, places: Sequence[Path] | None = None) -> int:
    """Copy regular files into a new folder; return the bytes that they and their directories take in blocks.

    Neither `limit` bytes nor `files` files are exceeded. When there is nothing more, it begins again from the front,
    in another directory: the amount does not depend on the machine, as long as it has files at all.
    """
    used = count = 0
    for turn in range(files):
        before = count
        for place, source in enumerate(sources() if places is None else places):
            root = folder / f"{turn}" / f"{place}-{source.name}"
            for path, size in _regular_files(source, limit // _LARGEST_PART):
                if count >= files or limit - used < limit // _ENOUGH:
                    return used
                target = root / path.relative_to(source)
                cost = -(-size // BLOCK) * BLOCK + _missing(target.parent) * BLOCK
                if used + cost > limit or not _copy(path, target, size):
                    continue
                used += cost
                count += 1
        if count == before:
            break
    return used


def _regular_files(source: Path, largest: int) -> Iterator[tuple[Path, int]]:
    """Yield files that are neither empty nor too large, always in the same order, with their size."""
    for directory, names, filenames in os.walk(source):
        names.sort()
        for filename in sorted(filenames):
            path = Path(directory, filename)
            try:
                facts = path.lstat()
            except OSError:
                continue
            if stat.S_ISREG(facts.st_mode) and 0 < facts.st_size <= largest:
                yield path, facts.st_size


def _missing(directory: Path) -> int:
    """Return how many directories would have to be made."""
    count = 0
    while not directory.exists():
        directory = directory.parent
        count += 1
    return count


def _copy(path: Path, target: Path, size: int) -> bool:
    """Copy `size` bytes at most; return False for a file that may not be read."""
    try:
        with path.open("rb") as file:
            data = file.read(size)
    except OSError:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return True
