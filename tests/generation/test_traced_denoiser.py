"""A traced denoiser draws with the bits of the plain one, whatever is asked, and with changed weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from dekag.generation.models import Generator
from dekag.generation.profile import Role
from dekag.generation.traced_denoiser import MAX_PARAMETERS, TracedDenoiser, worth_tracing
from dekag.profile import load_profile
from dekag.training.tiny_models import save_dummy_models

PROMPT = "a red boat on the beach"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dummy_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def plain(models: Path) -> Generator:
    return Generator.from_profile(load_profile(models), "edge")


@pytest.fixture(scope="module")
def traced(models: Path) -> Generator:
    generator = Generator.from_profile(load_profile(models), "edge")
    generator.trace()
    return generator


@contextmanager
def counted(denoiser: Any) -> Iterator[list[str]]:
    """Notes each time that Python computes the denoiser's first convolution; the trace does not."""
    calls: list[str] = []
    hook = denoiser.conv_in.register_forward_hook(lambda *_: calls.append("python"))
    try:
        yield calls
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("prompts", "size"),
    [
        ([PROMPT], (128, 128)),
        ([PROMPT], (64, 96)),
        ([PROMPT, "a cat", "two dogs at night"], (128, 128)),
        ([PROMPT * 30], (128, 128)),
        ([PROMPT * 30, "a cat"], (192, 64)),
    ],
)
def test_the_trace_gives_the_same_bits(
    plain: Generator, traced: Generator, prompts: list[str], size: tuple[int, int]
) -> None:
    seeds = list(range(len(prompts)))
    asked: dict[str, Any] = {"width": size[0], "height": size[1]}
    with counted(traced.pipeline.unet) as calls:
        ours = traced.batch(prompts, seeds, **asked)
    assert torch.equal(ours, plain.batch(prompts, seeds, **asked))
    assert calls == []


@pytest.mark.parametrize("asked", [{"guidance_scale": 1.0}, {"guidance_scale": 4.0}, {"steps": 3}])
def test_guidance_steps_and_negative_prompts_give_the_same_bits(
    plain: Generator, traced: Generator, asked: dict[str, Any]
) -> None:
    asked = {**asked, "negative_prompt": "rain"}
    assert torch.equal(traced.batch([PROMPT], [1], **asked), plain.batch([PROMPT], [1], **asked))


def test_sides_that_the_denoiser_cannot_halve_are_drawn_without_the_trace(
    plain: Generator, traced: Generator
) -> None:
    with counted(traced.pipeline.unet) as calls:
        ours = traced.latents(PROMPT, 1, width=136, height=128)
    assert torch.equal(ours, plain.latents(PROMPT, 1, width=136, height=128))
    assert calls


def test_the_denoiser_is_plain_outside(traced: Generator) -> None:
    unet = traced.pipeline.unet
    assert "forward" not in vars(unet)
    x, states = torch.randn(1, 4, 16, 16), torch.randn(1, 7, unet.config.cross_attention_dim)
    with counted(unet) as calls:
        unet(x, torch.tensor(3), encoder_hidden_states=states)
    assert calls
    copied = copy.deepcopy(unet)
    copied.conv_in.weight.data.zero_()
    assert unet.conv_in.weight.any()


def test_changed_weights_change_both(plain: Generator) -> None:
    unet = copy.deepcopy(plain.pipeline.unet)
    traced = TracedDenoiser(unet)
    given = (torch.randn(1, 4, 16, 16), torch.tensor(3), torch.randn(1, 7, unet.config.cross_attention_dim))

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            with traced.in_use():
                ours = unet(*given).sample
            return ours, unet(*given).sample

    before = both()
    weight = unet.conv_out.weight
    weight.data = weight.data * 2
    after = both()
    for ours, plainly in (before, after):
        assert torch.equal(ours, plainly)
    assert not torch.equal(before[0], after[0])


def test_gradients_and_unknown_arguments_are_the_plain_denoisers(plain: Generator) -> None:
    unet = copy.deepcopy(plain.pipeline.unet)
    traced = TracedDenoiser(unet)
    states = torch.randn(1, 7, unet.config.cross_attention_dim)
    x = torch.randn(1, 4, 16, 16, requires_grad=True)
    with traced.in_use(), counted(unet) as calls:
        unet(x, torch.tensor(3), encoder_hidden_states=states).sample.sum().backward()
        assert x.grad is not None
        with torch.no_grad():
            unet(x, torch.tensor(3), states, cross_attention_kwargs={"scale": 1.0})
            unet(x, 3, encoder_hidden_states=states)
            unet(x, torch.tensor([3]), encoder_hidden_states=states)
        assert len(calls) == 4
        with torch.no_grad():
            unet(x, torch.tensor(3), encoder_hidden_states=states)
        assert len(calls) == 4


def test_training_through_a_trace_gives_the_same_gradients(plain: Generator) -> None:
    unet, noise = copy.deepcopy(plain.pipeline.unet).requires_grad_(True), torch.Generator().manual_seed(1)
    given = (
        torch.randn(3, unet.config.in_channels, 16, 16, generator=noise),
        torch.tensor([10, 400, 900]),
        torch.randn(3, 5, unet.config.cross_attention_dim, generator=noise),
    )

    def gradients() -> list[torch.Tensor]:
        weights = [p for p in unet.parameters() if p.requires_grad]
        found = torch.autograd.grad(unet(*given).sample.square().mean(), weights, allow_unused=True)
        return [each for each in found if each is not None]

    expected = gradients()
    with TracedDenoiser(unet, training=True).in_use(), counted(unet) as calls:
        own = gradients()
        assert not calls
        with torch.inference_mode():
            unet(given[0], torch.tensor(400), given[2])  # as drawing calls it
        assert calls == ["python"]
    assert own
    assert all(map(torch.equal, own, expected))


def test_a_trace_is_in_use_until_its_last_user_leaves(plain: Generator) -> None:
    unet = copy.deepcopy(plain.pipeline.unet)
    trace, other = TracedDenoiser(unet), TracedDenoiser(unet)
    with trace.in_use():
        with trace.in_use():
            pass
        first = vars(unet)["forward"]
        with other.in_use():
            assert vars(unet)["forward"] != first
        assert vars(unet)["forward"] == first
    assert "forward" not in vars(unet)


def test_twins_draw_in_two_threads_what_one_generator_draws(traced: Generator) -> None:
    prompts, seeds = [PROMPT, "a cat", "two dogs at night", PROMPT * 30], [1, 2, 3, 4]
    expected = [traced.latents(*each) for each in zip(prompts, seeds, strict=True)]
    other = traced.twin()

    def draw(generator: Generator) -> list[torch.Tensor]:
        return [generator.latents(*each) for each in zip(prompts, seeds, strict=True)]

    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            for found in pool.map(draw, [traced, other]):
                assert all(map(torch.equal, found, expected))


def test_a_trace_that_computes_something_else_is_refused(plain: Generator) -> None:
    unet = copy.deepcopy(plain.pipeline.unet)
    unet.conv_in.register_forward_hook(lambda _, given, said: said + len(given[0]))  # traced as a constant
    with pytest.raises(ValueError, match="something else"):
        TracedDenoiser(unet)


def test_only_small_denoisers_on_the_cpu_in_float32_are_traced(
    models: Path, plain: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = Generator.from_profile(load_profile(models), "cloud")
    before = cloud.latents(PROMPT, 1)
    cloud.trace()  # a transformer
    assert torch.equal(cloud.latents(PROMPT, 1), before)
    unet = copy.deepcopy(plain.pipeline.unet)
    assert worth_tracing(unet)
    assert not worth_tracing(cloud.pipeline.transformer)
    assert not worth_tracing(copy.deepcopy(unet).to(torch.bfloat16))
    assert not worth_tracing(copy.deepcopy(unet).to("meta"))
    monkeypatch.setattr("dekag.generation.traced_denoiser.MAX_PARAMETERS", 10)
    assert MAX_PARAMETERS > 10
    assert not worth_tracing(unet)


@pytest.mark.parametrize(
    "changed",
    [
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 56,
        },
        {"class_embed_type": "timestep"},
        {"cross_attention_dim": (16, 16)},
    ],
)
def test_denoisers_that_read_more_than_a_prompt_stay_plain(plain: Generator, changed: dict[str, Any]) -> None:
    config = {**plain.pipeline.unet.config, **changed}
    assert not worth_tracing(type(plain.pipeline.unet).from_config(config))


def test_a_service_draws_without_a_trace_that_fails(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator.from_profile(load_profile(models), "edge")
    before = generator.latents(PROMPT, 1)
    generator.pipeline.unet.conv_in.register_forward_hook(lambda _, given, said: said + 0 * len(given[0]))
    monkeypatch.setattr(TracedDenoiser, "_forward", lambda *_, **__: (torch.zeros(1),))
    with capture_logs() as logs:
        generator.trace()
    assert [each["event"] for each in logs] == ["the denoiser is not traced"]
    assert torch.equal(generator.latents(PROMPT, 1), before)


@pytest.mark.parametrize("role", ["edge", "cloud"])
def test_the_models_that_ship_are_traced(role: Role) -> None:
    generator = Generator.from_profile(load_profile("stickers"), role)
    before = generator.latents(PROMPT, 1, width=64, height=64)
    generator.trace()
    with counted(generator.pipeline.unet) as calls:
        assert torch.equal(generator.latents(PROMPT, 1, width=64, height=64), before)
    assert calls == []
