"""Hostile images on the command line: no crash, no hang, no foreign file, bounded memory, one line of error."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.corpus.case import HostileCase
from tests.corpus.hostile import BY_NAME, CASES, make_case

HERE = Path(__file__).resolve().parent
SECONDS = 10
MEMORY_MIB = 256
LONGEST_PARSED = 1 << 24
STATUSES = {"info": {0, 1}, "map": {0, 1}, "check": {0, 1, 2, 3, 63}, "dump": {0, 1, 2, 3}, "inspect": {0, 1, 2, 3}}
OUTPUTS = {
    "info": ("human", "json"),
    "map": ("human", "json"),
    "check": ("human", "json"),
    "dump": ("text", "json", "jsonl"),
    "inspect": ("human", "json"),
}
# The image is said to be qcow2, so that what is none is an error; dump takes nothing else.
AS_QCOW2 = {"info": ("-f", "qcow2"), "map": ("-f", "qcow2"), "check": ("-f", "qcow2"), "dump": (), "inspect": ()}
OPENS = {"error": {1}, "opens": {0}, "any": {0, 1}}
VERDICTS = {"error": {1}, "clean": {0}, "corrupt": {2}, "leaks": {3}, "any": {0, 1, 2, 3}}
LIGHT = [case for case in CASES if not case.heavy]
HEAVY = [case for case in CASES if case.heavy]


class Worker:
    """A process that runs one command after the other and reports what it opened."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "audited.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, folder: Path, *argv: str) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"argv": argv, "cwd": str(folder)}).encode() + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the process died on {argv}"
        report: dict[str, Any] = json.loads(line)
        return report

    def stop(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(SECONDS)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    started = Worker()
    yield started
    started.stop()


def controls(text: str) -> set[str]:
    """Return the control, format and undecodable characters of a text, apart from line ends and tabs."""
    return {hex(ord(char)) for char in set(text) - {"\n", "\t"} if unicodedata.category(char) in ("Cc", "Cf", "Cs")}


def assert_answer(command: str, output: str, status: int | None, out: str, err: str) -> None:
    """What holds for every answer of every command."""
    assert "Traceback" not in err
    assert status in STATUSES[command], err
    assert not controls(out)
    assert not controls(err)
    if status == 1:
        assert re.fullmatch(r"qcow2c: .*\n", err)
    elif command == "check":
        assert re.fullmatch(r"((ERROR:?|Leaked) .*\n){0,20}(\.\.\. and \d+ more\n)?", err)
    else:
        assert err.count("\n") <= 3
    if output not in {"text", "human"} and status != 1:
        pieces = out.splitlines() if output == "jsonl" else [out]
        assert all(json.loads(piece) is not None for piece in pieces)


def allowed_files(case: HostileCase, path: Path, command: str) -> set[str]:
    names = case.allowed if command == "map" else frozenset()
    return {str(path), *(str(path.parent / name) for name in names)}


@pytest.mark.parametrize("case", LIGHT, ids=lambda case: case.name)
def test_commands_answer_and_open_nothing_else(case: HostileCase, worker: Worker, tmp_path: Path) -> None:
    path = make_case(case, tmp_path)
    for command, outputs in OUTPUTS.items():
        for output in outputs:
            report = worker.run(path.parent, command, *AS_QCOW2[command], f"--output={output}", str(path))
            assert_answer(command, output, report["status"], report["out"], report["err"])
            assert {name for _, name in report["touched"]} <= allowed_files(case, path, command)
            assert not report["writing"]
            assert report["peak_mib"] <= MEMORY_MIB
            if command == "info":
                assert report["status"] in OPENS[case.expect], report["err"]
            if command == "check":
                assert report["status"] in VERDICTS[case.check], report["err"]


CHAINED = [case for case in LIGHT if case.name.startswith(("backing-", "data-file-"))]


@pytest.mark.parametrize("command", ["info", "dump"])
@pytest.mark.parametrize("case", CHAINED, ids=lambda case: case.name)
def test_a_backing_chain_is_followed_through_the_gate_only(
    case: HostileCase, command: str, worker: Worker, tmp_path: Path
) -> None:
    path = make_case(case, tmp_path)
    report = worker.run(path.parent, command, "--backing-chain", "--output=json", str(path))
    assert_answer(command, "json", report["status"], report["out"], report["err"])
    assert {name for _, name in report["touched"]} <= allowed_files(case, path, "map")
    assert not report["writing"]


ENDLESS = ["backing-itself", "backing-two-cycle", "backing-cycle-through-symlink", "backing-chain-of-500"]


@pytest.mark.parametrize("words", [("info", "--backing-chain"), ("map",)], ids=["info", "map"])
@pytest.mark.parametrize("name", ENDLESS)
def test_a_loop_or_an_endless_chain_is_an_error(
    name: str, words: tuple[str, ...], worker: Worker, tmp_path: Path
) -> None:
    path = make_case(BY_NAME[name], tmp_path)
    report = worker.run(path.parent, *words, str(path))
    assert_answer(words[0], "human", report["status"], report["out"], report["err"])
    assert report["status"] == 1


def run_measured(tmp_path: Path, *words: str) -> tuple[dict[str, Any], str, str, bool]:
    """Run qcow2c in a process of its own: the report of time and memory, output, errors, and whether that is all."""
    report, errors = tmp_path / "report", tmp_path / "errors"
    runner = [sys.executable, "-S", str(HERE / "measured.py"), str(report), str(SECONDS)]
    size, head = 0, bytearray()
    with (
        errors.open("wb") as err,
        subprocess.Popen(
            [*runner, sys.executable, "-m", "qcow2c", *words],
            stdout=subprocess.PIPE,
            stderr=err,
            cwd=HERE.parents[1],
        ) as process,
    ):
        assert process.stdout is not None
        while piece := process.stdout.read1(1 << 20):
            size += len(piece)
            if len(head) < LONGEST_PARSED:
                head += piece
    said = os.fsdecode(errors.read_bytes()[:LONGEST_PARSED])
    return json.loads(report.read_text()), os.fsdecode(bytes(head)), said, size == len(head)


@pytest.mark.parametrize("index", range(len(HEAVY)), ids=lambda index: HEAVY[index].name)
def test_heavy_case_is_answered_in_time_and_memory(index: int, tmp_path: Path) -> None:
    """Each command once a case, in turn with its first and its second form of output."""
    path = make_case(HEAVY[index], tmp_path)
    for command, outputs in OUTPUTS.items():
        output = outputs[index % 2]
        words = (command, *AS_QCOW2[command], f"--output={output}", str(path))
        report, out, err, complete = run_measured(tmp_path, *words)
        assert report["status"] is not None, f"{command} took more than {SECONDS} s"
        assert report["peak_mib"] <= MEMORY_MIB, command
        assert_answer(command, output if complete else "text", report["status"], out, err)
