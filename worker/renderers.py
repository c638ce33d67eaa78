"""Which models are loaded in this process."""

from __future__ import annotations

import gc
import logging
import time
from collections import ChainMap, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from jobs.errors import FatalError, ImagemillError
from jobs.models.fingerprints import fingerprint, unpinned
from jobs.models.hub import cached_commit
from jobs.models.table import NULL_REPO, ModelTable
from worker.counts import Counts
from worker.faults import own_fault
from worker.render import BatchRenderer, Renderer
from worker.warmup import warm_up

log = logging.getLogger(__name__)


_NONE: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Choice:
    """A model, with other commits than this machine's own where a run was planned with others."""

    model: str
    commits: frozenset[tuple[str, str]] = frozenset()

    def __str__(self) -> str:
        return ", ".join([self.model, *(f"{name} at {commit}" for name, commit in self.commits)])


@dataclass
class Renderers:
    """The loaded models of one device process, most recently used last, at most `kept`.

    warms: whether compiled models are rendered with once they are loaded, so that nobody waits;
    loaded: the names of those of this machine's own commits, as calls have them, for any thread.
    """

    table: ModelTable
    device: str
    kept: int
    counts: Counts = field(default_factory=Counts)
    warms: bool = False
    loaded: frozenset[str] = frozenset()
    _loaded: OrderedDict[Choice, BatchRenderer] = field(default_factory=OrderedDict)

    def get(self, name: str, commits: Mapping[str, str] = _NONE) -> BatchRenderer:
        """The model of that name, loaded on first use.

        commits: those that a run was planned with; of what they do not say, this machine's own.

        Raises:
            Unfit: its weights are missing or damaged, the device is not there or too small.
        """
        choice = Choice(name, self._foreign(name, commits))
        if choice not in self._loaded:
            while len(self._loaded) >= self.kept:
                self._drop(next(iter(self._loaded)))
            gc.collect()  # pipelines are cycles
            started = time.perf_counter()
            with own_fault(name, whole=not choice.commits), self.counts.timed(name, "load"):
                loaded = BatchRenderer(self._fit(choice), partial(self._make_room, choice))
            self.counts.once("model_loads", name)
            self._loaded[choice] = loaded
            self._note()
            log.info("Loaded %s in %.1f s", choice, time.perf_counter() - started)
            if self.warms and (model := self.table.get(name)).options.compile:
                with self.counts.timed(name, "load"):
                    warm_up(loaded, name, model)
        self._loaded.move_to_end(choice)
        return self._loaded[choice]

    def _foreign(self, name: str, commits: Mapping[str, str]) -> frozenset[tuple[str, str]]:
        """The planned commits of a model's weights that are not this machine's own.

        Its own is the one that its cache has; where it has none, the first that a run names. It
        stays so for the life of the process, as what is loaded does.
        """
        model, own = self.table.get(name), self.table.commits
        foreign = set[tuple[str, str]]()
        for weights, one in unpinned(self.table, model, model.adapters.values()).items():
            planned = commits.get(weights)
            if weights not in own and (mine := cached_commit(one.repo, one.revision) or planned):
                own[weights] = mine
            if planned and planned != own[weights]:
                foreign.add((weights, planned))
        return frozenset(foreign)

    def _fit(self, choice: Choice) -> Renderer:
        """Load a model, without the others if it does not fit beside them."""
        name = choice.model
        try:
            return self._load(choice)
        except MemoryError as error:
            problem = str(error)
        except ImagemillError:
            raise
        except Exception as error:  # of a driver or a library
            raise FatalError(
                f"model {name} does not load: {type(error).__name__}: {error}",
                "The worker's log says where.",
            ) from error
        if self._make_room(choice):
            return self._fit(choice)
        raise FatalError(
            f"model {name} does not fit into the device's memory: {problem}",
            "Give it a smaller dtype, offload or quantization (docs/04-models.md).",
        )

    def _make_room(self, choice: Choice) -> bool:
        """Drop every model but one, and free what nothing refers to; false if there was none."""
        from worker.pipelines.memory import give_back

        others = [other for other in self._loaded if other != choice]
        for other in others:
            log.warning("Dropping model %s: %s needs the memory", other, choice)
            self._drop(other)
        give_back()
        return bool(others)

    def _drop(self, choice: Choice) -> None:
        del self._loaded[choice]
        self._note()
        self.counts.once("model_drops", choice.model)

    def _note(self) -> None:
        self.loaded = frozenset(one.model for one in self._loaded if not one.commits)

    def _load(self, choice: Choice) -> Renderer:
        model = self.table.get(choice.model)
        # This machine's own stay looked up: it may get to know more of them.
        table = replace(self.table, commits=ChainMap(dict(choice.commits), self.table.commits))
        weights = fingerprint(table, model)
        if model.repo == NULL_REPO:
            from worker.null import NullRenderer

            return NullRenderer(model, weights)
        # Takes seconds: a worker that serves only the null model never imports torch.
        from worker.pipelines.load import load_pipeline

        return load_pipeline(table, model, weights, self.device)
