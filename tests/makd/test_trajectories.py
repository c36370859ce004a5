"""Learning from how the cloud denoised its images: what is kept, what is learnt, and whom it fits."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from typer.testing import CliRunner

from dekag.errors import InvalidInputError, MismatchError, NumericalError
from dekag.generation.models import Generator
from dekag.generation.trajectories import (
    Step,
    Trajectories,
    TrajectoryFile,
    check_generators,
    check_teachable,
    of_steps,
)
from dekag.inventory import parts, problems
from dekag.makd.config import DistillConfig
from dekag.profile import DistillProfile, load_profile
from dekag.training.diffusion import NOISE_SCHEDULE
from dekag.training.diffusion_loss import DiffusionLoss
from dekag.training.distill import Progress, Stopped, cloud_images, distill, seeds_for
from dekag.training.targets import TrajectoryTargets, trajectory_targets
from services.cli.main import app
from tests.makd.conftest import TINY, Distilled, prompts_of

LEARNING = dataclasses.replace(TINY, objective="trajectories", guidance_scale=1.0)
PROMPTS, SEEDS = ["a red boat", "a cat " * 60, "a boat"], [3, 4, 5]


@pytest.fixture
def teacher(dummy_profile: Path) -> Generator:
    """A tiny cloud of the test's own, which may get another sampler."""
    return Generator.from_profile(load_profile(dummy_profile), "cloud")


def noisy(kept: Trajectories) -> torch.Tensor:
    signal = kept.signal.view(1, -1, 1, 1, 1)
    return signal.sqrt() * kept.clean.float() + (1 - signal).sqrt() * kept.noise.float()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "kind", [DPMSolverMultistepScheduler, UniPCMultistepScheduler, PNDMScheduler, DDIMScheduler]
)
def test_a_trajectory_is_what_the_denoiser_read(dummy_profile: Path, kind: type, dtype: str) -> None:
    profile = load_profile(dummy_profile)
    model = profile.cloud.model_copy(update={"dtype": dtype})
    teacher = Generator.from_profile(profile.model_copy(update={"cloud": model}), "cloud")
    own = {DDIMScheduler: {"clip_sample": False}, PNDMScheduler: {"skip_prk_steps": True}}.get(kind, {})
    teacher.pipeline.scheduler = kind.from_config(teacher.pipeline.scheduler.config, **own)
    read: list[torch.Tensor] = []
    hook = teacher._denoiser.register_forward_pre_hook(
        lambda _, args, named: read.append(args[0] if args else named["hidden_states"]), with_kwargs=True
    )
    latents, kept = teacher.denoised(PROMPTS[:1], SEEDS[:1])
    hook.remove()
    assert torch.equal(latents, teacher.batch(PROMPTS[:1], SEEDS[:1]))
    assert kept.clean.shape == kept.noise.shape == (1, len(read), *latents.shape[1:])
    expected = torch.stack([each[:1].float() for each in read], 1)  # the first row has no prompt
    tolerance = 1e-2 if dtype == "float32" else 5e-2
    torch.testing.assert_close(noisy(kept), expected, rtol=tolerance, atol=tolerance)
    if kind is not PNDMScheduler:  # which does not end with what the denoiser predicts
        torch.testing.assert_close(kept.clean[:, -1].float(), latents, rtol=tolerance, atol=tolerance)
    assert kept.autoencoder == teacher.decoder.model_hash
    assert "step" not in vars(teacher.pipeline.scheduler)


def test_prompts_of_different_length_keep_their_order(teacher: Generator) -> None:
    latents, kept = teacher.denoised(PROMPTS, SEEDS)
    assert torch.equal(latents, teacher.batch(PROMPTS, SEEDS))
    torch.testing.assert_close(kept.clean[:, -1].float(), latents, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("predicts", ["v_prediction", "epsilon"])
def test_the_loss_of_a_trajectory_is_the_distance_to_what_the_cloud_predicted(predicts: str) -> None:
    scheduler = DDIMScheduler(**NOISE_SCHEDULE | {"prediction_type": predicts})
    read, said = torch.randn(2, 1, 4, 8, 8).unbind(0), torch.randn(1, 4, 8, 8)
    kept = of_steps([Step(601, read[0], said)], scheduler, "vae")
    loss, targets = DiffusionLoss(scheduler), TrajectoryTargets(kept)
    ((clean, noise, timesteps),) = targets.checked(loss, 0)
    asked: list[torch.Tensor] = []

    def denoise(latents: torch.Tensor) -> torch.Tensor:
        asked.append(latents)
        return said

    assert float(loss(clean, noise, timesteps, denoise)) < 1e-4
    torch.testing.assert_close(asked[0], read[0], rtol=1e-2, atol=1e-2)
    assert float(loss(clean, noise, timesteps, lambda latents: said + 1)) > 0.1


def test_samples_are_steps_of_the_images_asked_for(teacher: Generator) -> None:
    _, kept = teacher.denoised(PROMPTS, SEEDS)
    targets = TrajectoryTargets(kept)
    which, generator = torch.tensor([2, 0, 2, 2]), torch.Generator().manual_seed(0)
    clean, noise, timesteps = targets.drawn(which, DiffusionLoss(teacher.pipeline.scheduler), generator)
    for row, image in enumerate(which.tolist()):
        step = kept.timesteps.tolist().index(int(timesteps[row]))
        assert torch.equal(clean[row], kept.clean[image, step].float())
        assert torch.equal(noise[row], kept.noise[image, step].float())
    assert len(targets.rows(slice(1))) == 1


def test_an_edge_learns_from_trajectories_and_resumes(
    teacher: Generator, edge: Generator, neon: Distilled, tmp_path: Path
) -> None:
    update = distill(teacher, edge, prompts_of("neon"), LEARNING, tmp_path / "whole")
    scores = update.history["scores"]
    assert scores["held_out_loss_after"] < scores["held_out_loss_before"]
    assert update.history["config"]["objective"] == "trajectories"
    assert update.guidance_scale == 1
    assert update.content_hash != neon.update.content_hash
    done: list[Progress] = []
    with pytest.raises(Stopped):
        distill(
            teacher, edge, prompts_of("neon"), LEARNING, tmp_path / "stopped", on_progress=done.append,
            should_stop=lambda: bool(done) and done[-1].stage == "train" and done[-1].done == 3,
        )  # fmt: skip
    resumed = distill(teacher, edge, prompts_of("neon"), LEARNING, tmp_path / "stopped")
    assert resumed.content_hash == update.content_hash


def test_images_without_their_trajectory_are_drawn_again(teacher: Generator, tmp_path: Path) -> None:
    topic = prompts_of("neon")

    def drawn() -> Trajectories:
        files = cloud_images(teacher, topic, LEARNING, tmp_path).trajectories
        return Trajectories.joined([each.read() for each in files])

    assert cloud_images(teacher, topic, TINY, tmp_path).trajectories == ()
    kept = drawn()
    assert len(kept) == TINY.images + TINY.held_out
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "images").iterdir()}
    assert torch.equal(drawn().clean, kept.clean)
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "images").iterdir()}
    for share in (0.001, 0.5, 0.99):
        damaged = next(path for path in files if path.suffix == ".safetensors")
        data = damaged.read_bytes()
        damaged.write_bytes(data[: int(share * len(data))])
        torch.testing.assert_close(drawn().clean, kept.clean, rtol=1e-2, atol=1e-2)  # it is drawn alone
    teacher.steps += 1
    assert drawn().clean.shape[1] == kept.clean.shape[1] + 1


def test_pixels_are_kept_of_held_out_images_alone_where_trajectories_are_learnt(
    teacher: Generator, tmp_path: Path
) -> None:
    topic = prompts_of("neon")
    learning = cloud_images(teacher, topic, LEARNING, tmp_path)
    assert learning.learnt is None
    held_out = {f"{seed}.png" for seed in seeds_for(LEARNING, LEARNING.held_out, held_out=True)}
    assert {path.name for path in (tmp_path / "images").glob("*.png")} == held_out
    usual = cloud_images(teacher, topic, TINY, tmp_path)
    assert usual.learnt is not None
    assert len(usual.learnt) == TINY.images
    assert (usual.held_out == learning.held_out).all()
    assert usual.content_hash != learning.content_hash


def test_trajectories_that_do_not_belong_together_are_refused(teacher: Generator, tmp_path: Path) -> None:
    _, kept = teacher.denoised(PROMPTS[:1], SEEDS[:1])
    file = TrajectoryFile(tmp_path / "1.safetensors", "mine")
    file.write(kept)
    assert torch.equal(file.read().noise, kept.noise)
    with pytest.raises(MismatchError, match="another cloud"):
        dataclasses.replace(file, note="theirs").read()
    with pytest.raises(MismatchError, match="no trajectory"):
        dataclasses.replace(file, path=tmp_path / "2.safetensors").read()
    teacher.steps += 1
    _, longer = teacher.denoised(PROMPTS[:1], SEEDS[:1])
    with pytest.raises(MismatchError, match="different samplings"):
        Trajectories.joined([kept, longer])


def test_a_distillation_does_not_go_on_from_a_checkpoint_of_another_objective(
    teacher: Generator, edge: Generator, neon: Distilled, tmp_path: Path
) -> None:
    images = distill(teacher, edge, prompts_of("neon"), TINY, tmp_path / "both")
    learnt = distill(teacher, edge, prompts_of("neon"), LEARNING, tmp_path / "both")
    alone = distill(teacher, edge, prompts_of("neon"), LEARNING, tmp_path / "alone")
    assert images.content_hash == neon.update.content_hash
    assert learnt.content_hash == alone.content_hash


def test_images_that_were_drawn_for_another_objective_are_refused(
    teacher: Generator, edge: Generator, tmp_path: Path
) -> None:
    topic = prompts_of("neon")
    for drawn_for, config in ((TINY, LEARNING), (LEARNING, TINY)):
        images = cloud_images(teacher, topic, drawn_for, tmp_path)
        with pytest.raises(MismatchError, match="not drawn for the objective"):
            distill(images, edge, topic, config, tmp_path)


def test_settings_without_an_objective_are_those_of_earlier_runs() -> None:
    assert "objective" not in TINY.of_full_form()
    assert LEARNING.of_full_form()["objective"] == "trajectories"
    assert DistillProfile(objective="trajectories").given()["guidance_scale"] == 1
    assert DistillProfile(objective="trajectories", guidance_scale=1.5).given()["guidance_scale"] == 1.5
    assert "guidance_scale" not in DistillProfile().given()


def test_predictions_that_are_not_finite_are_refused(
    teacher: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = torch.full((1, 1, 4, 16, 16), torch.inf)
    monkeypatch.setattr(
        "dekag.generation.models.of_steps",
        lambda *_: Trajectories(torch.tensor([1]), torch.ones(1), endless, endless, "vae"),
    )
    with pytest.raises(NumericalError, match="generate"):
        teacher.denoised(PROMPTS[:1], SEEDS[:1])


def test_trajectories_of_another_autoencoder_or_noise_schedule_are_refused(
    teacher: Generator, edge: Generator
) -> None:
    _, kept = teacher.denoised(PROMPTS[:1], SEEDS[:1])
    trajectory_targets(kept, edge)
    with pytest.raises(MismatchError, match="different autoencoders"):
        trajectory_targets(dataclasses.replace(kept, autoencoder="other"), edge)
    for betas in ({"beta_end": 0.02}, {"num_train_timesteps": 100}):
        edge.pipeline.scheduler = DDIMScheduler.from_config(edge.pipeline.scheduler.config, **betas)
        with pytest.raises(
            MismatchError, match="different noise schedules: such an edge can learn from images"
        ):
            trajectory_targets(kept, edge)
    edge.pipeline.scheduler = EulerDiscreteScheduler.from_config(teacher.pipeline.scheduler.config)
    trajectory_targets(kept, edge)


def test_a_profile_whose_edge_cannot_learn_so_is_refused_before_anything_is_drawn(
    dummy_profile: Path, foreign_profile: Path, tmp_path: Path
) -> None:
    check_teachable(load_profile(dummy_profile))
    why = "cloud and edge have different autoencoders: such an edge can learn from images"
    foreign = load_profile(foreign_profile)
    with pytest.raises(MismatchError, match=why):
        check_teachable(foreign)
    asked = foreign.model_copy(update={"distill": DistillProfile(objective="trajectories")})
    assert problems(foreign, parts(foreign)) == []
    assert [each for each in problems(asked, parts(asked)) if each.startswith(f"distill.objective: {why}")]
    copied = shutil.copytree(foreign_profile, tmp_path / "foreign")
    content = json.loads((copied / "profile.json").read_text()) | {"distill": {"objective": "trajectories"}}
    (copied / "profile.json").write_text(json.dumps(content))
    runs = tmp_path / "runs"
    told = CliRunner().invoke(
        app, ["train", "knowledge", "--topic", "neon", "--profile", str(copied), "--runs", str(runs)]
    )
    assert why in f"{told.output}{told.exception}"
    assert not runs.exists()


@pytest.mark.parametrize("objective", ["images", "trajectories"])
def test_a_profile_whose_edge_has_no_noise_schedule_is_refused_before_anything_is_drawn(
    dummy_profile: Path, tmp_path: Path, objective: str
) -> None:
    copied = shutil.copytree(dummy_profile, tmp_path / "mine")
    EDMEulerScheduler().save_pretrained(copied / "edge" / "scheduler")
    index = json.loads((copied / "edge" / "model_index.json").read_text())
    index["scheduler"][1] = "EDMEulerScheduler"
    (copied / "edge" / "model_index.json").write_text(json.dumps(index))
    content = json.loads((copied / "profile.json").read_text()) | {"distill": {"objective": objective}}
    (copied / "profile.json").write_text(json.dumps(content))
    told = CliRunner().invoke(
        app,
        ["train", "knowledge", "--topic", "neon", "--profile", str(copied), "--runs", str(tmp_path / "runs")],
    )
    assert "has no noise schedule that an update can be taught with" in f"{told.output}{told.exception}"
    assert not (tmp_path / "runs").exists()


def test_a_cloud_of_fewer_steps_than_the_edge_takes_is_refused(dummy_profile: Path) -> None:
    profile = load_profile(dummy_profile)
    few = profile.model_copy(update={"cloud": profile.cloud.model_copy(update={"steps": 1})})
    with pytest.raises(MismatchError, match="fewer steps"):
        check_teachable(few)
    with pytest.raises(MismatchError, match="fewer steps"):
        check_generators(Generator.from_profile(few, "cloud"), Generator.from_profile(few, "edge"))


def test_samplers_whose_trajectories_cannot_be_learnt_from_are_refused(teacher: Generator) -> None:
    config = teacher.pipeline.scheduler.config
    teacher.pipeline.scheduler = EulerDiscreteScheduler.from_config(config)
    with pytest.raises(MismatchError, match="EulerDiscreteScheduler"):
        teacher.denoised(PROMPTS[:1], SEEDS[:1])
    teacher.pipeline.scheduler = DPMSolverMultistepScheduler.from_config(config, use_flow_sigmas=True)
    with pytest.raises(MismatchError, match="replaces the noise schedule"):
        teacher.denoised(PROMPTS[:1], SEEDS[:1])
    strange = DDIMScheduler.from_config(config, prediction_type="sample")
    with pytest.raises(MismatchError, match="sample"):
        of_steps([Step(1, torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8))], strange, "vae")


def test_an_objective_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="objective must be one of images, trajectories"):
        DistillConfig(objective="pictures")  # type: ignore[arg-type]
