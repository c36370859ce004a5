"""Golden values: the shipped models compute what they did where they were measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dekag.errors import MismatchError
from dekag.generation.models import Generator
from dekag.generation.profile import Role
from dekag.golden import FILE, TOLERANCE, compare, write
from dekag.profile import Profile, load_profile, profile_folder

BATCH_TOLERANCE = 1e-4  # of the latents' spread


@pytest.fixture(scope="module")
def tiny(dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Profile, Path]:
    """A profile of tiny models and a folder with their golden values."""
    profile, folder = load_profile(dummy_profile), tmp_path_factory.mktemp("golden")
    write(profile, folder)
    return profile, folder


def altered(folder: Path, place: Path, change: Any) -> Path:
    """A copy in `place` of the golden values in `folder`, each model's changed by `change`."""
    kept = json.loads((folder / FILE).read_text())
    for each in kept["models"].values():
        change(each)
    (place / FILE).write_text(json.dumps(kept))
    return place


def test_shipped_models_reproduce_their_golden_values() -> None:
    folder = profile_folder("stickers")
    found = list(compare(load_profile("stickers"), folder))
    assert [each for each in found if not each.ok] == []
    models = {each.model for each in found}
    assert models >= {"cloud", "edge", "autoencoder", "codec", "unaligned codec", "adapters", "clip", "dino"}
    assert "knowledge neon" in models
    # and none is kept of a model that ships no more
    assert set(json.loads((folder / FILE).read_text())["models"]) == {each.model_hash for each in found}


def test_what_a_model_computes_is_told_from_what_it_should(
    tiny: tuple[Profile, Path], tmp_path: Path
) -> None:
    profile, folder = tiny

    def shift(fraction: float) -> Any:
        return lambda each: each["values"].__setitem__(3, each["values"][3] + fraction * each["spread"])

    assert all(each.ok for each in compare(profile, folder))
    assert all(each.ok for each in compare(profile, altered(folder, tmp_path, shift(TOLERANCE / 10))))
    wrong = list(compare(profile, altered(folder, tmp_path, shift(-2 * TOLERANCE))))
    assert not any(each.ok for each in wrong)
    assert all(each.relative_difference == pytest.approx(2 * TOLERANCE, rel=0.05) for each in wrong)


def test_another_models_golden_values_are_not_this_ones(tiny: tuple[Profile, Path], tmp_path: Path) -> None:
    profile, folder = tiny
    kept = json.loads((folder / FILE).read_text())
    kept["models"] = {key[::-1]: each for key, each in kept["models"].items()}
    (tmp_path / FILE).write_text(json.dumps(kept))
    assert {each.relative_difference for each in compare(profile, tmp_path)} == {None}


@pytest.mark.parametrize(
    "text", ["", "[]", '{"models": {"a": {}}}', '{"models": {"a": {"spread": 1, "values": "x"}}}']
)
def test_unreadable_golden_values_are_called_so(
    tiny: tuple[Profile, Path], tmp_path: Path, text: str
) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(MismatchError, match="golden values"):
        list(compare(tiny[0], tmp_path))


@pytest.mark.parametrize("place", ["edge", "cloud"])
def test_the_shipped_generators_draw_nearly_the_same_in_a_batch(place: Role) -> None:
    generator = Generator.from_profile(load_profile("stickers"), place)
    prompts = ["a red boat on the beach, pastel style", "a blue owl in the forest, ink style", "a cat"]
    size = {"width": 64, "height": 64}
    alone = torch.cat([generator.latents(prompt, seed, **size) for seed, prompt in enumerate(prompts)])
    together = generator.batch(prompts, range(3), **size)
    assert float((together - alone).abs().max() / alone.std()) < BATCH_TOLERANCE
