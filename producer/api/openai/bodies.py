"""Bodies and answers of the image endpoints under /openai/v1.

What OpenAI offers and we cannot do is known here and refused by name. What says nothing about the
pixels, or how much OpenAI's own models should try, is taken and changes nothing. Fields of ours
(seed, num_inference_steps, guidance_scale, negative_prompt, strength) are optional.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from jobs.errors import InvalidRequest
from jobs.formats import ImageFormat
from jobs.requests import MAX_INPUTS, Body, Prompt, Seed
from producer.api.wire.reading import Given
from producer.api.wire.schema import needs, rules, where

OutputFormat = Literal["png", "jpeg", "webp"]
ResponseFormat = Literal["url", "b64_json"]
ToldQuality = Literal["low", "medium", "high"]  # what OpenAI's answers may hold
Quality = Literal["standard", "hd", "low", "medium", "high", "xhigh", "max", "auto"]

# Of fields that would change the answer: the values that ask for nothing we lack.
_CAN: dict[str, tuple[JsonValue, ...]] = {
    "background": ("auto", "opaque"),
    "partial_images": (0,),
    "stream": (False,),
    "style": ("vivid",),
}
_IN_THE_ANSWER = ("gpt-image", "chatgpt-image")  # such names never had URLs: callers await base64


_SIDE = "(1[6-9]|[2-9][0-9]|[1-9][0-9]{2}|[1-7][0-9]{3}|80[0-9]{2}|81[0-8][0-9]|819[0-2])"


def _check_size(size: str) -> str:
    if not re.fullmatch(f"auto|{_SIDE}x{_SIDE}", size):
        raise ValueError("must be auto or WIDTHxHEIGHT, both within [16, 8192]")
    return size


def _can(name: str) -> Any:
    """For the schema: what a field may be."""
    return Field(json_schema_extra={"enum": [*_CAN[name], None]})


_LOSSY = where(
    "output_compression",
    {"type": "integer", "maximum": 99},
    needs("output_format", {"enum": ["jpeg", "webp"]}),
)


class ImageRequest(Given):
    """What generations and edits share."""

    model_config = ConfigDict(json_schema_extra=rules(_LOSSY))

    prompt: Prompt
    model: Annotated[
        Annotated[str, Field(min_length=1, max_length=256)] | None,
        Field(description="A model, or MODEL:ADAPTER; the usual one when not given."),
    ] = None
    n: Annotated[Annotated[int, Field(ge=1, le=10)] | None, Field(description="Images.")] = 1
    size: Annotated[
        Annotated[
            str,
            AfterValidator(_check_size),
            WithJsonSchema({"type": "string", "pattern": f"^(auto|{_SIDE}x{_SIDE})$"}),
        ]
        | None,
        Field(
            description="WIDTHxHEIGHT in pixels, in steps and up to a size that the model says; "
            "auto is the model's own."
        ),
    ] = "auto"
    response_format: Annotated[
        ResponseFormat | None,
        Field(description="url when not given, but b64_json for models named gpt-image-…."),
    ] = None
    output_format: OutputFormat | None = "png"
    output_compression: Annotated[
        Annotated[int, Field(ge=0, le=100)] | None,
        Field(description="Quality of jpeg and webp; png, the usual format, has 100 alone."),
    ] = None
    user: Annotated[str, Field(max_length=512)] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    quality: Quality | None = "auto"
    complexity: Literal["low", "medium", "high"] | None = None
    background: Annotated[Literal["transparent", "opaque", "auto"] | None, _can("background")] = (
        "auto"
    )
    moderation: Literal["low", "auto"] | None = "auto"
    style: Annotated[Literal["vivid", "natural"] | None, _can("style")] = None
    input_fidelity: Literal["high", "low"] | None = None
    stream: Annotated[bool | None, _can("stream")] = False
    partial_images: Annotated[Annotated[int, Field(ge=0, le=3)] | None, _can("partial_images")] = 0
    seed: Seed | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=50)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    negative_prompt: Prompt | None = None

    @property
    def shown_as(self) -> ResponseFormat:
        """How the answer holds an image."""
        if self.response_format:
            return self.response_format
        return "b64_json" if (self.model or "").startswith(_IN_THE_ANSWER) else "url"

    @property
    def told_quality(self) -> ToldQuality | None:
        """The quality that the answer repeats."""
        return self.quality if self.quality in ("low", "medium", "high") else None

    @property
    def stored_format(self) -> ImageFormat:
        """What a worker encodes; lossless where the facade encodes again."""
        return "jpeg" if self.output_format == "jpeg" and self.is_final else "png"

    @property
    def is_final(self) -> bool:
        """Whether the worker's file is the answer as it is."""
        return self.output_format != "webp" and self.output_compression is None

    def to_body(self) -> Body:
        """One image of it, without inputs.

        Raises:
            InvalidRequest: it asks for what we cannot do.
        """
        for name, values in _CAN.items():
            value = getattr(self, name)
            if value is not None and value not in values:
                raise InvalidRequest(name, f"{value!r} is not supported here", "unsupported")
        if self.output_compression not in (None, 100) and self.output_format == "png":
            raise InvalidRequest("output_compression", "png takes none", "unsupported")
        width, height = self._size()
        return Body(
            prompt=self.prompt,
            model=self.model,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            seed=self.seed,
            response_format=self.stored_format,
            negative_prompt=self.negative_prompt,
            width=width,
            height=height,
        )

    def _size(self) -> tuple[int, int] | tuple[None, None]:
        if self.size is None or self.size == "auto":
            return None, None
        width, height = map(int, self.size.split("x"))
        return width, height


class CreateImageRequest(ImageRequest):
    """Text to image."""


class EditRequest(ImageRequest):
    """What edits as JSON and as forms share."""

    strength: Annotated[
        Annotated[float, Field(gt=0, le=1)] | None,
        Field(
            description="How far an edit may leave its input; times num_inference_steps at least 1."
        ),
    ] = None

    def to_body(self) -> Body:
        """As that of any other."""
        return super().to_body().model_copy(update={"strength": self.strength})


class ImageRefParam(Given):
    """An input: a URL (or data URL), or an uploaded file."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["image_url"]}, {"required": ["file_id"]}]}
    )

    image_url: Annotated[str, Field(min_length=1, max_length=70 * 2**20)] | SkipJsonSchema[None] = (
        None
    )
    file_id: Annotated[str, Field(min_length=1, max_length=64)] | SkipJsonSchema[None] = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.image_url is None) == (self.file_id is None):
            raise ValueError("give exactly one of image_url and file_id")
        return self


class EditImageBodyJsonParam(EditRequest):
    """An edit of one or several images, as JSON."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            _LOSSY, where("mask", {"type": "object"}, needs("images", {"maxItems": 1}))
        )
    )

    images: Annotated[list[ImageRefParam], Field(min_length=1, max_length=MAX_INPUTS)]
    mask: Annotated[
        ImageRefParam | None,
        Field(
            description="For models that inpaint. Of the image's size, and there is one image; "
            "where the mask is transparent it is repainted."
        ),
    ] = None


class CreateImageEditRequest(EditRequest):
    """An edit of one or several images, as a form; its files are `image` and `mask`."""


class Image(BaseModel):
    """One image: b64_json or url."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class TokenDetails(BaseModel):
    """Tokens by their kind."""

    text_tokens: int = 0
    image_tokens: int = 0


class Usage(BaseModel):
    """Tokens, which nobody counts or bills here."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()
    output_tokens_details: TokenDetails = TokenDetails()


class ImagesResponse(BaseModel):
    """The images. created: Unix seconds; quality: as it was asked for."""

    created: int
    data: list[Image]
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    size: str
    quality: ToldQuality | None = None
    usage: Usage = Usage()
