"""Show what is inside an image as files of a directory, by FUSE.

There are disk, snapshots/NAME, bitmaps/NAME, info.json and map.json. The disk is read-only unless --rw is given; then
its file keeps its size as a block device does, holes that are punched into it give space back, and fsync makes durable.

The command goes to the background once the files are there, and ends when the directory is unmounted, or at SIGTERM,
with everything that was written durable; --unmount waits for that.

examples:
  qcow2c mount disk.qcow2 /mnt/image
  qcow2c mount --rw disk.qcow2 /mnt/image && mount -o loop /mnt/image/disk /mnt/disk
  qcow2c mount --unmount /mnt/image
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from qcow2c.cli import arguments, image_names, text
from qcow2c.errors import Qcow2Error, StoreError, UsageError

if TYPE_CHECKING:
    from qcow2c.serve.process import Background


def add_arguments(parser: ArgumentParser) -> None:
    arguments.add_image(parser)
    parser.add_argument("directory", nargs="?", metavar="DIRECTORY", help="an existing directory")
    image_names.add_arguments(parser)
    arguments.add_gate(parser)
    parser.add_argument("--rw", action="store_true", help="let the disk be written (default: read-only)")
    parser.add_argument("-r", "--read-only", action="store_true", help="the default")
    parser.add_argument("--foreground", action="store_true", help="stay in the foreground, and tell errors there")
    parser.add_argument("--allow-other", action="store_true", help="let other users see the files, too")
    parser.add_argument("--log", metavar="FILE", help="where to tell errors in the background (default: syslog)")
    parser.add_argument("--pid-file", metavar="FILE", help="write the number of the process there")
    parser.add_argument(
        "-u", "--unmount", action="store_true", help="unmount, and wait until all is durable; IMAGE is the directory"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="do not say what was mounted")


def run(chosen: Namespace) -> int:
    if chosen.unmount:
        return _unmount(chosen)
    _judge(chosen)
    from qcow2c.serve import mount, process

    mount.library()  # What is missing is said before anything begins.
    complain: Callable[[str], object] = text.complain
    with ExitStack() as stack:
        if chosen.foreground:
            return _mounted(chosen, process.Background(None), complain)
        complain = _log(chosen, stack)
        background = process.to_background()
        return 0 if background is None else _mounted(chosen, background, complain)


def _judge(chosen: Namespace) -> None:
    """Raise UsageError for what makes no sense; nothing is opened for that."""
    if chosen.directory is None:
        raise UsageError("give the directory in which the files are to be seen")
    if chosen.rw and chosen.read_only:
        raise UsageError("--rw and --read-only exclude each other")
    if not os.path.isdir(chosen.directory):
        raise UsageError(f"{chosen.directory!r} is no directory")
    place = os.path.realpath(chosen.directory)
    if os.path.commonpath([place, os.path.realpath(chosen.image)]) == place:  # It would wait for itself.
        raise UsageError(f"the image lies in {chosen.directory!r}, and would be hidden there: choose another directory")


def _log(chosen: Namespace, stack: ExitStack) -> Callable[[str], object]:
    """Return what tells of errors when there is no terminal any more. Raises StoreError."""
    name = text.printable(chosen.image)
    if chosen.log is None:
        import syslog

        syslog.openlog("qcow2c", syslog.LOG_PID, syslog.LOG_DAEMON)
        return lambda message: syslog.syslog(syslog.LOG_ERR, f"{name}: {text.printable(message)}")
    try:
        file = stack.enter_context(open(chosen.log, "a", encoding="utf-8", buffering=1))  # noqa: SIM115 - it is entered
    except OSError as exc:
        raise StoreError(f"cannot write {chosen.log!r}: {exc.strerror}", errno=exc.errno) from exc

    def write(message: str) -> None:
        with suppress(OSError):
            file.write(f"{name}: {text.printable(message)}\n")

    return write


def _mounted(chosen: Namespace, background: Background, complain: Callable[[str], object]) -> int:
    from qcow2c.serve import mount, process
    from qcow2c.serve.folder import open_folder

    named = image_names.chosen_image(chosen, chosen.image, chosen.format)
    if chosen.rw and named.share:
        raise UsageError("--rw and -U exclude each other: what is written cannot be shared")
    with ExitStack() as stack:
        here = os.open(os.curdir, os.O_RDONLY)
        stack.callback(os.close, here)
        source: Any = named.filename if chosen.rw else stack.enter_context(image_names.source_of(named))
        folder = open_folder(
            source,
            image_format=named.format,
            writable=chosen.rw,
            gate=chosen.gate,
            share=named.share,
            backing_format=named.backing_format,
            **named.options,
        )
        answers: mount.Answers | None = None
        try:
            with folder as found:

                def ready() -> None:
                    if not chosen.quiet:
                        mode = "read-write" if chosen.rw else "read-only"
                        where = text.printable(chosen.directory)
                        text.note(f"qcow2c: {text.printable(chosen.image)}, {mode}, is at {where}")
                    background.ready()

                changed = _changed_at(named.place)
                answers = mount.Answers(found, changed_at=changed, directory=here, ready=ready, complain=complain)
                stack.enter_context(process.pid_file(chosen.pid_file))
                mount.run(
                    answers, chosen.directory, name=chosen.image, writable=chosen.rw, allow_other=chosen.allow_other
                )
                stack.enter_context(process.stopped_by_signals(lambda: None))  # What is written is made durable now.
        except Qcow2Error as exc:
            if answers is not None and answers.mounted and not chosen.foreground:
                complain(str(exc))
            raise
    return 0


def _changed_at(place: str) -> int | None:
    try:
        return os.stat(place).st_mtime_ns
    except OSError:
        return None


def _unmount(chosen: Namespace) -> int:
    """Unmount a directory, and wait for the end of the process that has answered for it."""
    import select
    import subprocess

    from qcow2c.serve.mount import PROCESS

    directory = chosen.image
    try:
        process = int(os.getxattr(directory, PROCESS))
        waiting = os.pidfd_open(process)
    except (OSError, ValueError) as exc:
        raise UsageError("nothing of qcow2c is mounted there") from exc
    with open(waiting, "rb", buffering=0):
        for command in (["umount"], ["fusermount3", "-u"], ["fusermount", "-u"]):
            with suppress(FileNotFoundError):
                done = subprocess.run([*command, "--", directory], capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    select.select([waiting], [], [])
                    return 0
                reason = done.stderr.strip() or f"{command[0]} fails"
                if os.geteuid() == 0:
                    break
        else:
            reason = "there is neither umount nor fusermount"
    raise StoreError(reason)
