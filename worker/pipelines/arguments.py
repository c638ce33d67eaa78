"""What a pipeline is called with for a batch. What differs by family: jobs.models.families."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from PIL import ImageOps
from PIL.Image import Image, Resampling

from jobs.errors import InvalidRequest
from jobs.models.families import Family
from jobs.requests import BatchKey
from worker.inputs import Prepared
from worker.pipelines.guidance import Guidance
from worker.pipelines.seeds import generator

Arguments = dict[str, object]


def arguments(
    family: Family, accepted: Collection[str], key: BatchKey, batch: list[Prepared]
) -> Arguments:
    """Arguments of a diffusers pipeline; what is left out stays at the pipeline's own default.

    accepted: names of the pipeline's arguments; key: of the first request of the batch, which the
    others share as the family's call_key says.
    """
    requests = [one.request for one in batch]
    call: Arguments = {
        "prompt": [request.prompt for request in requests],
        "num_inference_steps": key.steps,
        # One a request, so that its noise does not depend on its neighbours.
        "generator": [generator(request.seed) for request in requests],
        "output_type": family.output,
        **{name: value for name, value in family.arguments.items() if name in accepted},
    }
    if "width" in accepted:  # else the pipeline takes the size of its input
        call |= {"width": key.width, "height": key.height}
    if family.area:
        call[family.area] = key.width * key.height
    if key.guidance_scale is not None:
        mixed = guidance_each(batch)
        multiplied = mixed and family.mixes_guidance == "multiplied"
        call[family.guidance] = Guidance(mixed) if multiplied else key.guidance_scale
    if key.negative:
        call["negative_prompt"] = [request.negative_prompt for request in requests]
    elif family.empty_negative is not None:
        call["negative_prompt"] = [family.empty_negative] * len(requests)
    if key.strength is not None:
        call["strength"] = key.strength
    if key.inputs:
        call["image"] = _inputs(family, key, batch)
    if key.task == "inpaint":
        call["mask_image"] = [one.mask for one in batch]
    return call | _control(family, key, batch)


def check(family: Family, key: BatchKey) -> None:
    """Refuse what pipelines of the family cannot do, where the models table did not know it.

    Raises:
        InvalidRequest: it names the field.
    """
    asked = {
        key.task: {"generate": "model", "edit": "image", "inpaint": "mask_image"}[key.task],
        "negative_prompt": "negative_prompt" if key.negative else "",
        "strength": "strength" if key.strength is not None else "",
    }
    for capability, field in asked.items():
        if field and capability not in family.takes:
            raise InvalidRequest(field, f"pipelines of this family do not take it: {capability}")


def active_controls(key: BatchKey) -> tuple[int, ...]:
    """The ControlNets that take part, by their number: a weight of 0 leaves one out for good."""
    return tuple(number for number, weight in enumerate(key.controlnet_weights) if weight)


def guidance_each(batch: list[Prepared]) -> list[float]:
    """The guidance of each request; none if it is the same for all."""
    scales = [one.request.key.guidance_scale for one in batch]
    mixed = len(set(scales)) > 1
    return [scale for scale in scales if scale is not None] if mixed else []


def _inputs(family: Family, key: BatchKey, batch: list[Prepared]) -> list[Image]:
    if family.inputs > 1:
        (one,) = batch
        return list(one.images)
    return [_fit(one.images[0], key) for one in batch]


def _control(family: Family, key: BatchKey, batch: list[Prepared]) -> Arguments:
    """Control images as tensors in [0, 1], the one form in which several may have a batch each."""
    active = active_controls(key)
    if not active:
        return {}
    images = [_tensor([_fit(one.controls[number], key) for one in batch]) for number in active]
    weights = [key.controlnet_weights[number] for number in active]
    # Beside the image of an edit the argument has the same name everywhere.
    name = "control_image" if key.inputs else family.control
    alone = len(active) == 1
    return {
        name: images[0] if alone else images,
        "controlnet_conditioning_scale": weights[0] if alone else weights,
    }


def _fit(image: Image, key: BatchKey) -> Image:
    """Scaled to cover the output's size and cropped around the middle: nothing is distorted."""
    return ImageOps.fit(image, (key.width, key.height), Resampling.LANCZOS)


def _tensor(images: list[Image]) -> torch.Tensor:
    pixels = np.stack([np.asarray(image, np.float32) for image in images]) / 255
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)
