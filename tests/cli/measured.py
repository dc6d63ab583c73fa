"""Run one command in a process group of its own, kill it after some seconds of work, and report its peak memory.

The seconds are those of the processor, so that a busy machine is no defect; a command that only waits is killed too,
after ten times as many on the clock.

Usage: measured.py REPORT SECONDS COMMAND...; standard output is the command's. The report is one line of JSON:
`status` (null when killed), `seconds`, `peak_mib`. The memory is the kernel's figure for the dead child (wait4); this
small process stands between, because a child's figure begins with what the forking process held.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    report, seconds, *command = sys.argv[1:]
    start = time.monotonic()
    limit = int(float(seconds))
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))  # Inherited; this process works for no time at all.
    child = os.posix_spawnp(command[0], command, os.environ, setsid=True)
    killed = False

    def expire(_number: int, _frame: object) -> None:
        nonlocal killed
        killed = True
        os.killpg(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, 10 * float(seconds))
    _, status, usage = os.wait4(child, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    Path(report).write_text(
        json.dumps(
            {
                "status": None if killed or os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status),
                "seconds": time.monotonic() - start,
                "peak_mib": usage.ru_maxrss / 1024,
            }
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
