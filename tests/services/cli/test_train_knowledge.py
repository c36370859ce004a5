"""`dekag train knowledge`, where it makes an update again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dekag.makd.update import KnowledgeUpdate
from services.cli.main import app


@pytest.fixture(scope="module")
def trained(dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an update that was trained with other settings than the profile's."""
    folder = tmp_path_factory.mktemp("trained")
    train(dummy_profile, folder, "--images", "4", "--steps", "2", "--seed", "5")
    return folder / "neon"


def train(profile: Path, folder: Path, *more: str) -> str:
    """Train the topic neon into a folder; returns what is said, or fails with it."""
    words = ["train", "knowledge", "--topic", "neon", "--profile", str(profile), "--out", str(folder)]
    done = CliRunner().invoke(app, [*words, "--runs", str(folder / "runs"), *more])
    told = f"{done.output}{done.exception or ''}"
    assert done.exit_code == 0, told
    return told


def test_an_update_is_made_again_with_its_own_settings(
    dummy_profile: Path, trained: Path, tmp_path: Path
) -> None:
    train(dummy_profile, tmp_path, "--settings-of", str(trained))
    first, again = KnowledgeUpdate.load(trained), KnowledgeUpdate.load(tmp_path / "neon")
    assert (first.history["config"]["images"], first.history["config"]["seed"]) == (4, 5)
    assert again.history["config"] == first.history["config"]
    assert again.content_hash == first.content_hash


def test_options_replace_settings_of_an_update(dummy_profile: Path, trained: Path, tmp_path: Path) -> None:
    train(dummy_profile, tmp_path, "--settings-of", str(trained), "--seed", "6")
    config = KnowledgeUpdate.load(tmp_path / "neon").history["config"]
    assert (config["images"], config["steps"], config["seed"]) == (4, 2, 6)


@pytest.mark.parametrize("history", [{}, {"config": {"steps": 2, "colour": 1}}])
def test_an_update_without_usable_settings_is_refused(
    dummy_profile: Path, trained: Path, tmp_path: Path, history: dict[str, object]
) -> None:
    update = KnowledgeUpdate.load(trained)
    update.history = history
    update.save(tmp_path / "neon")
    with pytest.raises(AssertionError) as failed:
        train(dummy_profile, tmp_path / "out", "--settings-of", str(tmp_path / "neon"))
    told = re.sub(r"[\s│]+", " ", str(failed.value))
    assert "--settings-of" in told
    assert ("does not know: colour" if history else "no history.json") in told
    assert not (tmp_path / "out").exists()
