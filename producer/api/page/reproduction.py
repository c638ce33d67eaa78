"""One record as others can use it: a line of a manifest, a call over HTTP."""

from __future__ import annotations

import shlex
from typing import Any

import orjson

from jobs.requests import Request


def manifest_line(request: Request, slots: int) -> str:
    """The manifest line that renders the same image. slots: of the call that made it."""
    key = request.key
    line: dict[str, Any] = {"custom_id": request.custom_id} if request.custom_id else {}
    line |= {
        "prompt": request.prompt,
        "model": key.route,
        "seed": request.seed,
        "num_inference_steps": key.steps,
        "width": key.width,
        "height": key.height,
        "response_format": request.format,
        "slots": slots,
    }
    for name, value in (("guidance_scale", key.guidance_scale), ("strength", key.strength)):
        if value is not None:
            line[name] = value
    if key.negative:
        line["negative_prompt"] = request.negative_prompt
    if request.images:
        line["image"] = list(request.inputs)
    if request.mask:
        line["mask_image"] = request.mask
    if request.control_images:
        line["control_images"] = list(request.control_images)
        line["controlnet_weights"] = list(key.controlnet_weights)
    return orjson.dumps(line).decode()


def curl(request: Request, base_url: str, needs_key: bool) -> str | None:
    """The call that renders the same image; None for one whose inputs only its run has.

    base_url: of the facade, without a final slash.
    """
    if request.images or request.control_images:
        return None
    key = request.key
    body: dict[str, Any] = {"prompt": request.prompt, "model": key.route, "seed": request.seed}
    body |= {"num_inference_steps": key.steps, "width": key.width, "height": key.height}
    if key.guidance_scale is not None:
        body["guidance_scale"] = key.guidance_scale
    if key.negative:
        body["negative_prompt"] = request.negative_prompt
    parts = [f"curl {shlex.quote(f'{base_url}/v1/images/generations')}"]
    if needs_key:
        parts.append("-H 'Authorization: Bearer YOUR-TOKEN'")
    parts.append("-H 'Content-Type: application/json'")
    parts.append(f"-d {shlex.quote(orjson.dumps(body).decode())}")
    return " \\\n  ".join(parts)
