"""A place in storage whose manifests are submitted, once each, and filed with a report.

    <inbox>/x.jsonl                        it waits; it is whole because its writer renamed it into
            x.jsonl.done                   place, or has put this marker beside it
            taken/x.jsonl.json             a watcher has taken it on: when, its digest, and its
                                           name when filed
            accepted/x.jsonl               it was submitted; the report says as which run
            accepted/x.jsonl.report.json
            rejected/…                     it was refused; the report says why

Any number of watchers may look at one inbox: a lock in Redis keeps two from doing the same work.
Nothing depends on that lock. `taken` is created once, and the output location follows from it, so
whoever repeats what a dead watcher began submits the same run, which is a `resume` of it. A record
is of one manifest: another of its name is taken on anew. The marker goes before the manifest does,
so that what comes after it belongs to the next one. Times of change mean nothing here: copies keep
old ones, clocks differ, and stores have none to trust.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import blake2b
from pathlib import Path

import orjson
from pydantic import ValidationError

from jobs.broker.quotas import QuotaExceeded
from jobs.errors import (
    ImagemillError,
    InvalidRequest,
    ManifestRefused,
    TransientError,
    UsageError,
)
from jobs.models.table import ModelTable
from jobs.output.dataset import now
from jobs.output.storage import Storage
from jobs.teams import OPEN_TEAM, Priority
from producer.control.entry import enter
from producer.control.installation import Installation
from producer.control.locks import LOCK_SECONDS, locked
from producer.planning.manifest import manifest_digest
from producer.planning.resolution import PlanOptions
from producer.planning.submission import Job, identify, launch
from producer.planning.tables import UnfitManifest, kind_of
from producer.schedules.news import News
from producer.schedules.reports import TAKEN_RECORD, Report, Taken, rejected
from producer.schedules.templates import check_template, fill, key
from producer.schedules.writing import is_whole

ACCEPTED, REJECTED, TAKEN = "accepted", "rejected", "taken"
DONE = ".done"

log = logging.getLogger(__name__)

# What is looked at. Of the tables those that no small file can make large: strangers write here.
_ENDING = re.compile(r"\.(jsonl(\.gz)?|csv|tsv)$")
_NAME = re.compile(r"\w[\w.-]{0,199}")  # of what becomes part of a path


@dataclass(frozen=True)
class Inbox:
    """One inbox and how its manifests are submitted.

    out: a template with {name}, the manifest's name without its endings, and the moment that it
    was taken on, in UTC; needs_marker: whether only manifests with a .done marker are taken; team,
    priority: of all its runs.

    Strangers may write here: their lines name models of the table only, and no local files.

    Raises:
        UsageError: the template is wrong, or there is no such folder.
    """

    storage: Storage
    out: str
    known: Installation
    table: ModelTable
    options: PlanOptions
    tell: Callable[[News], None]
    needs_marker: bool = False
    lock_seconds: float = LOCK_SECONDS
    team: str = OPEN_TEAM
    priority: Priority = "normal"
    _problems: dict[str, str] = field(default_factory=dict)  # what was told last of those that wait

    def __post_init__(self) -> None:
        try:
            check_template(self.out)
        except ValueError as error:
            raise UsageError(f"--out {self.out}: {error}", "See docs/13-schedules.md.") from error
        if "{name}" not in self.out:
            raise UsageError(
                f"--out {self.out}: all manifests would write to one place",
                "Put {name} into it: it stands for the manifest's name.",
            )
        place = self.storage.local_root
        if place is not None and not Path(place).is_dir():  # object stores know no empty folders
            raise UsageError(
                f"inbox {self.storage.uri} is no folder", "Make it (mkdir -p), or check the path."
            )

    def watch(self, every: float) -> None:
        """Look again and again, so many seconds apart, until the process is interrupted."""
        while True:
            self.look()
            time.sleep(every)

    def look(self) -> None:
        """Submit and file what is there. What fails for a reason of ours is tried again."""
        try:
            names = self._waiting()
        except ImagemillError as error:
            self._complain(self.storage.uri, error)
            return
        for name in names:
            try:
                with self._locked(name) as mine:
                    if mine:
                        self._take(name)
                self._problems.pop(name, None)
            except Exception as error:  # of whatever kind: the other manifests go on
                if not isinstance(error, ImagemillError):
                    log.exception("Manifest %s", name)
                self._complain(name, error)

    def _waiting(self) -> list[str]:
        """The names of manifests that are whole, and of those that were not filed to the end."""
        there = set(self.storage.list(""))
        records = self.storage.list(TAKEN) if TAKEN in there else []
        taken = {name.removesuffix(".json") for name in records}
        marked = {name.removesuffix(DONE) for name in there if name.endswith(DONE)} | taken
        found = [n for n in there if _is_manifest(n) and self._is_whole(n, marked)]
        found += [name for name in taken - there if _is_manifest(name)]
        return sorted(found)

    def _is_whole(self, name: str, marked: set[str]) -> bool:
        if self.needs_marker and name not in marked:
            return False
        root = self.storage.local_root
        return root is None or is_whole(f"{root}/{name}")

    def _take(self, name: str) -> None:
        """Submit a manifest and file it. Every step can be taken again.

        Raises:
            TransientError, FatalError: storage or broker; the manifest stays.
        """
        if not self.storage.exists(name):  # it is filed, by one that did not tidy up after it
            self._forget(name)
            return
        digest = manifest_digest(self.storage.name(name))
        taken = self._taken(name, digest)
        if taken is None:
            return
        report = self._submit(name, taken)
        if manifest_digest(self.storage.name(name)) != digest:
            self._forget(name)  # another came under its name: its turn
            return
        filed = f"{report.state}/{taken.filed}"
        self.storage.write(f"{filed}.report.json", orjson.dumps(report, option=orjson.OPT_INDENT_2))
        self.storage.remove(f"{name}{DONE}")
        self.storage.move(name, filed)
        self._forget(name)
        self.tell(News(name, report.state, report.reason, "", report.run_id, report.out))

    def _forget(self, name: str) -> None:
        self.storage.remove(f"{TAKEN}/{name}.json")

    def _taken(self, name: str, digest: str) -> Taken | None:
        """Take a manifest on, or see how another has; None if it still needs its marker.

        Raises:
            TransientError: others of its name were taken on at the same time.
        """
        path = f"{TAKEN}/{name}.json"
        with suppress(FileNotFoundError):
            if taken := self._match(self.storage.read(path), name, digest):
                return taken
            self._forget(name)  # its watcher died before it could
        if self.needs_marker and not self.storage.exists(f"{name}{DONE}"):
            return None
        moment = datetime.fromisoformat(now())
        for filed in (name, f"{key(moment)}-{name}"):
            if not self._is_filed(filed):
                stored = self.storage.create(path, orjson.dumps(Taken(moment, filed, digest)))
                if taken := self._match(stored, name, digest):
                    return taken
        raise TransientError(f"another {name} was taken on just now", "It is tried again.")

    def _match(self, record: bytes, name: str, digest: str) -> Taken | None:
        """What is noted of this very manifest; None if it is of another, or no note of ours."""
        try:
            taken = TAKEN_RECORD.validate_json(record)
        except ValidationError:
            return None
        if taken.digest != digest or taken.filed not in (name, f"{key(taken.at)}-{name}"):
            return None
        # On a disk what is filed is gone from here: this one came later. An object store may have
        # been left with both, in the midst of a move, which is to be gone on with.
        later = self.storage.local_root is not None and self._is_filed(taken.filed)
        return None if later else taken

    def _is_filed(self, filed: str) -> bool:
        return any(self.storage.exists(f"{folder}/{filed}") for folder in (ACCEPTED, REJECTED))

    def _submit(self, name: str, taken: Taken) -> Report:
        """Make its run live, or say why there is none."""
        uri = self.storage.name(name)
        report = Report("accepted", uri, taken.at.isoformat(), now())
        try:
            out_uri = self._out_of(name, taken)
            options = self.options if kind_of(uri) else replace(self.options, columns=(), keep=())
            job = Job(uri, out_uri, self.table, options, team=self.team, priority=self.priority)
            submission = identify(job)
            out = submission.storage
            finished = submission.plan if submission.done else None
            plan = finished or enter(self.known, submission, keep_report=True)
        except QuotaExceeded as error:
            raise TransientError(error.message, error.hint) from error  # it waits for its time
        except (ManifestRefused, InvalidRequest, UnfitManifest) as error:
            return rejected(report, error)
        if not finished:
            with self.known.reached():
                launch(plan, out, self.known.runs, self.known.dispatcher)
        return replace(
            report, run_id=plan.run_id, out=out.uri, requests=plan.requests, invalid=plan.invalid
        )

    def _out_of(self, name: str, taken: Taken) -> str:
        stem = _ENDING.sub("", name)
        if not _NAME.fullmatch(stem):
            raise InvalidRequest(
                "name", f"{stem!r} cannot become part of a path; use letters, digits, ., - and _"
            )
        return fill(self.out, stem, taken.at)

    @contextmanager
    def _locked(self, name: str) -> Iterator[bool]:
        whole = blake2b(self.storage.name(name).encode(), digest_size=16).hexdigest()
        runs = self.known.runs
        with self.known.reached():
            with locked(runs.client, f"{runs.prefix}inbox:{whole}", self.lock_seconds) as mine:
                yield mine

    def _complain(self, subject: str, error: Exception) -> None:
        if self._problems.get(subject) != (problem := str(error)):
            self._problems[subject] = problem
            self.tell(News(subject, "waits", problem))


def _is_manifest(name: str) -> bool:
    return not name.startswith(".") and bool(_ENDING.sub("", name)) and bool(_ENDING.search(name))
