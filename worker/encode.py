"""Pixels to the bytes of a file."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.requests import ImageFormat

JPEG_QUALITY = 95  # visually lossless; training sets should not carry block artefacts
PNG_LEVEL = 4  # within a few per cent of the smallest, at half the time


def encode(pixels: NDArray[np.float32], image_format: ImageFormat) -> bytes:
    """An image file of `pixels`, (height, width, 3) RGB in [0, 1].

    Rounds to 8 bits as diffusers does (VaeImageProcessor.numpy_to_pil). JPEG keeps full colour
    resolution (4:4:4). The same pixels give the same bytes with the same Pillow.
    """
    image = Image.fromarray((pixels * 255).round().astype(np.uint8))
    file = BytesIO()
    if image_format == "jpeg":
        image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")
    else:
        image.save(file, "PNG", compress_level=PNG_LEVEL)
    return file.getvalue()
