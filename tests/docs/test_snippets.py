"""What the README and the book show of a running system runs, against a real gateway."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from PIL import Image

from services.cloud.distiller import Distiller
from services.cloud.settings import DistillerSettings
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from tests.chain import data_in, ended, serving, start_chain, starter

pytestmark = pytest.mark.asyncio(loop_scope="session")

ROOT = Path(__file__).parents[2]
URL = "http://127.0.0.1:8080"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CURL = re.compile(r"^curl (?:.*\\\n)*.*$", re.MULTILINE)


def snippets() -> Iterator[tuple[str, str, str]]:
    """Page, language and text of each block that names ``URL``: python as it is, of sh the curl commands."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for language, text in BLOCK.findall(page.read_text()):
            if URL not in text:
                continue
            for part in [text] if language == "python" else CURL.findall(text):
                yield page.relative_to(ROOT).as_posix(), language, part


SNIPPETS = list(snippets())


def name(page: str, language: str, text: str) -> str:
    return f"{page}-{language}-{text.splitlines()[0]}"


async def run(*command: str, folder: Path) -> str:
    """What the command prints; fails with its errors unless it succeeds."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=os.environ | {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 120)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, (out + err).decode()
    return out.decode()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def url(
    adapted_profile: Path, new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    """Of a whole system of its own, with tiny models, adapters and a distiller."""
    own_redis = new_database()
    with data_in(tmp_path_factory.mktemp("data")):
        async with starter() as start:
            found = await start_chain(start, adapted_profile, own_redis)
            worker = DistillerSettings(redis_url=own_redis, profile=str(adapted_profile), distill_threads=1)
            distilling = asyncio.create_task(Distiller(worker).serve())
            gateway = GatewaySettings(
                user_address=found["user"], cloud_address=found["cloud"], redis_url=own_redis
            )
            async with serving(create_app(gateway)) as client:
                yield str(client.base_url).rstrip("/")
            await ended(distilling)


async def test_the_pages_have_snippets() -> None:
    assert {(page, language) for page, language, _ in SNIPPETS} >= {
        ("README.md", "sh"),
        ("docs/clients.md", "python"),
        ("docs/getting-started.md", "sh"),
    }


@pytest.mark.parametrize(("page", "language", "text"), SNIPPETS, ids=[name(*each) for each in SNIPPETS])
async def test_a_snippet_runs(url: str, tmp_path: Path, page: str, language: str, text: str) -> None:
    here = text.replace(URL, url)
    Image.linear_gradient("L").resize((300, 100)).save(tmp_path / "photo.png")
    if language == "python":
        await run(sys.executable, "-c", here, folder=tmp_path)
        return
    if shutil.which("curl") is None:
        pytest.skip("curl is not here")
    # curl takes a problem for a success unless it is told otherwise
    shown = await run("sh", "-c", here.replace("curl ", "curl --fail-with-body ", 1), folder=tmp_path)
    assert "status" not in json.loads(shown)


async def test_the_example_of_the_client_gives_what_it_shows(url: str, tmp_path: Path) -> None:
    code = f"""
import doctest, sys
from dekag.client import Client
text = Client.__doc__.replace({URL!r}, {url!r})
example = doctest.DocTestParser().get_doctest(text, {{}}, "Client", None, 0)
found = doctest.DocTestRunner().run(example)
sys.exit(found.failed or not found.attempted)
"""
    await run(sys.executable, "-c", code, folder=tmp_path)
