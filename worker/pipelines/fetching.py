"""Brings all that a model is loaded from onto this machine, before anybody renders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jobs.errors import FatalError
from jobs.models.fingerprints import hub_name
from jobs.models.hub import advice, is_commit, newest_commit, remember
from jobs.models.table import NULL_REPO, Adapter, Model, ModelTable, Part
from worker.pipelines.weights import fetch


def fetch_model(
    table: ModelTable, model: Model, planned: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Download a model with its parts and adapters: the newest commit of what is not pinned.

    This machine stays with these commits until the next call. Returns the repositories or folders
    and their commits; "" for a folder.

    planned: the commits of a plan, which are downloaded instead, beside those that this machine
        stays with; of adapters only those that the plan has.

    Raises:
        FatalError: the hub does not have one of them, or not for us; or a folder is not there.
    """
    if model.repo == NULL_REPO:
        return {}
    found: dict[str, str] = {}
    own = [model.vae] if model.vae else []
    everything: list[Model | Part | Adapter] = [model, *own]
    everything += [*model.controlnets.values(), *model.adapters.values()]
    for weights in everything:
        source = table.source(weights)
        if isinstance(source, Path):
            found[str(source)] = ""
            continue
        name = hub_name(weights)
        if planned is None or is_commit(weights.revision):
            commit = newest_commit(source, weights.revision)
        elif name in planned:
            commit = planned[name]
        else:
            continue
        try:
            fetch(source, commit, weights)
        except Exception as error:  # of the hub's library, or of its HTTP library
            raise FatalError(
                f"model {source} was not fetched: {type(error).__name__}: {error}",
                advice(error) or "Run the same command again: it goes on where it stopped.",
            ) from error
        if planned is None:
            remember(source, weights.revision, commit)
        found[source] = commit
    return found
