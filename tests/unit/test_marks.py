"""Marks: what other readers find in a file, and that they change nothing else of it."""

from __future__ import annotations

from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from jobs.formats import FORMATS, ImageFormat
from jobs.marks import packet, stripped
from producer.api.openai.images import _encode
from worker.encode import encode

PIXELS = np.random.default_rng(1).integers(0, 256, (40, 24, 3), np.uint8)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MARK = packet('org/"a" & b', COMMIT)
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"


def told(data: bytes) -> dict[str, str]:
    """The properties in a file's XMP, as Pillow finds it and a parser of XML reads it."""
    tree = ElementTree.fromstring(Image.open(BytesIO(data)).info["xmp"].decode().strip("\0"))
    (description,) = tree.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    return {name.removeprefix(IPTC): value for name, value in description.items()}


@pytest.mark.parametrize("kind", list(FORMATS))
def test_a_mark_says_what_made_the_image_and_changes_no_pixel(kind: ImageFormat) -> None:
    plain, marked = encode(PIXELS, kind), encode(PIXELS, kind, MARK)
    found = told(marked)
    assert found["DigitalSourceType"] == (
        "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    )
    assert (found["AISystemUsed"], found["AISystemVersionUsed"]) == ('org/"a" & b', COMMIT)
    assert marked == encode(PIXELS, kind, MARK)
    assert len(marked) - len(plain) < 700
    assert stripped(marked) == plain == stripped(plain)


def test_a_folder_of_somebody_is_not_told() -> None:
    found = told(encode(PIXELS, "png", packet("/home/somebody/model", "sha:0123")))
    assert (found["AISystemUsed"], found["AISystemVersionUsed"]) == ("imagemill", "sha:0123")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_what_the_facade_encodes_again_stays_marked(kind: str) -> None:
    marked = _encode(encode(PIXELS, "png", MARK), kind, None)
    assert told(marked)["AISystemVersionUsed"] == COMMIT
    assert "xmp" not in Image.open(BytesIO(_encode(encode(PIXELS, "png"), kind, None))).info
