"""What `info` says of an image: the facts of qemu-img's JSON, with a name and a type each. It reads nothing."""

from __future__ import annotations

from qcow2c.light import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from typing import Any


_T = TypeVar("_T")


class SnapshotInfo(NamedTuple):
    """An internal snapshot. `icount` is None where the image has none."""

    id: str
    name: str
    vm_state_size: int
    date_sec: int
    date_nsec: int
    vm_clock_sec: int
    vm_clock_nsec: int
    icount: int | None = None


class BitmapInfo(NamedTuple):
    """A persistent bitmap: `granularity` in bytes; `flags` are "in-use" and "auto", as far as they are set."""

    name: str
    granularity: int
    flags: tuple[str, ...]


class ChildInfo(NamedTuple):
    """What an image lies on: its file, in the role "file"."""

    name: str
    info: ImageInfo


class ImageInfo(dict[str, "Any"]):
    """The facts of one image: attributes with types; as a dict, what `qemu-img info --output=json` prints.

    Where a fact is not there, its attribute is None or empty, and its key is missing. Text that is no UTF-8 has
    surrogate escapes.
    """

    def __repr__(self) -> str:
        return f"<ImageInfo of {self.filename!r}: {self.format}, {self.virtual_size} bytes>"

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as qemu-img's JSON has them, in its order: another dict each time, to be changed at will."""
        return {key: _copied(value) for key, value in self.items()}

    @property
    def filename(self) -> str:
        return str(self["filename"])

    @property
    def format(self) -> str:
        """qcow2, raw, or for a child the protocol: file."""
        return str(self["format"])

    @property
    def virtual_size(self) -> int:
        """Bytes of the disk, in whole sectors as QEMU counts them."""
        return int(self["virtual-size"])

    @property
    def actual_size(self) -> int | None:
        """Bytes that the file occupies, None where that is unknown."""
        return self.get("actual-size")

    @property
    def cluster_size(self) -> int | None:
        """Bytes of a cluster, None for a format without."""
        return self.get("cluster-size")

    @property
    def dirty_flag(self) -> bool:
        return bool(self.get("dirty-flag"))

    @property
    def encrypted(self) -> bool:
        return bool(self.get("encrypted"))

    @property
    def backing_filename(self) -> str | None:
        """The backing file as the image names it, None without one."""
        return self.get("backing-filename")

    @property
    def full_backing_filename(self) -> str | None:
        """The backing file as seen from where the image's own name is."""
        return self.get("full-backing-filename")

    @property
    def backing_filename_format(self) -> str | None:
        return self.get("backing-filename-format")

    @property
    def compat(self) -> str | None:
        """0.10 or 1.1, None for a raw file; so are the following attributes, down to `data_file`."""
        return self._specific("compat", str)

    @property
    def compression_type(self) -> str | None:
        return self._specific("compression-type", str)

    @property
    def refcount_bits(self) -> int | None:
        return self._specific("refcount-bits", int)

    @property
    def lazy_refcounts(self) -> bool | None:
        return self._specific("lazy-refcounts", bool)

    @property
    def corrupt(self) -> bool | None:
        return self._specific("corrupt", bool)

    @property
    def extended_l2(self) -> bool | None:
        return self._specific("extended-l2", bool)

    @property
    def data_file(self) -> str | None:
        return self._specific("data-file", str)

    @property
    def data_file_raw(self) -> bool | None:
        return self._specific("data-file-raw", bool)

    @property
    def encrypt(self) -> dict[str, Any] | None:
        """How guest data is encrypted, as in the JSON; None where it is not."""
        found = self._specific("encrypt", dict)
        return None if found is None else {key: _copied(value) for key, value in found.items()}

    @property
    def snapshots(self) -> tuple[SnapshotInfo, ...]:
        return tuple(SnapshotInfo(**_named(one)) for one in self.get("snapshots", ()))

    @property
    def bitmaps(self) -> tuple[BitmapInfo, ...]:
        found = self._specific("bitmaps", list) or ()
        return tuple(BitmapInfo(one["name"], one["granularity"], tuple(one["flags"])) for one in found)

    @property
    def bitmaps_broken(self) -> str | None:
        """What is wrong with the bitmaps, None if nothing is: those that can be read are shown, none can be used."""
        return self._specific("bitmaps-broken", str)

    @property
    def children(self) -> tuple[ChildInfo, ...]:
        """The file in which the image lies, where it is a local one."""
        return tuple(ChildInfo(one["name"], ImageInfo(one["info"])) for one in self.get("children", ()))

    def _specific(self, key: str, kind: type[_T]) -> _T | None:
        found = self.get("format-specific", {}).get("data", {}).get(key)
        return found if isinstance(found, kind) else None


def _named(facts: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("-", "_"): value for key, value in facts.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(found) for key, found in value.items()}
    return [_copied(found) for found in value] if isinstance(value, list) else value
