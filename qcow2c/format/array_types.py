"""The types of the arrays that table words and counts are kept in. For annotations: numpy is not imported by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

U64Array: TypeAlias = "NDArray[np.uint64]"
"""Table words, offsets, lengths, counts."""

I64Array: TypeAlias = "NDArray[np.int64]"
"""Indices, and differences of counts."""
