"""The page at /docs, whose script and style are served from here: it needs no other site."""

from __future__ import annotations

from importlib import resources

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

FILES = "docs/files"


def add(app: FastAPI) -> None:
    """Serve the page. Its links are relative: it may lie below a proxy's path."""
    folder = str(resources.files("fastapi_offline") / "static")
    app.mount(f"/{FILES}", StaticFiles(directory=folder))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=app.title,
            swagger_js_url=f"{FILES}/swagger-ui-bundle.js",
            swagger_css_url=f"{FILES}/swagger-ui.css",
            swagger_favicon_url=f"{FILES}/favicon.png",
        )
