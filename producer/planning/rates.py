"""How fast models were on this machine: measured by finished runs, read by `imagemill plan`.

Kept in the user's cache folder; losing it costs only the precision of an estimate.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean

import orjson
from platformdirs import user_cache_path
from pydantic import TypeAdapter, ValidationError

from jobs.models.table import ModelTable
from jobs.output import layout
from jobs.output.records import read_part
from jobs.output.storage import Storage
from jobs.requests import BatchKey
from producer.planning.slots import cost

SAMPLE = 4096  # rows of a run that are enough for a mean


@dataclass(frozen=True, slots=True)
class Rate:
    """Device time of one image, in seconds, and the product that it was measured on."""

    seconds: float
    device: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds of one device for some images; `device` is empty where the rate is only a guess."""

    seconds: float
    device: str = ""


Rates = dict[str, Rate]
_RATES = TypeAdapter(Rates)


def rates_file() -> Path:
    return user_cache_path("imagemill") / "rates.json"


def read_rates(file: Path) -> Rates:
    """The newest rates by model, size, steps and slots; none if the file cannot be read."""
    try:
        return _RATES.validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return {}


def measure(storage: Storage, file: Path) -> None:
    """Remember the rates of a finished run."""
    seconds: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for row in islice(read_part(storage, layout.METADATA), SAMPLE):
        size = (row["width"], row["height"], row["num_inference_steps"], row["batch_width"])
        name = _name(row["model"], row["adapter"], *size)
        seconds[name, row["device_name"]].append(row["seconds_render"])
    new = {name: Rate(fmean(values), device) for (name, device), values in seconds.items()}
    with suppress(OSError):  # a read-only home costs only the estimate
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(orjson.dumps(read_rates(file) | new))


def estimate(key: BatchKey, images: int, table: ModelTable, rates: Rates) -> Estimate:
    """Device time of some images with the same batch key."""
    model = table.get(key.model)
    slots = key.slots_within(model.batch_width)
    rate = rates.get(_name(key.model, key.adapter, key.width, key.height, key.steps, slots))
    if rate:
        return Estimate(images * rate.seconds, rate.device)
    width = model.batch_width  # the guess is of an image in a call of so many
    share = cost(slots, width) / slots / (cost(width, width) / width)
    more = model.times_larger(key.width, key.height) * key.steps / model.steps
    return Estimate(images * model.seconds_per_image * share * more)


def _name(model: str, adapter: str, width: int, height: int, steps: int, slots: int) -> str:
    return f"{model}:{adapter} {width}x{height} {steps} steps {slots} slots"
