"""The models table: what each model is and what it takes, read from models.toml without torch.

A model is found by its name in the table, as a local pipeline folder, or as the name of a
diffusers repository ("org/name"). An adapter is named after a colon, "sdxl:outline", or alone.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jobs.errors import ImagemillError, InvalidRequest, UsageError, plain, resembling
from jobs.models.families import FAMILIES, Capability, Family, family_named
from jobs.models.hub import commit_of, fetch_small
from jobs.models.inspection import FILES, inspect_folder
from jobs.models.options import Options
from jobs.requests import MAX_INPUTS, PixelSize
from jobs.toml import parse_toml

Dtype = Literal["auto", "float32", "float16", "bfloat16"]

_LOOKED_UP = 16  # models that the table lacks: to look one up may take seconds
NULL_REPO = "null:"  # of models without weights (worker/null.py)

_STRICT = ConfigDict(extra="forbid", frozen=True)
_REPOSITORY = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


class Adapter(BaseModel):
    """A LoRA of a model: a local file or folder, or a repository, with its weight."""

    model_config = _STRICT

    repo: str
    revision: str | None = None
    weight: float = 1.0


class Part(BaseModel):
    """A part that a pipeline gets beside its own, or in the place of one: a VAE."""

    model_config = _STRICT

    repo: str
    revision: str | None = None
    variant: str | None = None


class ControlNet(Part):
    """One ControlNet of a model; their order in the table is the order of `control_images`."""


class Model(BaseModel):
    """One row of the models table.

    repo: a repository, or a folder relative to the models.toml that names it.
    batch_width: requests a pipeline call; a power of two, because only at those widths a pixel
        was found not to depend on its neighbours.
    call_slots: those of pipeline calls for interactive calls: the most that the waiting ones fill.
    family: an entry of jobs.models.families; without one the pipeline's class tells it.
    takes, size_multiple, max_inputs, strength: those of the family, unless the row says less.
    size: default (width, height) in pixels; size_multiple: what both must be a multiple of.
    max_inputs: images that one edit takes; strength: its default, the pipeline's own if None, as
        it is of inpainting always.
    variant: of the weights' files, for example "fp16", which is found by itself where there is no
        other; vae: takes the place of the repository's own.
    dtype: "auto" is what the worker's device is fast in; records tell which that was.
    adapters_mib: memory for adapters that stay loaded, least recently used ones leave first.
    threads: CPU threads of the device process, part of a result's identity on the CPU.
    seconds_per_image: a guess, of an image of that size and steps, that sizes chunks, and estimates
        until a rate has been measured.
    options: see jobs.models.options.
    """

    model_config = _STRICT

    repo: str
    revision: str | None = None
    variant: str | None = None
    description: str = ""
    family: str | None = None
    takes: tuple[Capability, ...] = ("generate", "negative_prompt", "guidance_scale")
    vae: Part | None = None
    controlnets: dict[str, ControlNet] = {}
    adapters: dict[str, Adapter] = {}
    adapters_mib: Annotated[int, Field(ge=1)] = 1024
    batch_width: Annotated[int, Field(ge=1, le=256)] = 1
    call_slots: tuple[int, ...] = (1,)
    size: tuple[PixelSize, PixelSize] = (1024, 1024)
    size_multiple: Annotated[int, Field(ge=1)] = 8
    max_size: PixelSize = 2048
    max_inputs: Annotated[int, Field(ge=1, le=MAX_INPUTS)] = 1
    steps: Annotated[int, Field(ge=1, le=50)] = 20
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    dtype: Dtype = "auto"
    scheduler: str | None = None
    threads: Annotated[int, Field(ge=1)] = 2
    seconds_per_image: Annotated[float, Field(gt=0)] = 2.0
    options: Options = Options()

    @model_validator(mode="before")
    @classmethod
    def fill_from_family(cls, row: Any) -> Any:
        """A row that says nothing else takes all that its family takes."""
        family = FAMILIES.get(str(row.get("family"))) if isinstance(row, dict) else None
        if family is None:
            return row
        usual = {
            "size_multiple": family.size_multiple,
            "max_inputs": family.inputs,
            "strength": family.strength,
        }
        return {"takes": family.takes} | usual | row

    @model_validator(mode="after")
    def check_row(self) -> Self:
        """Refuse what would make pixels depend on their neighbours, or what the family cannot."""
        if self.batch_width & (self.batch_width - 1):
            raise ValueError(f"batch_width must be a power of two, not {self.batch_width}")
        if not self.call_slots or not all(self.takes_slots(slots) for slots in self.call_slots):
            raise ValueError("call_slots must be powers of two, at most batch_width")
        if any(side % self.size_multiple for side in self.size):
            raise ValueError(f"size {self.size} is no multiple of {self.size_multiple}")
        if self.options.step_cache and self.batch_width > 1:
            raise ValueError("options.step_cache decides for whole batches: batch_width must be 1")
        if self.family is not None:
            if self.family not in FAMILIES:
                raise ValueError(f"family must be one of {', '.join(FAMILIES)}")
            self.check_family(family_named(self.family), self.family)
        return self

    def times_larger(self, width: int, height: int) -> float:
        """How many times the pixels of its own size an image has, at least 1."""
        return max(1.0, width * height / (self.size[0] * self.size[1]))

    def takes_slots(self, slots: int) -> bool:
        """Whether a pipeline call may have so many slots."""
        return 1 <= slots <= self.batch_width and not slots & (slots - 1)

    def check_family(self, family: Family, name: str) -> None:
        """Refuse what pipelines of the family cannot do.

        Raises:
            ValueError: it names the field.
        """
        if surplus := set(self.takes) - set(family.takes):
            raise ValueError(f"takes: family {name} has no {', '.join(sorted(surplus))}")
        if self.size_multiple % family.size_multiple:
            raise ValueError(f"size_multiple must be a multiple of {family.size_multiple}")
        if self.max_inputs > family.inputs:
            raise ValueError(f"max_inputs: family {name} takes {family.inputs}")
        if self.batch_width > 1 and not family.batches:
            raise ValueError(f"batch_width must be 1: family {name} renders one request a call")


@dataclass(frozen=True, slots=True)
class Route:
    """A model and the adapter that a request named (empty for the bare model)."""

    model: str
    adapter: str


@dataclass(frozen=True)
class ModelTable:
    """All models that a deployment knows by name. `folder` is where relative repos start.

    aliases: other names, each of a model or of "model:adapter".
    commits: of weights at the hub that the table does not pin, as far as they are decided, by
        jobs.models.fingerprints.hub_name.
    closed: it has no other models, so that a stranger can name neither a folder nor a repository.
    """

    default: str
    models: dict[str, Model]
    folder: Path
    aliases: dict[str, str] = field(default_factory=dict)
    closed: bool = False
    commits: MutableMapping[str, str] = field(default_factory=dict, compare=False)
    _found: dict[str, Model] = field(default_factory=dict, compare=False, repr=False)

    @property
    def usual(self) -> list[str]:
        """What workers serve when nobody says: all that draw, the default first."""
        drawing = [name for name, model in self.models.items() if model.repo != NULL_REPO]
        return sorted(drawing or self.models, key=lambda name: name != self.default)

    def get(self, name: str) -> Model:
        """The model of that name, folder or repository.

        Raises:
            InvalidRequest: there is no such model; the message lists the known ones.
        """
        if name in self.models:
            return self.models[name]
        if name in self._found:
            return self._found[name]
        if not self.closed and _is_pipeline(name):
            folder = Path(name).resolve()
            try:
                # Once: this is asked before each batch.
                self._found[name] = Model.model_validate(inspect_folder(folder, str(folder)))
            except UsageError as error:
                raise InvalidRequest("model", error.message, "model_not_found") from error
            except ValidationError as error:
                said = plain(error.errors()[0]["msg"])
                reason = f"{name}: its JSON files describe no model: {said}"
                raise InvalidRequest("model", reason, "model_not_found") from error
            return self._found[name]
        if not self.closed and _REPOSITORY.fullmatch(name):
            if name not in self._found and len(self._found) < _LOOKED_UP:
                self._found[name] = _look_up(name)
            return self._found.get(name) or Model(repo=name)
        if not self.closed and (lack := _lack_of_folder(name)):
            raise InvalidRequest("model", lack, "model_not_found")
        known = sorted([*self.models, *self.aliases])
        owned = [(model, a) for model, row in self.models.items() for a in row.adapters]
        near = resembling(name, (*known, *(a for _, a in owned), *map(":".join, owned)))
        raise InvalidRequest(
            "model", f"unknown model {name!r}; known: {', '.join(known)}{near}", "model_not_found"
        )

    def route(self, name: str | None) -> Route:
        """What "model", "model:adapter", an alias or a bare "adapter" stands for.

        A bare adapter is the default model's before others.

        Raises:
            InvalidRequest: the model or the adapter does not exist, or several models have it.
        """
        if name is None:
            return Route(self.default, "")
        name = self.aliases.get(name, name)
        if name in self.models:
            return Route(name, "")
        model, colon, adapter = name.rpartition(":")
        if colon and model in self.models:
            if adapter not in self.models[model].adapters:
                known = sorted(self.models[model].adapters)
                has = f"{', '.join(known) or 'none'}{resembling(adapter, known)}"
                raise InvalidRequest(
                    "model", f"{model!r} has no adapter {adapter!r}; it has: {has}",
                    "model_not_found",
                )  # fmt: skip
            return Route(model, adapter)
        if owner := self._owner(name):
            return Route(owner, name)
        self.get(name)
        return Route(name, "")

    def _owner(self, adapter: str) -> str | None:
        """The model that an adapter's bare name means; None if no model has such an adapter.

        Raises:
            InvalidRequest: several models have it, and the default one is none of them.
        """
        owners = [name for name, model in self.models.items() if adapter in model.adapters]
        if self.default in owners:
            return self.default
        if len(owners) > 1:
            routes = ", ".join(f"{owner}:{adapter}" for owner in owners)
            raise InvalidRequest("model", f"{adapter!r} may be any of {routes}: name one")
        return owners[0] if owners else None

    def source(self, weights: Model | Adapter | Part) -> str | Path:
        """Where weights are: an existing folder or file, or a repository's name."""
        path = self.folder / weights.repo
        return path if path.exists() else weights.repo


def _look_up(repo: str) -> Model:
    """What a repository's small JSON files say of it; nothing more than its name without them.

    They are asked for at the commit that this machine renders with, so that it does not stay at
    one that it has no weights of. The family is left to the worker: it belongs to the fingerprint,
    which must not depend on whether the hub has answered.
    """
    try:
        folder = fetch_small(repo, commit_of(repo, None), FILES)
        return Model.model_validate(inspect_folder(folder, repo) | {"family": None})
    except (ImagemillError, ValidationError):  # whoever needs the weights will say it better
        return Model(repo=repo)


def _is_pipeline(folder: str) -> bool:
    try:
        return (Path(folder) / "model_index.json").is_file()
    except (OSError, ValueError):  # too long a name, or a NUL in it
        return False


def _lack_of_folder(name: str) -> str:
    """What a folder lacks to be a model; "" for what names none."""
    try:
        is_there = Path(name).is_dir()
    except OSError:  # too long a name
        return ""
    if is_there:
        return f"folder {name!r} has no model_index.json: it is no pipeline of diffusers"
    return f"there is no folder {name!r}" if "/" in name else ""


class _Table(BaseModel):
    model_config = _STRICT

    default: str
    models: Annotated[
        dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")], Model],
        Field(min_length=1),
    ]
    aliases: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")], str] = {}

    @model_validator(mode="after")
    def check_names(self) -> Self:
        if self.default not in self.models:
            raise ValueError(f"default {self.default!r} is not one of the models")
        for alias, target in self.aliases.items():
            if alias in self.models:
                raise ValueError(f"alias {alias!r} is a model's name")
            name, colon, adapter = target.partition(":")
            model = self.models.get(name)
            if model is None or (colon and adapter not in model.adapters):
                raise ValueError(f"alias {alias!r}: {target!r} is no model and no MODEL:ADAPTER")
        return self


def load_models(path: Path | None = None) -> ModelTable:
    """Read a models.toml; the built-in one when no path is given.

    Raises:
        UsageError: the file is missing, is not TOML, or a row is wrong; names file, row and field.
    """
    file = path or builtin_models()
    try:
        table = _Table.model_validate(parse_toml(file.read_text("utf-8")))
    except OSError as error:
        raise UsageError(
            f"models table {file}: {error.strerror}", "Check --models-file, or IMAGEMILL_MODELS."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"models table {file} is not TOML: {error}") from error
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {plain(e['msg'])}" for e in error.errors()]
        raise UsageError("\n".join([f"models table {file} is wrong:", *lines])) from error
    return ModelTable(table.default, table.models, file.parent.resolve(), table.aliases)


def builtin_models() -> Path:
    """The models.toml that ships with imagemill."""
    return Path(str(resources.files("configs") / "models.toml"))
