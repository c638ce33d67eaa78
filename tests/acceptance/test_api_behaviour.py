"""What callers may rely on when much happens at once, or something is away."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis
from openai import OpenAI, RateLimitError

from jobs.broker.connection import connect
from jobs.broker.progress import Progress
from jobs.broker.runs import Runs
from jobs.broker.seals import NO_SEAL
from jobs.settings import Settings
from producer.api.calls import INPUT_THREADS
from tests.facades import Premises, make_premises, picture, stop
from tests.support import eventually

GENERATE = "/v1/images/generations"


@dataclass
class Plant:
    """A broker, a worker and any number of facades in one premises."""

    premises: Premises
    broker: str
    worker: Any = None
    facades: list[Any] = field(default_factory=list)

    def start_worker(self) -> None:
        self.worker = self.premises.start(
            "worker", "--devices", "cpu", "--models", "null,slow", IMAGEMILL_BROKER=self.broker
        )

    def serve(self, **extra: str) -> str:
        process, url = self.premises.serve("serve", "--broker", self.broker, **extra)
        self.facades.append(process)
        return url

    def ready(self, url: str) -> str:
        eventually(lambda: httpx.get(f"{url}/readyz").status_code == 200, 30)
        return url

    @property
    def redis(self) -> redis.Redis:
        return connect(Settings(broker=self.broker))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The device process stands still for as long as the block lasts."""
        device = self.device()
        device.suspend()
        try:
            yield
        finally:
            device.resume()

    def device(self) -> psutil.Process:
        """The process that renders; its own child stores."""
        (parent,) = psutil.Process(self.worker.pid).children()
        (found,) = (p for p in parent.children() if "spawn_main" in " ".join(p.cmdline()))
        return found

    def waiting(self) -> int:
        return int(self.redis.zcard("imagemill:calls:null"))

    def end(self) -> None:
        for process in self.facades:
            if process.poll() is None:
                stop(process, self.premises.log("serve"))
        if self.worker:
            self.worker.terminate()
            assert self.worker.wait(30) == 0


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory, valkey: str) -> Iterator[Plant]:
    connect(Settings(broker=valkey)).flushall()
    plant = Plant(make_premises(tmp_path_factory.mktemp("plant")), valkey)
    plant.start_worker()
    try:
        yield plant
    finally:
        plant.end()


@pytest.fixture(scope="module")
def url(plant: Plant) -> str:
    return plant.ready(plant.serve(IMAGEMILL_CALL_SECONDS="4", IMAGEMILL_TEAM_CALLS="4"))


def call(url: str, **body: Any) -> httpx.Response:
    return httpx.post(url + GENERATE, json={"prompt": "x"} | body, timeout=30)


def calls(url: str, count: int, **body: Any) -> list[Future[httpx.Response]]:
    """Several calls at once, with the seeds 0, 1, …"""
    pool = ThreadPoolExecutor(count)
    futures = [pool.submit(call, url, seed=seed, **body) for seed in range(count)]
    pool.shutdown(wait=False)
    return futures


def test_calls_that_wait_together_are_rendered_together(plant: Plant, url: str) -> None:
    alone = [call(url, seed=seed).json() for seed in range(4)]
    with plant.frozen():
        together = calls(url, 4)
        eventually(lambda: plant.waiting() == 4)
    answers = [future.result() for future in together]
    assert [answer.json() for answer in answers] == alone
    # A call's time is its share of the batch, so calls of one batch have the same.
    timings = [answer.headers["server-timing"].split(", ") for answer in answers]
    assert len({render for _, render, _ in timings}) == 1


def test_full_queue_says_when_to_come_back(plant: Plant, url: str) -> None:
    with plant.frozen():
        waiting = calls(url, 4)
        eventually(lambda: plant.waiting() == 4)
        refused = call(url)
    assert refused.status_code == 429
    assert refused.json()["code"] == "queue_full"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert [future.result().status_code for future in waiting] == [200] * 4


def test_deadline_cancels_the_work(plant: Plant, url: str) -> None:
    before = images(plant)
    with plant.frozen():
        late = call(url)
        assert late.status_code == 504
        assert plant.waiting() == 0
    assert call(url).status_code == 200
    assert len(images(plant)) == len(before) + 1


def test_gone_caller_is_cancelled(plant: Plant, url: str) -> None:
    before = images(plant)
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "x"})
    with plant.frozen():
        with socket.create_connection((host, int(port)), timeout=10) as line:
            line.sendall(
                f"POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            eventually(lambda: plant.waiting() == 1)
        eventually(lambda: plant.waiting() == 0, 3)
    assert call(url).status_code == 200
    assert len(images(plant)) == len(before) + 1


def images(plant: Plant) -> list[Path]:
    return list((plant.premises.store / "calls").rglob("*.jpg"))


def test_calls_go_before_a_bulk_run(plant: Plant, url: str) -> None:
    manifest = plant.premises.folder / "bulk.jsonl"
    lines = (f'{{"prompt": "{i}", "model": "slow"}}\n' for i in range(6_000))
    manifest.write_text("".join(lines))
    out = plant.premises.folder / "bulk"
    plant.premises.run("submit", str(manifest), "--out", str(out), "--broker", plant.broker)

    runs = Runs(plant.redis, "imagemill:", NO_SEAL)
    (run,) = runs.listed(1)

    def progress() -> Progress:
        found = runs.progress(run)
        assert found
        return found

    eventually(lambda: progress().done)
    for model in ("slow", "null") * 3:
        started = time.monotonic()
        assert call(url, model=model).status_code == 200
        # The batch under way and its own are half a second, on cores that other tests share up to
        # 2.4 s were seen; a chunk is minutes. benchmarks/latency.py measures the wait itself.
        assert time.monotonic() - started < 4
    assert progress().state == "running"
    assert plant.premises.run("cancel", run, "--broker", plant.broker).returncode == 0


def line(number: int, name: str = "", **more: Any) -> str:
    body = {"prompt": f"picture {number}"} | more
    name = name or f"{number}"
    return json.dumps({"custom_id": name, "method": "POST", "url": GENERATE, "body": body})


def batch(url: str, lines: int) -> Any:
    return send(url, *map(line, range(lines)))


def send(url: str, *lines: str) -> Any:
    content = "\n".join(lines).encode()
    api = f"{url}/openai/v1"
    file = httpx.post(f"{api}/files", data={"purpose": "batch"}, files={"file": ("a", content)})
    body = {
        "input_file_id": file.json()["id"],
        "endpoint": GENERATE,
        "completion_window": "24h",
    }
    return httpx.post(f"{api}/batches", json=body).json()


def ended(url: str, batch_id: str) -> Any:
    """The batch once it has ended, as a facade sees it."""

    def look() -> Any:
        now = httpx.get(f"{url}/openai/v1/batches/{batch_id}").json()
        return now if now["status"] in ("completed", "cancelled", "expired", "failed") else None

    return eventually(look, 30)


def results(url: str, file_id: str) -> list[Any]:
    content = httpx.get(f"{url}/openai/v1/files/{file_id}/content").text
    return [json.loads(one) for one in content.splitlines()]


def test_batches_survive_their_facade_and_a_wiped_broker(plant: Plant, url: str) -> None:
    beside = plant.serve()
    with plant.frozen():
        made = batch(beside, 40)
        eventually(started_file(plant, made).exists)
        stop(plant.facades.pop(), plant.premises.log("serve"))
        plant.redis.flushall()
    found = ended(url, made["id"])
    assert found["status"] == "completed"
    assert len(results(url, found["output_file_id"])) == 40


def started_file(plant: Plant, made: Any) -> Path:
    """What is there once a batch has its run."""
    return plant.premises.store / "batches" / "default" / made["id"] / "started.json"


def test_cancelled_batch_keeps_what_it_has(url: str) -> None:
    made = batch(url, 6_000)

    def going() -> bool:
        now = httpx.get(f"{url}/openai/v1/batches/{made['id']}").json()
        return bool(now["request_counts"]["completed"])

    eventually(going)
    assert httpx.post(f"{url}/openai/v1/batches/{made['id']}/cancel").status_code == 200
    found = ended(url, made["id"])
    counts = found["request_counts"]
    assert found["status"] == "cancelled"
    assert found["cancelling_at"] <= found["cancelled_at"]
    assert 0 < counts["completed"] < 6_000
    assert counts["completed"] + counts["failed"] == 6_000
    assert len(results(url, found["output_file_id"])) == counts["completed"]
    (last,) = results(url, found["error_file_id"])[-1:]
    assert last["error"]["code"] == "batch_cancelled"


def test_batches_of_one_content_are_apart(plant: Plant, url: str) -> None:
    with plant.frozen():
        first, second = batch(url, 4), batch(url, 4)
        for made in (first, second):
            eventually(started_file(plant, made).exists)
        assert httpx.post(f"{url}/openai/v1/batches/{first['id']}/cancel").status_code == 200
        assert ended(url, first["id"])["request_counts"]["completed"] == 0
    found = ended(url, second["id"])
    assert (found["status"], found["request_counts"]["completed"]) == ("completed", 4)


def test_a_wrong_body_costs_its_batch_no_other_request(url: str) -> None:
    """As OpenAI's service does: it has a line in the error file, with its status."""
    bodies: list[dict[str, Any]] = [
        {"n": 0}, {"model": "nobody"}, {"size": "12x"}, {"background": "transparent"},
        {"size": "20x64"}, {"prompt": 5},
    ]  # fmt: skip
    lines = [line(0), line(1, "x" * 511, n=2), *(line(i, **b) for i, b in enumerate(bodies, 2))]
    made = send(url, *lines)
    found = ended(url, made["id"])
    assert found["status"] == "completed", found
    assert found["request_counts"] == {"total": 8, "completed": 1, "failed": 7}
    assert [one["custom_id"] for one in results(url, found["output_file_id"])] == ["0"]
    errors = results(url, found["error_file_id"])
    assert [one["custom_id"] for one in errors] == ["x" * 511, *map(str, range(2, 8))]
    assert [one["response"]["status_code"] for one in errors] == [400] * 7
    told = [one["response"]["body"]["error"] for one in errors]
    params = ["custom_id", "n", "model", "size", "background", "size", "prompt"]
    assert [one["param"] for one in told] == params
    assert "nobody" in told[2]["message"]
    assert not told[2]["message"].startswith("line")


def test_a_batch_of_wrong_bodies_has_an_error_file_only(url: str) -> None:
    for body in ({"n": 0}, {"model": "nobody"}):  # refused before, and while it is planned
        found = ended(url, send(url, line(0, **body), line(1, **body))["id"])
        assert (found["status"], found.get("output_file_id")) == ("completed", None)
        assert found["request_counts"] == {"total": 2, "completed": 0, "failed": 2}
        assert len(results(url, found["error_file_id"])) == 2


def test_what_is_no_request_fails_its_batch_alone(url: str) -> None:
    good = batch(url, 2)
    for lines, number in (([line(0), "{"], 2), ([line(0), line(1), line(0)], 3)):
        found = ended(url, send(url, *lines)["id"])
        assert found["status"] == "failed"
        (error,) = found["errors"]["data"]
        assert (error["line"], error["code"]) == (number, "invalid_line")
    assert ended(url, good["id"])["status"] == "completed"


def test_late_batch_expires(plant: Plant, url: str) -> None:
    with plant.frozen():
        made = batch(url, 4)
        eventually(started_file(plant, made).exists)
        ticket = started_file(plant, made).with_name("ticket.json")
        late = json.loads(ticket.read_text()) | {"expires_at": int(time.time()) + 1}
        ticket.write_text(json.dumps(late))
        found = ended(url, made["id"])
    assert found["status"] == "expired"
    assert found["request_counts"] == {"total": 4, "completed": 0, "failed": 4}
    assert {one["error"]["code"] for one in results(url, found["error_file_id"])} == {
        "batch_expired"
    }


def test_missing_worker_and_broker_are_named(tmp_path: Path, valkey: str) -> None:
    premises = make_premises(tmp_path)
    process, url = premises.serve("serve", "--broker", valkey, IMAGEMILL_KEY_PREFIX="lonely:")
    try:
        for answer in (call(url), httpx.get(f"{url}/readyz")):
            assert (answer.status_code, answer.json()["code"]) == (503, "no_worker")
            assert int(answer.headers["retry-after"]) > 0
    finally:
        stop(process, premises.log("serve"))
    process, url = premises.serve("serve", "--broker", f"redis+socket://{tmp_path}/none.sock")
    try:
        for answer in (call(url), httpx.get(f"{url}/readyz")):
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert httpx.get(f"{url}/healthz").status_code == 200
    finally:
        stop(process, premises.log("serve"))


def test_a_stopping_facade_finishes_its_calls_and_takes_no_others(plant: Plant) -> None:
    url = plant.ready(plant.serve())
    with plant.frozen():
        (waiting,) = calls(url, 1)
        eventually(plant.waiting)
        plant.facades[-1].send_signal(signal.SIGTERM)
        refused = eventually(lambda: (got := call(url)).status_code == 503 and got)
        assert refused.json()["code"] == "stopping"
        assert int(refused.headers["retry-after"]) > 0
        assert httpx.get(f"{url}/readyz").json()["code"] == "stopping"
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert plant.facades[-1].poll() is None
    assert waiting.result().status_code == 200
    assert plant.facades.pop().wait(10) == 0


def test_calls_that_outlast_the_stop_are_told_to_come_back(plant: Plant) -> None:
    url = plant.ready(plant.serve(IMAGEMILL_DRAIN_SECONDS="0.5"))
    with plant.frozen():
        (waiting,) = calls(url, 1)
        eventually(plant.waiting)
        plant.facades[-1].send_signal(signal.SIGTERM)
        answer = waiting.result()
        assert (answer.status_code, answer.json()["code"]) == (503, "stopping")
        assert int(answer.headers["retry-after"]) > 0
        assert plant.facades.pop().wait(10) == 0
        assert not plant.waiting()
    assert "Traceback" not in plant.premises.log("serve").read_text()


def test_killed_worker_process_costs_no_call(plant: Plant) -> None:
    url = plant.ready(plant.serve())
    rendering = calls(url, 2, model="slow")
    eventually(lambda: plant.redis.keys("imagemill:call-takes:*"))
    plant.device().kill()
    assert [future.result().status_code for future in rendering] == [200, 200]


def test_urls_are_those_of_whoever_asks(plant: Plant, url: str) -> None:
    """Of a proxy only where it is trusted; in a batch's output when it is read."""
    forwarded = {"X-Forwarded-Proto": "https", "Host": "images.example"}

    def made(at: str, headers: dict[str, str]) -> Any:
        body = {"prompt": "x"}
        answer = httpx.post(f"{at}/openai/v1/images/generations", json=body, headers=headers)
        return answer.json().get("data", [{}])[0].get("url")

    port = url.rpartition(":")[2]
    local = {**forwarded, "Host": f"localhost:{port}"}
    assert made(url, forwarded) is None  # another site's page could send this
    assert made(url, local).startswith(f"http://localhost:{port}/files/")
    believing = plant.ready(plant.serve(IMAGEMILL_TRUSTED_PROXIES='["127.0.0.0/8"]'))
    assert made(believing, local).startswith(f"https://localhost:{port}/files/")
    public = "https://images.example/mill"
    named = plant.ready(plant.serve(IMAGEMILL_PUBLIC_URL=f"{public}/"))
    assert made(named, forwarded).startswith(f"{public}/files/")
    assert made(named, {**forwarded, "Origin": "https://images.example"})
    assert not made(named, {**forwarded, "Origin": "null"})

    found = ended(url, batch(url, 1)["id"])
    for at, beginning in ((url, url), (named, public)):
        (line,) = results(at, found["output_file_id"])
        image = line["response"]["body"]["data"][0]["url"]
        assert image.startswith(f"{beginning}/files/batches/default/")
        assert httpx.get(image.replace(public, named)).content.startswith(b"\x89PNG")
    for process in (plant.facades.pop(), plant.facades.pop()):
        stop(process, plant.premises.log("serve"))


def test_stored_files_are_looked_at_and_read_in_pieces(url: str) -> None:
    body = {"prompt": "x"}
    image = httpx.post(f"{url}/openai/v1/images/generations", json=body).json()["data"][0]["url"]
    whole = httpx.get(image)
    assert whole.headers["accept-ranges"] == "bytes"
    looked = httpx.head(image)
    assert (looked.status_code, looked.content) == (200, b"")
    assert looked.headers["content-length"] == str(len(whole.content))
    assert looked.headers["content-type"] == "image/png"
    piece = httpx.get(image, headers={"Range": "bytes=4-7"})
    assert (piece.status_code, piece.content) == (206, whole.content[4:8])
    assert httpx.head(image.replace("signature=", "signature=0")).status_code == 403


def test_pages_have_heads_without_a_body_and_count_as_what_they_are(url: str) -> None:
    with httpx.Client(base_url=url) as client:  # one connection: what is too much would break it
        for path in ("/", "/login", "/docs", "/v1/models"):
            head, page = client.head(path), client.get(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-type"] == page.headers["content-type"]
        told = client.get("/metrics").text
    assert re.search(r'imagemill_http_requests_total{route="/login",status="200"} [2-9]', told)


def test_slow_inputs_of_one_team_cost_another_nothing(plant: Plant) -> None:
    """48 edits of red name a server that never answers; blue's own edit is there at once."""
    url = plant.ready(
        plant.serve(
            IMAGEMILL_API_KEYS="red-token@red,blue-token@blue",
            IMAGEMILL_INPUT_HOSTS='["127.0.0.1"]',
            IMAGEMILL_DRAIN_SECONDS="0",
        )
    )

    sent = threading.Semaphore(0)

    def trace(event: str, _: object) -> None:
        if event == "http11.send_request_body.complete":
            sent.release()

    def edit(team: str, image: str) -> httpx.Response:
        body = {"prompt": "x", "image": {"image": image}}
        headers = {"Authorization": f"Bearer {team}-token"}
        with httpx.Client(timeout=60, headers=headers) as client:
            return client.post(f"{url}/v1/images/edits", json=body, extensions={"trace": trace})

    own = b64encode(picture()).decode()
    assert edit("blue", own).status_code == 200
    assert sent.acquire(timeout=20)
    with (
        ExitStack() as asking,
        socket.create_server(("127.0.0.1", 0), backlog=64) as silent,
        ThreadPoolExecutor(48) as pool,
    ):
        slow = f"http://127.0.0.1:{silent.getsockname()[1]}/a.png"
        stuck = [pool.submit(edit, "red", slow) for _ in range(48)]
        silent.settimeout(20)
        for _ in range(INPUT_THREADS):  # all that red has
            asking.enter_context(silent.accept()[0])
        # What came before blue's was read when blue's is answered; a server that ends resets
        # a connection of which it read nothing.
        assert all(sent.acquire(timeout=20) for _ in stuck)
        started = time.monotonic()
        assert edit("blue", own).status_code == 200
        assert time.monotonic() - started < 2
        assert not any(one.done() for one in stuck)
        # Nor does the facade wait for a stranger when it is to end.
        plant.facades[-1].send_signal(signal.SIGTERM)
        assert plant.facades.pop().wait(5) == 0
        assert {one.result().status_code for one in stuck} == {503}


def test_a_team_has_a_rate(plant: Plant) -> None:
    url = plant.ready(plant.serve(IMAGEMILL_TEAM_RATE="3/second"))

    def client(retries: int) -> OpenAI:
        return OpenAI(base_url=f"{url}/openai/v1", api_key="any", max_retries=retries)

    def hurry(client: OpenAI) -> None:
        for _ in range(20):
            client.models.list()

    with client(0) as impatient, pytest.raises(RateLimitError) as refused:
        hurry(impatient)
    assert refused.value.code == "rate_limited"
    assert refused.value.response.headers["retry-after"] == "1"
    with client(2) as patient:
        for _ in range(5):
            patient.models.list()


def test_a_deleted_batch_is_only_gone(plant: Plant, url: str) -> None:
    gone, there = batch(url, 1), batch(url, 1)
    for made in (gone, there):
        ended(url, made["id"])
    started_file(plant, gone).with_name("ticket.json").unlink()
    listed = httpx.get(f"{url}/openai/v1/batches", params={"limit": 1}).json()
    assert ([one["id"] for one in listed["data"]], listed["has_more"]) == ([there["id"]], True)
    following = httpx.get(f"{url}/openai/v1/batches", params={"after": there["id"]}).json()
    assert gone["id"] not in [one["id"] for one in following["data"]]
    assert httpx.get(f"{url}/openai/v1/batches/{gone['id']}").status_code == 404
