"""Input images: from what a user wrote to bytes that are known to be an image, and to pixels.

A reference is an http(s) URL, a data URI, base64, or "sha256:…", which names an input that lies in
storage already. Nothing that a user writes can name a file.
"""

from __future__ import annotations

import binascii
import re
import time
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO

from PIL import ExifTags, Image, ImageChops, ImageOps

from jobs.errors import InvalidRequest
from jobs.ids import STORED_INPUT
from jobs.inputs.fetching import TOTAL_SECONDS, Forbidden, TooLarge, Unreachable, fetch
from jobs.output import layout
from jobs.output.storage import Storage

MAX_SCANS = 100  # of a progressive JPEG, which has about ten
DECODE_SECONDS = 20.0  # of a processor, for one image; the largest ones take one to four
STRIP_ROWS = 256
HALF = 128  # of a mask's 255: from here on the image is repainted, as diffusers rounds

_ON_ITS_SIDE = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_JPEG, _SCAN = b"\xff\xd8", b"\xff\xda"  # nothing else in a JPEG's data looks like the latter

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")

MAX_DATA_HEADER = 256  # characters of a data URI before its base64

_NO_BREAKS = str.maketrans("", "", "\r\n")
_DATA = re.compile(r"data:[\w.+/-]*(?:;[\w.+=-]+)*;base64,", re.IGNORECASE)
_URL = re.compile(r"https?:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class InputPolicy:
    """What an input may be. hosts, seconds: see jobs.inputs.fetching.fetch."""

    max_bytes: int = 50 * 2**20
    max_pixels: int = 2**26
    hosts: frozenset[str] = frozenset()
    seconds: float = TOTAL_SECONDS


def load_input(
    reference: str, policy: InputPolicy, storage: Storage | None = None, field: str = "image"
) -> bytes:
    """The original bytes of an input; a supported image of an allowed size by its header.

    storage: where "sha256:…" is found; without it there is no such reference.
    field: what an error names.

    Raises:
        InvalidRequest: code input_unreachable, input_forbidden, input_too_large or
            input_not_an_image.
    """
    data = read_input(reference, policy, storage, field)
    check_image(data, policy, field)
    return data


def read_input(
    reference: str, policy: InputPolicy, storage: Storage | None = None, field: str = "image"
) -> bytes:
    """As load_input, of whatever bytes: no decoder has seen them."""
    if storage is None or (stored := STORED_INPUT.fullmatch(reference)) is None:
        return _read(reference, policy, field)
    try:
        return storage.read(layout.stored_input(stored[1]))
    except FileNotFoundError as error:
        raise InvalidRequest(field, f"no stored input {reference}", "input_unreachable") from error


def store_input(storage: Storage, data: bytes) -> str:
    """Store checked bytes; returns the reference that names them."""
    digest = sha256(data).hexdigest()
    if not storage.exists(layout.stored_input(digest)):
        storage.write(layout.stored_input(digest), data)
    return f"sha256:{digest}"


def check_image(data: bytes, policy: InputPolicy, field: str = "image") -> None:
    """Refuse what is no supported image, or has too many bytes or pixels. Decodes nothing.

    Raises:
        InvalidRequest: code input_too_large or input_not_an_image.
    """
    if len(data) > policy.max_bytes:
        raise _too_large(field, policy)
    # A scan is a pass over all pixels, and a small file can ask for thousands.
    if data.startswith(_JPEG) and data.count(_SCAN) > MAX_SCANS:
        raise InvalidRequest(field, f"more than {MAX_SCANS} JPEG scans", "input_too_large")
    width, height = _sniff(data, policy, field).size
    if width * height > policy.max_pixels:
        raise InvalidRequest(
            field,
            f"{width} x {height} pixels; at most {policy.max_pixels} are taken",
            "input_too_large",
        )


def open_image(data: bytes, field: str = "image", seconds: float = DECODE_SECONDS) -> Image.Image:
    """The pixels of checked bytes: upright, RGB, transparency on white.

    seconds: the most that decoding may compute. WebP and TIFF are decoded at one go, so that only
        their pixels bound it.

    Raises:
        InvalidRequest: input_not_an_image, as the file is damaged; input_too_large, as it takes
            too long.
    """
    try:
        image = _upright(data, seconds)
        if image.has_transparency_data:
            return _on_white(image)
        if image.mode.startswith("I"):
            image = _of_16_bits(image)
        return image.convert("RGB")
    except Exception as error:  # decoders meet hostile bytes with exceptions of every kind
        raise _damaged(field, error) from error


def open_mask(
    data: bytes, field: str = "mask_image", seconds: float = DECODE_SECONDS
) -> Image.Image:
    """The pixels of a checked mask, upright, mode "L": white where the image is to be repainted.

    A file with transparency says that by its transparent parts, any other by its white ones.

    Raises:
        InvalidRequest: as open_image; or it repaints nothing.
    """
    try:
        image = _upright(data, seconds)
        if by_alpha := image.has_transparency_data:
            mask = _transparent(image)
        elif image.mode.startswith("I"):
            mask = _of_16_bits(image)
        else:
            mask = image.convert("L")
    except Exception as error:  # as above
        raise _damaged(field, error) from error
    if mask.getextrema()[1] < HALF:  # type: ignore[operator]  # of one band
        shown = "is transparent" if by_alpha else "is white, and none can be transparent"
        raise InvalidRequest(field, f"repaints nothing: no pixel {shown}")
    return mask


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height of a checked image as its file holds it, upright or not. Decodes nothing."""
    return Image.open(BytesIO(data), formats=FORMATS).size


def check_mask(size: tuple[int, int], image: tuple[int, int]) -> None:
    """Refuse a mask of another size than its image's.

    Raises:
        InvalidRequest: it names both.
    """
    if size != image:
        sizes = "{} x {} pixels, but the image has {} x {}".format(*size, *image)
        raise InvalidRequest("mask_image", sizes)


def check_pixels(
    data: bytes, field: str = "image", seconds: float = DECODE_SECONDS
) -> tuple[int, int]:
    """Decode checked bytes once, as they are, and keep only their width and height, upright.

    Raises:
        InvalidRequest: as open_image.
    """
    try:
        image = Image.open(_Timed(data, seconds), formats=FORMATS)
        image.load()
        turned = image.getexif().get(ExifTags.Base.Orientation) in _ON_ITS_SIDE
        return image.size[::-1] if turned else image.size
    except Exception as error:  # as above
        raise _damaged(field, error) from error


def _damaged(field: str, error: Exception) -> InvalidRequest:
    if isinstance(error, TimeoutError):
        return InvalidRequest(field, str(error), "input_too_large")
    return InvalidRequest(field, "the image file is damaged", "input_not_an_image")


class _Timed(BytesIO):
    """A file that decoders read piece by piece, and that fails when they have computed too long.

    Counted is the thread's own time, so a busy host refuses nothing.
    """

    def __init__(self, data: bytes, seconds: float) -> None:
        super().__init__(data)
        self._seconds = seconds
        self._end = time.thread_time() + seconds

    def read(self, size: int | None = -1, /) -> bytes:
        if time.thread_time() > self._end:
            raise TimeoutError(f"decoding it takes more than {self._seconds:g} s")
        return super().read(size)


def _upright(data: bytes, seconds: float) -> Image.Image:
    image = Image.open(_Timed(data, seconds), formats=FORMATS)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)  # else it is copied, whichever way is up
    return image


def _of_16_bits(image: Image.Image) -> Image.Image:
    """As mode "L"; a plain conversion would clip most."""
    return image.point(lambda value: value * (1 / 256)).convert("L")


def _on_white(image: Image.Image) -> Image.Image:
    done = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        white = Image.new("RGBA", strip.size, "white")
        done.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return done


def _transparent(image: Image.Image) -> Image.Image:
    """How far each pixel is transparent, as mode "L"."""
    done = Image.new("L", image.size)
    for top, strip in _strips(image):
        done.paste(ImageChops.invert(strip.getchannel("A")), (0, top))
    return done


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """RGBA, some rows at a time: whole copies would take five times the picture's memory."""
    width, height = image.size
    for top in range(0, height, STRIP_ROWS):
        yield top, image.crop((0, top, width, min(top + STRIP_ROWS, height))).convert("RGBA")


def _read(reference: str, policy: InputPolicy, field: str) -> bytes:
    if _URL.match(reference):
        try:
            return fetch(reference, policy.max_bytes, policy.hosts, policy.seconds)
        except Unreachable as error:
            raise InvalidRequest(
                field, f"the URL cannot be fetched: {error}", "input_unreachable"
            ) from error
        except Forbidden as error:
            raise InvalidRequest(
                field, f"the URL may not be fetched: {error}", "input_forbidden"
            ) from error
        except TooLarge as error:
            raise _too_large(field, policy) from error
    start = found.end() if (found := _DATA.match(reference[:MAX_DATA_HEADER])) else 0
    if (len(reference) - start) * 3 // 4 - 2 > policy.max_bytes:
        raise _too_large(field, policy)
    try:
        # Many tools write it in lines.
        return b64decode(reference[start:].translate(_NO_BREAKS), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(
            field, "neither an http(s) URL, a base64 data URI nor base64", "input_not_an_image"
        ) from error


def _sniff(data: bytes, policy: InputPolicy, field: str) -> Image.Image:
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidRequest(
            field, f"more than {policy.max_pixels} pixels", "input_too_large"
        ) from error
    except Exception as error:  # decoders meet hostile bytes with exceptions of every kind
        raise InvalidRequest(
            field, f"not an image; taken are {', '.join(FORMATS)}", "input_not_an_image"
        ) from error


def _too_large(field: str, policy: InputPolicy) -> InvalidRequest:
    return InvalidRequest(field, f"more than {policy.max_bytes >> 20} MiB", "input_too_large")
