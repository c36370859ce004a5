"""The web page: static files in `web/`, without a build step and without files from other hosts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from dekag.errors import DekagError
from dekag.makd.topics import expanded, read_topics
from dekag.profile import load_profile

URL, ASSETS_URL = "/", "/web"
PROFILE_URL = "/profile.json"  # not below ASSETS_URL: a profile's prompts are shown to those with a key alone
EXAMPLES = 3
"""Example prompts of each topic."""
_FOLDER = Path(__file__).parent / "web"
_log = structlog.get_logger()


def install(app: FastAPI, profile: str) -> None:
    """Serves the page at `URL`, its files below `ASSETS_URL` and the profile at `PROFILE_URL`."""

    @app.get(URL, include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(_FOLDER / "index.html")

    @app.get(PROFILE_URL, include_in_schema=False)
    def described() -> dict[str, Any]:
        try:
            return {"size": load_profile(profile).size, "topics": example_prompts(profile)}
        except DekagError as error:  # the page then offers the sticker world
            _log.warning("the profile cannot be read", profile=profile, error=str(error))
            return {"size": None, "topics": {}}

    app.mount(ASSETS_URL, StaticFiles(directory=_FOLDER), name="web")


def profile_size(profile: str, default: int = 128) -> int:
    """Side of a profile's images, pixels; the default if the profile cannot be read here."""
    try:
        return load_profile(profile).size
    except DekagError:
        return default


def example_prompts(profile: str) -> dict[str, list[str]]:
    """The profile's own topics, each with up to `EXAMPLES` of its test prompts, or else from its templates.

    Raises:
        NotFoundError: there is no such profile.
        FileError: profile or topics cannot be read, or are invalid.
    """
    rng = random.Random(0)
    return {
        name: file.test_prompts[:EXAMPLES] or [expanded(prompt, rng) for prompt in file.prompts[:EXAMPLES]]
        for name, file in read_topics(load_profile(profile).topics).items()
    }
