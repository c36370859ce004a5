"""The trainings of `dekag experiment tka`: every method, fraction and length, and the oracle.

CALA's first training is the shipped artifact itself, if it was trained as everything else is here: as by
`dekag train cala --drawn`, on the same examples, half of them rendered and half drawn by the edge, with their
prompts, and with the same loss. If not, or if the artifact does not say, CALA is trained here as well. A
training is kept in runs/tka under a hash of all it depends on: an interrupted one goes on from its
checkpoint, a finished one is read.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dekag import plugins
from dekag.cala.conditions import los_power_fraction
from dekag.cala.methods import METHODS, AdaptedCodec, build
from dekag.documents import read_json
from dekag.errors import InvalidInputError
from dekag.evaluation.models import ModelBank
from dekag.evaluation.store import ResultStore, content_key
from dekag.evaluation.studies.digital import Key, conditions_of
from dekag.generation.autoencoder import decode
from dekag.generation.loading import pipeline_hash
from dekag.generation.machine import machine_placement
from dekag.generation.placement import other_devices
from dekag.training.cala import METRIC_LATENTS, ConditionBatch, grid_condition, pixel_metric, train_method
from dekag.training.data import SCENES
from dekag.training.examples import Examples, examples_hash, rendered_examples
from dekag.training.latent_sets import LatentSet, latents_of_prompts
from dekag.training.latents import autoencoder_hash
from dekag.training.worlds import STICKERS

CACHE = Path("runs/cache")  # where `dekag train` keeps the latents as well
HELD_OUT = 1000  # rendered latents at the end that nothing is trained on
DRAWN, DRAWN_SEED = 2000, 1  # as `dekag train latents` draws them if nothing else is asked for
STRONG = "unaligned-strong"
"""The codec that adapters adapt, without them, where unaligned deliveries have another one: a method beside
those of METHODS."""
EQUAL = "cala-equal-steps"
"""CALA trained as its baselines, where the shipped adapters were trained otherwise, or do not say how."""
FRACTION = 0.05
FRACTIONS = (0.01, 0.03, 0.05, 0.1)
FRACTION_METHODS = ("cala", "lora")
LENGTHS = (250, 1000, 3000)
COMPARABLE = tuple(name for name in METHODS if name not in ("none", "cala"))
"""All methods that CALA can be compared with, but no alignment."""
ORACLE_CHANNELS = ("awgn", "rayleigh-1us")
ORACLE_SNRS_DB = (-5.0, 5.0, 15.0)
ORACLE_CBRS = (1 / 96, 1 / 384)
ORACLE_LEARNING_RATE = 1e-3  # it starts from what the shared fine-tune has learnt
VERSION = 3  # raised when the code changes what a training comes out as


@dataclass(frozen=True)
class Plan:
    """On what and for how long everything is trained.

    Attributes:
        drawn: latent set that the edge drew; None: one like that of `dekag train latents` is drawn.
        bf16: compute products in bfloat16.
        methods: baselines to compare with, of COMPARABLE; no alignment and "cala" are always compared.
        curves: whether the curves over fractions and lengths, and the oracles, are wanted.
        seeds: trainings of CALA and of the best baseline; all others are trained once.
        steps: of each baseline; None: as many as the shipped adapters took.
        fraction: largest fraction of parameters that a method may train.
        fractions: of the curve of PSNR against that fraction.
        fraction_steps: of each of its points.
        lengths: steps of each point of the curve of PSNR against the length of CALA's training.
        oracle_steps: of each condition's own fine-tune, after the shared one's.
        seed: of everything random; None: that of the shipped adapters.
    """

    drawn: Path | None = None
    bf16: bool = False
    methods: tuple[str, ...] = COMPARABLE
    curves: bool = True
    seeds: int = 3
    steps: int | None = None
    fraction: float = FRACTION
    fractions: tuple[float, ...] = FRACTIONS
    fraction_steps: int = 1000
    lengths: tuple[int, ...] = LENGTHS
    oracle_steps: int = 500
    seed: int | None = None


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        method: a name in METHODS.
        fraction: largest fraction of parameters.
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


@dataclass(frozen=True)
class Trainings:
    """Makes what is compared, or reads it where an earlier run has made it.

    Attributes:
        bank: the models.
        plan: on what and for how long everything is trained.
        store: where checkpoints are kept.
    """

    bank: ModelBank
    plan: Plan
    store: ResultStore

    @cached_property
    def drawn(self) -> LatentSet:
        """The latents that the edge drew.

        Raises:
            FileError: the plan's folder holds no complete latent set.
            MismatchError: they are of another autoencoder.
        """
        profile, folder = self.bank.profile, self.plan.drawn
        if folder is None:
            placed = machine_placement()  # whose settings change the bits, too
            edge = placed.formatted(profile.edge)
            sampled = edge.steps, edge.guidance_scale, profile.size
            captions = STICKERS.edge_captions(DRAWN, DRAWN_SEED)
            key = content_key(pipeline_hash(edge), *sampled, *captions, *edge.formats, *placed.devices)
            folder = self.store.folder("latents", key)
            latents_of_prompts(folder, profile, captions, count=DRAWN, seed=DRAWN_SEED)
        found = LatentSet.load(folder)
        found.check_autoencoder(profile.edge)
        return found

    @cached_property
    def examples(self) -> list[Examples]:
        """The sets to train on, rendered and drawn, with the states of their prompts."""
        # first what is checked: rendering takes long
        own, _ = self.drawn.examples(self.bank.side_information)
        world = dataclasses.replace(STICKERS, size=self.bank.profile.size)
        rendered = rendered_examples(
            CACHE, self.bank.autoencoder, SCENES, world=world, side_information=self.bank.side_information
        )
        return [rendered.rows(slice(-HELD_OUT)), own]

    @cached_property
    def examples_hash(self) -> str:
        """SHA-256 (hex) of the examples: of all latents and of the states of all prompts."""
        return examples_hash(self.examples)

    @property
    def text_width(self) -> int:
        """Width of the prompts' states; 0 if the examples have none."""
        return self.examples[0].text_width

    @cached_property
    def metric(self) -> torch.Tensor:
        """What latent errors cost in the image, (channels, channels)."""

        def measure() -> Any:
            first = self.examples[0].latents[:METRIC_LATENTS].float()
            return pixel_metric(lambda each: decode(self.bank.autoencoder, each), first).tolist()

        vae = self.bank.autoencoder
        key = content_key(VERSION, autoencoder_hash(vae), self.examples_hash, *other_devices(vae))
        return torch.tensor(self.store.json("metrics", key, measure))

    @property
    def steps(self) -> int:
        """Steps of the main comparison."""
        return self.plan.steps or self.shipped_steps

    @property
    def shipped_steps(self) -> int:
        """Steps of the shipped adapters."""
        return int(self.bank.adapters.info["config"]["steps"])

    @cached_property
    def compared(self) -> str:
        """The name of the CALA that baselines are compared with: the shipped one, or one trained as they are.

        The shipped one is, if it was trained for as many steps, with the same seed and precision, and on the
        same examples. Adapters that do not say on which were perhaps trained on others.
        """
        config = self.bank.adapters.info["config"]
        alike = self.steps == self.shipped_steps and self.seed == int(config["seed"])
        # last the examples, which take long to make
        alike = alike and config.get("bf16") == self.plan.bf16 and bool(self.shipped_on_these)
        return "cala" if alike else EQUAL

    @property
    def shipped_on_these(self) -> bool | None:
        """Whether the shipped adapters were trained on the same examples; None if they do not say."""
        known = self.bank.adapters.info["config"].get("examples_hash")
        return None if known is None else bool(known == self.examples_hash)

    @property
    def codec_on_these(self) -> bool | None:
        """The same of the codec that adapters adapt, in the last of its trainings."""
        known = (read_json(Path(self.bank.profile.codec) / "training.json") or {}).get("examples_hash")
        return None if known is None else bool(known == self.examples_hash)

    @property
    def unaligned(self) -> tuple[str, ...]:
        """The definitions of no alignment: "none", the codec of unaligned deliveries, and perhaps STRONG."""
        return ("none", STRONG) if self.bank.profile.unaligned_codec is not None else ("none",)

    @property
    def codec_steps(self) -> int:
        """Steps of the codec that adapters adapt, with those of the codecs that its training went on from."""
        record, steps = read_json(Path(self.bank.profile.codec) / "training.json"), 0
        while record is not None:
            steps, record = steps + int(record["steps"]), record.get("continues")
        return steps

    @property
    def seed(self) -> int:
        """Seed of each method's first training."""
        return int(self.bank.adapters.info["config"]["seed"]) if self.plan.seed is None else self.plan.seed

    def baselines(self) -> dict[str, Training]:
        """The first training of each method but the shipped CALA; the fine-tune first: oracles wait."""
        wanted = set(self.plan.methods) | ({"fine-tune"} if self.plan.curves else set())
        found = {
            name: Training(name, self.plan.fraction, self.steps, self.seed)
            for name in sorted(COMPARABLE, key=lambda name: name != "fine-tune")
            if name in wanted
        }
        if self.compared == EQUAL:
            found[EQUAL] = Training("cala", self.plan.fraction, self.steps, self.seed)
        return found

    def repeats(self, method: str) -> list[Training]:
        """All trainings of a method but its first."""
        name = "cala" if method == EQUAL else method
        return [
            Training(name, self.plan.fraction, self.steps, self.seed + number)
            for number in range(1, self.plan.seeds)
        ]

    def fractions(self) -> list[Training]:
        """PSNR against the fraction of parameters; without fractions too small for a method."""
        if not self.plan.curves:
            return []
        return [
            Training(name, fraction, self.plan.fraction_steps, self.seed)
            for name in FRACTION_METHODS
            for fraction in self.plan.fractions
            if self.fits(name, fraction)
        ]

    def lengths(self) -> list[Training]:
        """PSNR against the length of CALA's training; each is a training with a cool-down of its own."""
        lengths = self.plan.lengths if self.plan.curves else ()
        return [Training("cala", self.plan.fraction, steps, self.seed) for steps in lengths]

    def oracles(self) -> list[Training]:
        """A full fine-tune for each of a subset of the conditions."""
        if not self.plan.curves:
            return []
        steps, fraction = self.plan.oracle_steps, self.plan.fraction
        return [
            Training("fine-tune", fraction, steps, self.seed, (channel, cbr, snr), self.steps)
            for channel in ORACLE_CHANNELS
            for snr in ORACLE_SNRS_DB
            for cbr in ORACLE_CBRS
        ]

    def fits(self, method: str, fraction: float) -> bool:
        """Whether the method can be built with so few parameters."""
        try:
            self.parameters(method, fraction)
        except InvalidInputError:
            return False
        return True

    def parameters(self, method: str, fraction: float) -> int:
        """Number of parameters that a method trains; InvalidInputError if the fraction is too small."""
        if method == STRONG:
            return 0
        return build(
            "cala" if method == EQUAL else method, self.bank.codec, fraction, self.text_width
        ).trained_parameters()

    def key(self, training: Training) -> str:
        """Hash of a training and of everything that it depends on."""
        known: list[Any] = [VERSION, self.bank.codec_hash, self.examples_hash, self.metric.tolist()]
        known.append(self.plan.bf16)
        if (code := plugins.code_hashes().get(f"method {training.method}")) is not None:
            known.append(code)
        return content_key(*known, asdict(training))

    def train(self, training: Training, *, show: bool = True) -> AdaptedCodec:
        """Train, go on with, or read a training."""
        folder = self.store.folder("trainings", self.key(training))
        start, rate = None, None
        if training.only is not None:
            shared = Training(training.method, training.fraction, training.before, training.seed)
            start = copy.deepcopy(self.train(shared, show=show)).requires_grad_(True)
            rate = ORACLE_LEARNING_RATE
        return train_method(
            folder,
            training.method,
            self.bank.codec,
            self.examples,
            self.metric,
            steps=training.steps,
            seed=training.seed,
            parameter_fraction=training.fraction,
            learning_rate=rate,
            bf16=self.plan.bf16,
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
