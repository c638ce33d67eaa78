"""What a pipeline's own JSON files say about it: a row of the models table, without the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from jobs.errors import UsageError
from jobs.models.families import family_named, family_of

# All that is read, so all that has to be fetched from a repository.
FILES = ("model_index.json", "unet/config.json", "transformer/config.json", "vae/config.json")

_SMALL = 512  # pixels a side: up to here batches are several times as fast as single images
_WIDTH = 8
_LARGEST = 4096
_DISTILLED_STEPS = 4
_MAX_BYTES = 1 << 20  # of one of the files

Row = dict[str, Any]


def inspect_folder(folder: Path, repo: str) -> Row:
    """A row of models.toml for the pipeline in a folder; `repo` is what the row calls it.

    Raises:
        UsageError: the folder has no readable model_index.json.
    """
    index = _read(folder / "model_index.json")
    if index is None:
        raise UsageError(
            f"{repo} has no model_index.json", "Name a repository or folder of a whole pipeline."
        )
    denoiser = _read(folder / "unet/config.json") or _read(folder / "transformer/config.json") or {}
    name = family_of(str(index.get("_class_name", "")))
    family = family_named(name)
    size = _size(denoiser, _read(folder / "vae/config.json") or {}, family.size)
    takes = [one for one in family.takes if name or one != "strength"]
    row: Row = {"repo": repo}
    if name:
        row |= {"family": name}
    # Guidance was trained into these weights; the argument changes nothing.
    if index.get("is_distilled") or (name == "flux" and not denoiser.get("guidance_embeds")):
        takes.remove("guidance_scale")
        steps, guidance = _DISTILLED_STEPS, None
    else:
        steps, guidance = family.steps, family.guidance_scale
    row |= {
        "takes": takes if name else ["generate", "negative_prompt", "guidance_scale"],
        "batch_width": _WIDTH if family.batches and size <= _SMALL else 1,
        "size": [size, size],
        "size_multiple": family.size_multiple,
        "max_size": 2 * size,
        "steps": steps,
    }
    extra = {"guidance_scale": guidance, "strength": family.strength}
    if family.inputs > 1:
        row["max_inputs"] = family.inputs
    return row | {field: value for field, value in extra.items() if value is not None}


def _size(denoiser: Row, decoder: Row, usual: int) -> int:
    """The side that the weights were trained for, in pixels."""
    latent = denoiser.get("sample_size")
    channels = decoder.get("encoder_block_out_channels") or decoder.get("block_out_channels")
    # A folder is whatever somebody wrote: what makes no sense tells nothing.
    if not isinstance(latent, int) or not isinstance(channels, list) or not 1 <= len(channels) <= 8:
        return usual
    size = latent * 2 ** (len(channels) - 1)
    return size if 16 <= size <= _LARGEST else usual


def _read(file: Path) -> Row | None:
    if not file.is_file():  # a pipe would be waited for
        return None
    try:
        with file.open("rb") as stream:
            content = orjson.loads(stream.read(_MAX_BYTES))
    except (OSError, orjson.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None
