"""deploy/compose.secure.yml on a real engine: without key, certificate and password nobody gets anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from dekag.client import Client, UnauthorizedError
from services.gateway.api_keys import new_key
from services.launcher.stack import SERVICES
from tests.e2e.compose import Project

pytestmark = pytest.mark.compose
FILES = ("docker-compose.yml", "deploy/compose.secure.yml")
NAMES = ["redis", "distiller", "proxy", *SERVICES]
USERS_OF_REDIS = ["redis", "gateway", "user", "edge", "cloud", "distiller"]
PORTS = {name: port for name, (port, _) in SERVICES.items() if name != "gateway"}
OWN = {
    "redis": {"users.acl", "redis.password"},
    "proxy": set(),
    "gateway": {"redis.password", "cache.key"},
    "user": {"redis.password"},
    "channel": set(),
    "edge": {"redis.password", "cache.key", "trusted-keys"},
    "cloud": {"redis.password", "cache.key", "signing.key"},
    "distiller": {"redis.password", "signing.key"},
}
"""What each service has besides its certificate."""
KEY, LINE = new_key("tester")
REDIS_CLI = (
    "redis-cli -e --tls --cacert /credentials/ca.crt --cert /credentials/tls.crt --key /credentials/tls.key"
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The chain with everything on, running."""
    keys = tmp_path_factory.mktemp("keys") / "api-keys"
    keys.write_text(LINE)
    env = {"DEKAG_API_KEYS_FILE": str(keys), "DEKAG_HOSTNAMES": "box.example.org"}
    with Project("dekag-test-secure", env, FILES).running() as project:
        yield project


@pytest.fixture(scope="module")
def ca_file(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authority that clients are to believe."""
    file = tmp_path_factory.mktemp("authority") / "ca.crt"
    file.write_text(project.sh("gateway", "cat /credentials/ca.crt").stdout)
    return file


@pytest.fixture(scope="module")
def url(project: Project) -> str:
    """Of the gateway."""
    return f"https://127.0.0.1:{project.port}"


def test_a_picture_needs_a_key(url: str, ca_file: Path) -> None:
    with Client(url, api_key=KEY, ca_file=ca_file) as client:
        for delivery in ("semantic", "conventional"):
            image = client.image("a red car", seed=1, delivery=delivery, link={"snr_db": 25})
            assert image.png is not None
        assert client.reports(image.report.request_id) == [image.report], "Redis is used"
    with Client(url, api_key="dekag_wrong", ca_file=ca_file) as client, pytest.raises(UnauthorizedError):
        client.image("a red car")
    with pytest.raises(httpx2.TransportError):
        httpx2.get(url.replace("https", "http") + "/healthz", trust_env=False)


def test_a_topic_is_distilled_and_used(url: str, ca_file: Path) -> None:
    with Client(url, api_key=KEY, ca_file=ca_file, retries=3) as client:
        *_, last = client.distill("neon", images=4, steps=4, rank=1, force=True)
        assert last.status == "finished", last
        image = client.image("a red car, neon style", seed=1)
        assert [each.topic for each in image.report.knowledge] == ["neon"]


@pytest.mark.parametrize("name", PORTS)
def test_services_require_a_client_certificate(project: Project, name: str) -> None:
    check = f"python -m services.common.healthcheck {name}:{PORTS[name]}"
    assert project.sh("gateway", check).returncode == 0
    assert project.sh("gateway", f"DEKAG_TLS_DIR= {check}").returncode == 1


def test_redis_requires_password_and_certificate(project: Project) -> None:
    password = 'REDISCLI_AUTH="$(cat /credentials/redis.password)"'
    health = project.sh("redis", f"{password} {REDIS_CLI} --user health get dekag:knowledge")
    assert "NOPERM" in health.stdout + health.stderr
    guessed = project.sh("redis", f"REDISCLI_AUTH=health {REDIS_CLI} --user health ping")
    assert "WRONGPASS" in guessed.stdout + guessed.stderr
    nobody = project.sh("redis", f"{REDIS_CLI} get dekag:knowledge")
    assert "NOAUTH" in nobody.stdout + nobody.stderr
    plain = project.sh("redis", "redis-cli -e ping")
    assert plain.returncode != 0
    assert "PONG" not in plain.stdout


def test_a_service_sees_its_own_credentials_only(project: Project) -> None:
    for name in NAMES:
        found = set(project.sh(name, "ls /credentials").stdout.split())
        assert found == {"ca.crt", "tls.crt", "tls.key"} | OWN[name], name
        assert project.sh(name, "touch /credentials/x").returncode != 0


def test_nothing_secret_is_in_environments_command_lines_and_logs(project: Project) -> None:
    secrets = [project.sh(name, "cat /credentials/redis.password").stdout for name in USERS_OF_REDIS]
    assert all(len(secret) > 40 for secret in secrets)
    assert len(set(secrets)) == len(secrets)
    for shown in (json.dumps(project.containers()), project("logs")):
        assert "gateway" in shown
        assert [secret for secret in (*secrets, KEY) if secret in shown] == []


def test_what_makes_the_credentials_may_do_little(project: Project) -> None:
    made = project.containers()["credentials"]
    host = made["HostConfig"]
    assert made["State"]["ExitCode"] == 0
    assert host["NetworkMode"] == "none"
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert made["Config"]["User"] == "10001:10001"


def test_credentials_stay_when_it_is_started_again(project: Project) -> None:
    assert "all certificates are valid" in project("run", "--rm", "-T", "credentials")


def test_without_keys_it_does_not_start_on_another_address(project: Project) -> None:
    run = ("run", "--rm", "--no-deps", "-T", "gateway", "services.gateway")
    ended = project.run(*run, files=("docker-compose.yml",), DEKAG_GATEWAY_BIND="0.0.0.0")
    assert ended.returncode == 1
    assert "dekag key" in ended.stdout + ended.stderr


def test_a_key_is_made_in_a_container(project: Project) -> None:
    made = project.run("run", "--rm", "--no-deps", "-T", "gateway", "services.cli", "key", "bob")
    assert made.stdout.startswith("bob:")
    assert "dekag_" not in made.stdout
    assert "dekag_" in made.stderr
