"""What a worker renders before the first message asks: a compiled model would keep it waiting."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from itertools import product

from PIL import Image

from jobs.models.table import Model
from jobs.requests import BatchKey, Request
from worker.inputs import Prepared
from worker.render import BatchRenderer

WARM_SECONDS = 300.0  # after them no further call is begun: messages wait

log = logging.getLogger(__name__)


def warm_up(renderer: BatchRenderer, name: str, model: Model) -> None:
    """Render a call of each kind that a model is asked for, of the fewest steps. Never raises.

    At the model's own size: the slots of runs and of calls, with its first adapter, as all share
    their graphs, and bare. Other sizes are compiled when they are first rendered.
    """
    started = time.monotonic()
    for key in kinds(name, model):
        if time.monotonic() - started > WARM_SECONDS:
            log.warning("Model %s is not warm after %d s: going on", name, WARM_SECONDS)
            return
        try:
            (rendered,) = renderer.render([_request(key)])
        except Exception:  # whoever asks for such a batch will be told
            log.exception("Model %s does not warm up: %s", name, key)
            continue
        if rendered.status != "done":
            log.warning("Model %s does not warm up: %s", name, rendered.message)
    log.info("Model %s was warm after %.1f s", name, time.monotonic() - started)


def kinds(name: str, model: Model) -> Iterator[BatchKey]:
    """The batch keys that are rendered; of each adapter the most likely first.

    Bare ones come last: once an adapter has been loaded, their graphs are others.
    """
    edits = "generate" not in model.takes
    slots = dict.fromkeys([model.batch_width, *model.call_slots])
    adapters = [*list(model.adapters)[:1], ""]
    for adapter, some in product(adapters, slots):
        yield BatchKey(
            task="edit" if edits else "generate",
            model=name,
            adapter=adapter,
            width=model.size[0],
            height=model.size[1],
            # Of an edit, strength says which part of its steps is done.
            steps=math.ceil(2 / (model.strength or 1)) if edits else 2,
            guidance_scale=model.guidance_scale,
            strength=model.strength if edits else None,
            inputs=int(edits),
            slots=some,
        )


def _request(key: BatchKey) -> Prepared:
    request = Request(0, "", key, "a red circle", "", 0, "png", "0" * 32)
    return Prepared(request, (Image.new("RGB", (key.width, key.height)),) * key.inputs)
