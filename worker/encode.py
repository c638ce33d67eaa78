"""Pixels to the bytes of a file."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.formats import FORMATS, ImageFormat


def encode(pixels: NDArray[np.float32], image_format: ImageFormat) -> bytes:
    """An image file of `pixels`, (height, width, 3) RGB in [0, 1].

    Rounds to 8 bits as diffusers does (VaeImageProcessor.numpy_to_pil). The same pixels give the
    same bytes with the same Pillow.
    """
    image = Image.fromarray((pixels * 255).round().astype(np.uint8))
    file, how = BytesIO(), FORMATS[image_format]
    image.save(file, how.pillow, **how.options)
    return file.getvalue()
