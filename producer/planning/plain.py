"""Plain lines of a manifest: texts and numbers, no images and no recipe. Most lines are, and rows
of tables.

A block of them is read at once, in a fifth of the time that pydantic takes. It reads or refuses
what is not taken here, and would read alike what is (tests/unit/test_plain.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from msgspec import DecodeError, Meta, Struct
from msgspec.json import Decoder
from msgspec.structs import astuple

from jobs.ids import SEEDS
from jobs.output.kept import MAX_KEPT, MAX_TEXT, is_free
from jobs.requests import MAX_CUSTOM_ID, MAX_PROMPT, Task

PARAMETERS = slice(4, 10)  # of a body's fields: what decides its batch key, besides those before
MOST = 64 << 10  # bytes of a line, on average: of longer ones most is an image in base64
COLONS = re.compile(rb'"\s*:')

_Prompt = Annotated[str, Meta(max_length=MAX_PROMPT)]
_Name = Annotated[str, Meta(min_length=1, max_length=256)]
_CustomId = Annotated[str, Meta(min_length=1, max_length=MAX_CUSTOM_ID)]
_Positive = Annotated[int, Meta(ge=1)]
_Pixels = Annotated[int, Meta(ge=16, le=8192)]
_Column = Annotated[str, Meta(min_length=1, max_length=64)]
_Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Value = Annotated[str, Meta(max_length=MAX_TEXT)] | bool | _Integer | float
_Kept = Annotated[dict[_Column, _Value], Meta(max_length=MAX_KEPT)]


class PlainBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A jobs.requests.Body without what a plain line lacks."""

    prompt: _Prompt
    negative_prompt: _Prompt | None = None
    seed: Annotated[int, Meta(ge=0)] | None = None
    guidance_scale: Annotated[float, Meta(ge=0, le=100)] | None = None
    model: _Name | None = None
    num_inference_steps: Annotated[int, Meta(ge=1, le=50)] | None = None
    response_format: Literal["url", "raw", "png", "jpeg", "jpg"] | None = None
    width: _Pixels | None = None
    height: _Pixels | None = None
    strength: Annotated[float, Meta(ge=0, le=1)] | None = None

    image: ClassVar[None] = None
    control_images: ClassVar[None] = None
    controlnet_weights: ClassVar[None] = None
    mask_image: ClassVar[None] = None


class PlainLine(PlainBody, frozen=True, forbid_unknown_fields=True):
    """A bare body with an optional custom_id."""

    custom_id: _CustomId | None = None
    slots: _Positive | None = None
    keep: _Kept | None = None

    has_recipe: ClassVar[bool] = False
    task: ClassVar[Task] = "generate"

    @property
    def body(self) -> PlainBody:
        return self


class PlainBatchLine(Struct, frozen=True, forbid_unknown_fields=True):
    """A generation of OpenAI's Batch API."""

    custom_id: _CustomId
    method: Literal["POST"]
    url: Literal["/v1/images/generations"]
    body: PlainBody

    has_recipe: ClassVar[bool] = False
    task: ClassVar[Task] = "generate"
    slots: ClassVar[None] = None
    keep: ClassVar[None] = None


class PlainLines(NamedTuple):
    """Lines of one form. values: of the fields of each one's body, first those of a PlainBody."""

    lines: Sequence[PlainLine] | Sequence[PlainBatchLine]
    values: Sequence[tuple[Any, ...]]


_BARE, _BATCH = Decoder(PlainLine), Decoder(PlainBatchLine)
_SEED = PlainBody.__struct_fields__.index("seed")
_AROUND = len(PlainBatchLine.__struct_fields__)  # keys of a line around those of its body


def parse_plain(lines: Sequence[bytes]) -> PlainLines | None:
    """The requests of lines, if there are any, all are plain and of one form, and the JSON of none
    gives a key twice, or something as null."""
    if not lines or sum(map(len, lines)) > MOST * len(lines):
        return None
    text = b"".join(lines)
    # No JSON goes on so after a line's end: then each line begins with a value, and so many values
    # are one a line.
    if text.count(b"}\n{") != len(lines) - 1:
        return None
    found: Sequence[PlainLine] | Sequence[PlainBatchLine]
    try:
        if b'"body"' in lines[0]:
            found = _BATCH.decode_lines(text)
            values = [astuple(line.body) for line in found]
            keys = len(values) * _AROUND
        else:
            found = _BARE.decode_lines(text)
            values = [astuple(line) for line in found]
            kept = [line.keep for line in found if line.keep]
            if not all(_are_free(tuple(columns)) for columns in kept):
                return None
            keys = sum(map(len, kept))
    except (DecodeError, UnicodeDecodeError):
        return None
    keys += sum(len(some) - some.count(None) for some in values)
    # Each key has a colon. Those of texts do not follow a quotation mark, or that one is escaped.
    if text.count(b":") != keys and len(COLONS.findall(text)) != keys:
        return None
    seeds_fit = all((some[_SEED] or 0) < SEEDS for some in values)
    return PlainLines(found, values) if len(found) == len(lines) and seeds_fit else None


@lru_cache
def _are_free(columns: tuple[str, ...]) -> bool:
    return all(map(is_free, columns))
