"""The endpoints of friendli-images.openapi.yaml: container and dedicated."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence

from fastapi import APIRouter, Request

from jobs.errors import InvalidRequest
from jobs.inputs.images import open_image
from jobs.requests import Body
from producer.api.admission import GuardedRoute
from producer.api.calls import AnyExchange, Exchange, KeyExchange, Order, Picture
from producer.api.friendli.bodies import (
    B64ImageItem,
    Common,
    Container,
    ContainerImageEditBody,
    ContainerImageEditForm,
    ContainerImageGenerationBody,
    Dedicated,
    DedicatedImageEditBody,
    DedicatedImageEditForm,
    DedicatedImageGenerationBody,
    Edit,
    ImageGenerationContainerResult,
    ImageGenerationDedicatedResult,
    UrlImageItem,
)
from producer.api.wire.errors import ErrorBody, declared
from producer.api.wire.reading import Form, Source, read_form
from producer.api.wire.schema import either

router = APIRouter(route_class=GuardedRoute, responses=declared(ErrorBody))

FILES = ("image",)


@router.post(
    "/v1/images/generations",
    operation_id="containerImagesGenerate",
    summary="Image generations",
    tags=["Container.Image"],
)
async def container_generate(
    body: ContainerImageGenerationBody, exchange: AnyExchange
) -> ImageGenerationContainerResult:
    """Generate an image from a text prompt."""
    order = Order("generate", _for_model(exchange, body), (), body.controls)
    return await _container(exchange, order, body)


@router.post(
    "/v1/images/edits",
    operation_id="containerImagesEdit",
    summary="Image edits",
    tags=["Container.Image"],
    openapi_extra=either(ContainerImageEditBody, ContainerImageEditForm, FILES),
)
async def container_edit(request: Request, exchange: AnyExchange) -> ImageGenerationContainerResult:
    """Edit an image based on a text prompt."""
    form = await read_form(request, ContainerImageEditBody, ContainerImageEditForm, FILES)
    order = Order("edit", _for_model(exchange, form.body), _images(form))
    return await _container(exchange, order, form.body)


@router.post(
    "/dedicated/v1/images/generations",
    operation_id="dedicatedImagesGenerate",
    summary="Image generations",
    tags=["Dedicated.Image"],
)
async def dedicated_generate(
    body: DedicatedImageGenerationBody, exchange: KeyExchange
) -> ImageGenerationDedicatedResult:
    """Generate an image from a text prompt."""
    order = Order("generate", body.to_body(body.stored_format), (), body.controls)
    return await _dedicated(exchange, order, body)


@router.post(
    "/dedicated/v1/images/edits",
    operation_id="dedicatedImagesEdit",
    summary="Image edits",
    tags=["Dedicated.Image"],
    openapi_extra=either(DedicatedImageEditBody, DedicatedImageEditForm, FILES),
)
async def dedicated_edit(request: Request, exchange: KeyExchange) -> ImageGenerationDedicatedResult:
    """Edit an image based on a text prompt."""
    form = await read_form(request, DedicatedImageEditBody, DedicatedImageEditForm, FILES)
    order = Order("edit", form.body.to_body(form.body.stored_format), _images(form))
    return await _dedicated(exchange, order, form.body)


async def _container(
    exchange: Exchange, order: Order, body: Container
) -> ImageGenerationContainerResult:
    (picture,) = await exchange.render(order)
    return ImageGenerationContainerResult(image=_base64(picture, body.response_format == "raw"))


async def _dedicated(
    exchange: Exchange, order: Order, body: Dedicated
) -> ImageGenerationDedicatedResult:
    (picture,) = await exchange.render(order)
    wanted, seed = body.response_format or "url", picture.request.seed
    if wanted == "url":
        url = await exchange.url(picture.path)
        item = UrlImageItem(seed=seed, response_format=wanted, url=url)
        return ImageGenerationDedicatedResult(data=[item])
    content = _base64(picture, wanted == "raw")
    return ImageGenerationDedicatedResult(
        data=[B64ImageItem(seed=seed, response_format=wanted, b64_json=content)]
    )


def _for_model(exchange: Exchange, body: Container) -> Body:
    table = exchange.calls.table
    return body.for_model(table.get(table.route(body.model).model))


def _images(form: Form[Common]) -> Sequence[Source]:
    if isinstance(form.body, Edit):
        return form.body.images
    if not form.files:
        raise InvalidRequest("image", "is required")
    return form.files["image"]


def _base64(picture: Picture, raw: bool) -> str:
    data = open_image(picture.data).tobytes() if raw else picture.data
    return b64encode(data).decode()
