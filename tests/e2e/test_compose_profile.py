"""docker-compose.yml with a profile of one's own: models from a volume, limits and devices from variables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dekag.client import Client
from dekag.generation.loading import pipeline_hash
from dekag.generation.placement import ON_CPU
from dekag.profile import load_profile
from dekag.training.tiny_models import FOREIGN, save_dummy_models
from services.cloud.settings import CloudSettings, DistillerSettings
from services.edge.settings import EdgeSettings
from services.user.settings import UserSettings
from tests.chain import with_topics
from tests.e2e.compose import Project

pytestmark = pytest.mark.compose
LIMITS = {"cloud": 2000, "edge": 1800, "user": 1600, "distiller": 2200}  # MiB
READERS = {*LIMITS, "gateway"}  # of the models
GPU = ("docker-compose.yml", "deploy/compose.gpu.yml")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the profile `mine`, which the services' user may read."""
    folder = tmp_path_factory.mktemp("volume")
    plain = save_dummy_models(tmp_path_factory.mktemp("foreign"), like=FOREIGN)
    with_topics(plain, folder / "mine")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for parent in folder.parents[:2]:  # pytest's own folders are closed to others
        parent.chmod(parent.stat().st_mode | 0o055)
    return folder


@pytest.fixture(scope="module")
def project(models: Path) -> Project:
    limits = {f"DEKAG_{name.upper()}_MEMORY": f"{limit}m" for name, limit in LIMITS.items()}
    mine = {"DEKAG_MODELS": str(models), "DEKAG_PROFILE": "/models/mine", "DEKAG_START_TOPICS": ""}
    return Project("dekag-test-profile", mine | limits)


@pytest.fixture(scope="module")
def url(project: Project) -> Iterator[str]:
    """The running chain's gateway."""
    with project.running():
        yield f"http://127.0.0.1:{project.port}"


@pytest.mark.parametrize("delivery", ["semantic", "conventional"])
def test_images_are_of_the_mounted_profile(url: str, models: Path, delivery: str) -> None:
    with Client(url) as client:
        image = client.image("a red car", seed=1, delivery=delivery, link={"snr_db": 25, "fading": "awgn"})
    assert image.png is not None
    shown = models.parent / "shown.png"
    shown.write_bytes(image.png)
    with Image.open(shown) as opened:
        assert opened.size == (FOREIGN.size, FOREIGN.size)
    profile = load_profile(models / "mine")
    role = "edge" if delivery == "semantic" else "cloud"
    assert image.report.model_hashes[role] == pipeline_hash(getattr(profile, role))


def test_a_topic_of_the_mounted_profile_is_distilled_and_used(url: str) -> None:
    with Client(url, timeout_s=300) as client:
        *_, job = client.distill("glow", images=4, steps=4, rank=1, force=True)
        assert job.status == "finished", job.error
        image = client.image("a red cat at sea with a glow", seed=1)
    assert [each.topic for each in image.report.knowledge] == ["glow"]


def test_models_are_read_only_and_memory_limits_are_those_of_the_variables(
    url: str, project: Project
) -> None:
    found = project.containers()
    for name, limit in LIMITS.items():
        assert found[name]["HostConfig"]["Memory"] == limit * 2**20, name
        assert not found[name]["State"]["OOMKilled"], name
    for name, container in found.items():
        mounted = [mount for mount in container["Mounts"] if mount["Destination"] == "/models"]
        assert [mount["RW"] for mount in mounted] == ([False] if name in READERS else []), name


def test_the_gpu_file_reserves_devices_and_follows_the_variables(project: Project) -> None:
    def configured(**env: str) -> dict[str, Any]:
        described = json.loads(project("config", "--format", "json", files=GPU, **env))
        services: dict[str, Any] = described["services"]
        return services

    services = configured(DEKAG_CLOUD_MEMORY="")
    for name in ("cloud", "edge", "distiller"):
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], int(device["count"]), device["capabilities"]) == ("nvidia", 1, ["gpu"])
        assert services[name]["environment"]["DEKAG_DEVICE"] == "cuda"
        assert services[name]["environment"]["DEKAG_PROFILE"] == "/models/mine"
    assert services["distiller"]["environment"]["DEKAG_GRADIENT_CHECKPOINTING"] == "true"
    assert int(services["cloud"]["mem_limit"]) == 24 * 2**30
    assert int(services["user"]["mem_limit"]) == LIMITS["user"] * 2**20
    assert "deploy" not in services["user"]
    chosen = configured(
        DEKAG_DEVICE="cuda:1", DEKAG_TEXT_DEVICE="cuda:1", DEKAG_OFFLOAD="true", DEKAG_GPUS="2"
    )
    (device,) = chosen["edge"]["deploy"]["resources"]["reservations"]["devices"]
    assert int(device["count"]) == 2
    assert UserSettings.read(services["user"]["environment"]).placement() == ON_CPU
    assert UserSettings.read(chosen["user"]["environment"]).placement() == ON_CPU
    for name, settings in (
        ("cloud", CloudSettings),
        ("edge", EdgeSettings),
        ("distiller", DistillerSettings),
    ):
        read = settings.read(chosen[name]["environment"])
        assert (read.device, read.text_device, read.offload) == ("cuda:1", "cuda:1", True)
