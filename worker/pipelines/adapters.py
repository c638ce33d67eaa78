"""Adapters (LoRA) of one loaded pipeline: loaded on first use, switched without loading again."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.errors import FatalError
from jobs.models.fingerprints import revision_of
from jobs.models.hub import advice, remember_first
from jobs.models.table import Adapter, ModelTable
from worker.pipelines.weights import fetch


@dataclass
class Adapters:
    """The adapters of a pipeline, least recently used first. They never get fused.

    Fused weights, taken off again, are no longer the same bytes; adapters beside them leave no
    trace. Pipelines that were derived from this one share its parts and so its adapter.

    modes: of those that are rendered in another than the usual way, as records tell it.
    """

    pipeline: Any
    table: ModelTable
    known: Mapping[str, Adapter]
    budget: int  # bytes
    modes: Mapping[str, str] = field(default_factory=dict)
    _loaded: OrderedDict[str, int] = field(default_factory=OrderedDict)
    _active: str | None = ""

    def use(self, name: str) -> None:
        """Render with this adapter from now on; "" is the bare model.

        Raises:
            FatalError: its weights do not load.
        """
        if name != self._active:
            self._active = None  # nobody knows, should this fail half way
            if name:
                self._switch_to(name)
            elif self._loaded:
                self.pipeline.disable_lora()
            self._active = name
        if name:
            self._loaded.move_to_end(name)
            self._shrink(name)

    @property
    def active(self) -> str | None:
        """The one that renders now; "" for none."""
        return self._active

    @property
    def loaded(self) -> list[str]:
        """Names, least recently used first."""
        return list(self._loaded)

    def _switch_to(self, name: str) -> None:
        if name not in self._loaded:
            before = self._bytes()
            self._load(name, name)
            self._loaded[name] = self._bytes() - before
        self.pipeline.enable_lora()
        self.pipeline.set_adapters([name], [self.known[name].weight])

    def _load(self, name: str, inside: str, hotswap: bool = False) -> None:
        """Read an adapter's weights into the pipeline, where it is called `inside`.

        hotswap: in the place of the one that is called so.

        Raises:
            FatalError: they cannot be had, or do not load.
        """
        adapter = self.known[name]
        folder, file = _weights_file(self._folder(adapter))
        try:
            with warnings.catch_warnings():
                # That there are several adapters now is what we want.
                warnings.filterwarnings("ignore", "Already found a `peft_config`")
                self.pipeline.load_lora_weights(
                    str(folder),
                    weight_name=file,
                    adapter_name=inside,
                    use_safetensors=True,
                    local_files_only=True,
                    hotswap=hotswap,
                )
        except Exception as error:  # every library in there has errors of its own
            # It may lie in one half of the pipeline: no later image may show it.
            self._forget()
            raise FatalError(
                f"adapter {name} does not load from {folder}: {type(error).__name__}: {error}",
                "Check its row in models.toml and its files, then resume the run.",
            ) from error

    def _forget(self) -> None:
        self.pipeline.unload_lora_weights()
        self._loaded.clear()

    def _folder(self, adapter: Adapter) -> Path:
        """Where an adapter's files are, once a repository's are fetched.

        Raises:
            FatalError: they cannot be had.
        """
        source = self.table.source(adapter)
        if isinstance(source, Path):
            return source
        try:
            commit = revision_of(self.table, adapter)
            folder = fetch(source, commit, adapter)
        except Exception as error:  # of the hub's library, or of its HTTP library
            raise FatalError(
                f"adapter {source} is not to be had: {type(error).__name__}: {error}",
                advice(error) or "Check its row in models.toml and the network, then resume.",
            ) from error
        remember_first(source, adapter.revision, commit)
        return folder

    def _shrink(self, keep: str) -> None:
        while sum(self._loaded.values()) > self.budget and len(self._loaded) > 1:
            oldest = next(name for name in self._loaded if name != keep)
            self.pipeline.delete_adapters(oldest)
            del self._loaded[oldest]

    def _bytes(self) -> int:
        modules = (
            part for part in self.pipeline.components.values() if hasattr(part, "parameters")
        )
        return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


def _weights_file(source: Path) -> tuple[Path, str]:
    if source.is_file() and source.suffix == ".safetensors":
        return source.parent, source.name
    files = sorted(source.glob("*.safetensors"))  # of a file: none
    if len(files) != 1:
        raise FatalError(
            f"adapter {source} has {len(files)} .safetensors files",
            "Name the file itself in models.toml.",
        )
    return source, files[0].name
