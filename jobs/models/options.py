"""How a model runs on its device: names and types of models.toml, handed to diffusers as they are.

worker/pipelines/placement.py applies them. What diffusers refuses is an error at worker start.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_STRICT = ConfigDict(extra="forbid", frozen=True)

Argument = bool | int | float | str


class Quantization(BaseModel):
    """Weights in fewer bits.

    components: of the pipeline, usually "transformer"; kind: with torchao, the name of its
    configuration class; arguments: of that class, or of diffusers' for bitsandbytes.
    """

    model_config = _STRICT

    backend: Literal["torchao", "bitsandbytes_4bit", "bitsandbytes_8bit"]
    components: Annotated[tuple[str, ...], Field(min_length=1)] = ("transformer",)
    kind: str = "Int8WeightOnlyConfig"
    arguments: dict[str, Argument] = {}


class StepCache(BaseModel):
    """Steps that reuse what an earlier step computed.

    kind: the name of diffusers' configuration without "Config", for example "FirstBlockCache";
    arguments: of that configuration, for example {threshold = 0.1}, or the list mag_ratios.
    """

    model_config = _STRICT

    kind: str
    arguments: dict[str, Argument | list[float]] = {}


class Options(BaseModel):
    """Device options of a model.

    compile: blocks that repeat, when a kind of batch is first rendered; channels_last:
    convolutions on GPUs; attention: a backend of diffusers by name; vae_slicing, vae_tiling: less
    memory for decoding;
    offload: weights wait in main memory, "model" by component, "sequential" by layer, "encoders"
    those of text encoders alone, which prompts that are known do not need;
    safety_checker: false renders without it, where a pipeline has one; watermark: SDXL's invisible
    one, which needs the package invisible-watermark; mark: files say in XMP that a model made them,
    with "parameters" also of what; sleep: seconds that each batch of the null model lasts.
    """

    model_config = _STRICT

    compile: bool = False
    channels_last: bool = False
    attention: str | None = None
    vae_slicing: bool = False
    vae_tiling: bool = False
    offload: Literal["model", "sequential", "encoders"] | None = None
    quantization: Quantization | None = None
    step_cache: StepCache | None = None
    safety_checker: bool = True
    watermark: bool = False
    mark: bool | Literal["parameters"] = True
    sleep: Annotated[float, Field(ge=0)] = 0.0

    @property
    def hooks_calls(self) -> bool:
        """Whether parts of a pipeline are where its call under way needs them."""
        return self.offload in ("model", "sequential")
