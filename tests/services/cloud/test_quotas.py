"""What one API key may store, and what it costs to find out."""

from __future__ import annotations

import base64
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dekag.errors import ExhaustedError, NotFoundError
from dekag.makd.update import KnowledgeUpdate
from services.cloud.housekeeping import check_quotas
from services.cloud.owners import Owners
from services.cloud.publish import publish_update
from services.cloud.servicer import CloudServicer
from services.cloud.settings import CloudSettings
from services.cloud.version_store import KnowledgeStore
from services.common.knowledge import Manifest
from services.gateway.api_keys import new_key
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from services.proto.cloud_pb2_grpc import add_CloudServicer_to_server
from tests.chain import serving
from tests.hostile.artifacts import tiny_update
from tests.services.answers import is_problem

SMALL = {"images": 4, "steps": 4, "rank": 1, "tokens": 1}


@pytest.fixture(scope="module")
def update(dummy_profile: Path) -> KnowledgeUpdate:
    return tiny_update(dummy_profile)


def of(update: KnowledgeUpdate, topic: str) -> KnowledgeUpdate:
    """The same update for another topic."""
    info = {**update.info, "topic": topic, "triggers": [topic]}
    return KnowledgeUpdate.new(info, update.metaword, update.lora, bits=16)


@pytest.mark.asyncio(loop_scope="session")
async def test_one_key_cannot_take_all_topics(
    start: Callable[..., Awaitable[str]],
    own_redis_url: str,
    dummy_profile: Path,
    update: KnowledgeUpdate,
    tmp_path: Path,
) -> None:
    keys = {name: new_key(name) for name in ("ann", "ben")} | {"root": new_key("root", scopes=["admin"])}
    (file := tmp_path / "keys").write_text("\n".join(line for _, line in keys.values()))
    settings = CloudSettings(
        port=0,
        redis_url=own_redis_url,
        profile=str(dummy_profile),
        data_dir=tmp_path / "data",
        max_key_topics=2,
    )
    address = await start(CloudServicer(settings), add_CloudServicer_to_server, settings)
    of_gateway = GatewaySettings(cloud_address=address, redis_url=own_redis_url, api_keys_file=file)
    async with serving(create_app(of_gateway)) as client:

        async def ask(name: str, method: str, path: str, body: Any = None) -> Any:
            headers = {"Authorization": f"Bearer {keys[name][0]}"}
            return await client.request(method, path, headers=headers, json=body)

        async def publish(name: str, topic: str) -> Any:
            files = of(update, topic).to_files().items()
            encoded = {part: base64.b64encode(data).decode() for part, data in files}
            return await ask(name, "PUT", f"/v1/knowledge/{topic}", {"files": encoded})

        assert (await publish("ann", "igloo")).status_code == 200
        assert (await ask("ann", "POST", "/v1/knowledge", {"topic": "neon", **SMALL})).status_code == 202
        refused = (
            await publish("ann", "palace"),
            await ask("ann", "POST", "/v1/knowledge", {"topic": "crown", **SMALL}),
        )
        for answer in refused:
            assert is_problem(answer, 429)["detail"] == (
                "there are 2 topics of this API key, which is the limit (DEKAG_MAX_KEY_TOPICS); "
                "delete one first"
            )
        assert (await publish("ann", "igloo")).status_code == 200, "it is no further topic"
        assert (await publish("ben", "palace")).status_code == 200
        for topic in ("harp", "violin", "cello"):
            assert (await publish("root", topic)).status_code == 200, "admins have no such limit"
        assert (await ask("root", "POST", "/v1/knowledge", {"topic": "crown", **SMALL})).status_code == 202
        assert (await ask("ann", "DELETE", "/v1/knowledge/igloo")).status_code == 204
        assert (await publish("ann", "tower")).status_code == 200


def test_one_key_cannot_take_the_whole_disk(update: KnowledgeUpdate, tmp_path: Path) -> None:
    settings, store = CloudSettings(data_dir=tmp_path, max_key_mib=1), KnowledgeStore(tmp_path)
    for topic, owner in (("one", "ann"), ("two", "ben")):
        publish_update(of(update, topic), store, update.base_hash)
        Owners(tmp_path).claim(topic, owner, admin=False, exists=False)
    _add_mib(tmp_path, "one")
    with pytest.raises(ExhaustedError, match=r"of this API key takes 1 MiB, .*\(DEKAG_MAX_KEY_MIB\)"):
        check_quotas(settings, "one", owner="ann")
    for owner in ("", "ben"):
        check_quotas(settings, "two", owner=owner)


def test_the_room_is_found_without_reading_each_version_again(
    update: KnowledgeUpdate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, store = CloudSettings(data_dir=tmp_path, max_knowledge_mib=1), KnowledgeStore(tmp_path)
    for number in range(3):
        publish_update(of(update, f"topic-{number}"), store, update.base_hash)
    read: list[str] = []
    scandir = os.scandir

    def scan(path: Any) -> Any:
        read.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    check_quotas(settings, "new")
    assert sum(path.endswith("/files") for path in read) >= 3
    read.clear()
    check_quotas(settings, "new")
    assert not [path for path in read if path.endswith(("/1", "/files"))]
    _add_mib(tmp_path, "topic-0")
    with pytest.raises(ExhaustedError, match=r"all knowledge takes 1 MiB, .*\(DEKAG_MAX_KNOWLEDGE_MIB\)"):
        check_quotas(settings, "new")
    store.delete("topic-0")
    check_quotas(settings, "new")


def test_an_unknown_topic_is_refused_without_reading_the_others(
    update: KnowledgeUpdate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, read = KnowledgeStore(tmp_path), list[bytes]()
    for topic in ("one", "two"):
        publish_update(of(update, topic), store, update.base_hash)
    monkeypatch.setattr(Manifest, "parse", read.append)
    with pytest.raises(NotFoundError, match="there is no knowledge of topic 'three'; there is one, two"):
        store.versions("three")
    assert not read


def _add_mib(data_dir: Path, topic: str) -> None:
    """A version of that size."""
    folder = data_dir / "knowledge" / topic / "2"
    folder.mkdir()
    (folder / "file").write_bytes(bytes(2**20))
