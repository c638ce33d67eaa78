"""What a user may ask for (`Body`) and what a worker renders (`Request`).

A body is one generation or edit as the HTTP API and the manifest spell it; most fields may be left
out. A request is the same thing with nothing left open: every default filled in, the seed set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from jobs.formats import ImageFormat
from jobs.ids import SEEDS

Task = Literal["generate", "edit", "inpaint"]

MAX_PROMPT = 32_768  # characters
MAX_CUSTOM_ID = 512  # characters
MAX_INPUTS = 16  # images that one request may carry
KEYS_KEPT = 16_384  # of which a process remembers what it knows

Prompt = Annotated[str, Field(max_length=MAX_PROMPT)]
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]  # which a schema's number says exactly: it is a float
Weight = Annotated[float, Field(ge=0, le=1)]
PixelSize = Annotated[int, Field(ge=16, le=8192)]

# Strict: "20" is no number and true is no integer. Nothing a user wrote is corrected in silence.
STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ImageInput(BaseModel):
    """An input image."""

    model_config = STRICT

    image: Annotated[
        str,
        Field(
            min_length=1,
            description="An input image, provided either as a URL or a base64-encoded string. "
            "Maximum supported image size is 50 MiB.",
        ),
    ]


Input = ImageInput | Annotated[str, Field(min_length=1)]


class Body(BaseModel):
    """One generation or edit as a user writes it. `None` means "not given" for every field."""

    model_config = STRICT

    prompt: Prompt
    model: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=50)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    seed: Seed | None = None
    response_format: Literal["url", "raw", "png", "jpeg", "jpg"] | None = None
    image: Input | Annotated[list[Input], Field(min_length=1, max_length=MAX_INPUTS)] | None = None
    control_images: Annotated[list[Input], Field(max_length=MAX_INPUTS)] | None = None
    controlnet_weights: Annotated[list[Weight], Field(max_length=MAX_INPUTS)] | None = None
    width: PixelSize | None = None
    height: PixelSize | None = None
    negative_prompt: Prompt | None = None
    strength: Annotated[float, Field(ge=0, le=1)] | None = None
    mask_image: Input | None = None

    def numbered(self, number: int) -> Body:
        """The body of image number `number`, from 0, of several: a seed counts up with it."""
        if self.seed is None:
            return self
        return self.model_copy(update={"seed": (self.seed + number) % SEEDS})


class BatchKey(NamedTuple):
    """What requests must share to be rendered by one pipeline call, as far as their family asks for
    all of it (Family.call_key).

    width and height are pixels; guidance_scale and strength are None where the pipeline's own
    default stands; `negative` says whether negative prompts are passed at all, which differs from
    passing empty ones (SDXL encodes "" but zeroes an absent one); inputs counts images a request,
    without a mask; slots is how many requests the call has room for, 0 where that is the model's
    batch_width.

    A tuple, because each line of a manifest may have another: that is made in a tenth of the time
    of a frozen dataclass, and compared too.
    """

    task: Task
    model: str
    adapter: str
    width: int
    height: int
    steps: int
    guidance_scale: float | None = None
    negative: bool = False
    strength: float | None = None
    controlnet_weights: tuple[float, ...] = ()
    inputs: int = 0
    slots: Annotated[int, Field(ge=0)] = 0

    @property
    def route(self) -> str:
        """ "model" or "model:adapter", as a user writes it."""
        return f"{self.model}:{self.adapter}" if self.adapter else self.model

    @property
    def stem(self) -> tuple[object, ...]:
        """What it shares with keys that differ in their guidance alone."""
        return (*self[:_GUIDANCE], *self[_GUIDANCE + 1 :])

    def with_guidance(self, scale: float | None) -> BatchKey:
        """The same with another guidance scale, in half of _replace's time."""
        return BatchKey._make((*self[:_GUIDANCE], scale, *self[_GUIDANCE + 1 :]))

    def with_slots(self, slots: int) -> BatchKey:
        """The same with other slots, in a third of _replace's time."""
        return BatchKey._make((*self[:-1], slots))

    def slots_within(self, width: int) -> int:
        """The slots of a call, of a worker whose model has room for `width` requests."""
        return min(self.slots or width, width)


_GUIDANCE = BatchKey._fields.index("guidance_scale")


def _named(value: object) -> object:
    if not isinstance(value, dict):
        raise ValueError("a batch key is stored by the names of its fields")
    return value


# As JSON an object, which other versions read whatever the order of their fields.
StoredKey = Annotated[BatchKey, BeforeValidator(_named), PlainSerializer(BatchKey._asdict)]


@dataclass(frozen=True, slots=True)
class Rule:
    """How the image of several candidates is chosen, which differ in their seeds.

    best_of: candidates that must pass before one is chosen; tries: candidates at most; by: the
    column of a scorer by whose values the best of those is chosen, the first of equals; "" for the
    first; least, most: (column, bound) that a candidate must meet to pass.
    """

    best_of: int = 1
    tries: int = 1
    by: str = ""
    least: tuple[tuple[str, float], ...] = ()
    most: tuple[tuple[str, float], ...] = ()


class Candidate(NamedTuple):
    """Which of the candidates for an image a request is.

    image: the job id of the first one; number: from 0.
    """

    image: str
    number: int
    rule: Rule

    @property
    def round(self) -> int:
        """The first `best_of` are rendered together, each other one after those before it."""
        return max(0, self.number - self.rule.best_of + 1)


class Request(NamedTuple):
    """One thing to render, fully resolved. `index` counts the manifest's lines from 0.

    images: its inputs; to inpaint, the picture and then its mask; candidate: None for one that is
    the only one for its image.

    A tuple, because a planner makes millions: that is four times as fast as a frozen dataclass.
    """

    index: int  # type: ignore[assignment]  # nobody looks a request up in itself
    custom_id: str
    key: StoredKey
    prompt: str
    negative_prompt: str
    seed: int
    format: ImageFormat
    job_id: str
    images: tuple[str, ...] = ()
    control_images: tuple[str, ...] = ()
    candidate: Candidate | None = None

    def with_key(self, key: BatchKey) -> Request:
        """The same with another key, in a third of _replace's time."""
        return Request._make((*self[:2], key, *self[3:]))

    def __reduce__(self) -> tuple[Any, ...]:
        """As its class would, in half the time: planners send many to each other."""
        return Request, tuple(self)

    @property
    def round(self) -> int:
        """Of the run: 0, but for candidates that come after others."""
        return self.candidate.round if self.candidate else 0

    @property
    def inputs(self) -> tuple[str, ...]:
        """The images that it starts from."""
        return self.images[:-1] if self.key.task == "inpaint" else self.images

    @property
    def mask(self) -> str:
        """What says where to paint; "" if there is none."""
        return self.images[-1] if self.key.task == "inpaint" else ""

    @property
    def is_whole(self) -> bool:
        """Whether it has the images that its key counts."""
        return len(self.images) == self.key.inputs + (self.key.task == "inpaint")
