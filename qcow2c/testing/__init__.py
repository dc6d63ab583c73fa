"""Property-testing of programs that read or write qcow2: Hypothesis strategies, a state machine, a contract of stores.

`from_schema` makes values of any structure that `qcow2c.structs` declares; `image_options`, `operations` and
`write_histories` draw whole images and what is done to them, `images` makes such images; `ImageMachine` holds a writer
against a model, and `StoreContract` a store. It needs Hypothesis: the extra `qcow2c[testing]`.

May import: ops.
"""

from __future__ import annotations

try:
    import hypothesis as _hypothesis  # noqa: F401
except ImportError as exc:
    raise ImportError("qcow2c.testing needs Hypothesis: pip install 'qcow2c[testing]'") from exc

from qcow2c.testing.histories import Action, Operation, operations, write_histories
from qcow2c.testing.images import Backing, ImageOptions, image_options, images
from qcow2c.testing.machine import ImageMachine
from qcow2c.testing.schemas import (
    bitmap_table_entries,
    extended_l2_entries,
    from_schema,
    l1_entries,
    l2_entries,
    stored,
)
from qcow2c.testing.stores import Made, StoreContract, WritableStoreContract

__all__ = [
    "Action",
    "Backing",
    "ImageMachine",
    "ImageOptions",
    "Made",
    "Operation",
    "StoreContract",
    "WritableStoreContract",
    "bitmap_table_entries",
    "extended_l2_entries",
    "from_schema",
    "image_options",
    "images",
    "l1_entries",
    "l2_entries",
    "operations",
    "stored",
    "write_histories",
]
