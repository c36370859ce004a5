"""The trainings of `dekag experiment tka`: every method, every share, and the oracle.

CALA at the share that ships is the shipped artifact itself; everything else is trained here, on the same
latents with the same loss. A training is kept in runs/tka under a hash of all it depends on: an interrupted
one goes on from its checkpoint, a finished one is read.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dekag import plugins
from dekag.cala.conditions import los_power_fraction
from dekag.cala.methods import METHODS, AdaptedCodec, build
from dekag.errors import InvalidInputError
from dekag.evaluation.models import ModelBank
from dekag.evaluation.store import ResultStore, content_key
from dekag.evaluation.studies.digital import Key, conditions_of
from dekag.generation.autoencoder import decode
from dekag.training.cala import METRIC_LATENTS, ConditionBatch, grid_condition, pixel_metric, train_method
from dekag.training.examples import Examples
from dekag.training.latents import encoded_scenes

CACHE = Path("runs/cache")  # where `dekag train` keeps the latents as well
HELD_OUT = 1000  # latents at the end that nothing is trained on
FRACTION = 0.05
FRACTIONS = (0.01, 0.03, 0.05, 0.1)
FRACTION_METHODS = ("cala", "lora")
ORACLE_CHANNELS = ("awgn", "rayleigh-1us")
ORACLE_SNRS_DB = (-5.0, 5.0, 15.0)
ORACLE_CBRS = (1 / 96, 1 / 384)
ORACLE_LEARNING_RATE = 1e-3  # it starts from what the shared fine-tune has learnt
VERSION = 1  # raised when the code changes what a training comes out as


@dataclass(frozen=True)
class Plan:
    """How long everything is trained.

    Attributes:
        steps: of each baseline; None: as many as the shipped adapters took.
        fraction_steps: of each point of the curve of PSNR against the fraction of trained parameters.
        oracle_steps: of each condition's own fine-tune, after the shared one's.
        seed: of everything random; None: that of the shipped adapters.
    """

    steps: int | None = None
    fraction_steps: int = 1000
    oracle_steps: int = 500
    seed: int | None = None


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        method: a name in METHODS.
        share: largest fraction of parameters.
        steps: optimiser steps.
        seed: of everything random.
        only: the one condition of an oracle, which starts from the shared fine-tune of `before` steps.
        before: see `only`.
    """

    method: str
    fraction: float
    steps: int
    seed: int
    only: Key | None = None
    before: int = 0

    def hashed(self) -> dict[str, Any]:
        """What is hashed of it: its fields, `fraction` under the name "share" that it once had."""
        return {"share" if name == "fraction" else name: value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Trainings:
    """Makes what is compared, or reads it where an earlier run has made it.

    Attributes:
        bank: the models.
        plan: how long everything is trained.
        store: where checkpoints are kept.
    """

    bank: ModelBank
    plan: Plan
    store: ResultStore

    @cached_property
    def latents(self) -> torch.Tensor:
        """(n, c, h, w) to train on."""
        return encoded_scenes(CACHE, self.bank.autoencoder)[:-HELD_OUT]

    @cached_property
    def metric(self) -> torch.Tensor:
        """What latent errors cost in the image."""
        return pixel_metric(
            lambda each: decode(self.bank.autoencoder, each), self.latents[:METRIC_LATENTS].float()
        )

    @property
    def steps(self) -> int:
        """Steps of the main comparison."""
        return self.plan.steps or int(self.bank.adapters.info["config"]["steps"])

    @property
    def seed(self) -> int:
        """Training seed of the main comparison."""
        return int(self.bank.adapters.info["config"]["seed"]) if self.plan.seed is None else self.plan.seed

    def baselines(self) -> list[Training]:
        """The trained methods beside CALA; the fine-tune first, as oracles wait for it."""
        names = [name for name in METHODS if name not in ("none", "cala", "fine-tune")]
        return [Training(name, FRACTION, self.steps, self.seed) for name in ["fine-tune", *names]]

    def fractions(self) -> list[Training]:
        """PSNR against the fraction of parameters; without fractions too small for a method."""
        return [
            Training(name, fraction, self.plan.fraction_steps, self.seed)
            for name in FRACTION_METHODS
            for fraction in FRACTIONS
            if self.fits(name, fraction)
        ]

    def fits(self, method: str, fraction: float) -> bool:
        """Whether the method can be built with so few parameters."""
        try:
            build(method, self.bank.codec, fraction)
        except InvalidInputError:
            return False
        return True

    def oracles(self) -> list[Training]:
        """A full fine-tune for each of a subset of the conditions."""
        return [
            Training(
                "fine-tune", FRACTION, self.plan.oracle_steps, self.seed, (channel, cbr, snr), self.steps
            )
            for channel in ORACLE_CHANNELS
            for snr in ORACLE_SNRS_DB
            for cbr in ORACLE_CBRS
        ]

    def key(self, training: Training) -> str:
        """Hash of a training and of everything that it depends on."""
        known: list[Any] = [VERSION, self.bank.codec_hash, len(self.latents), self.metric.tolist()]
        if (code := plugins.code_hashes().get(f"method {training.method}")) is not None:
            known.append(code)
        return content_key(*known, training.hashed())

    def train(self, training: Training, *, show: bool = True) -> AdaptedCodec:
        """Train, go on with, or read a training."""
        start, rate = None, None
        if training.only is not None:
            shared = Training(training.method, training.fraction, training.before, training.seed)
            start = copy.deepcopy(self.train(shared, show=show)).requires_grad_(True)
            rate = ORACLE_LEARNING_RATE
        return train_method(
            self.store.folder("trainings", self.key(training)),
            training.method,
            self.bank.codec,
            [Examples(self.latents)],
            self.metric,
            steps=training.steps,
            seed=training.seed,
            parameter_fraction=training.fraction,
            learning_rate=rate,
            bf16=True,
            only=None if training.only is None else one_condition(training.only),
            adapted=start,
            show=show,
        )


def one_condition(key: Key) -> ConditionBatch:
    """A cell of the grid as trainings see it."""
    channel, cbr, snr_db = key
    conditions = conditions_of(channel, snr_db)
    tau_rms_s = 0.0 if conditions.fading == "awgn" else conditions.tau_rms_s
    return grid_condition(cbr, snr_db, los_fraction=los_power_fraction(conditions), tau_rms_s=tau_rms_s)
