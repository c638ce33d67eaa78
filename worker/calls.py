"""What a pipeline is called with for a batch of requests."""

from __future__ import annotations

from typing import TypedDict

import torch

from jobs.requests import BatchKey, Request


class Call(TypedDict, total=False):
    """Arguments of a diffusers pipeline; what is left out stays at the pipeline's own default."""

    prompt: list[str]
    negative_prompt: list[str]
    num_inference_steps: int
    guidance_scale: float
    width: int
    height: int
    generator: list[torch.Generator]
    output_type: str


def generate_call(key: BatchKey, requests: list[Request]) -> Call:
    """Arguments for text to image; one row of every list for each request."""
    call = Call(
        prompt=[request.prompt for request in requests],
        num_inference_steps=key.steps,
        width=key.width,
        height=key.height,
        generator=generators(requests),
        output_type="np",
    )
    if key.guidance_scale is not None:
        call["guidance_scale"] = key.guidance_scale
    if key.negative:
        call["negative_prompt"] = [request.negative_prompt for request in requests]
    return call


def generators(requests: list[Request]) -> list[torch.Generator]:
    """One a request, so that its noise does not depend on its neighbours.

    On the CPU, because the same seed then gives the same noise for every kind of device.
    """
    return [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
