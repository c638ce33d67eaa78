"""imagemill push, as a user runs it, to a hub in this process."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.datasets import make_dataset
from tests.support import Cli

TOKEN = "hf_test"


@dataclass
class Hub:
    """What was uploaded. objects: large files by their SHA-256; files: of the last commit; sent:
    the large files that were not there yet, in order; private: of the repository."""

    objects: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    private: bool = False


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that takes uploads of large files as Git LFS has them, and of small ones in commits."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self._data()
            if self.headers.get("Authorization") not in (f"Bearer {TOKEN}", None):
                self._answer({"error": "Invalid credentials"}, 401)
            elif self.path == "/api/repos/create":
                hub.private = "private" in json.dumps(json.loads(data))
                self._answer({"url": f"{url}/datasets/org/name"})
            elif self.path == "/api/validate-yaml":
                self._answer({"errors": [], "warnings": []})
            elif self.path == "/api/datasets/org/name/preupload/main":
                self._answer({"files": [mode(one["path"]) for one in json.loads(data)["files"]]})
            elif self.path == "/datasets/org/name.git/info/lfs/objects/batch":
                objects = [wanted(one) for one in json.loads(data)["objects"]]
                self._answer({"transfer": "basic", "objects": objects})
            elif self.path == "/api/datasets/org/name/commit/main":
                commit([json.loads(line) for line in data.splitlines()])
                url_of = f"{url}/datasets/org/name/commit/{'1' * 40}"
                self._answer({"success": True, "commitUrl": url_of, "commitOid": "1" * 40})
            else:
                self._answer({"error": f"no {self.path}"}, 404)

        def do_GET(self) -> None:
            if self.path.startswith("/api/datasets/org/name/tree/main"):
                self._answer([
                    {"type": "file", "path": path, "size": len(data), "oid": "0" * 40}
                    for path, data in hub.files.items()
                ])  # fmt: skip
            else:
                self._answer({"id": "org/name", "sha": "0" * 40, "siblings": []})

        def do_PUT(self) -> None:
            data = self._data()
            oid = self.path.rpartition("/")[2]
            assert sha256(data).hexdigest() == oid
            hub.objects[oid] = data
            hub.sent.append(oid)
            self._answer({})

        def _data(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _answer(self, content: object, code: int = 200) -> None:
            data = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    def mode(path: str) -> dict[str, Any]:
        large = Path(path).suffix in (".parquet", ".png", ".tar")
        upload = "lfs" if large else "regular"
        return {"path": path, "uploadMode": upload, "shouldIgnore": False, "oid": None}

    def wanted(one: dict[str, Any]) -> dict[str, Any]:
        if one["oid"] in hub.objects:
            return one
        return one | {"actions": {"upload": {"href": f"{url}/lfs/{one['oid']}"}}}

    def commit(lines: list[dict[str, Any]]) -> None:
        for line in lines[1:]:  # all other files stay
            value = line["value"]
            if line["key"] == "deletedFile":
                del hub.files[value["path"]]
            elif line["key"] == "lfsFile":
                hub.files[value["path"]] = hub.objects[value["oid"]]
            else:
                hub.files[value["path"]] = base64.b64decode(value["content"])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # its servers are not to be had here
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_export_is_pushed(cli: Cli, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(str(cli.folder / "out"), 12)
    cli("export", "out", "shards", "--to", "parquet", "--shard-size", "4", "--license", "cc0-1.0")
    command = ["push", "shards", "hf://datasets/org/name"]
    pushed = cli.json(*command, "--private")
    folder = cli.folder / "shards"
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert hub.files == files
    assert {"README.md", "sheet.png", "croissant.json", "train/00002.parquet"} <= files.keys()
    assert (pushed["repo"], pushed["files"]) == ("org/name", len(files))
    assert pushed["bytes"] == sum(map(len, files.values()))
    assert hub.private
    assert b"![Some of the images](sheet.png)" in files["README.md"]
    sent = len(hub.sent)
    assert "files (" in cli(*command).stdout
    assert len(hub.sent) == sent, "what the hub has is not sent again"
    text = cli("push", "out", "hf://datasets/org/name", code=2).stderr
    assert "imagemill export out FOLDER --to parquet" in text
    assert "is no dataset on the hub" in cli("push", "shards", "hf://org/name", code=2).stderr
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    text = cli(*command, code=1).stderr
    assert "the hub did not take org/name" in text
    assert "Check that your token" in text
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert "Try again when the hub can be reached" in cli(*command, code=1).stderr


def test_a_push_replaces_the_shards_of_another_export(cli: Cli, hub: Hub) -> None:
    make_dataset(str(cli.folder / "out"), 12)
    cli("export", "out", "all", "--to", "webdataset", "--shard-size", "4")
    cli("export", "out", "files", "--to", "imagefolder")
    cli("export", "out", "some", "--to", "parquet", "--where", "index < 4")
    place = "hf://datasets/org/name"
    hub.files["notes.md"] = b"the team's own"
    cli("push", "all", place)
    assert "train/00002.tar" in hub.files
    cli("push", "files", place)
    assert "train/00000/000000011.jpg" in hub.files
    assert "train/00002.tar" not in hub.files
    (cli.folder / "some/train/.00000.parquet.65d840e0.tmp").write_bytes(b"half")
    assert cli.json("push", "some", place)["files"] == 5
    shards = {path for path in hub.files if path.startswith("train/")}
    assert shards == {"train/00000.parquet"}
    assert hub.files["notes.md"] == b"the team's own"


def test_an_export_that_has_not_finished_is_not_pushed(cli: Cli, hub: Hub) -> None:
    make_dataset(str(cli.folder / "out"), 3)
    cli("export", "out", "shards", "--to", "parquet")
    (cli.folder / "shards/README.md").unlink()
    text = cli("push", "shards", "hf://datasets/org/name", code=2).stderr
    assert "has not finished" in text
    assert not hub.files
