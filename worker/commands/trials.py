"""The same requests in several ways in one process: are they the same?

worker/commands/determinism.py starts it: a process has one device and one way to compile.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter

from jobs.errors import FatalError, ImagemillError, UsageError
from jobs.models.table import Model, Route, load_models
from jobs.output.records import Stack
from jobs.requests import BatchKey, Request, Task
from jobs.settings import load_settings
from worker.inputs import Prepared
from worker.render import BatchRenderer, Pixels
from worker.renderers import Renderers

FIRST = "first"
PROCESS = "in another process"
STEPS = 4  # at most, where nobody says

_TASKS: tuple[Task, ...] = ("generate", "edit", "inpaint")  # the first that a model has is tried
_PROMPTS = (
    "a large red circle on a blue background",
    "",
    "a lighthouse at dusk, waves that break on black rocks, heavy clouds, photograph, wide angle",
    "دائرة حمراء 🟥",
)

Call = Sequence[int]  # the numbers of the requests that one pipeline call renders


@dataclass(frozen=True, slots=True)
class Trial:
    """What a process is to render.

    models: the models table's file; route: "model" or "model:adapter"; device: "cpu" or "cuda";
    slots: of each call, 0 for the model's batch_width; steps: 0 for the model's, at most STEPS;
    compile: the option, whatever the table says; first: where the images of the first way are kept.
    If they are there already, this process compares its own with them, and does no more.
    """

    models: str | None
    route: str
    device: str
    slots: int
    steps: int
    compile: bool
    first: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Images of one way beside those of the first: how many differ, and by how much of 255."""

    compared: int
    different: int
    most: int


@dataclass(frozen=True, slots=True)
class Findings:
    """What came of a trial: a comparison for each way; or the problem why there is none."""

    ways: dict[str, Comparison] = field(default_factory=dict)
    stack: Stack | None = None
    problem: str = ""


def ways(count: int, slots: int) -> dict[str, list[Call]]:
    """The calls of each way.

    count: the requests that are compared, a multiple of slots; numbers from it on are others'.
    """
    own = list(range(count))
    mixed = [number for pair in zip(own, range(count, 2 * count), strict=True) for number in pair]

    def calls(numbers: list[int]) -> list[Call]:
        return [numbers[start : start + slots] for start in range(0, len(numbers), slots)]

    found = {
        FIRST: calls(own),
        "again": calls(own),
        "in another order": calls(own[::-1]),
        "among others": calls(mixed),
    }
    return found | ({"padded": [own[1:2], own[:-1]]} if slots > 1 else {})


def compare(pairs: Sequence[tuple[NDArray[np.uint8], Pixels]]) -> Comparison:
    """Pairs of images of one request each."""
    apart = [int(np.abs(one.astype(np.int16) - other).max()) for one, other in pairs]
    return Comparison(len(apart), sum(map(bool, apart)), max(apart, default=0))


def hold(trial: Trial) -> Findings:
    """Render as a trial says.

    Raises:
        ImagemillError: the model does not load or does not render, or not with so many slots.
    """
    table = load_models(load_settings(models=Path(trial.models) if trial.models else None).models)
    route = table.route(trial.route)
    model = table.get(route.model)
    options = model.options.model_copy(update={"compile": trial.compile})
    models = table.models | {route.model: model.model_copy(update={"options": options})}
    renderer = Renderers(replace(table, models=models), trial.device, 1).get(route.model)
    key = make_key(route, model, trial)
    kept = Path(trial.first)
    if kept.exists():
        before, (first, stack) = np.load(kept), render_first(renderer, key)
        return Findings({PROCESS: compare([(before[n], first[n]) for n in first])}, stack)
    first, found = render_ways(renderer, key)
    np.save(kept, np.stack([first[number] for number in sorted(first)]))
    return found


def render_first(renderer: BatchRenderer, key: BatchKey) -> tuple[dict[int, Pixels], Stack]:
    """The images of the first way by the numbers of their requests, and what rendered them.

    Raises:
        FatalError: there is no image, or not with so many slots.
    """
    slots = renderer.slots(key)
    first = _render(renderer, key, ways(max(2, slots), slots)[FIRST])
    return first, replace(renderer.renderer.stack_for(key), batch_width=slots)


def render_ways(renderer: BatchRenderer, key: BatchKey) -> tuple[dict[int, Pixels], Findings]:
    """The images of the first way, and how those of the others compare with them.

    Raises: as render_first.
    """
    slots = renderer.slots(key)
    first, stack = render_first(renderer, key)
    found = {}
    for way, calls in ways(max(2, slots), slots).items():
        if way != FIRST:
            images = _render(renderer, key, calls)
            found[way] = compare([(first[n], images[n]) for n in images if n in first])
    return first, Findings(found, stack)


def make_key(route: Route, model: Model, trial: Trial) -> BatchKey:
    """What the requests share: the model's defaults, in fewer steps.

    Raises:
        UsageError: the model has no such number of slots.
    """
    if trial.slots and not model.takes_slots(trial.slots):
        raise UsageError(
            f"{trial.slots} slots are no power of two up to {route.model}'s batch_width, "
            f"{model.batch_width}"
        )
    task: Task = next((one for one in _TASKS if one in model.takes), "generate")
    edits = task != "generate"
    return BatchKey(
        task=task,
        model=route.model,
        adapter=route.adapter,
        width=model.size[0],
        height=model.size[1],
        steps=trial.steps or min(model.steps, STEPS),
        guidance_scale=model.guidance_scale,
        strength=model.strength if task == "edit" else None,
        inputs=int(edits),
        slots=trial.slots,
    )


def _render(renderer: BatchRenderer, key: BatchKey, calls: list[Call]) -> dict[int, Pixels]:
    """An image for each number. Raises FatalError if there is none, or not with so many slots."""
    slots = renderer.slots(key)
    found: dict[int, Pixels] = {}
    for call in calls:
        rendered = renderer.render([_request(key, number) for number in call])
        for number, one in zip(call, rendered, strict=True):
            if one.pixels is None:
                raise FatalError(f"{key.route} does not render: {one.code}: {one.message}")
            if one.stack.batch_width != slots:
                raise FatalError(f"too little memory for {slots} slots", "Pass fewer: --slots.")
            found[number] = one.pixels
    return found


def _request(key: BatchKey, number: int) -> Prepared:
    # Seeds are short and long, as those of lines and derived ones.
    seed = number + 2**41 * (number % 2)
    prompt = _PROMPTS[number % len(_PROMPTS)]
    request = Request(number, "", key, prompt, "", seed, "png", f"{number:032x}")
    shade = Image.linear_gradient("L").resize((key.width, key.height)).rotate(90 * number)
    mask = shade.rotate(90) if key.task == "inpaint" else None
    return Prepared(request, (shade.convert("RGB"),) * key.inputs, mask=mask)


def main(arguments: Mapping[str, object]) -> None:
    """Hold a trial and print what came of it as JSON, a problem included."""
    trial = TypeAdapter(Trial).validate_python(arguments)
    try:
        found = hold(trial)
    except ImagemillError as error:
        found = Findings(problem=str(error))
    sys.stdout.buffer.write(orjson.dumps(asdict(found)))


if __name__ == "__main__":
    main(orjson.loads(sys.argv[1]))
