"""What a real S3 server refuses: named at once with the reason, not tried again for a minute."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from jobs.errors import FatalError, UsageError
from jobs.output.storage import Storage, open_storage
from tests.support import eventually

ACTIONS: dict[str, Callable[[Storage], object]] = {
    "write": lambda storage: storage.write("a", b"x"),
    "read": lambda storage: storage.read("a"),
    "exists": lambda storage: storage.exists("a"),
    "list": lambda storage: storage.list(""),
    "sizes": lambda storage: storage.sizes(""),
    "remove": lambda storage: storage.remove("a"),
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of an S3 server with one key, `right` and `secret`, and a bucket, `bucket`."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "bucket").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rclone = Path(sys.executable).with_name("rclone")
    server = subprocess.Popen(
        [
            rclone,
            "serve",
            "s3",
            folder,
            "--addr",
            f"127.0.0.1:{port}",
            "--auth-key",
            "right,secret",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: _listens(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def opened(uri: str, endpoint: str, key: str, secret: str) -> Storage:
    return open_storage(uri, key=key, secret=secret, endpoint_url=endpoint)


@pytest.mark.timeout(50)  # less than the minute that it would be tried again for
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS.keys())
@pytest.mark.parametrize(("key", "secret"), [("right", "wrong"), ("other", "secret")])
def test_wrong_credentials(
    guarded: str, key: str, secret: str, action: Callable[[Storage], object]
) -> None:
    with pytest.raises(FatalError, match=r"s3://bucket/out.* refuses access"):
        action(opened("s3://bucket/out", guarded, key, secret))


def test_right_credentials(guarded: str) -> None:
    storage = opened("s3://bucket/out", guarded, "right", "secret")
    storage.write("a", b"x")
    assert (storage.read("a"), storage.sizes("")) == (b"x", {"a": 1})


def test_a_presigned_url_is_for_get(guarded: str) -> None:
    """All of the file or a range of it; a HEAD has another signature."""
    storage = opened("s3://bucket/out", guarded, "right", "secret")
    storage.write("a", b"content")
    url = storage.presigned_url("a", 60)
    assert url
    assert httpx.get(url).content == b"content"
    part = httpx.get(url, headers={"Range": "bytes=0-0"})
    assert part.content == b"c"
    assert part.headers["Content-Range"] == "bytes 0-0/7"
    assert httpx.head(url).status_code == 403
    assert httpx.get(url.replace("/out/a", "/out/b")).status_code == 403


@pytest.mark.timeout(50)
def test_a_missing_bucket(guarded: str) -> None:
    storage = opened("s3://absent/out", guarded, "right", "secret")
    for write in (ACTIONS["write"], _write_a_stream):
        with pytest.raises(UsageError, match="storage s3://absent/out does not exist"):
            write(storage)
    assert (storage.exists("a"), storage.list(""), storage.sizes("")) == (False, [], {})


def _write_a_stream(storage: Storage) -> None:
    with storage.writer("a") as file:
        file.write(b"x")
