"""A service as a process of its own: starts, says so, serves, stops."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dekag.makd.update import KnowledgeUpdate
from services.cloud.store import KnowledgeStore
from services.proto.cloud_pb2 import GenerateRequest
from services.proto.cloud_pb2_grpc import CloudStub

pytestmark = pytest.mark.asyncio(loop_scope="session")


def run_arguments(service: str, **settings: str | int | Path) -> dict[str, Any]:
    return {
        "args": [sys.executable, "-m", f"services.{service}"],
        "env": os.environ | {f"DEKAG_{name.upper()}": str(value) for name, value in settings.items()},
        "cwd": Path(__file__).parents[2],
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }


async def test_serves_until_sigterm_and_logs_json(
    dummy_profile: Path, closed_port: int, connect: Callable[[str], Any], tmp_path: Path
) -> None:
    update = KnowledgeUpdate.load("models/embedded/knowledge/neon")  # which is checked at the start
    KnowledgeStore(tmp_path).publish("0" * 32, update.info, update.content_hash, update.to_files(), b"PNG")
    arguments = run_arguments(
        "cloud", port=closed_port, redis_url="", profile=dummy_profile, threads=1, data_dir=tmp_path
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


async def test_a_setting_out_of_range_ends_it() -> None:
    ended = subprocess.run(**run_arguments("channel", log_level="loud"), timeout=240, check=False)  # noqa: ASYNC221
    assert ended.returncode == 1
    assert "log_level" in ended.stderr


async def test_missing_models_end_it() -> None:
    arguments = run_arguments("edge", port=0, redis_url="", profile="no-such-profile")
    ended = subprocess.run(**arguments, timeout=240, check=False)  # noqa: ASYNC221
    assert ended.returncode == 1
    events = [json.loads(line) for line in ended.stderr.splitlines()]
    assert events[-1]["event"] == "service failed"
    assert "no-such-profile" in events[-1]["exception"]
