"""How images are opened: header rules, the gate, the data file, and the backing chain down to its end.

Opening is read-only unless mode "r+" says otherwise, and then it changes nothing yet; layers below are read-only in any
case. No file is opened because an image says so, unless the gate allows it; a chain that loops or is
too deep is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from threading import RLock

from qcow2c.constants import Limit
from qcow2c.errors import ChainError, UsageError, doing
from qcow2c.format.detection import Format, known_format
from qcow2c.format.findings import Severity
from qcow2c.format.header import Header
from qcow2c.format.loaded_image import LoadedImage, load_image
from qcow2c.format.metadata_spans import metadata_spans
from qcow2c.image import Image
from qcow2c.layers.layer import Extent, Layer, RawLayer
from qcow2c.layers.reader import Reader
from qcow2c.layers.salvage import Salvage
from qcow2c.layers.state import active_state
from qcow2c.layers.turn import AT_ONCE
from qcow2c.light import TYPE_CHECKING, TypedDict
from qcow2c.storage.file_names import is_url, plain_path
from qcow2c.storage.gate import Gate, GateFunction, GateRequest, format_in, full_name, gate_for
from qcow2c.storage.locks import Use
from qcow2c.storage.sources import FileObject, Source, Store, opened
from qcow2c.storage.thread_locks import fork_safe

if TYPE_CHECKING:
    from typing import Any, Literal, TypeAlias

    from qcow2c.crypto.guest_cipher import GuestCipher
    from qcow2c.crypto.key_ring import KeyRing
    from qcow2c.crypto.secrets import Key
    from qcow2c.engine import Engine

_MODES = ("r", "rb", "r+", "rb+", "r+b")

BackingChoice: TypeAlias = "Source | Store | Image | Literal[False] | None"


class Opening(TypedDict, total=False):
    """The choices of `open_image`, for what opens an image by the way."""

    key: Key | KeyRing
    backing: BackingChoice
    backing_format: str | None
    data_file: Source | Store | None
    gate: str | Gate
    on_error: Literal["raise", "zero"]
    share: bool
    trust: bool


def open_image(
    source: Source | Store,
    mode: str = "r",
    *,
    key: Key | KeyRing = None,
    backing: BackingChoice = None,
    backing_format: str | None = None,
    data_file: Source | Store | None = None,
    gate: str | Gate = "directory",
    on_error: Literal["raise", "zero"] = "raise",
    share: bool = False,
    trust: bool = False,
) -> Image:
    """Open a qcow2 image; `source` is a path, bytes, or a seekable binary file object.

    `mode` is "r", or "r+" to write to the image, too: then every reachable cluster must have a refcount that covers its
    references, and nothing may overlap; `trust=True` opens without looking. `share=True` reads an image although
    another process may be writing to it.

    `key` opens encrypted images: a passphrase, as bytes or str (UTF-8), or a function that is called with the name of
    the image, only where that is encrypted. It counts for all layers; a mapping has one for each, by the path of its
    file or its depth (0: the image itself). Without a key an encrypted image shows all its metadata, and no guest data.

    `backing` replaces the backing file that the image names (False: none, unallocated clusters read as zeros; an open
    `Image` stays open), and `data_file` the external data file. `backing_format`, "qcow2" or "raw", is the backing
    file's, where that is not what the image says. `gate` decides about files that images name: "directory" (names that
    lead into the image's own directory), a list of directories beside that, "deny", "any", or a callable.
    `on_error="zero"` is salvage mode: what cannot be read is zeros, and is listed in `Image.salvaged`.

    Raises NotQcow2, UnsupportedFeature, CorruptMetadata, MissingKey, WrongKey, GateRefused, ChainError, StoreError,
    UsageError.
    """
    if mode not in _MODES:
        raise UsageError(f"mode {mode!r} is not one of {', '.join(map(repr, _MODES))}")
    writable = "+" in mode
    if writable and (share or on_error != "raise"):
        raise UsageError("share= and on_error= are for reading: what is written can neither be shared nor salvaged")
    if on_error not in ("raise", "zero"):
        raise UsageError(f'on_error={on_error!r} is neither "raise" nor "zero"')
    with ExitStack() as stack:
        salvage = Salvage() if on_error == "zero" else None
        opener = _Opener(gate_for(gate), salvage, stack, share=share, backing_format=backing_format, key=key)
        use = Use.WRITABLE_IMAGE if writable else Use.of_reader(share=share)
        store = stack.enter_context(opened(_as_bytes(source, writable=writable), use))
        loaded = load_image(store, opener.refused_from)
        reader = opener.reader(store, loaded.header, backing, data_file, (store,), writable=writable)
        engine = _engine(reader, loaded, trust=trust) if writable else None
        how: Opening = {"backing_format": backing_format, "gate": gate, "on_error": on_error, "share": share}
        is_kept = writable or key is not None
        reopen = None if is_kept else _reopening(source, backing, data_file, how)
        return Image(
            reader,
            name=store.name,
            opened=stack.pop_all(),
            notices=loaded.notices,
            snapshots=loaded.snapshots.records,
            engine=engine,
            mapped=_extents,
            reopen=reopen,
        )


def _reopening(
    source: Source | Store, backing: BackingChoice, data_file: Source | Store | None, choices: Opening
) -> Callable[[], Image] | None:
    """Return what opens an image once more, in another process, too: None where it holds what is open already."""
    named: list[Any] = []
    for place in (source, backing, data_file):
        if isinstance(place, str | os.PathLike):
            named.append(place if is_url(place) else os.path.abspath(os.fsdecode(plain_path(place))))
        elif place is None or place is False:
            named.append(place)
        else:
            return None
    choices |= {"backing": named[1], "data_file": named[2]}
    return partial(open_image, named[0], **choices)


def _extents(layer: Layer, start: int, length: int | None) -> Iterator[Extent]:
    from qcow2c.disk.map import extents  # Late: most images are read, and not mapped.

    return extents(layer, start, length)


def _as_bytes(source: Source | Store, *, writable: bool) -> Source | Store:
    """Return a store over the disk of an open image: it may hold an image itself, which is asked for here alone."""
    return FileObject(source, writable=writable) if isinstance(source, Image) else source


def named_file(image: Store, gate: GateFunction, role: str, name: bytes) -> str | os.PathLike[str]:
    """Return the path that the gate allows for a name in an image. Raises GateRefused."""
    from pathlib import Path  # Late: most images name no other file.

    path = None if image.path is None else Path(image.path)
    text = os.fsdecode(name)
    allowed = gate(GateRequest(role, text, path, image.url))
    if image.url is not None:
        return allowed
    # The same file, but shown as QEMU does: a Path drops the "./" that the user wrote.
    shown = full_name(image.name, text)
    return shown if Path(shown) == Path(allowed) else allowed


def _engine(reader: Reader, loaded: LoadedImage, *, trust: bool) -> Engine:
    """Return the engine of an image that may be written. Raises CorruptMetadata, MissingKey."""
    from qcow2c.engine import Engine
    from qcow2c.references.admission import admit, trusted  # Late: readers do without what writers need.

    return Engine(reader, (trusted if trust else admit)(reader.store, loaded.header, loaded.snapshots))


class _Opener:
    """What holds while a chain is opened: the gate, the salvage log, and what must be closed."""

    def __init__(
        self,
        gate: GateFunction,
        salvage: Salvage | None,
        stack: ExitStack,
        *,
        share: bool,
        backing_format: str | None,
        key: Key | KeyRing,
    ) -> None:
        """`backing_format` is that of the layer below the top one, None as the image says."""
        self._key = key
        self._gate = gate
        self._backing_format = backing_format
        self._share = share
        self._salvage = salvage
        self._stack = stack
        self.refused_from = Severity.FATAL if salvage is not None else Severity.ERROR

    def lock(self, store: Store, use: Use) -> None:
        """Exclude other programs, unless the file is to be shared with them. Raises ImageLocked."""
        store.lock(Use.SHARED if self._share else use)

    def reader(
        self,
        store: Store,
        header: Header,
        backing: BackingChoice,
        data_file: Source | Store | None,
        chain: tuple[Store, ...],
        *,
        writable: bool = False,
    ) -> Reader:
        """Return the reader of the active state of a loaded image, over what it lies on."""
        cipher = self._cipher(store, header, len(chain) - 1) if header.encrypted and self._key is not None else None
        data_store = self._data_store(store, header, data_file, writable=writable)
        below = self._backing_layer(store, header, backing, chain)
        return Reader(
            store,
            active_state(store, header),
            data_store=data_store,
            cipher=cipher,
            backing=below,
            metadata=tuple(metadata_spans(header)),
            salvage=self._salvage,
            turn=fork_safe(RLock()) if writable else AT_ONCE,
        )

    def _cipher(self, store: Store, header: Header, depth: int) -> GuestCipher | None:
        """Return the cipher of an encrypted image, None where no key was given for it. Raises WrongKey."""
        from qcow2c.crypto.key_ring import KeyRing  # Late: most images are not encrypted.

        return KeyRing(self._key).cipher(store, header, depth)

    def _data_store(
        self, store: Store, header: Header, data_file: Source | Store | None, *, writable: bool
    ) -> Store | None:
        if not header.external_data:
            if data_file is not None:
                raise UsageError(f"{store.name!r} has no external data file, but data_file= was given")
            return None
        if data_file is None:
            if not header.data_file:
                raise UsageError(f"{store.name!r} does not name its external data file: give it (data_file=)")
            data_file = self._named_data_file(store, header.data_file)
        data_store = self._stack.enter_context(opened(_as_bytes(data_file, writable=writable), writable=writable))
        if data_store.identity() == store.identity():
            raise ChainError(f"{store.name!r} names itself as its external data file")
        self.lock(data_store, Use.WRITABLE_DATA_FILE if writable else Use.DATA_FILE)
        return data_store

    def _named_data_file(self, store: Store, name: bytes) -> str | os.PathLike[str]:
        """Return the data file that an image names: beside the image, else where QEMU, started here, finds it.

        QEMU takes the name as seen from the working directory; the gate judges that place, too. Raises GateRefused.
        """
        beside = named_file(store, self._gate, "data file", name)
        if os.path.exists(beside) or store.path is None or not os.path.exists(name):
            return beside
        here = os.path.relpath(os.fsdecode(name), os.path.dirname(store.path) or os.curdir)
        return named_file(store, self._gate, "data file", os.fsencode(here))

    def _backing_layer(
        self, store: Store, header: Header, backing: BackingChoice, chain: tuple[Store, ...]
    ) -> Layer | None:
        if backing is False:
            return None
        if isinstance(backing, Image):
            self._stack.callback(id, backing)  # Keeps it from being closed where its opener has dropped it.
            return backing.layer
        stated = (header.backing_format or b"").decode("utf-8", "backslashreplace")
        if backing is None:
            if not header.backing_file:
                return None
            backing = named_file(store, self._gate, "backing file", header.backing_file)
            stated = stated or format_in(os.fsdecode(header.backing_file)) or ""
        below = self._stack.enter_context(opened(backing))
        if any(below.identity() == above.identity() for above in chain):
            raise ChainError(f"backing file {below.name!r} of {store.name!r} creates a loop")
        if len(chain) > Limit.BACKING_CHAIN_DEPTH:
            raise ChainError(f"the backing chain has more than {Limit.BACKING_CHAIN_DEPTH} layers, at {below.name!r}")
        if self._backing_format is not None and len(chain) == 1:
            stated = self._backing_format
        return self._lower_layer(below, stated, (*chain, below))

    def _lower_layer(self, store: Store, stated: str, chain: tuple[Store, ...]) -> Layer:
        refusal = "backing file {name!r} has format {found!r}, not qcow2 or raw"
        if known_format(store, stated or None, refusal) is Format.RAW:
            self.lock(store, Use.SHARED)
            return RawLayer(store)
        self.lock(store, Use.IMAGE)
        with doing(f"backing file {store.name!r}"):
            header = load_image(store, self.refused_from).header
        return self.reader(store, header, None, None, chain)
