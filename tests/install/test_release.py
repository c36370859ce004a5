"""Hashed requirements follow the pins, and a release names what it consists of."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import hash_requirements  # noqa: E402
import release  # noqa: E402
from requirements import requirements  # noqa: E402

from tests.install.test_wheel import closure  # noqa: E402

sys.path.pop(0)


def test_hashed_requirements_are_the_pins_with_hashes() -> None:
    text = hash_requirements.HASHED.read_text()
    hashed = hash_requirements.pins(text)
    pinned = hash_requirements.pins((ROOT / "constraints.txt").read_text())
    others = {name: version for name, version in hashed.items() if pinned.get(name, version) != version}
    assert not others, "run `make constraints`"
    named = {canonicalize_name(Requirement(line).name) for line in requirements(["all"])}
    assert named - {"torch"} <= hashed.keys(), "run `make constraints`"
    for entry in re.split(r"\n(?=[a-z0-9])", text)[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
    assert "://" not in text
    assert "--index" not in text


def entries(text: str) -> dict[str, set[str]]:
    """The hashes of each package in a file of hashed requirements."""
    found = re.findall(r"^([a-z0-9][^=\n]*)==(.*(?:\n +--hash.*)+)", text, re.MULTILINE)
    return {canonicalize_name(name): set(re.findall(r"sha256:[0-9a-f]{64}", entry)) for name, entry in found}


def test_the_image_installs_only_packages_with_hashes() -> None:
    image = entries(hash_requirements.HASHED_IN_IMAGE.read_text())
    everything = entries(hash_requirements.HASHED.read_text())
    assert all(image.values())
    assert {name: everything.get(name) for name in image} == image, "run `make constraints`"
    assert closure(requirements(["services"])) - image.keys() <= {"torch", *closure_of_pytorch_alone()}
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
    hashed, pytorch = re.findall(r"pip install ([^&]+)", dockerfile)
    assert {"--no-deps", "--require-hashes", "/build/requirements-hashed.txt"} <= set(hashed.split())
    assert pytorch.split()[-1] == "torch"
    assert "-r" not in pytorch.split()


def closure_of_pytorch_alone() -> set[str]:
    """What only PyTorch needs: CUDA's packages, of which each index has its own."""
    return {name for name in closure(["torch"]) if hash_requirements.without_pytorch(f"{name}==1") == ""}


def test_pytorch_is_left_out_and_the_others_are_kept_whole() -> None:
    text = (
        "torch==1 \\\n    --hash=sha256:0\ntorchmetrics==2 \\\n    --hash=sha256:1 \\\n    --hash=sha256:2\n"
        "nvidia-x==3 ; sys_platform == 'linux' \\\n    --hash=sha256:3\n"
    )
    kept = "torchmetrics==2 \\\n    --hash=sha256:1 \\\n    --hash=sha256:2\n"
    assert hash_requirements.without_pytorch(text) == kept
    assert hash_requirements.pins(text) == {"torch": "1", "torchmetrics": "2", "nvidia-x": "3"}


def test_the_bill_of_materials_names_packages_models_and_artwork_with_licences() -> None:
    text, components = release.bill("0.1.0")
    listed = {each["name"]: each for each in json.loads(text)["components"]}
    assert (
        listed["torch"]["version"] == hash_requirements.pins((ROOT / "constraints.txt").read_text())["torch"]
    )
    assert listed["grpcio"]["hashes"]
    assert all(each["licenses"] for each in listed.values())
    assert listed["models of the profile stickers"]["type"] == "machine-learning-model"
    assert listed["@lobehub/fluent-emoji-3d"]["licenses"] == [{"license": {"id": "MIT"}}]
    table = release.licences("0.1.0", components)
    assert "| pillow-jxl-plugin | 1.3.8 | GPL-3.0-or-later |" in table or "pillow-jxl-plugin" in table
    assert len(table.splitlines()) == len(listed) + 7


def test_a_package_without_a_licence_stops_the_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "nameless-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nameless\nVersion: 1.0\nLicense: UNKNOWN\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(release.ReleaseError, match="nameless declares no licence"):
        release.licence_of("nameless")


def test_a_package_in_another_version_than_its_pin_stops_the_release() -> None:
    with pytest.raises(release.ReleaseError, match=r"packaging .* is installed, and 0\.1 is pinned"):
        release._package("packaging", "0.1", [])
