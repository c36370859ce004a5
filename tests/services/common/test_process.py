"""A service as a process of its own: starts, says so, serves, stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dekag.makd.update import KnowledgeUpdate
from services.cloud.version_store import KnowledgeStore
from services.common.errors import SettingError
from services.common.settings import CommonSettings
from services.launcher.stack import find_redis
from services.proto.cloud_pb2 import GenerateRequest
from services.proto.cloud_pb2_grpc import CloudStub

pytestmark = pytest.mark.asyncio(loop_scope="session")


def run_arguments(service: str, **settings: str | int | Path) -> dict[str, Any]:
    return {
        "args": [sys.executable, "-m", f"services.{service}"],
        "env": os.environ | {f"DEKAG_{name.upper()}": str(value) for name, value in settings.items()},
        "cwd": Path(__file__).parents[3],
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }


async def test_serves_until_sigterm_and_logs_json(
    dummy_profile: Path, closed_port: int, connect: Callable[[str], Any], tmp_path: Path
) -> None:
    update = KnowledgeUpdate.load("models/stickers/knowledge/neon")  # which is checked at the start
    KnowledgeStore(tmp_path).publish("0" * 32, update.info, update.content_hash, update.to_files(), b"PNG")
    arguments = run_arguments(
        "cloud", port=closed_port, redis_url="none", profile=dummy_profile, threads=1, data_dir=tmp_path
    )
    process = subprocess.Popen(**arguments)  # noqa: ASYNC220
    try:
        channel = connect(f"127.0.0.1:{closed_port}")
        health, status = health_pb2_grpc.HealthStub(channel), None
        async for answer in health.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=240):
            if (status := answer.status) == health_pb2.HealthCheckResponse.SERVING:
                break
        assert status == health_pb2.HealthCheckResponse.SERVING
        request = GenerateRequest(prompt="an owl", seeds=[1], width=64, height=64, formats=[1])
        call = CloudStub(channel).Generate(request, metadata=(("x-request-id", "find-me"),))
        assert len([answer async for answer in call]) == 1
        with pytest.raises(grpc.RpcError):
            [a async for a in CloudStub(channel).Generate(GenerateRequest())]
        process.send_signal(signal.SIGTERM)
        out, err = await asyncio.to_thread(process.communicate, timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert out == ""
    lines = [json.loads(line) for line in err.splitlines()]
    assert all(line["service"] == "cloud" for line in lines)
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["status"] for line in requests] == ["OK", "INVALID_ARGUMENT"]
    assert requests[0]["request_id"] == "find-me"
    # a refusal reaches the client before it is logged, so the signal may come first
    others = [line["event"] for line in lines if line["event"] != "request"]
    assert others == ["listening", "ready", "stopping", "stopped"]


async def test_setting_out_of_range_ends_the_service() -> None:
    ended = subprocess.run(**run_arguments("channel", log_level="loud"), timeout=240, check=False)  # noqa: ASYNC221
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert json.loads(line)["event"].startswith("DEKAG_LOG_LEVEL: Input should be 'debug', 'info', 'warning'")


async def test_settings_out_of_range_are_all_named_and_secrets_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEKAG_PORT", "70000")
    monkeypatch.setenv("DEKAG_CACHE_TTL_S", "soon")
    monkeypatch.setenv("DEKAG_REDIS_URL", "redis://:sec/ret@here")
    with pytest.raises(SettingError) as caught:
        CommonSettings.read()
    said = str(caught.value)
    assert "DEKAG_PORT: Input should be less than or equal to 65535; got '70000'" in said
    assert "DEKAG_CACHE_TTL_S: Input should be a valid integer" in said
    assert "DEKAG_REDIS_URL: must be like redis://host:6379/0" in said
    assert "sec" not in said
    assert caught.value.__suppress_context__, "a traceback would show it"


@pytest.mark.parametrize(
    ("service", "settings", "named"),
    [
        ("user", {"spans_to": "/nowhere/spans.jsonl"}, "DEKAG_SPANS_TO: the file cannot be written"),
        ("cloud", {"data_dir": "/dev/null/data"}, "DEKAG_DATA_DIR /dev/null/data cannot be written"),
    ],
)
async def test_what_cannot_be_written_ends_it_with_the_settings_name(
    service: str, settings: dict[str, str], named: str
) -> None:
    arguments = run_arguments(service, port=0, redis_url="none", **settings)
    ended = subprocess.run(**arguments, timeout=240, check=False)  # noqa: ASYNC221
    assert ended.returncode == 1
    assert named in json.loads(ended.stderr.splitlines()[-1])["event"]
    assert "Traceback" not in ended.stderr


async def test_distiller_waits_for_redis_and_still_stops(closed_port: int) -> None:
    arguments = run_arguments("cloud.distiller", redis_url=f"redis://127.0.0.1:{closed_port}/0")
    process = subprocess.Popen(**arguments)  # noqa: ASYNC220
    try:
        assert process.stderr is not None
        said = ""
        while "Redis cannot be reached" not in said:
            said = await asyncio.to_thread(process.stderr.readline)
            assert said, "it ended"
        process.send_signal(signal.SIGTERM)
        _, rest = await asyncio.to_thread(process.communicate, timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert json.loads(rest.splitlines()[-1])["event"] == "stopped"
    assert "Traceback" not in rest


@pytest.mark.parametrize(
    ("service", "setting"), [("user", "port"), ("user", "metrics_port"), ("gateway", "metrics_port")]
)
async def test_a_taken_port_ends_it_with_the_settings_name(service: str, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = run_arguments(service, redis_url="none", **{setting: taken.getsockname()[1]})
        ended = subprocess.run(**arguments, timeout=240, check=False)  # noqa: ASYNC221
    assert ended.returncode == 1
    assert f"DEKAG_{setting.upper()}" in json.loads(ended.stderr.splitlines()[-1])["event"]
    assert "Traceback" not in ended.stderr


def ipv6_ports(count: int) -> list[int]:
    """Free ports of the IPv6 loopback address."""
    try:
        taken = [socket.create_server(("::1", 0), family=socket.AF_INET6) for _ in range(count)]
    except OSError:
        pytest.skip("this machine has no IPv6")
    ports = [each.getsockname()[1] for each in taken]
    for each in taken:
        each.close()
    return ports


async def test_every_address_of_a_gateway_and_a_service_may_be_ipv6(tmp_path: Path) -> None:
    gateway, metrics, channel, channel_metrics, redis = ipv6_ports(5)
    settings = {
        "gateway": {
            "host": "[::1]", "port": gateway, "metrics_host": "::1", "metrics_port": metrics,
            "redis_url": f"redis://[::1]:{redis}/0", "user_address": f"[::1]:{channel}",
            "cloud_address": f"[::1]:{channel},[::1]:{metrics}", "allowed_hosts": "::1",
            "allowed_origins": "http://[::1]:3000", "spans_to": "http://[::1]:9/v1/traces",
        },
        "channel": {
            "host": "::1", "port": channel, "metrics_host": "[::1]", "metrics_port": channel_metrics,
            "downlink_address": f"[::1]:{gateway}",
        },
    }  # fmt: skip
    server = [find_redis(), "--bind", "::1", "--port", str(redis), "--save", "", "--dir", str(tmp_path)]
    processes = [subprocess.Popen(server, stdout=subprocess.DEVNULL)]  # noqa: ASYNC220
    processes += [subprocess.Popen(**run_arguments(name, **own)) for name, own in settings.items()]  # noqa: ASYNC220
    url, checks = f"http://[::1]:{gateway}", {}
    try:
        async with httpx2.AsyncClient(trust_env=False) as client:
            async with asyncio.timeout(240):
                while (checks.get("redis"), checks.get("user")) != ("up", "not_serving"):
                    await asyncio.sleep(0.2)
                    with contextlib.suppress(httpx2.TransportError):
                        checks = (await client.get(f"{url}/readyz", timeout=30)).json()["checks"]
            for port in (metrics, channel_metrics):
                assert (await client.get(f"http://[::1]:{port}/metrics")).status_code == 200
            mine = {"Origin": "http://[::1]:3000"}
            answer = await client.get(f"{url}/healthz", headers=mine)
            assert answer.headers["access-control-allow-origin"] == mine["Origin"]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            await asyncio.to_thread(process.communicate)


async def test_missing_models_end_the_service() -> None:
    arguments = run_arguments("edge", port=0, redis_url="none", profile="no-such-profile")
    ended = subprocess.run(**arguments, timeout=240, check=False)  # noqa: ASYNC221
    assert ended.returncode == 1
    events = [json.loads(line) for line in ended.stderr.splitlines()]
    assert "no profile 'no-such-profile'" in events[-1]["event"]
    assert "exception" not in events[-1]
