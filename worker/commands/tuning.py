"""`imagemill models tune`: how many requests to give a call."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Annotated

import orjson
import typer

from jobs.commands import Command
from jobs.errors import UsageError
from jobs.models.families import family_named, family_of
from jobs.models.table import Model, ModelTable, load_models
from jobs.requests import BatchKey, Request
from jobs.settings import load_settings
from worker.commands import options
from worker.commands.ending import explained
from worker.inputs import Prepared
from worker.process.devices import choose_devices
from worker.process.environment import environment
from worker.render import Renderer, no_pause
from worker.renderers import Renderers

WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
GOOD = 0.95  # of the best pace: fewer requests a call leave less to be padded, and more memory
CALLS = 2  # at least, after one that warms up

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Pace:
    """What one width came to: seconds an image, and the peak of the device's memory in bytes."""

    width: int
    seconds: float
    memory: int


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a model came to at a size. problem: why no greater width was tried, if there is one."""

    model: str
    size: tuple[int, int]
    steps: int
    paces: list[Pace]
    problem: str = ""

    @property
    def best(self) -> Pace:
        """The least width that is nearly as fast as any."""
        fastest = min(pace.seconds for pace in self.paces)
        return next(pace for pace in self.paces if pace.seconds * GOOD <= fastest)


@app.command(cls=Command)
def tune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name of the models table.")],
    size: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Of the images.", show_default="the model's"),
    ] = None,
    most: Annotated[
        int, typer.Option(min=1, max=WIDTHS[-1], metavar="N", help="Requests a call, at most.")
    ] = 64,
    seconds: Annotated[float, typer.Option(min=0.1, help="To measure each width for.")] = 10.0,
    devices: options.OneDevice = "auto",
    models_file: options.ModelsFile = None,
    as_json: options.Json = False,
) -> None:
    """Measure images/s and memory by the requests a call has, and print the row for models.toml.

    Widths are doubled until memory runs out. Of those within 5 % of the fastest the least is best:
    it pads less, and leaves memory to other models.
    """
    with explained():
        settings = load_settings(models=models_file)
        table = load_models(settings.models)
        row = table.get(model)
        width, height = parse_size(size, row)
        device = choose_devices(devices)[0]
        # Before torch is imported. What transformers has to say of image processors helps nobody.
        os.environ.update(environment(device, 1) | {"TRANSFORMERS_VERBOSITY": "error"})
        found = measure(table, model, (width, height), most, seconds, device.kind)
    if as_json:
        told = asdict(found) | {"batch_width": found.best.width}
        typer.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
    else:
        for line in as_text(found):
            typer.echo(line)


def parse_size(size: str | None, model: Model) -> tuple[int, int]:
    """The pixels that "WIDTHxHEIGHT" says; the model's own without it.

    Raises:
        UsageError: it says none, or none that the model makes.
    """
    if size is None:
        return model.size
    width, _, height = size.partition("x")
    hint = f"Give one such as {model.size[0]}x{model.size[1]}."
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f"--size {size}: this is not WIDTHxHEIGHT", hint)
    if any(n == 0 or n % model.size_multiple for n in (int(width), int(height))):
        raise UsageError(f"--size {size}: the model makes multiples of {model.size_multiple}", hint)
    return int(width), int(height)


def measure(
    table: ModelTable, name: str, size: tuple[int, int], most: int, seconds: float, device: str
) -> Tuning:
    """Render calls of each width for some seconds.

    Raises:
        FatalError: the model does not load.
        UsageError: it only edits; or not even one request fits into the device's memory.
    """
    model = table.get(name)
    if "generate" not in model.takes:
        raise UsageError(
            f"model {name} only edits, and there is no image here to be edited",
            "Measure it with a run: imagemill status tells the images/s.",
        )
    from worker.pipelines.memory import peak, reset_peak  # takes seconds: names are checked before

    renderer = Renderers(table, device, 1).get(name).renderer
    pipeline = renderer.stack_for(_key(name, model, size, 1)).pipeline
    family = family_named(model.family or family_of(pipeline))
    batches = family.batches and not model.options.step_cache
    paces: list[Pace] = []
    for width in takewhile(lambda width: width <= (most if batches else 1), WIDTHS):
        reset_peak()
        try:
            pace = _pace(renderer, name, model, size, width, seconds)
        except MemoryError as error:
            if not paces:
                raise UsageError(
                    f"model {name}: one request of {size[0]}x{size[1]} needs more memory: {error}",
                    "Give it a smaller dtype, offload or quantization (docs/04-models.md).",
                ) from error
            return Tuning(name, size, model.steps, paces, f"{width} do not fit into memory")
        paces.append(Pace(width, pace, peak()))
        typer.echo(_line(paces[-1]), err=True)
    return Tuning(name, size, model.steps, paces)


def _pace(
    renderer: Renderer, name: str, model: Model, size: tuple[int, int], width: int, seconds: float
) -> float:
    """Seconds of an image; the first call warms up, and counts for nothing."""
    batch = [_prepared(_key(name, model, size, width), seed) for seed in range(width)]
    spans = list(_timed(renderer, batch, seconds))
    return sum(spans) / len(spans) / width


def _timed(renderer: Renderer, batch: list[Prepared], seconds: float) -> Iterator[float]:
    renderer.render(batch, no_pause)
    calls, began = 0, time.monotonic()
    while calls < CALLS or time.monotonic() - began < seconds:
        started, calls = time.monotonic(), calls + 1
        renderer.render(batch, no_pause)
        yield time.monotonic() - started


def _key(name: str, model: Model, size: tuple[int, int], slots: int) -> BatchKey:
    return BatchKey("generate", name, "", *size, model.steps, model.guidance_scale, slots=slots)


def _prepared(key: BatchKey, seed: int) -> Prepared:
    prompt = f"a large red circle on a blue background, number {seed}"
    return Prepared(Request(seed, str(seed), key, prompt, "", seed, "png", f"{seed:032x}"))


def _line(pace: Pace) -> str:
    images, gigabytes = 1 / pace.seconds, pace.memory / 2**30
    return f"{pace.width:4} a call: {images:8.2f} images/s, {gigabytes:6.2f} GiB"


def as_text(found: Tuning) -> Iterator[str]:
    """The row of models.toml, with what it was measured at."""
    if found.problem:
        yield f"# {found.problem}"
    yield f"# at {found.size[0]}x{found.size[1]} and {found.steps} steps"
    is_bare = re.fullmatch(r"[A-Za-z0-9_-]+", found.model)  # else TOML wants it in quotes
    yield f"[models.{found.model}]" if is_bare else f'[models."{found.model}"]'
    yield f"batch_width = {found.best.width}"
    yield f"seconds_per_image = {found.best.seconds:.3g}"


if __name__ == "__main__":
    app(prog_name="imagemill models tune")
