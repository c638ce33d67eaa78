"""The facade as a process: listens, says when it is ready, stops cleanly."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from ctypes import CDLL
from types import FrameType

import redis
import uvicorn
from fastapi import FastAPI

from jobs import traces
from jobs.errors import ImagemillError, UsageError
from jobs.logs import LogFormat, log_to_stderr
from jobs.models.table import load_models
from jobs.settings import Settings
from producer.api.access.keys import make_ring
from producer.api.admission import is_loopback
from producer.api.application import make_api
from producer.api.calls import Calls
from producer.api.protocol import BoundedProtocol
from producer.report.console import announce

STOP_SECONDS = 10  # uploads and downloads under way may take so long to end
READY_SECONDS = 600.0  # after that it says so, whatever is still awaited
M_ARENA_MAX = -8  # of malloc.h
TICKS = 10  # of a tenth of a second: how often the children are looked at


def run_server(
    settings: Settings,
    host: str,
    port: int,
    insecure: bool,
    check: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM.

    check: called every second; what it raises ends the server. With it, the server is ready when
    a worker is.

    Raises:
        UsageError: the address is taken, or it would be open to everybody.
    """
    check_exposure(settings, host, insecure)
    _share_memory()
    log_to_stderr(settings.log_format)
    traces.set_up(settings.traces, "imagemill-facade")
    api = make_api(settings, load_models(settings.models))
    listener = _listen(host, port)
    drain = settings.call_seconds if settings.drain_seconds is None else settings.drain_seconds
    proxies = sorted(settings.trusted_proxies)
    url = f"http://{_netloc(host, listener)}"
    server = _Server(api, url, drain, check, proxies, settings.log_format)
    # Uvicorn raises the signal again after it has stopped; that is how a server ends.
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    traces.flush()
    if server.failure:
        raise server.failure


def check_exposure(settings: Settings, host: str, insecure: bool) -> None:
    """Raises UsageError if other machines could call without a key."""
    if insecure or is_loopback(host):
        return
    if not make_ring(settings.api_keys, settings.keys_file).all():
        raise UsageError(
            f"host {host} is open to other machines, and there are no keys",
            "Make one (imagemill keys create), or pass --insecure.",
        )


def _share_memory() -> None:
    """Have threads take memory from two heaps instead of one a thread, as glibc has it.

    Each keeps what its thread once needed for records and images; 80 MB of all of them together.
    """
    if mallopt := getattr(CDLL(None), "mallopt", None):  # other C libraries have one heap
        mallopt(M_ARENA_MAX, 2)


class _Server(uvicorn.Server):
    """Says when it is ready, and ends when `check` fails or, asked to, when no call is left.

    drain: seconds that calls under way have when it is to end; proxies: networks that are believed
    who calls, and how; form: of what it says.
    """

    def __init__(
        self,
        api: FastAPI,
        url: str,
        drain: float,
        check: Callable[[], None] | None,
        proxies: list[str],
        form: LogFormat,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                api,
                lifespan="on",
                http=BoundedProtocol,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(proxies),
                forwarded_allow_ips=proxies,
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )
        self.failure: ImagemillError | None = None
        self._calls: Calls = api.state.parts[Calls]
        self._url = url
        self._check = check
        self._announced = False
        self._awaited = "no worker is there"  # as usual for the first seconds
        self._patient_until = time.monotonic() + READY_SECONDS
        self._drain = drain
        self._drained_by: float | None = None
        self._form = form

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Finish the calls under way first; asked again, end at once.

        Until then it answers, so that whoever asks hears that it is no longer ready.
        """
        if self.should_exit or not self.started:
            super().handle_exit(sig, frame)
            return
        self._captured_signals.append(sig)
        again = self._calls.draining
        self._drained_by = 0.0 if again else time.monotonic() + self._drain
        self._calls.draining = True
        if self._calls.under_way and not again:
            under_way = f"{self._calls.under_way} calls under way"
            self._say(f"Stopping: {under_way} (Ctrl-C again ends them)")

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn every tenth of a second."""
        if counter % TICKS == 0 and self._check:
            try:
                self._check()
            except ImagemillError as error:
                self.failure = error
                return True
        if self._drained_by is not None:
            if time.monotonic() > self._drained_by:
                self._calls.give_up()
            self.should_exit = self.should_exit or not self._calls.under_way
        elif not self._announced:
            await self._announce()
        return await super().on_tick(counter)

    async def _announce(self) -> None:
        """Say that it is ready, once it is; `serve` does not wait for workers of other machines."""
        awaited = None
        if self._check:
            try:
                awaited = await self._calls.roster.awaited(self._calls.table.route(None).model)
            except redis.RedisError:
                awaited = "the broker does not answer"
        if awaited is None or time.monotonic() > self._patient_until:
            self._announced = True
            still = f"; still, {awaited}" if awaited else ""
            self._say(f"Ready: {self._url} (Ctrl-C stops){still}")
        elif awaited != self._awaited:
            self._awaited = awaited
            self._say(f"Not ready yet: {awaited}")

    def _say(self, text: str) -> None:
        announce(text, self._form)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named: asyncio then turns Nagle's algorithm off, which costs 40 ms a call.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        return listener
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen on {host}:{port}: {error}", "Choose --port.") from error


def _netloc(host: str, listener: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"{name}:{listener.getsockname()[1]}"
