"""deploy/compose.monitoring.yml, dashboard and alerts, as far as no engine is needed to judge them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from scripts.check_dashboard import FOLDER, alerts, panels
from services.common import metrics
from services.launcher.stack import METERED

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


def test_prometheus_asks_every_service_where_its_metrics_are() -> None:
    chain, distillers = load("deploy/monitoring/prometheus.yml")["scrape_configs"]
    (static,), (dns,) = chain["static_configs"], distillers["dns_sd_configs"]
    asked = [*static["targets"], *(f"{name}:{dns['port']}" for name in dns["names"])]
    for name in METERED:
        port = OVER["services"][name]["environment"]["DEKAG_METRICS_PORT"]
        assert f"{name}:{port}" in asked
        assert "chain" in BASE["services"][name]["networks"]
        assert BASE["services"][name]["environment"]["DEKAG_METRICS_HOST"] == "0.0.0.0"
    assert len(asked) == len(METERED)
    assert "chain" in OVER["services"]["prometheus"]["networks"]


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
        ["check", "config", "deploy/monitoring/prometheus.yml"],
        ["test", "rules", "tests/deploy/alerts_test.yml"],
    ):
        done = subprocess.run(["promtool", *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
