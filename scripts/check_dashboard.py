"""Check that every panel of the dashboard has data: ``python scripts/check_dashboard.py``.

Starts the services and a Prometheus, which must be installed, asks for pictures of each delivery, distils a
topic, and puts every expression of dashboard and alerts to Prometheus. Exits 1 when one is refused or a panel
stays empty. The models are those of ``DEKAG_PROFILE``.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import yaml

from dekag.client import Client
from dekag.documents import read_json, read_yaml
from services.common.converters import DELIVERIES
from services.launcher.stack import HOST, METERED, Stack, free_port, free_ports

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "monitoring"
SCRAPE_S = 1
LONGEST_S = 300


def panels() -> dict[str, list[str]]:
    """The expressions of each panel, by title."""
    found = read_json(FOLDER / "dashboard.json")["panels"]
    return {each["title"]: [t["expr"] for t in each["targets"]] for each in found if "targets" in each}


def alerts() -> dict[str, str]:
    """The expression of each alert, by name."""
    groups = read_yaml(FOLDER / "alerts.yml")["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


@contextmanager
def prometheus(folder: Path, first_port: int) -> Iterator[str]:
    """Start a Prometheus that scrapes the services' metrics ports; yield its URL."""
    targets = [
        {"targets": [f"{HOST}:{first_port + i}"], "labels": {"service": name}}
        for i, name in enumerate(METERED)
    ]
    config = {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
        "rule_files": [str(FOLDER / "alerts.yml")],
        "scrape_configs": [{"job_name": "dekag", "static_configs": targets}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={HOST}:{port}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - the command is our own
    try:
        yield f"http://{HOST}:{port}"
    finally:
        process.terminate()
        process.wait()


def ask(url: str, expression: str) -> list[float]:
    """The current finite values of ``expression``; ValueError if Prometheus rejects it."""
    query = expression.replace("$__rate_interval", f"{20 * SCRAPE_S}s")
    answer = httpx2.get(f"{url}/api/v1/query", params={"query": query}, timeout=30, trust_env=False).json()
    if answer["status"] != "success":
        raise ValueError(f"{expression}: {answer['error']}")
    values = [float(each["value"][1]) for each in answer["data"]["result"]]
    return [value for value in values if math.isfinite(value)]


def use(client: Client, seed: int) -> None:
    """Send the requests that fill the panels."""
    for delivery in DELIVERIES:
        for _ in range(2):  # the second finds the first in the cache
            image = client.image("a red car, neon style", seed=seed, delivery=delivery, link={"snr_db": 25})
        client.reports(image.report.request_id)


def main() -> int:
    """Print the empty panels; return the exit status."""
    if shutil.which("prometheus") is None:
        raise SystemExit("there is no prometheus to ask")
    first_port, empty = free_ports(len(METERED)), panels()
    with (
        tempfile.TemporaryDirectory() as name,
        Stack(Path(name), free_ports=True, env={"DEKAG_METRICS_PORT": str(first_port)}) as stack,
        prometheus(Path(name), first_port) as url,
        Client(stack.url) as client,
    ):
        for _ in stack.wait_ready():
            pass
        *_, job = client.distill("neon", images=4, steps=4, rank=1, tokens=1)
        if job.status != "finished":
            raise SystemExit(f"the distillation ended {job.status}: {job.error}")
        deadline, seed = time.monotonic() + LONGEST_S, 0
        while empty and time.monotonic() < deadline:
            use(client, seed := seed + 1)
            time.sleep(2 * SCRAPE_S)
            empty = {title: wanted for title, wanted in empty.items() if not all(ask(url, e) for e in wanted)}
        for expression in alerts().values():
            ask(url, expression)
    for title, expressions in empty.items():
        sys.stderr.write(f"{title} shows nothing: {'; '.join(expressions)}\n")
    sys.stdout.write(f"{len(panels()) - len(empty)} of {len(panels())} panels show something\n")
    return bool(empty)


if __name__ == "__main__":
    sys.exit(main())
