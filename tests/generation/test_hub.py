"""Models by their name on a hub: from the local cache, known by their commit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor

from dekag.errors import NotFoundError
from dekag.generation.loading import folder_hash, pipeline_hash
from dekag.generation.models import Generator, LatentDecoder
from dekag.generation.profile import GeneratorProfile
from dekag.metrics.features import ImageScorer
from dekag.profile import load_profile
from tests.encoders import tiny_encoders
from tests.hub import TOKEN, running_hub
from tests.services.command_line import environment

NAME = "somebody/tiny"


def named(path: str, **more: Any) -> GeneratorProfile:
    """A generator of that name."""
    return GeneratorProfile(path=path, steps=1, guidance_scale=1, **more)


COMMITS = ("1" * 40, "2" * 40)

UPLOAD = """
import sys
from huggingface_hub import upload_folder, create_repo
from dekag.codec import JsccCodec
codec = JsccCodec.from_pretrained(sys.argv[1] + "/codec")
codec.push_to_hub("lab/codec")
back = JsccCodec.from_pretrained("lab/codec")
for name, value in codec.state_dict().items():
    assert (back.state_dict()[name] == value).all(), name
create_repo("lab/edge", exist_ok=True)
upload_folder(repo_id="lab/edge", folder_path=sys.argv[1] + "/edge")
"""


def test_models_are_pushed_and_loaded_by_name(dummy_profile: Path, tmp_path: Path) -> None:
    models: dict[str, Path] = {}
    with running_hub(models) as (address, _):
        there = {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", UPLOAD, str(dummy_profile)]
        done = subprocess.run(
            command,
            env={**environment(), **there, "HF_TOKEN": TOKEN},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    assert sorted(models) == ["lab/codec", "lab/edge"]
    for name in ("unet/diffusion_pytorch_model.safetensors", "model_index.json"):
        assert (models["lab/edge"] / name).read_bytes() == (dummy_profile / "edge" / name).read_bytes()
    for folder in models.values():
        shutil.rmtree(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, which cannot be reached."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.HF_HUB_OFFLINE", True, raising=False)
    return tmp_path


def put(hub: Path, commit: str, folder: str) -> None:
    """Make `commit` the main branch of the model, with the files of `folder`."""
    home = hub / ("models--" + NAME.replace("/", "--"))
    shutil.copytree(folder, home / "snapshots" / commit)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / "main").write_text(commit)


def test_a_models_hash_changes_with_its_commit(hub: Path, dummy_profile: Path) -> None:
    edge = load_profile(dummy_profile).edge.path
    hashes = []
    for commit in COMMITS:
        put(hub, commit, edge)
        hashes.append(folder_hash(NAME))
    assert len({*hashes, folder_hash(edge)}) == 3


def test_edge_and_user_load_the_same_model_from_the_cache(hub: Path, dummy_profile: Path) -> None:
    edge = load_profile(dummy_profile).edge.path
    put(hub, COMMITS[0], edge)
    mine, user = Generator.load(NAME, steps=1, guidance_scale=1), LatentDecoder.load(named(NAME))
    theirs = Generator.load(edge, steps=1, guidance_scale=1)
    latents = mine.latents("a boat", 1)
    assert torch.equal(latents, theirs.latents("a boat", 1))
    assert (user.decode(latents) == theirs.decoder.decode(latents)).all()
    assert user.model_hash == mine.decoder.model_hash


def test_a_revision_selects_the_commit(hub: Path, dummy_profile: Path) -> None:
    edge = load_profile(dummy_profile).edge.path
    for commit in COMMITS:
        put(hub, commit, edge)  # the last is the main branch
    first, main = (pipeline_hash(named(NAME, revision=each)) for each in (COMMITS[0], None))
    assert first != main
    assert main == pipeline_hash(named(NAME, revision=COMMITS[1]))
    with pytest.raises(NotFoundError, match="no model 'somebody/tiny', revision 'v9'"):
        pipeline_hash(named(NAME, revision="v9"))


def test_encoders_are_loaded_at_their_revision(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    processor = CLIPImageProcessor(size=64, crop_size=64)
    for commit in COMMITS:
        clip, dino = tiny_encoders()
        clip.save_pretrained(folder := tmp_path_factory.mktemp("clip"))
        processor.save_pretrained(folder)
        put(hub, commit, str(folder))
    own = tmp_path_factory.mktemp("dino")
    dino.save_pretrained(own)
    (own / "training.json").write_text("{}")
    first, main = (ImageScorer.load(NAME, own, clip_revision=each) for each in (COMMITS[0], None))
    assert first.model_hash != main.model_hash
    assert main.model_hash == ImageScorer.load(NAME, own, clip_revision=COMMITS[1]).model_hash
    assert main.clip_pixels(np.zeros((1, 256, 256, 3), np.uint8)).shape == (1, 3, 64, 64)
    with pytest.raises(NotFoundError, match="no model 'somebody/tiny', revision 'v9'"):
        ImageScorer.load(NAME, own, clip_revision="v9")


@pytest.mark.parametrize("name", [NAME, "nothing", "/nowhere/at/all", "../up", "a/b/c"])
def test_what_is_neither_a_folder_nor_in_the_cache_is_named(hub: Path, name: str) -> None:
    with pytest.raises(NotFoundError, match=f"no model '{name}': it is neither a folder nor in the cache"):
        folder_hash(name)


def test_notes_beside_weights_do_not_make_another_model(tmp_path: Path, dummy_profile: Path) -> None:
    edge = shutil.copytree(load_profile(dummy_profile).edge.path, tmp_path / "edge")
    before = folder_hash(edge)
    (edge / "README.txt").write_text("mine")
    (edge / "notes.md").write_text("mine")
    assert folder_hash(edge) == before
    merges = edge / "tokenizer" / "merges.txt"
    merges.write_text("#version: 0.2\na b\n")
    assert folder_hash(edge) != before
