"""One broker as a producer sees it: the runs it knows, and a way to send them on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import redis

from jobs.broker.connection import connect, without_password
from jobs.broker.dispatch import Dispatcher
from jobs.broker.fleet import Fleet
from jobs.broker.quotas import Quotas
from jobs.broker.runs import Runs
from jobs.broker.seals import make_seal
from jobs.errors import TransientError
from jobs.output.dataset import read_summary
from jobs.output.plan import Plan
from jobs.output.storage import Storage
from jobs.settings import Settings, Team
from producer.planning.chunks import WORKERS


@dataclass(frozen=True)
class Installation:
    """Connections are made on first use."""

    url: str
    runs: Runs
    dispatcher: Dispatcher
    teams: Mapping[str, Team] = field(default_factory=dict)

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Turns a lost or refused connection into an error that names the broker.

        Raises:
            TransientError: the broker cannot be reached.
        """
        try:
            yield
        except redis.RedisError as error:
            raise TransientError(
                f"broker {without_password(self.url)} cannot be reached: {error}",
                "Start it, or check --broker. Without one, imagemill run brings its own; the same "
                "command again goes on, and tries again what failed.",
            ) from error

    def admit(self, plan: Plan) -> None:
        """Let a planned run in, before it is launched for the first time.

        Raises:
            QuotaExceeded: its team has not enough left.
            TransientError: the broker cannot be reached.
        """
        if team := self.teams.get(plan.team):
            with self.reached():
                Quotas(self.runs.client, self.runs.prefix).admit(plan, team)

    def check_free(self, out: Storage, run_id: str) -> None:
        """See that no other run writes to an output location: the later of two datasets stays.

        Raises:
            TransientError: one does; or the broker cannot be reached.
        """
        summary = read_summary(out)
        if summary is None or summary.state != "running" or summary.run_id == run_id:
            return
        with self.reached():
            progress = self.runs.progress(summary.run_id)
        if progress is not None and progress.state in ("running", "paused"):
            raise TransientError(
                f"run {summary.run_id} goes on in {out.uri}",
                f"It has to end first: imagemill watch {summary.run_id}, or cancel it. "
                "Another --out would not have to wait.",
            )

    def workers(self) -> int:
        """How many workers a plan is cut for: those that live, or as many as may well be started.

        Raises TransientError if the broker cannot be reached.
        """
        with self.reached():
            return max(WORKERS, len(Fleet(self.runs.client, self.runs.prefix).workers()))

    def ping(self) -> None:
        """Raises TransientError if the broker does not answer."""
        with self.reached():
            self.runs.client.ping()


def installation(settings: Settings) -> Installation:
    """The installation whose broker the settings name."""
    runs = Runs(connect(settings), settings.key_prefix, make_seal(settings))
    dispatcher = Dispatcher(runs.client, runs.prefix, runs.seal)
    return Installation(settings.broker, runs, dispatcher, settings.teams)
