"""A request as the text that image tools keep in files, in the form of AUTOMATIC1111's."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.output.records import Stack
from jobs.requests import Request

# What others call diffusers' schedulers; any other goes by its own name.
_SAMPLERS: Mapping[str, str] = {
    "DDIMScheduler": "DDIM",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "DPMSolverSDEScheduler": "DPM++ SDE",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "EulerDiscreteScheduler": "Euler",
    "FlowMatchEulerDiscreteScheduler": "Euler",
    "HeunDiscreteScheduler": "Heun",
    "KDPM2AncestralDiscreteScheduler": "DPM2 a",
    "KDPM2DiscreteScheduler": "DPM2",
    "LCMScheduler": "LCM",
    "LMSDiscreteScheduler": "LMS",
    "UniPCMultistepScheduler": "UniPC",
}


def describe(request: Request, stack: Stack) -> str:
    """Prompt, negative prompt and parameters of a request that this stack renders."""
    key = request.key
    parameters: dict[str, object] = {
        "Steps": key.steps,
        "Sampler": _SAMPLERS.get(stack.scheduler, stack.scheduler),
        "CFG scale": key.guidance_scale,
        "Seed": request.seed,
        "Size": f"{key.width}x{key.height}",
        "Model": key.route,
        "Denoising strength": key.strength,
    }
    lines = [request.prompt]
    if key.negative and request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    given = {name: value for name, value in parameters.items() if value is not None}
    lines.append(", ".join(f"{name}: {_text(value)}" for name, value in given.items()))
    return "\n".join(lines)


def _text(value: object) -> str:
    """A value as others write it: 3 for 3.0, quoted where it would end early."""
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return f'"{text}"' if set(text) & set(',:"\n') else text
