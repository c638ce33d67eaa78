"""What goes over the wire to an object store."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from s3fs import S3FileSystem

from jobs.output.storage import open_storage


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The headers of each request that a store got."""
    found: list[Any] = []

    class Store(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            found.append(self.headers)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            found.append(self.headers)
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"content")

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        # fsspec keeps one for each set of options, of which the endpoint's variable is none.
        S3FileSystem.clear_instance_cache()
        yield found
        S3FileSystem.clear_instance_cache()
        server.shutdown()


def test_a_put_waits_for_one_round_trip(heads: list[Any]) -> None:
    """botocore has a store say that it wants the body, and then sends it."""
    open_storage("s3://bucket/out").write("a", b"content")
    assert [head.get("Expect") for head in heads] == [None]


def test_a_read_takes_one_request(heads: list[Any]) -> None:
    """s3fs asks for the size first, to read what is large in pieces."""
    assert open_storage("s3://bucket/out").read("a") == b"content"
    assert len(heads) == 1
