"""Load generated against a gateway that speaks HTTPS and asks for a key."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from services.gateway.api_keys import new_key
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from tests.chain import serving
from tests.processes import LOCUST
from tests.services.command_line import environment

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[4]


async def test_the_gateway_is_believed_by_its_authority_alone(credentials_dir: Path, tmp_path: Path) -> None:
    key, line = new_key("load")
    (tmp_path / "api-keys").write_text(f"{line}\n")
    authority = credentials_dir / "gateway" / "ca.crt"
    settings = GatewaySettings(
        user_address="127.0.0.1:1",
        cloud_address="127.0.0.1:1",
        redis_url="",
        api_keys_file=tmp_path / "api-keys",
        https_dir=credentials_dir / "gateway",
    )

    async def run(name: str, host: str, ca_file: object) -> tuple[str, set[str]]:
        options = ["--users", "2", "--run-time", "2", "--rate", "3", "--host", host, "--report"]
        done = await asyncio.to_thread(
            subprocess.run,
            [*LOCUST, *options, str(tmp_path / name)],
            cwd=ROOT,
            env={**environment(), "DEKAG_API_KEY": key, "DEKAG_CA_FILE": str(ca_file)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        report = tmp_path / name / "report.json"
        errors = set(json.loads(report.read_text())["errors"]) if report.exists() else set()
        return done.stdout + done.stderr, errors

    async with serving(create_app(settings), ca_file=authority) as client:
        place = f"127.0.0.1:{client.base_url.port}"
        (_, believed), (_, unknown), (said, none) = await asyncio.gather(
            run("believed", f"{place}/v1/", authority),
            run("unknown", f"https://{place}", ""),
            run("none", place, tmp_path / "none.crt"),
        )
    # which the gateway says, as there is no chain; on a fast machine, more wait for it than may
    assert believed - {"HTTP 429 Too Many Requests"} == {"HTTP 503 Service Unavailable"}
    assert unknown
    assert not any(error.startswith("HTTP") for error in unknown), unknown
    assert none == set()
    assert "none.crt cannot be read: No such file" in said
    assert "Traceback" not in said
