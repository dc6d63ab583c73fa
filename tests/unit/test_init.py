"""The public names of the package."""

from __future__ import annotations

import pytest

import qcow2c


def test_the_public_names_resolve_and_others_do_not() -> None:
    assert qcow2c.Image.__name__ == "Image"
    assert issubclass(qcow2c.Qcow2Error, Exception)
    with pytest.raises(AttributeError, match="nothing"):
        qcow2c.nothing  # noqa: B018
