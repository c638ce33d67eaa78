"""Pixels to the bytes of a file."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.formats import FORMATS, ImageFormat
from jobs.marks import saved_with


def encode(
    pixels: NDArray[np.uint8], image_format: ImageFormat, mark: bytes = b"", text: str = ""
) -> bytes:
    """An image file of `pixels`, (height, width, 3) RGB, with a mark and a text if there are any.

    The same give the same with one Pillow.
    """
    image = Image.fromarray(pixels)
    file, how = BytesIO(), FORMATS[image_format]
    image.save(file, how.pillow, **how.options, **saved_with(image_format, mark, text))
    return file.getvalue()
