"""`dekag demo` teaches the edge what the prompt needs, from the updates that ship with the profile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.cli.demo import updates_for


def test_the_updates_that_a_prompt_needs_are_found_by_their_triggers(
    tmp_path: Path, dummy_profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = json.loads((dummy_profile / "profile.json").read_text())
    described |= {"knowledge": str(tmp_path / "knowledge")}
    for role in ("cloud", "edge"):
        described[role]["path"] = str(dummy_profile / described[role]["path"])
    (tmp_path / "profile.json").write_text(json.dumps({**described, "codec": str(dummy_profile / "codec")}))
    for topic, triggers in {"neon": ["neon", "neon lights"], "jewels": ["ruby", "topaz"]}.items():
        (tmp_path / "knowledge" / topic).mkdir(parents=True)
        (tmp_path / "knowledge" / topic / "knowledge.json").write_text(json.dumps({"triggers": triggers}))
    monkeypatch.setenv("DEKAG_PROFILE", str(tmp_path))
    assert [path.name for path in updates_for("a ruby car, neon style")] == ["jewels", "neon"]
    assert updates_for("a red car") == []
    monkeypatch.setenv("DEKAG_PROFILE", str(dummy_profile))
    assert updates_for("a ruby car, neon style") == []  # this profile has no updates
