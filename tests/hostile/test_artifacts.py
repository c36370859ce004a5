"""Knowledge of both kinds with anything done to its files: refused as damaged, or of use."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dekag.artifacts import Artifact
from dekag.cala.aligned_codec import AlignedCodec
from dekag.cala.artifact import TransmissionKnowledge
from dekag.codec import JsccCodec
from dekag.errors import InvalidInputError, MismatchError, NumericalError
from dekag.generation.images import IMAGE_FORMATS, from_bytes, to_format, to_png
from dekag.generation.loading import folder_hash
from dekag.generation.models import Generator
from dekag.generation.request import GenerationRequest
from dekag.makd.aligned_generator import AlignedGenerator
from dekag.makd.update import KnowledgeUpdate
from dekag.profile import load_profile
from tests.hostile.artifacts import broken, other_bytes, tiny_adapters, tiny_update
from tests.hostile.budgets import examples
from tests.hostile.tally import Tally

ROOT = Path(__file__).parents[2]
RUNS, SECONDS = 20_000, 120  # of atheris, whichever is over first


@pytest.fixture(scope="module")
def use(profile: Path) -> Callable[[Artifact], None]:
    """Does with an artifact what an edge does with it."""
    edge = AlignedGenerator(Generator.from_profile(load_profile(profile), "edge"))
    codec, base_hash = JsccCodec.load(profile / "codec"), folder_hash(profile / "codec")

    def draw(update: KnowledgeUpdate) -> None:
        edge.add(update)
        try:
            edge.batch([GenerationRequest("a neon glow", 1, 64, 64, (update.content_hash,))])
        finally:
            edge.remove(update.content_hash)

    def send(knowledge: TransmissionKnowledge) -> None:
        aligned = AlignedCodec(codec, base_hash, knowledge)
        condition = torch.zeros(1, 27)
        aligned.decode(aligned.encode(torch.ones(1, 4, 8, 8), [100], condition), (4, 8, 8), condition)

    def use(artifact: Artifact) -> None:
        if isinstance(artifact, KnowledgeUpdate):
            draw(artifact)
        elif isinstance(artifact, TransmissionKnowledge):
            send(artifact)

    return use


@pytest.fixture(scope="module")
def artifacts(profile: Path) -> Mapping[str, Artifact]:
    return {
        "update": tiny_update(profile),
        "compact update": tiny_update(profile, bits=4),
        "adapters": tiny_adapters(profile / "codec"),
    }


@pytest.mark.parametrize("kind", ["update", "compact update", "adapters"])
@examples(quick=10, thorough=700)
@given(data=st.data())
def test_broken_files_are_refused_or_of_use(
    artifacts: Mapping[str, Artifact],
    use: Callable[[Any], None],
    tally: Tally,
    kind: str,
    data: st.DataObject,
) -> None:
    reader = type(artifacts[kind])
    files = data.draw(broken(artifacts[kind].to_files(), reader.parts))
    try:
        found = reader.from_files(files)
    except MismatchError:
        tally.note(f"artifact: {kind}", "refused when read")
        return
    try:
        use(found)
    except (MismatchError, NumericalError) as error:
        tally.note(f"artifact: {kind}", f"{type(error).__name__} when used")
        return
    tally.note(f"artifact: {kind}", "used")


@examples(quick=30, thorough=500)
@given(data=st.data())
def test_broken_pictures_are_refused_or_read(tally: Tally, data: st.DataObject) -> None:
    pixels = torch.arange(64 * 64 * 3).view(64, 64, 3).remainder(251).to(torch.uint8).numpy()
    kind = data.draw(st.sampled_from(["png", *IMAGE_FORMATS]))
    whole = to_png(pixels) if kind == "png" else to_format(pixels, kind)
    try:
        found = from_bytes(data.draw(other_bytes(whole)), max_side=256)
    except InvalidInputError:
        tally.note("pictures", "refused")
        return
    tally.note("pictures", "read")
    assert max(found.shape[:2]) <= 256


@pytest.mark.fuzz
def test_atheris_finds_nothing(artifacts: Mapping[str, Artifact], tally: Tally, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this machine")
    for kind, artifact in artifacts.items():
        artifact.save(tmp_path / "artifacts" / kind.replace(" ", "-"))
    (tmp_path / "corpus").mkdir()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.hostile.atheris_artifacts",
            tmp_path / "artifacts",
            f"-runs={RUNS}",
            f"-max_total_time={SECONDS}",
            "-max_len=4096",
            "-timeout=30",
            f"-artifact_prefix={tmp_path}/",
            tmp_path / "corpus",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS + 300,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs is not None, done.stderr[-3000:]
    tally.note("artifacts, by atheris", "refused or read", int(runs[1]))
