"""Attacks from inside the network, with a certificate: on services, and on the ports of metrics."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from services.launcher.stack import METERED
from services.proto import cloud_pb2
from tests.trust.attack import attacks
from tests.trust.bystander import LIMIT_S
from tests.trust.from_other_keys import unchanged
from tests.trust.from_outside import unique
from tests.trust.system import ALICES, SERVED, System, metrics_context

STREAMS = 530
"""More than a service takes requests."""
OPENING_S = 5.0
"""Longest wait until the streams that a service takes have begun, s: after 10 s it may end the first ones."""
METHODS = {
    "user": ("gateway", "/dekag.v1.User/Receive"),
    "channel": ("user", "/dekag.v1.Downlink/Provide"),
    "edge": ("channel", "/dekag.v1.Downlink/Provide"),
    "cloud": ("gateway", "/dekag.v1.Cloud/GetJob"),
}
"""A method of each service, after the one that may call it."""

METHODS_OF_HTTP = (
    "POST", "PUT", "PATCH", "DELETE", "PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK",
    "REPORT", "SEARCH", "MERGE", "NOTIFY", "SUBSCRIBE", "PURGE", "BIND", "ACL", "LINK",
)  # fmt: skip


async def hold(
    system: System,
    service: str,
    open_one: Callable[[aio.Channel], Any],
    stolen: str = "operator",
    channels: int = 4,
) -> None:
    """Holds many streams at a service; meanwhile a picture must be drawn."""
    opened = [system.channel(service, stolen) for _ in range(channels)]
    calls: list[Any] = []
    try:
        for number in range(STREAMS):
            with contextlib.suppress(grpc.RpcError):
                calls.append(open_one(opened[number % channels]))
        await asyncio.wait([_begin(call.wait_for_connection()) for call in calls], timeout=OPENING_S)
        await asyncio.sleep(2)
        system.forget()
        answer = await system.draw()
        if answer.status_code != 200:
            system.fail(f"a picture was answered with {answer.status_code}: {answer.text[:100]}")
        checked = system.channel(service)
        check = health_pb2_grpc.HealthStub(checked).Check  # type: ignore[attr-defined]
        try:
            await check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)
        except grpc.RpcError as error:
            system.fail(f"the health of {service}: {error.code().name}")  # type: ignore[attr-defined]
        await checked.close()
    finally:
        for call in calls:
            call.cancel()
        for channel in opened:
            await channel.close()


@attacks("streams inside", [f"530 idle watches of the {service}'s health" for service in SERVED])
async def _watch(system: System, name: str) -> None:
    def watch(channel: aio.Channel) -> Any:
        call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
        _begin(call.read())
        return call

    await hold(system, name.split()[5].removesuffix("'s"), watch)


@attacks("streams inside", [f"530 idle streams of the {service}'s reflection" for service in SERVED])
async def _reflect(system: System, name: str) -> None:
    def reflect(channel: aio.Channel) -> Any:
        call = ServerReflectionStub(channel).ServerReflectionInfo()  # type: ignore[no-untyped-call]
        _begin(call.read())
        return call

    await hold(system, name.split()[5].removesuffix("'s"), reflect)


@attacks("streams inside", [f"530 calls of the {service} without a message" for service in SERVED])
async def _half(system: System, name: str) -> None:
    """What is begun and never sent ends after the time for a request, which is 10 s."""
    service = name.split()[4]
    caller, method = METHODS[service]

    def begin(channel: aio.Channel) -> Any:
        call = channel.stream_unary(method)()
        _begin(call.wait_for_connection())
        return call

    await hold(system, service, begin, caller)


@attacks("connections inside", [f"600 connections to the {service}, with no call" for service in SERVED])
async def _idle(system: System, name: str) -> None:
    port, opened = system.service_port(name.split()[4].removesuffix(",")), []
    for _ in range(600):
        sock = socket.socket()
        sock.settimeout(2)
        sock.bind(("127.0.0.4", 0))
        with contextlib.suppress(OSError):
            sock.connect(("127.0.0.1", port))
        opened.append(sock)
    await asyncio.sleep(1)
    system.forget()
    system.expect(await system.draw(), 200, what="a picture")
    for sock in opened:
        sock.close()


STOLEN: Mapping[str, tuple[str, str, str]] = {
    "publish an update": ("cloud", "PublishKnowledge", "edge"),
    "publish adapters": ("cloud", "PublishTransmissionKnowledge", "user"),
    "delete a topic": ("cloud", "DeleteKnowledge", "edge"),
    "share a topic": ("cloud", "ShareKnowledge", "operator"),
    "start a job": ("cloud", "Distill", "channel"),
    "cancel a job": ("cloud", "CancelJob", "operator"),
    "fetch an update": ("cloud", "GetKnowledge", "user"),
    "generate in the cloud": ("cloud", "Generate", "proxy"),
    "decide about an update": ("cloud", "Decide", "gateway"),
    "ask the edge directly": ("edge", "Provide", "user"),
    "ask the channel directly": ("channel", "Provide", "gateway"),
    "ask for an image": ("user", "Receive", "redis"),
}
"""What is called, and with whose certificate."""
_SERVICES = {"cloud": "Cloud", "edge": "Downlink", "channel": "Downlink", "user": "User"}


@attacks(
    "calls with another's certificate",
    [f"{what} with the {stolen}'s" for what, (_, _, stolen) in STOLEN.items()],
)
async def _stolen(system: System, name: str) -> None:
    before = await system.victims_picture()
    service, method, stolen = STOLEN[name.partition(" with ")[0]]
    channel = system.channel(service, stolen)
    message = cloud_pb2.DeleteKnowledgeRequest(topic=ALICES).SerializeToString()
    call = channel.unary_stream(f"/dekag.v1.{_SERVICES[service]}/{method}")(message, timeout=60)
    try:
        await call.read()
        system.fail("it was answered")
    except aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
            system.fail(f"it was refused with {error.code().name}")
    await channel.close()
    await unchanged(system, before, name)


_tasks: set[asyncio.Future[Any]] = set()


def _begin(work: Any) -> asyncio.Future[Any]:
    """Lets something run whose failure nobody minds."""
    task = asyncio.ensure_future(work)
    _tasks.add(task)

    def done(task: asyncio.Future[Any]) -> None:
        _tasks.discard(task)
        if not task.cancelled():
            task.exception()

    task.add_done_callback(done)
    return task


async def scrape(system: System, service: str, **headers: str) -> tuple[int, str]:
    """Status and text of a service's metrics; status 0 if there is no answer."""

    def get() -> tuple[int, str]:
        url = f"https://127.0.0.1:{system.metrics_ports[service]}/metrics"
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(url, headers=given)
        try:
            with urllib.request.urlopen(request, timeout=LIMIT_S, context=metrics_context(system)) as answer:  # noqa: S310
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""
        except OSError:
            return 0, ""

    return await asyncio.to_thread(get)


FROM_A_PAGE = {
    "of another host": {"Host": "evil.example"},
    "of another host's name with a port": {"Host": "evil.example:9464"},
    "with another page's origin": {"Origin": "https://evil.example"},
    "with an origin that is hidden": {"Origin": "null"},
    "from another site's page": {"Sec_Fetch_Site": "cross-site"},
}


@attacks(
    "metrics by a web page",
    [
        f"read metrics of {service} {how}"
        for service in ("gateway", "edge", "distiller")
        for how in FROM_A_PAGE
    ],
)
async def _page(system: System, name: str) -> None:
    service = name.split()[3]
    status, _ = await scrape(system, service, **FROM_A_PAGE[name.partition(f"{service} ")[2]])
    if status == 200:
        system.fail("the metrics were served")


@attacks(
    "held metrics ports",
    [f"{what} at the {service}" for service in METERED for what in ("idle connections",)],
)
async def _held(system: System, name: str) -> None:
    """Connections without a greeting must not keep Prometheus out."""
    service = name.rpartition(" ")[2]
    opened = []
    for _ in range(100):
        sock = socket.socket()
        sock.settimeout(1)
        sock.bind(("127.0.0.4", 0))
        with contextlib.suppress(OSError):
            sock.connect(("127.0.0.1", system.metrics_ports[service]))
        opened.append(sock)
    status, _ = await scrape(system, service)
    if status != 200:
        system.fail("nobody else gets the metrics meanwhile")
    for sock in opened:
        sock.close()


@attacks(
    "labels without bound", ["100 paths", "20 methods", "100 unknown topics", "20 topics made and deleted"]
)
async def _labels(system: System, name: str) -> None:
    services = ("gateway", "user", "edge", "cloud")

    async def series() -> int:
        found = [await scrape(system, each) for each in services]
        if any(status != 200 for status, _ in found):
            system.fail("metrics were not served")
        return sum(text.count("\ndekag_") for _, text in found)

    await system.draw()  # so that the usual ones are there
    before = await series()
    async with system.client("bob") as client:
        if name == "100 paths":
            for _ in range(100):
                await client.get(f"/v1/{unique()}")
        elif name == "20 methods":
            for method in METHODS_OF_HTTP:
                for path in ("/healthz", "/openapi.json", "/"):
                    await client.request(method, path)
        elif name == "100 unknown topics":
            for _ in range(100):
                await client.post("/v1/images/generations", json={"prompt": "a dog", "knowledge": [unique()]})
    if name.startswith("20"):
        for _ in range(20):
            topic = unique()
            await system.publish("bob", topic, [topic])
            await system.draw("bob", knowledge=[topic], consistency=False)
            await system.ask("admin", "DELETE", f"/v1/knowledge/{topic}")
    if (grown := await series() - before) > 60:
        system.fail(f"{grown} more series")
