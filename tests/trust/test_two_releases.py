"""A service of the last release beside the services of this one, on one Redis and one data folder.

Each service is replaced in turn, while the system runs, by the one of the last release, and then by the one
of this release again; with every mixture, images must arrive, and a topic must be taught and used.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from services.cloud.jobs import OVER
from services.launcher.stack import Stack
from tests.chain import QUALITY, adapters

pytestmark = pytest.mark.trust
ROOT = Path(__file__).resolve().parents[2]
LAST_RELEASE = "e886d6ba"
"""Tag or commit of the last release."""
MIXTURES: Mapping[str, tuple[str, ...]] = {
    "gateway": ("gateway",),
    "user": ("user",),
    "channel": ("channel",),
    "edge": ("edge",),
    "cloud": ("cloud", "distiller"),  # they share a data folder, and must be of one release
}
"""What is replaced together."""
MAKE_MODELS = """
from pathlib import Path
from dekag.training.tiny_models import save_dummy_models
from tests.chain import QUALITY, adapters, with_adapters
plain = save_dummy_models(Path("plain"))
with_adapters(plain, Path("adapted"), adapters(plain / "codec", 1, quality=QUALITY))
"""
OLD_EDGE = "old-edge"
PROMPT = "a red car on the beach"
TOPIC: Mapping[str, Any] = {
    "prompts": ["a {red|blue|green|white} {cat|dog|cow|hen} {in the snow|at sea|at night}"],
    "images": 4, "steps": 2, "rank": 1, "tokens": 1, "force": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def last_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last release's code."""
    folder = tmp_path_factory.mktemp("last-release")
    archive = subprocess.run(
        ["git", "archive", LAST_RELEASE, "dekag", "services", "tests"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if archive.returncode != 0:
        pytest.skip(f"the last release is not in the history of git here: {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


@pytest.fixture(scope="module")
def profile(last_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models with adapters that the last release has made."""
    folder = tmp_path_factory.mktemp("models")
    env = os.environ | {"PYTHONPATH": str(last_release)}
    subprocess.run([sys.executable, "-c", MAKE_MODELS], env=env, cwd=folder, check=True)
    return folder / "adapted"


class Mixed:
    """A running system of which some services are of the last release."""

    def __init__(self, stack: Stack, profile: Path, last_release: Path) -> None:
        self.stack, self._codec, self._last_release = stack, profile / "codec", last_release
        self._seed = 0
        self.http = httpx2.Client(base_url=stack.url, timeout=120, trust_env=False)

    def replace(self, names: tuple[str, ...], *, last: bool) -> None:
        """Restarts services as those of the last release, or of this one."""
        for name in names:
            child = self.stack[name]
            child.process.terminate()
            child.process.wait(60)
            code = self._last_release if last else ROOT
            child.env = {**child.env, "PYTHONPATH": str(code)}
            where = [sys.executable, "-P", "-c", "import services; print(services.__file__)"]
            found = subprocess.run(where, env=child.env, cwd="/", capture_output=True, text=True, check=True)
            assert Path(found.stdout.strip()).is_relative_to(code)
            self.stack.start_again(name)
        for _ in self.stack.wait_ready(600):
            pass

    def ask(self, method: str, path: str, status: int = 200, **options: Any) -> Any:
        """The answer, which must have that status."""
        answer = self.http.request(method, path, **options)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text[:300]}"
        return answer.json()

    def draw(self, prompt: str = PROMPT, *, seed: int | None = None, **body: Any) -> Mapping[str, Any]:
        """A new image, or that of a seed."""
        self._seed += 1
        body = {
            "prompt": prompt,
            "seed": self._seed if seed is None else seed,
            "link": {"snr_db": 12},
            **body,
        }
        (image,) = self.ask("POST", "/v1/images/generations", json=body)["data"]
        assert image["b64_json"]
        report: Mapping[str, Any] = image["link_report"]
        return report

    def teach(self, topic: str) -> str:
        """Teaches a topic; returns the id of the job."""
        job = self.ask("POST", "/v1/knowledge", 202, json={"topic": topic, **TOPIC})
        deadline = time.monotonic() + 300
        while job["status"] not in OVER:
            assert time.monotonic() < deadline, job
            time.sleep(0.3)
            job = self.ask("GET", f"/v1/jobs/{job['id']}")
        assert job["status"] == "finished", job
        return str(job["id"])

    def check(self, topic: str) -> None:
        """Images arrive, whatever the delivery, and topics and adapters are taught, listed and used."""
        for delivery in ("semantic", "semantic-unaligned", "conventional"):
            report = self.draw(delivery=delivery)
            assert report["delivery"] == delivery
            assert ("adapters" in report["model_hashes"]) == (delivery == "semantic")
            assert self.ask("GET", f"/v1/reports/{report['request_id']}")["link_reports"] == [report]
            assert self.draw(seed=0, delivery=delivery)["delivery"] == delivery  # cached by another mixture
        job = self.teach(topic)
        assert job in [each["id"] for each in self.ask("GET", "/v1/jobs")["data"]]
        assert topic in [each["topic"] for each in self.ask("GET", "/v1/knowledge")["data"]]
        if topic == OLD_EDGE:  # which this release's update is too new for
            body = {"prompt": PROMPT, "knowledge": [topic]}
            refusal = self.ask("POST", "/v1/images/generations", 409, json=body)
            assert "newer than 2" in refusal["detail"]
            assert self.draw(f"{PROMPT}, {topic}")["knowledge"] == [], "by itself, it is left out"
        else:
            assert [each["topic"] for each in self.draw(knowledge=[topic])["knowledge"]] == [topic]
        new = adapters(self._codec, self._seed, quality=QUALITY)
        files = {name: base64.b64encode(data).decode() for name, data in new.to_files().items()}
        self.ask("PUT", "/v1/transmission", json={"files": files})
        assert self.draw()["model_hashes"]["adapters"] == new.content_hash


@pytest.fixture(scope="module")
def mixed(profile: Path, last_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    folder = tmp_path_factory.mktemp("mixed")
    env = {
        "DEKAG_PROFILE": str(profile),
        "DEKAG_DATA_DIR": str(folder / "data"),
        "OMP_NUM_THREADS": "1",
    }
    with Stack(folder / "run", free_ports=True, env=env, grace_s=10) as stack:
        for _ in stack.wait_ready(600):
            pass
        mixed = Mixed(stack, profile, last_release)
        mixed.check("new")
        yield mixed
        mixed.http.close()


@pytest.mark.parametrize("name", MIXTURES)
def test_a_service_of_the_last_release_beside_new_ones(mixed: Mixed, name: str) -> None:
    mixed.replace(MIXTURES[name], last=True)
    try:
        mixed.check(f"old-{name}")
    finally:
        mixed.replace(MIXTURES[name], last=False)
    assert mixed.draw(knowledge=[f"old-{name}"])["knowledge"], "what the old one left is used"
