"""croissant.json: what an export holds, in the words of MLCommons' Croissant 1.0.

Search engines for datasets and loaders read it:
https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

from __future__ import annotations

from typing import Any

import orjson

from producer.upkeep.export.columns import Kind
from producer.upkeep.export.forms import FORMS
from producer.upkeep.export.order import Order
from producer.upkeep.export.shards import Survey

CROISSANT = "croissant.json"

_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "jsonPath": "cr:jsonPath",
    "recordSet": "cr:recordSet",
    "repeated": "cr:repeated",
    "sc": "https://schema.org/",
    "source": "cr:source",
    "transform": "cr:transform",
}
_TYPES = {
    "string": "sc:Text",
    "json": "sc:Text",
    "int64": "sc:Integer",
    "float64": "sc:Float",
    "bool": "sc:Boolean",
}


def make_croissant(found: Survey, order: Order) -> bytes:
    """The description of an export; JSON-LD. Fields are read from its Parquet files, which each
    form has."""
    fields = [_field(name, kind) for name, kind in found.columns.kinds.items()]
    form = FORMS[order.form]
    if form.images == form.tables:
        fields.insert(0, _image())
    about = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "images-by-diffusion-models",
        "description": f"{found.images:,} synthetic images made by diffusion models.",
        "license": order.license,
        "keywords": ["synthetic", "text-to-image"],
        "distribution": [
            {
                "@type": "cr:FileSet",
                "@id": "tables",
                "encodingFormat": "application/x-parquet",
                "includes": [f"{split}/{form.tables}" for split in found.splits],
            }
        ],
        "recordSet": [{"@type": "cr:RecordSet", "@id": "images", "field": fields}],
    }
    return orjson.dumps(about, option=orjson.OPT_INDENT_2)


def _field(name: str, kind: Kind) -> dict[str, Any]:
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"images/{name}",
        "dataType": _TYPES[kind.dtype],
        "source": {"fileSet": {"@id": "tables"}, "extract": {"column": name}},
    }
    return field | ({"repeated": True} if kind.many else {})


def _image() -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": "images/image",
        "dataType": "sc:ImageObject",
        "source": {
            "fileSet": {"@id": "tables"},
            "extract": {"column": "image"},
            "transform": {"jsonPath": "bytes"},
        },
    }
