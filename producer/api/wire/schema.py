"""What FastAPI cannot see by itself: bodies that come as JSON or as a form."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.config import JsonDict
from pydantic.json_schema import models_json_schema

from jobs.requests import MAX_INPUTS

REF = "#/components/schemas/{model}"


def rules(*several: JsonDict) -> JsonDict:
    """What a body's fields must keep together, for the `json_schema_extra` of its model."""
    return {"allOf": [*several]}


def where(field: str, value: JsonDict, then: JsonDict) -> JsonDict:
    """The rule that a body in which a field has such a value is like `then`, another schema."""
    return {"if": {"properties": {field: value}, "required": [field]}, "then": then}


def needs(field: str, value: JsonDict) -> JsonDict:
    """A schema: of bodies in which a field has such a value."""
    return {"properties": {field: value}, "required": [field]}


def either(
    as_json: type[BaseModel],
    as_form: type[BaseModel],
    files: tuple[str, ...],
    single: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The request body of an endpoint that uses `reading.read_form`, for `openapi_extra`.

    files: of the form; the first is required, and those of `single` may be there once. Rules
    between the form's fields stand in their descriptions alone: tools that make up forms with files
    cannot try those.
    """
    fields = as_form.model_json_schema(ref_template=REF)
    fields.pop("allOf", None)
    binary = {"type": "string", "format": "binary"}
    several = {
        "anyOf": [
            binary, {"type": "array", "items": binary, "minItems": 1, "maxItems": MAX_INPUTS}
        ]
    }  # fmt: skip
    properties = fields["properties"] | {
        name: binary if name in single else several for name in files
    }
    required = [*fields.get("required", []), files[0]]
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": REF.format(model=as_json.__name__)}},
                "multipart/form-data": {
                    "schema": fields | {"properties": properties, "required": required}
                },
            },
        }
    }


def document(app: FastAPI, models: list[type[BaseModel]]) -> None:
    """Make the app's schema include models that only `either` names."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            _, definitions = models_json_schema(
                [(model, "validation") for model in models], ref_template=REF
            )
            schema["components"]["schemas"] |= definitions["$defs"]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
