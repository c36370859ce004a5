"""The Python client against a real gateway and chain."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import packages_distributions
from threading import Thread
from typing import Any, TypeVar

import pytest
from httpx2 import AsyncClient

from dekag.api import client as api_client
from dekag.client import Client, Job, LinkReport, UnreachableError
from dekag.errors import (
    ConflictError,
    DeadlineError,
    DekagError,
    ExhaustedError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from tests.chain import serving

pytestmark = pytest.mark.asyncio(loop_scope="session")
T = TypeVar("T")
PROBLEM = b'{"type": "urn:x", "title": "Busy", "status": 0, "detail": "come back", "request_id": "r"}'


async def asked(gateway: AsyncClient, work: Callable[[Client], T], **options: Any) -> T:
    """What ``work`` makes of a client, in a thread: the gateway is served by this one's event loop."""

    def run() -> T:
        with Client(f"{gateway.base_url}/", **options) as client:
            return work(client)

    return await asyncio.to_thread(run)


@contextmanager
def answering(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[tuple[str, list[str]]]:
    """URL of a server that gives these answers, one for each request, and the requests that came."""
    left, came = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            came.append(f"{self.command} {self.path}")
            status, headers, body = left.pop(0)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", came
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_an_image_comes_with_its_report_which_can_be_had_again(client: AsyncClient) -> None:
    image = await asked(
        client,
        lambda c: c.image(
            "a red boat", seed=7, size="64x64", link={"snr_db": 12}, knowledge=["none"], details=True
        ),
    )
    assert image.consistency is None
    assert image.reference is not None
    assert image.reference.startswith(b"\x89PNG")
    assert image.constellation is not None
    assert len(image.constellation.sent) == len(image.constellation.equalized) == 128
    assert image.png is not None
    assert image.png.startswith(b"\x89PNG")
    assert (image.seed, image.report.seed, image.report.delivery) == (7, 7, "semantic")
    assert (image.report.snr_db, image.report.channel_uses) == (12, 128)
    assert image.report.stages[0].seconds >= 0
    assert len(image.report.gains[0]) == 2
    assert await asked(client, lambda c: c.reports(image.report.request_id)) == [image.report]


async def test_failed_decoding_is_no_error(client: AsyncClient) -> None:
    image = await asked(
        client,
        lambda c: c.image(
            "a cat",
            seed=3,
            delivery="conventional",
            image_format="webp",
            link={"snr_db": -20, "fading": "awgn"},
        ),
    )
    assert image.png is None
    assert not image.report.decoded
    assert image.report.coding is not None


async def test_errors_are_the_librarys_own(client: AsyncClient, alone: AsyncClient) -> None:
    with pytest.raises(InvalidInputError) as caught:
        await asked(client, lambda c: c.image("x", link={"snr_db": 41}))
    assert caught.value.field == "link.snr_db"
    assert caught.value.allowed == "a number of at least -20.0 and at most 40.0"
    assert str(caught.value) == "link.snr_db must be a number of at least -20.0 and at most 40.0"
    with pytest.raises(NotFoundError, match="nobody"):
        await asked(client, lambda c: c.reports("nobody"))
    with pytest.raises(NotFoundError):
        await asked(client, lambda c: c.job("no such/job"))
    with pytest.raises(UnavailableError, match="user") as away:
        await asked(alone, lambda c: c.image("x"))
    assert not isinstance(away.value, UnreachableError)


async def test_passed_deadline_raises_deadline_error(chain: Any) -> None:
    settings = GatewaySettings(user_address=chain.addresses["user"], redis_url="", deadline_s=0.001)
    async with serving(create_app(settings)) as gateway:
        with pytest.raises(DeadlineError):
            await asked(gateway, lambda c: c.image("x", seed=91))


async def test_unreachable_gateway_is_told_from_one_that_is_not_ready(closed_port: int) -> None:
    with (
        Client(f"http://127.0.0.1:{closed_port}", retries=3) as client,
        pytest.raises(UnreachableError, match=str(closed_port)),
    ):
        client.jobs()


@pytest.mark.parametrize(
    ("request_", "field", "allowed"),
    [
        (lambda c: c.image("a", link={"snr_db": float("nan")}), "link.snr_db", "a finite number"),
        (lambda c: c.image("a", guidance_scale=float("inf")), "guidance_scale", "a finite number"),
        (lambda c: c.image("caf\udce9"), "prompt", "unpaired surrogates"),
        (lambda c: c.image("a", link={"fading": {"awgn"}}), "link.fading", "a list or mapping"),
        (lambda c: c.start("neon", prompts=["a", "caf\udce9"]), "prompts", "unpaired surrogates"),
        (lambda c: c.picture(b"", prompt="caf\udce9"), "prompt", "unpaired surrogates"),
        (lambda c: c.job("\udce9"), "job_id", "unpaired surrogates"),
        (lambda c: c.samples("\udce9"), "topic", "unpaired surrogates"),
        (lambda c: list(c.watch("\udce9")), "job_id", "unpaired surrogates"),
    ],
)
async def test_what_cannot_be_sent_is_refused_with_its_field(
    closed_port: int, request_: Callable[[Client], object], field: str, allowed: str
) -> None:
    with Client(f"http://127.0.0.1:{closed_port}") as client, pytest.raises(InvalidInputError) as caught:
        request_(client)
    assert caught.value.field == field
    assert allowed in caught.value.allowed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("retries", -1),
        ("retries", 1.5),
        ("timeout_s", 0),
        ("timeout_s", float("nan")),
        ("timeout_s", float("inf")),
        ("api_key", "clé"),
        ("api_key", "two words"),
        ("api_key", "two\nlines"),
        ("url", "http://box/caf\udce9"),
        ("url", "http://box/\x7f"),
    ],
)
async def test_an_argument_of_the_client_that_is_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Client(**{field: value})
    assert caught.value.field == field


async def test_a_key_of_the_environment_is_checked_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEKAG_API_KEY", "geheimer-schlüssel")
    with pytest.raises(InvalidInputError, match="DEKAG_API_KEY must be printable ASCII") as caught:
        Client()
    assert "geheim" not in str(caught.value)


async def test_foreign_server_is_named() -> None:
    with (
        answering((404, {}, b"<html>")) as (url, _),
        Client(url) as client,
        pytest.raises(DekagError, match="answers 404 and is no gateway"),
    ):
        client.jobs()


@pytest.mark.parametrize("status", [429, 503])
async def test_a_request_refused_for_now_is_sent_again_if_asked_for(status: int) -> None:
    busy = (status, {"Retry-After": "0"}, PROBLEM)
    with answering(busy, busy, (200, {}, b'{"data": []}')) as (url, came):
        with Client(url, retries=2) as client:
            assert client.jobs() == []
        assert came == ["GET /v1/jobs"] * 3
    kind = ExhaustedError if status == 429 else UnavailableError
    for retries, sent in ((0, 1), (2, 3)):
        with answering(*[busy] * 4) as (url, came), Client(url, retries=retries) as client:
            with pytest.raises(kind, match="come back"):
                client.image("x")
            assert len(came) == sent


@pytest.mark.parametrize(
    ("status", "headers"), [(429, {}), (429, {"Retry-After": "86400"}), (500, {"Retry-After": "0"})]
)
async def test_other_refusals_are_not_repeated(status: int, headers: dict[str, str]) -> None:
    with answering((status, headers, PROBLEM)) as (url, came), Client(url, retries=5) as client:
        with pytest.raises(DekagError) as caught:
            client.jobs()
        assert len(came) == 1
    if isinstance(caught.value, ExhaustedError):
        assert caught.value.retry_after_s == (int(headers["Retry-After"]) if headers else None)


async def test_an_event_stream_that_breaks_off_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_client, "_RECONNECT_S", 0.0)
    job = Job(
        id="j", topic="neon", status="running", stage="train", done=1, total=4, loss=None, error=None,
        created=1.0, started=1.0, finished=None, version=None,
    )  # fmt: skip
    events = [
        f": ping\n\ndata: {each.model_dump_json()}\n\n".encode()
        for each in (job, job.model_copy(update={"status": "finished"}))
    ]
    broken = (503, {}, PROBLEM)
    with answering((200, {}, events[0]), broken, (200, {}, events[1])) as (url, came), Client(url) as client:
        assert [each.status for each in client.watch("j")] == ["running", "finished"]
    assert came == ["GET /v1/jobs/j/events"] * 3
    monkeypatch.setattr(api_client, "_RECONNECTS", 2)
    with (
        answering(broken, broken) as (url, _),
        Client(url) as client,
        pytest.raises(UnavailableError, match="job j may go on"),
    ):
        list(client.watch("j"))


async def test_a_topic_is_distilled_used_and_forgotten(client: AsyncClient, distiller: None) -> None:
    states = await asked(
        client, lambda c: list(c.distill("vaporwave", images=4, steps=4, rank=1, tokens=1)), timeout_s=60
    )
    last = states[-1]
    assert (last.status, last.version, last.over) == ("finished", 1, True)
    assert not any(state.over for state in states[:-1])
    assert await asked(client, lambda c: c.job(last.id)) == last
    assert (await asked(client, lambda c: c.jobs()))[0] == last
    (known,) = [each for each in await asked(client, lambda c: c.knowledge()) if each.topic == "vaporwave"]
    assert (known.version, known.job) == (1, last.id)
    assert (await asked(client, lambda c: c.samples("vaporwave"))).startswith(b"\x89PNG")
    image = await asked(client, lambda c: c.image("a boat, vaporwave style", seed=3, size="64x64"))
    assert [use.content_hash for use in image.report.knowledge] == [known.content_hash]
    await asked(client, lambda c: c.forget("vaporwave"))
    assert "vaporwave" not in [each.topic for each in await asked(client, lambda c: c.knowledge())]


async def test_a_job_is_cancelled_once_and_there_is_one_for_each_topic(
    client: AsyncClient, empty: None
) -> None:
    job = await asked(client, lambda c: c.start("neon", triggers=["neon", "glowing"], steps=4))
    assert (job.topic, job.status, job.over) == ("neon", "queued", False)
    with pytest.raises(ConflictError, match=job.id):
        await asked(client, lambda c: c.distill("neon"))
    assert (await asked(client, lambda c: c.cancel(job.id))).status == "cancelled"
    with pytest.raises(ConflictError, match="already over"):
        await asked(client, lambda c: c.cancel(job.id))


async def test_the_responses_of_a_newer_gateway_are_read() -> None:
    """It has fields and names that this client does not know."""
    known = {name: field.examples[0] for name, field in LinkReport.model_fields.items() if field.examples}
    report = known | {"delivery": "hybrid", "fading": "tdl-f", "csi": "partial", "newer": 1}
    body = json.dumps({"request_id": "r", "created": 1, "link_reports": [report], "newer": 1}).encode()
    with answering((200, {}, body)) as (url, _), Client(url) as client:
        (read,) = client.reports("r")
    assert (read.delivery, read.fading, read.csi, read.seed) == ("hybrid", "tdl-f", "partial", 7)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": [{"id": 1}]}'])
async def test_a_response_that_is_not_a_gateways_is_refused(body: bytes) -> None:
    with (
        answering((200, {}, body)) as (url, _),
        Client(url) as client,
        pytest.raises(DekagError, match=f"{url}/v1/jobs is no gateway"),
    ):
        client.jobs()


async def test_other_responses_that_are_not_a_gateways_are_refused() -> None:
    no_image = b'{"created": 1, "data": []}'
    with (
        answering(
            (200, {}, no_image), (200, {"Content-Encoding": "gzip"}, b"plain"), (200, {}, b"data: {}\n\n")
        ) as (url, came),
        Client(url) as client,
    ):
        for request in (lambda: client.image("x"), client.jobs, lambda: list(client.watch("j"))):
            with pytest.raises(DekagError, match="is no gateway"):
                request()
        assert len(came) == 3


ALLOWED = {
    *("httpx2", "httpcore2", "h11", "anyio", "idna", "certifi", "truststore", "sniffio"),
    *("pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"),
    "dekag",
}
WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import {module}
"""


@pytest.mark.parametrize("module", ["client", "api.client", "api.schemas", "api.limits"])
async def test_a_client_needs_only_http_and_pydantic(module: str) -> None:
    """The module is imported where every other package is missing."""
    missing = {*packages_distributions(), "services"} - ALLOWED
    assert {"torch", "grpc", "numpy", "fastapi"} <= missing
    command = [sys.executable, "-c", WITHOUT.format(missing=missing, module=f"dekag.{module}")]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
