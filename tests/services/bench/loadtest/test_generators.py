"""Several generators share the users of a load test, and one report tells of all."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from services.launcher.stack import free_port
from tests.chain import serving
from tests.processes import LOCUST
from tests.services.command_line import environment

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[4]
USERS = 4  # an even number, which the generators share evenly


async def test_two_generators_ask_what_one_would_and_write_one_report(tmp_path: Path) -> None:
    settings = GatewaySettings(user_address="127.0.0.1:1", cloud_address="127.0.0.1:1", redis_url="")

    async def run(url: str, folder: Path, *more: str) -> tuple[dict[str, object], list[dict[str, object]]]:
        options = ["--users", str(USERS), "--run-time", "8", "--rate", "1", "--host", url]
        done = await asyncio.to_thread(
            subprocess.run,
            [*LOCUST, *options, "--report", str(folder), *more],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert (folder / "report.json").exists(), done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
        return json.loads((folder / "report.json").read_text()), rows

    async with serving(create_app(settings)) as client:
        url = f"http://127.0.0.1:{client.base_url.port}"
        port = str(free_port())
        ports = ["--master-bind-port", port, "--master-port", port]
        both, rows = await run(url, tmp_path / "two", "--processes", "2", *ports)
        one, alone = await run(url, tmp_path / "one")
    assert both["settings"]["generators"] == 2  # type: ignore[index]
    assert one["settings"]["generators"] == 1  # type: ignore[index]
    assert both["requests"] == len(rows) > USERS
    # the gateway has no chain, and answers every request with an error; none is lost
    assert sum(both["errors"].values()) == len(rows)  # type: ignore[attr-defined]
    asked, wanted = ({str(row["question"]): row["prompt"] for row in of} for of in (rows, alone))
    assert {name.split("-")[0] for name in asked} == {str(user) for user in range(USERS)}
    assert len(asked.keys() & wanted.keys()) > USERS
    assert all(asked[name] == wanted[name] for name in asked.keys() & wanted.keys())
