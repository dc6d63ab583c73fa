"""qcow2c: read, write, check and take apart qcow2 disk images.

Open and create
    open               an image as a file object, an `Image`
    create             a new image, of any kind that the format knows
    Image              one state of a disk; its `snapshots` and `bitmaps`

Look
    info               what an image is: sizes, features, snapshots
    map                which bytes of a disk hold data, and where
    check              whether every reference and refcount is right
    report             a page about an image, for people
    hash_image         what a disk holds, the same in every format
    verify_image       whether it holds what a manifest says
    inspect            one verdict on a file from a stranger
    dump               every structure and every byte, as a `Dump`
    Dump               its tree of nodes, and that as text or JSON
    measure            how long a file will be
    compare            whether two disks are the same
    diff               where two images or snapshots differ

Change
    resize             another size
    snapshots          create, apply, delete and rename snapshots
    bitmap             add, remove, clear, enable, disable, merge
    amend              another version, refcount width, data file
    rebase             another backing file, the same disk
    commit             the data of an overlay into a layer below
    patch              differences, as `diff` streams them, over a disk

Keys of encrypted images
    Encryption         how a new image is encrypted
    key_slots          which slots are in use, and which a key opens
    add_key            another passphrase for an image
    remove_key         one less
    change_key         another one instead

Copy
    convert            qcow2 and raw to qcow2 and raw
    dd                 a part of a disk
    export             a snapshot as an image of its own
    compact            an image as small as it can be
    compact_in_place   the same, in the place of the image

Repair
    repair             what `check` found; says first what it will do
    undo_repair        the image as it was before
    recover            disks out of what is left of an image

Types of what is returned
    Inspection         of `inspect`: the verdict and its reasons
    Policy             of `inspect`: what is allowed
    ImageInfo          what `info` says: attributes, or `as_dict()`
    Extent             of `map` and `Image.extents`
    Bitmap             of `Image.bitmaps`, by name or position
    Snapshot           of `Image.snapshots`, by name or ID

Of one's own
    Store              bytes at offsets, under an image: a base class

Errors and structures
    Qcow2Error         the root of what is raised on purpose
    errors             the tree below it
    structs            every on-disk structure, declared once
    testing            strategies for tests; needs hypothesis, and
                       is imported by `import qcow2c.testing`

Each name is imported when it is first used: start-up is a cost.
"""

from __future__ import annotations

import sys
from types import ModuleType

if sys.version_info < (3, 11):  # noqa: UP036 - an installer would say so, but a checkout can be run without one
    _REASON = "qcow2c: Python 3.11 or newer is needed, and this is %d.%d" % sys.version_info[:2]  # noqa: UP031
    if sys.argv[:1] == ["-m"]:  # As `python -m qcow2c`: a line, and no traceback.
        sys.exit(_REASON)
    raise ImportError(_REASON)

TYPE_CHECKING = False  # Importing typing costs more than the rest of this file.
if TYPE_CHECKING:
    from qcow2c import errors as errors
    from qcow2c import structs as structs
    from qcow2c.bitmaps.stored import Bitmap as Bitmap
    from qcow2c.crypto.new_encryption import Encryption as Encryption
    from qcow2c.disk.image_info import ImageInfo as ImageInfo
    from qcow2c.disk.opening import open_image
    from qcow2c.dump import Dump as Dump
    from qcow2c.dump import dump as dump
    from qcow2c.errors import ChainError as ChainError
    from qcow2c.errors import CorruptData as CorruptData
    from qcow2c.errors import CorruptMetadata as CorruptMetadata
    from qcow2c.errors import GateRefused as GateRefused
    from qcow2c.errors import ImageLocked as ImageLocked
    from qcow2c.errors import LimitExceeded as LimitExceeded
    from qcow2c.errors import MissingKey as MissingKey
    from qcow2c.errors import NoSuchSnapshot as NoSuchSnapshot
    from qcow2c.errors import NotQcow2 as NotQcow2
    from qcow2c.errors import Qcow2Error as Qcow2Error
    from qcow2c.errors import SpaceKept as SpaceKept
    from qcow2c.errors import StoreError as StoreError
    from qcow2c.errors import UnsupportedFeature as UnsupportedFeature
    from qcow2c.errors import UsageError as UsageError
    from qcow2c.errors import WrongKey as WrongKey
    from qcow2c.forensic.policy import Policy as Policy
    from qcow2c.forensic.verdicts import Inspection as Inspection
    from qcow2c.image import Image as Image
    from qcow2c.internal_snapshots import Snapshot as Snapshot
    from qcow2c.layers.layer import Extent as Extent
    from qcow2c.ops import bitmaps
    from qcow2c.ops import snapshots as snapshots
    from qcow2c.ops.amend import amend as amend
    from qcow2c.ops.check import check as check
    from qcow2c.ops.commit import commit as commit
    from qcow2c.ops.compact import compact as compact
    from qcow2c.ops.compact import compact_in_place as compact_in_place
    from qcow2c.ops.compare import compare as compare
    from qcow2c.ops.convert import convert as convert
    from qcow2c.ops.create import create as create
    from qcow2c.ops.dd import dd as dd
    from qcow2c.ops.diff import diff as diff
    from qcow2c.ops.export import export as export
    from qcow2c.ops.hash import hash_image as hash_image
    from qcow2c.ops.hash import verify_image as verify_image
    from qcow2c.ops.info import info as info
    from qcow2c.ops.inspect import inspect as inspect
    from qcow2c.ops.keys import add_key as add_key
    from qcow2c.ops.keys import change_key as change_key
    from qcow2c.ops.keys import key_slots as key_slots
    from qcow2c.ops.keys import remove_key as remove_key
    from qcow2c.ops.map import map as map
    from qcow2c.ops.measure import measure as measure
    from qcow2c.ops.patch import patch as patch
    from qcow2c.ops.rebase import rebase as rebase
    from qcow2c.ops.recover import recover as recover
    from qcow2c.ops.repair import repair as repair
    from qcow2c.ops.repair import undo_repair as undo_repair
    from qcow2c.ops.report import report as report
    from qcow2c.ops.resize import resize as resize
    from qcow2c.storage.store import Store as Store

    open = open_image
    bitmap = bitmaps

__version__ = "0.1.0"

_HOMES = {
    "Bitmap": "qcow2c.bitmaps.stored:Bitmap",
    "ChainError": "qcow2c.errors:ChainError",
    "CorruptData": "qcow2c.errors:CorruptData",
    "CorruptMetadata": "qcow2c.errors:CorruptMetadata",
    "Dump": "qcow2c.dump:Dump",
    "Encryption": "qcow2c.crypto.new_encryption:Encryption",
    "Extent": "qcow2c.layers.layer:Extent",
    "GateRefused": "qcow2c.errors:GateRefused",
    "Image": "qcow2c.image:Image",
    "ImageInfo": "qcow2c.disk.image_info:ImageInfo",
    "ImageLocked": "qcow2c.errors:ImageLocked",
    "Inspection": "qcow2c.forensic.verdicts:Inspection",
    "LimitExceeded": "qcow2c.errors:LimitExceeded",
    "MissingKey": "qcow2c.errors:MissingKey",
    "NoSuchSnapshot": "qcow2c.errors:NoSuchSnapshot",
    "NotQcow2": "qcow2c.errors:NotQcow2",
    "Policy": "qcow2c.forensic.policy:Policy",
    "Qcow2Error": "qcow2c.errors:Qcow2Error",
    "Snapshot": "qcow2c.internal_snapshots:Snapshot",
    "SpaceKept": "qcow2c.errors:SpaceKept",
    "Store": "qcow2c.storage.store:Store",
    "StoreError": "qcow2c.errors:StoreError",
    "UnsupportedFeature": "qcow2c.errors:UnsupportedFeature",
    "UsageError": "qcow2c.errors:UsageError",
    "WrongKey": "qcow2c.errors:WrongKey",
    "add_key": "qcow2c.ops.keys:add_key",
    "amend": "qcow2c.ops.amend:amend",
    "bitmap": "qcow2c.ops.bitmaps",
    "change_key": "qcow2c.ops.keys:change_key",
    "check": "qcow2c.ops.check:check",
    "commit": "qcow2c.ops.commit:commit",
    "compact": "qcow2c.ops.compact:compact",
    "compact_in_place": "qcow2c.ops.compact:compact_in_place",
    "compare": "qcow2c.ops.compare:compare",
    "convert": "qcow2c.ops.convert:convert",
    "create": "qcow2c.ops.create:create",
    "dd": "qcow2c.ops.dd:dd",
    "diff": "qcow2c.ops.diff:diff",
    "dump": "qcow2c.dump:dump",
    "errors": "qcow2c.errors",
    "export": "qcow2c.ops.export:export",
    "hash_image": "qcow2c.ops.hash:hash_image",
    "info": "qcow2c.ops.info:info",
    "inspect": "qcow2c.ops.inspect:inspect",
    "key_slots": "qcow2c.ops.keys:key_slots",
    "map": "qcow2c.ops.map:map",
    "measure": "qcow2c.ops.measure:measure",
    "open": "qcow2c.disk.opening:open_image",
    "patch": "qcow2c.ops.patch:patch",
    "rebase": "qcow2c.ops.rebase:rebase",
    "remove_key": "qcow2c.ops.keys:remove_key",
    "recover": "qcow2c.ops.recover:recover",
    "repair": "qcow2c.ops.repair:repair",
    "report": "qcow2c.ops.report:report",
    "resize": "qcow2c.ops.resize:resize",
    "snapshots": "qcow2c.ops.snapshots",
    "structs": "qcow2c.structs",
    "undo_repair": "qcow2c.ops.repair:undo_repair",
    "verify_image": "qcow2c.ops.hash:verify_image",
}
"""Where each public name lives: `module:attribute`, or a module itself. The imports above say the same to mypy."""

__all__ = list(_HOMES)


if not TYPE_CHECKING:  # For mypy a name that is not listed above is an error.

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        module, _, attribute = _HOMES[name].partition(":")
        value = import_module(module)
        if attribute:
            value = getattr(value, attribute)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _Package(ModuleType):
    """This package: importing a submodule sets it here, except over a function of the same name, which is `dump`."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and ":" in _HOMES.get(name, "")):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
