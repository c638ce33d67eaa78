"""Our schema holds everything of the API that it is compatible with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jobs.models.table import load_models
from jobs.settings import Settings
from producer.api.application import make_api

CONTRACT = Path(__file__).parent / "friendli-images.openapi.yaml"

# What differs on purpose: (where, what) → why.
DIFFERENCES = {
    ("B64ImageItem.b64_json", "format"): "base64 text is no binary string",
    ("ImageGenerationContainerResult.image", "format"): "base64 text is no binary string",
}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("api")
    settings = Settings(
        store=str(folder), keys_file=folder / "keys.json", signing_file=folder / "signing.key"
    )
    return make_api(settings, load_models()).openapi()


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    return dict(yaml.safe_load(CONTRACT.read_text("utf-8")))


def types(schema: dict[str, Any], components: dict[str, Any]) -> set[str]:
    """What a schema lets in, by name."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        target = components[name]
        return types(target, components) if set(target) <= {"$ref", "title"} else {name}
    if "anyOf" in schema:
        return {name for one in schema["anyOf"] for name in types(one, components)}
    if schema["type"] == "array":
        return {f"[{name}]" for name in types(schema["items"], components)}
    return {schema["type"]}


def enums(schema: dict[str, Any]) -> set[str]:
    inner = (one for one in schema.get("anyOf", []))
    return set(schema.get("enum", [])) | {value for one in inner for value in enums(one)}


def facts(schemas: dict[str, Any]) -> Iterator[tuple[tuple[str, str], Any]]:
    """Everything that the contract says of each field of each schema."""
    for name, schema in schemas.items():
        yield (name, "required"), set(schema.get("required", []))
        for field, content in schema.get("properties", {}).items():
            place = f"{name}.{field}"
            yield (place, "types"), types(content, schemas)
            yield (place, "enum"), enums(content)
            for fact in ("default", "format"):
                if fact in content:
                    yield (place, fact), content[fact]


def test_every_field_of_the_contract_is_ours(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    mine = dict(facts(ours["components"]["schemas"]))
    differences = set()
    for place, wanted in facts(theirs["components"]["schemas"]):
        if place[0] in (
            "ContainerImageEditSuccess",
            "ContainerImageGenerateSuccess",
            "DedicatedImageEditSuccess",
            "DedicatedImageGenerateSuccess",
        ):
            continue  # other names of the results
        found = mine.get(place)
        # Of values we may take more than the contract names, if it names any.
        more = isinstance(wanted, set) and wanted and found is not None
        same = wanted <= found if more else wanted == found
        if place[1] == "required":
            same = wanted == found  # to require more would break callers
        if not same:
            differences.add(place)
    assert differences == set(DIFFERENCES)


def test_every_operation_of_the_contract_is_ours(
    ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    for path, item in theirs["paths"].items():
        wanted, found = item["post"], ours["paths"][path]["post"]
        assert found["operationId"] == wanted["operationId"]
        assert found["tags"] == wanted["tags"]
        assert set(wanted["responses"]) <= set(found["responses"])
        body = "application/json"
        for place in ("requestBody", ("responses", "200")):
            theirs_at, ours_at = wanted, found
            for step in (place,) if isinstance(place, str) else place:
                theirs_at, ours_at = theirs_at[step], ours_at[step]
            expected = types(theirs_at["content"][body]["schema"], theirs["components"]["schemas"])
            assert (
                types(ours_at["content"][body]["schema"], ours["components"]["schemas"]) == expected
            )
        parameters = {(p["name"].lower(), p["in"]) for p in wanted.get("parameters", [])}
        assert parameters <= {(p["name"].lower(), p["in"]) for p in found.get("parameters", [])}
        assert ("security" in wanted) <= ("security" in found)


GENERATE, EDIT = "/openai/v1/images/generations", "/openai/v1/images/edits"
URL = {"image_url": "x"}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        *[(GENERATE, {"size": size}) for size in ("15x64", "8193x64", "64", "64x064", "AUTO")],
        (GENERATE, {"background": "transparent"}),
        (GENERATE, {"style": "natural"}),
        (GENERATE, {"stream": True}),
        (GENERATE, {"partial_images": 1}),
        (EDIT, {"images": [{}]}),
        (EDIT, {"images": [URL | {"file_id": "x"}]}),
        (EDIT, {"images": [{"image_url": None}]}),
        (EDIT, {"images": [URL], "mask": {}}),
        (EDIT, {"images": [URL], "mask": URL | {"file_id": "x"}}),
        (EDIT, {"images": [URL], "background": "transparent"}),
    ],
)
def test_the_schema_lets_nothing_in_that_is_refused(
    ours: dict[str, Any], path: str, fields: dict[str, Any]
) -> None:
    content = ours["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    schema = content["schema"] | {"components": ours["components"]}
    told = {"prompt": "x", "size": "8192x16", "partial_images": 0, "style": "vivid"}
    images = {"images": [URL], "mask": URL} if path == EDIT else {}
    jsonschema.validate(told | images, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"prompt": "x"} | fields, schema)
