"""Adapters of a compiled pipeline: one place that they all fit into, so that its graphs stay."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils.hotswap import check_hotswap_configs_compatible, prepare_model_for_compiled_hotswap

from worker.pipelines.adapters import Adapters

FRAME = "adapter"  # what the one that is in is called within the pipeline


@dataclass(frozen=True)
class Frame:
    """What the adapters of a model need together.

    members: those that fit into it; layers: the denoiser's modules that any of them changes; rank:
    the highest of any. It follows from the models table alone, never from what was rendered
    before, as another one may change a byte.
    """

    members: frozenset[str]
    layers: tuple[str, ...]
    rank: int

    def __str__(self) -> str:
        return f"adapter frame of rank {self.rank} in {len(self.layers)} layers"


@dataclass
class SwappedAdapters(Adapters):
    """The adapters of a compiled pipeline, of which one alone is loaded.

    Its weights and its scale are copied into a frame, filled up with zeros: what is compiled for
    one adapter holds for all, whatever their ranks, layers and weights (diffusers: hotswapping).

    Those that also change a text encoder, or have a scale a layer, do not fit. They are loaded
    alone, without the frame, and those that look alike share what is compiled for them.
    """

    _frame: Frame | None = None
    _framed: bool = False

    def _switch_to(self, name: str) -> None:
        frame = self._frame = self._frame or self._survey()
        self.modes = dict.fromkeys(frame.members, str(frame))
        if name not in self._loaded:
            self._loaded.clear()
            if name in frame.members:
                self._put_in(name, frame)
            else:
                self._take_out()
                self._load(name, FRAME)
                self.pipeline.set_adapters([FRAME], [self.known[name].weight])
            self._loaded[name] = 0
        self.pipeline.enable_lora()

    def _survey(self) -> Frame:
        """Load each adapter once, to see what it needs. Raises FatalError if one does not load."""
        (component, denoiser), plain = self._denoiser(), LoraConfig()
        ranks: dict[str, int] = {}
        members = []
        for name in self.known:
            self._load(name, FRAME)
            parts = {part for part, names in self.pipeline.get_list_adapters().items() if names}
            if parts == {component} and _fits(plain, denoiser.peft_config[FRAME]):
                members.append(name)
                for path, layer in denoiser.named_modules():
                    if isinstance(layer, LoraLayer):
                        ranks[path] = max(ranks.get(path, 0), layer.r[FRAME])
            self._take_out()
        return Frame(frozenset(members), tuple(sorted(ranks)), max(ranks.values(), default=0))

    def _put_in(self, name: str, frame: Frame) -> None:
        _, denoiser = self._denoiser()
        if not self._framed:
            self._take_out()
            layers = "|".join(map(re.escape, frame.layers))
            config = LoraConfig(r=frame.rank, lora_alpha=frame.rank, target_modules=layers)
            denoiser.add_adapter(config, FRAME)
            # As tensors, which graphs read anew; numbers would be compiled in.
            prepare_model_for_compiled_hotswap(denoiser, check_compiled="ignore")
            self._framed = True
        self._load(name, FRAME, hotswap=True)
        for layer in denoiser.modules():
            if isinstance(layer, LoraLayer):
                layer.scaling[FRAME].mul_(self.known[name].weight)

    def _take_out(self) -> None:
        self.pipeline.unload_lora_weights()
        self._framed = False

    def _forget(self) -> None:
        super()._forget()
        self._framed = False

    def _denoiser(self) -> tuple[str, Any]:
        name = "transformer" if getattr(self.pipeline, "transformer", None) else "unet"
        return name, getattr(self.pipeline, name)


def _fits(frame: LoraConfig, config: Any) -> bool:
    try:
        check_hotswap_configs_compatible(frame, config)
    except ValueError:
        return False
    return not config.lora_bias
