"""What the strategies of images draw: valid options, sound images."""

from __future__ import annotations

from hypothesis import given, settings

import qcow2c
from qcow2c import testing
from qcow2c.builder.options import CreateOptions


@given(testing.image_options())
def test_options_are_valid(found: testing.ImageOptions) -> None:
    CreateOptions(found.size, **found.options).validate()
    assert len(found.content) == found.size


@settings(max_examples=25)
@given(testing.images())
def test_images_are_sound(data: bytes) -> None:
    result = qcow2c.check(data)
    assert result.exit_code in (0, 3)
    with qcow2c.open(data) as image:
        image.pread(image.size(), 0)
