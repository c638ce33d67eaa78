"""One request by hand: a form that takes the way of a call over HTTP."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from jobs.models.table import ModelTable
from jobs.requests import Body, Task
from producer.api.access.signing import URL_SECONDS
from producer.api.admission import Access
from producer.api.calls import Calls, Order, Picture, UsedCalls
from producer.api.files.downloads import UsedDownloads
from producer.api.page.reproduction import curl, manifest_line
from producer.api.page.visits import PageRoute, Pages, UsedPages, Visiting
from producer.api.wire.errors import ApiError, as_answer
from producer.api.wire.parts import part_of
from producer.api.wire.reading import FORM_TEXT_BYTES, refused

FILES = ("image", "control_images")

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@dataclass(frozen=True, slots=True)
class Filled:
    """A form as somebody filled it in: its texts, and the files of its file fields."""

    texts: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Sequence[bytes]] = field(default_factory=dict)

    def order(self) -> Order:
        """What it asks for. Raises RequestValidationError if a field is wrong."""
        try:
            given = {name: text for name, text in self.texts.items() if text}
            body = Body.model_validate_strings({"prompt": "", **given}, strict=False)
        except ValidationError as error:
            raise refused(error) from error
        images = self.files.get("image", ())
        task: Task = "edit" if images else "generate"
        return Order(task, body, images, self.files.get("control_images", ()))


@router.get("/try")
async def ask(request: Request, pages: UsedPages, calls: UsedCalls, _: Visiting) -> Response:
    """The empty form."""
    return await _show(request, pages, calls, Filled())


@router.post("/try")
async def render(
    request: Request,
    visitor: Visiting,
    pages: UsedPages,
    calls: UsedCalls,
    downloads: UsedDownloads,
) -> Response:
    """The form's image, or what is wrong with it."""
    filled = await _read(request)
    started = time.perf_counter()
    try:
        (picture,) = await calls.render(visitor.caller, filled.order(), request)
    except Exception as error:
        return await _show(request, pages, calls, filled, as_answer(error, openai=False))
    seconds = time.perf_counter() - started
    link = f"files/{downloads.signer.query(picture.path, URL_SECONDS)}"
    return await _show(request, pages, calls, filled, None, picture, link, seconds)


async def _read(request: Request) -> Filled:
    texts: dict[str, str] = {}
    files: dict[str, list[bytes]] = {}
    async with request.form(
        max_files=len(FILES), max_fields=16, max_part_size=FORM_TEXT_BYTES
    ) as form:
        for name, value in form.multi_items():
            if isinstance(value, str):
                texts[name] = value.replace("\r\n", "\n")
            elif name in FILES and isinstance(value, UploadFile) and value.size:
                files.setdefault(name, []).append(await value.read())
    return Filled(texts, files)


async def _show(
    request: Request,
    pages: Pages,
    calls: Calls,
    filled: Filled,
    problem: ApiError | None = None,
    picture: Picture | None = None,
    link: str = "",
    seconds: float = 0.0,
) -> Response:
    made = picture.request if picture else None
    slots = min(calls.table.get(made.key.model).call_slots) if made else 0  # it waited alone
    base, needs_key = str(request.base_url).rstrip("/"), not part_of(request, Access).is_open
    return pages.show(
        request,
        "try.html",
        problem.status if problem else 200,
        texts=filled.texts,
        routes=await _routes(calls),
        usual=calls.table.default,
        problem=problem,
        picture=picture,
        link=link,
        seconds=seconds,
        line=manifest_line(made, slots) if made else "",
        curl=curl(made, base, needs_key) if made else None,
    )


async def _routes(calls: Calls) -> list[str]:
    """What can be asked for now: models that a worker serves, and their adapters."""
    table: ModelTable = calls.table
    found: list[str] = []
    for name, model in table.models.items():
        if await calls.roster.workers(name):
            found += [name, *(f"{name}:{adapter}" for adapter in model.adapters)]
    return found
