"""Real clients, unmodified, against a real server and a real worker."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import openai
import pytest
from friendli import AsyncFriendli, SyncFriendli
from friendli.core.models import FriendliCoreError
from openai import OpenAI
from PIL import Image

from tests.facades import Facade, picture
from tests.support import eventually


def size(data: bytes) -> tuple[str | None, tuple[int, int]]:
    image = Image.open(BytesIO(data))
    image.load()
    return image.format, image.size


DATA_URL = f"data:image/png;base64,{b64encode(picture()).decode()}"


@pytest.fixture(scope="module")
def friendli(facade: Facade) -> SyncFriendli:
    return SyncFriendli(token=facade.red, server_url=facade.url)


@pytest.fixture(scope="module")
def client(facade: Facade) -> Iterator[OpenAI]:
    with _openai(facade, facade.red) as client:
        yield client


def _openai(facade: Facade, key: str) -> OpenAI:
    return OpenAI(base_url=f"{facade.url}/openai/v1", api_key=key, max_retries=0)


def test_friendli_container(facade: Facade, friendli: SyncFriendli) -> None:
    image = friendli.container.image
    made = image.generate(prompt="a red circle", seed=7, server_url=facade.url)
    assert size(b64decode(made.image)) == ("JPEG", (64, 64))
    again = image.generate(prompt="a red circle", seed=7, server_url=facade.url)
    assert again.image == made.image
    raw = image.generate(prompt="x", response_format="raw", server_url=facade.url)
    assert len(b64decode(raw.image)) == 64 * 64 * 3
    edited = image.edit(prompt="bluer", image={"image": DATA_URL}, server_url=facade.url)
    assert size(b64decode(edited.image)) == ("JPEG", (64, 64))
    # It always sends its default guidance, also for models that take none.
    plain = image.generate(prompt="x", model="plain", server_url=facade.url)
    assert size(b64decode(plain.image)) == ("JPEG", (32, 32))


def test_friendli_dedicated(friendli: SyncFriendli) -> None:
    image = friendli.dedicated.image
    made = image.generate(model="null", prompt="a red circle")
    (item,) = made.data
    assert item.seed >= 0
    assert size(httpx.get(item.url).content) == ("JPEG", (64, 64))
    edited = image.edit(
        model="null", prompt="bluer", seed=2**60, image={"image": DATA_URL}, response_format="png"
    )
    (item,) = edited.data
    assert (item.seed, item.response_format) == (2**60, "png")
    assert size(b64decode(item.b64_json)) == ("PNG", (64, 64))


def test_friendli_async(facade: Facade) -> None:
    async def calls() -> list[Any]:
        async with AsyncFriendli(token=facade.red, server_url=facade.url) as friendli:
            return await asyncio.gather(
                friendli.container.image.generate(prompt="x", server_url=facade.url),
                friendli.container.image.edit(
                    prompt="x", image=[{"image": DATA_URL}] * 2, server_url=facade.url
                ),
                friendli.dedicated.image.generate(model="null", prompt="x"),
                friendli.dedicated.image.edit(model="null", prompt="x", image={"image": DATA_URL}),
            )

    generated, edited, *items = asyncio.run(calls())
    assert size(b64decode(generated.image)) == size(b64decode(edited.image))
    assert all(httpx.get(item.data[0].url).status_code == 200 for item in items)


def test_openai_images(client: OpenAI) -> None:
    made = client.images.generate(prompt="x", n=3, size="32x48", response_format="b64_json")
    images = [b64decode(item.b64_json or "") for item in made.data or []]
    assert [size(image) for image in images] == [("PNG", (32, 48))] * 3
    assert len(set(images)) == 3
    one = client.images.generate(prompt="x", output_format="webp", output_compression=50)
    assert size(httpx.get(one.data[0].url).content)[0] == "WEBP"  # type: ignore[index]
    edited = client.images.edit(
        image=[("a.png", picture()), ("b.png", picture("blue"))],
        prompt="both",
        response_format="b64_json",
        output_format="jpeg",
    )
    assert size(b64decode(edited.data[0].b64_json))[0] == "JPEG"  # type: ignore[index]
    single = client.images.edit(image=("a.png", picture()), prompt="one", user="me", n=2)
    assert len(single.data or []) == 2


def test_openai_edit_by_reference(facade: Facade, client: OpenAI) -> None:
    file = client.files.create(file=("in.png", picture()), purpose="vision")
    body = {"prompt": "x", "images": [{"file_id": file.id}, {"image_url": DATA_URL}]}
    assert facade.post("/openai/v1/images/edits", body).status_code == 200
    refused = facade.post("/openai/v1/images/edits", body, facade.green)
    assert refused.status_code == 404  # another team's file


def test_openai_errors(facade: Facade, client: OpenAI) -> None:
    def generate(**options: Any) -> Any:
        return client.images.generate(prompt="x", **options)

    for options in ({"background": "transparent"}, {"stream": True}, {"style": "natural"}):
        with pytest.raises(openai.BadRequestError) as refused:
            generate(**options)
        assert refused.value.param == next(iter(options))
    with pytest.raises(openai.NotFoundError):
        generate(model="gpt-image-0")
    for options, param in (({"n": 11}, "n"), ({"size": "20x64"}, "size")):
        with pytest.raises(openai.BadRequestError) as refused:
            generate(**options)
        assert refused.value.param == param
    with _openai(facade, "wrong") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.images.generate(prompt="x")
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_1")


def test_openai_habits(client: OpenAI) -> None:
    """What a caller of OpenAI's own models writes, and what it looks for in the answer."""
    asked: dict[str, Any] = {
        "quality": "high", "moderation": "low", "style": "vivid", "user": "me", "n": 1,
        "extra_body": {"safety_identifier": "me", "complexity": "low"}, "background": "auto",
    }  # fmt: skip
    made = client.images.generate(model="gpt-image-1", prompt="x", size="64x64", **asked)
    (image,) = made.data or []
    assert size(b64decode(image.b64_json or "")) == ("PNG", (64, 64))
    assert (made.size, made.quality, made.output_format) == ("64x64", "high", "png")
    assert made.usage is not None
    assert made.usage.input_tokens_details.image_tokens == 0
    edited = client.images.edit(
        model="gpt-image-1", prompt="x", image=("a.png", picture()), input_fidelity="high"
    )
    assert edited.data is not None
    assert edited.data[0].b64_json
    plain = client.images.generate(model="dall-e-3", prompt="x", quality="hd")
    assert plain.data is not None
    assert plain.data[0].url
    assert plain.quality is None


def test_every_answer_has_an_id_that_the_log_knows(facade: Facade) -> None:
    def name(path: str, **headers: str) -> str:
        return httpx.get(facade.url + path, headers=headers).headers["x-request-id"]

    names = [
        name("/healthz"),
        name("/nowhere"),
        name("/openai/v1/models"),  # 401
        name("/healthz", **{"X-Request-Id": "mine.7"}),
        name("/healthz", **{"X-Request-Id": "not\tmine"}),
    ]
    assert names[3] == "mine.7"
    assert len({*names, "not\tmine"}) == 6
    log = facade.premises.log("up")  # written once the answer is sent
    eventually(lambda: all(f" ms {one}\n" in log.read_text() for one in names), 5)


def test_a_wrong_base_url_is_told_the_right_one(facade: Facade) -> None:
    for base in ("", "/v1"):
        with OpenAI(base_url=facade.url + base, api_key=facade.red, max_retries=0) as lost:
            with pytest.raises(openai.APIStatusError, match="/openai/v1 as their base URL"):
                lost.images.generate(prompt="x", n=2)
            with pytest.raises(openai.NotFoundError, match="/openai/v1 as their base URL"):
                lost.embeddings.create(model="any", input="x")


def test_models(facade: Facade, client: OpenAI) -> None:
    """Another name is listed as a model is; one that draws nothing only where it is served."""
    listed = {model.id: model.model_dump()["served"] for model in client.models.list()}
    assert listed == {
        "null": True, "absent": False, "plain": True, "null:ink": True, "gpt-image-1": True,
        "dall-e-2": True, "dall-e-3": True,
    }  # fmt: skip
    assert client.models.retrieve("dall-e-3").owned_by == "imagemill"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/slow")
    at_home = OpenAI(base_url=f"{facade.url}/v1", api_key=facade.red, max_retries=0)
    with at_home:
        assert {model.id for model in at_home.models.list()} == set(listed)


def test_names_that_callers_have(facade: Facade) -> None:
    def seeded(model: str | None) -> Any:
        body = {"prompt": "x", "seed": 1, "response_format": "b64_json", "model": model}
        return facade.post("/openai/v1/images/generations", body).json()["data"][0]["b64_json"]

    assert seeded("gpt-image-1") == seeded("null")
    assert seeded("dall-e-3") == seeded("ink") == seeded("null:ink")


def test_a_model_that_nobody_serves_is_not_asked_for_again(
    friendli: SyncFriendli, client: OpenAI
) -> None:
    """Friendli's client sends for an hour again what is answered with 503."""
    started = time.monotonic()
    with pytest.raises(FriendliCoreError) as refused:
        friendli.dedicated.image.generate(model="absent", prompt="x")
    assert refused.value.status_code == 404
    assert "served: null, plain" in refused.value.body
    with pytest.raises(openai.NotFoundError) as told:
        client.with_options(max_retries=5).images.generate(model="absent", prompt="x")
    assert told.value.code == "model_not_served"
    assert time.monotonic() - started < 5


def upload(client: OpenAI, lines: list[dict[str, Any]]) -> str:
    content = "\n".join(map(json.dumps, lines)).encode()
    return client.files.create(file=("in.jsonl", content), purpose="batch").id


def line(number: int, **body: Any) -> dict[str, Any]:
    return {
        "custom_id": f"line {number}",
        "method": "POST",
        "url": "/v1/images/generations",
        "body": {"prompt": f"picture {number}"} | body,
    }


def batch_of(client: OpenAI, lines: list[dict[str, Any]]) -> Any:
    """The batch of these lines once it has ended."""
    batch = client.batches.create(
        input_file_id=upload(client, lines),
        endpoint="/v1/images/generations",
        completion_window="24h",
        metadata={"for": "a test"},
    )
    assert batch.status == "validating"

    def ended() -> Any:
        now = client.batches.retrieve(batch.id)
        return now if now.status in ("completed", "failed", "cancelled", "expired") else None

    return eventually(ended, 30)


def test_openai_batch(facade: Facade, client: OpenAI) -> None:
    lines = [line(0, n=2), line(1, response_format="b64_json"), line(2, seed=5, size="32x32")]
    batch = batch_of(client, lines)
    assert batch.status == "completed"
    assert batch.request_counts.model_dump() == {"total": 3, "completed": 3, "failed": 0}
    assert batch.metadata == {"for": "a test"}
    assert batch.created_at <= batch.in_progress_at <= batch.completed_at < batch.expires_at
    assert batch.error_file_id is None
    output = client.files.content(batch.output_file_id)
    results = [json.loads(one) for one in output.text.splitlines()]
    assert [one["custom_id"] for one in results] == ["line 0", "line 1", "line 2"]
    assert {one["response"]["status_code"] for one in results} == {200}
    first, second, third = (one["response"]["body"]["data"] for one in results)
    assert [one["response"]["body"]["size"] for one in results] == ["64x64", "64x64", "32x32"]
    assert results[0]["response"]["body"]["output_format"] == "png"
    assert [size(httpx.get(item["url"]).content)[1] for item in first] == [(64, 64)] * 2
    assert size(b64decode(second[0]["b64_json"]))[0] == "PNG"
    assert third[0]["seed"] == 5
    assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"
    assert client.batches.list(limit=1).data[0].id == batch.id
    with pytest.raises(openai.BadRequestError):
        client.batches.cancel(batch.id)
    out = facade.premises.store / "batches" / "red" / batch.id / "out"
    status = facade.premises.run("status", str(out), "--json")
    assert json.loads(status.stdout)["state"] == "finished"


def test_openai_batch_refused(client: OpenAI) -> None:
    wrong = [line(0), line(1, n=0), {"custom_id": "x"}, line(3, model="gpt"), line(0)]
    batch = batch_of(client, wrong)
    assert batch.status == "failed"
    assert [(e.line, e.param) for e in batch.errors.data] == [(3, "method"), (5, "custom_id")]


def test_openai_files(client: OpenAI) -> None:
    first, second, third = (upload(client, [line(i)]) for i in range(3))
    listed = [file.id for file in client.files.list(purpose="batch")]
    assert listed[:3] == [third, second, first]
    newer = client.files.list(order="asc", after=first, limit=1)
    assert ([file.id for file in newer.data], newer.has_more) == ([second], True)
    client.files.delete(second)
    page = client.files.list(purpose="batch", limit=1, after=second)
    assert [file.id for file in page.data] == [first]
    with pytest.raises(openai.NotFoundError):
        client.files.list(after="first")
    assert client.files.content(first).text == json.dumps(line(0))
    assert client.files.delete(first).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(first)


def test_curl(facade: Facade) -> None:
    def curl(path: str, *args: str) -> Any:
        done = subprocess.run(
            ["curl", "-s", "-H", f"Authorization: Bearer {facade.red}", facade.url + path, *args],
            capture_output=True,
            timeout=30,
        )
        return json.loads(done.stdout)

    made = curl(
        "/v1/images/generations", "-H", "Content-Type: application/json", "-d", '{"prompt": "x"}'
    )
    assert size(b64decode(made["image"])) == ("JPEG", (64, 64))
    (facade.premises.folder / "image.png").write_bytes(picture())
    form = ("-F", "prompt=x", "-F", f"image=@{facade.premises.folder / 'image.png'}")
    numbers = ("-F", "num_inference_steps=10", "-F", "guidance_scale=0.0", "-F", "seed=3")
    assert size(b64decode(curl("/v1/images/edits", *form, *numbers)["image"]))[0] == "JPEG"
    (item,) = curl("/dedicated/v1/images/edits", *form, *numbers, "-F", "model=null")["data"]
    assert item["seed"] == 3
    assert curl("/v1/images/edits", *form, "-F", "seed=x")["field"] == "seed"
