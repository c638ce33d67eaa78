"""Where the weights of the models table are on this machine. Asks nobody, loads nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson

from jobs.models.hub import snapshot
from jobs.models.table import NULL_REPO, Adapter, Model, ModelTable, Part

State = Literal["here", "partly here", "absent"]

_LICENSE = re.compile(r"^license(?:_name)?:\s*[\"']?([\w.+-]+)", re.MULTILINE)
_HEAD = 1 << 16  # bytes of a README that are looked at
_INDEX = ".safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Weights:
    """Of a model, or of a part of it: "vae", "controlnet canny", "adapter ink".

    source: the folder, file or repository that models.toml names; commit: of a repository, "" if it
    is not known; folder: where they are, "" if they are absent; bytes: on disk; license: that the
    README beside them names, "" if none does.
    """

    model: str
    part: str
    source: str
    state: State
    dtype: str
    commit: str = ""
    folder: str = ""
    bytes: int = 0
    license: str = ""


def find_weights(table: ModelTable) -> Iterator[Weights]:
    """Those of each model of a table and of all its parts, in the table's order."""
    for name, model in table.models.items():
        if model.repo == NULL_REPO:
            continue
        parts: dict[str, Model | Part | Adapter] = {"": model}
        if model.vae:
            parts["vae"] = model.vae
        parts |= {f"controlnet {net}": part for net, part in model.controlnets.items()}
        parts |= {f"adapter {own}": part for own, part in model.adapters.items()}
        for part, weights in parts.items():
            yield _look(table, name, part, weights, str(model.dtype))


def _look(
    table: ModelTable, name: str, part: str, weights: Model | Part | Adapter, dtype: str
) -> Weights:
    source = table.source(weights)
    place = source if isinstance(source, Path) else snapshot(source, weights.revision)
    if place is None:
        return Weights(name, part, str(source), "absent", dtype)
    return Weights(
        name,
        part,
        str(source),
        _state(place, weights),
        dtype,
        commit="" if isinstance(source, Path) else place.name,
        folder=str(place),
        bytes=sum({file.resolve(): _size(file) for file in _files(place)}.values()),
        license=_license(place if place.is_dir() else place.parent),
    )


def _files(place: Path) -> list[Path]:
    """The hub's cache has links to files, which lead nowhere while they are downloaded."""
    found = place.rglob("*") if place.is_dir() else [place]
    return [file for file in found if file.is_file()]


def _size(file: Path) -> int:
    return file.stat().st_size


def _state(place: Path, weights: Model | Part | Adapter) -> State:
    """Whether all that is loaded is there, as far as small files tell it."""
    there = {file.relative_to(place).as_posix() for file in _files(place)} if place.is_dir() else {}
    if place.is_dir() and not any(name.endswith(".safetensors") for name in there):
        return "absent"  # `models inspect` leaves a repository's small files
    lacking = [
        shard
        for name in there
        if name.endswith(_INDEX)
        for shard in _shards(place / name)
        if (Path(name).parent / shard).as_posix() not in there
    ]
    if isinstance(weights, Model):
        replaced = {"vae"} if weights.vae else set()
        replaced |= set() if weights.options.safety_checker else {"safety_checker"}
        folders = {name.partition("/")[0] for name in there}
        lacking += [
            component
            for component, kind in _read(place / "model_index.json").items()
            if isinstance(kind, list) and kind[:1] not in ([], [None])
            if component not in folders | replaced
        ]
    return "partly here" if lacking else "here"


def _shards(index: Path) -> set[str]:
    """The files over which weights are spread, by the index beside them."""
    found = _read(index).get("weight_map")
    return set(map(str, found.values())) if isinstance(found, dict) else set()


def _read(file: Path) -> dict[str, object]:
    try:
        content = orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def _license(folder: Path) -> str:
    """What the header of a model card says."""
    try:
        with (folder / "README.md").open("rb") as file:
            text = file.read(_HEAD).decode("utf-8", "replace")
    except OSError:
        return ""
    _, begun, rest = text.partition("---\n")
    header, ended, _ = rest.partition("\n---")
    names = _LICENSE.findall(header) if begun and ended else []
    return next((name for name in names[::-1] if name != "other"), "".join(names[:1]))
