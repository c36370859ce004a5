"""Training of CALA and its baselines, under random link conditions and with one common loss."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tqdm import tqdm

from dekag.cala.artifact import CALA, TransmissionKnowledge
from dekag.cala.conditions import condition_features, los_power_fraction
from dekag.cala.methods import METHODS, AdaptedCodec, Cala, attached, build
from dekag.cala.rate import QualityModel
from dekag.codec import JsccCodec, Modulation
from dekag.errors import InvalidInputError
from dekag.link.conditions import Fading, LinkConditions
from dekag.link.interleaver import interleaver
from dekag.link.training_channel import RandomChannels, draw_channels, pass_through
from dekag.pipeline import SemanticLink, Text
from dekag.training.data import CELL, picked, psnr_db
from dekag.training.examples import Examples, draw_mixed, examples_hash
from dekag.training.loop import TrainingRun
from dekag.training.muon import Muon

BATCH = 64
COMMITMENT = 0.25
ERROR_FLOOR = 1e-5  # added to the squared error of an image; about 50 dB
GRID_CBRS = (1 / 96, 1 / 192, 1 / 384, 1 / 768)
SNR_RANGE_DB = (-5.0, 20.0)
TAU_RANGE_S = (1e-8, 1e-5)
RICIAN_K_RANGE_DB = (0.0, 12.0)
PILOT_SHARE, BLIND_SHARE, ZERO_FORCING_SHARE = 0.15, 0.05, 0.1
METRIC_LATENTS = 32
_GATES = re.compile(r"\.(head|cala_trunks|taps|squeeze|excite)\b")


@dataclass(frozen=True)
class ConditionBatch:
    """The conditions of a batch, each (batch,): the input of `condition_features` and `draw_channels`."""

    cbr: torch.Tensor
    snr_db: torch.Tensor
    los_fraction: torch.Tensor
    tau_rms_s: torch.Tensor
    pilots: torch.Tensor
    no_csi: torch.Tensor
    zero_forcing: torch.Tensor

    def __len__(self) -> int:
        return len(self.cbr)

    def take(self, rows: torch.Tensor) -> Self:
        """The conditions of the selected rows."""
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def channel_uses(self, source_values: int) -> list[int]:
        """Number of symbols of each row, for images of `source_values` values."""
        return [max(1, round(cbr * source_values)) for cbr in self.cbr.tolist()]

    def channels(self, generator: torch.Generator) -> RandomChannels:
        """Random channels with these conditions, one for each row."""
        return draw_channels(
            self.snr_db,
            self.los_fraction,
            self.tau_rms_s,
            generator,
            pilots=self.pilots,
            no_csi=self.no_csi,
        )

    def features(self, blocks_db: torch.Tensor | None = None) -> torch.Tensor:
        """Condition vectors (batch, C); for the receiver, give the SNR of its blocks (batch, J), dB."""
        return condition_features(
            cbr=self.cbr,
            snr_db=self.snr_db,
            los_fraction=self.los_fraction,
            tau_rms_s=self.tau_rms_s,
            pilots=self.pilots,
            no_csi=self.no_csi,
            zero_forcing=self.zero_forcing,
            block_snr_db=blocks_db,
        )


def draw_conditions(count: int, generator: torch.Generator) -> ConditionBatch:
    """Sample random conditions for training.

    The SNR is uniform over -5..20 dB. A third each is AWGN, Rayleigh and Rician (K uniform over 0..12 dB),
    with log-uniform delay spreads of 1e-8..1e-5 s. Half of the rates are from the grid, half are log-uniform
    between its ends. Most rows have perfect CSI and MMSE equalisation; the others use pilots, no CSI or zero
    forcing.
    """

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    snr_db = uniform(*SNR_RANGE_DB)
    between = torch.exp(uniform(math.log(GRID_CBRS[-1]), math.log(GRID_CBRS[0])))
    of_grid = torch.tensor(GRID_CBRS)[torch.randint(len(GRID_CBRS), (count,), generator=generator)]
    cbr = torch.where(uniform(0, 1) < 0.5, between, of_grid)
    kind = torch.randint(3, (count,), generator=generator)
    tau_rms_s = torch.exp(uniform(math.log(TAU_RANGE_S[0]), math.log(TAU_RANGE_S[1])))
    rician = 1 / (1 + 10 ** (-uniform(*RICIAN_K_RANGE_DB) / 10))
    los_fraction = torch.where(kind == 0, 1.0, torch.where(kind == 1, 0.0, rician))
    tau_rms_s = torch.where(kind == 0, 0.0, tau_rms_s)
    csi = uniform(0, 1)
    pilots, no_csi = csi < PILOT_SHARE, csi > 1 - BLIND_SHARE
    zero_forcing = uniform(0, 1) < ZERO_FORCING_SHARE
    return ConditionBatch(
        cbr, snr_db, los_fraction, tau_rms_s, pilots.float(), no_csi.float(), zero_forcing.float()
    )


@torch.no_grad()
def pixel_metric(
    decode: Callable[[torch.Tensor], torch.Tensor], latents: torch.Tensor, *, seed: int = 0, size: float = 0.2
) -> torch.Tensor:
    """M (channels, channels): a small latent error d causes a squared error of mean(d' M d) in the image.

    The autoencoder's decoder is not equally sensitive to all latent channels, so the plain latent error does
    not predict PSNR. Each entry is estimated from white errors on a pair of channels.

    Args:
        decode: latents (n, channels, h, w) -> images in [-1, 1].
        latents: latents to perturb.
        seed: seed of the errors.
        size: standard deviation of the errors.
    """
    generator = torch.Generator().manual_seed(seed)
    clean = decode(latents).clamp(-1, 1)
    noise = size * torch.randn(len(latents), *latents.shape[2:], generator=generator)

    def cost(direction: torch.Tensor) -> float:
        noisy = decode(latents + direction[:, None, None] * noise[:, None]).clamp(-1, 1)
        return float((noisy - clean).div(2).square().mean() / noise.square().mean())

    channels = latents.shape[1]
    unit = torch.eye(channels)
    metric = torch.diag(torch.tensor([cost(unit[i]) for i in range(channels)]))
    for i in range(channels):
        for j in range(i):
            both = (cost(unit[i] + unit[j]) - cost(unit[i] - unit[j])) / 4
            metric[i, j] = metric[j, i] = both
    values, vectors = torch.linalg.eigh(metric)
    rebuilt: torch.Tensor = (vectors * values.clamp_min(values.max() / 100)) @ vectors.T
    return rebuilt


def image_error(received: torch.Tensor, clean: torch.Tensor, metric: torch.Tensor) -> torch.Tensor:
    """(batch,) expected squared error of the decoded image in [0, 1], from latents (batch, c, h, w)."""
    error = received - clean
    return torch.einsum("bchw,cd,bdhw->b", error, metric, error) / (error.shape[2] * error.shape[3])


@dataclass(frozen=True)
class Sent:
    """Result of sending a batch."""

    received: torch.Tensor
    commitment: torch.Tensor


def send(
    adapted: AdaptedCodec,
    clean: torch.Tensor,
    conditions: ConditionBatch,
    generator: torch.Generator,
    *,
    text: torch.Tensor | None = None,
    bf16: bool = False,
) -> Sent:
    """Send latents (batch, c, h, w) through encoder, channel, equaliser and decoder; differentiable.

    Quantisation uses the straight-through gradient. `commitment` is the mean squared distance between the
    features and their constellation points.

    Args:
        adapted: codec with its adapters.
        clean: latents to send.
        conditions: one for each latent.
        generator: source of fading and noise.
        text: states of the prompts, (batch, tokens, text_width); None: they are not read.
        bf16: run the convolutions in bfloat16.
    """
    shape = (clean.shape[1], clean.shape[2], clean.shape[3])
    counts = conditions.channel_uses(source_values(clean))
    channels = conditions.channels(generator)
    codec, known = adapted.codec, conditions.features()
    precision = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
    with precision, adapted.with_condition("encoder", known, text):
        features = codec.features(clean, counts, text=text)
    symbols = codec.quantize(features.detach(), channel_uses=counts, modulation=adapted.modulations(known))
    straight = features + (symbols - features).detach()
    order = sending_order(counts, straight.shape[1]) if codec.interleaved else None
    equalised = pass_through(
        channels,
        straight if order is None else straight.gather(1, order),
        torch.tensor(counts),
        generator,
        zero_forcing=conditions.zero_forcing,
    )
    if order is not None:
        equalised = equalised.gather(1, order.argsort(dim=1))
    seen = conditions.features(channels.block_snr_db)
    with precision, adapted.with_condition("decoder", seen, text):
        received = codec.decode(equalised, shape, text=text)
    return Sent(received, (features - symbols).abs().square().mean())


def sending_order(counts: Sequence[int], length: int) -> torch.Tensor:
    """(batch, length) int64: which symbol each row sends at each place; those that it does not send stay."""
    unsent = torch.arange(length)
    return torch.stack([torch.cat([interleaver(count), unsent[count:]]) for count in counts])


def source_values(latents: torch.Tensor, factor: int = CELL) -> int:
    """Values of the image, 3 x height x width, whose latent is each of `latents` (n, c, h, w)."""
    return 3 * latents.shape[2] * latents.shape[3] * factor**2


def _channels_last(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (arguments[0].contiguous(memory_format=torch.channels_last), *arguments[1:])


def train_method(
    folder: Path,
    method: str,
    codec: JsccCodec,
    examples: Sequence[Examples],
    metric: torch.Tensor,
    *,
    steps: int,
    seed: int,
    parameter_fraction: float = 0.05,
    batch: int = BATCH,
    learning_rate: float | None = None,
    bf16: bool = False,
    only: ConditionBatch | None = None,
    adapted: AdaptedCodec | None = None,
    crop: int | None = None,
    show: bool = True,
) -> AdaptedCodec:
    """Train a method on sets of examples, in equal parts, resuming from `folder`; returns the averaged model.

    The loss is the batch mean of the logarithm of the expected image error, because methods are compared by
    mean PSNR, which is a mean of logarithms. In a mean of errors the worst conditions would dominate. A
    commitment term pulls the features towards the constellation points.

    Args:
        folder: folder of the checkpoints.
        method: a name in METHODS.
        codec: the base codec; it is copied.
        examples: sets of latents to send; prompts are read if all have them.
        metric: image error caused by latent errors (`pixel_metric`).
        steps: total optimiser steps, divided among the groups of conditions if the method has any.
        seed: seed of all randomness.
        parameter_fraction: upper limit of trained parameters, relative to those of the codec.
        batch: rows per step.
        learning_rate: peak learning rate; default: that of the method.
        bf16: run the convolutions in bfloat16.
        only: a single condition (one row) to train for, instead of random ones.
        adapted: model to train, instead of a new one.
        crop: train on random squares of so many latent pixels a side, each sent as an image of its own;
            default: on whole latents.
        show: show a progress bar.
    """
    torch.manual_seed(seed)
    text_width = _text_width(examples)
    model = build(method, codec, parameter_fraction, text_width) if adapted is None else adapted
    peak = METHODS[method].learning_rate if learning_rate is None else learning_rate
    if not model.trained_parameters():
        return model
    run = TrainingRun(folder, model, _optimizers(model, peak), seed=seed, ema_decay=0.998)

    # after the average was copied: only training uses this layout, which makes it a third faster
    for stack in (model.codec.encoder, model.codec.decoder):
        stack.register_forward_pre_hook(_channels_last)

    def step(number: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        clean, text = draw_mixed(examples, batch, generator, crop=crop)
        group = number % model.groups
        model.select_group(group)
        if only is not None:
            conditions = only.take(torch.zeros(batch, dtype=torch.int64))
        else:
            conditions = draw_conditions(8 * batch if model.groups > 1 else batch, generator)
            inside = model.group_of(conditions.features()) == group
            conditions = conditions.take(inside.nonzero()[:batch, 0])
        clean, text = clean[: len(conditions)], None if text is None else text[: len(conditions)]
        sent = send(model, clean, conditions, generator, text=text, bf16=bf16)
        error = image_error(sent.received, clean, metric)
        distortion = (error + ERROR_FLOOR).log().mean()
        return {
            "loss": distortion + COMMITMENT * sent.commitment,
            "psnr_db": -10 / math.log(10) * distortion.detach(),
        }

    run.run(step, steps, show=show)
    average: AdaptedCodec = run.average
    return average


def _text_width(examples: Sequence[Examples]) -> int:
    """Width of the prompts' states; 0 unless all sets have them."""
    widths = {each.text_width for each in examples}
    return widths.pop() if len(widths) == 1 else 0


def _optimizers(model: torch.nn.Module, peak: float) -> list[torch.optim.Optimizer]:
    """Muon for convolutions and low-rank factors, AdamW for gates, biases and small kernels."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    factors = [
        p for name, p in named
        if p.ndim in (2, 4) and min(len(p), p[0].numel()) > 1 and not _GATES.search(name)
    ]  # fmt: skip
    others = [p for _, p in named if not any(p is factor for factor in factors)]
    found: list[torch.optim.Optimizer] = []
    if factors:
        found.append(Muon(factors, peak, weight_decay=0.0))
    if others:
        found.append(torch.optim.AdamW(others, lr=peak, weight_decay=0.0, fused=True))
    return found


@torch.inference_mode()
def expected_psnr_db(
    adapted: AdaptedCodec,
    latents: torch.Tensor,
    conditions: ConditionBatch,
    metric: torch.Tensor,
    *,
    text: torch.Tensor | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """(n,) PSNR, dB, by `metric`, of latents (n, c, h, w) sent under n conditions of one group."""
    generator = torch.Generator().manual_seed(seed)
    adapted.select_group(int(adapted.group_of(conditions.features())[0]))
    sent = send(adapted, latents.float(), conditions, generator, text=text)
    return -10 * torch.log10(image_error(sent.received, latents.float(), metric) + 1e-10)


def grid_condition(
    cbr: float, snr_db: float, *, los_fraction: float = 1.0, tau_rms_s: float = 0.0, count: int = 1
) -> ConditionBatch:
    """`count` rows with the same condition."""

    def rows(value: float) -> torch.Tensor:
        return torch.full((count,), value, dtype=torch.float32)

    known = (rows(0.0), rows(0.0), rows(0.0))
    return ConditionBatch(rows(cbr), rows(snr_db), rows(los_fraction), rows(tau_rms_s), *known)


def deliver(
    adapted: AdaptedCodec,
    latents: torch.Tensor,
    cbr: float,
    conditions: LinkConditions,
    seeds: Sequence[int],
    *,
    modulation: Modulation | None = None,
    text: Text = None,
) -> torch.Tensor:
    """Send latents (n, c, h, w) over the simulated link under one condition, with one seed each.

    As in the services, the sender adapts to the reported SNR and the receiver to its CSI.
    """
    values = source_values(latents)
    result = SemanticLink(adapted).send(
        latents.float(),
        [conditions] * len(latents),
        seeds,
        source_values=values,
        channel_uses=max(1, round(cbr * values)),
        modulation=modulation,
        text=text,
    )
    return result.latents


QUALITY_CBRS = tuple(2.0 ** (-i / 2) / 96 for i in range(6, -1, -1))
QUALITY_SNRS_DB = (-10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
QUALITY_TAUS_S = (1e-8, 1e-7, 1e-6)
QUALITY_RICIAN_K_DB = 6.0


def calibrate_quality(
    adapted: AdaptedCodec,
    decode: Callable[[torch.Tensor], torch.Tensor],
    examples: Examples,
    *,
    seed: int = 0,
    cbrs: Sequence[float] = QUALITY_CBRS,
    snrs_db: Sequence[float] = QUALITY_SNRS_DB,
    taus_s: Sequence[float] = QUALITY_TAUS_S,
    show: bool = True,
) -> QualityModel:
    """Measure the PSNR of images over rates, SNRs and channels, for rate control.

    Channels: Rayleigh and Rician (K of 6 dB) with each delay spread, and AWGN. Perfect CSI, MMSE.

    Args:
        adapted: codec to measure.
        decode: latents -> images in [-1, 1].
        examples: not used in training; each is sent once under every condition, with its prompt.
        seed: seed of fading and noise.
        cbrs: rates, ascending.
        snrs_db: mean SNRs, ascending, dB.
        taus_s: delay spreads, ascending, s.
        show: show a progress bar.
    """
    clean = examples.latents.float()
    text = None if examples.text is None else list(examples.text)
    reference = decode(clean)
    rician = LinkConditions(fading="rician", rician_k_db=QUALITY_RICIAN_K_DB)
    directs = (0.0, los_power_fraction(rician), 1.0)
    fadings: tuple[Fading, ...] = ("rayleigh", "rician", "awgn")
    mean = np.zeros((len(directs), len(taus_s), len(snrs_db), len(cbrs)))
    spread = np.zeros_like(mean)
    with tqdm(total=mean.size, disable=not show, desc="quality") as bar:
        for place in np.ndindex(mean.shape):
            fading, tau_s, snr_db, cbr = (
                fadings[place[0]], taus_s[place[1]], snrs_db[place[2]], cbrs[place[3]],
            )  # fmt: skip
            bar.update()
            if fading == "awgn" and place[1]:
                mean[place], spread[place] = mean[place[0], 0][place[2:]], spread[place[0], 0][place[2:]]
                continue
            conditions = LinkConditions(
                snr_db=snr_db, fading=fading, tau_rms_s=tau_s, rician_k_db=QUALITY_RICIAN_K_DB
            )
            received = deliver(adapted, clean, cbr, conditions, range(seed, seed + len(clean)), text=text)
            psnr = psnr_db(decode(received), reference)
            mean[place], spread[place] = float(psnr.mean()), float(psnr.std())
    return QualityModel(
        tuple(cbrs), tuple(snrs_db), directs, tuple(taus_s), mean.round(3).tolist(), spread.round(3).tolist()
    )


def train_knowledge(
    folder: Path,
    codec: JsccCodec,
    base_hash: str,
    decode: Callable[[torch.Tensor], torch.Tensor],
    examples: Sequence[Examples],
    validation: Examples,
    *,
    steps: int,
    seed: int,
    parameter_fraction: float,
    method: str = CALA,
    bf16: bool = False,
    command: str = "",
    quality_grid: Mapping[str, Any] | None = None,
    crop: int | None = None,
    vae_hash: str = "",
) -> TransmissionKnowledge:
    """Train CALA or another method and measure its quality; returns the artifact that edge and user load.

    Args:
        folder: folder of the checkpoints; training resumes from them.
        codec: the base codec.
        base_hash: hash of the codec's folder.
        decode: latents -> images in [-1, 1], without gradients.
        examples: sets to train on, in equal parts; prompts are read if all have them.
        validation: what to measure on.
        steps: total optimiser steps.
        seed: seed of all randomness.
        parameter_fraction: upper limit of trained parameters, relative to those of the codec.
        method: a name in METHODS, or the name of a plug-in.
        bf16: run the convolutions in bfloat16.
        command: command line to record in the artifact.
        quality_grid: `cbrs`, `snrs_db` and `taus_s` of `calibrate_quality`; default: its defaults.
        crop: train on random squares of so many latent pixels a side; default: on whole latents. The quality
            is always measured on whole ones.
        vae_hash: hash of the autoencoder to record in the artifact; default: none is recorded.

    Raises:
        InvalidInputError: there is no such method, it trains no parameters, or the fraction is too small for
            it.
    """
    decode = torch.no_grad()(decode)
    first = torch.arange(min(METRIC_LATENTS, len(examples[0])))
    metric = pixel_metric(
        decode, picked(examples[0].latents, first, crop, torch.Generator().manual_seed(seed))
    )
    text_width = _text_width(examples)
    torch.manual_seed(seed)
    model = build(method, codec, parameter_fraction, text_width)
    if not model.trained_parameters():
        raise InvalidInputError("method", "one that trains something", method)
    parameters, of_codec = model.trained_parameters(), sum(p.numel() for p in codec.parameters())
    trained = train_method(
        folder, method, codec, examples, metric, steps=steps, seed=seed, bf16=bf16, adapted=model, crop=crop
    )
    info = {"base_hash": base_hash} | ({"vae_hash": vae_hash} if vae_hash else {})
    if isinstance(trained, Cala) and method == CALA:
        knowledge = TransmissionKnowledge.new(info, trained.peft)
    else:
        values = dict(trained.named_parameters())
        weights = {name: values[name] for name, each in model.named_parameters() if each.requires_grad}
        knowledge = TransmissionKnowledge.of_method(info, method, parameter_fraction, weights, text_width)
    # measured in its final form: loaded into a new codec, with rounded weights
    quality = calibrate_quality(attached(codec, knowledge), decode, validation, **(quality_grid or {}))
    return knowledge.with_info(
        config={
            "steps": steps,
            "seed": seed,
            "command": command,
            "metric": metric.tolist(),
            "bf16": bf16,
            "examples_hash": examples_hash(examples),
        },
        scores={
            "parameters": parameters,
            "share": round(parameters / of_codec, 5),
            "mean_psnr_db": round(float(np.mean(quality.mean_db)), 2),
        },
        quality=quality.to_json(),
    )
