"""The image endpoints under /openai/v1."""

from __future__ import annotations

import time
from base64 import b64encode
from io import BytesIO
from typing import Annotated

from fastapi import APIRouter, Request

from jobs.errors import InvalidRequest
from jobs.inputs.images import open_image
from jobs.marks import saved_with
from producer.api.admission import GuardedRoute
from producer.api.calls import AnyExchange, Exchange, Order, Picture
from producer.api.files.shelf import Shelf
from producer.api.openai.bodies import (
    CreateImageEditRequest,
    CreateImageRequest,
    EditImageBodyJsonParam,
    Image,
    ImageRefParam,
    ImageRequest,
    ImagesResponse,
)
from producer.api.wire.errors import OpenAIErrorBody, declared
from producer.api.wire.parts import provided
from producer.api.wire.reading import Form, Source, read_form
from producer.api.wire.schema import either
from producer.api.wire.threads import in_thread

FILES = ("image", "mask")
SINGLE = ("mask",)  # of them, what may be there once

router = APIRouter(
    prefix="/openai/v1", route_class=GuardedRoute, responses=declared(OpenAIErrorBody)
)


@router.post("/images/generations", tags=["Images"], response_model_exclude_none=True)
async def generate(body: CreateImageRequest, exchange: AnyExchange) -> ImagesResponse:
    """Images from a prompt."""
    order = Order("generate", body.to_body(), count=body.n or 1)
    return await _answer(exchange, order, body)


@router.post(
    "/images/edits",
    tags=["Images"],
    response_model_exclude_none=True,
    openapi_extra=either(EditImageBodyJsonParam, CreateImageEditRequest, FILES, SINGLE),
)
async def edit(
    request: Request, exchange: AnyExchange, shelf: Annotated[Shelf, provided(Shelf)]
) -> ImagesResponse:
    """Images from a prompt and other images."""
    form = await read_form(request, EditImageBodyJsonParam, CreateImageEditRequest, FILES, SINGLE)
    body = form.body
    images, mask = await _inputs(exchange, shelf, form)
    order = Order("edit", body.to_body(), images, (), body.n or 1, mask)
    return await _answer(exchange, order, body)


async def _inputs(
    exchange: Exchange, shelf: Shelf, form: Form[ImageRequest]
) -> tuple[list[Source], Source | None]:
    """The images, and the mask if there is one."""
    body = form.body
    if isinstance(body, EditImageBodyJsonParam):
        images = [await in_thread(_source, exchange, shelf, one) for one in body.images]
        mask = body.mask
        return images, await in_thread(_source, exchange, shelf, mask) if mask else None
    if "image" not in form.files:
        raise InvalidRequest("image", "is required")
    return list(form.files["image"]), next(iter(form.files.get("mask", ())), None)


def _source(exchange: Exchange, shelf: Shelf, reference: ImageRefParam) -> Source:
    if reference.file_id is not None:
        most = exchange.calls.policy.max_bytes
        return shelf.read(exchange.caller.team, reference.file_id, most)
    return reference.image_url or ""


async def _answer(exchange: Exchange, order: Order, body: ImageRequest) -> ImagesResponse:
    pictures = await exchange.render(order)
    key = pictures[0].request.key
    return ImagesResponse(
        created=int(time.time()),
        data=[await _image(exchange, one, body) for one in pictures],
        output_format=body.output_format or "png",
        size=f"{key.width}x{key.height}",
        quality=body.told_quality,
    )


async def _image(exchange: Exchange, picture: Picture, body: ImageRequest) -> Image:
    data, path, seed = picture.data, picture.path, picture.request.seed
    if not body.is_final:
        kind = body.output_format or "png"
        data = await in_thread(_encode, data, kind, body.output_compression)
        path = f"{path.rpartition('.')[0]}.final.{'jpg' if kind == 'jpeg' else kind}"
        if body.shown_as == "url":
            await in_thread(exchange.calls.storage.write, path, data)
    if body.shown_as == "url":
        return Image(url=await exchange.url(path), seed=seed)
    return Image(b64_json=b64encode(data).decode(), seed=seed)


def _encode(data: bytes, kind: str, quality: int | None) -> bytes:
    file = BytesIO()
    options = {} if kind == "png" else {"quality": 100 if quality is None else quality}
    image = open_image(data)
    mark = image.info.get("xmp", b"")  # what a worker has marked stays marked
    image.save(file, kind.upper(), **options, **saved_with(kind, mark))
    return file.getvalue()
