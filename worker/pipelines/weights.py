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
from jobs.models.hub import advice, remember_first
from jobs.models.table import Adapter, Dtype, Model, ModelTable, Part

_PART = "diffusion_pytorch_model"  # what diffusers calls the weights of a part
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
    commit = "" if isinstance(source, Path) else revision_of(table, weights)
    try:
        folder = source if isinstance(source, Path) else fetch(source, commit, weights)
        variant = weights.variant or find_variant(_files(folder), isinstance(weights, Model))
        loaded = loader.from_pretrained(
            str(folder),
            variant=variant,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            **options,
        )
    except Exception as error:  # every library in there has errors of its own
        raise FatalError(
            f"model {weights.repo} does not load from {source}: {type(error).__name__}: {error}",
            advice(error) or "Check its row in models.toml and its files, then resume the run.",
        ) from error
    if commit:
        remember_first(weights.repo, weights.revision, commit)
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


def fetch(repo: str, commit: str, weights: Model | Part | Adapter) -> Path:
    """The folder of a repository at a commit, with all files that are loaded and no others.

    What is not here yet is downloaded; processes of one host do so once. Raises: errors of the
    hub's library and of its HTTP library.
    """
    # Slow to import, and not needed for local folders.
    from huggingface_hub import snapshot_download

    if isinstance(weights, Adapter):
        return Path(snapshot_download(repo, revision=commit, allow_patterns=["*.safetensors"]))
    whole = isinstance(weights, Model)
    variant = weights.variant or find_variant(_listed(repo, commit), whole)
    if isinstance(weights, Model):
        # Components that are named are left out: others take their place.
        own = ["vae"] if weights.vae else []
        unused = [*own, *([] if weights.options.safety_checker else ["safety_checker"])]
        return Path(
            diffusers.DiffusionPipeline.download(
                repo,
                revision=commit,
                variant=variant,
                use_safetensors=True,
                trust_remote_code=False,
                **dict.fromkeys(unused),
            )
        )
    suffix = f".{variant}" if variant else ""
    files = [
        "config.json",
        f"{_PART}{suffix}.safetensors",
        f"{_PART}{suffix}-0*.safetensors",
        f"{_PART}.safetensors.index{suffix}.json",
    ]
    return Path(snapshot_download(repo, revision=commit, allow_patterns=files))


def _files(folder: Path) -> list[str]:
    return [one.relative_to(folder).as_posix() for one in folder.rglob("*.safetensors")]


def _listed(repo: str, commit: str) -> list[str]:
    """What is in a repository at a commit; nothing if the hub does not say it."""
    from huggingface_hub import HfApi, get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return [one.path for one in get_cached_repo_tree(repo, revision=commit)]
    except CachedRepoTreeNotFoundError:
        pass
    try:
        return HfApi().list_repo_files(repo, revision=commit)
    except Exception:  # of the hub or its HTTP library: fetching will say it better
        return []
