"""Create an image: empty, over a backing file, or with an external data file. An existing file is replaced.

A LUKS volume (-f luks) is a raw disk that is encrypted; what was never written in it reads as noise.

The options and the output are those of qemu-img create; -o help lists the options of a format.

examples:
  qcow2c create -f qcow2 disk.qcow2 20G
  qcow2c create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2
  qcow2c create -f qcow2 -o cluster_size=128k,extended_l2=on,preallocation=metadata disk.qcow2 1T
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace

from qcow2c.cli import arguments, option_list, secrets, sizes, text
from qcow2c.cli.option_list import Option
from qcow2c.errors import UsageError
from qcow2c.light import TYPE_CHECKING
from qcow2c.storage.file_names import plain_path

if TYPE_CHECKING:
    from typing import Any


_EXTENT_SIZE = Option("extent_size_hint", "size", "Extent size hint for the image file, 0 to disable")
QCOW2_OPTIONS = (
    Option("backing_file", "str", "File name of a base image"),
    Option("backing_fmt", "str", "Image format of the base image"),
    Option("cluster_size", "size", "qcow2 cluster size"),
    Option("compat", "str", "Compatibility level (v2 [0.10] or v3 [1.1])"),
    Option("compression_type", "str", "Compression method used for image cluster compression"),
    Option("data_file", "str", "File name of an external data file"),
    Option("data_file_raw", "bool (on/off)", "The external data file must stay valid as a raw image"),
    *secrets.OPTIONS,
    Option("extended_l2", "bool (on/off)", "Extended L2 tables"),
    _EXTENT_SIZE,
    Option("lazy_refcounts", "bool (on/off)", "Postpone refcount updates"),
    Option("nocow", "bool (on/off)", "Turn off copy-on-write (valid only on btrfs)"),
    Option("preallocation", "str", "Preallocation mode (allowed values: off, metadata, falloc, full)"),
    Option("refcount_bits", "num", "Width of a reference count entry in bits"),
    Option("size", "size", "Virtual disk size"),
)
RAW_OPTIONS = (
    _EXTENT_SIZE,
    Option("nocow", "bool (on/off)", "Turn off copy-on-write (valid only on btrfs)"),
    Option("preallocation", "str", "Preallocation mode (allowed values: off, falloc, full)"),
    Option("size", "size", "Virtual disk size"),
)
OPTIONS = {"qcow2": QCOW2_OPTIONS, "raw": RAW_OPTIONS, "luks": secrets.VOLUME_OPTIONS}

SHOWN = {
    "qcow2": (
        "encryption",
        "encrypt.format",
        "encrypt.key-secret",
        "encrypt.cipher-alg",
        "encrypt.cipher-mode",
        "encrypt.ivgen-alg",
        "encrypt.ivgen-hash-alg",
        "encrypt.hash-alg",
        "encrypt.iter-time",
        "cluster_size",
        "extended_l2",
        "preallocation",
        "compression_type",
        "size",
        "compat",
        "backing_file",
        "backing_fmt",
        "data_file",
        "data_file_raw",
        "lazy_refcounts",
        "refcount_bits",
        "nocow",
        "extent_size_hint",
    ),
    "raw": ("size", "nocow", "preallocation", "extent_size_hint"),
    "luks": (
        "size",
        "key-secret",
        "cipher-alg",
        "cipher-mode",
        "ivgen-alg",
        "ivgen-hash-alg",
        "hash-alg",
        "iter-time",
    ),
}
"""The order in which the first line of output shows the options."""

ALWAYS_SHOWN: dict[str, dict[str, Any]] = {
    "qcow2": {
        "cluster_size": 65536,
        "extended_l2": False,
        "compression_type": "zlib",
        "lazy_refcounts": False,
        "refcount_bits": 16,
    },
    "raw": {},
    "luks": {},
}

_SIZE_ERROR = f"Invalid image size specified. {sizes.SUFFIXES_HELP}".replace("\n", " ")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("-f", "--format", metavar="FMT", default="raw", help="format: qcow2, luks, or raw (default)")
    parser.add_argument("-b", "--backing", metavar="FILE", help="backing file, relative to the directory of the image")
    parser.add_argument("-F", "--backing-format", metavar="FMT", help="format of the backing file")
    parser.add_argument(
        "-u", "--unsafe", "--backing-unsafe", action="store_true", help="do not look at the backing file"
    )
    arguments.add_creation_options(parser)
    arguments.add_object(parser)
    parser.add_argument("image", metavar="FILE", nargs="?", help="the image to create")
    parser.add_argument("size", metavar="SIZE", nargs="?", help="virtual disk size, with k, M, G, T, P or E")


def run(chosen: Namespace) -> int:
    if chosen.format not in OPTIONS:
        chosen.image = chosen.image or "create"
        raise UsageError(f"Unknown file format {chosen.format!r}: it can be qcow2, raw or luks")
    if option_list.asks_for_help(chosen.options):
        text.write(option_list.listing(chosen.format, OPTIONS[chosen.format]))
        return 0
    if chosen.image is None:
        text.complain("Expecting image file name", hint="qcow2c create --help")
        return 1
    try:
        options = _options(chosen)
    except ArgumentTypeError as exc:
        text.complain(str(exc))
        return 1
    settled = dict(options)
    if chosen.format != "raw":
        secrets.settle(settled, chosen.secrets, chosen.format)
    if not chosen.quiet:
        text.report(f"Formatting {_quoted(chosen.image)}, fmt={chosen.format} {_shown(chosen.format, options)}\n")
    _create(chosen.image, chosen.format, settled)
    return 0


def _options(chosen: Namespace) -> dict[str, Any]:
    """Return the options as values, the size among them. Raises ArgumentTypeError, UsageError, Qcow2Error."""
    size = None
    if chosen.size is not None:
        try:
            size = sizes.parse_size(chosen.size)
        except ArgumentTypeError as exc:
            raise ArgumentTypeError(_SIZE_ERROR) from exc
    options = option_list.parse(chosen.options, OPTIONS[chosen.format])
    if size is not None and "size" in options:
        raise UsageError("The image size must be specified only once")
    for name, given in (("backing_file", chosen.backing), ("backing_fmt", chosen.backing_format)):
        if given is not None:
            options[name] = given
    if chosen.format != "qcow2" and options.keys() & {"backing_file", "backing_fmt"}:
        raise UsageError(f"Backing file not supported for file format {chosen.format!r}")
    options["size"] = options.get("size", size)
    _look_at_backing(chosen, options)
    if options["size"] is None:
        raise UsageError("Image creation needs a size parameter")
    return options


def _look_at_backing(chosen: Namespace, options: dict[str, Any]) -> None:
    """Take the size from the backing file, which the new files must not be.

    Raises UsageError, and what opening the backing file raises.
    """
    backing = options.get("backing_file")
    if backing is None and "data_file" not in options:
        return
    from qcow2c.disk.apart import require_apart
    from qcow2c.ops.create import backing_size

    if backing == "":
        raise UsageError("Expected backing file name, got empty string")
    require_apart(
        chosen.image,
        backing_file=backing,
        backing_format=options.get("backing_fmt"),
        data_file=options.get("data_file"),
        with_chain=not chosen.unsafe,
    )
    if backing is None:
        return
    if not chosen.unsafe:
        found = backing_size(plain_path(chosen.image), backing, options.get("backing_fmt"))
        if options["size"] is None:
            options["size"] = found
    if options.get("backing_fmt") is None:
        raise UsageError("Backing file specified without backing format")


def _create(image: str, image_format: str, options: dict[str, Any]) -> None:
    from qcow2c.builder.empty_image import create_raw, create_volume, write_image
    from qcow2c.builder.options import CreateOptions

    if image_format == "raw":
        create_raw(image, **options)
    elif image_format == "luks":
        create_volume(image, options["size"], options["encryption"])
    else:
        write_image(image, CreateOptions(**options))


def _shown(image_format: str, options: dict[str, Any]) -> str:
    known = ALWAYS_SHOWN[image_format] | options
    return " ".join(f"{name}={_word(known[name])}" for name in SHOWN[image_format] if name in known)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return text.printable(str(value)).replace(",", ",,") if isinstance(value, str) else str(value)


def _quoted(name: str) -> str:
    return "'" + text.printable(name) + "'"
