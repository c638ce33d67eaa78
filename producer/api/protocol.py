"""HTTP connections with the bounds that uvicorn lacks: whoever says nothing costs little."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_network
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class BoundedProtocol(HttpToolsProtocol):
    """Ends a connection whose request's head is too large or too slow, or whose peer has many.

    head_bytes: of a request's line and headers; head_seconds: until they are there;
    peer_connections: that one address may have open.
    """

    head_bytes = 64 * 2**10
    head_seconds = 15.0
    peer_connections = 256

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head = 0  # bytes of the head so far
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        addresses = [_address(one) for one in self.connections]
        # A proxy that is trusted speaks for many.
        if addresses.count(_address(self)) > self.peer_connections and not self._is_proxy():
            transport.close()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        super().connection_lost(exc)
        self._stop_waiting()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what follows the head is the reader's to bound."""
        super().data_received(data)
        if self._deadline and not self.transport.is_closing():
            self._head += len(data)
            if self._head > self.head_bytes:
                self._refuse(
                    f"The request line and headers have more than {self.head_bytes} bytes."
                )

    def on_message_begin(self) -> None:
        """A request begins, perhaps the next one of the connection."""
        super().on_message_begin()
        if not self._deadline:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._stop_waiting()
        super().on_headers_complete()

    def _is_proxy(self) -> bool:
        trusted, own = self.config.forwarded_allow_ips, _address(self)
        if not self.config.proxy_headers or isinstance(trusted, str) or not own:
            return False
        return any(ip_address(own) in ip_network(one) for one in trusted)

    def _expect_head(self) -> None:
        self._head = 0
        self._deadline = self.loop.call_later(
            self.head_seconds,
            self._refuse,
            f"No request came within {self.head_seconds:.0f} seconds.",
        )

    def _stop_waiting(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, reason: str) -> None:
        self._stop_waiting()
        self.send_400_response(reason)


def _address(connection: Any) -> str:
    """Of its peer; empty for a socket without one."""
    return connection.client[0] if connection.client else ""
