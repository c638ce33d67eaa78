"""Which models are loaded in this process."""

from __future__ import annotations

import gc
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial

from jobs.errors import FatalError, ImagemillError
from jobs.models.fingerprints import fingerprint
from jobs.models.table import NULL_REPO, ModelTable
from worker.counts import Counts
from worker.faults import own_fault
from worker.render import BatchRenderer, Renderer

log = logging.getLogger(__name__)


@dataclass
class Renderers:
    """The loaded models of one device process, most recently used last, at most `kept`."""

    table: ModelTable
    device: str
    kept: int
    counts: Counts = field(default_factory=Counts)
    _loaded: OrderedDict[str, BatchRenderer] = field(default_factory=OrderedDict)

    def get(self, name: str) -> BatchRenderer:
        """The model of that name, loaded on first use.

        Raises:
            Unfit: its weights are missing or damaged, the device is not there or too small.
        """
        if name not in self._loaded:
            while len(self._loaded) >= self.kept:
                self._drop(next(iter(self._loaded)))
            gc.collect()  # pipelines are cycles
            started = time.perf_counter()
            with own_fault(name, whole=True), self.counts.timed(name, "load"):
                renderer = self._fit(name)
            self.counts.once("model_loads", name)
            self._loaded[name] = BatchRenderer(renderer, partial(self._make_room, name))
            log.info("Loaded %s in %.1f s", name, time.perf_counter() - started)
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def _fit(self, name: str) -> Renderer:
        """Load a model, without the others if it does not fit beside them."""
        try:
            return self._load(name)
        except MemoryError as error:
            problem = str(error)
        except ImagemillError:
            raise
        except Exception as error:  # of a driver or a library
            raise FatalError(
                f"model {name} does not load: {type(error).__name__}: {error}",
                "The worker's log says where.",
            ) from error
        if self._make_room(name):
            return self._fit(name)
        raise FatalError(
            f"model {name} does not fit into the device's memory: {problem}",
            "Give it a smaller dtype, offload or quantization (docs/04-models.md).",
        )

    def _make_room(self, name: str) -> bool:
        """Drop every model but one, and free what nothing refers to; false if there was none."""
        from worker.pipelines.memory import give_back

        others = [other for other in self._loaded if other != name]
        for other in others:
            log.warning("Dropping model %s: %s needs the memory", other, name)
            self._drop(other)
        give_back()
        return bool(others)

    def _drop(self, name: str) -> None:
        del self._loaded[name]
        self.counts.once("model_drops", name)

    def _load(self, name: str) -> Renderer:
        model = self.table.get(name)
        weights = fingerprint(self.table, model)
        if model.repo == NULL_REPO:
            from worker.null import NullRenderer

            return NullRenderer(model, weights)
        # Takes seconds: a worker that serves only the null model never imports torch.
        from worker.pipelines.load import load_pipeline

        return load_pipeline(self.table, model, weights, self.device)
