"""Fetches a URL that somebody else wrote: public addresses only, bounded in time and size.

Every connection goes through `_Guard`, which resolves a name once and connects to the very address
that it has checked. A redirect is a new connection, so it is checked as well.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from socket import EAI_AGAIN, SOCK_STREAM, gaierror, getaddrinfo
from typing import Any
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

import httpcore
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from jobs.inputs.addresses import is_public

MAX_URL = 8192  # characters
REDIRECTS = 3
ATTEMPTS = 3
CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
TOTAL_SECONDS = 30.0  # all attempts together

_SAFE = "/%:?#[]@!$&'()*+,;=~"  # may stand in a URL; what is encoded already stays as it is


class Unreachable(Exception):
    """The other side does not answer, answers with an error, or takes too long."""


class _Passing(Unreachable):
    """It may answer in a moment."""


class Forbidden(Exception):
    """The URL leads where it may not."""


class TooLarge(Exception):
    """There is more content than allowed."""


def fetch(
    url: str,
    max_bytes: int,
    hosts: frozenset[str] = frozenset(),
    seconds: float = TOTAL_SECONDS,
) -> bytes:
    """The content behind an http(s) URL.

    hosts: if not empty, only these may be fetched, and their addresses may be private.
    seconds: of all attempts together.

    Raises:
        Unreachable, Forbidden, TooLarge: see there. Messages never hold what the other side said.
    """
    guard = _Guard(frozenset(map(str.lower, hosts)), time.monotonic() + seconds)
    retrying = Retrying(
        retry=retry_if_exception_type(_Passing),
        stop=stop_after_attempt(ATTEMPTS) | stop_after_delay(seconds),
        wait=wait_random_exponential(multiplier=0.5, max=2),
        reraise=True,
    )
    return retrying(_follow, guard, url, max_bytes)


def _follow(guard: _Guard, url: str, max_bytes: int) -> bytes:
    with httpcore.ConnectionPool(network_backend=guard) as pool:
        for _ in range(1 + REDIRECTS):
            _check(url)
            try:
                content = _get(pool, url, max_bytes)
                if isinstance(content, bytes):
                    return content
                url = urljoin(url, content)
            except (httpcore.NetworkError, httpcore.TimeoutException) as error:
                raise _Passing(str(error) or "no answer in time") from error
            except (httpcore.ProtocolError, UnicodeError, ValueError) as error:
                raise Unreachable("no proper HTTP answer") from error
    raise Unreachable(f"more than {REDIRECTS} redirects")


def _check(url: str) -> None:
    if len(url) > MAX_URL:
        raise Forbidden(f"it has more than {MAX_URL} characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Forbidden("it is not a URL") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise Forbidden("only http and https URLs with a host are fetched")
    if parts.username is not None or parts.password is not None:
        raise Forbidden("a URL must not hold a user name or password")


def _get(pool: httpcore.ConnectionPool, url: str, max_bytes: int) -> bytes | str:
    """The content, or where a redirect leads."""
    # Identity: a compressed answer could be a bomb, and images gain nothing from it.
    headers = [("Accept", "image/*"), ("Accept-Encoding", "identity"), ("User-Agent", "imagemill")]
    timeout = {"connect": CONNECT_SECONDS, "read": READ_SECONDS, "write": READ_SECONDS}
    target = httpcore.URL(_encoded(url))
    extensions = {"timeout": timeout}
    with pool.stream("GET", target, headers=headers, extensions=extensions) as response:
        answer = {name.lower(): value for name, value in response.headers}
        if response.status in (301, 302, 303, 307, 308) and b"location" in answer:
            return quote(answer[b"location"], _SAFE)
        if response.status in (408, 429) or response.status >= 500:
            raise _Passing(f"HTTP status {response.status}")
        if response.status != 200:
            raise Unreachable(f"HTTP status {response.status}")
        if int(answer.get(b"content-length", b"0")) > max_bytes:
            raise TooLarge
        content = bytearray()
        for piece in response.iter_stream():
            content += piece
            if len(content) > max_bytes:
                raise TooLarge
        return bytes(content)


def _encoded(url: str) -> str:
    """A URL as it goes over the wire: without its fragment, all of it ASCII."""
    parts = urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    path, query = quote(parts.path, _SAFE), quote(parts.query, _SAFE)
    return urlunsplit((parts.scheme, host, path, query, ""))


@dataclass(frozen=True)
class _Guard(httpcore.NetworkBackend):
    """Connects to checked addresses, and lets nothing last longer than `deadline` (monotonic)."""

    hosts: frozenset[str]
    deadline: float

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        name = host.lower().rstrip(".")
        if self.hosts and name not in self.hosts:
            raise Forbidden(f"host {name} is not among those that may be fetched")
        try:
            found = getaddrinfo(name, port, type=SOCK_STREAM)
        except (gaierror, UnicodeError) as error:
            passing = isinstance(error, gaierror) and error.errno == EAI_AGAIN
            kind = _Passing if passing else Unreachable
            raise kind(f"host {name} is not known") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        # One private address among public ones is a trick, so all are checked before any is used.
        if not self.hosts and not all(is_public(address) for address in addresses):
            raise Forbidden(f"host {name} has an address that is not public")
        for address in addresses:
            try:
                stream = httpcore.SyncBackend().connect_tcp(
                    address, port, _until(self.deadline, timeout), local_address, socket_options
                )
                return _Bounded(stream, self.deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


@dataclass(frozen=True)
class _Bounded(httpcore.NetworkStream):
    """A stream on which nothing waits beyond `deadline`, however slowly the other side drips."""

    stream: httpcore.NetworkStream
    deadline: float

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, _until(self.deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, _until(self.deadline, timeout))

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = _until(self.deadline, timeout)
        return _Bounded(self.stream.start_tls(ssl_context, server_hostname, left), self.deadline)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


def _until(deadline: float, timeout: float | None) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("no complete answer in time")
    return left if timeout is None else min(left, timeout)
