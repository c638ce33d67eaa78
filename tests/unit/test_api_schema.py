"""What the schema lets in is taken: the validators ask for nothing that it does not say."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

import httpx
import jsonschema
import pytest
from fastapi import FastAPI, Request
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter

from jobs.models.table import load_models
from jobs.settings import Settings
from producer.api.admission import Access, Caller
from producer.api.application import make_api
from producer.api.calls import Calls, Order, Picture
from producer.api.wire.errors import ApiError
from tests.facades import picture

NETS = 16  # as many as the schema lets in
MODELS = """
default = "all"
[models.all]
repo = "null:"
takes = ["generate", "edit", "inpaint", "negative_prompt", "guidance_scale", "strength"]
max_inputs = 16
max_size = 8192
size_multiple = 1
steps = 1
""" + "".join(f'[models.all.controlnets.net{n}]\nrepo = "null:"\n' for n in range(NETS))

IMAGE = f"data:image/png;base64,{b64encode(picture()).decode()}"
# What a schema cannot say, and its descriptions do: how many weights belong to how many images, how
# little a strength may be, and that a model with ControlNets takes no control images as its inputs.
UNSAYABLE = ("weights for", "is less than one step", "strength: belongs to edits")
PATHS = [
    f"{base}/images/{what}"
    for base in ("/v1", "/dedicated/v1", "/openai/v1")
    for what in ("generations", "edits")
]

KEY = {"Authorization": "Bearer token"}

Schema = dict[str, Any]


class Taking(Calls):
    """Takes every order that a model would render."""

    async def render(self, _: Caller, order: Order, __: Request) -> list[Picture]:
        inputs = {field: ["upload"] * len(given) for field, given in order.inputs.items()}
        await self._resolve(order, ["x"], inputs)
        raise ApiError(418, "taken", "")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    folder = tmp_path_factory.mktemp("api")
    (folder / "models.toml").write_text(MODELS)
    table = load_models(folder / "models.toml")
    settings = Settings(
        store=str(folder), keys_file=folder / "keys.json", signing_file=folder / "signing.key",
        api_keys="token", team_rate="1000000/minute",
    )  # fmt: skip
    app = make_api(settings, table)
    parts, usual = app.state.parts, app.state.parts[Access]
    of = parts[Calls]
    parts[Calls] = Taking(
        table, of.storage, of.queue, of.roster, of.policy, 60, _fingerprints={"all": "f"}
    )
    limiter = FixedWindowRateLimiter(MemoryStorage())  # no broker counts
    parts[Access] = Access(usual.keys, limiter, usual.rate)
    return app


def values(schema: Schema, components: dict[str, Schema]) -> Iterator[Any]:
    """Some that a schema lets in: its bounds, and each alternative."""
    if "$ref" in schema:
        yield from values(components[schema["$ref"].rpartition("/")[2]], components)
    elif "enum" in schema:
        yield from schema["enum"]
    elif "anyOf" in schema:
        for one in schema["anyOf"]:
            yield from values(one, components)
    elif schema["type"] == "integer":
        least = int(schema["minimum"])
        most = int(schema.get("maximum", schema.get("exclusiveMaximum", 1) - 1))
        yield from (least, most, float(least))
    elif schema["type"] == "number":
        yield from (schema.get("minimum", 1e-9), schema["maximum"], int(schema["maximum"]))
    elif schema["type"] == "string" and "pattern" in schema:
        yield from ("auto", "16x8192", "8192x100", "999x1000")
    elif schema["type"] == "string":
        yield from ("x" * schema.get("minLength", 0), "é" * schema.get("maxLength", 9))
    elif schema["type"] == "array":
        items = list(values(schema["items"], components))
        least, most = schema.get("minItems", 0), schema["maxItems"]
        yield from (items[:least], (items * most)[:most])
    elif schema["type"] == "object":
        for one in schema.get("oneOf", [schema]):
            yield dict.fromkeys(one["required"], IMAGE)
    else:
        assert schema["type"] in ("null", "boolean"), schema
        yield from (None,) if schema["type"] == "null" else (False, True)


def bodies(schema: Schema, components: dict[str, Schema]) -> Iterator[Schema]:
    """Each value of each field, and the first and last ones of each pair of fields."""
    fields = {
        name: ["all"] if name == "model" else list(values(content, components))
        for name, content in schema["properties"].items()
    }
    least = {name: fields[name][0] for name in schema["required"]}
    for name, several in fields.items():
        yield from (least | {name: value} for value in several)
    ends = {name: {0: several[0], 1: several[-1]}.values() for name, several in fields.items()}
    for one, other in combinations(fields, 2):
        for first, second in product(ends[one], ends[other]):
            yield least | {one: first, other: second}


@pytest.mark.parametrize("path", PATHS)
def test_what_the_schema_lets_in_is_taken(app: FastAPI, path: str) -> None:
    document = app.openapi()
    components = document["components"]["schemas"]
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    schema = components[content["schema"]["$ref"].rpartition("/")[2]]
    fits = jsonschema.Draft202012Validator(schema | {"components": document["components"]}).is_valid
    asked = [body for body in bodies(schema, components) if fits(body)]
    assert len(asked) > 200

    async def ask() -> list[str]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://a", headers=KEY
        ) as client:
            answers = [await client.post(path, json=body) for body in asked]
        return [
            f"{ {name: str(value)[:40] for name, value in body.items()} }: {answer.text}"
            for body, answer in zip(asked, answers, strict=True)
            if answer.status_code != 418 and not any(one in answer.text for one in UNSAYABLE)
        ]

    assert asyncio.run(ask()) == []
