"""A look at a file in a process of its own, which the system bounds: memory, time of the processor, files.

The child gets an open descriptor and the policy, and answers in JSON; it can write to no file. Whatever becomes of it,
the parent has a verdict.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from qcow2c.errors import Qcow2Error, StoreError
from qcow2c.forensic.inspection import look
from qcow2c.forensic.policy import Policy
from qcow2c.forensic.verdicts import Inspection, Reason, Verdict, inspection_of
from qcow2c.storage.sources import opened

MEMORY_BYTES = 1 << 30
"""Of the address space of the child, unless the caller says otherwise; the interpreter and numpy need 300 MiB of it."""

_START_SECONDS = 10
"""How long a child may take to start and to end, beside its work."""

_ROOT = str(Path(__file__).resolve().parents[2])
"""Where the package lies, however it was found."""

_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import qcow2c.forensic.isolation as it; it.main()"


def look_apart(
    descriptor: int, name: str, policy: Policy, image_format: str | None, memory_bytes: int = MEMORY_BYTES
) -> Inspection:
    """Return the verdict of a child process on an open regular file. Raises StoreError where that cannot be read."""
    task = {
        "descriptor": descriptor,
        "policy": policy.as_dict(),
        "format": image_format,
        "memory": memory_bytes,
    }
    unsure = Inspection(name, file_bytes=os.fstat(descriptor).st_size)
    try:
        done = subprocess.run(
            [sys.executable, "-S", "-c", _CHILD, json.dumps([_ROOT, *sys.path])],
            input=json.dumps(task).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(descriptor,),
            env={"OPENBLAS_NUM_THREADS": "1", "PATH": os.defpath},
            timeout=policy.max_seconds + _START_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        message = f"the process was stopped after {policy.max_seconds + _START_SECONDS:g} seconds"
        unsure.add(Reason("limit.time", Verdict.UNSURE, message, limit=int(policy.max_seconds)))
        return unsure
    answer = _answer(done.stdout)
    if "found" in answer:
        found = inspection_of(answer["found"])
        found.filename = name
        return found
    if "error" in answer:
        raise StoreError(str(answer["error"]))
    if "memory" in answer:
        message = f"more than {memory_bytes} bytes of memory are needed"
        unsure.add(Reason("limit.memory", Verdict.UNSURE, message, limit=memory_bytes))
    else:
        message = f"the process ended with status {done.returncode}, without an answer"
        unsure.add(Reason("limit.process", Verdict.UNSURE, message, value=done.returncode))
    return unsure


def _answer(output: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(output)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def main() -> None:
    """Do what the parent asks on standard input, within its limits."""
    import resource

    task = json.load(sys.stdin)
    policy = Policy().changed(task["policy"])
    seconds = int(policy.max_seconds) + _START_SECONDS
    for kind, bound in (
        (resource.RLIMIT_AS, task["memory"]),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (bound, bound))
    try:
        with opened(task["descriptor"]) as store:
            answer: dict[str, Any] = {"found": look(store, policy, task["format"]).as_dict()}
    except MemoryError:
        answer = {"memory": task["memory"]}
    except Qcow2Error as exc:
        answer = {"error": str(exc)}
    sys.stdout.write(json.dumps(answer))
