"""What callers are told who ask wrongly, at an application without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, ValidationError
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp

from jobs.errors import resembling
from jobs.inputs.images import InputPolicy
from jobs.models.table import load_models
from jobs.settings import Settings
from producer.api.application import HeadAsGet, make_api
from producer.api.friendli.bodies import (
    ContainerImageEditBody,
    ContainerImageEditForm,
    ContainerImageGenerationBody,
)
from producer.api.openai.bodies import CreateImageRequest, EditImageBodyJsonParam
from producer.api.wire.errors import Culprit, culprit_of, handle_errors
from producer.api.wire.parts import provide
from producer.api.wire.reading import BodyLimits, Given, StrictRoute, refused


@pytest.mark.parametrize(
    ("model", "body", "place", "reason"),
    [
        (ContainerImageEditBody, {"image": "abc"}, "image", "must be an object or a list"),
        (ContainerImageEditBody, {"image": []}, "image", "list should have at least 1 item"),
        (ContainerImageEditBody, {"image": ["a"]}, "image[0]", "must be an object"),
        (
            ContainerImageEditBody, {"image": [{"image": "a"}, {"image": 5}]}, "image[1].image",
            "input should be a valid string",
        ),
        (ContainerImageEditBody, {"image": {}}, "image.image", "is required"),
        (ContainerImageEditBody, {"image": [{"image": "a"}] * 17}, "image", "at most 16 items"),
        (ContainerImageGenerationBody, {"control_images": "a"}, "control_images", "must be a list"),
        (
            ContainerImageGenerationBody, {"controlnet_weights": [1, 2]}, "controlnet_weights[1]",
            "less than or equal to 1",
        ),
        (EditImageBodyJsonParam, {"images": ["a"]}, "images[0]", "must be an object"),
        (EditImageBodyJsonParam, {"images": [{}]}, "images[0]", "give exactly one of"),
        (CreateImageRequest, {"n": 2.5}, "n", "input should be a valid integer"),
        (CreateImageRequest, {"n": True}, "n", "input should be a valid integer"),
        (CreateImageRequest, {"seed": 1e17}, "seed", "input should be a valid integer"),
        (CreateImageRequest, {"size": "15x64"}, "size", "must be auto or WIDTHxHEIGHT"),
        (CreateImageRequest, {"sede": 1}, "sede", "unknown field; did you mean 'seed'?"),
        (ContainerImageGenerationBody, {"widht": 1}, "widht", "field; did you mean 'width'?"),
        (
            EditImageBodyJsonParam, {"images": [{"image_ulr": "a"}]}, "images[0].image_ulr",
            "unknown field; did you mean 'image_url'?",
        ),
        (CreateImageRequest, {"seed": "{said}", "sede": 1}, "seed", "should be a valid integer"),
    ],
)  # fmt: skip
def test_the_culprit_is_named_down_to_its_place(
    model: type[BaseModel], body: dict[str, Any], place: str, reason: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate({"prompt": "x"} | body)
    culprit = culprit_of(refused(caught.value))
    assert (culprit.field, culprit.place) == (next(iter(body)), place)
    assert reason in culprit.reason


def test_a_field_of_a_form_is_told_the_one_that_it_is_like() -> None:
    with pytest.raises(ValidationError) as caught:
        ContainerImageEditForm.model_validate_strings({"prompt": "x", "stregth": "1"}, strict=False)
    reason = culprit_of(refused(caught.value)).reason
    assert reason == "unknown field; did you mean 'strength'?"


def test_a_misspelt_field_is_told_before_the_one_that_it_leaves_missing() -> None:
    with pytest.raises(ValidationError) as caught:
        CreateImageRequest.model_validate({"promt": "x"})
    culprit = culprit_of(refused(caught.value))
    assert culprit == Culprit("promt", "promt", "unknown field; did you mean 'prompt'?")
    with pytest.raises(ValidationError) as caught:
        CreateImageRequest.model_validate({"colour": "x"})
    assert culprit_of(refused(caught.value)) == Culprit("prompt", "prompt", "is required")


def test_whole_numbers_are_integers_however_they_are_written() -> None:
    wanted = CreateImageRequest.model_validate(
        {"prompt": "x", "n": 2.0, "seed": 2.0**53, "guidance_scale": 3.0}
    )
    assert (wanted.n, wanted.seed, wanted.guidance_scale) == (2, 2**53, 3.0)


def test_two_of_the_largest_images_fit_in_a_body() -> None:
    base64 = -(-InputPolicy().max_bytes // 3) * 4
    assert Settings.model_fields["body_bytes"].default >= 2 * base64 + 256 * 2**10


def ask(app: ASGIApp, method: str, path: str, **options: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


class Word(Given):
    """A body with one field."""

    word: str


@pytest.fixture(scope="module")
def small() -> FastAPI:
    """An application whose bodies have at most 100 bytes."""
    router = APIRouter(route_class=StrictRoute)

    @router.post("/openai/words")
    @router.post("/words")
    async def say(word: Word) -> Word:
        return word

    app = FastAPI()
    provide(app, BodyLimits(100, 200))
    handle_errors(app)
    app.include_router(router)
    return app


async def pieces() -> AsyncIterator[bytes]:
    yield b'{"word": "'
    for _ in range(10):
        yield b"x" * 20


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("content", [b"x" * 101, pieces()], ids=["length", "chunked"])
def test_too_large_bodies_are_refused_in_the_documented_shape(small: FastAPI, content: Any) -> None:
    answer = ask(small, "POST", "/words", content=content, headers=JSON)
    assert answer.status_code == 413
    assert answer.json() == {
        "message": "the body has more than 100 bytes", "field": None, "code": "body_too_large"
    }  # fmt: skip


def test_what_is_not_said_to_be_json_is_415(small: FastAPI) -> None:
    body = b'{"word": "yes"}'
    for kind in (None, "text/plain", "application/x-www-form-urlencoded"):
        headers = {"Content-Type": kind} if kind else {}
        answer = ask(small, "POST", "/openai/words", content=body, headers=headers)
        assert answer.status_code == 415
        assert "application/json" in answer.json()["error"]["message"]
    assert ask(small, "POST", "/words", content=body, headers=JSON).json() == {"word": "yes"}
    kind = {"Content-Type": "application/vnd.words+json; charset=utf-8"}
    assert ask(small, "POST", "/words", content=body, headers=kind).status_code == 200
    missing = ask(small, "POST", "/words")
    assert (missing.status_code, missing.json()["message"]) == (422, "a body is required")
    for wrong in ("[]", '"word"'):
        answer = ask(small, "POST", "/words", content=wrong, headers=JSON)
        assert answer.json()["message"] == "the body must be an object"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    folder = tmp_path_factory.mktemp("api")
    settings = Settings(
        store=str(folder), keys_file=folder / "keys.json", signing_file=folder / "signing.key"
    )
    return make_api(settings, load_models())


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/openai/v1/files", "GET, HEAD, POST"),
        ("/openai/v1/files/file-1", "GET, HEAD, DELETE"),
        ("/v1/images/generations", "POST"),
        ("/files/a/b", "GET, HEAD"),
        ("/healthz", "GET, HEAD"),
    ],
)
def test_405_names_all_that_the_path_may_be_asked_with(
    api: FastAPI, path: str, allowed: str
) -> None:
    answer = ask(api, "PATCH", path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize(
    ("path", "status"), [("/healthz", 200), ("/docs", 200), ("/login", 200), ("/nowhere", 404)]
)
def test_head_is_answered_as_get_is(api: FastAPI, path: str, status: int) -> None:
    head, get = ask(api, "HEAD", path), ask(api, "GET", path)
    assert head.status_code == get.status_code == status
    for header in ("content-type", "content-length"):
        assert head.headers[header] == get.headers[header]


def test_for_a_head_no_body_is_made() -> None:
    made = list[bytes]()

    async def body() -> AsyncIterator[bytes]:
        for _ in range(1000):
            made.append(b"x")
            yield made[-1]

    app = FastAPI()
    app.get("/long")(lambda: StreamingResponse(body(), headers={"Content-Length": "1000"}))
    answer = ask(HeadAsGet(app), "HEAD", "/long")
    assert (answer.status_code, answer.headers["content-length"]) == (200, "1000")
    assert len(made) < 10
    assert len(ask(app, "GET", "/long").content) == 1000


def test_what_is_not_got_has_no_head(api: FastAPI) -> None:
    answer = ask(api, "HEAD", "/v1/images/generations")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_the_docs_need_no_other_site(api: FastAPI) -> None:
    page = ask(api, "GET", "/docs")
    assert "//" not in page.text.replace("https://127.0.0.1", "").replace("// ", "")
    for file, kind in (("swagger-ui-bundle.js", "javascript"), ("swagger-ui.css", "text/css")):
        assert f'"docs/files/{file}"' in page.text
        answer = ask(api, "GET", f"/docs/files/{file}")
        assert (answer.status_code, kind in answer.headers["content-type"]) == (200, True)


def test_who_looks_at_the_wrong_place_is_told_the_right_one(api: FastAPI) -> None:
    answer = ask(api, "POST", "/chat/completions")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "/openai/v1 as their base URL" in answer.json()["message"]


def test_a_long_name_is_compared_with_none() -> None:
    """Anybody's may be megabytes long, and to compare takes time and memory by its length."""
    assert resembling("promt", ["prompt"]) == "; did you mean 'prompt'?"
    assert resembling("x" * 129, ["x" * 130]) == ""
