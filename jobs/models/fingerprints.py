"""What a model's weights are, as one short string that a producer and a worker both compute.

A repository's fingerprint is its commit; a local folder's is the hash of its files. Both include
the fields of the models table that change pixels. Never loads weights or imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from hashlib import blake2b, file_digest
from pathlib import Path
from uuid import uuid4

import orjson
from platformdirs import user_cache_path

from jobs.errors import FatalError
from jobs.models.hub import commit_of, is_commit
from jobs.models.table import NULL_REPO, Adapter, Model, ModelTable, Part

_HASHED = {".json", ".txt", ".model", ".safetensors"}  # what a pipeline is loaded from


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """`revision` is a commit or "sha:…" of a folder; `digest` stands for it and the options."""

    repo: str
    revision: str
    digest: str


def fingerprint(table: ModelTable, model: Model) -> Fingerprint:
    """The fingerprint of a model of the table.

    Raises:
        FatalError: the weights are neither on this machine nor to be found at the hub; then, if
            the hub is sure, jobs.models.hub.NoSuchWeights.
    """
    revision = "1" if model.repo == NULL_REPO else revision_of(table, model)
    controls = [revision_of(table, one) for one in model.controlnets.values()]
    # Options that stay at their defaults are left out, so that a new option changes no fingerprint.
    options = model.options.model_dump(exclude_defaults=True)
    pixels = [model.dtype, model.scheduler, options, *([model.family] if model.family else [])]
    # Only what a row says, for the same reason. Variants are files of one commit all the same.
    more: dict[str, object] = {"variant": model.variant} if model.variant else {}
    if model.vae:
        more["vae"] = [revision_of(table, model.vae), model.vae.variant]
    variants = [one.variant for one in model.controlnets.values()]
    if any(variants):
        more["controlnets"] = variants
    parts = [revision, controls, pixels, *([more] if more else [])]
    text = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
    return Fingerprint(model.repo, revision, blake2b(text, digest_size=8).hexdigest())


def route_digest(table: ModelTable, route: str) -> str:
    """The digest that a plan holds for "model" or "model:adapter".

    Raises: as fingerprint.
    """
    found = table.route(route)
    model = table.get(found.model)
    digest = fingerprint(table, model).digest
    if not found.adapter:
        return digest
    return f"{digest}+{adapter_digest(table, model.adapters[found.adapter])}"


def adapter_digest(table: ModelTable, adapter: Adapter) -> str:
    """What stands for an adapter's weights and their strength.

    Raises: as fingerprint.
    """
    text = f"{revision_of(table, adapter)}\0{adapter.weight!r}".encode()
    return blake2b(text, digest_size=8).hexdigest()


def hub_name(weights: Model | Adapter | Part) -> str:
    """What plans call weights at the hub."""
    return f"{weights.repo}@{weights.revision or 'main'}"


def unpinned(
    table: ModelTable, model: Model, adapters: Iterable[Adapter]
) -> dict[str, Model | Adapter | Part]:
    """What of a model lies at the hub, at a commit that the table does not say, by hub_name."""
    if model.repo == NULL_REPO:
        return {}
    own = [model.vae] if model.vae else []
    parts: list[Model | Adapter | Part] = [model, *own, *model.controlnets.values(), *adapters]
    return {
        hub_name(one): one
        for one in parts
        if isinstance(table.source(one), str) and not is_commit(one.revision)
    }


def commits_of(table: ModelTable, route: str) -> dict[str, str]:
    """The commits of a route's weights at the hub that the table does not pin, by hub_name.

    Raises: as fingerprint.
    """
    found = table.route(route)
    model = table.get(found.model)
    adapters = [model.adapters[found.adapter]] if found.adapter else []
    return {name: revision_of(table, one) for name, one in unpinned(table, model, adapters).items()}


def revision_of(table: ModelTable, weights: Model | Adapter | Part) -> str:
    """The commit of a repository, or "sha:…" of a local file or folder.

    Raises: as fingerprint.
    """
    source = table.source(weights)
    if isinstance(source, str):
        return table.commits.get(hub_name(weights)) or commit_of(source, weights.revision)
    if isinstance(weights, Model) and not (source / "model_index.json").is_file():
        raise FatalError(
            f"model folder {source} has no model_index.json", "Name a diffusers pipeline folder."
        )
    if isinstance(weights, Adapter) and source.is_file() and source.suffix != ".safetensors":
        # diffusers would read it all the same, and run what is pickled in it.
        raise FatalError(
            f"adapter file {source} is no .safetensors file", "Convert it, then name that file."
        )
    return f"sha:{files_digest(source)}"


def files_digest(source: Path) -> str:
    """Of a file, or of all files in a folder."""
    found = source.rglob("*") if source.is_dir() else [source]
    files = sorted(p for p in found if p.suffix in _HASHED and p.is_file())
    known = _Known.read()
    if any(known.lacks(p) for p in files):
        with _alone():  # eight device processes start at once; one of them reads the weights
            known = _Known.read()
            for path in files:
                known.learn(path)
            known.write()
    digests = [f"{p.relative_to(source).as_posix()} {known.learn(p)}" for p in files]
    return blake2b("\n".join(digests).encode(), digest_size=8).hexdigest()


class _Known:
    """Digests of files by path, size and time, kept between processes: weights can be 24 GB."""

    def __init__(self, digests: dict[str, str]) -> None:
        self._digests = digests

    @staticmethod
    def _file() -> Path:
        return user_cache_path("imagemill") / "digests.json"

    @classmethod
    def read(cls) -> _Known:
        try:
            return cls(orjson.loads(cls._file().read_bytes()))
        except (OSError, orjson.JSONDecodeError):
            return cls({})  # only a cache: an unreadable one is made anew

    def lacks(self, path: Path) -> bool:
        return self._key(path) not in self._digests

    def learn(self, path: Path) -> str:
        """The digest of a file, which is read if it is not known yet."""
        key = self._key(path)
        if key not in self._digests:
            with path.open("rb") as file:
                self._digests[key] = file_digest(file, "sha256").hexdigest()
        return self._digests[key]

    def write(self) -> None:
        file = self._file()
        with suppress(OSError):  # a read-only home costs only time
            file.parent.mkdir(parents=True, exist_ok=True)
            whole = file.with_suffix(f".{uuid4().hex[:8]}")
            whole.write_bytes(orjson.dumps(self._digests))
            whole.replace(file)  # whoever reads meanwhile finds the one or the other

    @staticmethod
    def _key(path: Path) -> str:
        stat = path.stat()
        return f"{path} {stat.st_size} {stat.st_mtime_ns}"


@contextmanager
def _alone() -> Iterator[None]:
    """One process of this user at a time, where the home can be written."""
    with ExitStack() as stack:
        with suppress(OSError):
            folder = user_cache_path("imagemill")
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / "digests.lock").open("w"))
            flock(lock, LOCK_EX)
        yield
