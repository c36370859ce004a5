"""Profiles that are not like the embedded one: another size, another kind of autoencoder and denoiser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dekag.errors import NotFoundError
from dekag.evaluation.studies.end_to_end import run_overall
from dekag.evaluation.sweeps.command import run as run_sweep
from dekag.evaluation.sweeps.grid import Sweep
from dekag.generation.models import Generator
from dekag.makd.aligned_generator import AlignedGenerator
from dekag.makd.config import DistillConfig
from dekag.makd.topics import topic_prompts
from dekag.makd.update import KnowledgeUpdate
from dekag.profile import load_profile
from dekag.training.distill import SAMPLES, distill
from dekag.training.tiny_models import FOREIGN, OTHER_WAY_ROUND, save_dummy_models
from services.cli.main import app
from services.cloud import distill_request
from services.proto.cloud_pb2 import DistillRequest, GenerateRequest
from services.proto.downlink_pb2 import DELIVERY_SEMANTIC, IMAGE_FORMAT_PNG, ProvideRequest
from tests.chain import adapters, running_chain, serving_chain, with_adapters, with_evaluators

SIZE = 96
LONG = "a red boat on the beach, " * 5 + "with a glow"  # more than the shipped encoders' tiny copies read


@pytest.fixture
def redis_url(new_database: Callable[[], str]) -> str:
    """Of a database for one test alone."""
    return new_database()


@pytest.fixture(scope="module")
def profile(dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny models in a profile whose size is not the one of their configuration."""
    folder = tmp_path_factory.mktemp("size") / "profile"
    shutil.copytree(dummy_profile, folder)
    described = json.loads((folder / "profile.json").read_text())
    (folder / "profile.json").write_text(json.dumps({**described, "size": SIZE}))
    return folder


@pytest.mark.asyncio(loop_scope="session")
async def test_services_draw_the_profiles_size_and_refuse_more_than_twice_that(
    profile: Path, redis_url: str, own_data: None
) -> None:
    async with running_chain(profile, redis_url) as chain:
        async with serving_chain(chain, redis_url) as client:
            assert await _size(client) == (SIZE, SIZE)
            assert await _size(client, size="auto", delivery="conventional") == (SIZE, SIZE)
            assert await _size(client, size="192x64") == (192, 64)
            refused = await client.post("/v1/images/generations", json={"prompt": "a boat", "size": "224x64"})
            assert refused.status_code == 422
            assert "multiples of 32 from 64 to 192 pixels; got '224x64'" in refused.text
        unset = ProvideRequest(prompt="a boat", delivery=DELIVERY_SEMANTIC, cbr=1 / 96)
        frames = [frame async for frame in chain.edge.Provide(unset)]
        assert list(frames[0].header.latent_shape) == [4, SIZE // 8, SIZE // 8]
        drawn = chain.cloud.Generate(GenerateRequest(prompt="a boat", seeds=[1], formats=[IMAGE_FORMAT_PNG]))
        assert [Image.open(io.BytesIO(each.image)).size async for each in drawn] == [(SIZE, SIZE)]


@pytest.mark.asyncio(loop_scope="session")
async def test_a_shared_redis_gives_no_images_of_another_sampling(
    dummy_profile: Path, redis_url: str, own_data: None, tmp_path: Path
) -> None:
    """Weights and Redis stay; only what profile.json says changes."""
    body = {"prompt": "a boat that nobody asked for before", "seed": 1, "image_format": "webp"}
    images: dict[tuple[str, str], str] = {}
    for number, said in enumerate(({}, {"steps": 3}, {"guidance_scale": 4.0}, {"vae_dtype": "bfloat16"})):
        folder = tmp_path / str(number)
        shutil.copytree(dummy_profile, folder)
        described = json.loads((folder / "profile.json").read_text())
        for role in ("cloud", "edge"):
            described[role] |= said
        (folder / "profile.json").write_text(json.dumps(described))
        async with running_chain(folder, redis_url) as chain, serving_chain(chain, redis_url) as client:
            for delivery in ("semantic", "conventional"):
                for cached in (False, True):
                    answer = await client.post("/v1/images/generations", json={**body, "delivery": delivery})
                    assert answer.status_code == 200, answer.text
                    image = answer.json()["data"][0]
                    assert image["link_report"]["cached"] == cached, (said, delivery)
                images[str(said), delivery] = image["b64_json"]
    assert len(set(images.values())) == len(images)


async def _size(client: httpx2.AsyncClient, **fields: Any) -> tuple[int, int]:
    answer = await client.post("/v1/images/generations", json={"prompt": "a boat", "seed": 1, **fields})
    assert answer.status_code == 200, answer.text

    with Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))) as image:
        return image.size


@pytest.fixture(scope="module")
def other_way_round(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of `foreign_profile`, with the kinds of edge and cloud exchanged."""
    return save_dummy_models(tmp_path_factory.mktemp("exchanged"), like=OTHER_WAY_ROUND)


BOTH = pytest.mark.parametrize("kind", ["foreign_profile", "other_way_round"])


@BOTH
@pytest.mark.asyncio(loop_scope="session")
async def test_a_foreign_profile_goes_through_the_whole_chain(
    kind: str, request: pytest.FixtureRequest, redis_url: str, own_data: None
) -> None:
    folder: Path = request.getfixturevalue(kind)
    async with running_chain(folder, redis_url) as chain, serving_chain(chain, redis_url) as client:
        for delivery in ("semantic", "semantic-unaligned", "conventional"):
            body = {"prompt": LONG, "seed": 1, "delivery": delivery, "link": {"snr_db": 30, "csi": "pilots"}}
            answer = await client.post("/v1/images/generations", json=body)
            assert answer.status_code == 200, answer.text
            image = answer.json()["data"][0]
            report = image["link_report"]
            assert base64.b64decode(image["b64_json"])[:4] == b"\x89PNG"
            if delivery != "conventional":
                assert report["channel_uses"] == round(3 * FOREIGN.size**2 / 96)
                assert report["prompt_read"]["edge"]["tokens_at_once"] == 75


@pytest.mark.asyncio(loop_scope="session")
async def test_an_image_file_too_large_for_the_link_is_refused_with_its_size(
    foreign_profile: Path, redis_url: str, own_data: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dekag.profile.Profile.largest_file", 900)
    async with running_chain(foreign_profile, redis_url) as chain, serving_chain(chain, redis_url) as client:
        body = {"prompt": "a boat", "seed": 1, "delivery": "conventional", "image_format": "jpeg"}
        answer = await client.post("/v1/images/generations", json=body)
    assert answer.status_code == 422
    said = r"image_format must be .* whose file has at most 900 bytes; got 'jpeg, \d+ bytes'"
    assert re.search(said, answer.json()["detail"])


@BOTH
def test_a_foreign_profile_is_distilled_in_its_own_latents(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    models = load_profile(request.getfixturevalue(kind))
    cloud, edge = (Generator.from_profile(models, role) for role in ("cloud", "edge"))
    latents, side = edge.latents(LONG, 1), FOREIGN.size
    channels = {"foreign_profile": FOREIGN, "other_way_round": OTHER_WAY_ROUND}[kind].edge.latent_channels
    assert latents.shape == (1, channels, side // 8, side // 8)
    config = DistillConfig(images=4, held_out=2, steps=2, batch=2, rank=1, tokens=1)
    prompts = [f"{LONG} {{1|2|3|4|5|6|7|8}}"]
    topic = topic_prompts("glow", prompts=prompts, triggers=["glow"], count=4, held_out=2, seed=0)
    update = distill(cloud, edge, topic, config, tmp_path)
    aligned = AlignedGenerator(edge)
    aligned.add(update)
    assert not torch.equal(aligned.latents(LONG, 1, updates=[update.content_hash]), latents)
    assert torch.equal(aligned.latents("a boat", 1), edge.latents("a boat", 1))
    with Image.open(tmp_path / SAMPLES) as sheet:
        assert sheet.size == (2 * side, 3 * side)


def test_an_update_is_distilled_at_the_profiles_size(profile: Path, tmp_path: Path) -> None:
    models = load_profile(profile)
    cloud, edge = (Generator.from_profile(models, role) for role in ("cloud", "edge"))
    config = DistillConfig(images=4, held_out=2, steps=2, batch=2, rank=1, tokens=1)
    topic = topic_prompts("neon", count=4, held_out=2, seed=0)
    distill(cloud, edge, topic, config, tmp_path)
    with Image.open(tmp_path / SAMPLES) as sheet:
        assert sheet.size == (2 * SIZE, 3 * SIZE)
    drawn = sorted((tmp_path / "images").glob("*.png"))
    assert {Image.open(path).size for path in drawn} == {(SIZE, SIZE)}


def test_a_profiles_own_topic_is_distilled_and_swept_with_its_own_defaults(
    foreign_profile: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    with_evaluators(foreign_profile, mine)
    (mine / "topics").mkdir()
    (mine / "topics" / "glow.yaml").write_text(
        'triggers: [glow, shine]\nprompts: ["a {red|blue|green} {cat|dog|cow} that {glows|shines}"]\n'
        "test_prompts: [a boat with a glow]"
    )
    described = json.loads((mine / "profile.json").read_text())
    defaults = {"images": 4, "steps": 2, "batch": 2, "rank": 1, "tokens": 1, "layers": "attention"}
    own = {"topics": "topics", "distill": defaults, "knowledge": "knowledge"}
    (mine / "profile.json").write_text(json.dumps({**described, **own}))
    models = load_profile(mine)

    spec = distill_request.from_proto(DistillRequest(topic="glow", rank=2), models)
    assert spec.config == {"rank": 2}
    with pytest.raises(NotFoundError, match=r"no topic 'oil' \(there are glow, neon"):
        distill_request.from_proto(DistillRequest(topic="oil"), models)

    runs = ["--runs", str(tmp_path / "runs")]
    done = CliRunner().invoke(app, ["train", "knowledge", "--profile", str(mine), *runs])
    assert done.exit_code == 0, done.output
    update = KnowledgeUpdate.load(mine / "knowledge" / "glow")
    assert update.triggers == ("glow", "shine")
    assert {key: update.history["config"][key] for key in defaults} == defaults

    # with another model or other sampling, nothing of that run is used again
    described = json.loads((mine / "profile.json").read_text())
    cloud = {**described["cloud"], "guidance_scale": 1.5}
    (mine / "profile.json").write_text(json.dumps({**described, "cloud": cloud}))
    again = CliRunner().invoke(app, ["train", "knowledge", "--profile", str(mine), *runs])
    assert again.exit_code == 0, again.output
    assert len(list((tmp_path / "runs" / "knowledge").iterdir())) == 2
    assert KnowledgeUpdate.load(mine / "knowledge" / "glow").content_hash != update.content_hash
    (mine / "profile.json").write_text(json.dumps(described))
    update = KnowledgeUpdate.load(mine / "knowledge" / "glow")

    sweep = {"name": "own", "profile": str(mine), "topics": ["all"], "prompts": 2, "snr_db": [20]}
    grid = Sweep.model_validate(
        {**sweep, "deliveries": [{"name": "all", "codec": "base", "knowledge": True}]}
    )
    assert grid.topics == ["glow"]
    (row,) = run_sweep(grid, runs=tmp_path / "sweeps").rows
    assert row["update_bytes"] == update.size_bytes
    assert row["metrics"]["probe"] == [None, None]
    assert all(0 < value < 60 for value in row["metrics"]["psnr_db"])

    text = "{name: a, deliveries: [unaligned, deka-g], topics: [all], cbr: [1/96], prompts: 2}"
    (tmp_path / "grid.yaml").write_text(text)
    where = {"profile": str(mine), "results": tmp_path / "results", "runs": tmp_path / "sweeps"}
    with pytest.raises(NotFoundError, match="names no adapters"):
        run_overall(sweep=tmp_path / "grid.yaml", **where)
    whole = with_adapters(mine, tmp_path / "whole", adapters(mine / "codec", 1))
    run_overall(sweep=tmp_path / "grid.yaml", **where | {"profile": str(whole)})
    even = json.loads((tmp_path / "results" / "overall" / "break-even.jsonl").read_text())
    assert (even["topic"], even["kind"], even["update_bytes"]) == ("glow", "own", update.size_bytes)


def test_a_generator_without_a_profile_draws_what_its_model_was_made_for(dummy_profile: Path) -> None:
    edge = Generator.load(load_profile(dummy_profile).edge.path, steps=1, guidance_scale=1)
    assert edge.image("a boat", 1).shape == (128, 128, 3)
