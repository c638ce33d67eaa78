"""Loads diffusers pipelines and renders batches with them, the same way every time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from jobs.errors import FatalError
from jobs.fingerprints import Fingerprint
from jobs.models import Model
from jobs.records import Stack
from jobs.requests import Request
from worker.calls import generate_call
from worker.versions import installed


@dataclass
class PipelineRenderer:
    """A diffusers pipeline on its device."""

    pipeline: Any
    stack: Stack

    def render(self, requests: list[Request]) -> NDArray[np.float32]:
        """Images of one batch: (requests, height, width, 3), RGB in [0, 1].

        Raises:
            MemoryError: the device has too little memory for so many at once.
        """
        # Another model of this process may have set another count.
        torch.set_num_threads(self.stack.threads)
        try:
            images = self.pipeline(**generate_call(requests[0].key, requests)).images
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            raise MemoryError(str(error)) from error
        return np.asarray(images, np.float32)


def load_pipeline(
    source: str | Path, model: Model, weights: Fingerprint, device: str
) -> PipelineRenderer:
    """Load a pipeline from a folder or repository onto "cpu" or "cuda".

    Reads safetensors only and runs no code of the repository.

    Raises:
        FatalError: the weights are missing or damaged, or there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise FatalError(
            "torch sees no GPU", "Install a CUDA build of torch, or start with --devices cpu."
        )
    _make_deterministic()
    torch.set_num_threads(model.threads)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
            source,
            revision=None if isinstance(source, Path) else weights.revision,
            dtype=getattr(torch, model.dtype),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=isinstance(source, Path),
        )
        if model.scheduler:
            scheduler = getattr(diffusers, model.scheduler)
            pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    except Exception as error:  # every library in there has errors of its own
        raise FatalError(
            f"model {model.repo} does not load from {source}: {type(error).__name__}: {error}",
            "Check its row in models.toml and its files, then resume the run.",
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    return PipelineRenderer(
        pipeline,
        Stack(
            repo=weights.repo,
            revision=weights.revision,
            fingerprint=weights.digest,
            pipeline=type(pipeline).__name__,
            scheduler=type(pipeline.scheduler).__name__,
            dtype=model.dtype,
            device=device,
            device_name=torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
            batch_width=model.batch_width,
            threads=model.threads,
            versions=installed("torch", "diffusers", "transformers", "pillow", "imagemill"),
        ),
    )


def _make_deterministic() -> None:
    torch.backends.cudnn.benchmark = False
    # Only a warning where an operation has no deterministic form: some pipelines need one.
    torch.use_deterministic_algorithms(True, warn_only=True)


def _is_out_of_memory(error: RuntimeError) -> bool:
    # The CPU's allocator has no exception of its own.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _cpu_name() -> str:
    """The product as Linux names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return "unknown"
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "unknown")
