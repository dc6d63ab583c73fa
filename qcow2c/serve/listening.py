"""Where clients come in: TCP, Unix sockets, and sockets that a service manager hands over. It reads the environment."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from qcow2c.errors import StoreError, UsageError
from qcow2c.storage.store import reason

NBD_PORT = 10809

_FIRST_HANDED_OVER = 3
"""The first descriptor of a service manager's (sd_listen_fds)."""


@contextmanager
def tcp(address: str, port: int) -> Iterator[list[socket.socket]]:
    """Listen at an address, or at all of a name; port 0 takes a free one. Raises StoreError."""
    found: list[socket.socket] = []
    try:
        places = socket.getaddrinfo(address or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, place in places:
            listener = socket.socket(family, kind, protocol)
            found.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(place)
            listener.listen(128)
        yield found
    except OSError as exc:
        raise StoreError(f"cannot listen at {address or '*'}:{port}: {reason(exc)}", errno=exc.errno) from exc
    finally:
        for listener in found:
            listener.close()


@contextmanager
def unix(path: str) -> Iterator[list[socket.socket]]:
    """Listen at a path, which is removed in the end; a socket that nobody listens at any more makes room.

    Raises StoreError, UsageError.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            _remove_left_over(path)
            listener.bind(path)
            listener.listen(128)
        except OSError as exc:
            raise StoreError(f"cannot listen at {path!r}: {reason(exc)}", errno=exc.errno) from exc
        try:
            yield [listener]
        finally:
            with suppress(OSError):
                os.unlink(path)


@contextmanager
def unix_in_new_folder() -> Iterator[list[socket.socket]]:
    """Listen at a path that only this user can reach, and that goes away. Raises StoreError."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="qcow2c-") as folder, unix(os.path.join(folder, "socket")) as found:
        yield found


def _remove_left_over(path: str) -> None:
    """Remove the socket of a server that was killed. Raises OSError, UsageError."""
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise UsageError(f"{path!r} is there already, and no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise UsageError(f"another server listens at {path!r}")


@contextmanager
def handed_over() -> Iterator[list[socket.socket]]:
    """Take over the sockets of a service manager: none where it has none for this process. Raises UsageError."""
    found: list[socket.socket] = []
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        try:
            count = int(os.environ.get("LISTEN_FDS", "0"))
            found = [socket.socket(fileno=_FIRST_HANDED_OVER + number) for number in range(count)]
        except (ValueError, OSError) as exc:
            raise UsageError(f"LISTEN_FDS={os.environ.get('LISTEN_FDS')!r}: {exc}") from exc
        for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            os.environ.pop(name, None)
    try:
        yield found
    finally:
        for listener in found:
            listener.close()


def uri_of(listener: socket.socket, scheme: str, export: str) -> str:
    """Return where clients find a server."""
    from urllib.parse import quote

    place = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"{scheme}+unix:///{quote(export)}?socket={quote(os.path.abspath(place), safe='/')}"
    host = f"[{place[0]}]" if listener.family == socket.AF_INET6 else place[0]
    return f"{scheme}://{host}:{place[1]}/{quote(export)}"
