"""Every command that runs models in its own process places them where the machine's settings say."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dekag import SemanticLink
from dekag.errors import InvalidInputError
from dekag.evaluation.models import ModelBank
from dekag.generation.images import to_png
from dekag.generation.machine import Machine, TrainingMachine, machine_placement, read
from dekag.generation.models import Generator, LatentDecoder
from dekag.generation.side_information import SideInformation
from dekag.profile import load_profile
from dekag.training import distill
from dekag.training.latent_sets import latents_of_prompts
from services.cli.main import app
from services.cloud.settings import DistillerSettings
from services.common.settings import ServiceSettings
from tests.chain import with_evaluators
from tests.services.command_line import dekag

ABSENT = "cuda:99"


@pytest.fixture(scope="module")
def profile(adapted_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny models with adapters and the shipped evaluators."""
    return with_evaluators(adapted_profile, tmp_path_factory.mktemp("machine") / "profile")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, profile: Path) -> dict[str, str]:
    """What commands read, by name."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "prompts.txt").write_text("a {red|blue} boat\n")
    (folder / "picture.png").write_bytes(to_png(np.zeros((32, 32, 3), np.uint8)))
    grid = {"name": "tiny", "profile": str(profile), "deliveries": ["unaligned"], "prompts": 2, "snr_db": [0]}
    (folder / "grid.yaml").write_text(json.dumps(grid))
    latents = folder / "latents"
    latents_of_prompts(latents, load_profile(profile), ["a {red|blue} boat"], count=32, seed=1, size=64)
    return {
        "LATENTS": str(latents),
        "PROFILE": str(profile), "PROMPTS": str(folder / "prompts.txt"),
        "PICTURE": str(folder / "picture.png"), "GRID": str(folder / "grid.yaml"),
    }  # fmt: skip


def run(words: str, files: dict[str, str]) -> Any:
    return CliRunner().invoke(app, [files.get(word, word) for word in words.split()])


TRAININGS = ("vae", "decoder", "edge", "cloud", "probe", "outline", "encoders", "codec", "cala")
COMMANDS = [
    *(f"train {name} --out out" for name in TRAININGS),
    "train latents --profile PROFILE --prompts PROMPTS --count 32 --out out",
    "train knowledge --profile PROFILE --topic neon --images 4 --steps 2 --out out",
    "link PICTURE --profile PROFILE --output out",
    "sweep GRID",
    "experiment first-image --profile PROFILE --only codec --count 8",
    "experiment naming --profile PROFILE",
    "experiment gka --profile PROFILE --workers 1 --prompts 4",
    "experiment tka --profile PROFILE --workers 1",
    "experiment digital --profile PROFILE",
    "experiment photos --profile PROFILE --folder PICTURE --workers 1",
    "train restoration --profile PROFILE --latents LATENTS",
]


@pytest.mark.parametrize("words", COMMANDS)
def test_no_command_computes_elsewhere_without_a_word(
    words: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEKAG_DEVICE", ABSENT)
    done = run(words, files)
    assert done.exit_code, done.output
    said = " ".join(done.output.split())
    assert f"DEKAG_DEVICE must be a device of this machine (cpu); got '{ABSENT}'" in said, done.output


@pytest.mark.parametrize(
    "words",
    [
        "link PICTURE --profile PROFILE --output out --json",
        "sweep GRID --results out --json",
        "doctor --json",
    ],
)
@pytest.mark.asyncio
async def test_output_that_programs_read_holds_no_log(
    words: str, files: dict[str, str], tmp_path: Path
) -> None:
    settings = {"DEKAG_DEVICE": "auto", "DEKAG_PROFILE": files["PROFILE"]}
    done = await dekag(*(files.get(word, word) for word in words.split()), folder=tmp_path, env=settings)
    assert "device chosen" in done.stderr, done
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done


def test_the_device_of_an_option_replaces_that_of_the_settings(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEKAG_DEVICE", ABSENT)
    latents = "train latents --profile PROFILE --prompts PROMPTS --count 32 --size 64 --out out"
    done = run(f"{latents} --device cpu", files)
    assert done.exit_code == 0, done.output
    monkeypatch.delenv("DEKAG_DEVICE")
    for device, allowed in (
        ("tpu", "auto, cpu, cuda, cuda:N or mps"),
        (ABSENT, "a device of this machine (cpu)"),
    ):
        for words in (latents, *(f"train {name} --out out" for name in ("vae", "edge", "probe", "cala"))):
            done = run(f"{words} --device {device}", files)
            assert done.exit_code == 2
            said = " ".join(done.output.replace("│", " ").split())
            assert f"Invalid value for --device: must be {allowed}; got '{device}'" in said, done.output


def test_the_library_and_the_services_read_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for environment in (
        {},
        {"DEKAG_TEXT_DEVICE": "cpu", "dekag_vae_dtype": "bfloat16", "DEKAG_KEEP_TEXT_ENCODER": "no"},
        {"DEKAG_DEVICE": " ", "DEKAG_OFFLOAD": "false", "DEKAG_GRADIENT_CHECKPOINTING": "1"},
    ):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            services, machine = DistillerSettings.read(), read(Machine)
            assert {name: getattr(services, name) for name in Machine.model_fields} == machine.model_dump()
            training = read(TrainingMachine).model_dump()
            assert {name: getattr(services, name) for name in TrainingMachine.model_fields} == training
            assert machine_placement() == services.placement()
            kept = services.placement(keep_text_encoder=services.keep_text_encoder)
            assert machine_placement("cloud") == kept


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DEKAG_DEVICE", "tpu", "auto, cpu, cuda, cuda:N or mps"),
        ("DEKAG_TEXT_DEVICE", ABSENT, "a device of this machine"),
        ("DEKAG_OFFLOAD", "true", "used with a CUDA device"),
        ("DEKAG_OFFLOAD", "perhaps", "true or false"),
        ("DEKAG_VAE_DTYPE", "float16", "float32 or bfloat16"),
    ],
)
def test_an_invalid_setting_is_named_with_what_it_may_be(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInputError) as caught:
        machine_placement()
    assert caught.value.field == name
    assert said in caught.value.allowed
    monkeypatch.setenv("DEKAG_DISTILL_MICRO_BATCH", "-1")
    with pytest.raises(InvalidInputError, match=r"DEKAG_DISTILL_MICRO_BATCH must be between 0 and 1024"):
        read(TrainingMachine)


def test_a_model_that_is_trained_is_not_offloaded(profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEKAG_OFFLOAD", "true")
    assert not machine_placement(trained=True).offload
    bank = ModelBank(str(profile))
    assert bank.edge.device.type == "cpu"
    with pytest.raises(InvalidInputError, match="DEKAG_OFFLOAD must be used with a CUDA device"):
        _ = bank.cloud


def test_models_are_loaded_as_the_settings_say(profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEKAG_VAE_DTYPE", "bfloat16")
    monkeypatch.setenv("DEKAG_KEEP_TEXT_ENCODER", "false")
    models, bank = load_profile(profile), ModelBank(str(profile))
    for generator in (
        bank.edge,
        Generator.from_profile(models, "edge"),
        SemanticLink.load(profile).generator,
    ):
        assert generator.formats == ("autoencoder bfloat16",)
        assert generator.decoder.vae.dtype == torch.bfloat16
        assert generator.pipeline.text_encoder is not None
    assert LatentDecoder.load(models.edge).vae.dtype == torch.bfloat16
    assert bank.cloud.pipeline.text_encoder is None
    assert bank.autoencoder.dtype == torch.float32
    monkeypatch.setenv("DEKAG_DEVICE", ABSENT)
    for load in (
        lambda: SideInformation.load(models.edge),
        lambda: ModelBank(str(profile)).autoencoder,
        lambda: SemanticLink.load(profile),
    ):
        with pytest.raises(InvalidInputError, match="DEKAG_DEVICE"):
            load()
    assert SemanticLink.load(profile, placed=ServiceSettings(device="cpu").placement()).generator


def test_knowledge_is_trained_with_the_settings_and_one_generator_at_a_time(
    dummy_profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loaded, held = Generator.from_profile, [], []

    def watched(profile: Any, role: Any, placed: Any = None) -> Any:
        gc.collect()
        held.append(sum(each() is not None for each in loaded))
        generator = load(profile, role, placed)
        loaded.append(weakref.ref(generator))
        return generator

    trained, ways = distill.distill, []

    def noted(*args: Any, micro_batch: int | None, gradient_checkpointing: bool, **others: Any) -> Any:
        ways.append((micro_batch, gradient_checkpointing))
        return trained(*args, micro_batch=micro_batch, **others)

    monkeypatch.setattr(Generator, "from_profile", watched)
    monkeypatch.setattr(distill, "distill", noted)
    monkeypatch.setenv("DEKAG_GRADIENT_CHECKPOINTING", "true")
    monkeypatch.setenv("DEKAG_DISTILL_MICRO_BATCH", "1")
    monkeypatch.setenv("DEKAG_VAE_DTYPE", "bfloat16")
    words = "train knowledge --profile PROFILE --topic neon --topic snail --images 4 --steps 2"
    places = {"PROFILE": dummy_profile, "OUT": tmp_path / "out", "RUNS": tmp_path / "runs"}
    done = run(f"{words} --out OUT --runs RUNS", {name: str(place) for name, place in places.items()})
    assert done.exit_code == 0, done.output
    assert held == [0, 0]
    assert ways == [(1, True)] * 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["neon", "snail"]
    again = run(f"{words} --out OUT --runs RUNS", {name: str(place) for name, place in places.items()})
    assert again.exit_code == 0, again.output
    assert len(held) == 3, "the edge alone: the cloud's images are kept"
