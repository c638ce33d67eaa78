"""Loads diffusers pipelines and renders batches with them, the same way every time."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from jobs.errors import FatalError, InvalidRequest
from jobs.marks import mark_name
from jobs.models.families import family_named, family_of
from jobs.models.fingerprints import Fingerprint, adapter_digest
from jobs.models.table import Model, ModelTable
from jobs.output.records import Stack
from jobs.requests import BatchKey
from worker.inputs import Prepared
from worker.pipelines.adapters import Adapters
from worker.pipelines.arguments import Arguments, arguments, check, guidance_each
from worker.pipelines.caching import step_cache
from worker.pipelines.compiling import CompileClock, compile_clock
from worker.pipelines.encoders import Encoder, keep_encoded
from worker.pipelines.guidance import Embedded
from worker.pipelines.memory import is_device_lost, is_out_of_memory, out_of_memory
from worker.pipelines.pixels import as_channels_last, keep_unmasked, to_8_bits
from worker.pipelines.placement import loading_options, mark, place, set_scheduler, tune
from worker.pipelines.prompts import PromptLimit, prompt_limit
from worker.pipelines.savings import Savings
from worker.pipelines.swapping import SwappedAdapters
from worker.pipelines.variants import Variant, Variants, beside
from worker.pipelines.weights import dtype_for, load_parts, load_weights
from worker.process.gpus import Machine
from worker.render import Image, Pause, no_pause
from worker.versions import installed, torch_build

log = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]
StepEnd = Callable[[object, int, object, Tensors], Tensors]  # as diffusers calls it


@dataclass
class PipelineRenderer:
    """A diffusers pipeline on its device, with all its variants and adapters.

    stack: what renders without an adapter.
    """

    variants: Variants
    adapters: Adapters
    limit: PromptLimit
    savings: Savings
    stack: Stack
    encoders: Sequence[Encoder] = ()
    embedded: Embedded = field(default_factory=lambda: Embedded(()))
    _stacks: dict[tuple[str, str, str], Stack] = field(default_factory=dict)
    _under_way: int = 0
    _compile_seconds: float = 0.0

    def render(self, batch: list[Prepared], pause: Pause = no_pause) -> list[Image]:
        """What became of each request of a batch. Raises as `draw`."""
        return keep_unmasked(to_8_bits(*self.draw(batch, pause)), batch)

    def draw(
        self, batch: list[Prepared], pause: Pause = no_pause
    ) -> tuple[torch.Tensor, list[bool]]:
        """Images of one batch, (requests, height, width, 3), RGB in [0, 1], where they were made.

        And of each whether the pipeline's safety checker has made it black.

        Raises:
            MemoryError: the device has too little memory for so many at once.
            InvalidRequest: the pipeline does not take what the requests ask for.
        """
        self._compile_seconds = 0.0
        key = batch[0].request.key
        check(self.variants.family, key)
        variant = self.variants.get(key)
        call = arguments(self.variants.family, variant.accepted, key, batch)
        with compile_clock() as clock:
            if self.variants.can_pause(variant):
                call["callback_on_step_end"] = self._pausing(key, pause, clock)
            try:
                with self.embedded.each(guidance_each(batch)):
                    made = self._call(variant, key, call)
            finally:
                self._compile_seconds = clock.seconds
        pixels = as_channels_last(made.images)
        if pixels.shape[1:3] != (key.height, key.width):
            height, width = pixels.shape[1:3]
            raise InvalidRequest("width", f"this pipeline makes {width} x {height} of it")
        unsafe = getattr(made, "nsfw_content_detected", None) or [False] * len(pixels)
        return pixels, unsafe

    def _call(self, variant: Variant, key: BatchKey, call: Arguments) -> Any:
        pipeline = beside(variant.pipeline) if self._under_way else variant.pipeline
        self._set_up(key)
        self._under_way += 1
        try:
            with step_cache(pipeline, self.variants.family, self.variants.options):
                return pipeline(**call)
        except RuntimeError as error:
            if is_device_lost(error):
                log.exception("The device is lost: this process ends")
                # At once: the chunk goes back, and worker/suspects.py finds out whose fault it is.
                os._exit(1)
            if not is_out_of_memory(error):
                raise
            self.savings.note(self.call_key(key), error)
            raise out_of_memory(error) from error
        finally:
            self._under_way -= 1

    def _set_up(self, key: BatchKey) -> None:
        self.adapters.use(key.adapter)
        self.savings.apply(self.call_key(key))
        # Another model of this process may have set another count.
        torch.set_num_threads(self.stack.threads)

    def _pausing(self, key: BatchKey, pause: Pause, clock: CompileClock) -> StepEnd:
        def step_end(_: object, __: int, ___: object, tensors: Tensors) -> Tensors:
            clock.paused = True
            if pause():  # whatever was rendered meanwhile has set us up for itself
                self._set_up(key)
            clock.paused = False
            return tensors

        return step_end

    def call_key(self, key: BatchKey) -> BatchKey:
        """What all requests of one call share."""
        return self.variants.call_key(key)

    def slots(self, key: BatchKey) -> int:
        """Requests of one call."""
        alone = key.inputs and self.variants.family.inputs > 1
        return 1 if alone else key.slots_within(self.stack.batch_width)

    def fits_inputs(self) -> bool:
        """Only where an edit takes one image."""
        return self.variants.family.inputs == 1

    def save_memory(self, key: BatchKey) -> bool:
        """Need less memory for batches of this key from now on; False if nothing is left to try."""
        kept = [encoder.forget() for encoder in self.encoders]
        return any(kept) or self.savings.more(self.call_key(key), self.slots(key))

    def stack_for(self, key: BatchKey) -> Stack:
        """What renders requests of this key."""
        pipeline = self.variants.class_name(key)
        saved = self.savings.names(self.call_key(key))
        parts = (self.stack.modes, saved, self.adapters.modes.get(key.adapter))
        modes = ", ".join(filter(None, parts))
        name = (pipeline, key.adapter, modes)
        if name not in self._stacks:
            digest = self.stack.fingerprint
            if key.adapter:
                adapter = self.adapters.known.get(key.adapter)
                if adapter is None:
                    raise FatalError(
                        f"this worker's models table has no adapter {key.adapter!r} of the model "
                        f"from {self.stack.repo}",
                        "Give all producers and workers the same models table, then resume.",
                    )
                digest += f"+{adapter_digest(self.adapters.table, adapter)}"
            self._stacks[name] = replace(
                self.stack, pipeline=pipeline, fingerprint=digest, modes=modes
            )
        return self._stacks[name]

    def compile_seconds(self) -> float:
        """Of the last call, also one that failed: how long torch compiled."""
        return self._compile_seconds

    def tokens_cut(self, prompt: str) -> int:
        """Tokens at a prompt's end that the pipeline does not read."""
        return self.limit.cut(prompt)


def load_pipeline(
    table: ModelTable, model: Model, weights: Fingerprint, device: str
) -> PipelineRenderer:
    """Load a model of the table, its ControlNets included, onto "cpu" or "cuda".

    Reads safetensors only and runs no code of the repository.

    Raises:
        FatalError: the weights are missing or damaged, there is no such device, or an option of
            the model does not work.
        MemoryError: the device has too little memory.
    """
    if device == "cuda" and not torch.cuda.is_available():
        build, driver = torch_build(), Machine().driver() or "none"
        raise FatalError(
            f"torch {build.version} for CUDA {build.cuda or 'none'} sees no GPU; driver: {driver}",
            "Bring driver and torch's build together (docs/04-models.md), or start with "
            "--devices cpu.",
        )
    make_deterministic()
    torch.set_num_threads(model.threads)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # Prompts that are cut are told by records (prompt_tokens_cut), not by a line each.
    diffusers.utils.logging.set_verbosity_error()
    dtype = dtype_for(model.dtype, device)
    own, controls = load_parts(table, model, dtype)
    pipeline, variant = load_weights(
        diffusers.DiffusionPipeline, table, model, own | loading_options(model, dtype)
    )
    if model.scheduler:
        set_scheduler(pipeline, model.scheduler)
    mark(pipeline, model.options)
    pipeline.set_progress_bar_config(disable=True)
    family = family_named(model.family or family_of(type(pipeline).__name__))
    if model.batch_width > 1 and not family.batches:
        raise FatalError(
            f"model {model.repo}: {type(pipeline).__name__} renders one request a call",
            "Set its batch_width to 1 in models.toml.",
        )
    try:
        place(pipeline, model.options, device)
        for control in controls:
            control.to(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(error) from error
    tune(pipeline, model.options, device)
    kind = SwappedAdapters if model.options.compile else Adapters
    adapters = kind(pipeline, table, model.adapters, model.adapters_mib * 2**20)
    return PipelineRenderer(
        Variants(pipeline, controls, family, model.options, device),
        adapters,
        prompt_limit(pipeline, family),
        Savings(getattr(pipeline, "vae", None), model.options),
        Stack(
            repo=weights.repo,
            revision=weights.revision,
            fingerprint=weights.digest,
            pipeline=type(pipeline).__name__,
            scheduler=type(pipeline.scheduler).__name__,
            dtype=str(dtype).removeprefix("torch."),
            device=device,
            device_name=torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
            batch_width=model.batch_width,
            threads=model.threads,
            versions=_versions(device),
            modes=_modes(pipeline, model, variant),
            mark=mark_name(model.options.mark),
        ),
        keep_encoded(pipeline, model.options, lambda: adapters.active),
        Embedded([pipeline.transformer, *controls] if family.mixes_guidance == "embedded" else ()),
    )


def _versions(device: str) -> str:
    """Of every library that decides what a pixel is; on a GPU of what is below torch as well."""
    found = installed(
        "torch", "diffusers", "transformers", "accelerate", "peft", "torchao", "pillow", "imagemill"
    )
    if device == "cpu":
        return found
    below = {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "driver": Machine().driver(),
    }
    return ", ".join([found, *(f"{name} {version}" for name, version in below.items() if version)])


def _modes(pipeline: Any, model: Model, variant: str | None) -> str:
    """What of a model is not as usual, or was found by itself."""
    found = [f"variant {variant}"] if variant and not model.variant else []
    if not model.options.safety_checker and hasattr(pipeline, "safety_checker"):
        found.append("safety_checker off")
    return ", ".join(found)


def make_deterministic() -> None:
    """Have torch give the same bits for the same input, as far as it can, in this process."""
    torch.backends.cudnn.benchmark = False
    # Only a warning where an operation has no deterministic form: some pipelines need one.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Else torch fills all memory that it hands out, a 25th of a batch's time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _cpu_name() -> str:
    """The product as Linux names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return "unknown"
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "unknown")
