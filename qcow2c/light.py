"""Classes of named fields, and what else of `typing` and `dataclasses` is needed at run time, at little cost.

The modules that a short command needs import neither: `dataclasses` imports `inspect` and all that it needs, and
compiles several functions for each class; `typing` checks each field of a named tuple. Together that was a quarter of
what `info` took. For mypy the names are those of `typing`; what only annotations use stands under `TYPE_CHECKING`.

`frozen` and `mutable` make of a class what `dataclasses.dataclass` does, with and without `frozen=True`, and for mypy
and the functions of `dataclasses` they are the same.

Nothing here knows the format.
"""

from __future__ import annotations

from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, dataclass_transform
    from typing import Generic as Generic
    from typing import NamedTuple as NamedTuple
    from typing import Protocol as Protocol
    from typing import TypedDict as TypedDict
    from typing import TypeVar as TypeVar
    from typing import overload as overload

    T = TypeVar("T")
else:

    class _NamedTupleMaker(type):
        """Makes a class statement a named tuple: what is annotated in it are the fields."""

        def __new__(cls, name, _bases, members):
            fields = members.get("__annotations__", {})
            defaults = [members[field] for field in fields if field in members]
            made = namedtuple(name, fields, defaults=defaults, module=members["__module__"])
            for member, value in members.items():
                if member not in fields:
                    setattr(made, member, value)
            return made

    NamedTuple = type.__new__(_NamedTupleMaker, "NamedTuple", (), {})

    class Protocol:
        """A class for mypy alone."""

    class TypedDict(dict):
        """A dictionary, whose keys only mypy checks."""

        def __init_subclass__(cls, **_facts):
            pass

    class Generic:
        """A class that may be given types, and stays what it is."""

        def __class_getitem__(cls, _types):
            return cls

    def TypeVar(name, **_facts):
        return name

    def overload(function):
        return function

    def dataclass_transform(**_facts):
        return lambda decorator: decorator


class _Each:
    def __init__(self, factory: Callable[[], Any]) -> None:
        self.factory = factory


def each(*, factory: Callable[[], T]) -> T:
    """Return the default of a field that is made for each object, as a list is."""
    default: Any = _Each(factory)
    return default  # type: ignore[no-any-return]


@dataclass_transform(field_specifiers=(each,))
def mutable(cls: type[T]) -> type[T]:
    """Give a class whose annotations are its fields __init__, which calls __post_init__, __eq__ and __repr__."""
    names = tuple(cls.__annotations__)
    init = _init(cls, names, {name: vars(cls)[name] for name in names if name in vars(cls)})
    _give(cls, __init__=init, __eq__=_equals, __hash__=None, __repr__=_shown)
    _give(cls, __match_args__=names, __dataclass_fields__=_DataclassFields())
    return cls


@dataclass_transform(frozen_default=True, field_specifiers=(each,))
def frozen(cls: type[T]) -> type[T]:
    """The same, and objects refuse to be changed, and can be hashed."""
    _give(mutable(cls), __setattr__=_refuse, __delattr__=_refuse, __hash__=_hashed)
    return cls


def replace(instance: T, **changes: Any) -> T:
    """Return another object of such a class, with other values of some fields."""
    return type(instance)(**dict(zip(_names(instance), _values(instance), strict=True)) | changes)


def _give(cls: type[Any], **members: object) -> None:
    for name, member in members.items():
        setattr(cls, name, member)


def _init(cls: type[Any], names: tuple[str, ...], defaults: dict[str, Any]) -> Any:
    """Return what sets the fields: compiled, as for a named tuple, so that it is as fast as one that is written out."""
    parameters, lines = [], []
    for name in names:
        is_made = isinstance(defaults.get(name), _Each)
        parameters.append(f"{name}=_defaults[{name!r}]" if name in defaults else name)
        value = f"{name}.factory() if isinstance({name}, _Each) else {name}" if is_made else name
        lines.append(f"_set(self, {name!r}, {value})")
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    space = {"_defaults": defaults, "_set": object.__setattr__, "_Each": _Each}
    exec(f"def __init__(self, {', '.join(parameters)}):\n    " + "\n    ".join(lines), space)
    return space["__init__"]


def _names(instance: Any) -> tuple[str, ...]:
    names: tuple[str, ...] = instance.__match_args__
    return names


def _values(instance: object) -> tuple[Any, ...]:
    return tuple([getattr(instance, name) for name in _names(instance)])


def _equals(self: object, other: object) -> bool:
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def _hashed(self: object) -> int:
    return hash(_values(self))


def _shown(self: object) -> str:
    fields = zip(_names(self), _values(self), strict=True)
    return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in fields)})"


def _refuse(self: object, name: str, *_value: object) -> NoReturn:
    raise AttributeError(f"cannot change field {name!r} of {type(self).__qualname__}")


class _DataclassFields:
    """The fields as `dataclasses` knows them, made when somebody asks: until then it is not imported."""

    def __get__(self, _instance: object, owner: Any) -> dict[str, Any]:
        from dataclasses import dataclass, field

        given = {name: vars(owner)[name] for name in owner.__match_args__ if name in vars(owner)}
        members = {
            name: field(default_factory=default.factory) if isinstance(default, _Each) else default
            for name, default in given.items()
        }
        alike: Any = dataclass(type(owner.__qualname__, (), members | {"__annotations__": owner.__annotations__}))
        return dict(alike.__dataclass_fields__)
