"""Puts pipelines on their device as the options of models.toml say. All work is diffusers' own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import diffusers.quantizers.auto
import torch
import transformers.quantizers.auto
from diffusers.quantizers.pipe_quant_config import PipelineQuantizationConfig

from jobs.errors import FatalError
from jobs.models.options import Options, Quantization
from jobs.models.table import Model
from worker.pipelines.compiling import compile_denoiser

ENCODER = "text_encoder"  # how the names of a pipeline's text encoders begin


def loading_options(model: Model, dtype: torch.dtype) -> dict[str, Any]:
    """What DiffusionPipeline.from_pretrained gets.

    Raises:
        FatalError: the quantization does not work here.
    """
    # What a class does not take it ignores.
    options: dict[str, Any] = {"dtype": dtype, "add_watermarker": model.options.watermark}
    if not model.options.safety_checker:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    if model.options.quantization:
        with _naming("quantization"):
            options["quantization_config"] = _quantization(model.options.quantization)
    return options


def place(pipeline: Any, options: Options, device: str) -> None:
    """Move a whole pipeline to "cpu" or "cuda".

    Raises:
        FatalError: it cannot be offloaded.
    """
    if options.offload is None:
        pipeline.to(device)
        return
    with _naming("offload"):
        if options.offload == "encoders":
            rest = [name for name in pipeline.components if not name.startswith(ENCODER)]
            pipeline.enable_group_offload(
                torch.device(device), offload_type="leaf_level", exclude_modules=rest
            )
        elif options.offload == "model":
            pipeline.enable_model_cpu_offload()
        else:
            pipeline.enable_sequential_cpu_offload()


def mark(pipeline: Any, options: Options) -> None:
    """Have no watermark in images unless the row asks for one.

    Each pipeline decides for itself, by the packages that it finds.

    Raises:
        FatalError: the row asks, and the pipeline has none.
    """
    if not options.watermark:
        pipeline.watermark = None
    elif getattr(pipeline, "watermark", None) is None:
        raise FatalError(
            f"option watermark: {type(pipeline).__name__} has none",
            "Leave it out in models.toml (docs/04-models.md), then start the worker again.",
        )


def tune(pipeline: Any, options: Options, device: str) -> None:
    """Apply the options that belong to a pipeline's parts, once; others derived from it share them.

    device: "cpu" or "cuda", where it is.

    Raises:
        FatalError: diffusers refuses an option; it is named.
    """
    # Not every pipeline has a transformer, and not all have a VAE.
    denoiser: Any = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
    steps: dict[str, tuple[object, Callable[[], object]]] = {
        # Done when it was loaded, but diffusers leaves out a component that it does not know.
        "quantization": (
            options.quantization,
            lambda: [getattr(pipeline, name) for name in _quantized(options)],
        ),
        "channels_last": (
            options.channels_last,
            lambda: denoiser.to(memory_format=torch.channels_last),
        ),
        "attention": (
            options.attention,
            lambda: denoiser.set_attention_backend(options.attention),
        ),
        "vae_slicing": (options.vae_slicing, lambda: pipeline.vae.enable_slicing()),
        "vae_tiling": (options.vae_tiling, lambda: pipeline.vae.enable_tiling()),
        "step_cache": (
            options.step_cache,
            lambda: denoiser.enable_cache(_step_cache(denoiser, options)),
        ),
        # Last, so that it compiles what the others have made.
        "compile": (options.compile, lambda: compile_denoiser(denoiser, device)),
    }
    for name, (wanted, apply) in steps.items():
        if wanted:
            with _naming(name):
                apply()


def set_scheduler(pipeline: Any, name: str) -> None:
    """Replace the scheduler by another of diffusers', with the same configuration.

    Raises:
        FatalError: there is none of that name, or the pipeline's configuration does not suit it.
    """
    with _naming("scheduler"):
        scheduler = getattr(diffusers, name)
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)


def _quantized(options: Options) -> tuple[str, ...]:
    assert options.quantization
    return options.quantization.components


def _step_cache(denoiser: object, options: Options) -> object:
    assert options.step_cache
    pair = (type(denoiser).__name__, options.step_cache.kind)
    if pair == ("Flux2Transformer2DModel", "FirstBlockCache"):
        # diffusers 0.42 subtracts the pair that a double block returns from a tensor.
        raise ValueError("FirstBlockCache fails on FLUX.2 in each request; MagCache does not")
    config = getattr(diffusers.hooks, f"{options.step_cache.kind}Config")
    return config(**options.step_cache.arguments)


def _quantization(wanted: Quantization) -> PipelineQuantizationConfig:
    arguments: dict[str, Any] = dict(wanted.arguments)
    if wanted.backend == "torchao":
        import torchao.quantization as kinds  # a package that few models need

        arguments = {"quant_type": getattr(kinds, wanted.kind)(**arguments)}
    else:
        arguments[f"load_in_{wanted.backend.removeprefix('bitsandbytes_')}"] = True
    # A configuration for each component: those of the two libraries differ for one backend.
    return PipelineQuantizationConfig(
        quant_mapping={
            name: _configurations(name)[wanted.backend](**arguments) for name in wanted.components
        }
    )


def _configurations(component: str) -> Any:
    """By backend, of the library that a pipeline's component comes from."""
    encodes = component.startswith(("text_encoder", "image_encoder"))
    library = transformers.quantizers.auto if encodes else diffusers.quantizers.auto
    return library.AUTO_QUANTIZATION_CONFIG_MAPPING


@contextmanager
def _naming(option: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # every library in there has errors of its own
        raise FatalError(
            f"option {option}: {type(error).__name__}: {error}",
            "Change it in models.toml (docs/04-models.md), then start the worker again.",
        ) from error
