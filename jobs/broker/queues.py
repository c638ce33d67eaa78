"""Names of queues: one of each kind for each model, read in strict order of kinds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2b

BULK = "bulk"
FEEDS = "feed"
INTERACTIVE = "interactive"
WAITING = "waiting"  # no queue: the runs that have chunks of a model to give out


def queue_name(kind: str, model: str) -> str:
    """The queue of a model. Names that are not plain (repositories, folders) become a hash."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", model):
        model = "x-" + blake2b(model.encode(), digest_size=8).hexdigest()
    return f"{kind}.{model}"


def queue_names(models: Iterable[str]) -> list[str]:
    """The queues of a worker that serves these models, in strict order of priority."""
    served = list(models)
    return [queue_name(kind, model) for kind in (INTERACTIVE, BULK, FEEDS) for model in served]
