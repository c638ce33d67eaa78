"""All endpoints of the page, and the files that its pages link to."""

from __future__ import annotations

from importlib import resources

from fastapi import FastAPI
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from producer.api.page import acts, comparing, images, login, overview, row, run, trying
from producer.api.page.visits import answer_nothing

FILES = "page"


def add(app: FastAPI) -> None:
    """Serve the page."""
    folder = str(resources.files("producer.look") / "files")
    app.add_exception_handler(HTTPException, answer_nothing)
    app.mount(f"/{FILES}", GZipMiddleware(StaticFiles(directory=folder)))
    # What may be done to a run comes last: its addresses look like those of all others.
    for subject in (login, overview, trying, images, comparing, row, run, acts):
        app.include_router(subject.router)
