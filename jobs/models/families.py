"""What differs between families of diffusion pipelines: one table, an entry a family. No torch.

Everything that is not written here is the same for all of them (worker/pipelines/arguments.py).
docs/05-families.md shows how to add one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jobs.requests import BatchKey

Capability = Literal["generate", "edit", "inpaint", "negative_prompt", "guidance_scale", "strength"]


@dataclass(frozen=True, slots=True)
class Family:
    """How the pipelines of one family are called, and their usual values.

    pipelines: the class names in model_index.json that belong to it.
    takes: what a request may ask for.
    size_multiple: of width and height, in pixels.
    batches: whether one call may render several requests. Not where prompts are padded to the
        longest of the call, because then a pixel depends on its neighbours.
    output: how it gives images back: "pt" where they lie on the device, in [0, 1].
    guidance: the argument that guidance_scale becomes.
    mixes_guidance: how requests of one call have different ones: "multiplied" where the pipeline
        multiplies by it, and else only asks whether it is above 1; "embedded" where it hands it to
        the denoiser as `guidance`, a number a sample, and asks nothing.
    empty_negative: the negative prompt of requests without one, where guidance needs one to work.
    edits_itself: the model's own class edits, or inpaints; otherwise diffusers derives the class
        that does.
    inputs: images that an edit takes. Where several, they go in as one list, so that one call
        renders one request.
    control: the argument that takes control images; "" if there are no ControlNets for it.
    tokenizer: the one that decides how much of a prompt is read; template: tokens that the
        pipeline puts before a prompt.
    area: the argument that gets width × height; arguments: those that are always the same, where
        the pipeline has them.
    size, steps, guidance_scale, strength: what `imagemill models inspect` writes.
    """

    pipelines: tuple[str, ...]
    takes: tuple[Capability, ...] = ("generate", "negative_prompt", "guidance_scale")
    size_multiple: int = 8
    batches: bool = True
    output: Literal["pt", "np"] = "pt"
    guidance: str = "guidance_scale"
    mixes_guidance: Literal["multiplied", "embedded"] | None = None
    empty_negative: str | None = None
    edits_itself: bool = False
    inputs: int = 1
    control: str = ""
    tokenizer: str = "tokenizer"
    template: int = 0
    area: str = ""
    arguments: Mapping[str, bool | float | str] = field(default_factory=dict)
    size: int = 1024
    steps: int = 20
    guidance_scale: float | None = None
    strength: float | None = None

    def call_guidance(self, scale: float | None) -> float | None:
        """What stands for all guidance scales that one pipeline call may mix with this one.

        Where guidance is multiplied, 2 stands for all above 1, and 0 for those that guide nothing;
        where it is embedded, 2 stands for all.
        """
        if scale is None or self.mixes_guidance is None:
            return scale
        return 2.0 if scale > 1 or self.mixes_guidance == "embedded" else 0.0

    def call_key(self, key: BatchKey) -> BatchKey:
        """What requests must share to be rendered by one pipeline call: their keys, or less."""
        scale = self.call_guidance(key.guidance_scale)
        return key if scale == key.guidance_scale else key.with_guidance(scale)


_ALL: tuple[Capability, ...] = (
    "generate", "edit", "inpaint", "negative_prompt", "guidance_scale", "strength",
)  # fmt: skip

FAMILIES: Mapping[str, Family] = {
    "stable-diffusion": Family(
        ("StableDiffusionPipeline",),
        _ALL, control="image", size=512, guidance_scale=7.5, mixes_guidance="multiplied",
        strength=0.8,
    ),
    "stable-diffusion-xl": Family(
        ("StableDiffusionXLPipeline",),
        _ALL, control="image", steps=30, guidance_scale=5.0, mixes_guidance="multiplied",
        strength=0.6,
    ),
    "stable-diffusion-3": Family(
        ("StableDiffusion3Pipeline",),
        _ALL, size_multiple=16, control="control_image", tokenizer="tokenizer_3",
        steps=28, guidance_scale=4.5, strength=0.6, mixes_guidance="multiplied",
    ),
    "stable-diffusion-inpaint": Family(
        ("StableDiffusionInpaintPipeline",),
        ("inpaint", "negative_prompt", "guidance_scale", "strength"),
        edits_itself=True, size=512, guidance_scale=7.5, mixes_guidance="multiplied",
    ),
    "stable-diffusion-xl-inpaint": Family(
        ("StableDiffusionXLInpaintPipeline",),
        ("inpaint", "negative_prompt", "guidance_scale", "strength"),
        edits_itself=True, steps=30, guidance_scale=7.5, mixes_guidance="multiplied",
    ),
    "instruct-pix2pix": Family(
        ("StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLInstructPix2PixPipeline"),
        ("edit", "negative_prompt", "guidance_scale"),
        edits_itself=True, size=512, guidance_scale=7.5, mixes_guidance="multiplied",
    ),
    "flux": Family(
        ("FluxPipeline",),
        ("generate", "edit", "inpaint", "guidance_scale", "strength"),
        size_multiple=16, control="control_image", tokenizer="tokenizer_2",
        steps=28, guidance_scale=3.5, mixes_guidance="embedded", strength=0.6,
    ),
    "flux-fill": Family(
        ("FluxFillPipeline",),
        ("inpaint", "guidance_scale", "strength"),
        size_multiple=16, edits_itself=True, tokenizer="tokenizer_2",
        steps=50, guidance_scale=30.0, mixes_guidance="embedded",
    ),
    "flux-kontext": Family(
        ("FluxKontextPipeline",),
        ("generate", "edit", "guidance_scale"),
        size_multiple=16, edits_itself=True, tokenizer="tokenizer_2",
        # Otherwise it picks a size of its own near one megapixel.
        area="max_area", arguments={"_auto_resize": False},
        steps=28, guidance_scale=2.5, mixes_guidance="embedded",
    ),
    "flux2": Family(
        ("Flux2Pipeline",),
        ("generate", "edit", "guidance_scale"),
        size_multiple=16, edits_itself=True, inputs=10, template=40,
        steps=28, guidance_scale=4.0, mixes_guidance="embedded",
    ),
    "flux2-klein": Family(
        ("Flux2KleinPipeline",),
        ("generate", "edit", "guidance_scale"),
        size_multiple=16, edits_itself=True, inputs=10, template=3,
        steps=28, guidance_scale=4.0, mixes_guidance="multiplied",
    ),
    "qwen-image": Family(
        ("QwenImagePipeline",),
        _ALL, size_multiple=16, batches=False, guidance="true_cfg_scale", empty_negative=" ",
        control="control_image", steps=50, guidance_scale=4.0, strength=0.6,
    ),
    "qwen-image-edit": Family(
        ("QwenImageEditPipeline",),
        ("edit", "negative_prompt", "guidance_scale"),
        size_multiple=16, batches=False, guidance="true_cfg_scale", empty_negative=" ",
        edits_itself=True, steps=50, guidance_scale=4.0,
    ),
    "qwen-image-edit-plus": Family(
        ("QwenImageEditPlusPipeline",),
        ("edit", "negative_prompt", "guidance_scale"),
        size_multiple=16, batches=False, guidance="true_cfg_scale", empty_negative=" ",
        edits_itself=True, inputs=4, steps=40, guidance_scale=4.0,
    ),
    "z-image": Family(
        ("ZImagePipeline",),
        _ALL, size_multiple=16, batches=False, template=3,
        steps=28, guidance_scale=4.0, strength=0.6,
    ),
    "sana": Family(
        ("SanaPipeline",),
        size_multiple=32, arguments={"use_resolution_binning": False}, guidance_scale=4.5,
    ),
    "sana-sprint": Family(
        ("SanaSprintPipeline",),
        ("generate", "guidance_scale"),
        size_multiple=32, arguments={"use_resolution_binning": False}, steps=2, guidance_scale=4.5,
    ),
}  # fmt: skip

# Whatever else diffusers loads. Nobody has proven that its pixels do not depend on neighbours, and
# some pipelines' tensors are in [-1, 1].
GENERIC = Family((), _ALL, batches=False, output="np", arguments={"use_resolution_binning": False})


def family_of(pipeline: str) -> str | None:
    """The family that a class name of model_index.json belongs to; None if there is no entry."""
    return next((name for name, entry in FAMILIES.items() if pipeline in entry.pipelines), None)


def family_named(name: str | None) -> Family:
    """The entry of a family; GENERIC without a name. The name must be one of FAMILIES."""
    return GENERIC if name is None else FAMILIES[name]
