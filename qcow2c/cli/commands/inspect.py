"""One verdict on a file from a stranger: accept, reject or unsure, with every reason.

Nothing is opened but the file, and it is only read. The policy is strict by default: a qcow2 image that needs no other
file, with no snapshots, nothing encrypted, nothing unknown, nothing hidden, sound tables, and sizes within bounds.
--policy reads another one from a TOML file, --set changes a rule of it; docs/untrusted.md describes all of them, and
the JSON.

examples:
  qcow2c inspect upload.qcow2
  qcow2c inspect --output=json --isolated --memory 512M upload.qcow2
  qcow2c inspect --policy service.toml --set allow_snapshots=true --format qcow2 upload.qcow2

exit status: 0 accept, 2 reject, 3 unsure, 1 the file could not be looked at
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator

from qcow2c.cli import arguments, pipes, sizes, text
from qcow2c.errors import UsageError
from qcow2c.light import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from qcow2c.forensic.policy import Policy
    from qcow2c.forensic.verdicts import Inspection
    from qcow2c.storage.sources import Store


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="the file")
    parser.add_argument("-f", "--format", metavar="FMT", help="what the file is said to be")
    parser.add_argument("--policy", metavar="FILE", help="a TOML file with the rules that are not the default")
    parser.add_argument(
        "--set", metavar="RULE=VALUE", action="append", default=[], help="change one rule; may be given again"
    )
    parser.add_argument("--isolated", action="store_true", help="in a process of its own, with bounded memory and time")
    parser.add_argument("--memory", metavar="SIZE", type=sizes.parse_size, help="bound with --isolated (default: 1G)")
    arguments.add_share(parser)
    arguments.add_output(parser)


def run(chosen: Namespace) -> int:
    policy = _policy(chosen)
    if not pipes.is_pipe(chosen.image):
        return _report(chosen, chosen.image, policy)
    if chosen.isolated:
        raise UsageError("a pipe cannot be looked at in another process")
    with pipes.kept(chosen.image) as store:
        return _report(chosen, store, policy)


def _policy(chosen: Namespace) -> Policy:
    """Return the policy. Raises UsageError, OSError."""
    from qcow2c.forensic.policy import Policy, read_policy

    policy = Policy() if chosen.policy is None else read_policy(chosen.policy)
    return policy.changed(dict(_rule(word, policy.as_dict()) for word in chosen.set), "--set")


def _rule(word: str, known: dict[str, Any]) -> tuple[str, Any]:
    """Return name and value of a rule, as the type that it has. Raises UsageError."""
    name, sign, value = word.partition("=")
    if not sign or name not in known:
        raise UsageError(f"--set {word!r} is no RULE=VALUE with one of the rules {', '.join(known)}")
    before = known[name]
    if isinstance(before, list):
        return name, value.split(",")
    if isinstance(before, bool):
        if value not in ("true", "false"):
            raise UsageError(f"--set {word!r}: neither true nor false")
        return name, value == "true"
    try:
        return name, float(value) if isinstance(before, float) else sizes.parse_size(value)
    except (ValueError, ArgumentTypeError) as exc:
        raise UsageError(f"--set {word!r}: {value!r} is no number") from exc


def _report(chosen: Namespace, source: str | Store, policy: Policy) -> int:
    from qcow2c.forensic.isolation import MEMORY_BYTES
    from qcow2c.ops.inspect import inspect

    found = inspect(
        source,
        policy=policy,
        image_format=chosen.format,
        share=chosen.force_share,
        isolated=chosen.isolated,
        memory_bytes=chosen.memory or MEMORY_BYTES,
    )
    if chosen.output == "json":
        from qcow2c import __version__

        tool = {"tool": {"name": "qcow2c", "version": __version__}, "policy": policy.as_dict()}
        text.write(text.pretty_json(found.as_dict() | tool) + "\n")
    else:
        for line in _human(found):
            text.write(text.printable(line) + "\n")
    return found.exit_code


def _human(found: Inspection) -> Iterator[str]:
    yield f"{found.verdict}: {found.filename} ({found.format}, {found.file_bytes} bytes)"
    for reason in found.reasons:
        yield f"  {reason.verdict}  {reason.rule}: {reason}"
    if found.reasons_unlisted:
        yield f"  and {found.reasons_unlisted} more reasons"
