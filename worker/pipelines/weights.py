"""Reads weights: safetensors only, in the right type and variant; no code of theirs runs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch

from jobs.errors import FatalError
from jobs.models.fingerprints import revision_of
from jobs.models.table import Dtype, Model, ModelTable, Part

_HALF = re.compile(r"\.fp16[.-]")  # model.fp16.safetensors, model.fp16-00001-of-00002.safetensors


def dtype_for(wanted: Dtype, device: str) -> torch.dtype:
    """The type that weights are loaded in. "auto": what the device is fast and safe in.

    bfloat16 on a GPU that computes in it, float16 on older ones, float32 on the CPU.
    """
    if wanted != "auto":
        found: torch.dtype = getattr(torch, wanted)
        return found
    if device == "cpu":
        return torch.float32
    in_hardware = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if in_hardware else torch.float16


def load_weights(
    loader: Any, table: ModelTable, weights: Model | Part, options: dict[str, Any]
) -> tuple[Any, str | None]:
    """A pipeline or a part of one, by diffusers' class for it, and the variant of its files.

    Raises:
        FatalError: there are no such weights, or they do not load.
    """
    source = table.source(weights)
    local = isinstance(source, Path)
    revision = None if local else revision_of(table, weights)
    variant = weights.variant or find_variant(_files(source, revision), isinstance(weights, Model))
    try:
        loaded = loader.from_pretrained(
            str(source),
            revision=revision,
            variant=variant,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=local,
            **options,
        )
    except Exception as error:  # every library in there has errors of its own
        raise FatalError(
            f"model {weights.repo} does not load from {source}: {type(error).__name__}: {error}",
            "Check its row in models.toml and its files, then resume the run.",
        ) from error
    return loaded, variant


def load_parts(
    table: ModelTable, model: Model, dtype: torch.dtype
) -> tuple[dict[str, Any], list[Any]]:
    """What stands in for a pipeline's own parts, by name, and its ControlNets. Raises: as above."""
    own = {"vae": model.vae} if model.vae else {}
    parts = [*own.values(), *model.controlnets.values()]
    options = {"dtype": dtype}
    loaded = [load_weights(diffusers.AutoModel, table, one, options)[0] for one in parts]
    return dict(zip(own, loaded, strict=False)), loaded[len(own) :]


def find_variant(files: Iterable[str], whole: bool) -> str | None:
    """ "fp16" if a component has its weights in no other variant; else None, the usual one.

    files: of a repository or folder; whole: it is a pipeline, whose components are folders.
    """
    kinds: dict[str, set[bool]] = {}
    for name in files:
        folder, slash, file = name.rpartition("/")
        if file.endswith(".safetensors") and bool(slash) == whole:
            kinds.setdefault(folder, set()).add(bool(_HALF.search(file)))
    return "fp16" if {True} in kinds.values() else None


def _files(source: str | Path, revision: str | None) -> list[str]:
    """What is in a folder or in a repository at a commit; nothing if the hub does not say it."""
    if isinstance(source, Path):
        return [one.relative_to(source).as_posix() for one in source.rglob("*.safetensors")]
    # Slow to import, and not needed for local folders.
    from huggingface_hub import HfApi, get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return [one.path for one in get_cached_repo_tree(source, revision=revision)]
    except CachedRepoTreeNotFoundError:
        pass
    try:
        return HfApi().list_repo_files(source, revision=revision)
    except Exception:  # of the hub or its HTTP library: loading will say it better
        return []
