"""Run qcow2c commands one after the other in one process, and report what each opened, printed and returned.

Reads one job a line on standard input, `{"argv": [...], "cwd": "..."}`, and writes one report a line: `status` (null
after a crash or a time-out), `out` and `err` (decoded with surrogate escapes), `touched` (pairs of an audit event and
a path or address, the interpreter's own files left out), `writing` (paths opened for writing), `seconds`, and the
process's `peak_mib` so far. A job has LIMIT seconds of the processor, and ten times as many on the clock.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

LIMIT = 10
PROJECT = Path(__file__).resolve().parents[2]
WATCHED = ("open", "os.", "socket.", "subprocess.", "shutil.", "glob.", "ctypes.", "tempfile.")
QUIET = {"os.putenv", "os.unsetenv"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class TimeUp(BaseException):
    """The job's seconds are over."""


class Watch:
    """The audit hook: it cannot be removed, so it is switched on for the time of a job."""

    def __init__(self) -> None:
        self.active = False
        self.touched: list[tuple[str, str]] = []
        self.writing: list[str] = []
        self._own = tuple(
            os.path.join(os.path.abspath(place), "") for place in (sys.prefix, sys.base_prefix, str(PROJECT / "qcow2c"))
        )
        self._searched = {os.path.abspath(place) for place in sys.path}

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active or not event.startswith(WATCHED) or event in QUIET:
            return
        what = arguments[0] if arguments else ""
        if what is None or isinstance(what, int):
            return
        name = os.path.abspath(os.fsdecode(what)) if isinstance(what, str | bytes | os.PathLike) else repr(arguments)
        if (name + os.sep).startswith(self._own) or (event == "os.listdir" and name in self._searched):
            return
        self.touched.append((event, name))
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            self.writing.append(name)


def expire(_number: int, _frame: object) -> None:
    raise TimeUp


def run(job: dict[str, Any], watch: Watch, out: int, err: int) -> dict[str, Any]:
    """Do one job with the standard streams led into two files."""
    from qcow2c.cli import main

    os.chdir(job["cwd"])
    for file in (out, err):
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
    status: int | None = None
    watch.touched, watch.writing = [], []
    start = time.monotonic()
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    signal.setitimer(signal.ITIMER_REAL, 10 * LIMIT)
    watch.active = True
    try:
        status = main(job["argv"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except TimeUp:
        print("timed out", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        watch.active = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.monotonic() - start
    sys.stdout.flush()
    sys.stderr.flush()
    return {
        "status": status,
        "out": read_all(out),
        "err": read_all(err),
        "touched": watch.touched,
        "writing": watch.writing,
        "seconds": seconds,
        "peak_mib": peak_mib(),
    }


def peak_mib() -> float:
    """Return the peak of this program's memory; getrusage would count that of the process that forked it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def read_all(file: int) -> str:
    size = os.lseek(file, 0, os.SEEK_END)
    return os.fsdecode(os.pread(file, size, 0))


def main_loop() -> None:
    jobs, reports = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    sys.path.insert(0, str(PROJECT))
    watch = Watch()
    sys.addaudithook(watch)
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, expire)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        for line in jobs:
            report = run(json.loads(line), watch, 1, 2)
            reports.write(json.dumps(report).encode() + b"\n")
            reports.flush()


if __name__ == "__main__":
    main_loop()
