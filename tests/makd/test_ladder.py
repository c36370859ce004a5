"""Smaller forms of an update: which there are, what they keep, which one is chosen."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from dekag.generation.models import Generator
from dekag.makd.aligned_generator import AlignedGenerator
from dekag.makd.ladder import (
    METAWORD_ALONE,
    Form,
    Rung,
    components,
    layer_gains,
    smaller_forms,
    smallest_enough,
    strongest,
)
from dekag.metrics.features import ImageScorer
from dekag.training.distill import Progress, Stopped, distill, train
from dekag.training.targets import ImageTargets
from tests.makd.conftest import TINY, prompts_of


def test_forms_are_smaller_than_the_full_one() -> None:
    forms = smaller_forms(5, 4, metaword=True)
    assert forms[0] == Form(5, 3)
    assert forms[-1] == METAWORD_ALONE
    assert all(before.rank >= after.rank for before, after in pairwise(forms))
    assert all(form.rank <= 5 and form.bits <= 4 for form in forms)
    assert METAWORD_ALONE not in smaller_forms(5, 4, metaword=False), "nothing would be left"
    assert [form.rank for form in smaller_forms(1, 3, metaword=False)] == [0.4, 0.2]
    for rank in (1, 2, 5, 16, 256):
        ranks = [form.rank for form in smaller_forms(rank, 4, metaword=True)]
        assert all(after <= before / 2 for before, after in pairwise(ranks)), ranks
        assert all(after > before / 4.1 for before, after in pairwise(ranks[:-1])), ranks
    assert {form.bits for form in smaller_forms(2, 2, metaword=False)} == {2}, "no smaller form is more exact"


def _product(lora: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    return lora[f"{layer}.lora_B.weight"].flatten(1) @ lora[f"{layer}.lora_A.weight"].flatten(1)


def _numbers(lora: dict[str, torch.Tensor]) -> int:
    return sum(each.numel() for each in lora.values())


def _lora(
    layer: str, into: int, out: int, rank: int, kernel: tuple[int, ...] = ()
) -> dict[str, torch.Tensor]:
    ones = (1,) * len(kernel)
    return {
        f"{layer}.lora_A.weight": torch.randn(rank, into, *kernel),
        f"{layer}.lora_B.weight": torch.randn(out, rank, *ones),
    }


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_what_is_kept_of_a_layer_is_the_closest_of_its_rank(kernel: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    lora = _lora("a", 8, 6, 5, kernel)
    whole = _product(lora, "a")
    strengths = torch.linalg.svdvals(whole)
    for rank in (1, 2, 4):
        small = strongest(components(lora), rank * _numbers(lora) / 5, {"a": 1.0})
        assert small["a.lora_A.weight"].shape == (rank, 8, *kernel)
        assert small["a.lora_B.weight"].shape == (6, rank, *(1 for _ in kernel))
        error = (whole - _product(small, "a")).square().sum()
        torch.testing.assert_close(error, strengths[rank:].square().sum(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        _product(strongest(components(lora), 9 * _numbers(lora), {"a": 1.0}), "a"),
        whole,
        rtol=1e-4,
        atol=1e-4,
    )
    assert strongest(components(lora), 0, {"a": 1.0}) == {}


@pytest.mark.parametrize("rank", [0.5, 1, 1.7, 3])  # that all layers would have for so many numbers
def test_layers_share_the_numbers_by_what_they_change(rank: float) -> None:
    torch.manual_seed(1)
    lora = _lora("a", 8, 6, 5) | _lora("b", 4, 12, 5, (3, 3)) | _lora("c", 8, 6, 5)
    gains = {"a": 1.0, "b": 1.0, "c": 1e-6}
    layers = components(lora)
    numbers = rank * _numbers(lora) / 5
    small = strongest(layers, numbers, gains)
    assert _numbers(small) <= numbers

    def change(kept: dict[str, torch.Tensor]) -> float:
        layers = [each for each in gains if f"{each}.lora_A.weight" in kept]
        return sum(gains[each] * float(_product(kept, each).square().sum()) for each in layers)

    if rank >= 1:
        equally = {
            key: each
            for layer in gains
            for key, each in strongest(
                {layer: layers[layer]}, int(rank) * layers[layer].numbers, gains
            ).items()
        }
        assert change(small) > change(equally)
    kept = {layer: len(small.get(f"{layer}.lora_A.weight", ())) for layer in gains}
    assert kept["a"] > kept["c"]
    assert kept["c"] == 0 or rank > 2


def test_the_gain_of_a_layer_is_the_change_of_its_output(edge: Generator) -> None:
    """Weights changed at random, one layer at a time, while an image is drawn."""
    unet = edge.pipeline.unet
    gains = layer_gains(edge, ["a red boat"], [1])
    layers = {name: each for name, each in unet.named_modules() if name in gains}
    assert {name for name in layers if "attn2" in name or "conv" in name}
    assert not any(each._forward_hooks for each in layers.values())
    torch.manual_seed(0)
    for name in ("conv_in", next(name for name in layers if name.endswith("attn2.to_k"))):
        layer, seen = layers[name], []
        hook = layer.register_forward_hook(lambda _, given, said, seen=seen: seen.append((given[0], said)))
        edge.latents("a red boat", 1)
        hook.remove()
        change = torch.randn_like(layer.weight)
        relative = []
        for given, said in seen:
            with torch.no_grad():
                moved = (
                    F.linear(given, change)
                    if isinstance(layer, torch.nn.Linear)
                    else F.conv2d(given, change, None, layer.stride, layer.padding)
                )
                relative.append(float(moved.square().mean() / said.square().mean()))
        expected = gains[name] * float(change.square().sum())
        assert expected == pytest.approx(sum(relative) / len(relative), rel=0.5)


def test_the_smallest_that_keeps_enough_is_chosen() -> None:
    full = Rung(Form(5, 4), 140, [0.5])
    rungs = [Rung(Form(0, 16), 2, [0.3]), Rung(Form(1, 2), 17, [0.474]), Rung(Form(1, 3), 25, [0.48]), full]
    assert smallest_enough(rungs, 0.95).form == Form(1, 3)
    assert smallest_enough(rungs, 0.5).form == Form(0, 16)
    assert smallest_enough(rungs, 1.0) is full
    better = Rung(Form(1, 2), 17, [0.6])
    assert smallest_enough([*rungs, better], 0.95) is better, "measured by the best form"


@pytest.mark.parametrize("keep", [0.01, 0.95, 1.0])
@pytest.mark.parametrize("gains", [(-0.2, -0.1), (-0.1, -0.2), (-0.1, 0.0), (0.0, 0.0)])
def test_if_none_gains_anything_the_smallest_is_chosen(gains: tuple[float, float], keep: float) -> None:
    small, full = Rung(Form(1, 2), 17, [gains[0]]), Rung(Form(5, 4), 140, [gains[1]])
    assert smallest_enough([full, small], keep) is small


def test_prompts_that_cannot_tell_forms_apart_choose_the_smaller() -> None:
    full = Rung(Form(5, 4), 140, [0.2, 0.4, 0.6, 0.8])
    # each falls short of 95 % by 0.005 in the mean; the second on every prompt alike
    unsure = Rung(Form(1, 3), 25, [0.285, 0.275, 0.665, 0.655])
    sure = Rung(Form(1, 3), 25, [0.185, 0.375, 0.565, 0.755])
    assert unsure.gain == pytest.approx(sure.gain)
    assert smallest_enough([unsure, full], 0.95) is unsure
    assert smallest_enough([sure, full], 0.95) is full
    assert smallest_enough([unsure, sure, full], 1.0) is full


@pytest.mark.parametrize("keep", [0.01, 1.0])
def test_a_form_that_would_not_be_published_is_not_chosen(
    cloud: Generator,
    edge: Generator,
    scorer: ImageScorer,
    tmp_path: Path,
    keep: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[dict[str, float]] = []

    def refuse_smaller(scores: dict[str, float]) -> str:
        told.append(dict(scores))
        return "no" if len(told) > 1 else ""  # the full form comes first

    monkeypatch.setattr("dekag.training.distill.why_no_better", refuse_smaller)
    update = distill(
        cloud, edge, prompts_of("neon"), dataclasses.replace(TINY, keep=keep), tmp_path, scorer=scorer
    )
    (chosen,) = [rung for rung in update.history["ladder"] if rung["chosen"]]
    assert chosen["form"] == f"rank {TINY.rank}, {TINY.bits} bits"


def test_a_distillation_says_what_each_form_costs_and_gives(
    cloud: Generator, edge: Generator, scorer: ImageScorer, tmp_path: Path
) -> None:
    updates = {}
    for keep in (0.01, 1.0):
        config = dataclasses.replace(TINY, keep=keep)
        updates[keep] = distill(cloud, edge, prompts_of("neon"), config, tmp_path, scorer=scorer)
        ladder = updates[keep].history["ladder"]
        (chosen,) = [rung for rung in ladder if rung["chosen"]]
        assert chosen["bytes"] == updates[keep].size_bytes
        assert [rung["bytes"] for rung in ladder] == sorted(rung["bytes"] for rung in ladder)
        assert {"metaword alone", f"rank {TINY.rank}, {TINY.bits} bits"} <= {rung["form"] for rung in ladder}
        scores = updates[keep].history["scores"]
        gain = sum(scores[f"{name}_after"] - scores[f"{name}_before"] for name in ("clip", "dino")) / 2
        assert gain == pytest.approx(chosen["gain"], abs=2e-4)
    assert updates[0.01].size_bytes <= updates[1.0].size_bytes
    aligned = AlignedGenerator(edge)
    aligned.add(updates[0.01])
    assert aligned.image("a neon cat", 1, updates=[updates[0.01].content_hash]).shape[2] == 3


def _steps(progress: list[Progress]) -> list[int]:
    return [each.done for each in progress if each.stage == "train"]


def test_smaller_forms_are_trained_further_also_after_interruptions(
    cloud: Generator, edge: Generator, scorer: ImageScorer, tmp_path: Path
) -> None:
    config = dataclasses.replace(TINY, steps=20, refine_steps=4, check_every=2, patience=100, keep=0.01)
    forms = smaller_forms(config.rank, config.bits, metaword=True)
    total = config.steps + config.refine_steps * sum(form.rank < config.rank for form in forms)
    whole: list[Progress] = []
    update = distill(
        cloud, edge, prompts_of("neon"), config, tmp_path / "whole", scorer=scorer, on_progress=whole.append
    )
    assert _steps(whole) == list(range(1, total + 1))
    assert {each.total for each in whole if each.stage == "train"} == {total}
    assert len(update.history["ladder"]) == len(forms) + 1
    last = 0
    for until in (18, 20, 22, 24, 30):  # within a form and at the end of one
        parts: list[Progress] = []
        with pytest.raises(Stopped):
            distill(
                cloud, edge, prompts_of("neon"), config, tmp_path / "parts", scorer=scorer,
                on_progress=parts.append, should_stop=lambda: until in _steps(parts),  # noqa: B023 - called here
            )  # fmt: skip
        assert _steps(parts) == list(range(last + 1, until + 1))
        last = until
    rest: list[Progress] = []
    resumed = distill(
        cloud, edge, prompts_of("neon"), config, tmp_path / "parts", scorer=scorer, on_progress=rest.append
    )
    assert _steps(rest) == list(range(last + 1, total + 1))
    assert resumed.content_hash == update.content_hash
    assert resumed.history == update.history


def test_training_further_makes_up_for_what_was_left_out(
    cloud: Generator, edge: Generator, tmp_path: Path
) -> None:
    config = dataclasses.replace(TINY, steps=30, check_every=5, patience=100)
    topic = prompts_of("neon", config)
    topic = dataclasses.replace(topic, held_out=topic.prompts)
    learnt = ImageTargets(torch.randn(6, 4, 8, 8))
    full = train(edge.pipeline, learnt, learnt, topic, config, tmp_path / "full")
    layers = components(full.lora)
    small = strongest(layers, 0.5 * sum(each.numbers for each in layers.values()), dict.fromkeys(layers, 1.0))
    cut = dataclasses.replace(full, lora=small)
    # two steps so small that they change nothing
    still = dataclasses.replace(config, steps=2, lora_learning_rate=1e-7, metaword_learning_rate=1e-7)
    before = train(edge.pipeline, learnt, learnt, topic, still, tmp_path / "cut", start=cut)
    after = train(
        edge.pipeline,
        learnt,
        learnt,
        topic,
        config,
        tmp_path / "refined",
        start=cut,
    )
    assert after.held_out_loss[1] < before.held_out_loss[1]
    assert after.held_out_loss[0] == full.held_out_loss[0]
    assert after.steps == full.steps + config.steps
    assert {name: each.shape for name, each in after.lora.items()} == {
        name: each.shape for name, each in small.items()
    }
    alone = train(
        edge.pipeline,
        learnt,
        learnt,
        topic,
        still,
        tmp_path / "alone",
        start=dataclasses.replace(cut, lora={}),
    )
    assert alone.lora == {}
    assert alone.metaword.shape == full.metaword.shape
    assert not getattr(edge.pipeline.unet, "peft_config", None)
