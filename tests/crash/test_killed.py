"""A real process, killed while it writes: what it had reported as flushed is there."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qcow2c
from tests.profile import DEEP

from .scenarios import IMAGE, Scenario, prepare

KILLS = 60 if DEEP else 6
BLOCK = 4096
BLOCKS = 256

CHILD = """
import random, sys
import qcow2c
path, seed = sys.argv[1], int(sys.argv[2])
chooser = random.Random(seed)
with qcow2c.open(path, "r+") as image:
    print("ready", flush=True)
    for number in range(1, 1 << 30):
        block = chooser.randrange(256)
        image.pwrite(number.to_bytes(8, "little") * 512, block * 4096)
        if number % 16 == 0:
            image.flush()
            print(number, flush=True)
"""


@pytest.mark.parametrize("kill", range(KILLS))
def test_a_killed_writer_loses_nothing_that_it_had_flushed(kill: int, tmp_path: Path, project_root: Path) -> None:
    options = ("cluster_size=4k", "cluster_size=64k,lazy_refcounts=on", "cluster_size=512,refcount_bits=1")[kill % 3]
    prepare(Scenario("killed", options, BLOCKS * BLOCK), tmp_path)
    path = tmp_path / IMAGE
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(kill)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=project_root,
        env={**os.environ, "PYTHONPATH": str(project_root)},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    assert child.stdout.readline() == "16\n"
    time.sleep(random.Random(kill).random() / 4)
    child.kill()
    acknowledged = [16, *map(int, filter(str.strip, child.stdout.read().split("\n")[:-1]))][-1]
    child.wait()
    child.stdout.close()

    assert qcow2c.check(path).exit_code in (0, 3)
    chooser = random.Random(kill)
    flushed = {chooser.randrange(BLOCKS): number for number in range(1, acknowledged + 1)}
    with qcow2c.open(path) as image:
        for block in range(BLOCKS):
            data = image.pread(BLOCK, block * BLOCK)
            sectors = {data[at : at + 512] for at in range(0, BLOCK, 512)}
            numbers = {int.from_bytes(sector[:8], "little") for sector in sectors}
            assert all(sector == sector[:8] * 64 for sector in sectors)
            assert min(numbers) >= flushed.get(block, 0)
