"""A hub of Hugging Face in this process: folders as repositories, each at one commit.

Whoever asks for another commit gets the same files under that one's name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from jobs.ids import COMMIT


@dataclass
class Hub:
    """repositories: name → (commit, folder); gated: those that want TOKEN; got: files sent."""

    repositories: dict[str, tuple[str, Path]]
    gated: set[str] = field(default_factory=set)
    got: list[str] = field(default_factory=list)


TOKEN = "hf_test"


@contextmanager
def serve_hub(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have huggingface_hub use it, with an empty cache, while the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self._describe("/".join(parts[2:4]), parts[4:])
            else:
                self._file("/".join(parts[:2]), "".join(parts[3:4]), "/".join(parts[4:]))

        def _describe(self, name: str, rest: list[str]) -> None:
            if name not in hub.repositories:
                self._answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
                return
            newest, folder = hub.repositories[name]
            commit = rest[1] if rest[:1] == ["revision"] and COMMIT.fullmatch(rest[1]) else newest
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            names = {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}
            siblings = [{"rfilename": one} for one in names]
            answer: object = {"id": name, "sha": commit, "siblings": siblings}
            if rest[:1] == ["tree"]:
                answer = [
                    {"type": "file", "path": n, "size": size, "oid": "0" * 40}
                    for n, size in names.items()
                ]
            self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

        def _file(self, name: str, revision: str, file: str) -> None:
            newest, folder = hub.repositories.get(name, ("", Path("/dev/null")))
            commit = revision if COMMIT.fullmatch(revision) else newest
            if name in hub.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._answer(401, b"", {"X-Error-Code": "GatedRepo"})
            elif not (folder / file).is_file():
                self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            else:
                content = (folder / file).read_bytes()
                if self.command == "GET":
                    hub.got.append(f"{name}/{file}")
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                self._answer(200, content, {"ETag": etag, "X-Repo-Commit": commit})

        def _answer(self, code: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(code)
            for field_name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(field_name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    constants = "huggingface_hub.constants."
    monkeypatch.setattr(f"{constants}ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(f"{constants}HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", url)
    monkeypatch.setattr(f"{constants}HF_HUB_CACHE", str(cache))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(f"{constants}HF_TOKEN_PATH", str(cache / "none"))
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
