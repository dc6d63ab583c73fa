"""What `serve 9p` has of its own: which of the options are NBD's, a missing image, the name of a service."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from qcow2c.cli import image_names
from qcow2c.errors import StoreError, UsageError

if TYPE_CHECKING:
    import socket
    from argparse import Namespace
    from collections.abc import Callable
    from contextlib import ExitStack
    from typing import Any

    from qcow2c.serve.wire import Wire

PORT = 564

_NBD_ONLY = (
    "load_snapshot", "export_name", "description", "offset", "size", "allocation_depth", "bitmap", "tls_certificates",
    "tls_verify_peer",
)  # fmt: skip


class Door(NamedTuple):
    """A protocol over an image that is open."""

    serve: Callable[[Wire], None]
    port: int
    uri: Callable[[socket.socket], str]
    """Where clients find a socket."""
    listed: list[tuple[bytes, int, bool]]
    """What is served: name, size, and whether it can be written; the disk first."""
    persistent: bool
    socket: str | None
    """The path of the Unix socket that was asked for."""


def judge_ninep(chosen: Namespace) -> None:
    """Raise UsageError for options of the other protocol."""
    if chosen.protocol != "9p":
        if chosen.new is not None:
            raise UsageError("--new is for 9p alone")
        return
    for name in _NBD_ONLY:
        if getattr(chosen, name):
            raise UsageError(f"--{name.replace('_', '-')} is for nbd alone")
    if chosen.detect_zeroes != "off":
        raise UsageError("--detect-zeroes is for nbd alone")
    if chosen.snapshot is not None and (chosen.socket is not None or chosen.port is not None):
        raise UsageError("-s, --port and --socket exclude each other")
    if chosen.new is not None and chosen.new <= 0:
        raise UsageError(f"--new {chosen.new}: a disk has some bytes")
    if chosen.new is not None and chosen.format == "raw":
        raise UsageError("--new makes a qcow2 image, and no raw one")


def ninep_door(chosen: Namespace, stack: ExitStack) -> Door:
    """Open the image, which is made where it is missing and may be. Raises as `open_folder`."""
    from qcow2c.serve.folder import open_folder
    from qcow2c.serve.ninep import serve_ninep_client
    from qcow2c.serve.ninep_files import files_below, tree_of

    named = image_names.chosen_image(chosen, chosen.image, chosen.format)
    if chosen.rw and named.share:
        raise UsageError("--rw and -U exclude each other: what is written cannot be shared")
    if chosen.new is not None and not os.path.exists(named.filename):
        from qcow2c.ops.create import create

        create(named.filename, chosen.new)
    source: Any = named.filename if chosen.rw else stack.enter_context(image_names.source_of(named))
    folder = stack.enter_context(
        open_folder(
            source,
            image_format=named.format,
            writable=chosen.rw,
            gate=chosen.gate,
            share=named.share,
            backing_format=named.backing_format,
            **named.options,
        )
    )
    root = tree_of(folder)
    place = chosen.socket if chosen.snapshot is None else _service(chosen.snapshot)
    listed = [(path, entry.size, entry.writable) for path, entry in files_below(root)]
    return Door(partial(serve_ninep_client, root=root), PORT, _dial, listed, persistent=True, socket=place)


def _service(name: str) -> str:
    """Return the path of a service of this user's, as plan9port has it; a path stays one. Raises StoreError."""
    if "/" in name:
        return name
    user = os.environ.get("USER") or str(os.getuid())
    display = os.environ.get("DISPLAY") or ":0"
    space = os.environ.get("NAMESPACE") or f"/tmp/ns.{user}.{display.removesuffix('.0')}"
    try:
        os.makedirs(space, mode=0o700, exist_ok=True)
        if os.stat(space).st_uid != os.getuid():
            raise StoreError(f"{space!r} is not this user's")
    except OSError as exc:
        raise StoreError(f"cannot make {space!r}: {exc.strerror}", errno=exc.errno) from exc
    return os.path.join(space, name)


def _dial(listener: socket.socket) -> str:
    """Return where a socket is, in the words of Plan 9."""
    place = listener.getsockname()
    return f"unix!{os.path.abspath(place)}" if isinstance(place, str) else f"tcp!{place[0]}!{place[1]}"
