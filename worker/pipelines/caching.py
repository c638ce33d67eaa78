"""Caches of steps (options.step_cache) around one call of a pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jobs.errors import InvalidRequest
from jobs.models.families import Family
from jobs.models.options import Options


@contextmanager
def step_cache(pipeline: Any, family: Family, options: Options) -> Iterator[None]:
    """Cache the steps of the call in this block, and nothing beyond it.

    A cache tells the denoiser's calls of one step apart by a context. Some pipelines open one
    around each; for the others it is opened here, once, as their denoiser is called once a step.

    Raises:
        InvalidRequest: it is called twice, for guidance, without a context of its own.
    """
    if options.step_cache is None:
        yield
        return
    denoiser = pipeline.transformer  # UNets have no caches: the option was refused at start
    try:
        if "cache_context(" in inspect.getsource(type(pipeline).__call__):
            yield
        elif family.empty_negative is not None:
            name = type(pipeline).__name__
            raise InvalidRequest("model", f"{name} cannot use the model's option step_cache")
        else:
            with denoiser.cache_context("cond"):
                yield
    finally:
        # Also after a call that failed half way: the next one starts anew.
        denoiser._reset_stateful_cache()
