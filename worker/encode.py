"""Pixels to the bytes of a file."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.formats import FORMATS, ImageFormat


def encode(pixels: NDArray[np.uint8], image_format: ImageFormat) -> bytes:
    """An image file of `pixels`, (height, width, 3) RGB. The same give the same with one Pillow."""
    image = Image.fromarray(pixels)
    file, how = BytesIO(), FORMATS[image_format]
    image.save(file, how.pillow, **how.options)
    return file.getvalue()
