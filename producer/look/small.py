"""Small pictures, alone and side by side. Their files may be anybody's."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from PIL import Image, ImageOps

from jobs.errors import InvalidRequest
from jobs.inputs.images import FORMATS, InputPolicy, check_image

QUALITY = 55  # of WebP: a page of 40 photographs has less than 300 kB
LIMITS = InputPolicy()


def shrink(data: bytes, side: int) -> Image.Image:
    """The pixels of an image file, at most so many a side.

    Raises:
        InvalidRequest: it is no image, is damaged, or has too many pixels.
    """
    check_image(data, LIMITS)
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
        image.draft("RGB", (side, side))  # a JPEG decodes smaller at once
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return image.convert("RGB")
    except Exception as error:  # decoders meet hostile bytes with exceptions of every kind
        raise InvalidRequest("", "the image file is damaged", "input_not_an_image") from error


def join(
    images: Sequence[Image.Image], side: int, columns: int, rows: int = 1, gap: int = 0
) -> Image.Image:
    """Images in rows of squares, from the top left; what is not square is shown whole, on nothing.

    side, gap: pixels.
    """
    across = side + gap
    sheet = Image.new("RGBA", (columns * across - gap, rows * across - gap))
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        square = ImageOps.contain(image, (side, side))
        x, y = (side - square.width) // 2, (side - square.height) // 2
        sheet.paste(square, (column * across + x, row * across + y))
    return sheet


def encode(image: Image.Image) -> bytes:
    """A WebP file."""
    file = BytesIO()
    image.save(file, "WEBP", quality=QUALITY, method=4)
    return file.getvalue()
