"""The NBD protocol with one client: first what it wants, then what it does. Threads share the exports.

Nothing that a client sends ends more than its own connection: what is wrong but understood is answered with an error
of the protocol, and what is not understood ends the connection. Memory is bounded by MAX_PAYLOAD a connection.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from qcow2c.errors import Qcow2Error, StoreError
from qcow2c.serve import nbd_messages as nbd
from qcow2c.serve.exports import Described, Export
from qcow2c.serve.nbd_messages import (
    Chunk,
    Command,
    Errno,
    Feature,
    Flag,
    Handshake,
    Info,
    NbdOption,
    OptionFields,
    OptionReply,
    ProtocolError,
    Request,
)
from qcow2c.serve.wire import Disconnected, Wire

PIECE_BYTES = 1 << 20
"""What is written is taken in pieces of so many bytes, and long answers are sent in such."""

FROM_FILE_BYTES = 1 << 15
"""Answers of so many bytes are sent from the file, where it has them as they are."""

_PREFERRED_BLOCK = 1 << 16
_META_OPTIONS = (NbdOption.LIST_META_CONTEXT, NbdOption.SET_META_CONTEXT)


@dataclass(frozen=True)
class Tls:
    """TLS: `context` is None where the server has none; `required`: without it nothing else is told."""

    context: ssl.SSLContext | None = None
    required: bool = False


@dataclass
class Agreed:
    """What server and client have agreed on."""

    export: Export | None = None
    name: bytes = b""
    structured: bool = False
    context_export: bytes | None = None
    """The export for which the contexts were asked."""
    contexts: list[tuple[int, bytes]] = field(default_factory=list)


class Negotiation:
    """The handshake: options and replies, until the client has chosen an export or leaves."""

    def __init__(self, wire: Wire, exports: Mapping[bytes, Export], encryption: Tls) -> None:
        self._wire = wire
        self._exports = exports
        self._encryption = encryption
        self._no_zeroes = False
        self._agreed = Agreed()

    def run(self) -> Agreed | None:
        """Return what was agreed on, None where the client has left in order. Raises Disconnected, ProtocolError."""
        wire = self._wire
        wire.send(nbd.greeting(Handshake.FIXED_NEWSTYLE | Handshake.NO_ZEROES))
        flags = nbd.client_flags(wire.receive(4))
        if flags & ~int(Handshake.FIXED_NEWSTYLE | Handshake.NO_ZEROES):
            raise ProtocolError(f"the client wants {flags:#x}, which nobody has offered")
        self._no_zeroes = bool(flags & Handshake.NO_ZEROES)
        while True:
            kind, length = nbd.option(wire.receive(nbd.OPTION_BYTES))
            if length > nbd.MAX_OPTION:
                if kind == NbdOption.EXPORT_NAME or length > nbd.MAX_PAYLOAD:
                    raise ProtocolError(f"an option of {length} bytes")
                wire.drop(length)
                self._reply(kind, OptionReply.ERR_TOO_BIG, b"the option is too long")
                continue
            if self._answer(kind, bytes(wire.receive(length))):
                return self._agreed if self._agreed.export is not None else None

    def _answer(self, kind: int, data: bytes) -> bool:
        """Answer an option; return whether the handshake has ended."""
        if self._encryption.required and not self._wire.encrypted and kind not in (NbdOption.ABORT, NbdOption.STARTTLS):
            if kind == NbdOption.EXPORT_NAME:
                raise ProtocolError("the client wants to go on without TLS")
            self._reply(kind, OptionReply.ERR_TLS_REQD, b"TLS comes first")
            return False
        if kind == NbdOption.EXPORT_NAME:
            return self._export_name(data)
        if kind == NbdOption.ABORT:
            self._reply(kind, OptionReply.ACK)
            return True
        try:
            return self._answer_data(kind, data)
        except ProtocolError as exc:
            self._reply(kind, OptionReply.ERR_INVALID, str(exc).encode())
            return False

    def _answer_data(self, kind: int, data: bytes) -> bool:
        fields = OptionFields(data)
        if kind in (NbdOption.INFO, NbdOption.GO):
            return self._info(kind, fields) and kind == NbdOption.GO
        if kind in _META_OPTIONS:
            self._meta_contexts(kind, fields)
        elif kind not in (NbdOption.LIST, NbdOption.STARTTLS, NbdOption.STRUCTURED_REPLY):
            self._reply(kind, OptionReply.ERR_UNSUP, b"this option is unknown here")
        else:
            fields.require_end()
            self._answer_plain(kind)
        return False

    def _answer_plain(self, kind: int) -> None:
        """Answer an option without data."""
        if kind == NbdOption.LIST:
            for name, export in self._exports.items():
                self._reply(kind, OptionReply.SERVER, nbd.text(name) + export.description.encode(errors="replace"))
            self._reply(kind, OptionReply.ACK)
        elif kind == NbdOption.STRUCTURED_REPLY:
            self._agreed.structured = True
            self._reply(kind, OptionReply.ACK)
        elif self._encryption.context is None:
            self._reply(kind, OptionReply.ERR_POLICY, b"this server has no TLS")
        elif self._wire.encrypted:
            self._reply(kind, OptionReply.ERR_INVALID, b"TLS is there already")
        else:
            self._reply(kind, OptionReply.ACK)
            self._wire.encrypt(self._encryption.context)
            self._agreed = Agreed()  # Nothing that came in the clear counts.

    def _export_name(self, name: bytes) -> bool:
        export = self._exports.get(name)
        if export is None:
            raise ProtocolError(f"there is no export {name!r}")
        self._agreed.export, self._agreed.name = export, name
        padding = b"" if self._no_zeroes else bytes(124)
        self._wire.send(nbd.export_facts(export.size, features_of(export)) + padding)
        return True

    def _info(self, kind: int, fields: OptionFields) -> bool:
        name = fields.string()
        wanted = fields.kinds()
        fields.require_end()
        export = self._exports.get(name)
        if export is None:
            self._reply(kind, OptionReply.ERR_UNKNOWN, b"there is no such export")
            return False
        facts = {
            Info.NAME: name,
            Info.DESCRIPTION: export.description.encode(errors="replace"),
            Info.BLOCK_SIZE: nbd.block_sizes(1, _PREFERRED_BLOCK, nbd.MAX_PAYLOAD),
        }
        for which in wanted:
            if which in facts and which != Info.BLOCK_SIZE:
                self._reply(kind, OptionReply.INFO, nbd.info(Info(which), facts[Info(which)]))
        self._reply(kind, OptionReply.INFO, nbd.info(Info.BLOCK_SIZE, facts[Info.BLOCK_SIZE]))
        self._reply(kind, OptionReply.INFO, nbd.info(Info.EXPORT, nbd.export_facts(export.size, features_of(export))))
        self._reply(kind, OptionReply.ACK)
        if kind == NbdOption.GO:
            self._agreed.export, self._agreed.name = export, name
        return True

    def _meta_contexts(self, kind: int, fields: OptionFields) -> None:
        """Say which contexts an export has, or choose some of them."""
        name = fields.string()
        queries = [fields.string() for _ in range(min(fields.number(), nbd.MAX_OPTION))]
        fields.require_end()
        export = self._exports.get(name)
        if not self._agreed.structured:
            self._reply(kind, OptionReply.ERR_INVALID, b"structured replies come first")
            return
        if kind == NbdOption.SET_META_CONTEXT:
            self._agreed.context_export, self._agreed.contexts = name, []
        if export is None:
            self._reply(kind, OptionReply.ERR_UNKNOWN, b"there is no such export")
            return
        for number, context in enumerate(export.contexts()):
            if nbd.is_asked_for(context, queries, listed=kind == NbdOption.LIST_META_CONTEXT):
                if kind == NbdOption.SET_META_CONTEXT:
                    self._agreed.contexts.append((number, context))
                self._reply(kind, OptionReply.META_CONTEXT, nbd.meta_context(number, context))
        self._reply(kind, OptionReply.ACK)

    def _reply(self, kind: int, reply: OptionReply, data: bytes = b"") -> None:
        self._wire.send(nbd.option_reply(kind, reply, data))


def features_of(export: Export) -> Feature:
    """Return the transmission flags of an export."""
    found = Feature.HAS_FLAGS | Feature.SEND_FLUSH | Feature.SEND_FUA | Feature.SEND_DF | Feature.SEND_CACHE
    found |= Feature.CAN_MULTI_CONN  # All connections see one image, and a flush counts for all.
    if not export.writable:
        return found | Feature.READ_ONLY
    found |= Feature.SEND_TRIM | Feature.SEND_WRITE_ZEROES
    return found | Feature.SEND_FAST_ZERO if export.fast_zeroes else found


class _Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, error: Errno, message: str) -> None:
        super().__init__(message)
        self.error = error


_FLAGS = {
    Command.READ: Flag.DF,
    Command.WRITE: Flag.FUA,
    Command.FLUSH: Flag(0),
    Command.TRIM: Flag.FUA,
    Command.CACHE: Flag(0),
    Command.WRITE_ZEROES: Flag.FUA | Flag.NO_HOLE | Flag.FAST_ZERO,
    Command.BLOCK_STATUS: Flag.REQ_ONE,
}
"""The flags that each command may have; FUA is allowed everywhere, and means nothing to those that do not write."""

_WRITING = (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES)


class Transmission:
    """The requests of a client, one after the other."""

    def __init__(self, wire: Wire, agreed: Agreed) -> None:
        assert agreed.export is not None, "one was chosen"
        self._wire = wire
        self._export = agreed.export
        self._structured = agreed.structured
        chosen = agreed.contexts if agreed.context_export == agreed.name else []
        known = self._export.contexts()
        self._contexts: list[tuple[int, Callable[[int, int], Described]]] = [
            (number, known[name]) for number, name in chosen
        ]
        self._buffer = memoryview(bytearray(PIECE_BYTES))

    def run(self) -> None:
        """Answer requests until the client leaves. Raises Disconnected, ProtocolError."""
        head = bytearray(nbd.REQUEST_BYTES)
        view = memoryview(head)
        while True:
            self._wire.receive_into(view)
            request = nbd.request(head)
            if request.type == Command.DISC:
                return
            if request.type == Command.WRITE and request.length > nbd.MAX_PAYLOAD:
                raise ProtocolError(f"a write of {request.length} bytes")
            self._answer(request)

    def _answer(self, request: Request) -> None:
        unread = [request.length if request.type == Command.WRITE else 0]
        try:
            try:
                self._judge(request)
                self._obey(request, unread)
            except Qcow2Error as exc:
                raise _Refused(_errno_of(exc), str(exc)) from exc
            except MemoryError as exc:
                raise _Refused(Errno.NOMEM, "there is not enough memory") from exc
        except _Refused as refused:
            self._wire.drop(unread[0])
            if self._structured and request.type in (Command.READ, Command.BLOCK_STATUS):
                self._wire.send(nbd.error_chunk(request.cookie, refused.error, str(refused)))
            else:
                self._done(request, refused.error)

    def _judge(self, request: Request) -> None:
        """Raise _Refused for what must not be tried."""
        if request.type not in _FLAGS:
            raise _Refused(Errno.INVAL, f"no command has the number {request.type}")
        command = Command(request.type)
        if request.flags & ~int(_FLAGS[command] | Flag.FUA):
            raise _Refused(Errno.INVAL, f"flags {request.flags:#x} of {command.name}")
        if command in _WRITING and not self._export.writable:
            raise _Refused(Errno.PERM, "the export is read-only")
        if command is not Command.FLUSH and request.offset + request.length > self._export.size:
            error = Errno.NOSPC if command in (Command.WRITE, Command.WRITE_ZEROES) else Errno.INVAL
            raise _Refused(error, f"bytes {request.offset} to {request.offset + request.length} leave the disk")
        if command is Command.READ and request.length > nbd.MAX_PAYLOAD:
            raise _Refused(Errno.INVAL, f"a read of {request.length} bytes, more than {nbd.MAX_PAYLOAD}")
        if command is Command.READ and request.flags & Flag.DF and not self._structured:
            raise _Refused(Errno.INVAL, "DF without structured replies")
        if command is Command.BLOCK_STATUS and not (self._contexts and request.length):
            raise _Refused(Errno.INVAL, "no context was agreed on" if request.length else "a status of nothing")

    def _obey(self, request: Request, unread: list[int]) -> None:
        export, command = self._export, Command(request.type)
        if command is Command.READ:
            self._read(request)
            return
        if command is Command.BLOCK_STATUS:
            self._status(request)
            return
        if command is Command.WRITE:
            self._write(request, unread)
        elif command is Command.TRIM:
            export.trim(request.offset, request.length)
        elif command is Command.WRITE_ZEROES:
            unmap = not request.flags & Flag.NO_HOLE and export.choices.discard
            export.write_zeroes(request.offset, request.length, unmap=unmap)
        if command is Command.FLUSH or (command in _WRITING and request.flags & Flag.FUA):
            export.flush()
        self._done(request)

    def _done(self, request: Request, error: Errno | None = None) -> None:
        # Only reads and states must be answered in chunks.
        if self._structured and error is not None:
            self._wire.send(nbd.error_chunk(request.cookie, error, ""))
        elif self._structured:
            self._wire.send(nbd.chunk(request.cookie, Chunk.NONE, 0, last=True))
        else:
            self._wire.send(nbd.simple_reply(request.cookie, error or 0))

    def _write(self, request: Request, unread: list[int]) -> None:
        offset = request.offset
        while unread[0]:
            piece = self._buffer[: min(unread[0], len(self._buffer))]
            self._wire.receive_into(piece)
            unread[0] -= len(piece)
            self._export.write(piece, offset)
            offset += len(piece)

    def _read(self, request: Request) -> None:
        if not self._structured or request.flags & Flag.DF or request.length <= PIECE_BYTES:
            self._read_whole(request)
            return
        end, cookie = request.offset + request.length, request.cookie
        for offset in range(request.offset, end, PIECE_BYTES):
            piece = self._buffer[: min(PIECE_BYTES, end - offset)]
            last = offset + len(piece) == end
            self._send(nbd.data_chunk(cookie, offset, len(piece), last=last), piece, offset)

    def _read_whole(self, request: Request) -> None:
        """Answer in one piece: all is read before anything is said."""
        length, offset = request.length, request.offset
        data = self._buffer[:length] if length <= PIECE_BYTES else memoryview(bytearray(length))
        if not self._structured:
            self._send(nbd.simple_reply(request.cookie), data, offset)
        elif length:
            self._send(nbd.data_chunk(request.cookie, offset, length, last=True), data, offset)
        else:
            self._done(request)

    def _send(self, head: bytes, buffer: memoryview, offset: int) -> None:
        """Send as many bytes of the disk as the buffer has room for: by the system alone, or by way of the buffer."""
        from_file = len(buffer) >= FROM_FILE_BYTES and not self._wire.encrypted
        place = self._export.place_in_file(offset, len(buffer)) if from_file else None
        if place is None:
            self._export.read_into(buffer, offset)
            self._wire.send(head, buffer)
        else:
            self._wire.send_file(head, place.descriptor, place.offset, len(buffer))

    def _status(self, request: Request) -> None:
        answers = []
        for number, described in self._contexts:
            found: list[list[int]] = []
            for length, flags in described(request.offset, request.length):
                if found and found[-1][1] == flags:
                    found[-1][0] += length
                elif found and request.flags & Flag.REQ_ONE:
                    break
                else:
                    found.append([length, flags])
            answers.append((number, [(length, flags) for length, flags in found]))
        for number, extents in answers:
            last = number == answers[-1][0]
            self._wire.send(nbd.status_chunk(request.cookie, number, extents, last=last))


def _errno_of(exc: Qcow2Error) -> Errno:
    """Return the protocol's number for an error."""
    code = exc.errno if isinstance(exc, StoreError) else None
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Errno.NOSPC
    return Errno.PERM if code in (errno.EPERM, errno.EACCES, errno.EROFS) else Errno.IO


def serve_client(wire: Wire, exports: Mapping[bytes, Export], encryption: Tls) -> None:
    """Do all that there is to do with a client. Raises Disconnected, ProtocolError when it ends out of order."""
    agreed = Negotiation(wire, exports, encryption).run()
    if agreed is not None:
        wire.wait_forever()
        Transmission(wire, agreed).run()


__all__ = ["Disconnected", "ProtocolError", "Tls", "features_of", "serve_client"]
