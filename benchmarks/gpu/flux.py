"""A transformer of FLUX.1-dev's size: seconds of a step, as it is and compiled."""

from __future__ import annotations

import shutil
import time
from hashlib import sha256
from statistics import median

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

from benchmarks.gpu.step import Day, Notes, found_by
from benchmarks.real_sizes import REAL, TINY, flux_transformer, random_weights
from jobs.errors import FatalError
from worker.pipelines.compiling import compile_clock, compile_denoiser
from worker.pipelines.load import make_deterministic
from worker.pipelines.memory import is_out_of_memory, peak, reset_peak

SLOTS = (1, 2, 4)
STEPS = 28  # of an image
TEXT = 512  # tokens of a prompt
CALLS = 5  # that are timed, after one that warms up

Inputs = dict[str, torch.Tensor]


def measure(day: Day, notes: Notes) -> None:
    """As it is, then compiled with nothing compiled before."""
    shutil.rmtree(day.weights / "compiled", ignore_errors=True)
    transformer = _build(day, notes)
    _rows(day, notes, transformer, "eager")
    _compile(day, transformer)
    _rows(day, notes, transformer, "compiled")
    _refuse(notes)


def repeat(day: Day, notes: Notes) -> None:
    """Compiled in another process, which finds what the first one has compiled."""
    before = found_by("flux", day, "steps")
    transformer = _build(day, notes)
    _compile(day, transformer)
    _rows(day, notes, transformer, "compiled")
    first = {(row["mode"], row["slots"]): row["sha256"] for row in before}
    rows = [row for row in notes.found.get("steps", ()) if (row["mode"], row["slots"]) in first]
    different = sum(first[row["mode"], row["slots"]] != row["sha256"] for row in rows)
    notes.tell(compared=len(rows), different=different)
    if different:
        raise FatalError(f"{different} of {len(rows)} results differ from the first process's")


def _build(day: Day, notes: Notes) -> FluxTransformer2DModel:
    make_deterministic()
    started = time.monotonic()
    kind = torch.bfloat16 if day.device == "cuda" else torch.float32
    with random_weights(day.device, kind):
        transformer = flux_transformer(REAL if day.is_real else TINY)
    parameters = sum(one.numel() for one in transformer.parameters())
    notes.tell(seconds_build=time.monotonic() - started, parameters=parameters)
    return transformer


def _compile(day: Day, transformer: FluxTransformer2DModel) -> None:
    # Of tiny ones the compiler of the CPU would take minutes, and tell nothing of a GPU.
    compile_denoiser(transformer, day.device, "inductor" if day.is_real else "eager")


def _rows(day: Day, notes: Notes, transformer: FluxTransformer2DModel, mode: str) -> None:
    for slots in SLOTS:
        try:
            notes.row("steps", mode=mode, slots=slots, **_times(day, transformer, slots))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            notes.row("problems", mode=mode, slots=slots, problem=str(error))


def _refuse(notes: Notes) -> None:
    rows = notes.found.get("steps", ())
    if bad := [row for row in rows if not row["equal"] or not row["finite"]]:
        raise FatalError(f"{len(bad)} of {len(rows)} are not equal or not finite: see steps")


@torch.no_grad()
def _times(day: Day, transformer: FluxTransformer2DModel, slots: int) -> dict[str, object]:
    inputs = _inputs(day, transformer, slots)
    reset_peak()
    with compile_clock() as clock:
        first, seconds = _call(day, transformer, inputs)
    calls = [_call(day, transformer, inputs) for _ in range(CALLS if day.is_real else 2)]
    step = median(spent for _, spent in calls)
    digests = {_digest(made) for made, _ in [(first, 0.0), *calls]}
    return {
        "step": step,
        "steps_of_an_image": STEPS * step / slots,
        "first_call": seconds,
        "compiling": clock.seconds,
        "peak_bytes": peak(),
        "finite": bool(first.isfinite().all()),
        "equal": len(digests) == 1,
        "sha256": _digest(first),
    }


def _call(
    day: Day, transformer: FluxTransformer2DModel, inputs: Inputs
) -> tuple[torch.Tensor, float]:
    _wait(day)
    started = time.perf_counter()
    made = transformer(**inputs, return_dict=False)[0]
    _wait(day)
    return made, time.perf_counter() - started


def _wait(day: Day) -> None:
    if day.device == "cuda":
        torch.cuda.synchronize()


def _inputs(day: Day, transformer: FluxTransformer2DModel, slots: int) -> Inputs:
    """What FluxPipeline gives it for an image of 1024 x 1024; tiny: 64 x 64. Row n is always the
    same."""

    def placed(values: torch.Tensor) -> torch.Tensor:
        return values.to(day.device, transformer.dtype)

    config, side = transformer.config, 64 if day.is_real else 4
    rows = []
    for number in range(slots):
        noise = torch.Generator("cpu").manual_seed(number)
        shapes = (
            (side * side, config["in_channels"]),
            (TEXT if day.is_real else 8, config["joint_attention_dim"]),
            (config["pooled_projection_dim"],),
        )
        rows.append([torch.randn(shape, generator=noise) for shape in shapes])
    latents, text, pooled = (placed(torch.stack(some)) for some in zip(*rows, strict=True))
    ids = torch.zeros(side, side, 3)
    ids[..., 1] += torch.arange(side)[:, None]
    ids[..., 2] += torch.arange(side)[None, :]
    return {
        "hidden_states": latents,
        "encoder_hidden_states": text,
        "pooled_projections": pooled,
        "timestep": placed(torch.full((slots,), 0.5)),
        "guidance": torch.full((slots,), 3.5, device=day.device),
        "img_ids": placed(ids.reshape(-1, 3)),
        "txt_ids": placed(torch.zeros(text.shape[1], 3)),
    }


def _digest(made: torch.Tensor) -> str:
    return sha256(made.float().cpu().numpy().tobytes()).hexdigest()[:16]
