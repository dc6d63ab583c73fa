"""qcow2c: read, write, check and take apart qcow2 disk images.

The public names are few, and each is imported when it is first used, because start-up is a cost like any other.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcow2c.disk.opening import open_image as open
    from qcow2c.dump import dump as dump
    from qcow2c.errors import Qcow2Error as Qcow2Error
    from qcow2c.image import Image as Image
    from qcow2c.ops import snapshots as snapshots
    from qcow2c.ops.amend import amend as amend
    from qcow2c.ops.check import check as check
    from qcow2c.ops.commit import commit as commit
    from qcow2c.ops.compact import compact as compact
    from qcow2c.ops.compare import compare as compare
    from qcow2c.ops.convert import convert as convert
    from qcow2c.ops.create import create as create
    from qcow2c.ops.diff import diff as diff
    from qcow2c.ops.export import export as export
    from qcow2c.ops.measure import measure as measure
    from qcow2c.ops.patch import patch as patch
    from qcow2c.ops.rebase import rebase as rebase
    from qcow2c.ops.repair import repair as repair
    from qcow2c.ops.repair import undo_repair as undo_repair
    from qcow2c.ops.resize import resize as resize

__version__ = "0.1.0"

_HOMES = {
    "Image": ("qcow2c.image", "Image"),
    "Qcow2Error": ("qcow2c.errors", "Qcow2Error"),
    "amend": ("qcow2c.ops.amend", "amend"),
    "check": ("qcow2c.ops.check", "check"),
    "commit": ("qcow2c.ops.commit", "commit"),
    "compact": ("qcow2c.ops.compact", "compact"),
    "compare": ("qcow2c.ops.compare", "compare"),
    "convert": ("qcow2c.ops.convert", "convert"),
    "create": ("qcow2c.ops.create", "create"),
    "diff": ("qcow2c.ops.diff", "diff"),
    "dump": ("qcow2c.dump", "dump"),
    "export": ("qcow2c.ops.export", "export"),
    "measure": ("qcow2c.ops.measure", "measure"),
    "open": ("qcow2c.disk.opening", "open_image"),
    "patch": ("qcow2c.ops.patch", "patch"),
    "rebase": ("qcow2c.ops.rebase", "rebase"),
    "repair": ("qcow2c.ops.repair", "repair"),
    "undo_repair": ("qcow2c.ops.repair", "undo_repair"),
    "resize": ("qcow2c.ops.resize", "resize"),
    "snapshots": ("qcow2c.ops.snapshots", ""),
}
"""Module and attribute of each name; without an attribute it is the module."""

__all__ = [
    "Image",
    "Qcow2Error",
    "amend",
    "check",
    "commit",
    "compact",
    "compare",
    "convert",
    "create",
    "diff",
    "dump",
    "export",
    "measure",
    "open",
    "patch",
    "rebase",
    "repair",
    "resize",
    "snapshots",
    "undo_repair",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value: Any = import_module(module)
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value  # A submodule of the same name must not hide the function.
    return value
