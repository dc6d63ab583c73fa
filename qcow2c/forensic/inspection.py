"""One look at a file from a stranger, by a policy: what speaks against it. It reads one file, and writes nothing.

Memory and time follow from the limits of the policy, never from numbers in the image: each count meets its bound before
anything is read by it. No file that an image names is opened.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice

from qcow2c.constants import SECTOR_SIZE, ExtensionType, FeatureType
from qcow2c.errors import Qcow2Error, Span, StoreError
from qcow2c.forensic.limits import has_geometry
from qcow2c.forensic.nodes import printable, text_of
from qcow2c.forensic.policy import Policy
from qcow2c.forensic.signatures import file_likenesses, image_likenesses
from qcow2c.forensic.verdicts import Inspection, Reason, Verdict
from qcow2c.format import rules
from qcow2c.format.detection import Format, detect_format
from qcow2c.format.findings import Finding, Severity
from qcow2c.format.header import FEATURE_FIELDS, KNOWN_LENGTH, Header, field_span
from qcow2c.layers.reader import Reader
from qcow2c.layers.state import load_state
from qcow2c.references.image_check import check_image
from qcow2c.references.walk import ACTIVE, State, Walk
from qcow2c.storage.sources import Store
from qcow2c.storage.trailing_data import trailing_data

_GUEST_BYTES = 1 << 16
"""Of the beginning of a disk, that are looked at."""

_EXPANSION_FROM = 64 << 20
"""Bytes of guest data below which it does not matter how well they are compressed."""

_UNUSUAL = (
    "header.looks_like_v3", "header.lost_snapshots", "header.raw_data_with_backing", "header.l1_past_end",
    "header.no_encryption_header", "extension.duplicate", "header.bitmaps_bit",
)  # fmt: skip
"""Warnings about what other programs may read otherwise: no sound writer makes it."""

_LISTED = 20
"""Compressed clusters that are listed."""

_SHOWN = 128
"""Characters of a name from an image that are shown."""


class _OutOfTime(Exception):
    pass


def look(
    store: Store,
    policy: Policy,
    image_format: str | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Inspection:
    """Return the verdict on a file; `image_format` is what it is said to be. Raises StoreError."""
    inspection = Inspection(store.name, file_bytes=store.size())
    one = _Look(store, policy, inspection, clock)
    try:
        one.run(image_format)
    except _OutOfTime:
        message = f"not finished within {policy.max_seconds:g} seconds"
        inspection.add(Reason("limit.time", Verdict.UNSURE, message, limit=int(policy.max_seconds)))
    except StoreError:
        raise
    except Qcow2Error as exc:
        inspection.add(Reason("image.unreadable", Verdict.REJECT, printable(exc.message), exc.where))
    return inspection


class _Look:
    """One look at one file: each step adds its reasons, or raises what ends the look."""

    def __init__(self, store: Store, policy: Policy, inspection: Inspection, clock: Callable[[], float]) -> None:
        self._store, self._policy, self._found = store, policy, inspection
        self._clock = clock
        self._end = clock() + policy.max_seconds

    # --- reasons ---

    def _reject(
        self,
        rule: str,
        message: str,
        where: Span | None = None,
        value: int | str | None = None,
        limit: int | None = None,
    ) -> None:
        self._found.add(Reason(rule, Verdict.REJECT, message, where, value, limit))

    def _doubt(self, rule: str, message: str, where: Span | None = None, value: int | str | None = None) -> None:
        self._found.add(Reason(rule, Verdict.UNSURE, message, where, value))

    def _bound(self, rule: str, what: str, value: int, limit: int, where: Span | None = None) -> bool:
        """Return whether a size is within its bound; if not, that is a reason."""
        if value > limit:
            self._reject(rule, f"{what}: {value} bytes, more than {limit}", where, value, limit)
        return value <= limit

    def _tick(self, *_done: int) -> None:
        """Raise _OutOfTime where there is no more of it."""
        if self._clock() > self._end:
            raise _OutOfTime

    # --- steps ---

    def run(self, stated: str | None) -> None:
        """Look at everything, as far as it can be believed."""
        store, policy = self._store, self._policy
        self._tick()
        self._bound("size.file", "the file", store.size(), policy.max_file_bytes)
        if not store.size():
            self._reject("format.empty", "the file is empty")
            return
        found = self._found.format = detect_format(store)
        if stated is not None and stated != found:
            self._reject("format.stated", f"said to be {printable(stated)}, and begins as {found}", value=found)
        if found not in policy.formats:
            allowed = ", ".join(policy.formats)
            self._reject("format.not_allowed", f"the format is {found}, not {printable(allowed)}", value=found)
        if found == Format.QCOW2:
            self._qcow2()
        elif found == Format.RAW:
            self._raw()
        elif found in policy.formats:
            self._doubt("format.not_inspected", f"nothing but the name is known of the format {found}", value=found)

    def _raw(self) -> None:
        size = self._store.size()
        self._found.facts["virtual-bytes"] = size
        self._bound("size.virtual", "the disk", size, self._policy.max_virtual_bytes)
        self._images_in("file.other_format", "the file", self._store.pread, size)

    def _qcow2(self) -> None:
        header = Header.load(self._store)
        findings = list(rules.header_findings(header))
        for finding in findings:
            self._judge(finding)
        self._features(header)
        self._extensions(header)
        self._names(header)
        self._sizes(header)
        header_bytes = header.cluster_size if header.has_valid_cluster_bits else 512
        self._likenesses(header_bytes)
        if header.has_valid_cluster_bits:
            self._hidden(header)
        if has_geometry(header) and all(finding.severity is not Severity.FATAL for finding in findings):
            self._tick()
            self._tables(header)

    def _judge(self, finding: Finding) -> None:
        """A broken rule of the header."""
        if finding.severity >= Severity.ERROR or finding.rule in _UNUSUAL:
            self._reject(finding.rule, printable(finding.message), finding.where)
        elif finding.severity is Severity.WARNING:
            self._doubt(finding.rule, printable(finding.message), finding.where)

    def _features(self, header: Header) -> None:
        policy, facts = self._policy, self._found.facts
        facts |= {"version": header.version, "encrypted": header.encrypted, "extended-l2": header.extended_l2}
        for kind in (FeatureType.COMPATIBLE, FeatureType.AUTOCLEAR):
            name, bits = FEATURE_FIELDS[kind]
            unknown = getattr(header, name) & bits.reserved
            if unknown and not policy.allow_unknown_features:
                self._reject(f"feature.{name}", f"unknown bits in {name}: {unknown:#x}", field_span(name), unknown)
        if header.unknown_fields.strip(b"\0") and not policy.allow_unknown_features:
            where = Span(KNOWN_LENGTH, len(header.unknown_fields))
            self._reject("feature.unknown_fields", "the header has fields that are not known", where)
        if header.encrypted and not policy.allow_encryption:
            self._reject("feature.encryption", "the image is encrypted", field_span("crypt_method"))
        if header.external_data and not policy.allow_data_file:
            self._reject("feature.data_file", "the data is in another file", field_span("incompatible_features"))
        if header.dirty and not policy.allow_dirty:
            self._doubt("feature.dirty", "the image was not closed cleanly", field_span("incompatible_features"))
        if header.corrupt:
            self._reject("feature.corrupt", "the image is marked corrupt", field_span("incompatible_features"))

    def _extensions(self, header: Header) -> None:
        policy, known = self._policy, {*ExtensionType}
        for extension in header.extensions:
            if extension.type not in known and not policy.allow_unknown_extensions:
                message = f"unknown header extension {extension.type:#010x} of {extension.length} bytes"
                self._reject("extension.unknown", message, extension.span, extension.type)
            if extension.type == ExtensionType.BITMAPS and not policy.allow_bitmaps:
                self._reject("feature.bitmaps", "the image has bitmaps", extension.span)
            if extension.type == ExtensionType.DATA_FILE and not policy.allow_data_file:
                name, _ = text_of(extension.data[:_SHOWN])
                self._reject("name.data_file", f"the image names a data file: {name!r}", extension.span, name)

    def _names(self, header: Header) -> None:
        """A name of a backing file, or only its place or length: some programs follow where others look away."""
        if header.backing_file_offset or header.backing_file_size:
            name, _ = text_of((header.backing_file or b"")[:_SHOWN])
            self._found.facts["backing-file"] = name
            if not self._policy.allow_backing_file:
                where = Span(header.backing_file_offset, header.backing_file_size)
                self._reject("name.backing_file", f"the image names a backing file: {name!r}", where, name)
        for extension in header.extensions:
            if extension.type == ExtensionType.BACKING_FORMAT and not header.backing_file_offset:
                self._doubt("name.backing_format", "a format of a backing file, and none is named", extension.span)

    def _sizes(self, header: Header) -> None:
        policy = self._policy
        self._found.facts |= {"virtual-bytes": header.size, "snapshots": header.nb_snapshots}
        self._bound("size.virtual", "the disk", header.size, policy.max_virtual_bytes, field_span("size"))
        if header.size % SECTOR_SIZE:
            message = f"the size {header.size} is no multiple of {SECTOR_SIZE}: programs round it up or down"
            self._doubt("size.unaligned", message, field_span("size"), header.size)
        if header.nb_snapshots and not policy.allow_snapshots:
            message = f"{header.nb_snapshots} internal snapshots"
            self._reject("feature.snapshots", message, field_span("nb_snapshots"), header.nb_snapshots)

    def _likenesses(self, header_bytes: int) -> None:
        """What else the file may be taken for, whatever it begins with."""
        if self._policy.allow_other_formats:
            return
        store, size = self._store, self._store.size()
        self._images_in("file.other_format", "the file", store.pread, size)
        for like in file_likenesses(store.pread, size, header_bytes):
            self._reject("file.other_format", f"the file may be taken for {like.name}", like.where, like.name)

    def _images_in(self, rule: str, what: str, read: Callable[[int, int], bytes], size: int) -> None:
        if self._policy.allow_other_formats:
            return
        for like in image_likenesses(read, size):
            if rule == "file.other_format" and like.name == self._found.format:
                continue
            self._reject(rule, f"{what} may be taken for {like.name}", like.where, like.name)

    def _hidden(self, header: Header) -> None:
        """Bytes of the header's cluster that belong to nothing: a sound writer leaves zeros there."""
        if self._policy.allow_trailing_data:
            return
        own = Span(0, max([header.header_length, *(extension.span.end for extension in header.extensions)]))
        name = Span(header.backing_file_offset, header.backing_file_size)
        start = bytearray(self._store.pread(header.cluster_size, 0))
        for span in (own, name):
            part = range(len(start))[span.offset : span.end]
            start[part.start : part.stop] = bytes(len(part))
        if start.count(0) < len(start):
            first = len(start) - len(start.lstrip(b"\0"))
            where = Span(first, len(start.strip(b"\0")))
            self._reject("file.hidden", f"{where.length} bytes behind the header that belong to nothing", where)

    def _tables(self, header: Header) -> None:
        from qcow2c.forensic.table_load import l1_bytes, metadata_bytes, table_load  # Late: they import numpy.

        walk = Walk(self._store, header)
        limit = self._policy.max_metadata_bytes
        if not self._bound("size.metadata", "the L1 tables", l1_bytes(walk), limit):
            return
        total = metadata_bytes(walk)
        self._found.facts["metadata-bytes"] = total
        if not self._bound("size.metadata", "the metadata", total, limit):
            return
        self._tick()
        load = table_load(walk, self._tick)
        self._found.facts |= {"guest-bytes": load.guest_bytes, "compressed-clusters": load.compressed_clusters}
        self._expansion(load.guest_bytes)
        if load.shared_tables:
            message = f"{load.shared_tables} L2 tables are used for more than one range of the disk"
            self._reject("tables.shared", message, value=load.shared_tables)
        if load.shared_clusters:
            message = f"{load.shared_clusters} entries share their cluster, without any snapshot"
            self._reject("tables.shared_data", message, value=load.shared_clusters)
        if load.zeros_in_v2:
            self._reject("tables.zero_in_v2", f"{load.zeros_in_v2} zero clusters, which version 2 does not know")
        self._check(walk)
        if load.compressed_clusters:
            self._compressed(walk, load.compressed_clusters)
        self._disks(walk)
        self._parsers()

    def _compressed(self, walk: Walk, count: int) -> None:
        """Each must decompress to one cluster, no less and no more: programs differ in what they make of others."""
        from qcow2c.forensic.compressed_streams import wrong_streams

        if not self._policy.allow_compression:
            self._reject("feature.compression", f"{count} clusters are compressed", value=count)
            return
        for where, message in islice(wrong_streams(walk, self._tick), _LISTED):
            self._reject("data.compressed", message, where)

    def _expansion(self, guest_bytes: int) -> None:
        limit = self._policy.max_expansion
        ratio = guest_bytes // max(1, self._store.size())
        if guest_bytes >= _EXPANSION_FROM and ratio > limit:
            message = f"{guest_bytes} bytes of guest data in {self._store.size()} bytes: {ratio} for one"
            self._reject("size.expansion", message, value=ratio, limit=limit)

    def _check(self, walk: Walk) -> None:
        """References and refcounts, and what lies behind all that is counted."""
        result = check_image(self._store, self._tick)
        if result.failed is not None or result.check_errors:
            self._reject("check.failed", printable(result.failed or "refcounts cannot be read"))
            return
        for finding in result.findings(walk.geometry.cluster_size):
            if finding.severity >= Severity.ERROR:
                self._reject(finding.rule, printable(finding.message), finding.where)
        if result.leaks and not self._policy.allow_leaks:
            self._doubt("check.leaks", f"{result.leaks} clusters that nothing refers to", value=result.leaks)
        trailing = trailing_data(self._store, result.image_end_offset)
        if trailing is not None and not self._policy.allow_trailing_data:
            self._reject("file.trailing", f"{trailing.length} bytes lie behind the image", trailing)

    def _disks(self, walk: Walk) -> None:
        """The beginning and the end of each disk: converted to raw, it must not become an image of another format."""
        seen: set[tuple[int, int, int]] = set()
        for state in walk.states():
            self._tick()
            place = state.l1_offset, state.l1_entries, state.disk_size
            if state.index != ACTIVE and (not self._policy.allow_snapshots or place in seen):
                continue
            seen.add(place)
            name = "the disk" if state.index == ACTIVE else f"snapshot {state.index}"
            if state.index != ACTIVE:
                self._bound("size.virtual", name, state.disk_size, self._policy.max_virtual_bytes)
                for finding in rules.snapshot_findings(walk.header, walk.snapshots.records[state.index]):
                    self._judge(finding)
            if not self._policy.allow_other_formats and state.walkable:
                self._disk(walk, state, name)

    def _disk(self, walk: Walk, state: State, name: str) -> None:
        header = walk.header
        if header.encrypted or header.external_data:
            self._doubt("guest.not_read", f"{name} cannot be read here: it is encrypted, or in another file")
            return
        where = load_state(self._store, header, state.l1_offset, state.l1_entries, state.disk_size)
        reader = Reader(self._store, where)
        first, last = _piece(reader, 0), _piece(reader, max(0, state.disk_size - _GUEST_BYTES))

        def read(length: int, offset: int) -> bytes:
            for start, part in (first, last):
                if start <= offset and offset + length <= start + len(part):
                    return part[offset - start : offset - start + length]
            return b""

        self._images_in("guest.other_format", name, read, state.disk_size)

    def _parsers(self) -> None:
        from qcow2c.attest.verify import verify  # The second parser is needed only here.

        self._tick()
        result = verify(self._store)
        if not result.agrees:
            where = None if result.difference is None else result.difference.where
            self._reject("parsers.differ", printable(result.summary()), where)


def _piece(reader: Reader, start: int) -> tuple[int, bytes]:
    """Return where a piece of a disk begins, and its bytes, fewer at the end. Raises CorruptMetadata, CorruptData."""
    length = max(0, min(_GUEST_BYTES, reader.disk_size - start))
    buffer = bytearray(length)
    reader.read_into(memoryview(buffer), start)
    return start, bytes(buffer)
