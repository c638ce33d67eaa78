"""Marks: what other readers find in a file, and that they change nothing else of it."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import ExifTags, Image

from jobs.formats import FORMATS, ImageFormat
from jobs.marks import packet, stripped
from jobs.models.fingerprints import route_digest
from jobs.models.table import load_models
from jobs.output.storage import open_storage
from producer.api.openai.images import _encode
from tests.samples import STACK, make_key, make_request
from worker.encode import encode
from worker.parameters import describe
from worker.render import Rendered
from worker.storing import Shelf

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


def text_of(data: bytes) -> str:
    """The parameters in a file, found as image tools do."""
    image = Image.open(BytesIO(data))
    if image.format == "PNG":
        return str(image.info["parameters"])
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment.startswith(b"UNICODE\0")
    return str(comment.removeprefix(b"UNICODE\0").decode("utf-16-be"))


@pytest.mark.parametrize("kind", list(FORMATS))
@pytest.mark.parametrize("text", ["a cat\nSteps: 8, Seed: 1", "eine Katze – 猫 🐈", "x" * 15_000])
def test_parameters_stand_beside_the_mark(kind: ImageFormat, text: str) -> None:
    marked = encode(PIXELS, kind, MARK, text)
    assert text_of(marked) == text
    assert told(marked)["AISystemVersionUsed"] == COMMIT
    assert marked == encode(PIXELS, kind, MARK, text)
    plain = Image.open(BytesIO(encode(PIXELS, kind)))
    assert Image.open(BytesIO(marked)).tobytes() == plain.tobytes()


@pytest.mark.parametrize("kind", list(FORMATS))
def test_the_longest_prompt_fits(kind: ImageFormat) -> None:
    assert text_of(encode(PIXELS, kind, MARK, "🐈" * 32_768)).startswith("🐈" * 16_000)


def test_parameters_are_told_as_other_tools_write_them() -> None:
    key = make_key(width=512, height=768, steps=20, guidance_scale=7.0)._replace(negative=True)
    request = make_request(
        5, key, prompt="a cat,\non a mat", negative_prompt="a dog", seed=2**64 - 1
    )
    stack = replace(STACK, scheduler="EulerAncestralDiscreteScheduler")
    assert describe(request, stack) == (
        "a cat,\non a mat\nNegative prompt: a dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, "
        "Seed: 18446744073709551615, Size: 512x768, Model: null"
    )
    key = key._replace(negative=False, guidance_scale=None, strength=0.55, adapter="a")
    assert describe(make_request(5, key, prompt="x"), STACK) == (
        'x\nSteps: 20, Sampler: S, Seed: 5, Size: 512x768, Model: "null:a", '
        "Denoising strength: 0.55"
    )


@pytest.mark.parametrize("mark", ["", "xmp", "xmp, parameters"])
def test_files_hold_what_their_stack_says(tmp_path: Path, mark: str) -> None:
    request, storage = make_request(3, prompt="a cat"), open_storage(str(tmp_path))
    stack = replace(STACK, repo="org/model", revision=COMMIT, mark=mark)
    Shelf(storage, "w", 1).put(Rendered(request, stack, 0.1, PIXELS), "x.png")
    with Image.open(tmp_path / "x.png") as image:
        info = image.info
    assert ("xmp" in info, "parameters" in info) == (bool(mark), mark == "xmp, parameters")
    if mark == "xmp, parameters":
        assert info["parameters"].startswith("a cat\nSteps: 8, Sampler: S, CFG scale: 3, Seed: 3")


def test_another_mark_is_another_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    digests = set()
    for mark in ("true", "false", '"parameters"'):
        file.write_text(
            f'default = "m"\n[models.m]\nrepo = "null:"\noptions = {{ mark = {mark} }}\n'
        )
        digests.add(route_digest(load_models(file), "m"))
    assert len(digests) == 3


def test_a_folder_of_somebody_is_not_told() -> None:
    found = told(encode(PIXELS, "png", packet("/home/somebody/model", "sha:0123")))
    assert (found["AISystemUsed"], found["AISystemVersionUsed"]) == ("imagemill", "sha:0123")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_what_the_facade_encodes_again_stays_marked(kind: str) -> None:
    marked = _encode(encode(PIXELS, "png", MARK), kind, None)
    assert told(marked)["AISystemVersionUsed"] == COMMIT
    assert "xmp" not in Image.open(BytesIO(_encode(encode(PIXELS, "png"), kind, None))).info
