"""deploy/compose.monitoring.yml, dashboard and alerts, as far as no engine is needed to judge them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from scripts.check_dashboard import FOLDER, alerts, panels
from services.common import metrics
from services.launcher.credentials import OPERATOR, make_credentials
from services.launcher.stack import METERED
from tests.processes import free_port

ROOT = FOLDER.parents[1]
METRICS = {each._name: each for each in vars(metrics).values() if isinstance(each, MetricWrapperBase)}
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
SAMPLES = {
    f"{name}{suffix}": {*each._labelnames, "service"} | ({"le"} if suffix == "_bucket" else set())
    for name, each in METRICS.items()
    for suffix in SUFFIXES[each._type]
}
OTHERS = {  # of Prometheus itself and of the client
    "up": {"service"},
    "ALERTS": {"alertstate"},
    "process_cpu_seconds_total": {"service"},
    "process_resident_memory_bytes": {"service"},
}
EXPRESSIONS = [*(each for found in panels().values() for each in found), *alerts().values()]


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


BASE, OVER = load("docker-compose.yml"), load("deploy/compose.monitoring.yml")
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
WATCHERS = ["prometheus", "grafana"]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_dashboard_and_alerts_name_metrics_and_labels_that_there_are(expression: str) -> None:
    named = re.findall(r"\b((?:dekag|process)_\w+|up|ALERTS)\b(?:\{(.*?)\})?", expression)
    assert named
    known = SAMPLES | OTHERS
    for sample, matchers in named:
        assert sample in known
        assert set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', matchers)) <= known[sample], sample
    together = set.intersection(*(known[sample] for sample, _ in named))
    for group in re.findall(r"\bby \((.*?)\)", expression):
        assert set(group.split(", ")) <= together
    assert "dekag_instantaneous_snr_db_sum" not in expression  # an SNR may be negative: there is no sum


def test_panels_say_what_they_show_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["type"] == "row" or panel["description"].endswith("."), panel["title"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


CONFIGURATIONS = ("deploy/monitoring/prometheus.yml", "deploy/monitoring/prometheus-secure.yml")


@pytest.mark.parametrize("path", CONFIGURATIONS)
def test_prometheus_asks_every_replica_where_its_metrics_are(path: str) -> None:
    (job,) = load(path)["scrape_configs"]
    (dns,) = job["dns_sd_configs"]
    assert sorted(dns["names"]) == sorted(METERED)
    for name in METERED:
        assert OVER["services"][name]["environment"]["DEKAG_METRICS_PORT"] == dns["port"]
        assert "chain" in BASE["services"][name]["networks"]
        assert BASE["services"][name]["environment"]["DEKAG_METRICS_HOST"] == "0.0.0.0"
    assert "chain" in OVER["services"]["prometheus"]["networks"]


def test_secure_configuration_differs_only_in_tls() -> None:
    plain, secure = map(load, CONFIGURATIONS)
    (job,) = secure["scrape_configs"]
    assert (job.pop("scheme"), job.pop("tls_config")["server_name"]) == ("https", "localhost")
    assert secure == plain


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    (source,) = load("deploy/monitoring/datasources.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "monitoring" in OVER["services"]["prometheus"]["networks"]
    for panel in DASHBOARD["panels"]:
        assert panel["type"] == "row" or panel["datasource"]["uid"] == source["uid"]
    (provider,) = load("deploy/monitoring/dashboards.yml")["providers"]
    grafana = OVER["services"]["grafana"]
    mounts = [each.split(":")[1] for each in grafana["volumes"]]
    assert any(Path(each).parent == Path(provider["options"]["path"]) for each in mounts)
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in mounts
    every = load("deploy/monitoring/prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == every


@pytest.mark.parametrize("name", WATCHERS)
def test_monitoring_containers_are_restricted(name: str) -> None:
    container, like = OVER["services"][name], BASE["services"]["redis"]
    for key in ("init", "read_only", "cap_drop", "security_opt", "pids_limit", "restart"):
        assert container[key] == like[key], key
    assert re.fullmatch(r"(prom/prometheus:v|grafana/grafana:)\d+\.\d+\.\d+", container["image"])
    assert int(container["user"].split(":")[0]) > 0
    assert container["mem_limit"]
    assert all(port.startswith("127.0.0.1:") for port in container["ports"])
    for mount in container["volumes"]:
        source, _, options = mount.split(":", 2) if mount.count(":") > 1 else (*mount.split(":"), "rw")
        if source.startswith("./"):
            assert (ROOT / source).is_file()
            assert options == "ro"
        else:
            assert source in OVER["volumes"]
    assert set(container["networks"]) <= {*BASE["networks"], *OVER["networks"]}


def test_grafana_needs_a_password() -> None:
    grafana = OVER["services"]["grafana"]
    assert grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_PASSWORD:?")
    assert grafana["environment"]["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert grafana["environment"]["GF_USERS_ALLOW_SIGN_UP"] == "false"
    assert "chain" not in grafana["networks"]


def test_monitoring_changes_nothing_else_of_the_chain() -> None:
    for name, service in OVER["services"].items():
        if name not in WATCHERS:
            assert service == {"environment": {"DEKAG_METRICS_PORT": 9464}}
            assert name in BASE["services"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not here")
def test_prometheus_takes_its_configuration_and_alerts_when_it_should() -> None:
    for command in (
        ["check", "config", "--syntax-only", *CONFIGURATIONS],  # the credentials are in the container only
        ["check", "rules", "deploy/monitoring/alerts.yml"],
        ["test", "rules", "tests/deploy/alerts_test.yml"],
    ):
        done = subprocess.run(["promtool", *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def running_prometheus(folder: Path, path: str, targets: list[str], credentials: Path) -> Iterator[str]:
    """URL of a Prometheus with that configuration, whose name `edge` has these addresses."""
    config = load(path)
    (job,) = config["scrape_configs"]
    del job["dns_sd_configs"]
    # what service discovery would find
    job["static_configs"] = [{"targets": targets, "labels": {"__meta_dns_name": "edge"}}]
    config["rule_files"] = [str(FOLDER / "alerts.yml")]
    config["global"]["scrape_interval"] = "1s"
    text = yaml.safe_dump(config).replace("/credentials/", f"{credentials}/")
    (folder / "prometheus.yml").write_text(text)
    port = free_port()
    command = [
        "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not here")
@pytest.mark.parametrize("path", CONFIGURATIONS)
def test_prometheus_sees_each_of_two_replicas(path: str, tmp_path: Path) -> None:
    """Two services with metrics, plain or with mutual TLS, and a real Prometheus that asks both."""
    make_credentials(tmp_path / "credentials")
    secure = "secure" in path
    env = os.environ | {"DEKAG_REDIS_URL": "none", "DEKAG_DOWNLINK_ADDRESS": "127.0.0.1:1", "DEKAG_PORT": "0"}
    if secure:
        env["DEKAG_TLS_DIR"] = str(tmp_path / "credentials" / "channel")
    ports = [free_port(), free_port()]
    replicas = [
        subprocess.Popen(
            [sys.executable, "-m", "services.channel"], cwd=ROOT, env=env | {"DEKAG_METRICS_PORT": str(port)}
        )
        for port in ports
    ]
    targets = [f"127.0.0.1:{port}" for port in ports]
    try:
        with running_prometheus(tmp_path, path, targets, tmp_path / "credentials" / "operator") as url:
            deadline, up = time.monotonic() + 240, {}
            while len(up) < len(targets) and time.monotonic() < deadline:
                time.sleep(0.5)
                with suppress(httpx2.HTTPError):
                    answer = httpx2.get(f"{url}/api/v1/query", params={"query": "up == 1"}, trust_env=False)
                    up = {each["metric"]["instance"]: each for each in answer.json()["data"]["result"]}
            assert sorted(up) == sorted(targets)
            assert {each["metric"]["service"] for each in up.values()} == {"edge"}
    finally:
        for replica in replicas:
            replica.terminate()
            replica.wait(60)


def test_secure_prometheus_reads_the_credentials_that_are_made_for_it() -> None:
    both = load("deploy/compose.secure-monitoring.yml")
    prometheus = both["services"]["prometheus"]
    (config, _, credentials) = prometheus["volumes"]
    assert config.split(":")[0].removeprefix("./") in CONFIGURATIONS
    assert config.split(":")[1] in [each.split(":")[1] for each in OVER["services"]["prometheus"]["volumes"]]
    volume = credentials.split(":")[0]
    (made,) = both["services"]["credentials"]["volumes"]
    assert made.split(":") == [volume, f"/credentials/{OPERATOR}"]
    assert prometheus["user"].split(":")[0] == BASE["services"]["redis"]["user"].split(":")[0]
