"""The layers of a chain, and the files that they lie in."""

from __future__ import annotations

from collections.abc import Iterator

from qcow2c.layers.layer import Layer, RawLayer
from qcow2c.layers.reader import Reader


def _image_files(top: Layer) -> list[object]:
    """Return what the files of each image of a chain are, None for a raw one: two places in it can hold the same."""
    return [files_of(layer) if isinstance(layer, Reader) else None for layer in layers_of(top)]


def files_of(layer: Reader | RawLayer) -> frozenset[object]:
    """Return what the files of a layer are."""
    data_store = layer.data_store if isinstance(layer, Reader) else layer.store
    return frozenset((layer.store.identity(), data_store.identity()))


def layers_of(top: Layer | None) -> Iterator[Reader | RawLayer]:
    """Yield the layers of a chain from the top one."""
    while isinstance(top, Reader | RawLayer):
        yield top
        top = top.backing if isinstance(top, Reader) else None
