"""API keys: every endpoint asks for one, the right ones may do so much, and none is ever shown."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import pytest_asyncio
from starlette.routing import Mount, Route
from typer.testing import CliRunner

from dekag.client import Client, UnauthorizedError
from dekag.errors import ExhaustedError, InvalidInputError
from dekag.generation.images import to_png
from services.cli import main as cli
from services.common.errors import SettingError
from services.common.security import redis_options
from services.common.settings import CommonSettings
from services.gateway import app as gateway
from services.gateway.api_keys import ApiKeys, Key, new_key
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from tests.chain import serving
from tests.services.answers import is_problem

pytestmark = pytest.mark.asyncio(loop_scope="session")

PATH = "/v1/images/generations"
KEY, LINE = new_key("alice")
OTHER, OTHER_LINE = new_key("bob")
# What may be seen without a key; a new route is not among it by itself.
OPEN = {"/", "/docs", "/docs-assets", "/healthz", "/openapi.json", "/readyz", "/web"}


@pytest.fixture(scope="session")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "api-keys"
    file.write_text(f"# of the tests\n\n{LINE}\n  {OTHER_LINE}  \n")
    return file


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def locked(chain: Any, redis_url: str, keys_file: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """A gateway in front of the chain that asks for keys."""
    settings = GatewaySettings(
        user_address=chain.addresses["user"],
        cloud_address=chain.addresses["cloud"],
        redis_url=redis_url,
        api_keys_file=keys_file,
        key_requests_per_minute=10_000,
    )
    async with serving(create_app(settings)) as client:
        yield client


def shows(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def url_of(client: httpx2.AsyncClient) -> str:
    return str(client.base_url).rstrip("/")


def is_refused(answer: httpx2.Response) -> None:
    is_problem(answer, 401)
    assert answer.headers["www-authenticate"] == "Bearer"


def all_of(routes: Iterable[Any]) -> Iterator[Any]:
    """The routes, those of included routers too."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        yield from [route] if inner is None else all_of(inner.routes)


async def soon(done: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await done():  # noqa: ASYNC110 - what is awaited is at the other end
            await asyncio.sleep(0.02)


async def test_every_endpoint_needs_a_key(locked: httpx2.AsyncClient, keys_file: Path) -> None:
    app = create_app(GatewaySettings(redis_url="", api_keys_file=keys_file))
    tried = set()
    for route in all_of(app.routes):
        assert isinstance(route, Route | Mount), route
        path = re.sub(r"{[^}]*}", "x", route.path) + ("/x" if isinstance(route, Mount) else "")
        if route.path in OPEN:
            continue
        for method in getattr(route, "methods", None) or {"GET"}:
            is_refused(await locked.request(method, path))
            tried.add(f"{method} {route.path_format}")  # as OpenAPI writes it
    assert tried >= {
        f"{method.upper()} {path}"
        for path, operations in app.openapi()["paths"].items()
        for method in operations
        if path.startswith("/v1/")
    }
    assert len(tried) > 10


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"])
@pytest.mark.parametrize("path", [PATH, "/v1", "/v1/nothing", "//v1/jobs", "/V1/jobs", "/nothing", "/docs/x"])
async def test_unknown_paths_need_a_key_too(locked: httpx2.AsyncClient, method: str, path: str) -> None:
    answer = await locked.request(method, url_of(locked) + path)
    assert answer.status_code == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/docs", "/openapi.json"])
async def test_probes_and_pages_are_open(locked: httpx2.AsyncClient, path: str) -> None:
    assert (await locked.get(path)).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        KEY,
        "Bearer",
        f"Basic {KEY}",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY}x",
        f"Bearer {KEY.lower()}",
        f"Bearer {LINE.split(':')[1]}",
        f"Bearer {LINE}",
        "Bearer alice",
        "Bearer unused",
        "Bearer \N{LATIN SMALL LETTER E WITH ACUTE}".encode("latin-1"),
    ],
    ids=range(12),
)
async def test_a_wrong_key_is_refused(locked: httpx2.AsyncClient, header: str | bytes) -> None:
    answer = await locked.get("/v1/jobs", headers={"Authorization": header})
    is_refused(answer)
    assert KEY not in answer.text


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer  {KEY}", f"BEARER {OTHER}"], ids=range(3))
async def test_a_right_key_is_let_in(locked: httpx2.AsyncClient, header: str) -> None:
    assert (await locked.get("/v1/jobs", headers={"Authorization": header})).status_code == 200


async def test_body_of_a_request_without_key_is_not_read(locked: httpx2.AsyncClient) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", locked.base_url.port)
    writer.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n".encode())
    assert b" 401 " in await asyncio.wait_for(reader.readline(), 30)
    writer.close()


async def test_clients_show_their_key(
    locked: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = url_of(locked)

    def openai_client() -> None:
        with httpx2.Client(trust_env=False):
            client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
            made = client.images.generate(prompt="a boat", size="64x64", extra_body={"seed": 1})
            assert made.data
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key="unused").images.generate(prompt="a boat")

    def own_client() -> None:
        with Client(url, api_key=KEY) as client:
            assert client.jobs() is not None
        with Client(url) as client, pytest.raises(UnauthorizedError, match="DEKAG_API_KEY"):
            client.jobs()
        monkeypatch.setenv("DEKAG_API_KEY", f"{OTHER}\n")
        with Client(url) as client:
            assert client.knowledge() is not None
            assert client.image("a boat", seed=1, size="64x64").png

    def command() -> None:
        arguments = ["image", "a boat", "--size", "64x64", "--url", url, "--output", str(tmp_path / "a.png")]
        assert CliRunner().invoke(cli.app, arguments).exit_code == 0
        monkeypatch.setenv("DEKAG_API_KEY", "wrong")
        ended = CliRunner().invoke(cli.app, [*arguments, "--force"])
        assert ended.exit_code == 2
        assert "API key" in ended.output

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for each in (openai_client, own_client, command):
        await asyncio.to_thread(each)


async def test_requests_per_minute_are_limited_per_key(keys_file: Path, tmp_path: Path) -> None:
    seldom = tmp_path / "api-keys"
    seldom.write_text(f"{LINE}:3\n{OTHER_LINE}\n")
    async with serving(create_app(GatewaySettings(redis_url="", api_keys_file=seldom))) as client:
        for _ in range(3):
            assert (await client.get("/v1/nothing", headers=shows(KEY))).status_code == 404
        refused = await client.get("/v1/nothing", headers=shows(KEY))
        assert "3 times a minute" in is_problem(refused, 429)["detail"]
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert (await client.get("/v1/nothing", headers=shows(OTHER))).status_code == 404
        is_refused(await client.get("/v1/nothing"))
        assert (await client.get("/healthz", headers=shows(KEY))).status_code == 200


async def test_publications_and_large_pictures_use_up_the_limit_of_a_key(tmp_path: Path) -> None:
    file = tmp_path / "api-keys"
    (publisher, publishers), (drawer, drawers) = (
        new_key(name, requests_per_minute=12) for name in ("publisher", "drawer")
    )
    file.write_text(f"{publishers}\n{drawers}\n")
    picture = base64.b64encode(to_png(np.zeros((512, 512, 3), np.uint8))).decode()
    settings = GatewaySettings(redis_url="", api_keys_file=file, profile="nowhere")  # images of 128 pixels
    async with serving(create_app(settings)) as client:
        for path in ("/v1/knowledge/neon", "/v1/knowledge/snail"):
            is_problem(await client.put(path, json={"files": {}}, headers=shows(publisher)), 422)
        refused = await client.put("/v1/knowledge/neon", json={"files": {}}, headers=shows(publisher))
        assert "counts as 5" in is_problem(refused, 429)["detail"]
        assert (await client.get("/v1/traffic", headers=shows(drawer))).status_code == 200
        answer = await client.post("/v1/pictures", json={"picture": picture}, headers=shows(drawer))
        assert "counts as 12" in is_problem(answer, 429)["detail"], "at most those of a minute"


async def test_a_client_that_waits_as_told_is_served() -> None:
    """Also if the request counts as a whole minute, and others came before it."""
    now = 0.0
    key = Key("alice", b"hash", requests_per_minute=10, concurrency=2)
    keys = ApiKeys([key], clock=lambda: now)
    async with keys.in_flight(key):
        pass
    waits = []
    while len(waits) < 5:
        try:
            async with keys.in_flight(key):
                keys.charge(key, 99)
        except ExhaustedError as refused:
            waits.append(refused.retry_after_s or 0)
            now += waits[-1]
        else:
            break
    assert waits == [60]
    with pytest.raises(ExhaustedError, match="10 times a minute"):
        async with keys.in_flight(key):
            pass


async def test_event_streams_end_with_the_key_that_opened_them(
    chain: Any, redis_url: str, empty: None, tmp_path: Path
) -> None:
    file = tmp_path / "api-keys"
    file.write_text(f"{LINE}\n{OTHER_LINE}\n")
    settings = GatewaySettings(
        user_address=chain.addresses["user"],
        cloud_address=chain.addresses["cloud"],
        redis_url=redis_url,
        api_keys_file=file,
    )
    small = {"prompts": ["a {red|blue|green} {cat|dog|cow}"], "images": 4, "steps": 2, "force": True}
    async with serving(create_app(settings)) as client:

        async def start(key: str, topic: str) -> str:
            """The path of a job, which waits as no distiller runs."""
            answer = await client.post("/v1/knowledge", json={"topic": topic, **small}, headers=shows(key))
            assert answer.status_code == 202, answer.text
            return f"/v1/jobs/{answer.json()['id']}"

        async def follow(key: str, path: str) -> list[str]:
            async with client.stream("GET", f"{path}/events", headers=shows(key)) as answer:
                assert answer.status_code == 200
                return [line async for line in answer.aiter_lines() if line.startswith("data:")]

        path, others = await start(KEY, "revoked-1"), await start(OTHER, "revoked-2")
        following = asyncio.create_task(follow(KEY, path))
        other = asyncio.create_task(follow(OTHER, others))
        await asyncio.sleep(1)
        assert not following.done()
        file.write_text(f"{OTHER_LINE}\n")
        async with asyncio.timeout(30):
            (state,) = await following
        assert '"queued"' in state
        assert not other.done(), "its key is still there"
        is_refused(await client.get(f"{path}/events", headers=shows(KEY)))
        assert (await client.delete(others, headers=shows(OTHER))).status_code == 200
        async with asyncio.timeout(30):
            assert '"cancelled"' in (await other)[-1]


_OF_OPENAI = ("images/edits", "images/variations", "chat/completions")


async def test_a_key_may_do_what_its_scopes_say(tmp_path: Path) -> None:
    asks: dict[str, list[tuple[str, str]]] = {
        "draw": [("POST", PATH), *(("POST", f"/v1/{name}") for name in _OF_OPENAI), ("POST", "/v1/pictures")],
        "teach": [("POST", "/v1/knowledge"), ("DELETE", f"/v1/jobs/{'0' * 32}")],
        "publish": [("PUT", "/v1/knowledge/neon")],
        "admin": [
            ("PUT", "/v1/transmission"),
            ("POST", "/v1/knowledge/neon/share"),
            ("PATCH", "/v1/anything"),
        ],
    }
    made = {scope: new_key(scope, scopes=[scope]) for scope in asks}
    made["all"], made["two"] = new_key("all"), new_key("two", concurrency=3, scopes=["draw", "teach"])
    file = tmp_path / "api-keys"
    file.write_text("".join(f"{line}\n" for _, line in made.values()))
    rights = {name: {name} for name in asks} | {"all": set(asks) - {"admin"}, "two": {"draw", "teach"}}
    rights["admin"] = set(asks)
    async with serving(create_app(GatewaySettings(redis_url="", api_keys_file=file))) as client:
        for name, (key, _) in made.items():
            assert (await client.get("/v1/traffic", headers=shows(key))).status_code == 200
            assert (await client.get("/v1/models", headers=shows(key))).status_code == 503  # no cloud runs
            for scope, requests in asks.items():
                for method, path in requests:
                    answer = await client.request(method, path, headers=shows(key))
                    refused = answer.status_code == 403
                    assert refused is (scope not in rights[name]), (name, method, path)
                    if refused:
                        assert repr(scope) in is_problem(answer, 403)["detail"]
            deleted = await client.delete("/v1/knowledge/neon", headers=shows(key))
            makes_topics = rights[name] & {"teach", "publish"}
            assert (deleted.status_code == 403) is not bool(makes_topics), (name, deleted.text)


async def test_an_unknown_scope_is_named(tmp_path: Path) -> None:
    file = tmp_path / "api-keys"
    file.write_text(f"{LINE}:::draw+fly\n")
    with pytest.raises(SettingError, match=r"line 1 .* 'fly': there are draw, teach, publish, admin"):
        ApiKeys.read(file, GatewaySettings())
    with pytest.raises(InvalidInputError, match="scope"):
        new_key("alice", scopes=["fly"])


async def test_a_clock_that_is_set_locks_no_key_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    key = Key("alice", b"", requests_per_minute=2, concurrency=8)
    keys = ApiKeys([key], clock=lambda: now)

    async def use() -> None:
        async with keys.in_flight(key):
            pass

    wall = time.time()
    await use()
    for shift in (-3600, 3600, 0):  # of the wall clock, which nothing depends on
        monkeypatch.setattr(time, "time", lambda shift=shift: wall + shift)
        now += 60
        await use()
        await use()
        now += 1
        with pytest.raises(ExhaustedError, match="try again in 59 s"):
            await use()


async def test_concurrent_requests_are_limited_per_key(tmp_path: Path) -> None:
    one = tmp_path / "api-keys"
    one.write_text(f"{LINE}:10000:1\n{OTHER_LINE}:10000\n")
    async with serving(create_app(GatewaySettings(redis_url="", api_keys_file=one))) as client:

        async def status(key: str) -> int:
            return (await client.get("/v1/nothing", headers=shows(key))).status_code

        _, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 9\r\n\r\n"
        writer.write(head.encode())  # its body does not come: it stays in flight

        async def busy() -> bool:
            return await status(KEY) == 429

        await soon(busy)
        answer = await client.get("/v1/nothing", headers=shows(KEY))
        assert "in flight" in is_problem(answer, 429)["detail"]
        assert int(answer.headers["retry-after"]) >= 1
        assert await status(OTHER) == 404
        writer.close()

        async def idle() -> bool:
            return await status(KEY) == 404

        await soon(idle)


async def test_clients_are_told_apart_by_their_keys(
    locked: httpx2.AsyncClient, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, slot = [], gateway.Admission.slot

    def noted(self: gateway.Admission, name: str) -> Any:
        asked.append(name)
        return slot(self, name)

    monkeypatch.setattr(gateway.Admission, "slot", noted)
    body = {"prompt": "a boat", "size": "64x64", "seed": 1}
    for key in (KEY, OTHER):
        assert (await locked.post(PATH, json=body, headers=shows(key))).status_code == 200
    assert (await client.post(PATH, json=body, headers=shows(KEY))).status_code == 200
    assert asked == ["alice", "bob", "127.0.0.1"]


async def test_openapi_document_says_that_keys_are_needed(
    locked: httpx2.AsyncClient, client: httpx2.AsyncClient
) -> None:
    document = (await locked.get("/openapi.json")).json()
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == ("401" in operation["responses"]) == path.startswith("/v1/")
            assert "429" in operation["responses"] or not path.startswith("/v1/")
    assert "securitySchemes" not in (await client.get("/openapi.json")).json()["components"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "holds no API key"),
        ("# nothing\n", "holds no API key"),
        (KEY, "line 1"),
        (f"{LINE}\n{KEY}", "line 2"),
        (f"{LINE}\n\n{LINE}", "line 3 of .* repeats the name of another key"),
        (f"{LINE}:0", "line 1"),
        (f"{LINE}:5:0", "line 1"),
        (f"{LINE}:x", "line 1"),
        (f"{LINE}:1000001", "line 1 of .* has a limit above 1000000"),
        (f"{LINE}:5:9999999", "line 1 of .* has a limit above 1000000"),
        (f"{LINE}:{'9' * 5000}", "line 1"),
        (LINE.replace("alice", "al ice"), "line 1"),
        (LINE[:-1], "line 1"),
    ],
)
async def test_invalid_key_file_is_refused_without_showing_its_content(
    tmp_path: Path, content: str, why: str
) -> None:
    file = tmp_path / "api-keys"
    file.write_text(content)
    with pytest.raises(SettingError, match=why) as caught:
        ApiKeys.read(file, GatewaySettings())
    assert KEY not in str(caught.value)
    assert "dekag key" in str(caught.value)


async def test_missing_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cannot be read"):
        ApiKeys.read(tmp_path / "no", GatewaySettings())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
async def test_key_files_of_any_editor_are_read(tmp_path: Path, encoding: str) -> None:
    (one, first), (two, second) = new_key("a"), new_key("b")
    text = f"# who may\r\n\r\n{first}\r\n#{second}\r\n{second}\r\n\r\n"
    (tmp_path / "api-keys").write_bytes(text.encode(encoding))
    keys = ApiKeys.read(tmp_path / "api-keys", GatewaySettings())
    for key, name in ((one, "a"), (two, "b")):
        found = keys.find(f"Bearer {key}")
        assert found is not None
        assert found.name == name


async def test_password_file_holds_one_line_of_text(tmp_path: Path) -> None:
    file = tmp_path / "redis.password"
    settings = CommonSettings(redis_password_file=file)
    for content in (b"pass", b"pass\r\n", b"\xef\xbb\xbfpass\n\n"):
        file.write_bytes(content)
        assert redis_options(settings)["password"] == "pass"
    for content, told in {
        b"": "is empty",
        b"\n": "is empty",
        b"a\nb": "one line",
        b"\xe9": "0xe9",
    }.items():
        file.write_bytes(content)
        with pytest.raises(SettingError, match=told) as caught:
            redis_options(settings)
        assert str(caught.value).startswith(f"DEKAG_REDIS_PASSWORD_FILE: {file} ")
    file.unlink()
    file.mkdir()
    with pytest.raises(SettingError, match="is a folder, not a file"):
        redis_options(settings)


async def test_limits_in_the_key_file_override_the_settings(tmp_path: Path) -> None:
    lines = [new_key("a"), new_key("b", requests_per_minute=5), new_key("c", concurrency=2)]
    lines.append(new_key("d", requests_per_minute=7, concurrency=3))
    file = tmp_path / "api-keys"
    file.write_text("\n".join(line for _, line in lines))
    keys = ApiKeys.read(file, GatewaySettings(key_requests_per_minute=60, key_concurrency=4))
    found = [keys.find(f"Bearer {key}") for key, _ in lines]
    assert [(key.name, key.requests_per_minute, key.concurrency) for key in found if key] == [
        ("a", 60, 4),
        ("b", 5, 4),
        ("c", 60, 2),
        ("d", 7, 3),
    ]


async def test_the_command_prints_a_key_once_and_its_line(tmp_path: Path) -> None:
    made = CliRunner().invoke(cli.app, ["key", "carol", "--requests-per-minute", "9"])
    assert made.exit_code == 0
    (tmp_path / "api-keys").write_text(made.stdout)
    (key,) = re.findall(r"^dekag_\S{43}$", made.stderr, re.MULTILINE)
    assert key not in made.stdout
    found = ApiKeys.read(tmp_path / "api-keys", GatewaySettings()).find(f"Bearer {key}")
    assert found is not None
    assert (found.name, found.requests_per_minute) == ("carol", 9)
    most = CliRunner().invoke(cli.app, ["key", "dave", "--requests-per-minute", "1000000"])
    (tmp_path / "api-keys").write_text(most.stdout)
    (key,) = re.findall(r"^dekag_\S{43}$", most.stderr, re.MULTILINE)
    found = ApiKeys.read(tmp_path / "api-keys", GatewaySettings()).find(f"Bearer {key}")
    assert found is not None
    assert found.requests_per_minute == 1_000_000
    for option in ("--requests-per-minute", "--concurrency"):
        for value in ("0", "1000001"):
            refused = CliRunner().invoke(cli.app, ["key", "dave", option, value])
            assert refused.exit_code == 2
            assert f"{option}: " in re.sub(r"\W*\n\W*", " ", refused.output)
            assert "between 1 and 1000000" in re.sub(r"\W*\n\W*", " ", refused.output)
    again = CliRunner().invoke(cli.app, ["key", "carol"])
    assert again.stdout != made.stdout
    assert CliRunner().invoke(cli.app, ["key", "car/ol"]).exit_code == 2


async def test_nothing_secret_is_logged_or_traced(keys_file: Path, tmp_path: Path, closed_port: int) -> None:
    spans, password, wrong = tmp_path / "spans.jsonl", "pass-of-redis", "dekag_wrong-key"
    environment = {
        "DEKAG_API_KEYS_FILE": str(keys_file),
        "DEKAG_LOG_LEVEL": "debug",
        "DEKAG_SPANS_TO": str(spans),
        "DEKAG_PORT": str(closed_port),
        "DEKAG_REDIS_URL": f"redis://gateway:{password}@127.0.0.1:1/0",
        "DEKAG_USER_ADDRESS": "127.0.0.1:1",
        "DEKAG_CLOUD_ADDRESS": "127.0.0.1:1",
    }
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", "services.gateway"],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    answers = []
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{closed_port}", trust_env=False) as client:

            async def up() -> bool:
                try:
                    return (await client.get("/readyz")).status_code == 503
                except httpx2.TransportError:
                    return False

            await soon(up)
            for key in (KEY, OTHER, wrong):
                answers += [
                    await client.get("/v1/reports/x", headers=shows(key)),
                    await client.post(PATH, json={"prompt": "a boat"}, headers=shows(key)),
                    await client.post(PATH, json={"prompt": key[:0], "key": 1}, headers=shows(key)),
                    await client.get("/v1/jobs", headers=shows(key)),
                ]
        process.terminate()
        log, _ = await asyncio.to_thread(process.communicate, timeout=60)
    finally:
        process.kill()
    assert [answer.status_code for answer in answers] == [503, 503, 422, 503] * 2 + [401] * 4
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line.get("client") for line in lines if line.get("path") == "/v1/jobs"] == [
        "alice",
        "bob",
        "127.0.0.1",
    ]
    assert "cache unavailable" in log
    assert spans.stat().st_size > 0
    for text in (log, spans.read_text(), *(f"{answer.headers}{answer.text}" for answer in answers)):
        for secret in (KEY, OTHER, wrong, password, LINE.split(":")[1], OTHER_LINE.split(":")[1]):
            assert secret not in text
