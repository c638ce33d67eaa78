"""The pipelines that one set of weights makes: one a task, each with any of its ControlNets."""

from __future__ import annotations

import inspect
from copy import copy, deepcopy
from dataclasses import dataclass, field
from typing import Any

import diffusers

from jobs.errors import InvalidRequest
from jobs.models.families import GENERIC, Family
from jobs.models.options import Options
from jobs.requests import BatchKey, Task
from worker.pipelines.arguments import active_controls
from worker.pipelines.placement import mark, place

# Diffusers knows which class goes with which. And the field that asks for one.
_DERIVED: dict[Task, tuple[Any, str]] = {
    "generate": (diffusers.AutoPipelineForText2Image, "control_images"),
    "edit": (diffusers.AutoPipelineForImage2Image, "image"),
    "inpaint": (diffusers.AutoPipelineForInpainting, "mask_image"),
}


@dataclass(frozen=True)
class Variant:
    """A pipeline and the names of the arguments that it takes."""

    pipeline: Any
    accepted: frozenset[str]


@dataclass
class Variants:
    """Pipelines by what a batch asks for, made on first use. They share all parts of `base`.

    base: what the weights' model_index.json names; controlnets: in the order of models.toml.
    """

    base: Any
    controlnets: list[Any]
    family: Family
    options: Options
    device: str
    _made: dict[tuple[Task, tuple[int, ...]], Variant] = field(default_factory=dict)

    def get(self, key: BatchKey) -> Variant:
        """The variant that renders a batch.

        Raises:
            InvalidRequest: diffusers has none.
        """
        wanted = _wanted(key)
        if wanted not in self._made:
            pipeline = self._make(*wanted)
            accepted = inspect.signature(type(pipeline).__call__).parameters
            self._made[wanted] = Variant(pipeline, frozenset(accepted))
        return self._made[wanted]

    def can_pause(self, variant: Variant) -> bool:
        """Whether another call may be made between two steps of one.

        Not where steps, or the way of modules to the device, leave something in the modules, nor
        where nobody has proven that bytes stay the same.
        """
        options = self.options
        in_modules = options.hooks_calls or options.step_cache is not None
        proven = self.family is not GENERIC
        return proven and not in_modules and "callback_on_step_end" in variant.accepted

    def call_key(self, key: BatchKey) -> BatchKey:
        """What all requests of one call share."""
        unet = getattr(self.base, "unet", None)
        # Such a UNet is told the guidance, one number for all, instead of rendering twice.
        if unet is not None and unet.config.get("time_cond_proj_dim") is not None:
            return key
        return self.family.call_key(key)

    def class_name(self, key: BatchKey) -> str:
        """The class of the variant that has rendered batches like this one."""
        made = self._made.get(_wanted(key))
        return type(made.pipeline if made else self.base).__name__

    def _make(self, task: Task, controls: tuple[int, ...]) -> Any:
        if not controls and (task == "generate" or self.family.edits_itself):
            return self.base
        auto, field = _DERIVED[task]
        nets = [self.controlnets[number] for number in controls]
        extra = {"controlnet": nets[0] if len(nets) == 1 else nets} if nets else {}
        try:
            pipeline: Any = auto.from_pipe(self.base, **extra)
        except ValueError as error:  # no class, or one that lacks parts
            raise InvalidRequest(field, str(error)) from error
        mark(pipeline, self.options)
        if self.options.hooks_calls:  # they belong to one pipeline
            place(pipeline, self.options, self.device)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def beside(pipeline: Any) -> Any:
    """The same pipeline, for a call while another one is under way.

    What belongs to a call lies in the pipeline itself and in its scheduler; all else is shared.
    """
    another = copy(pipeline)
    another.scheduler = deepcopy(pipeline.scheduler)
    return another


def _wanted(key: BatchKey) -> tuple[Task, tuple[int, ...]]:
    return key.task, active_controls(key)
