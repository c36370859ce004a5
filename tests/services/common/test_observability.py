"""One trace over the whole chain, and what is counted on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import REGISTRY, generate_latest
from structlog.testing import capture_logs

from dekag.errors import ExhaustedError
from services.common import clients, tracing
from services.common.cache import Cache
from services.common.request_context import begin_request
from services.common.settings import CommonSettings
from services.common.worker import ModelWorker
from services.gateway.admission import Admission
from services.proto.downlink_pb2 import ProvideRequest
from services.proto.downlink_pb2_grpc import DownlinkStub, add_DownlinkServicer_to_server
from tests.services.counted import Counted

PATH = "/v1/images/generations"
ASKED = {"prompt": "a red boat", "seed": 7, "link": {"snr_db": 12, "cbr": 1 / 96}}
CONVENTIONAL = {"prompt": "a boat", "seed": 1, "delivery": "conventional", "link": {"snr_db": 30}}
TO_EDGE = [
    f"gateway POST {PATH}",
    "call user",
    "user.Receive",
    "call channel",
    "channel.Provide",
    "call edge",
    "edge.Provide",
]


class Spans(InMemorySpanExporter):
    """The spans that have ended."""

    def named(self, name: str) -> ReadableSpan:
        (span,) = (span for span in self.get_finished_spans() if span.name == name)
        return span

    def path(self, name: str) -> list[str]:
        """The names from the root of the trace to that span."""
        span, by_id = self.named(name), {each.context.span_id: each for each in self.get_finished_spans()}
        names = [name]
        while span.parent is not None:
            span = by_id[span.parent.span_id]
            names.insert(0, span.name)
        return names


@pytest.fixture
def spans() -> Iterator[Spans]:
    exporter, provider = Spans(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    yield exporter
    tracing.use(None)


async def ask(client: httpx2.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    """The link report of the one picture asked for."""
    answer = await client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    report: dict[str, Any] = answer.json()["data"][0]["link_report"]
    return report


async def distil(client: httpx2.AsyncClient) -> str:
    """The id of a small job."""
    order = {"topic": "watched", "prompts": ["a {red|blue|green|pink} {boat|cat|tree|house}, watched style"]}
    small = {"images": 4, "steps": 4, "rank": 1, "tokens": 1}
    answer = await client.post("/v1/knowledge", json=order | small)
    assert answer.status_code == 202, answer.text
    name: str = answer.json()["id"]
    return name


async def until(true: Callable[[], bool], within_s: float = 60) -> None:
    """Waits for what is soon true."""
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110 - a gauge has no event for it
            await asyncio.sleep(0.05)


async def test_one_request_is_one_trace_over_all_services(
    client: httpx2.AsyncClient, redis: Any, spans: Spans
) -> None:
    report = await ask(client, ASKED)
    finished = spans.get_finished_spans()
    assert len({span.context.trace_id for span in finished}) == 1
    assert [span.name for span in finished if span.parent is None] == TO_EDGE[:1]
    assert spans.path("edge.Provide") == TO_EDGE
    assert spans.path("edge.generate") == [*TO_EDGE, "edge.generate"]
    assert spans.path("edge.encode") == [*TO_EDGE, "edge.encode"]
    assert spans.path("channel.transmit") == [*TO_EDGE[:5], "channel.transmit"]
    for stage in ("user.decode", "user.render", "user.png", "user.measure"):
        assert spans.path(stage) == [*TO_EDGE[:3], stage]
    for each in report["stages"]:  # the link report and the trace say the same
        span = spans.named(each["stage"])
        assert (span.end_time - span.start_time) / 1e9 == pytest.approx(each["seconds"], abs=1e-6)
    for service in ("user.Receive", "channel.Provide", "edge.Provide"):
        attributes = spans.named(service).attributes
        assert attributes["dekag.request_id"] == report["request_id"]
        assert (attributes["dekag.delivery"], attributes["dekag.fading"]) == ("semantic", "rayleigh")
        assert (attributes["dekag.snr_db"], attributes["dekag.channel_uses"]) == (12, report["channel_uses"])
        assert attributes["dekag.cbr"] == pytest.approx(1 / 96)
    assert spans.named(TO_EDGE[0]).attributes["http.response.status_code"] == 200


async def test_a_conventional_delivery_is_traced_to_the_cloud(
    client: httpx2.AsyncClient, redis: Any, spans: Spans
) -> None:
    await ask(client, CONVENTIONAL)
    assert len({span.context.trace_id for span in spans.get_finished_spans()}) == 1
    to_cloud = [*TO_EDGE, "call cloud", "cloud.Generate"]
    for stage in ("cloud.generate", "cloud.encode"):
        assert spans.path(stage) == [*to_cloud, stage]
    assert spans.path("edge.modulate") == [*TO_EDGE, "edge.modulate"]
    assert spans.path("user.decode") == [*TO_EDGE[:3], "user.decode"]
    assert spans.named("user.Receive").attributes["dekag.delivery"] == "conventional"


async def test_a_distillation_is_one_trace_into_the_distiller(
    client: httpx2.AsyncClient, distiller: None, spans: Spans
) -> None:
    counted = Counted()
    job = await distil(client)
    events = await client.get(f"/v1/jobs/{job}/events")  # until it is over
    assert '"finished"' in events.text
    to_distiller = ["gateway POST /v1/knowledge", "call cloud", "cloud.Distill", "distiller.Distill"]
    assert spans.path("distiller.Distill") == to_distiller
    work = spans.named("distiller.Distill")
    assert work.kind is SpanKind.CONSUMER
    assert work.attributes == {"dekag.job": job, "dekag.topic": "watched", "dekag.attempt": 1}
    stages = [spans.named(f"distiller.{stage}") for stage in ("generate", "train", "score", "publish")]
    for stage in stages:
        assert spans.path(stage.name) == [*to_distiller, stage.name]
        seconds = (stage.end_time - stage.start_time) / 1e9
        total = counted(f'dekag_distill_seconds_sum{{stage="{stage.name.removeprefix("distiller.")}"}}')
        assert total == pytest.approx(seconds, abs=1e-6)
    ended = [span.name for span in spans.get_finished_spans() if span.name.startswith("distiller.")]
    assert ended == [*(stage.name for stage in stages), work.name]
    assert work.start_time <= stages[0].start_time
    assert stages[-1].end_time <= work.end_time
    assert counted('dekag_distillations_total{outcome="finished"}') == 1
    assert (await client.delete("/v1/knowledge/watched")).status_code == 204


@pytest.mark.parametrize("flags", ["01", "00"])
async def test_a_clients_trace_is_linked_and_neither_joined_nor_silent(
    client: httpx2.AsyncClient, spans: Spans, flags: str
) -> None:
    parent = f"00-{'ab' * 16}-{'cd' * 8}-{flags}"
    await client.get("/v1/reports/unknown", headers={"traceparent": parent})
    await client.get("/healthz", headers={"traceparent": parent})
    (span,) = spans.get_finished_spans()  # probes are not traced
    assert span.name == "gateway GET /v1/reports/{of}"
    assert span.context.trace_id != int("ab" * 16, 16)
    assert span.parent is None
    (link,) = span.links
    assert (link.context.trace_id, link.context.span_id) == (int("ab" * 16, 16), int("cd" * 8, 16))
    assert span.attributes["http.response.status_code"] == 404


async def test_a_failure_marks_the_spans_on_its_way(
    start: Any, connect: Callable[[str], Any], spans: Spans
) -> None:
    class Broken:
        def load(self) -> None: ...
        async def close(self) -> None: ...
        async def Provide(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
            raise KeyError("inside")
            yield

        GetTransmissionKnowledge = None

    stub = DownlinkStub(connect(await start(Broken(), add_DownlinkServicer_to_server, name="edge")))
    with pytest.raises(Exception, match="internal error"):
        [frame async for frame in clients.stream(stub.Provide, ProvideRequest(), "edge")]
    assert {span.name: span.status.status_code for span in spans.get_finished_spans()} == {
        "call edge": StatusCode.ERROR,
        "edge.Provide": StatusCode.ERROR,
    }


def test_no_spans_and_no_headers_unless_asked_for() -> None:
    with tracing.client_span("edge") as headers, tracing.server_span("edge.Provide", {}, {}) as span:
        assert headers == ()
        assert not span.is_recording()
    assert CommonSettings().spans_to == ""


def one_span(spans_to: str) -> subprocess.CompletedProcess[str]:
    """A process that makes one span and ends."""
    code = (
        "import sys; from services.common import tracing; tracing.configure('edge', sys.argv[1]); "
        "tracing.record_stage('edge.generate', 0.5); tracing.close()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, spans_to], capture_output=True, text=True, check=True, timeout=60
    )


def test_spans_are_lines_in_a_file_or_on_the_console(tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    one_span(str(file))
    one_span(str(file))
    lines = [*file.read_text().splitlines(), *one_span("console").stdout.splitlines()]
    assert len(lines) == 3
    for line in map(json.loads, lines):
        assert line["name"] == "edge.generate"
        assert line["resource"]["attributes"]["service.name"] == "dekag-edge"


def make_spans(file: Path, monkeypatch: pytest.MonkeyPatch, numbers: range) -> None:
    """Writes a span for each number, from two services in turn, to a file that is rotated at 20 kB."""
    monkeypatch.setattr(tracing, "SPANS_BYTES", 20_000)
    exporters = [tracing._exporter(str(file)) for _ in range(2)]
    providers = [TracerProvider(shutdown_on_exit=False) for _ in exporters]
    for provider, exporter in zip(providers, exporters, strict=True):
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    for number in numbers:
        providers[number % 2].get_tracer("test").start_span(str(number)).end()


def names_in(files: list[Path]) -> list[int]:
    return [int(json.loads(line)["name"]) for file in files for line in file.read_text().splitlines()]


def test_a_file_of_spans_is_rotated_by_whichever_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "spans.jsonl"
    make_spans(file, monkeypatch, range(500))
    files = [tmp_path / "spans.jsonl.2", tmp_path / "spans.jsonl.1", file]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(each.stat().st_size < 22_000 for each in files)
    kept = names_in(files)
    assert kept == list(range(500 - len(kept), 500)), "the latest spans, all of them"


def test_spans_are_dropped_with_a_warning_of_each_service_if_their_file_cannot_be_rotated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "spans.jsonl"
    (tmp_path / "spans.jsonl.1" / "in the way").mkdir(parents=True)
    (tmp_path / "spans.jsonl.2").write_text("")
    with capture_logs() as logs:
        make_spans(file, monkeypatch, range(200))
    assert 20_000 <= file.stat().st_size < 22_000
    assert [each["event"] for each in logs] == 2 * ["spans are dropped: their file cannot be rotated"]


def test_a_file_of_spans_that_is_removed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "spans.jsonl"
    make_spans(file, monkeypatch, range(3))
    writer = tracing._SpansFile(file)
    file.unlink()
    writer.write("a line\n")
    assert file.read_text() == "a line\n"


def test_a_gateway_that_is_stopped_keeps_no_span_back(tmp_path: Path, closed_port: int) -> None:
    file, url = tmp_path / "spans.jsonl", f"http://127.0.0.1:{closed_port}"
    env = {"DEKAG_SPANS_TO": str(file), "DEKAG_PORT": str(closed_port), "DEKAG_REDIS_URL": "none"}
    process = subprocess.Popen([sys.executable, "-m", "services.gateway"], env=os.environ | env)
    try:
        with httpx2.Client(trust_env=False) as client:
            for _ in range(600):
                with contextlib.suppress(httpx2.TransportError):
                    client.get(f"{url}/healthz")
                    break
                time.sleep(0.1)
            client.get(f"{url}/v1/reports/unknown")
        process.terminate()
        process.wait(60)
    finally:
        process.kill()
    (line,) = file.read_text().splitlines()
    assert json.loads(line)["name"] == "gateway GET /v1/reports/{of}"


def test_spans_are_sent_over_otlp() -> None:
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        one_span(f"http://127.0.0.1:{server.server_port}/v1/traces")
        server.shutdown()
        thread.join()
    ((path, body),) = got
    assert path == "/v1/traces"
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert attributes["service.name"] == "dekag-edge"
    (span,) = resource.scope_spans[0].spans
    assert span.name == "edge.generate"
    assert span.end_time_unix_nano - span.start_time_unix_nano == 500_000_000


async def test_a_request_is_counted_where_it_passes(client: httpx2.AsyncClient, redis: Any) -> None:
    counted = Counted()
    report = await ask(client, ASKED)
    for request in ("user.Receive", "channel.Provide", "edge.Provide"):
        assert counted(f'dekag_request_seconds_count{{request="{request}",status="OK"}}') == 1
    assert counted(f'dekag_request_seconds_count{{request="POST {PATH}",status="200"}}') == 1
    assert {each["stage"] for each in report["stages"]} > {
        "edge.generate",
        "channel.transmit",
        "user.measure",
    }
    for each in report["stages"]:
        assert counted(f'dekag_stage_seconds_count{{stage="{each["stage"]}"}}') == 1
        total = counted(f'dekag_stage_seconds_sum{{stage="{each["stage"]}"}}')
        assert total == pytest.approx(each["seconds"], abs=1e-6)
    for each in report["hops"]:
        assert counted(f'dekag_hop_bytes_total{{hop="{each["hop"]}"}}') == each["sent_bytes"]
    assert counted('dekag_deliveries_total{decoded="true",delivery="semantic"}') == 1
    uses = report["channel_uses"] + report["pilot_uses"]
    assert counted('dekag_channel_uses_total{delivery="semantic"}') == uses
    slowest = max(each["seconds"] for each in report["stages"])
    assert counted('dekag_delivery_seconds_sum{delivery="semantic"}') > slowest
    for name in ("psnr_db", "instantaneous_snr_db"):
        for bound in (9.0, 12.0, 18.0, 30.0):
            below = counted(f'dekag_{name}_bucket{{delivery="semantic",le="{bound}"}}')
            assert below == (report[name] <= bound), (name, bound)
    assert counted('dekag_batch_size_sum{line="edge"}') == 1
    assert counted('dekag_batch_size_count{line="codec"}') == 2  # one encodes, one decodes
    assert counted('dekag_cache_lookups_total{found="no",kind="latent"}') == 1
    assert counted('dekag_cache_lookups_total{found="yes",kind="latent"}') == 0
    assert counted('dekag_refused_total{line="edge"}') == 0
    assert counted('dekag_waiting{line="edge"}') == 0

    assert (await ask(client, ASKED))["cached"]
    assert counted('dekag_cache_lookups_total{found="yes",kind="latent"}') == 1
    assert counted('dekag_stage_seconds_count{stage="edge.generate"}') == 1
    assert counted('dekag_stage_seconds_count{stage="edge.encode"}') == 2


async def test_a_conventional_delivery_is_counted_at_the_cloud(
    client: httpx2.AsyncClient, redis: Any
) -> None:
    counted = Counted()
    await ask(client, CONVENTIONAL)
    assert counted('dekag_request_seconds_count{request="cloud.Generate",status="OK"}') == 1
    assert counted('dekag_batch_size_count{line="cloud"}') == 1
    assert counted('dekag_deliveries_total{decoded="true",delivery="conventional"}') == 1
    assert counted('dekag_cache_lookups_total{found="no",kind="image"}') == 2  # WebP, and PNG to measure with


async def test_jobs_are_counted_while_they_wait_and_when_they_are_cancelled(
    client: httpx2.AsyncClient, empty: None
) -> None:
    counted = Counted()
    job = await distil(client)
    await until(lambda: 'dekag_jobs{status="queued"} 1.0' in generate_latest().decode())
    assert 'dekag_jobs{status="running"} 0.0' in generate_latest().decode()
    assert (await client.delete(f"/v1/jobs/{job}")).json()["status"] == "cancelled"
    await until(lambda: 'dekag_jobs{status="queued"} 0.0' in generate_latest().decode())
    assert counted('dekag_distillations_total{outcome="cancelled"}') == 1
    assert (await client.delete(f"/v1/jobs/{job}")).status_code == 409
    assert counted('dekag_distillations_total{outcome="cancelled"}') == 1


async def test_calls_to_redis_that_fail_are_counted(closed_port: int) -> None:
    counted = Counted()
    cache = Cache(CommonSettings(redis_url=f"redis://127.0.0.1:{closed_port}/0"))
    assert await cache.get("dekag:latent:none") is None
    assert await cache.get("dekag:latent:none") is None  # not asked again so soon
    await cache.close()
    assert counted("dekag_redis_failures_total") == 1


async def test_paths_that_do_not_exist_share_a_name(client: httpx2.AsyncClient) -> None:
    counted = Counted()
    for path in ("/no", "/such", "/path"):
        await client.get(path)
    await client.get("/healthz")
    assert counted('dekag_request_seconds_count{request="no such route",status="404"}') == 3
    assert counted('dekag_request_seconds_count{request="GET /healthz",status="200"}') == 1


async def test_waiting_and_refused_requests_are_counted() -> None:
    begin_request(None, None)
    counted, go_on = Counted(), threading.Event()
    worker = ModelWorker("of the test", max_queue=2)
    running = [asyncio.create_task(worker.run(go_on.wait)) for _ in range(2)]
    await asyncio.sleep(0)
    assert counted('dekag_waiting{line="of the test"}') == 2
    with pytest.raises(ExhaustedError):
        await worker.run(go_on.wait)
    go_on.set()
    await asyncio.gather(*running)
    worker.close()
    assert counted('dekag_waiting{line="of the test"}') == 0
    assert counted('dekag_refused_total{line="of the test"}') == 1

    admission = Admission(slots=1, max_waiting=0)
    async with admission.slot("somebody"):
        with pytest.raises(ExhaustedError):
            await admission.slot("somebody").__aenter__()
    assert counted('dekag_refused_total{line="gateway"}') == 1


def test_metrics_are_served_where_the_settings_say(closed_port: int) -> None:
    code = (
        "import sys, urllib.request as web; from services.common import metrics, settings; "
        "metrics.serve(settings.CommonSettings(metrics_port=int(sys.argv[1]))); "
        "open = web.build_opener(web.ProxyHandler({})).open; "
        "print(open(f'http://127.0.0.1:{sys.argv[1]}/metrics').read().decode()); "
        "print('torch' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(closed_port)], capture_output=True, text=True, check=True, timeout=60
    )
    for name in ("request_seconds", "stage_seconds", "psnr_db", "batch_size", "waiting"):
        assert f"# TYPE dekag_{name} " in found.stdout
    assert found.stdout.endswith("False\n")
    assert CommonSettings().metrics_port == 0


def test_a_distiller_whose_metrics_port_is_taken_says_so(redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        env = {"DEKAG_METRICS_PORT": str(port), "DEKAG_REDIS_URL": redis_url}
        done = subprocess.run(
            [sys.executable, "-m", "services.cloud.distiller"],
            env=os.environ | env,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert (
        f"DEKAG_METRICS_PORT: port {port} of 127.0.0.1 must be free; each process needs its own"
        in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_the_page_lists_every_span_and_every_metric() -> None:
    page = Path("docs/observability.md").read_text()
    names = {metric.name: metric.type for metric in REGISTRY.collect() if metric.name.startswith("dekag_")}
    rows = re.findall(r"^\| `(dekag_\w+)` \| (\w+) ", page, re.MULTILINE)
    assert {name.removesuffix("_total"): kind for name, kind in rows} == names
    for name in (*TO_EDGE[2::2], "distiller.Distill", "distiller.publish"):
        assert f"`{name}`" in page
