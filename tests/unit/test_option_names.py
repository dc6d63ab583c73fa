"""Options of public functions: each one is listed, under the same name wherever it is taken, and no other is taken."""

from __future__ import annotations

import inspect
import pkgutil
from dataclasses import fields
from typing import Any

import pytest

import qcow2c
from qcow2c import ops
from qcow2c.builder.options import CreateOptions, NewImageOptions
from qcow2c.copy.options import CopyOptions, How
from qcow2c.disk.opening import Opening, open_image
from qcow2c.ops.amend import Amendment, AmendOptions
from qcow2c.ops.create import create


def types_of(kind: Any) -> dict[str, object]:
    return {field.name: field.type for field in fields(kind)}


def declared(options: Any) -> dict[str, object]:
    return {name: getattr(kind, "__forward_arg__", kind) for name, kind in options.__annotations__.items()}


@pytest.mark.parametrize(
    ("options", "kind"), [(NewImageOptions, CreateOptions), (CopyOptions, How), (AmendOptions, Amendment)]
)
def test_keyword_options_are_the_fields_of_what_they_make(options: Any, kind: Any) -> None:
    expected = types_of(kind)
    if kind is CreateOptions:
        del expected["size"]
    assert declared(options) == expected


def test_create_takes_each_option_with_its_default() -> None:
    taken = inspect.signature(create).parameters
    for field in fields(CreateOptions):
        if field.name != "size":
            assert taken[field.name].default == field.default, field.name


def test_what_opens_by_the_way_takes_what_open_takes() -> None:
    taken = inspect.signature(open_image).parameters
    assert declared(Opening) == {name: taken[name].annotation for name in taken if name not in ("source", "mode")}


def test_public_functions_list_their_options() -> None:
    for module in pkgutil.iter_modules(ops.__path__, "qcow2c.ops."):
        for name, found in vars(pkgutil.resolve_name(module.name)).items():
            if inspect.isfunction(found) and found.__module__.startswith("qcow2c.") and not name.startswith("_"):
                keywords = [one for one in inspect.signature(found).parameters.values() if one.kind is one.VAR_KEYWORD]
                assert all(str(one.annotation).startswith("Unpack[") for one in keywords), f"{module.name}.{name}"


def test_a_misspelled_option_of_create_is_refused() -> None:
    misspelled: dict[str, Any] = {"cluster_sise": 512}
    with pytest.raises(TypeError, match="cluster_sise"):
        qcow2c.create(bytearray(), 0, **misspelled)
