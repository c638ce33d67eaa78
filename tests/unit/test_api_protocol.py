"""Connections that say too little, too slowly or too much."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from producer.api.protocol import BoundedProtocol
from tests.support import eventually


class Hasty(BoundedProtocol):
    """The same with bounds that a test reaches."""

    head_seconds = 0.3
    peer_connections = 4


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    """Of a server that answers /."""
    app = FastAPI()

    @app.get("/")
    async def root() -> str:
        return "x"

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=Hasty, ws="none", log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    eventually(lambda: server.started)
    yield listener.getsockname()
    server.should_exit = True
    thread.join(10)


def opened(address: Any) -> socket.socket:
    return socket.create_connection(address, timeout=10)


def everything(line: socket.socket) -> bytes:
    """What comes until the other side closes."""
    found = b""
    while piece := line.recv(65536):
        found += piece
    return found


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET /a"])
def test_half_a_head_is_not_waited_for(address: Any, sent: bytes) -> None:
    with opened(address) as line:
        line.sendall(sent)
        assert b"No request came within" in everything(line)


def test_a_second_request_must_be_whole_as_well(address: Any) -> None:
    with opened(address) as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert line.recv(1000).startswith(b"HTTP/1.1 200")
        line.sendall(b"GET / HTTP/1.1\r\n")
        assert b"No request came within" in everything(line)


@pytest.mark.parametrize("head", [b"GET /" + b"a" * 10**6, b"GET / HTTP/1.1\r\nA: " + b"a" * 10**6])
def test_a_long_head_is_refused(address: Any, head: bytes) -> None:
    with opened(address) as line:
        try:
            line.sendall(head)
            assert line.recv(100).startswith(b"HTTP/1.1 400")
        except ConnectionError:
            pass  # it was closed before all was sent


def test_a_long_body_is_no_head(address: Any) -> None:
    with opened(address) as line:
        line.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000
        )
        assert line.recv(100).startswith(b"HTTP/1.1 405")


def test_a_peer_has_so_many_connections(address: Any) -> None:
    lines = [opened(address) for _ in range(5)]
    try:
        assert lines[-1].recv(1) == b""
        lines[0].sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert everything(lines[0]).startswith(b"HTTP/1.1 200")
    finally:
        for line in lines:
            line.close()
