"""qcow2c.testing as a whole."""

from __future__ import annotations

import importlib
import sys

import pytest


def test_without_hypothesis_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("qcow2c.testing")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match=r"qcow2c\[testing\]"):
        importlib.import_module("qcow2c.testing")
