"""Image formats that results are stored in: one table, an entry a format. Imports no image library.

To add one, add its name and its entry; everything else reads them here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ImageFormat = Literal["jpeg", "png"]


@dataclass(frozen=True, slots=True)
class Format:
    """extension: of files; media_type: of HTTP; also: other names that requests may give it;
    pillow: Pillow's name; options: how Pillow saves it."""

    extension: str
    media_type: str
    pillow: str
    also: tuple[str, ...] = ()
    options: Mapping[str, int | str] = field(default_factory=dict)


FORMATS: Mapping[ImageFormat, Format] = {
    # 95: visually lossless; training sets should not carry block artefacts.
    "jpeg": Format("jpg", "image/jpeg", "JPEG", ("jpg",), {"quality": 95, "subsampling": "4:4:4"}),
    # 4: within a few per cent of the smallest, at half the time.
    "png": Format("png", "image/png", "PNG", (), {"compress_level": 4}),
}

_NAMED: Mapping[str, ImageFormat] = {
    name: key for key, entry in FORMATS.items() for name in (key, *entry.also)
}


def format_named(name: str) -> ImageFormat | None:
    """The format that a request's word means; None if results cannot be stored in it."""
    return _NAMED.get(name)
