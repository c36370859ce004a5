"""Two steps of every method, what the loss measures, and the artifact that training makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dekag.cala import condition_vector
from dekag.cala.methods import METHODS, Lora, build
from dekag.codec import JsccCodec
from dekag.errors import InvalidInputError
from dekag.link.conditions import LinkConditions
from dekag.training.cala import (
    calibrate_quality,
    deliver,
    draw_conditions,
    grid_condition,
    image_error,
    pixel_metric,
    send,
    train_knowledge,
    train_method,
)
from dekag.training.examples import Examples, draw_mixed, examples_hash

SHAPE = (4, 16, 16)
PLAIN = torch.eye(4)
SHARE = 0.3  # a tiny codec needs a large share
WIDTH = 6  # of the states of prompts


@pytest.fixture
def codec() -> JsccCodec:
    torch.manual_seed(0)
    return JsccCodec(width=16, blocks=1).eval()


@pytest.fixture
def folded() -> JsccCodec:
    """A codec with everything that the plain one leaves out, but prompts."""
    torch.manual_seed(0)
    return JsccCodec(width=16, blocks=2, fold=4, interleaved=True, adaptive_modulation=True).eval()


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(20, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def prompted(latents: torch.Tensor) -> Examples:
    draw = torch.Generator().manual_seed(2)
    return Examples.of(latents, [torch.randn(2 + n % 5, WIDTH, generator=draw) for n in range(len(latents))])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_two_steps_and_delivers(
    name: str, codec: JsccCodec, latents: torch.Tensor, tmp_path: Path
) -> None:
    trained = train_method(
        tmp_path,
        name,
        codec,
        [Examples(latents)],
        PLAIN,
        steps=2,
        seed=1,
        parameter_fraction=SHARE,
        batch=8,
        show=False,
    )
    conditions = LinkConditions(snr_db=5, fading="rayleigh", reported_snr_db=-3)
    received = deliver(trained, latents[:3], 1 / 192, conditions, [1, 2, 3])
    assert received.shape == (3, *SHAPE)
    assert torch.isfinite(received).all()
    of_codec = sum(p.numel() for p in codec.parameters())
    fresh = build(name, codec, SHARE).trained_parameters()
    if name == "none":
        assert fresh == 0
    elif name == "fine-tune":
        assert fresh == of_codec
    else:
        share = fresh / of_codec
        limit = 4 * SHARE if name == "lora-groups-large" else SHARE
        assert 0.4 * limit < share <= limit


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_beside_prompts_on_several_sets(
    name: str, folded: JsccCodec, prompted: Examples, tmp_path: Path
) -> None:
    sets = [prompted.rows(slice(0, 12)), prompted.rows(slice(12, 20))]
    trained = train_method(
        tmp_path, name, folded, sets, PLAIN, steps=2, seed=1, parameter_fraction=1.0, batch=8, show=False
    )
    reads = name in ("cala", "cala-ungated", "fine-tune")
    assert trained.text_width == (WIDTH if reads else 0)
    assert prompted.text is not None
    conditions, text = LinkConditions(snr_db=12, fading="rayleigh"), list(prompted.text[:3])

    def delivered(said: list[torch.Tensor] | None) -> torch.Tensor:
        return deliver(trained, prompted.latents[:3], 1 / 192, conditions, [1, 2, 3], text=said)

    assert torch.isfinite(delivered(text)).all()
    assert torch.equal(delivered(text), delivered(None)) != reads


def test_prompts_that_are_withheld_say_nothing(folded: JsccCodec, prompted: Examples, tmp_path: Path) -> None:
    trained = train_method(
        tmp_path, "cala", folded, [prompted], PLAIN, steps=2, seed=1, parameter_fraction=1.0, show=False
    )
    assert prompted.text is not None
    conditions = LinkConditions(snr_db=5)

    def delivered(said: list[torch.Tensor | None] | None) -> torch.Tensor:
        return deliver(trained, prompted.latents[:2], 1 / 96, conditions, [1, 2], text=said)

    said, none = delivered([prompted.text[0], None]), delivered(None)
    assert not torch.equal(said[0], none[0])
    torch.testing.assert_close(said[1], none[1])  # as if nobody in the batch had a prompt
    torch.testing.assert_close(delivered([prompted.text[0] * 0, None]), none)


def test_some_prompts_are_withheld_in_training(prompted: Examples) -> None:
    _, text = prompted.draw(4000, torch.Generator().manual_seed(1))
    assert text is not None
    withheld = (text.abs().amax(dim=(1, 2)) == 0).float().mean()
    assert withheld == pytest.approx(0.1, abs=0.02)


def test_sets_are_mixed_in_equal_parts(latents: torch.Tensor) -> None:
    sets = [Examples(latents * 0), Examples(latents * 0 + 1), Examples(latents * 0 + 2)]
    drawn, text = draw_mixed(sets, 8, torch.Generator().manual_seed(1))
    assert text is None
    assert sorted(drawn[:, 0, 0, 0].tolist()) == [0, 0, 1, 1, 1, 2, 2, 2]


def test_training_and_services_agree_on_what_is_sent(folded: JsccCodec, latents: torch.Tensor) -> None:
    """On a channel with little noise, both ways give the latents of the codec alone."""
    adapted, cbr = build("none", folded, SHARE), 1 / 300
    trained = send(adapted, latents[:3], grid_condition(cbr, 40.0, count=3), torch.Generator().manual_seed(1))
    served = deliver(adapted, latents[:3], cbr, LinkConditions(snr_db=40, fading="awgn"), [1, 2, 3])
    torch.testing.assert_close(trained.received, served, atol=0.05, rtol=0)


def test_methods_start_as_the_base_codec(codec: JsccCodec, latents: torch.Tensor) -> None:
    conditions = LinkConditions(snr_db=10, fading="awgn")
    base = deliver(build("none", codec, SHARE), latents[:2], 1 / 96, conditions, [1, 2])
    for name in METHODS:
        torch.testing.assert_close(
            deliver(build(name, codec, SHARE), latents[:2], 1 / 96, conditions, [1, 2]), base
        )


def test_resumed_training_ends_where_uninterrupted_training_does(
    codec: JsccCodec, latents: torch.Tensor, tmp_path: Path
) -> None:
    def train(folder: str, steps: int) -> dict[str, torch.Tensor]:
        trained = train_method(
            tmp_path / folder,
            "cala",
            codec,
            [Examples(latents)],
            PLAIN,
            steps=steps,
            seed=1,
            parameter_fraction=SHARE,
            batch=4,
            show=False,
        )
        return dict(trained.state_dict())

    # the learning rate depends on the run's length, so the halves are cut from a finished run's start
    whole = train("whole", 2)
    assert all(torch.equal(value, train("again", 2)[name]) for name, value in whole.items())
    assert all(torch.equal(value, train("whole", 2)[name]) for name, value in whole.items())


def test_groups_are_switched_and_kept_apart(codec: JsccCodec) -> None:
    lora = Lora(codec, 1, "snr-cbr")
    asked = [(1 / 96, 4.99), (1 / 768, 5.0), (1 / 96, 10.0)]
    groups = lora.group_of(
        torch.stack([condition_vector(cbr, LinkConditions(snr_db=snr), at="sender") for cbr, snr in asked])
    )
    assert groups.tolist() == [1, 2, 3]
    for name, parameter in lora.named_parameters():
        if "lora_B" in name and "group2" in name:
            torch.nn.init.ones_(parameter)
    latents = torch.randn(1, *SHAPE)
    lora.select_group(0)
    base = codec.features(latents, 512)
    lora.select_group(2)
    assert not torch.allclose(codec.features(latents, 512), base)
    lora.select_group(1)
    assert torch.equal(codec.features(latents, 512), base)


def test_a_share_too_small_for_any_adapter_is_refused(codec: JsccCodec) -> None:
    with pytest.raises(InvalidInputError, match="share"):
        build("lora", codec, 1e-5)
    with pytest.raises(InvalidInputError, match="method"):
        build("magic", codec, 0.05)


def test_training_conditions_cover_their_ranges() -> None:
    drawn = draw_conditions(4000, torch.Generator().manual_seed(1))
    assert -5 <= drawn.snr_db.min() < -4.9
    assert 19.9 < drawn.snr_db.max() <= 20
    assert drawn.cbr.min() >= 1 / 768 * 0.999
    assert drawn.cbr.max() <= 1 / 96 * 1.001
    for direct in (0.0, 1.0):
        assert (drawn.los_fraction == direct).float().mean() == pytest.approx(1 / 3, abs=0.04)
    assert (drawn.tau_rms_s[drawn.los_fraction == 1] == 0).all()


@pytest.mark.parametrize("side", [16, 32, 64])
def test_training_sends_as_many_symbols_as_the_services_do(
    side: int, codec: JsccCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = torch.randn(2, 4, side, side)
    counts: list[int] = []
    features = type(codec).features

    def noted(
        self: JsccCodec, latents: torch.Tensor, channel_uses: int | list[int], **more: Any
    ) -> torch.Tensor:
        counts.extend([channel_uses] if isinstance(channel_uses, int) else channel_uses)
        return features(self, latents, channel_uses, **more)

    monkeypatch.setattr(type(codec), "features", noted)
    adapted, cbr = build("none", codec, SHARE), 1 / 96
    send(adapted, latents, grid_condition(cbr, 10.0, count=2), torch.Generator().manual_seed(1))
    deliver(adapted, latents, cbr, LinkConditions(snr_db=10), [1, 2])
    assert set(counts) == {round(cbr * 3 * (8 * side) ** 2)}


def test_the_metric_predicts_what_latent_errors_cost() -> None:
    """For a linear decoder the metric is exact: M = W'W over the pixels of a position."""
    torch.manual_seed(5)
    decoder = torch.nn.Conv2d(4, 3, 1, bias=False)
    torch.nn.init.normal_(decoder.weight, std=0.1)
    weight = decoder.weight[:, :, 0, 0]
    latents = 0.1 * torch.randn(64, *SHAPE)
    with torch.inference_mode():
        metric = pixel_metric(decoder, latents, size=0.05)
        expected = weight.T @ weight / 3 / 4  # mean over colours; images in [-1, 1] count half
        torch.testing.assert_close(metric, expected, atol=0.02 * float(expected.max()), rtol=0)
        other = latents + 0.05 * torch.randn(latents.shape)
        error = (decoder(other) - decoder(latents)).div(2).square().mean((1, 2, 3))
        torch.testing.assert_close(image_error(other, latents, metric), error, rtol=0.15, atol=0)


def test_one_condition_can_be_trained_alone(codec: JsccCodec, latents: torch.Tensor, tmp_path: Path) -> None:
    only = grid_condition(1 / 768, -5.0, los_fraction=0.0, tau_rms_s=1e-6)
    train_method(
        tmp_path,
        "fine-tune",
        codec,
        [Examples(latents)],
        PLAIN,
        steps=2,
        seed=1,
        batch=4,
        only=only,
        show=False,
    )
    assert (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
def test_training_makes_an_artifact_that_loads(
    codec: JsccCodec, latents: torch.Tensor, tmp_path: Path, method: str
) -> None:
    from dekag.cala.aligned_codec import AlignedCodec
    from dekag.cala.artifact import TransmissionKnowledge
    from dekag.generation.loading import folder_hash

    codec.save_pretrained(tmp_path / "codec")
    decoder = torch.nn.ConvTranspose2d(4, 3, 8, stride=8)
    knowledge = train_knowledge(
        tmp_path / "run",
        codec,
        folder_hash(tmp_path / "codec"),
        decoder,
        [Examples(latents[:16])],
        Examples(latents[16:18]),
        steps=2,
        seed=1,
        parameter_fraction=SHARE,
        method=method,
        quality_grid={"cbrs": (1 / 768, 1 / 96), "snrs_db": (0.0,), "taus_s": (1e-7,)},
    )
    assert knowledge.info["config"]["examples_hash"] == examples_hash([Examples(latents[:16])])
    knowledge.save(tmp_path / "cala")
    loaded = TransmissionKnowledge.load(tmp_path / "cala")
    assert loaded.quality is not None
    assert loaded.method == method
    aligned = AlignedCodec.load(tmp_path / "codec", tmp_path / "cala")
    asked = torch.stack([condition_vector(1 / 96, LinkConditions(snr_db=s), at="sender") for s in (0, 15)])
    symbols = aligned.encode(latents[:2], [512, 100], asked, modulation="unquantised", exact=False)
    assert not torch.equal(symbols, codec.encode(latents[:2], [512, 100], modulation="unquantised"))
    assert not torch.equal(aligned.decode(symbols, SHAPE, asked), codec.decode(symbols, SHAPE))


def test_an_artifact_that_reads_prompts_loads(folded: JsccCodec, prompted: Examples, tmp_path: Path) -> None:
    from dekag.cala.aligned_codec import AlignedCodec
    from dekag.generation.loading import folder_hash

    folded.save_pretrained(tmp_path / "codec")
    decoder = torch.nn.ConvTranspose2d(4, 3, 8, stride=8)
    assert prompted.text is not None
    for method in ("cala", "fine-tune"):
        knowledge = train_knowledge(
            tmp_path / f"run-{method}", folded, folder_hash(tmp_path / "codec"), decoder, [prompted],
            prompted.rows(slice(2)), steps=2, seed=1, parameter_fraction=1.0, method=method,
            quality_grid={"cbrs": (1 / 768, 1 / 96), "snrs_db": (0.0,), "taus_s": (1e-7,)},
        )  # fmt: skip
        knowledge.save(tmp_path / method)
        aligned = AlignedCodec.load(tmp_path / "codec", tmp_path / method)
        assert (aligned.text_width, aligned.interleaved) == (WIDTH, True)
        asked = torch.stack([condition_vector(1 / 96, LinkConditions(snr_db=s), at="sender") for s in (0, 9)])
        mixed = aligned.encode(prompted.latents[:2], [512, 90], asked, text=prompted.text[:2].float())
        for row, uses in enumerate((512, 90)):
            alone = aligned.encode(
                prompted.latents[row : row + 1],
                [uses],
                asked[row : row + 1],
                text=prompted.text[row : row + 1],
            )
            assert torch.equal(mixed[row : row + 1, :uses], alone), "its bits do not depend on the batch"
        with pytest.raises(InvalidInputError, match="text"):
            aligned.encode(prompted.latents[:2], [512, 90], asked, text=torch.ones(2, 3, WIDTH + 1))


def test_method_that_trains_nothing_is_refused(
    codec: JsccCodec, latents: torch.Tensor, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match="trains something"):
        train_knowledge(
            tmp_path, codec, "", torch.nn.ConvTranspose2d(4, 3, 8, stride=8), [Examples(latents)],
            Examples(latents), steps=2, seed=1, parameter_fraction=SHARE, method="none",
        )  # fmt: skip


def test_calibration_fills_its_grid(codec: JsccCodec, latents: torch.Tensor) -> None:
    decoder = torch.nn.ConvTranspose2d(4, 3, 8, stride=8).requires_grad_(False)
    quality = calibrate_quality(
        build("none", codec, SHARE), decoder, Examples(latents[:4]), cbrs=(1 / 768, 1 / 96),
        snrs_db=(0.0, 20.0), taus_s=(1e-7, 1e-6), show=False,
    )  # fmt: skip
    awgn = LinkConditions(snr_db=20, fading="awgn")
    assert quality.expected_psnr_db(1 / 96, awgn) > 0
