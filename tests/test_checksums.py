"""Hashes of a profile's files: one flipped bit is found before a model is loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dekag.checksums import GOLDEN, check_files, checksums
from dekag.errors import FileError, MismatchError
from dekag.pipeline import SemanticLink
from dekag.profile import load_profile, profile_folder
from services.cli import doctor

SHIPPED = profile_folder("stickers")


@pytest.fixture
def profile(dummy_profile: Path, tmp_path: Path) -> Path:
    """A copy of the tiny profile, with hashes."""
    folder = shutil.copytree(dummy_profile, tmp_path / "mine")
    (folder / GOLDEN).write_text(json.dumps({"models": {}, "files": checksums(folder)}))
    return folder


def flip_bit(folder: Path, part: str) -> Path:
    """Flips one bit of the weights of a part; they still load."""
    weights = min((folder / part).rglob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-8] ^= 1
    weights.write_bytes(data)
    return weights


def test_every_shipped_model_is_hashed() -> None:
    stored = json.loads((SHIPPED / GOLDEN).read_text())["files"]
    assert stored == checksums(SHIPPED)
    assert check_files(SHIPPED) == len(stored)
    assert {each.parent.relative_to(SHIPPED).as_posix() for each in SHIPPED.rglob("*.safetensors")} == {
        Path(name).parent.as_posix() for name in stored if name.endswith(".safetensors")
    }


@pytest.mark.parametrize("part", ["cloud", "edge", "codec"])
def test_one_flipped_bit_is_found_by_library_and_doctor(
    profile: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEKAG_PROFILE", str(profile))
    assert doctor.models().ok
    weights = flip_bit(profile, part)
    name = weights.relative_to(profile).as_posix()
    with pytest.raises(MismatchError, match=name):
        SemanticLink.load(profile)
    found = doctor.models()
    assert not found.ok
    assert name in found.detail
    assert load_profile(profile).size  # without the check, for those who are changing it


@pytest.mark.parametrize("service", ["user", "edge", "cloud", "cloud.distiller"])
def test_no_service_starts_with_a_damaged_model(profile: Path, tmp_path: Path, service: str) -> None:
    flip_bit(profile, "codec")
    done = subprocess.run(
        [sys.executable, "-m", f"services.{service}"],
        env={
            **os.environ,
            "DEKAG_PROFILE": str(profile),
            "DEKAG_DATA_DIR": str(tmp_path / "data"),
            "DEKAG_REDIS_URL": "redis://127.0.0.1:1/0",
            "DEKAG_PORT": "0",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    last = json.loads(done.stderr.splitlines()[-1])
    assert "codec/" in last["event"]
    assert "damaged or missing" in last["event"]
    assert "Traceback" not in done.stderr


def test_many_damaged_or_missing_files_are_counted(profile: Path) -> None:
    shutil.rmtree(profile / "edge")
    with pytest.raises(MismatchError, match=r"edge/.* and \d+ more\. Restore them"):
        check_files(profile)


def test_a_profile_without_hashes_is_not_checked(profile: Path) -> None:
    flip_bit(profile, "codec")
    (profile / GOLDEN).write_text(json.dumps({"models": {}}))
    assert check_files(profile) == 0
    (profile / GOLDEN).unlink()
    assert check_files(profile) == 0


def test_hashes_that_are_none_are_called_so(profile: Path) -> None:
    (profile / GOLDEN).write_text(json.dumps({"files": [1]}))
    with pytest.raises(FileError, match="`files` must hold"):
        check_files(profile)
