"""Which models are loaded in this process."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from jobs.fingerprints import NULL_REPO, fingerprint
from jobs.models import ModelTable
from worker.render import BatchRenderer, Renderer

KEPT = 2  # models that stay loaded in a process

log = logging.getLogger(__name__)


@dataclass
class Renderers:
    """The loaded models of one device process, most recently used last."""

    table: ModelTable
    device: str
    _loaded: OrderedDict[str, BatchRenderer] = field(default_factory=OrderedDict)

    def get(self, name: str) -> BatchRenderer:
        """The model of that name, loaded on first use.

        Raises:
            FatalError: its weights are missing or damaged, or the device is not there.
        """
        if name not in self._loaded:
            while len(self._loaded) >= KEPT:
                self._loaded.popitem(last=False)
            started = time.perf_counter()
            self._loaded[name] = BatchRenderer(self._load(name))
            log.info("Loaded %s in %.1f s", name, time.perf_counter() - started)
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def _load(self, name: str) -> Renderer:
        model = self.table.get(name)
        weights = fingerprint(self.table, model)
        if model.repo == NULL_REPO:
            from worker.null import NullRenderer

            return NullRenderer(model, weights)
        # Takes seconds: a worker that serves only the null model never imports torch.
        from worker.pipelines import load_pipeline

        return load_pipeline(self.table, model, weights, self.device)
