"""Publishing to a running system: over REST and gRPC, into the cloud's store, from the command line."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
import torch
from typer.testing import CliRunner

from dekag.cala.artifact import TransmissionKnowledge
from dekag.client import Client
from dekag.codec import JsccCodec
from dekag.errors import FileError, InvalidInputError, MismatchError
from dekag.generation.loading import folder_hash
from dekag.generation.models import Generator
from dekag.makd.update import KnowledgeUpdate
from dekag.profile import load_profile
from services.cli.main import app
from services.cloud.publish import main, publish_start_topics, publish_update
from services.cloud.settings import CloudSettings
from services.cloud.version_store import KnowledgeStore, TransmissionStore
from services.common.errors import SettingError
from services.gateway.api_keys import new_key
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from tests.chain import Start, adapters, serving, start_chain, starter
from tests.services.answers import PATH, is_problem
from tests.services.command_line import dekag

pytestmark = pytest.mark.asyncio(loop_scope="session")


def make_update(profile: Path, topic: str = "neon", seed: int = 1, **changes: Any) -> KnowledgeUpdate:
    """An untrained update that the edge of that profile can draw with."""
    torch.manual_seed(seed)
    edge = Generator.from_profile(load_profile(profile), "edge")
    width = edge.pipeline.text_encoder.config.hidden_size
    info = {
        "topic": topic,
        "triggers": [topic],
        "base_hash": edge.model_hash,
        "guidance_scale": 3.0,
        **changes,
    }
    history = {"scores": {"clip_after": 0.5}, "prompts": [f"a {topic} boat"]}
    return KnowledgeUpdate.new(info, torch.randn(1, width), {}, history=history)


def uploaded(files: dict[str, bytes]) -> dict[str, Any]:
    return {"files": {name: base64.b64encode(data).decode() for name, data in files.items()}}


@dataclass
class System:
    """A gateway with an API key in front of a chain of its own, and where its cloud keeps knowledge."""

    client: httpx2.AsyncClient
    data: Path
    key: str
    profile: Path

    @property
    def url(self) -> str:
        return str(self.client.base_url).rstrip("/")

    @property
    def env(self) -> dict[str, str]:
        return {"DEKAG_API_KEY": self.key}

    def adapters(self) -> list[int]:
        """The versions that there are."""
        return list(TransmissionStore(self.data).versions(folder_hash(self.profile / "codec")))

    async def picture(self, knowledge: str = "none") -> dict[str, Any]:
        body = {"prompt": "a boat, neon style", "seed": 3, "size": "64x64", "knowledge": knowledge}
        answer = await self.client.post(PATH, json=body)
        assert answer.status_code == 200, answer.text
        report: dict[str, Any] = answer.json()["data"][0]["link_report"]
        return report


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def system(adapted_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    tmp_path = tmp_path_factory.mktemp("system")
    key, line = new_key("publisher", scopes=["admin"], requests_per_minute=90_000)
    (tmp_path / "api-keys").write_text(f"{line}\n")
    async with starter() as start:
        addresses = await chain_at(start, adapted_profile, tmp_path / "data")
        settings = GatewaySettings(
            user_address=addresses["user"],
            cloud_address=addresses["cloud"],
            redis_url="",
            api_keys_file=tmp_path / "api-keys",
        )
        async with serving(create_app(settings)) as client:
            client.headers["Authorization"] = f"Bearer {key}"
            yield System(client, tmp_path / "data", key, adapted_profile)


async def chain_at(start: Start, profile: Path, data: Path) -> dict[str, str]:
    def own(name: str) -> dict[str, Any]:
        return {"data_dir": data} if name == "cloud" else {"knowledge_keep_s": 0} if name == "edge" else {}

    return await start_chain(start, profile, "", own)


async def test_the_command_reaches_the_system_that_it_is_pointed_at(system: System, tmp_path: Path) -> None:
    make_update(system.profile).save(tmp_path / "neon")
    newer = adapters(system.profile / "codec", 7)
    newer.save(tmp_path / "newer")
    # the data folder and profile of where the command runs are another system's
    elsewhere = {**system.env, "DEKAG_DATA_DIR": str(tmp_path / "here"), "DEKAG_PROFILE": "nowhere"}
    done = await dekag(
        "publish", "neon", "newer", "--url", f"{system.url}/v1/", folder=tmp_path, env=elsewhere
    )
    assert done.returncode == 0, done.stderr
    assert f"version 1 of neon is current at {system.url}: " in done.stdout
    version = system.adapters()[-1]
    told = f"version {version} of the codec's adapters is current at {system.url}: {newer.content_hash}"
    assert told in done.stdout
    assert not (tmp_path / "here").exists()
    report = await system.picture("neon")
    assert [(each["topic"], each["version"]) for each in report["knowledge"]] == [("neon", 1)]
    assert report["model_hashes"]["adapters"] == newer.content_hash


async def test_start_topics_are_published_where_there_is_none(
    adapted_profile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped, other = (make_update(adapted_profile, "neon", seed=seed) for seed in (1, 2))
    shipped.save(tmp_path / "knowledge" / "neon")
    profile = load_profile(adapted_profile)
    with_updates = profile.model_copy(update={"knowledge": str(tmp_path / "knowledge")})
    store = KnowledgeStore(tmp_path / "data")
    publish_start_topics(["neon", "ufo"], profile, store, shipped.base_hash)  # a profile without updates
    assert store.topics() == {}
    publish_start_topics(["neon", "ufo"], with_updates, store, shipped.base_hash)
    assert {topic: each.content_hash for topic, each in store.topics().items()} == {
        "neon": shipped.content_hash
    }
    assert "DEKAG_START_TOPICS" in capsys.readouterr().out
    publish_update(other, store, other.base_hash)
    publish_start_topics(["neon"], with_updates, store, shipped.base_hash)  # as at the next start
    assert store.topics()["neon"].content_hash == other.content_hash
    with pytest.raises(MismatchError, match="fits the model"):
        publish_start_topics(["neon"], with_updates, KnowledgeStore(tmp_path / "else"), "0" * 64)
    with pytest.raises(SettingError, match=r"START_TOPICS.*'Ne on' is not"):
        CloudSettings.read({"DEKAG_START_TOPICS": "neon, Ne on"})


async def test_republishing_is_idempotent_or_makes_an_old_version_current(system: System) -> None:
    first, second = (make_update(system.profile, "snail", seed=seed) for seed in (1, 2))
    versions = []
    for update in (first, first, second, first):
        answer = await system.client.put("/v1/knowledge/snail", json=uploaded(update.to_files()))
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert told["content_hash"] == update.content_hash
        assert (await system.picture("snail"))["knowledge"][0]["content_hash"] == update.content_hash
        versions.append(told["version"])
    assert versions == [1, 1, 2, 3]
    assert told["versions"] == [1, 2, 3]
    made, before = adapters(system.profile / "codec", 8), system.adapters()
    for _ in range(2):
        await system.client.put("/v1/transmission", json=uploaded(made.to_files()))
    assert len(system.adapters()) == len(before) + 1


async def test_the_same_from_a_folder_of_the_cloud_says_which_folder(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEKAG_DATA_DIR", str(system.data))
    monkeypatch.setenv("DEKAG_PROFILE", str(system.profile))
    for seed in (1, 2, 1):
        make_update(system.profile, "rocket", seed=seed).save(tmp_path / "rocket")
        assert main([str(tmp_path / "rocket")]) == 0
    assert f"version 3 of rocket is current in {system.data}" in capsys.readouterr().out


async def test_the_history_is_kept_by_the_cloud_alone(system: System, tmp_path: Path) -> None:
    made = make_update(system.profile, "flamingo")
    made.save(tmp_path / "flamingo")
    done = await dekag("publish", "flamingo", "--url", system.url, folder=tmp_path, env=system.env)
    assert done.returncode == 0, done.stderr
    told = (await system.client.get("/v1/knowledge/flamingo")).json()
    assert (told["scores"], told["size_bytes"]) == ({"clip_after": 0.5}, made.size_bytes)
    store = KnowledgeStore(system.data)
    manifest = store.find("flamingo")
    assert store.files(manifest) == made.to_files()
    kept = KnowledgeUpdate.from_files(store.files(manifest) | store.history(manifest))
    assert kept.history == made.history


def spoiled(profile: Path, what: str, tmp_path: Path) -> dict[str, bytes]:
    """Files of an update or of adapters that are not to be published."""
    update, made = make_update(profile), adapters(profile / "codec", 9)
    match what:
        case "bit":
            files = update.to_files()
            name = "update.safetensors"
            return {**files, name: files[name][:-1] + bytes([files[name][-1] ^ 1])}
        case "other history":
            history = make_update(profile, seed=2).saved_files()["history.json"]
            return {**update.to_files(), "history.json": history}
        case "old format":
            return make_update(profile, format=1).to_files()
        case "missing":
            return {name: data for name, data in update.to_files().items() if name == "knowledge.json"}
        case "other edge":
            return make_update(profile, base_hash="0" * 64).to_files()
        case "long triggers":
            return make_update(profile, triggers=["neon", *["x" * 100] * 20]).to_files()
        case "nested":
            return {"knowledge.json": b"[" * 100_000}
        case "other codec":
            return made.with_info(base_hash="0" * 64).to_files()
        case "lying codec":
            JsccCodec(width=16, blocks=1).save_pretrained(tmp_path / "stranger")
            foreign = adapters(tmp_path / "stranger", 3)
            return foreign.with_info(base_hash=made.base_hash).to_files()
        case _:
            return {**made.to_files(), "adapter_model.safetensors": b"x"}


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/v1/knowledge/neon", "bit"),
        ("/v1/knowledge/neon", "other history"),
        ("/v1/knowledge/neon", "old format"),
        ("/v1/knowledge/neon", "missing"),
        ("/v1/knowledge/neon", "other edge"),
        ("/v1/knowledge/neon", "long triggers"),
        ("/v1/knowledge/neon", "nested"),
        ("/v1/transmission", "other codec"),
        ("/v1/transmission", "lying codec"),
        ("/v1/transmission", "not safetensors"),
    ],
)
async def test_what_is_damaged_or_does_not_fit_is_refused_and_changes_nothing(
    system: System, path: str, what: str, tmp_path: Path
) -> None:
    before = (await system.picture())["model_hashes"], system.adapters(), KnowledgeStore(system.data).topics()
    answer = await system.client.put(path, json=uploaded(spoiled(system.profile, what, tmp_path)))
    refused = is_problem(answer, 409)
    if what == "long triggers":
        assert "triggers must be at most 100 of 1 to 100 characters each, 2000 in all" in refused["detail"]
    after = (await system.picture())["model_hashes"], system.adapters(), KnowledgeStore(system.data).topics()
    assert after == before


@pytest.mark.parametrize(
    ("files", "field"),
    [
        ({"knowledge.json": "not base64!"}, "files.knowledge.json"),
        ({"knowledge.json": "e30"}, "files.knowledge.json"),
        ({"knowledge.json": 5}, "files.knowledge.json"),
        ({"pytorch_model.bin": "AAAA"}, "files"),
        ({"../knowledge.json": "e30="}, "files"),
        ({"evil.pkl": "AAAA"}, "files"),
        ({}, "files"),
        ({f"{letter}.json": "" for letter in "abcdefghi"}, "files"),
        (None, "files"),
        ({"knowledge.json": "e30=", "other.safetensors": ""}, "files"),
    ],
)
async def test_other_files_are_refused_by_name(system: System, files: Any, field: str) -> None:
    for path in ("/v1/knowledge/neon", "/v1/transmission"):
        problem = is_problem(await system.client.put(path, json={"files": files}), 422)
        assert problem["errors"][0]["field"].startswith(field)


async def test_an_update_goes_to_its_own_topic_alone(system: System) -> None:
    files = uploaded(make_update(system.profile).to_files())
    answer = await system.client.put("/v1/knowledge/snail", json=files)
    assert "neon" in is_problem(answer, 422)["detail"]


async def test_uploads_without_key_or_too_large_are_refused(system: System) -> None:
    body = json.dumps(uploaded({"knowledge.json": bytes(9 * 2**20)}))
    headers = {"Content-Type": "application/json"}
    is_problem(await system.client.put("/v1/transmission", content=body, headers=headers), 413)
    headers["Authorization"] = "Bearer dekag_wrong"
    is_problem(await system.client.put("/v1/transmission", content=body[:99], headers=headers), 401)


async def test_a_disk_that_cannot_be_written_is_no_internal_error(system: System) -> None:
    (system.data / "knowledge").mkdir(exist_ok=True)
    (system.data / "knowledge" / "jewels").write_text("in the way")  # else root may write anywhere
    files = make_update(system.profile, "jewels").to_files()
    problem = is_problem(await system.client.put("/v1/knowledge/jewels", json=uploaded(files)), 503)
    assert f"DEKAG_DATA_DIR {system.data} cannot be used" in problem["detail"]


async def test_the_command_says_what_is_wrong_in_one_line(
    system: System, tmp_path: Path, closed_port: int
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "knowledge.json").write_text('"odd"')
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "knowledge.json").symlink_to(tmp_path / "gone.json")
    make_update(system.profile, base_hash="1" * 64).save(tmp_path / "foreign")
    make_update(system.profile).save(tmp_path / "good")
    cases = {
        ("empty", system.url): (2, "there is no knowledge.json in it"),
        ("file", system.url): (2, "file cannot be read: Not a directory"),
        ("nowhere", system.url): (2, "nowhere cannot be read: No such file"),
        ("odd", system.url): (2, "says neither"),
        ("linked", system.url): (2, f"a link to {tmp_path / 'gone.json'}"),
        ("foreign", system.url): (2, "fits the model 111111111111"),
        ("good", f"http://127.0.0.1:{closed_port}"): (1, "Nothing was published"),
        ("good", "ftp://127.0.0.1"): (2, "url must be the URL of a gateway"),
    }
    asked = [(name, url, system.env, *wanted) for (name, url), wanted in cases.items()]
    asked.append(("good", system.url, {"DEKAG_API_KEY": ""}, 2, "needs an API key"))
    for name, url, env, status, told in asked:
        command = ["publish", str(tmp_path / name), "--url", url]
        done = await asyncio.to_thread(CliRunner().invoke, app, command, env=env)
        assert done.exit_code == status, done.output
        assert "is current" not in done.stdout
        assert told in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


async def test_the_client_publishes_and_says_what_it_is(system: System, tmp_path: Path) -> None:
    made = adapters(system.profile / "codec", 11)
    made.save(tmp_path / "made")

    def run() -> TransmissionKnowledge | Any:
        with Client(system.url, api_key=system.key) as client:
            published = client.publish(tmp_path / "made")
            assert published == client.transmission()
            return published

    assert (await asyncio.to_thread(run)).content_hash == made.content_hash
    (tmp_path / "made" / "adapter_model.safetensors").unlink()
    (tmp_path / "made" / "adapter_model.safetensors").mkdir()
    with pytest.raises(FileError, match="is a folder, not a file"):
        await asyncio.to_thread(run)
    with pytest.raises(InvalidInputError, match="url must be"):
        Client("http://")
