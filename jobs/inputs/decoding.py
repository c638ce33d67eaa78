"""How much is decoded at a time: checked bytes to pixels, within a budget of a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CDLL
from dataclasses import dataclass, field
from io import BytesIO
from threading import Condition
from typing import NamedTuple

from PIL import Image, ImageOps
from PIL.Image import Resampling

from jobs.inputs.images import FORMATS, check_pixels, open_image, open_mask

PIXELS = 2 * 2**26  # two of the largest; each takes up to 350 MB while it is decoded
SMALL = 2**22  # pixels


class Decoded(NamedTuple):
    """An image, and the width and height that it has by itself, before it was scaled."""

    image: Image.Image
    size: tuple[int, int]


@dataclass
class Decoding:
    """Decodes in as many threads as ask, as long as their images have at most `pixels` together.

    Small images are not counted, so that they wait for no large ones; threads are few.
    """

    pixels: int = PIXELS
    small: int = SMALL
    _taken: int = 0
    _freed: Condition = field(default_factory=Condition)

    def open(
        self, data: bytes, field: str = "image", size: tuple[int, int] | None = None
    ) -> Decoded:
        """As open_image; then, if a size is given, scaled to cover it and cropped to it.

        Not decoded at a smaller scale, as formats offer: the pixels would be others.
        """
        with self._turn(data):
            return _fitted(open_image(data, field), size, Resampling.LANCZOS)

    def open_mask(self, data: bytes, field: str, size: tuple[int, int]) -> Decoded:
        """As open_mask, then scaled and cropped like its image."""
        with self._turn(data):
            # Lanczos would leave rings around what is to be repainted.
            return _fitted(open_mask(data, field), size, Resampling.BILINEAR)

    def check(self, data: bytes, field: str = "image") -> tuple[int, int]:
        """As check_pixels."""
        with self._turn(data):
            return check_pixels(data, field)

    def check_mask(self, data: bytes, field: str) -> tuple[int, int]:
        """The width and height of a mask. Raises as open_mask."""
        with self._turn(data):
            return open_mask(data, field).size

    @contextmanager
    def _turn(self, data: bytes) -> Iterator[None]:
        width, height = Image.open(BytesIO(data), formats=FORMATS).size
        share = width * height if width * height > self.small else 0
        with self._freed:
            self._freed.wait_for(
                lambda: not (share and self._taken) or self._taken + share <= self.pixels
            )
            self._taken += share
        try:
            yield
        finally:
            if share:
                give_back()
            with self._freed:
                self._taken -= share
                self._freed.notify_all()


def _fitted(image: Image.Image, size: tuple[int, int] | None, how: Resampling) -> Decoded:
    return Decoded(ImageOps.fit(image, size, how) if size else image, image.size)


def give_back() -> None:
    """Have the C library return to the system what was freed.

    glibc keeps it for the thread that had it, so that each of many threads would hold a large
    image's memory long after its turn.
    """
    if trim := getattr(CDLL(None), "malloc_trim", None):  # other C libraries keep nothing
        trim(0)
