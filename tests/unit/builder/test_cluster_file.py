"""A file of whole clusters: what no field of the format can say is refused."""

from __future__ import annotations

import numpy as np
import pytest

from qcow2c.builder.cluster_file import ClusterFile
from qcow2c.errors import (
    LimitExceeded,
)
from qcow2c.format.geometry import Geometry
from qcow2c.storage.sources import WritableMemory


def test_what_no_field_can_say_is_refused() -> None:
    file = ClusterFile(WritableMemory(bytearray()), Geometry(9, 1))
    with pytest.raises(LimitExceeded, match="4 references to a cluster, more than 3"):
        file.append(bytes(512), np.array([4]))
    file = ClusterFile(WritableMemory(bytearray()), Geometry(9, 6))
    file.clusters = 1 << 27
    with pytest.raises(LimitExceeded, match="refcount table of more than"):
        file.append_refcounts()
