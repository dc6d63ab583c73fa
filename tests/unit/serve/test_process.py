"""The process of a server: each test in a process of its own, as a program would."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qcow2c.errors import StoreError
from qcow2c.serve.process import pid_file


def run(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False, timeout=60
    )


IN_BACKGROUND = """
import os, sys, time
from qcow2c.serve.process import to_background
background = to_background()
if background is None:
    print("parent", flush=True)
    raise SystemExit(0)
if sys.argv[1] == "fail":
    print("why", file=sys.stderr, flush=True)
    raise SystemExit(7)
background.ready()
background.ready()
print("nobody sees this")
with open(sys.argv[2], "w") as file:
    file.write(f"{os.getppid()} {os.getsid(0) == os.getpid()}")
"""


def test_the_parent_ends_when_the_child_is_ready(tmp_path: Path) -> None:
    done = run(IN_BACKGROUND, "well", str(tmp_path / "said"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "parent\n", "")
    for _ in range(200):
        if (tmp_path / "said").exists() and (tmp_path / "said").read_text():
            break
        time.sleep(0.05)
    assert (tmp_path / "said").read_text().endswith("True")


def test_what_fails_before_is_the_parents_failure(tmp_path: Path) -> None:
    done = run(IN_BACKGROUND, "fail", str(tmp_path / "said"))
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "why\n")


def test_a_pid_file_is_there_as_long_as_it_should(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pid_file(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()
    with pid_file(None):
        pass
    with pytest.raises(StoreError, match="cannot write"), pid_file(str(tmp_path / "no" / "pid")):
        pass


SIGNALLED = """
import os, signal
from qcow2c.serve.process import end_with_parent, stopped_by_signals
end_with_parent()
said = []
with stopped_by_signals(lambda: said.append("stop")):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(os.getpid(), number)
print(*said, signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""


def test_signals_stop_in_order() -> None:
    done = run(SIGNALLED)
    assert (done.stdout, done.stderr) == ("stop stop stop True\n", "")
