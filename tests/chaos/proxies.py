"""Networks: a TCP link that goes silent, one with TLS, an S3 endpoint that answers badly."""

from __future__ import annotations

import asyncio
import http.client
import queue
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class Link:
    """Forwards TCP connections to a port; while it is cut, bytes vanish and nothing is closed."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open = threading.Event()
        self._open.set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._open.clear()

    def mend(self) -> None:
        self._open.set()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)  # or the thread goes on accepting
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    near.close()  # as a port does that nobody listens at
                    continue
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._forward, args=(one, other), daemon=True).start()

    def _forward(self, one: socket.socket, other: socket.socket) -> None:
        with one, suppress(OSError):
            while data := one.recv(65536):
                if self._open.is_set():
                    other.sendall(data)
            other.shutdown(socket.SHUT_RDWR)  # and its own thread closes it


@contextmanager
def tls_link(port: int, context: ssl.SSLContext) -> Iterator[int]:
    """A port that takes TLS connections and forwards what they hold to another port."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.transport.abort()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(forward(reader, far[1]), forward(far[0], writer))

    started: queue.Queue[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def serve() -> None:
        server = await asyncio.start_server(meet, "127.0.0.1", 0, ssl=context)
        end = asyncio.Event()
        started.put((server.sockets[0].getsockname()[1], asyncio.get_running_loop(), end))
        await end.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    own_port, loop, end = started.get()
    try:
        yield own_port
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()


class Weather:
    """What an S3 proxy does to answers: a share of them is spoilt; all are while it is `out`."""

    def __init__(self, dice: random.Random, share: float) -> None:
        self._dice = dice
        self.share = share
        self.out = False
        self.spoilt = 0

    def draw(self) -> str:
        if self.out or self._dice.random() < self.share:
            self.spoilt += 1
            return "500" if self.out else self._dice.choice(["500", "503", "slow", "reset", "cut"])
        return "fine"


@contextmanager
def s3_proxy(endpoint: str, weather: Weather) -> Iterator[str]:
    """The URL of a proxy before an S3 server."""
    target = urlsplit(endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fate = weather.draw()
            if fate in ("500", "503"):
                self.send_response(int(fate))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if fate == "slow":
                time.sleep(1)
            if fate == "reset":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            upstream = http.client.HTTPConnection(target, timeout=30)
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            data = answer.read()
            upstream.close()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            length = answer.headers["Content-Length"] if self.command == "HEAD" else len(data)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if fate == "cut":  # half of an answer that promised more
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            else:
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
