"""Plain lines of a manifest: texts and numbers, no images and no recipe. Most lines are, and rows
of tables.

They are read in a fifth of the time that pydantic takes. It reads or refuses what is not taken
here, and would read alike what is (tests/unit/test_plain.py).
"""

from __future__ import annotations

import re
from functools import lru_cache
from operator import attrgetter
from typing import Annotated, ClassVar, Literal

from msgspec import DecodeError, Meta, Struct
from msgspec.json import Decoder

from jobs.ids import SEEDS
from jobs.output.kept import MAX_KEPT, MAX_TEXT, is_free
from jobs.requests import MAX_CUSTOM_ID, MAX_PROMPT, Task

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
    model: _Name | None = None
    num_inference_steps: Annotated[int, Meta(ge=1, le=50)] | None = None
    guidance_scale: Annotated[float, Meta(ge=0, le=100)] | None = None
    seed: Annotated[int, Meta(ge=0)] | None = None
    response_format: Literal["url", "raw", "png", "jpeg", "jpg"] | None = None
    width: _Pixels | None = None
    height: _Pixels | None = None
    negative_prompt: _Prompt | None = None
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


_BARE, _BATCH = Decoder(PlainLine), Decoder(PlainBatchLine)
_of_body = attrgetter(*PlainBody.__struct_fields__)
_of_line = attrgetter(*PlainLine.__struct_fields__)


def parse_plain(raw: bytes) -> PlainLine | PlainBatchLine | None:
    """A line's request, if it is plain and its JSON gives no key twice, and nothing as null."""
    line: PlainLine | PlainBatchLine
    try:
        if b'"body"' in raw:
            line = _BATCH.decode(raw)
            values = _of_body(line.body)
            keys = len(values) + len(PlainBatchLine.__struct_fields__)
        else:
            line = _BARE.decode(raw)
            values = _of_line(line)
            keys = len(values)
            if line.keep:
                if not _are_free(tuple(line.keep)):
                    return None
                keys += len(line.keep)
    except (DecodeError, UnicodeDecodeError):
        return None
    keys -= values.count(None)
    # Each key has a colon. Those of texts do not follow a quotation mark, or that one is escaped.
    if raw.count(b":") != keys and len(COLONS.findall(raw)) != keys:
        return None
    return line if (line.body.seed or 0) < SEEDS else None


@lru_cache
def _are_free(columns: tuple[str, ...]) -> bool:
    return all(map(is_free, columns))
