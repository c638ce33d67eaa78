"""What strangers try: hostile bodies, other teams' things, altered URLs, open doors."""

from __future__ import annotations

import json
import os
import socket
from base64 import b64encode
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.facades import Facade, make_premises, picture, stop

GENERATE = "/v1/images/generations"
EDIT = "/v1/images/edits"


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{b64encode(data).decode()}"


def send(facade: Facade, path: str, content: bytes, kind: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {facade.red}", "Content-Type": kind}
    return httpx.post(facade.url + path, content=content, headers=headers, timeout=30)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "application/json", 422),
        (b"{", "application/json", 422),
        (b"null", "application/json", 422),
        (b'["prompt"]', "application/json", 422),
        (b'{"prompt": "x", "prompt": "y"}', "application/json", 422),
        (b'{"prompt": "x", "guidance_scale": NaN}', "application/json", 422),
        (b'{"prompt": "x", "guidance_scale": 1e999}', "application/json", 422),
        (b'{"prompt": "x", "seed": ' + b"9" * 40 + b"}", "application/json", 422),
        (b'{"prompt": "x", "seed": ' + b"9" * 9000 + b"}", "application/json", 422),
        (b'{"prompt": "x", "seed": -1}', "application/json", 422),
        (b'{"prompt": "x", "seed": true}', "application/json", 422),
        (b'{"prompt": "x", "num_inference_steps": "20"}', "application/json", 422),
        (b'{"prompt": "x", "num_inference_steps": 51}', "application/json", 422),
        (b'{"prompt": "x", "width": 1e9}', "application/json", 422),
        (b'{"prompt": "x", "width": 63}', "application/json", 422),
        (b'{"prompt": "x", "unknown": 1}', "application/json", 422),
        (b'{"prompt": "x", "unknown": null}', "application/json", 422),
        (b'{"prompt": "\\ud800"}', "application/json", 422),
        (b'{"prompt": "\xff"}', "application/json", 422),
        (b'{"prompt": ' + b"[" * 100_000, "application/json", 422),
        (b'{"prompt": ' + b'{"a":' * 100 + b"1" + b"}" * 101, "application/json", 422),
        (b'{"prompt": "' + b"x" * 40_000 + b'"}', "application/json", 422),
        (b'{"prompt": "x"}', "text/plain", 415),
        (b'{"prompt": "x"}', "application/x-www-form-urlencoded", 415),
        (b'{"prompt": "x", "model": "../../etc"}', "application/json", 404),
        (b'{"prompt": "x", "model": "/etc/passwd"}', "application/json", 404),
        (b'{"prompt": "x", "model": "org/repository"}', "application/json", 404),
        (b'{"prompt": "x", "model": "null:"}', "application/json", 404),
        (b'{"prompt": "x", "model": "null\\u0000"}', "application/json", 404),
    ],
)
def test_hostile_bodies(facade: Facade, body: bytes, kind: str, status: int) -> None:
    answer = send(facade, GENERATE, body, kind)
    assert answer.status_code == status, answer.text
    assert answer.json()["message"]


@pytest.mark.parametrize(
    ("image", "status", "code"),
    [
        ("file:///etc/passwd", 422, "input_not_an_image"),
        ("/etc/passwd", 422, "input_not_an_image"),
        ("sha256:" + "0" * 64, 422, "input_not_an_image"),
        ("http://127.0.0.1:6379/", 422, "input_forbidden"),
        ("http://localhost/", 422, "input_forbidden"),
        ("http://[::1]/", 422, "input_forbidden"),
        ("http://[::ffff:169.254.169.254]/", 422, "input_forbidden"),
        ("http://2130706433/", 422, "input_forbidden"),
        ("http://169.254.169.254/latest/meta-data/", 422, "input_forbidden"),
        ("gopher://127.0.0.1/", 422, "input_not_an_image"),
        ("http://no-such-host.invalid/", 422, "input_unreachable"),
        (data_url(b"<svg/>"), 422, "input_not_an_image"),
        (data_url(picture()[:60]), 422, "input_not_an_image"),
        (data_url(picture(size=(9000, 9000))), 413, "input_too_large"),
        (data_url(bytes(51 * 2**20)), 413, "input_too_large"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_hostile_inputs(facade: Facade, image: str, status: int, code: str) -> None:
    answer = facade.post(EDIT, {"prompt": "x", "image": {"image": image}})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert "root:" not in answer.text


def part(name: str, content: bytes, file: str = "") -> bytes:
    filename = f'; filename="{file}"' if file else ""
    head = f'--B\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n'
    return head.encode() + content + b"\r\n"


@pytest.mark.parametrize(
    ("form", "status"),
    [
        (part("prompt", b"x") + part("image", picture(), "../../../evil.png") + b"--B--", 200),
        (part("prompt", b"x") + part("image", picture(), "a.png")[:60], 400),
        (b"nonsense", 400),
        (b"", 400),
        (part("prompt", b"x") + b"--B--", 422),
        (part("prompt", b"x") + part("image", b"no image", "a.png") + b"--B--", 422),
        (part("prompt", b"x") + part("image", b"", "a.png") + b"--B--", 422),
        (part("prompt", b"x") + part("image", b"text") + b"--B--", 422),
        (part("prompt", b"x") * 2 + part("image", picture(), "a.png") + b"--B--", 422),
        (part("prompt", b"x") + part("image", picture(), "a.png") * 20 + b"--B--", 400),
        (part("prompt", b"x") + part("other", picture(), "a.png") + b"--B--", 422),
        (part("prompt", b"x" * 300_000) + part("image", picture(), "a.png") + b"--B--", 400),
    ],
)
def test_hostile_forms(facade: Facade, form: bytes, status: int) -> None:
    answer = send(facade, EDIT, form, "multipart/form-data; boundary=B")
    assert answer.status_code == status, answer.text
    assert not [name for name in os.listdir(facade.premises.folder.parent) if "evil" in name]


def test_other_content_types_of_edits(facade: Facade) -> None:
    assert send(facade, EDIT, b"x", "text/plain").status_code == 415
    assert send(facade, EDIT, b"x", "multipart/form-data").status_code == 400


@pytest.mark.parametrize(("path", "most"), [(GENERATE, 136), ("/openai/v1/files", 200)])
def test_bodies_are_capped_before_they_are_read(facade: Facade, path: str, most: int) -> None:
    """A length that is too large is refused although no byte of the body was ever sent.

    most: MiB, as docs/14-security.md says.
    """
    host, port = facade.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as line:
        line.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {facade.red}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {most * 2**20 + 1}\r\n\r\n".encode()
        )
        assert line.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("path", [GENERATE, EDIT, "/dedicated" + EDIT, "/openai/v1/files"])
def test_no_body_is_read_of_whoever_has_no_token(facade: Facade, path: str) -> None:
    """The answer comes before a byte of the body was sent."""
    host, port = facade.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as line:
        line.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {10**7}\r\n\r\n".encode()
        )
        assert line.recv(100).startswith(b"HTTP/1.1 401")


def test_tokens_and_teams(facade: Facade) -> None:
    dedicated = "/dedicated" + GENERATE
    body = {"prompt": "x", "model": "null"}
    assert httpx.post(facade.url + GENERATE, json=body).status_code == 401
    refused = httpx.post(facade.url + dedicated, json=body)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert facade.post(dedicated, body, "wrong").status_code == 401

    def as_team(team: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {facade.red}", "X-Friendli-Team": team}
        return httpx.post(facade.url + dedicated, json=body, headers=headers)

    assert as_team("green").status_code == 403
    assert as_team("blue").json()["data"][0]["url"].split("/files/calls/")[1].startswith("blue/")


def test_teams_do_not_see_each_other(facade: Facade) -> None:
    files = "/openai/v1/files"
    made = httpx.post(
        facade.url + files,
        data={"purpose": "batch"},
        files={"file": ("../../x.jsonl", b"{}")},
        headers={"Authorization": f"Bearer {facade.red}"},
    ).json()
    assert made["filename"] == "../../x.jsonl"
    for path in (f"{files}/{made['id']}", f"{files}/{made['id']}/content"):
        assert facade.get(path).status_code == 200
        assert facade.get(path, facade.green).status_code == 404
    assert facade.get(files, facade.green).json()["data"] == []
    other = {"Authorization": f"Bearer {facade.red}", "X-Friendli-Team": "blue"}
    assert httpx.get(facade.url + files, headers=other).json()["data"] == []
    batch = {
        "input_file_id": made["id"],
        "endpoint": GENERATE,
        "completion_window": "24h",
    }
    assert facade.post("/openai/v1/batches", batch, facade.green).status_code == 404
    refused = facade.post("/openai/v1/batches", batch | {"priority": "high"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "wrong_priority")
    mine = facade.post("/openai/v1/batches", batch | {"priority": "low"}).json()
    assert facade.get(f"/openai/v1/batches/{mine['id']}", facade.green).status_code == 404
    for traversal in ("..%2f..%2fkeys.json", "%2e%2e", "file-" + "0" * 32):
        assert facade.get(f"{files}/{traversal}").status_code == 404


def test_signed_urls(facade: Facade) -> None:
    body = {"prompt": "x", "model": "null"}
    url = facade.post("/dedicated" + GENERATE, body).json()["data"][0]["url"]
    answer = httpx.get(url)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    altered: list[Any] = [
        url.replace("expires=1", "expires=9"),
        url.replace("/files/calls/red/", "/files/calls/green/"),
        url.replace("/files/calls/red/", "/files/../keys.json?"),
        url[:-1] + ("0" if url[-1] != "0" else "1"),
        url.replace("/files/", "/files/%2e%2e/"),
    ]
    for other in altered:
        assert httpx.get(other).status_code in (403, 404, 422), other


def test_health_needs_no_token(facade: Facade) -> None:
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        assert httpx.get(facade.url + path).status_code == 200


def test_logs_hold_no_secrets(facade: Facade) -> None:
    prompt = "a very private prompt"
    answer = facade.post("/dedicated" + GENERATE, {"prompt": prompt, "model": "null"})
    signature = answer.json()["data"][0]["url"].rpartition("=")[2]
    httpx.get(answer.json()["data"][0]["url"])
    facade.post(EDIT, {"prompt": prompt, "image": {"image": data_url(picture())}})
    log = facade.premises.log("up").read_text()
    assert f"POST {EDIT} 200" in log
    for secret in (facade.red, facade.green, prompt, signature, b64encode(picture()).decode()):
        assert secret not in log


def test_open_doors_need_a_key_or_a_word(tmp_path: Any) -> None:
    premises = make_premises(tmp_path)
    refused = premises.run("serve", "--host", "0.0.0.0", "--port", "0")
    assert refused.returncode == 2
    assert "--insecure" in refused.stderr


def test_without_keys_other_sites_are_kept_out(tmp_path: Path) -> None:
    """A page of a stranger, in a browser of this machine: a form, or a name that leads here."""
    premises = make_premises(tmp_path)
    server, url = premises.serve("serve", "--broker", "redis://127.0.0.1:1")
    port = url.rpartition(":")[2]
    models = f"{url}/openai/v1/models"
    try:
        for headers, code in (
            ({"Host": f"evil.example:{port}"}, "wrong_host"),
            ({"Host": ""}, "wrong_host"),
            ({"Origin": "https://evil.example"}, "wrong_origin"),
            ({"Origin": "null"}, "wrong_origin"),
            ({"Origin": f"http://localhost:{port}", "Host": f"127.0.0.1:{port}"}, "wrong_origin"),
        ):
            answer = httpx.get(models, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, code), headers
        for headers in ({"Host": f"localhost:{port}"}, {"Origin": url}):
            assert httpx.get(models, headers=headers).status_code == 503  # it is the broker's turn
    finally:
        stop(server, premises.log("serve"))


def test_revoking_the_last_key_opens_no_door(tmp_path: Path) -> None:
    premises = make_premises(tmp_path)
    server, url = premises.serve("serve", "--broker", "redis://127.0.0.1:1")
    try:
        files = f"{url}/openai/v1/files"
        premises.key("red")
        assert httpx.get(files).status_code == 401
        (key,) = json.loads((tmp_path / "keys.json").read_text())
        assert premises.run("keys", "revoke", key["id"]).returncode == 0
        assert httpx.get(files).status_code == 401
    finally:
        stop(server, premises.log("serve"))


def test_taken_port_is_named(facade: Facade) -> None:
    port = facade.url.rpartition(":")[2]
    refused = facade.premises.run("serve", "--port", port)
    assert refused.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in refused.stderr
