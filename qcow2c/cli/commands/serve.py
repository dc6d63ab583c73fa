"""Serve what is inside an image to programs that know nothing of its format, over NBD or 9P.

The disk is served under the name of -x (default: the empty name), over 9P as the file data, and each snapshot as
snapshots/NAME. It is read-only unless --rw is given, and local: at 127.0.0.1, unless -b says otherwise, or at a Unix
socket (-k). The server ends when the last client has gone (-t, and 9p: never), or at SIGTERM or Ctrl-C, with everything
that was written durable.

examples:
  qcow2c serve nbd -t -k /tmp/disk.sock disk.qcow2
  qcow2c serve nbd --run 'nbdinfo $uri' disk.qcow2
  qcow2c serve nbd -t --rw --fork --pid-file disk.pid disk.qcow2
  qcow2c serve 9p --rw -n 10G -k /tmp/disk.sock disk.qcow2
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from qcow2c.cli import arguments, image_names, sizes, text
from qcow2c.cli.ninep import Door, judge_ninep, ninep_door
from qcow2c.errors import UsageError

if TYPE_CHECKING:
    import socket
    import ssl

    from qcow2c.serve.exports import Export
    from qcow2c.serve.process import Background

MOST_CLIENTS = 1024


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("protocol", choices=("nbd", "9p"), help="the protocol")
    arguments.add_image(parser)
    image_names.add_arguments(parser)
    arguments.add_gate(parser)
    _add_disk(parser)
    _add_place(parser)
    _add_life(parser)


def _add_disk(parser: ArgumentParser) -> None:
    parser.add_argument("--rw", action="store_true", help="let clients write (default: read-only)")
    parser.add_argument("-r", "--read-only", action="store_true", help="the default")
    parser.add_argument(
        "-s",
        "--snapshot",
        metavar="SNAPSHOT",
        help="serve this snapshot; 9p: the name of a service, as plan9port has it",
    )
    parser.add_argument("-l", "--load-snapshot", metavar="SNAPSHOT", help="the same, as snapshot.id=, snapshot.name=")
    parser.add_argument("-x", "--export-name", metavar="NAME", default="", help="name of the disk")
    parser.add_argument("-D", "--description", metavar="TEXT", default="", help="what clients are told of it")
    parser.add_argument("-o", "--offset", type=sizes.parse_size, default=0, metavar="SIZE", help="begin there")
    parser.add_argument(
        "-n", "--new", type=sizes.parse_size, metavar="SIZE", help="9p: make a missing image of this size"
    )
    parser.add_argument("--size", type=sizes.parse_size, metavar="SIZE", help="serve so many bytes")
    parser.add_argument("-A", "--allocation-depth", action="store_true", help="tell in which layer data is")
    parser.add_argument("-B", "--bitmap", metavar="NAME", help="tell what this bitmap has recorded")
    parser.add_argument("--discard", choices=("unmap", "on", "ignore", "off"), default="unmap", help="what trim does")
    parser.add_argument("--detect-zeroes", choices=("off", "on", "unmap"), default="off", help="what zeros become")


def _add_place(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-p", "--port", type=int, metavar="PORT", help="TCP port (default: 10809, 9p: 564; 0: a free one)"
    )
    parser.add_argument("-b", "--bind", metavar="ADDRESS", default="127.0.0.1", help="address to listen at")
    parser.add_argument("-k", "--socket", metavar="PATH", help="listen at a Unix socket instead")
    parser.add_argument("--tls", choices=("off", "on", "require"), default="off", help="encrypt connections")
    parser.add_argument("--tls-certificates", metavar="DIR", help="the folder of server-cert.pem, server-key.pem")
    parser.add_argument("--tls-verify-peer", action="store_true", help="only clients with a certificate of the CA")
    parser.add_argument("-L", "--list", action="store_true", help="list what would be served, and serve nothing")


def _add_life(parser: ArgumentParser) -> None:
    parser.add_argument("-e", "--shared", type=int, metavar="N", default=64, help="clients at a time (default: 64)")
    parser.add_argument("-t", "--persistent", action="store_true", help="go on when the last client has gone")
    parser.add_argument("--fork", action="store_true", help="go to the background when ready")
    parser.add_argument("--pid-file", metavar="FILE", help="write the number of the process there")
    parser.add_argument(
        "--run",
        dest="shell_command",
        metavar="COMMAND",
        help="serve while a shell runs this; it has $uri and $unixsocket",
    )
    parser.add_argument("--exit-with-parent", action="store_true", help="end when the parent process ends")
    parser.add_argument("-v", "--log", action="store_true", help="tell of clients that go, or are sent away")
    parser.add_argument("-q", "--quiet", action="store_true", help="do not say where the server is")


def run(chosen: Namespace) -> int:
    _judge(chosen)
    from qcow2c.serve import process

    if chosen.exit_with_parent:
        process.end_with_parent()
    background: Background | None = process.Background(None)
    if chosen.fork and not chosen.list:
        background = process.to_background()
        if background is None:
            return 0
    with ExitStack() as stack:
        door = ninep_door(chosen, stack) if chosen.protocol == "9p" else _nbd_door(chosen, stack)
        if chosen.list:
            for name, size, writable in door.listed:
                mode = "read-write" if writable else "read-only"
                text.write(f"{text.printable(os.fsdecode(name))}\t{size}\t{mode}\n")
            return 0
        return _serve(chosen, door, background, stack)


def _judge(chosen: Namespace) -> None:
    """Raise UsageError for what makes no sense; nothing is opened for that."""
    judge_ninep(chosen)
    if chosen.rw and chosen.read_only:
        raise UsageError("--rw and --read-only exclude each other")
    if not 1 <= chosen.shared <= MOST_CLIENTS:
        raise UsageError(f"--shared {chosen.shared}: between 1 and {MOST_CLIENTS} clients")
    if chosen.port is not None and not 0 <= chosen.port < 1 << 16:
        raise UsageError(f"--port {chosen.port}: it must be below {1 << 16}")
    if chosen.socket is not None and chosen.port is not None:
        raise UsageError("--port and --socket exclude each other")
    if chosen.snapshot is not None and chosen.load_snapshot is not None:
        raise UsageError("--snapshot and --load-snapshot exclude each other")
    _judge_encryption(chosen)


def _judge_encryption(chosen: Namespace) -> None:
    if (chosen.tls != "off") != (chosen.tls_certificates is not None):
        raise UsageError("--tls and --tls-certificates need each other")
    if chosen.shell_command is not None and chosen.fork:
        raise UsageError("--run and --fork exclude each other")


def _open(chosen: Namespace, stack: ExitStack) -> dict[bytes, Export]:
    from qcow2c.serve.exports import Choices
    from qcow2c.serve.opening import open_exports

    named = image_names.chosen_image(chosen, chosen.image, chosen.format)
    if chosen.rw and named.share:
        raise UsageError("--rw and -U exclude each other: what is written cannot be shared")
    source: Any = named.filename if chosen.rw else stack.enter_context(image_names.source_of(named))
    choices = Choices(
        writable=chosen.rw,
        discard=chosen.discard in ("unmap", "on"),
        detect_zeroes=chosen.detect_zeroes,
        allocation_depth=chosen.allocation_depth,
        bitmap=chosen.bitmap,
    )
    snapshot = chosen.snapshot or image_names.snapshot_key(chosen.load_snapshot)
    try:
        return stack.enter_context(
            open_exports(
                source,
                name=chosen.export_name,
                description=chosen.description,
                image_format=named.format,
                choices=choices,
                snapshot=snapshot,
                offset=chosen.offset,
                size=chosen.size,
                gate=chosen.gate,
                share=named.share,
                backing_format=named.backing_format,
                **named.options,
            )
        )
    except KeyError as exc:
        raise UsageError(f"there is no bitmap {exc.args[0]!r}") from exc


def _nbd_door(chosen: Namespace, stack: ExitStack) -> Door:
    from qcow2c.serve.listening import NBD_PORT, uri_of
    from qcow2c.serve.nbd import Tls, serve_client

    exports = _open(chosen, stack)
    encryption = Tls(_tls(chosen), required=chosen.tls == "require")
    scheme = "nbds" if chosen.tls == "require" else "nbd"
    return Door(
        partial(serve_client, exports=exports, encryption=encryption),
        NBD_PORT,
        lambda listener: uri_of(listener, scheme, chosen.export_name),
        [(name, export.size, export.writable) for name, export in exports.items()],
        persistent=chosen.persistent,
        socket=chosen.socket,
    )


def _serve(chosen: Namespace, door: Door, background: Background | None, stack: ExitStack) -> int:
    from qcow2c.serve import listening, process
    from qcow2c.serve.server import Limits, Server

    listeners = stack.enter_context(listening.handed_over())
    if not listeners and chosen.shell_command is not None and door.socket is None and chosen.port is None:
        listeners = stack.enter_context(listening.unix_in_new_folder())
    elif not listeners and door.socket is not None:
        listeners = stack.enter_context(listening.unix(door.socket))
    elif not listeners:
        port = door.port if chosen.port is None else chosen.port
        listeners = stack.enter_context(listening.tcp(chosen.bind, port))
    server = Server(
        listeners,
        door.serve,
        limits=Limits(clients=chosen.shared),
        persistent=door.persistent or chosen.shell_command is not None,
        log=text.complain if chosen.log else lambda _message: None,
    )
    stack.enter_context(server)
    stack.enter_context(process.pid_file(chosen.pid_file))
    stack.enter_context(process.stopped_by_signals(server.stop))
    if not chosen.quiet and chosen.shell_command is None:
        _say(chosen, door, listeners)
    if background is not None:
        background.ready()
    if chosen.shell_command is not None:
        return _run_command(chosen, server, listeners, door.uri(listeners[0]))
    server.run()
    return 0


def _say(chosen: Namespace, door: Door, listeners: list[socket.socket]) -> None:
    _, size, writable = door.listed[0]
    mode = "read-write" if writable else "read-only"
    places = " and ".join(door.uri(listener) for listener in listeners)
    text.note(f"qcow2c: serving {text.printable(chosen.image)}, {size} bytes, {mode}, at {places}")


def _run_command(chosen: Namespace, server: Any, listeners: list[socket.socket], uri: str) -> int:
    """Serve as long as a command runs; return its exit status."""
    import subprocess
    import threading

    place = listeners[0].getsockname()
    environment = {**os.environ, "uri": uri, "unixsocket": place if isinstance(place, str) else ""}
    with subprocess.Popen(chosen.shell_command, shell=True, env=environment) as command:

        def wait() -> None:
            command.wait()
            server.stop()

        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        server.run()
        if command.poll() is None:  # A signal came first.
            command.terminate()
        waiting.join()
    return command.returncode if command.returncode >= 0 else 128 - command.returncode


def _tls(chosen: Namespace) -> ssl.SSLContext | None:
    """Return how connections are encrypted. Raises UsageError."""
    if chosen.tls == "off":
        return None
    import ssl

    folder = chosen.tls_certificates
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(os.path.join(folder, "server-cert.pem"), os.path.join(folder, "server-key.pem"))
        if chosen.tls_verify_peer:
            context.load_verify_locations(os.path.join(folder, "ca-cert.pem"))
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as exc:
        raise UsageError(f"the certificates in {folder!r} cannot be used: {exc}") from exc
    return context
