"""The web page: static files in `web/`, without a build step and without files from other hosts."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

URL, ASSETS_URL = "/", "/web"
_FOLDER = Path(__file__).parent / "web"


def install(app: FastAPI) -> None:
    """Serves the page at `URL` and its files below `ASSETS_URL`."""

    @app.get(URL, include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(_FOLDER / "index.html")

    app.mount(ASSETS_URL, StaticFiles(directory=_FOLDER), name="web")
