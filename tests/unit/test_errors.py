"""Errors: what they say, and what they are to programs that know only Python's own."""

from __future__ import annotations

import copy
import errno
import pickle
from pathlib import Path

import pytest

from qcow2c.errors import CorruptMetadata, ImageLocked, Qcow2Error, Span, StoreError, doing
from qcow2c.storage.local_file import LocalFile
from qcow2c.storage.locks import Use
from qcow2c.storage.new_file import new_file


def test_errors_say_where_in_words() -> None:
    error = CorruptMetadata("wrong", where=Span(16, 8), guest=Span(4096, 1))
    assert str(error) == "wrong (file bytes 0x10..0x17, guest bytes 0x1000..0x1000)"
    assert str(CorruptMetadata("wrong")) == "wrong"


# --- errors of files ------------------------------------------------------------------------------------------------


def test_an_error_of_a_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    path = str(tmp_path / "none")
    with pytest.raises(OSError, match="Could not open") as caught:
        LocalFile(path)
    error = caught.value
    assert isinstance(error, StoreError)
    assert (error.errno, error.strerror, error.filename) == (errno.ENOENT, "No such file or directory", path)
    assert str(error) == f"Could not open {path!r}: No such file or directory"
    assert error.args == (str(error),)


def test_an_error_of_a_file_has_the_message_where_the_system_has_no_word(tmp_path: Path) -> None:
    error = StoreError("no more", where=Span(0, 1))
    assert (error.errno, error.strerror, error.filename) == (None, "no more", None)
    assert str(error) == "no more (file bytes 0x0..0x0)"
    with pytest.raises(StoreError, match="it is a directory") as caught:
        LocalFile(tmp_path)
    assert (caught.value.errno, caught.value.filename) == (None, str(tmp_path))


def test_an_error_names_a_file_as_the_caller_does(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "file")
    with pytest.raises(StoreError) as caught, new_file(tmp_path / "link", Use.WRITABLE_IMAGE):
        pass
    assert caught.value.filename == str(tmp_path / "link")
    assert str(caught.value) == f"Could not create {str(tmp_path / 'link')!r}: No such file or directory"


@pytest.mark.parametrize(
    "error",
    [
        CorruptMetadata("wrong", where=Span(16, 8), spec="Header"),
        StoreError("Could not read 'x'", where=Span(1, 2), errno=errno.EIO, filename="x"),
        ImageLocked("in use"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_goes_to_another_process_and_back(error: Qcow2Error) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert (str(again), vars(again), again.args) == (str(error), vars(error), error.args)
        for name in ("errno", "strerror", "filename"):
            assert getattr(again, name, None) == getattr(error, name, None)


# --- what was being done --------------------------------------------------------------------------------------------


def test_an_error_says_first_what_was_being_done() -> None:
    with pytest.raises(CorruptMetadata) as caught, doing("outside"), doing("inside", exit_code=4):
        raise CorruptMetadata("wrong", where=Span(16, 8))
    assert str(caught.value) == "outside: inside: wrong (file bytes 0x10..0x17)"
    assert (caught.value.exit_code, CorruptMetadata.exit_code) == (4, 1)


def test_what_was_being_done_is_no_business_of_other_errors() -> None:
    with pytest.raises(ValueError, match="other"), doing("something", exit_code=4):
        raise ValueError("other")
    with doing("nothing"):
        pass
