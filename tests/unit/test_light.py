"""Classes of named fields: as those of `dataclasses`, and for those who use that they are some."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from functools import cached_property
from pathlib import Path

import pytest

from qcow2c.light import Generic, NamedTuple, Protocol, TypedDict, TypeVar, each, frozen, mutable, overload, replace


@frozen
class Place:
    offset: int
    length: int = 8
    """A text behind a field is nothing to it."""
    parts: tuple[int, ...] = ()

    @cached_property
    def end(self) -> int:
        return self.offset + self.length


@mutable
class Tally:
    name: str
    found: list[int] = each(factory=list)
    count: int = 0


@frozen
class Settled:
    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", int(self.size))


def test_fields_are_given_by_place_or_by_name_and_have_defaults() -> None:
    assert Place(1, 2) == Place(length=2, offset=1) != Place(1)
    assert (Place(1).length, Place.length) == (8, 8)
    assert repr(Place(1, 2)) == "Place(offset=1, length=2, parts=())"
    for wrong in (Place, lambda: Place(1, size=2), lambda: Place(1, 2, (), 4)):  # type: ignore[call-arg]
        with pytest.raises(TypeError, match=r"__init__\(\)"):
            wrong()


def test_a_frozen_object_cannot_be_changed_and_can_be_a_key() -> None:
    place = Place(1)
    with pytest.raises(AttributeError, match="cannot change field 'offset' of Place"):
        place.offset = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del place.offset
    assert {place: 1}[Place(1)] == 1
    assert place.end == 9 and place == Place(1), "a value that is kept is no field"


def test_a_mutable_object_has_lists_of_its_own_and_is_no_key() -> None:
    one, other = Tally("a"), Tally("a")
    one.found.append(1)
    one.count += 1
    assert (other.found, other.count) == ([], 0) and one != other
    assert Tally("b", [3]).found == [3]
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


def test_what_is_settled_at_the_end_of_init_is_settled() -> None:
    assert repr(Settled(size=True)) == "Settled(size=1)"


def test_replace_makes_another_object() -> None:
    assert replace(Place(1, 2), offset=5) == Place(5, 2)
    with pytest.raises(TypeError):
        replace(Place(1), size=5)


def test_objects_are_copied_pickled_and_matched() -> None:
    place = Place(1, 2, (3,))
    assert copy.copy(place) == copy.deepcopy(place) == pickle.loads(pickle.dumps(place)) == place
    match place:
        case Place(offset, 2):
            assert offset == 1
        case _:
            pytest.fail("no match")


def test_the_functions_of_dataclasses_take_them() -> None:
    place = Place(1, 2)
    assert dataclasses.is_dataclass(Place) and dataclasses.is_dataclass(place)
    assert [field.name for field in dataclasses.fields(Place)] == ["offset", "length", "parts"]
    assert [field.default for field in dataclasses.fields(Place)][1:] == [8, ()]
    assert dataclasses.fields(Tally)[1].default_factory is list
    assert dataclasses.asdict(place) == {"offset": 1, "length": 2, "parts": ()}
    assert dataclasses.replace(place, length=3) == Place(1, 3)
    assert dataclasses.asdict(Tally("a")) == {"name": "a", "found": [], "count": 0}


class Extent(NamedTuple):
    """Some bytes."""

    start: int
    length: int = 8
    """A text behind a field is nothing to it."""

    @property
    def end(self) -> int:
        return self.start + self.length

    @classmethod
    def whole(cls) -> Extent:
        return cls(0)


def test_named_tuples_are_those_of_typing() -> None:
    extent = Extent(1, length=2)
    assert extent == (1, 2) and extent._replace(start=5) == (5, 2) and extent._asdict() == {"start": 1, "length": 2}
    assert (extent.end, Extent.whole(), Extent._fields) == (3, (0, 8), ("start", "length"))
    assert Extent._field_defaults == {"length": 8} and Extent.__annotations__ == {"start": "int", "length": "int"}
    assert (Extent.__doc__, Extent.__module__, Extent.__qualname__) == ("Some bytes.", __name__, "Extent")
    assert repr(extent) == "Extent(start=1, length=2)"
    assert pickle.loads(pickle.dumps(extent)) == extent and type(copy.copy(extent)) is Extent
    assert not hasattr(extent, "__dict__")
    with pytest.raises(AttributeError):
        extent.start = 2  # type: ignore[misc]


def test_a_class_below_a_named_tuple_is_an_ordinary_one() -> None:
    class Named(Extent):
        name = "x"

    assert Named(3).end == 11 and Named(3).name == "x" and type(Named) is type


KindT = TypeVar("KindT", bound=object)


class Shelf(Generic[KindT]):
    def __init__(self, held: KindT) -> None:
        self.held = held


class Sized(Protocol):
    def size(self) -> int: ...


class Choices(TypedDict, total=False):
    depth: int


def test_what_only_types_need_is_nothing_at_run_time() -> None:
    class IntShelf(Shelf[int]):
        pass

    @overload
    def same(value: int) -> int: ...
    @overload
    def same(value: str) -> str: ...
    def same(value: int | str) -> int | str:
        return value

    assert IntShelf(3).held == 3 and Shelf[int] is Shelf
    assert same(3) == 3
    assert issubclass(Sized, object) and Choices.__annotations__ == {"depth": "int"}
    assert Choices(depth=1) == {"depth": 1}


def test_neither_dataclasses_nor_typing_is_imported(project_root: Path) -> None:
    script = "import sys, qcow2c.light; print({'dataclasses', 'inspect', 'typing'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=project_root, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
