"""Distillation: what is trained, what stays, resuming, stopping, and every method."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import nn

from dekag.errors import InvalidInputError, MismatchError
from dekag.generation.images import from_bytes, png_note, to_png
from dekag.generation.models import Generator
from dekag.generation.prompts import PromptReader
from dekag.generation.request import GenerationRequest
from dekag.makd.aligned_generator import AlignedGenerator
from dekag.makd.config import DistillConfig, Method
from dekag.makd.quantization import LAYERS
from dekag.makd.topics import topic_prompts
from dekag.makd.update import KnowledgeUpdate
from dekag.metrics.features import ImageScorer
from dekag.profile import Profile, load_profile
from dekag.stickers import TOPICS
from dekag.training import distill as distill_module
from dekag.training.diffusion import NOISE_SCHEDULE
from dekag.training.diffusion_loss import DiffusionLoss
from dekag.training.distill import (
    PREVIEW,
    PREVIEWED,
    EarlyStopping,
    Progress,
    Stopped,
    at_once,
    cloud_images,
    distill,
    draw_images,
    encode,
    seeds_for,
    train,
    why_no_better,
)
from dekag.training.loop import TrainingRun
from dekag.training.targets import ImageTargets
from dekag.training.tiny_models import save_dummy_models
from tests.makd.conftest import TINY, Distilled, prompts_of


def test_progress_counts_images_and_steps(neon: Distilled) -> None:
    stages = [(each.stage, each.done, each.total) for each in neon.progress]
    expected = [("generate", n, 9) for n in range(1, 10)] + [("train", n, 8) for n in range(1, 9)]
    assert stages == [*expected, *(("score", n, 6) for n in (3, 6))]
    assert all((each.loss is not None) == (each.stage == "train") for each in neon.progress)


def test_images_are_drawn_in_batches_and_reused(edge: Generator, tmp_path: Path) -> None:
    prompts, seeds, done = [f"{count} boats" for count in range(10)], range(10), list[int]()
    alone = draw_images(edge, prompts, seeds, tmp_path / "alone")
    assert at_once(edge) == 8
    (tmp_path / "some").mkdir()
    for seed in (0, 5):
        shutil.copy(tmp_path / "alone" / f"{seed}.png", tmp_path / "some")
    some = draw_images(edge, prompts, seeds, tmp_path / "some", at_once=4, on_progress=done.append)
    assert done == [4, 8, 10]
    assert abs(some.astype(int) - alone).max() <= 1
    assert (some[[0, 5]] == alone[[0, 5]]).all()
    assert (draw_images(edge, prompts, seeds, tmp_path / "some", at_once=4) == some).all()


def test_update_records_what_made_it(neon: Distilled, edge: Generator) -> None:
    assert neon.update.base_hash == edge.model_hash
    assert neon.update.guidance_scale == TINY.guidance_scale
    history = neon.update.history
    assert history["config"] == TINY.as_dict()
    assert history["seeds"] == [0, 1, 2, 3, 4, 5]
    assert len(history["prompts"]) == 6
    assert all("neon" in prompt for prompt in history["prompts"])
    assert history["scores"]["held_out_loss_after"] < history["scores"]["held_out_loss_before"]
    assert (neon.folder / "samples.png").exists()


def test_seeds_of_distillations_never_meet() -> None:
    sets = [
        set(seeds_for(dataclasses.replace(TINY, seed=seed), 4096, held_out=held_out))
        for seed in (0, 1, 2)
        for held_out in (False, True)
    ]
    assert len(set().union(*sets)) == sum(map(len, sets))


def test_edge_is_untouched_by_a_distillation(cloud: Generator, edge: Generator, tmp_path: Path) -> None:
    before = {name: p.clone() for name, p in edge.pipeline.unet.state_dict().items()}
    drawn = edge.latents("a red boat", 3)
    distill(cloud, edge, prompts_of("rocket"), TINY, tmp_path)
    after = edge.pipeline.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(edge.latents("a red boat", 3), drawn)


def test_interrupted_distillation_ends_as_an_uninterrupted_one(
    cloud: Generator, edge: Generator, neon: Distilled, tmp_path: Path
) -> None:
    done: list[Progress] = []
    with pytest.raises(Stopped):
        distill(
            cloud, edge, prompts_of("neon"), TINY, tmp_path, on_progress=done.append,
            should_stop=lambda: bool(done) and done[-1].stage == "train" and done[-1].done == 3,
        )  # fmt: skip
    resumed: list[Progress] = []
    update = distill(cloud, edge, prompts_of("neon"), TINY, tmp_path, on_progress=resumed.append)
    assert [p.done for p in resumed if p.stage == "train"] == [4, 5, 6, 7, 8]
    assert update.content_hash == neon.update.content_hash


@pytest.mark.parametrize("killed_after", [2, 4, 5])
def test_early_stopping_survives_an_interruption(tmp_path: Path, killed_after: int) -> None:
    losses = iter([3.0, 1.0, 2.0, 2.0, 0.5])  # the second is the best before two in a row bring nothing

    def resumed() -> tuple[TrainingRun[nn.Linear], EarlyStopping]:
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        run = TrainingRun(tmp_path, model, [torch.optim.SGD(model.parameters(), 0.1)], seed=0)
        return run, EarlyStopping(run, lambda: next(losses), patience=2)

    def go_on(run: TrainingRun[nn.Linear], stopping: EarlyStopping, until: int) -> None:
        run.run(
            lambda _, generator: {"loss": run.model(torch.randn(4, 2, generator=generator)).square().mean()},
            run.step if stopping.over else 10,
            on_step=lambda done, _: stopping.look() and done < until,
            show=False,
        )

    go_on(*resumed(), until=killed_after)
    run, stopping = resumed()
    go_on(run, stopping, until=10)
    assert (run.step, stopping.best_loss, stopping.over) == (4, 1.0, True)
    tmp_path.joinpath("state.json").unlink()
    losses = iter([3.0, 1.0, 2.0, 2.0])
    run, uninterrupted = resumed()
    go_on(run, uninterrupted, until=10)
    assert all(torch.equal(p, uninterrupted.best[name]) for name, p in stopping.best.items())


def test_stopping_while_pictures_are_drawn_keeps_them(
    cloud: Generator, edge: Generator, tmp_path: Path
) -> None:
    done: list[Progress] = []
    with pytest.raises(Stopped):
        distill(
            cloud, edge, prompts_of("neon"), TINY, tmp_path,
            on_progress=done.append, should_stop=lambda: len(done) == 2,
        )  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "images").glob("*.png")) == ["0.png", "1.png"]


def test_stopping_while_scoring_leaves_the_edge_as_it_was(
    cloud: Generator, edge: Generator, tmp_path: Path
) -> None:
    done: list[Progress] = []
    before = edge.latents("a red boat", 3)
    with pytest.raises(Stopped):
        distill(
            cloud, edge, prompts_of("neon"), TINY, tmp_path, on_progress=done.append,
            should_stop=lambda: bool(done) and done[-1].stage == "score",
        )  # fmt: skip
    assert torch.equal(edge.latents("a red boat", 3), before)
    assert distill(cloud, edge, prompts_of("neon"), TINY, tmp_path).topic == "neon"


@pytest.mark.parametrize("method", ["makd", "metaword", "lora", "lora-equal-bytes", "full"])
def test_every_method_learns_and_trains_only_what_it_says(
    method: Method, cloud: Generator, edge: Generator, tmp_path: Path
) -> None:
    config = dataclasses.replace(TINY, method=method, steps=12, metaword_learning_rate=0.1)
    topic = prompts_of("neon", config)
    topic = dataclasses.replace(topic, held_out=topic.prompts)
    pixels = draw_images(cloud, topic.prompts, seeds_for(config, 6, held_out=False), tmp_path / "images")
    latents = encode(edge.pipeline.vae, pixels)
    trained = train(
        edge.pipeline, ImageTargets(latents), ImageTargets(latents), topic, config, tmp_path / "run"
    )
    before, after = trained.held_out_loss
    assert after < before
    assert bool(len(trained.metaword)) == config.has_metaword
    assert bool(trained.lora) == config.has_lora
    assert (trained.unet is not None) == (method == "full")


@pytest.mark.parametrize("bits", [4, 16])
def test_equal_bytes_spends_what_the_metaword_takes(
    cloud: Generator, edge: Generator, tmp_path: Path, bits: int
) -> None:
    size = {}
    for method in ("makd", "lora", "lora-equal-bytes"):
        config = dataclasses.replace(TINY, method=method, steps=2, tokens=16, bits=bits)
        update = distill(cloud, edge, prompts_of("neon"), config, tmp_path / method)
        tensors = {name: each for name, each in update._tensors.items() if name != LAYERS}
        size[method] = sum(each.numel() * each.element_size() for each in tensors.values())
    assert size["lora"] < size["makd"]
    assert size["lora-equal-bytes"] == pytest.approx(size["makd"], rel=0.05 if bits == 4 else 0.03)
    assert size["lora-equal-bytes"] > (size["lora"] + size["makd"]) / 2


def test_previews_show_what_is_learnt_and_change_nothing(
    cloud: Generator, edge: Generator, tmp_path: Path
) -> None:
    seen: list[bytes] = []

    def look(_: Progress) -> None:
        if (path := tmp_path / "seen" / PREVIEW).exists() and path.read_bytes() not in seen:
            seen.append(path.read_bytes())

    plain = distill(cloud, edge, prompts_of("neon"), TINY, tmp_path / "plain")
    shown = distill(cloud, edge, prompts_of("neon"), TINY, tmp_path / "seen", on_progress=look, previews=2)
    assert shown.content_hash == plain.content_hash
    assert len(seen) == 2, "each after other steps, so other pictures"
    assert from_bytes(seen[0]).shape == (2 * 128, min(TINY.held_out, PREVIEWED) * 128, 3)
    assert not (tmp_path / "plain" / PREVIEW).exists()


@pytest.mark.parametrize(("micro_batch", "checkpointing"), [(1, False), (3, False), (None, True), (2, True)])
def test_less_memory_gives_the_same_update_up_to_rounding(
    cloud: Generator, edge: Generator, tmp_path: Path, micro_batch: int | None, checkpointing: bool
) -> None:
    whole = distill(cloud, edge, prompts_of("neon"), TINY, tmp_path / "whole")
    frugal = distill(
        cloud,
        edge,
        prompts_of("neon"),
        TINY,
        tmp_path / "frugal",
        micro_batch=micro_batch,
        gradient_checkpointing=checkpointing,
    )
    torch.testing.assert_close(frugal.metaword, whole.metaword, rtol=1e-2, atol=2e-3)
    for name, factor in whole.lora.items():
        torch.testing.assert_close(frugal.lora[name], factor, rtol=1e-2, atol=2e-3)
    assert not edge.pipeline.unet.is_gradient_checkpointing


def test_a_batch_in_parts_holds_one_part_at_a_time(
    cloud: Generator, edge: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    edge.pipeline.unet.register_forward_pre_hook(
        lambda _, given: sizes.append(len(given[0])) if torch.is_grad_enabled() else None
    )
    config = dataclasses.replace(TINY, batch=5, steps=2)
    distill(cloud, edge, prompts_of("neon", config), config, tmp_path, micro_batch=2)
    assert sizes == [2, 2, 1] * 2


@pytest.fixture
def two_threads() -> Iterator[None]:
    """PyTorch with two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_two_threads_take_a_part_of_a_batch_each(
    cloud: Generator, edge: Generator, tmp_path: Path, neon: Distilled, two_threads: None
) -> None:
    seen: list[tuple[int, int]] = []
    edge.pipeline.unet.register_forward_pre_hook(
        lambda _, given: (
            seen.append((len(given[0]), threading.get_ident())) if torch.is_grad_enabled() else None
        )
    )
    config = dataclasses.replace(TINY, batch=5, steps=2)
    distill(cloud, edge, prompts_of("neon", config), config, tmp_path / "seen")
    assert sorted(rows for rows, _ in seen) == [2, 2, 3, 3]
    assert threading.get_ident() not in {thread for _, thread in seen}

    halved = distill(cloud, edge, prompts_of("neon"), TINY, tmp_path / "halved")
    torch.testing.assert_close(halved.metaword, neon.update.metaword, rtol=1e-2, atol=2e-3)
    for name, factor in neon.update.lora.items():
        torch.testing.assert_close(halved.lora[name], factor, rtol=1e-2, atol=2e-3)


def test_a_long_training_in_two_threads_runs_in_a_trace(
    cloud: Generator,
    edge: Generator,
    tmp_path: Path,
    neon: Distilled,
    two_threads: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distill_module, "WORTH_A_TRAINING_TRACE", 1)
    in_python: list[bool] = []
    edge.pipeline.unet.conv_in.register_forward_hook(lambda *_: in_python.append(torch.is_grad_enabled()))
    stop = False

    def half(done: Progress) -> None:
        nonlocal stop
        stop = done.stage == "train" and done.done == TINY.steps // 2

    topic = prompts_of("neon")
    with pytest.raises(Stopped):
        distill(cloud, edge, topic, TINY, tmp_path, on_progress=half, should_stop=lambda: stop, previews=2)
    stop = False
    update = distill(cloud, edge, topic, TINY, tmp_path, previews=2)
    assert in_python, "images, traces and previews are drawn in Python"
    assert not any(in_python)
    assert "forward" not in vars(edge.pipeline.unet)
    torch.testing.assert_close(update.metaword, neon.update.metaword, rtol=1e-2, atol=2e-3)
    for name, factor in neon.update.lora.items():
        torch.testing.assert_close(update.lora[name], factor, rtol=1e-2, atol=2e-3)


def test_two_threads_draw_the_images_of_one(edge: Generator, tmp_path: Path, two_threads: None) -> None:
    prompts, seeds, done = [f"{count} boats" for count in range(10)], range(10), list[int]()
    threads: set[int] = set()
    edge.pipeline.unet.register_forward_pre_hook(lambda *_: threads.add(threading.get_ident()))
    both = draw_images(edge, prompts, seeds, tmp_path / "both", at_once=2, on_progress=done.append)
    assert len(threads) == 2
    assert done == [2, 4, 6, 8, 10]
    torch.set_num_threads(1)
    assert (draw_images(edge, prompts, seeds, tmp_path / "one", at_once=2) == both).all()

    torch.set_num_threads(2)
    threads.clear()
    with pytest.raises(Stopped):
        draw_images(edge, prompts, seeds, tmp_path / "stopped", should_stop=lambda: bool(threads))
    assert 0 < len(list((tmp_path / "stopped").glob("*.png"))) < 10
    assert (draw_images(edge, prompts, seeds, tmp_path / "stopped") == both).mean() > 0.99


def test_a_part_without_a_prompt_teaches_a_metaword_nothing(
    cloud: Generator, edge: Generator, tmp_path: Path, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(TINY, method="metaword", batch=2, prompt_dropout=0.9, steps=6)
    seen: list[bool] = []
    reads = distill_module.encode_prompts

    def noted(reader: PromptReader, prompts: Any, vectors: torch.Tensor) -> Any:
        seen.append(any(window.rows for windows in prompts for window in windows))
        return reads(reader, prompts, vectors)

    monkeypatch.setattr(distill_module, "encode_prompts", noted)
    update = distill(cloud, edge, prompts_of("neon", config), config, tmp_path)
    assert not all(seen), "no part was without a prompt"
    assert bool(update.metaword.isfinite().all())


def test_a_cloud_may_leave_before_the_edge_learns(
    cloud: Generator, edge: Generator, tmp_path: Path, neon: Distilled
) -> None:
    images = cloud_images(cloud, prompts_of("neon"), TINY, tmp_path)
    assert images.learnt is not None
    assert images.learnt.shape == (TINY.images, 128, 128, 3)
    assert images.held_out.shape == (TINY.held_out, 128, 128, 3)
    update = distill(images, edge, prompts_of("neon"), TINY, tmp_path)
    assert update.content_hash == neon.update.content_hash


def test_images_of_another_prompt_size_or_sampling_are_not_used_again(
    cloud: Generator, dummy_profile: Path, tmp_path: Path
) -> None:
    models = load_profile(dummy_profile)

    def drawn(profile: Profile, prompt: str) -> np.ndarray:
        return draw_images(Generator.from_profile(profile, "cloud"), [prompt], [1], tmp_path)[0]

    def files() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    first = drawn(models, "a red boat")
    made = files()
    assert np.array_equal(drawn(models, "a red boat"), first)
    assert files() == made
    larger = models.model_copy(update={"size": 160})
    assert drawn(larger, "a red boat").shape == (160, 160, 3)
    for changed in ({"steps": 3}, {"guidance_scale": 3.0}, {"dtype": "bfloat16"}, {"vae_dtype": "bfloat16"}):
        other = models.model_copy(update={"cloud": models.cloud.model_copy(update=changed)})
        assert not np.array_equal(drawn(other, "a red boat"), first), changed
    assert not np.array_equal(drawn(models, "a green cat"), first)
    assert np.array_equal(drawn(models, "a red boat"), first)
    (tmp_path / "1.png").write_bytes(to_png(first))  # of who knows what
    assert np.array_equal(drawn(models, "a red boat"), first)
    assert png_note(tmp_path / "1.png")


def test_a_distillation_does_not_go_on_from_another_edges_checkpoint(
    cloud: Generator, dummy_profile: Path, tmp_path: Path, neon: Distilled
) -> None:
    other = Generator.from_profile(load_profile(save_dummy_models(tmp_path / "other", seed=1)), "edge")
    theirs = distill(cloud, other, prompts_of("neon"), TINY, tmp_path / "work")
    mine = Generator.from_profile(load_profile(dummy_profile), "edge")
    ours = distill(cloud, mine, prompts_of("neon"), TINY, tmp_path / "work")
    assert ours.content_hash == neon.update.content_hash != theirs.content_hash


def test_an_edge_in_bfloat16_learns_in_float32(
    cloud: Generator, dummy_profile: Path, tmp_path: Path, neon: Distilled
) -> None:
    profile = load_profile(dummy_profile)
    coarse = profile.edge.model_copy(update={"dtype": "bfloat16", "vae_dtype": "bfloat16"})
    edge = Generator.from_profile(profile.model_copy(update={"edge": coarse}), "edge")
    update = distill(cloud, edge, prompts_of("neon"), TINY, tmp_path)
    assert update.base_hash == neon.update.base_hash
    before, after = (update.history["scores"][f"held_out_loss_{when}"] for when in ("before", "after"))
    assert after < before
    assert before == pytest.approx(neon.update.history["scores"]["held_out_loss_before"], rel=0.02)
    aligned = AlignedGenerator(edge)
    aligned.add(update)
    changed = aligned.latents("a neon boat", 1, updates=[update.content_hash])
    assert not torch.equal(changed, aligned.latents("a neon boat", 1))


def test_each_trigger_has_a_vector_read_only_by_its_own_prompts(
    cloud: Generator, edge: Generator, tmp_path: Path
) -> None:
    config = dataclasses.replace(TINY, method="metaword", images=12, steps=12)
    update = distill(cloud, edge, prompts_of("jewels", config), config, tmp_path)
    assert set(update.words) == set(TOPICS["jewels"].words.values())
    assert len(update.metaword) == config.tokens
    ruby, both = (update.vectors_for(prompt) for prompt in ("a ruby boat", "a ruby and an emerald boat"))
    assert len(ruby) == config.tokens + 1
    assert len(both) == config.tokens + 2
    assert torch.equal(ruby[-1], update.words["ruby"].float())
    assert torch.equal(update.vectors_for("a red boat"), update.metaword.float())
    again = KnowledgeUpdate.from_files(update.to_files())
    assert torch.equal(again.vectors_for("an emerald boat"), update.vectors_for("an emerald boat"))


def test_full_fine_tune_makes_no_update(cloud: Generator, edge: Generator, tmp_path: Path) -> None:
    with pytest.raises(MismatchError):
        distill(cloud, edge, prompts_of("neon"), dataclasses.replace(TINY, method="full"), tmp_path)


def test_a_denoiser_that_predicts_neither_noise_nor_velocity_is_refused() -> None:
    with pytest.raises(MismatchError, match="predicts 'sample' cannot be trained"):
        DiffusionLoss(DDPMScheduler(**{**NOISE_SCHEDULE, "prediction_type": "sample"}))


@pytest.mark.parametrize("kind", [EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, "flow sigmas"])
def test_an_edge_without_a_noise_schedule_is_refused_before_anything_is_drawn(
    cloud: Generator, dummy_profile: Path, tmp_path: Path, kind: Any
) -> None:
    edge = Generator.from_profile(load_profile(dummy_profile), "edge")
    config = edge.pipeline.scheduler.config
    flow = DPMSolverMultistepScheduler.from_config(config, use_flow_sigmas=True)
    edge.pipeline.scheduler = flow if kind == "flow sigmas" else kind()
    with pytest.raises(MismatchError, match="has no noise schedule that an update can be taught with"):
        distill(cloud, edge, prompts_of("neon"), TINY, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("predicts", ["v_prediction", "epsilon"])
def test_weights_of_the_loss_are_finite_where_no_signal_is_left(predicts: str) -> None:
    own = {"prediction_type": predicts, "rescale_betas_zero_snr": True}
    scheduler = DDPMScheduler(**NOISE_SCHEDULE | own)
    clean, noise, timesteps = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.tensor([999])
    assert scheduler.alphas_cumprod[999] == 0
    loss = DiffusionLoss(scheduler)(clean, noise, timesteps, lambda noisy: noisy + 1)
    if predicts == "epsilon":
        torch.testing.assert_close(loss, torch.tensor(1.0))  # the weight is 1, as everywhere below 7 dB
    else:
        assert torch.isfinite(loss)


def test_velocity_prediction_is_trained_as_such() -> None:
    """A denoiser that knows the velocity has no loss."""
    scheduler = DDPMScheduler(**{**NOISE_SCHEDULE, "prediction_type": "v_prediction"})
    clean, noise, timesteps = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    signal = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    velocity = signal**0.5 * noise - (1 - signal) ** 0.5 * clean
    assert float(DiffusionLoss(scheduler)(clean, noise, timesteps, lambda _: velocity)) < 1e-10


def test_noise_prediction_is_trained_as_such() -> None:
    scheduler = DDPMScheduler(**{**NOISE_SCHEDULE, "prediction_type": "epsilon"})
    seen = {}

    def denoise(noisy: torch.Tensor) -> torch.Tensor:
        seen["noisy"] = noisy
        return noise

    noise = torch.randn(2, 4, 16, 16)
    loss = DiffusionLoss(scheduler)
    assert loss(torch.zeros(2, 4, 16, 16), noise, torch.tensor([10, 900]), denoise) == 0
    assert not torch.equal(seen["noisy"], noise)


@pytest.mark.parametrize(
    ("field", "value"),
    [("rank", 0), ("images", 5000), ("steps", 1.5), ("method", "magic"), ("layers", "none"), ("seed", True)],
)
def test_config_names_the_field(field: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=f"config.{field}"):
        DistillConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ({}, ""),
        ({"clip_before": 0.3, "dino_before": 0.1, "clip_after": 0.5, "dino_after": 0.4}, ""),
        (
            {"clip_before": 0.556, "dino_before": 0.104, "clip_after": 0.243, "dino_after": 0.323},
            "without it",
        ),
        ({"clip_before": 0.3, "dino_before": 0.4, "clip_after": 0.5, "dino_after": 0.4}, "without it"),
        (
            {"clip_before": 0.3, "dino_before": 0.1, "clip_after": float("nan"), "dino_after": 0.4},
            "without it",
        ),
    ],
)
def test_both_scores_decide_whether_an_update_is_better(scores: dict[str, float], says: str) -> None:
    assert says in why_no_better(scores)
    assert bool(says) == bool(why_no_better(scores))
    better = {"clip_before": 0.1, "dino_before": 0.1, "clip_after": 0.9, "dino_after": 0.9}
    names = {"before": "current", "after": "after_beside_current"}
    beside = {f"{name[:5]}{names[name[5:]]}": value for name, value in scores.items()}
    assert bool(why_no_better({**better, **beside})) == bool(says)
    if says:
        assert "the current version" in why_no_better({**better, **beside})


def test_a_new_update_is_scored_beside_the_current_one(
    cloud: Generator,
    edge: Generator,
    scorer: ImageScorer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dekag.training.distill.why_no_better", lambda _: "")  # the same form each time
    topic = prompts_of("neon")
    first = distill(cloud, edge, topic, TINY, tmp_path / "1", scorer=scorer)
    assert not any("current" in name for name in first.history["scores"])
    same = distill(cloud, edge, topic, TINY, tmp_path / "2", scorer=scorer, current=first)
    scores = same.history["scores"]
    for metric in ("clip", "dino"):
        assert scores[f"{metric}_current"] == scores[f"{metric}_after_beside_current"]
    assert "not better than" in why_no_better(scores)
    history = {**first.history, "prompts": list(topic.held_out[:2])}
    learnt = KnowledgeUpdate.new(first.info, first.metaword, first.lora, bits=16, history=history)
    made = distill(cloud, edge, topic, TINY, tmp_path / "3", scorer=scorer, current=learnt)
    other = made.history["scores"]
    assert other["clip_after"] == scores["clip_after"]
    assert other["clip_current"] != scores["clip_current"], "prompts that the current one knows count"


def test_prompts_of_any_length_are_learnt_from_whole(
    cloud: Generator, edge: Generator, tmp_path: Path
) -> None:
    words = " ".join(["a red boat on the beach and"] * 8)
    said = [f"{{1|2|3|4|5}} {words} neon", "{a|b|c} neon boat"]
    topic = topic_prompts("neon", prompts=said, count=6, held_out=3, seed=0)
    assert len({len(edge.reader.windows(prompt)) for prompt in (*topic.prompts, *topic.held_out)}) > 1
    config = dataclasses.replace(TINY, prompt_dropout=0.4)
    update = distill(cloud, edge, topic, config, tmp_path, previews=1)
    aligned = AlignedGenerator(edge)
    aligned.add(update)
    hashes = [update.content_hash]
    ends = [aligned.latents(f"1 {words} {end}", 1, updates=hashes) for end in ("neon", "meadow")]
    assert not torch.allclose(*ends)
    short = GenerationRequest("a neon boat", 2, 128, 128, tuple(hashes))
    mixed = aligned.batch([GenerationRequest(f"1 {words} neon", 1, 128, 128, tuple(hashes)), short])
    assert torch.equal(mixed[1:], aligned.batch([short]))
    assert torch.equal(mixed[:1], ends[0])
