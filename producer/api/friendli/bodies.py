"""Bodies and answers of the endpoints that follow friendli-images.openapi.yaml, field by field.

Fields of ours (width, height, negative_prompt, strength) are optional everywhere.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from jobs.formats import ImageFormat
from jobs.models.table import Model
from jobs.requests import MAX_INPUTS, Body, ImageInput, PixelSize, Prompt, Seed, Weight
from producer.api.wire.reading import Given
from producer.api.wire.schema import needs, rules, where

AnyFormat = Literal["url", "raw", "png", "jpeg", "jpg"]

_SOME: JsonDict = {"type": "array", "minItems": 1}
_SIDE = "Pixels, in steps and up to a size that the model says; the model's own when not given."


class Common(Given):
    """What all bodies have."""

    prompt: Annotated[Prompt, Field(description="A text description of the desired image.")]
    num_inference_steps: Annotated[
        Annotated[int, Field(ge=1, le=50)] | None, Field(description="Inference steps.")
    ] = 20
    seed: Annotated[
        Seed | None,
        Field(description="The seed of the image's noise; a random one when not given."),
    ] = None
    width: Annotated[PixelSize | None, Field(description=_SIDE)] = None
    height: Annotated[PixelSize | None, Field(description=_SIDE)] = None
    negative_prompt: Annotated[
        Prompt | None, Field(description="What the image should not show.")
    ] = None
    strength: Annotated[
        Annotated[float, Field(gt=0, le=1)] | None,
        Field(
            description="How far an edit may leave its input; times num_inference_steps at least 1."
        ),
    ] = None

    not_of_body: ClassVar[frozenset[str]] = frozenset(
        {"image", "control_images", "response_format"}
    )

    def to_body(self, image_format: ImageFormat) -> Body:
        """The same without its inputs, to be stored in a format that a worker encodes."""
        fields: dict[str, Any] = self.model_dump(exclude=set(self.not_of_body))
        return Body(**fields, response_format=image_format)


class Generation(Common):
    """What generations have."""

    # For a model that edits, control images are its inputs.
    model_config = ConfigDict(
        json_schema_extra=rules(
            where("strength", {"type": "number"}, needs("control_images", _SOME)),
            where("controlnet_weights", _SOME, needs("control_images", _SOME)),
        )
    )

    control_images: Annotated[
        Annotated[list[ImageInput], Field(max_length=MAX_INPUTS)] | None,
        Field(
            description="Images that guide the generation, for models with ControlNets, as many at "
            "most; the inputs of models that edit."
        ),
    ] = None
    controlnet_weights: Annotated[
        Annotated[list[Weight], Field(max_length=MAX_INPUTS)] | None,
        Field(
            description="Influence of each ControlNet, in [0, 1], as many as control_images; "
            "1 when not given."
        ),
    ] = None

    @property
    def controls(self) -> list[str]:
        """The control images as a user wrote them."""
        return [one.image for one in self.control_images or []]


class Edit(Common):
    """What edits have."""

    image: Annotated[
        ImageInput | Annotated[list[ImageInput], Field(min_length=1, max_length=MAX_INPUTS)],
        Field(description="The image(s) to edit. Must be in a supported image format."),
    ]

    @property
    def images(self) -> list[str]:
        """The inputs as a user wrote them."""
        several = self.image if isinstance(self.image, list) else [self.image]
        return [one.image for one in several]


class Container(Common):
    """What the container's bodies have."""

    model: Annotated[
        Annotated[str, Field(min_length=1, max_length=256)] | None,
        Field(description="Routes the request to a specific adapter."),
    ] = None
    guidance_scale: Annotated[
        Annotated[float, Field(ge=0, le=100)] | None,
        Field(description="How closely the image follows the prompt."),
    ] = 0.0
    response_format: Annotated[
        Literal["raw", "jpeg"] | None,
        Field(description="jpeg: a file. raw: the pixels, 8-bit RGB, row by row."),
    ] = "jpeg"

    def for_model(self, model: Model) -> Body:
        """The body for a model; to one without guidance, a guidance of 0 says nothing."""
        body = self.to_body("png" if self.response_format == "raw" else "jpeg")
        if not self.guidance_scale and "guidance_scale" not in model.takes:
            return body.model_copy(update={"guidance_scale": None})
        return body


class Dedicated(Common):
    """What the dedicated bodies have."""

    model: Annotated[
        str,
        Field(
            min_length=1,
            max_length=256,
            description='ID of target endpoint, or "ENDPOINT:ADAPTER".',
        ),
    ]
    guidance_scale: Annotated[
        Annotated[float, Field(ge=0, le=100)] | None,
        Field(description="How closely the image follows the prompt; the model's when not given."),
    ] = None
    response_format: Annotated[
        AnyFormat | None,
        Field(description="raw: the pixels, 8-bit RGB, row by row; the others: a file."),
    ] = "url"

    @property
    def stored_format(self) -> ImageFormat:
        """What a worker encodes."""
        return "png" if self.response_format in ("png", "raw") else "jpeg"


class ContainerImageGenerationBody(Container, Generation):
    """Text to image."""


class ContainerImageEditBody(Container, Edit):
    """An edit of one or several images."""


class ContainerImageEditForm(Container):
    """The fields of an edit as a form, without its files."""


class DedicatedImageGenerationBody(Dedicated, Generation):
    """Text to image."""


class DedicatedImageEditBody(Dedicated, Edit):
    """An edit of one or several images."""


class DedicatedImageEditForm(Dedicated):
    """The fields of an edit as a form, without its files."""


class ImageGenerationContainerResult(Given):
    """The image."""

    image: Annotated[str, Field(description="The base64-encoded image.")]


class UrlImageItem(Given):
    """An image behind a URL."""

    seed: Annotated[int, Field(description="The seed used during image generation.")]
    response_format: AnyFormat
    url: Annotated[str, Field(description="The URL of the generated image.")]


class B64ImageItem(Given):
    """An image in the answer itself."""

    seed: Annotated[int, Field(description="The seed used during image generation.")]
    response_format: AnyFormat
    b64_json: Annotated[str, Field(description="The image, base64.")]


class ImageGenerationDedicatedResult(Given):
    """The images."""

    data: list[UrlImageItem] | list[B64ImageItem]
