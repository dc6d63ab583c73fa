"""The layers of a chain, and the files that they lie in. `layers_of` is the one way down."""

from __future__ import annotations

from collections.abc import Iterator

from qcow2c.layers.layer import Layer


def layers_of(top: Layer | None) -> Iterator[Layer]:
    """Yield the layers of a chain from the top one."""
    while top is not None:
        yield top
        top = top.backing


def files_of(layer: Layer) -> frozenset[object]:
    """Return what the files of a layer are: the identities of its stores."""
    return frozenset((layer.store.identity(), layer.data_store.identity()))
