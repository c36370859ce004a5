"""docker-compose.yml on a real engine: it builds, becomes healthy, draws, and is closed to the outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from dekag.client import Client
from services.launcher.stack import SERVICES
from tests.e2e.compose import ROOT, Project

pytestmark = pytest.mark.compose
PROJECT = "dekag-test"
NAMES = ["redis", "distiller", *SERVICES]
WRITERS = {"cloud", "distiller"}  # of the volume of knowledge


@pytest.fixture(scope="module")
def project() -> Project:
    return Project(PROJECT)


@pytest.fixture(scope="module")
def url(project: Project) -> Iterator[str]:
    """The running chain's gateway."""
    with project.running():
        yield f"http://127.0.0.1:{project.port}"


@pytest.fixture(scope="module")
def containers(url: str, project: Project) -> dict[str, dict[str, Any]]:
    """What the engine says of each container, by service."""
    return project.containers()


@pytest.mark.parametrize("delivery", ["semantic", "conventional"])
def test_compose_chain_draws_an_image(url: str, delivery: str) -> None:
    with Client(url) as client:
        image = client.image("a red car", seed=1, delivery=delivery, link={"snr_db": 25})
    assert image.png is not None
    assert image.png.startswith(b"\x89PNG")


def test_redis_is_used(url: str) -> None:
    assert httpx2.get(f"{url}/readyz", trust_env=False).json()["checks"]["redis"] == "up"


def test_a_topic_is_distilled_and_used(url: str, project: Project) -> None:
    def call(method: str, path: str, **arguments: Any) -> httpx2.Response:
        return httpx2.request(method, url + path, timeout=60, trust_env=False, **arguments)

    order = {"topic": "neon", "images": 4, "steps": 4, "rank": 1, "force": True}
    started = call("POST", "/v1/knowledge", json=order)
    assert started.status_code == 202, started.text
    deadline = time.monotonic() + 300
    while (job := call("GET", started.headers["location"]).json())["status"] in ("queued", "running"):
        assert time.monotonic() < deadline, job
        time.sleep(0.5)
    assert job["status"] == "finished", job
    with Client(url) as client:
        image = client.image("a red car, neon style", seed=1)
    assert [each.topic for each in image.report.knowledge] == ["neon"]
    project("restart", "redis")
    with Client(url) as client:
        image = client.image("a red car, neon style", seed=2)
    assert [each.topic for each in image.report.knowledge] == ["neon"]
    assert call("DELETE", "/v1/knowledge/neon").status_code == 204


def test_containers_count_what_a_load_test_sends(url: str, project: Project, tmp_path: Path) -> None:
    make = ["make", "INSTALL=true", f"BIN={Path(sys.executable).parent}", "loadtest-compose"]
    subprocess.run(
        [*make, "USERS=4", "DURATION=10s", "SHAPE=steady", f"REPORT={tmp_path}"],
        cwd=ROOT,
        env=os.environ | {"COMPOSE_PROJECT_NAME": PROJECT},
        check=True,
        timeout=180,
    )
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["settings"]["url"] == url
    assert found["errors"] == {}
    assert {each["service"] for each in found["services"]} >= {"channel", "edge", "user"}
    counted = found["containers"]
    assert {row["service"] for row in counted["rows"]} == set(NAMES)
    for row in counted["rows"]:
        assert row["counted_bytes"] >= row["messages_bytes"], row
    assert 0 < counted["counters_gap_percent"] < 5, counted
    assert "as the containers counted it" in (tmp_path / "report.md").read_text()
    assert len(project("ps", "--quiet", "--status", "running").split()) == len(NAMES)


def test_monitoring_fits_the_chain_and_needs_a_password(project: Project) -> None:
    both = ("docker-compose.yml", "deploy/compose.monitoring.yml")
    assert project.run("config", "--quiet", files=both, GRAFANA_PASSWORD="").returncode != 0
    services = project("config", "--services", files=both, GRAFANA_PASSWORD="secret")
    assert set(services.split()) == {*NAMES, "prometheus", "grafana"}


def test_only_the_gateway_is_published_and_only_here(containers: dict[str, dict[str, Any]]) -> None:
    assert sorted(containers) == sorted(NAMES)
    for name, container in containers.items():
        bindings = [b for each in container["HostConfig"]["PortBindings"].values() for b in each or []]
        assert [b["HostIp"] for b in bindings] == (["127.0.0.1"] if name == "gateway" else [])


def test_containers_are_restricted(containers: dict[str, dict[str, Any]]) -> None:
    for name, container in containers.items():
        host = container["HostConfig"]
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert "no-new-privileges:true" in host["SecurityOpt"], name
        assert host["Memory"] > 0, name
        writable = [m["Destination"] for m in container["Mounts"] if m["Type"] == "volume" and m["RW"]]
        assert writable == (["/data"] if name in WRITERS else []), name


@pytest.mark.parametrize("name", NAMES)
def test_no_process_is_root_and_nothing_can_be_written(url: str, project: Project, name: str) -> None:
    status = project("exec", "-T", name, "cat", "/proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert "0" not in fields["Uid"].split()
    assert int(fields["CapEff"], 16) == 0
    for folder in ("/", "/app", "/usr"):
        script = f"touch {folder}/probe 2>/dev/null && echo written || echo refused"
        assert project("exec", "-T", name, "sh", "-c", script).strip() == "refused"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gateway"])
def test_services_have_no_way_out(containers: dict[str, dict[str, Any]], name: str) -> None:
    networks = list(containers[name]["NetworkSettings"]["Networks"])
    assert networks == [f"{PROJECT}_chain"]
    described = json.loads(subprocess.check_output(["docker", "network", "inspect", networks[0]]))
    assert described[0]["Internal"]
