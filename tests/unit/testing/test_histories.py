"""What the strategies of histories draw: operations that lie on the disk."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qcow2c import testing


@given(st.integers(0, 1 << 20), st.sampled_from([512, 4096, 65536]), st.data())
def test_operations_lie_on_the_disk(size: int, cluster_size: int, data: st.DataObject) -> None:
    for operation in data.draw(testing.write_histories(size, cluster_size, max_length=4)):
        assert 0 <= operation.offset <= operation.offset + operation.length <= size
        if operation.action is testing.Action.COMPRESS:
            assert operation.offset % cluster_size == 0
        assert len(operation.data) == operation.length
