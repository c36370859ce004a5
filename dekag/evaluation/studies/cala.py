"""`dekag experiment tka`: transmission-knowledge alignment, CALA and its baselines.

Every method sends the same images, which the edge drew of held-out prompts, over every channel, rate and
SNR of the grid, with the same fades and noise for all, and with their prompts if it reads them. Channels that
no training ever drew, a sender that is told a wrong SNR, prompts that are withheld or wrong, and rate control
are measured as well.

There are two definitions of no alignment: "none" is the codec of unaligned deliveries, trained on a clean
channel at the highest rate; STRONG is the codec that the adapters adapt, without them, which was trained on a
clean channel at every rate and with prompts.

"cala" is what ships. Where that was not trained as the baselines are, EQUAL is CALA trained as they are, and
what they are compared with.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from dekag import plugins
from dekag.cala.aligned_codec import AlignedCodec
from dekag.cala.conditions import condition_vector
from dekag.cala.methods import METHODS, AdaptedCodec, Cala
from dekag.codec.packed import pack
from dekag.documents import parse_json
from dekag.errors import NotFoundError
from dekag.evaluation.models import ModelBank, model_bank
from dekag.evaluation.pages import Row, note_image, save_images, write_rows
from dekag.evaluation.plots import panels, write_plot
from dekag.evaluation.prompts import Prompt, edge_prompts, wrong_prompts
from dekag.evaluation.registry import RESULTS, forget, record
from dekag.evaluation.runner import run_in_processes, run_serially
from dekag.evaluation.statistics import (
    bootstrap_ci95,
    bootstrap_mean,
    bootstrap_trainings,
    mean_ci95,
    ratio_of_medians,
)
from dekag.evaluation.store import ResultStore, content_key
from dekag.evaluation.studies.cala_training import (
    EQUAL,
    ORACLE_CBRS,
    ORACLE_CHANNELS,
    ORACLE_SNRS_DB,
    STRONG,
    Plan,
    Training,
    Trainings,
)
from dekag.evaluation.studies.digital import CHANNELS, RATES, SNRS_DB, Semantic, draw_edge_images
from dekag.generation.loading import folder_hash
from dekag.link.conditions import LinkConditions
from dekag.link.equalizer import equalize
from dekag.metrics.features import encoder_hashes
from dekag.metrics.image import psnr_db
from dekag.pipeline import SemanticLink
from dekag.training.cala import deliver, source_values

Array = npt.NDArray[np.float64]

COMMAND = "dekag experiment tka"
FOLDER = "tka"
RUNS = Path("runs/tka")
GRID_SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
TOLD_SNR_DB = 10.0
"""At which PSNR at the highest rate is a figure of its own."""
METRICS = ("psnr_db", "ssim", "ms_ssim", "clip", "dino")
STRUCTURE_IMAGES = 8  # SSIM takes longer than all the rest: it is of the first images only
# what no training draws -> the trained channel beside it
UNSEEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{
        f"tdl-{profile}-{tau_ns}ns": (
            {"fading": f"tdl-{profile}", "tau_rms_s": tau_ns * 1e-9},
            {"fading": "rayleigh", "tau_rms_s": tau_ns * 1e-9},
        )
        for profile, tau_ns in (("a", 100), ("b", 100), ("c", 300))
    },
    **{
        f"tdl-{profile}-100ns": (
            {"fading": f"tdl-{profile}", "tau_rms_s": 1e-7},
            {"fading": "rician", "rician_k_db": 12.0, "tau_rms_s": 1e-7},
        )
        for profile in ("d", "e")
    },
    "rayleigh-flat": (
        {"fading": "rayleigh", "tau_rms_s": 0.0},
        {"fading": "rayleigh", "tau_rms_s": 1e-8},
    ),
    "rayleigh-30us": (
        {"fading": "rayleigh", "tau_rms_s": 3e-5},
        {"fading": "rayleigh", "tau_rms_s": 1e-5},
    ),
}
UNSEEN_CBRS, UNSEEN_SNRS_DB = (1 / 96, 1 / 384), (0.0, 10.0, 20.0)
BEYOND_DB = {-7.5: -5.0, 22.5: 20.0, 25.0: 20.0}  # SNRs beyond the trained ones -> the end beside each
OFFSETS_DB = (-10.0, -5.0, 0.0, 5.0, 10.0)  # of the SNR that the sender is told
MISMATCH_CHANNELS, MISMATCH_SNRS_DB = ("awgn", "rayleigh-1us"), (0.0, 5.0, 10.0, 15.0)
TARGETS_DB = (18.0, 20.0, 22.0, 24.0)
COST_BATCH, WARM_UP = 16, 5
COSTS = {  # what is timed -> what it is compared with
    "a new condition": "plain",
    "a batch of mixed conditions": "plain batch",
}
BASELINES = ("lora", "lora-groups", "snr-attention")  # baselines of no more parameters than CALA
REFERENCES = ("none", STRONG)  # what CALA's gain is over
PROMPTS = ("right", "withheld", "foreign", "wrong")  # "right" is an image's own, "foreign" another image's
PROMPT_CHANNELS = ("awgn", "rayleigh-1us")
SHOWN_CHANNEL = "rayleigh-1us"
SHOWN_METHODS = (*REFERENCES, "lora", "cala", "fine-tune")
VERSION = 2  # raised when the code changes what a block comes out as, by more than rounding


@dataclass(frozen=True)
class ChannelEvaluation:
    """A method over one channel.

    Attributes:
        method: "none", "cala" (as it ships), or what `training` made.
        channel: fields of LinkConditions without the SNR, as JSON.
        cbrs: rates.
        snrs_db: mean SNRs, dB.
        offset_db: added to the SNR that the sender is told, dB.
        training: what made the method.
        features: whether CLIP- and DINO-scores are wanted; they need a profile with a scorer.
        structure: whether SSIM and MS-SSIM are wanted.
        prompt: of PROMPTS, what a method that reads prompts is told.
    """

    method: str
    channel: str
    cbrs: tuple[float, ...]
    snrs_db: tuple[float, ...]
    offset_db: float = 0.0
    training: Training | None = None
    features: bool = False
    structure: bool = False
    prompt: str = "right"

    def conditions(self, snr_db: float) -> LinkConditions:
        """At one of its SNRs."""
        told = None if self.offset_db == 0 else snr_db + self.offset_db
        link = parse_json(self.channel, "channel")
        return LinkConditions.model_validate({**link, "snr_db": snr_db, "reported_snr_db": told})


def as_channel(link: dict[str, Any]) -> str:
    """What `ChannelEvaluation.channel` holds."""
    return json.dumps(link, sort_keys=True)


def main_evaluation(method: str, channel: str, training: Training | None = None) -> ChannelEvaluation:
    """A method over a channel of the grid; the shipped CALA in more detail, for digital baselines."""
    fine = method == "cala" and training is None
    return ChannelEvaluation(
        "cala" if method == EQUAL else method,
        as_channel(CHANNELS[channel]),
        RATES,
        SNRS_DB if fine else GRID_SNRS_DB,
        training=training,
        features=fine,
        structure=True,
    )


def curve_evaluation(training: Training, channel: str) -> ChannelEvaluation:
    """A point of a curve, against the fraction of trained parameters or against the length of training."""
    link = as_channel(CHANNELS[channel])
    return ChannelEvaluation(training.method, link, ORACLE_CBRS, ORACLE_SNRS_DB, training=training)


def oracle_evaluation(training: Training) -> ChannelEvaluation:
    """An oracle in the one cell that it was trained for."""
    if training.only is None:
        raise ValueError("not a ceiling")
    channel, cbr, snr_db = training.only
    return ChannelEvaluation("fine-tune", as_channel(CHANNELS[channel]), (cbr,), (snr_db,), training=training)


def unseen_evaluations() -> dict[str, tuple[ChannelEvaluation, ChannelEvaluation]]:
    """Each unseen condition with the trained one beside it, both for the shipped CALA."""
    found = {}
    for name, pair in UNSEEN.items():
        beside, trained = (
            ChannelEvaluation("cala", as_channel(link), UNSEEN_CBRS, UNSEEN_SNRS_DB)
            for link in (pair[0], pair[1])
        )
        found[name] = (beside, trained)
    for snr_db, end_db in BEYOND_DB.items():
        for channel in MISMATCH_CHANNELS:
            link = as_channel(CHANNELS[channel])
            found[f"{snr_db:g} dB, {channel}"] = (
                ChannelEvaluation("cala", link, UNSEEN_CBRS, (snr_db,)),
                ChannelEvaluation("cala", link, UNSEEN_CBRS, (end_db,)),
            )
    return found


def mismatch_evaluations() -> dict[tuple[str, float], ChannelEvaluation]:
    """CALA with a sender that is told a wrong SNR."""
    return {
        (channel, offset): ChannelEvaluation(
            "cala", as_channel(CHANNELS[channel]), (1 / 96, 1 / 384), MISMATCH_SNRS_DB, offset_db=offset
        )
        for channel in MISMATCH_CHANNELS
        for offset in OFFSETS_DB
    }


def prompt_evaluations() -> dict[tuple[str, str], ChannelEvaluation]:
    """CALA with each of PROMPTS over PROMPT_CHANNELS."""
    return {
        (prompt, channel): ChannelEvaluation(
            "cala", as_channel(CHANNELS[channel]), RATES, GRID_SNRS_DB, prompt=prompt
        )
        for prompt in PROMPTS
        for channel in PROMPT_CHANNELS
    }


def told_prompts(prompts: Sequence[Prompt]) -> dict[str, list[str | None]]:
    """What a method that reads prompts is told of each image, by the names in PROMPTS."""
    own: list[str | None] = [text for _, text, _ in prompts]
    return {
        "right": own,
        "withheld": [None] * len(own),
        "foreign": own[1:] + own[:1],
        "wrong": [*wrong_prompts(prompts)],
    }


@dataclass(frozen=True)
class CalaStudy:
    """What one process measures with: the images that all methods send, and the methods.

    Attributes:
        trainings: makes the methods.
        latents: (n, c, h, w).
        pixels: (n, height, width, 3) uint8: the latents, decoded without a channel.
        seeds: of each image, also of its channel.
        identity: hash of all that a block depends on beside itself.
        prompts: what a method that reads prompts is told of each image, by the names in PROMPTS.
    """

    trainings: Trainings
    latents: torch.Tensor
    pixels: npt.NDArray[np.uint8]
    seeds: list[int]
    identity: str
    prompts: Mapping[str, Sequence[str | None]]

    @property
    def bank(self) -> ModelBank:
        """The models."""
        return self.trainings.bank

    @property
    def store(self) -> ResultStore:
        """Where results are kept."""
        return self.trainings.store

    @classmethod
    def load(cls, trainings: Trainings, count: int) -> CalaStudy:
        """Let the edge draw `count` images."""
        bank = trainings.bank
        edge, prompts = bank.edge, told_prompts(edge_prompts(count))
        latents, pixels, seeds = draw_edge_images(edge, count)
        known = [VERSION, bank.codec_hash, folder_hash(bank.profile.codec_without_alignment)]
        known += [bank.adapters.content_hash, edge.model_hash, edge.steps]
        known += [edge.guidance_scale, prompts, *edge.departures]
        if (scorer := bank.profile.scorer) is not None:
            known += encoder_hashes(**scorer.encoders).values()
        return cls(trainings, latents, pixels, seeds, content_key(*known), prompts)

    def text(
        self, adapted: AdaptedCodec, rows: slice = slice(None), prompt: str = "right"
    ) -> list[torch.Tensor | None] | None:
        """The states of the prompts of some images, for a codec that reads them."""
        return self.bank.texts(adapted, self.prompts[prompt][rows])

    def adapted(self, method: str, training: Training | None) -> AdaptedCodec:
        """The method, trained."""
        if training is not None:
            return self.trainings.train(training, show=False)
        if method == STRONG:
            return AdaptedCodec(copy.deepcopy(self.bank.codec))
        return self.bank.unaligned_codec() if method == "none" else self.bank.cala()

    def key(self, evaluation: ChannelEvaluation) -> str:
        """Hash of a block and of all that it depends on."""
        trained = [] if evaluation.training is None else [self.trainings.key(evaluation.training)]
        return content_key(self.identity, asdict(evaluation), *trained)

    def run(self, evaluation: ChannelEvaluation) -> Array:
        """METRICS of every image, (rates, SNRs, n, 5), nan where not asked for; measured or read."""

        def measure() -> Array:
            adapted = self.adapted(evaluation.method, evaluation.training)
            return np.stack(
                [
                    np.stack([self.cell(adapted, evaluation, cbr, snr_db) for snr_db in evaluation.snrs_db])
                    for cbr in evaluation.cbrs
                ]
            )

        return self.store.array("blocks", self.key(evaluation), measure)

    def semantic(self, channels: Sequence[str]) -> Semantic:
        """PSNR, CLIP- and DINO-score of each image by CALA, as digital baselines are compared with."""
        found = {}
        for channel in channels:
            values = self.run(main_evaluation("cala", channel))
            for i, cbr in enumerate(RATES):
                for j, snr_db in enumerate(SNRS_DB):
                    found[(channel, cbr, snr_db)] = values[i, j][:, [0, 3, 4]]
        return found

    def cell(self, adapted: AdaptedCodec, evaluation: ChannelEvaluation, cbr: float, snr_db: float) -> Array:
        """METRICS of every image at one rate and SNR, (n, 5)."""
        text = self.text(adapted, prompt=evaluation.prompt)
        received = deliver(adapted, self.latents, cbr, evaluation.conditions(snr_db), self.seeds, text=text)
        shown = self.bank.edge.decoder.decode(received)
        values = np.full((len(shown), len(METRICS)), np.nan)
        values[:, 0] = [psnr_db(one, sent) for one, sent in zip(shown, self.pixels, strict=True)]
        if evaluation.structure:
            first = slice(0, STRUCTURE_IMAGES)
            for column in ("ssim", "ms_ssim"):
                scores = plugins.get("metric", column).score(shown[first], self.pixels[first])
                values[first, METRICS.index(column)] = scores
        if evaluation.features and self.bank.profile.scorer is not None:
            scores = self.bank.scorer.scores(shown, self.pixels)
            values[:, 3], values[:, 4] = scores["clip"], scores["dino"]
        return values


@dataclass(frozen=True)
class Request:
    """One image that asked for a quality and got the smallest rate that promises it.

    Attributes:
        image: its number among the study's images.
        channel: of CHANNELS.
        snr_db: mean SNR, dB.
        told_db: what the sender was told, dB.
        target_db: the PSNR asked for, dB.
        promised: whether any rate promises the target there.
        channel_uses: that were taken.
        psnr_db: what came out.
    """

    image: int
    channel: str
    snr_db: float
    told_db: float
    target_db: float
    promised: bool
    channel_uses: int
    psnr_db: float


def rate_control(study: CalaStudy, count: int, offset_db: float = 0.0) -> list[Request]:
    """`count` requests with random channels, SNRs (0 to 20 dB) and targets, through rate control.

    Args:
        study: whose images are asked for, in turn.
        count: requests.
        offset_db: added to the SNR that the sender is told.
    """
    quality = study.bank.adapters.quality
    if quality is None:
        raise NotFoundError("the shipped adapters carry no quality model")
    adapted, rng = study.bank.cala(), np.random.default_rng(7)
    source = int(np.prod(study.pixels.shape[1:]))
    found = []
    for number in tqdm(range(count), desc="rate control"):
        channel, snr_db = str(rng.choice(list(CHANNELS))), float(rng.uniform(0, 20))
        target_db = float(rng.choice(TARGETS_DB))
        told_db = snr_db + offset_db
        conditions = LinkConditions.model_validate(
            {**CHANNELS[channel], "snr_db": snr_db, "reported_snr_db": told_db}
        )
        cbr = quality.smallest_cbr(target_db, conditions)
        # the most that the table promises, with the same margin, tells whether the target is within reach
        promised = quality.promises(target_db, cbr, conditions)
        image = number % len(study.seeds)
        one = slice(image, image + 1)
        # far from every other image's seed, and another one each time that the image is asked for
        channel_seed = study.seeds[one][0] + 1_000_003 * (number + 1)
        received = deliver(
            adapted, study.latents[one], cbr, conditions, [channel_seed], text=study.text(adapted, one)
        )
        psnr = psnr_db(study.bank.edge.decoder.decode(received)[0], study.pixels[one][0])
        found.append(
            Request(image, channel, snr_db, told_db, target_db, promised, max(1, round(cbr * source)), psnr)
        )
    return found


def gate_cost(study: CalaStudy, rounds: int) -> dict[str, list[float]]:
    """Seconds of encoding and decoding, in turns, by the plain codec and with gates: see COSTS.

    Weights of both are packed, so that they differ by the gates alone. They are given the states of prompts,
    which edge and user keep from before.
    """
    bank, latents = study.bank, study.latents.float()
    plain = copy.deepcopy(bank.codec)
    pack(plain)
    codecs = {
        "plain": AlignedCodec(plain, bank.codec_hash),
        "gated": AlignedCodec(bank.codec, bank.codec_hash, bank.adapters),
    }
    states = study.text(bank.cala())
    text = None if states is None else pad_sequence([each for each in states if each is not None], True)
    shape = (latents.shape[1], latents.shape[2], latents.shape[3])
    most = bank.codec.max_channel_uses(shape)
    rng = np.random.default_rng(0)

    def conditions(count: int) -> torch.Tensor:
        links = [LinkConditions(snr_db=float(snr)) for snr in rng.uniform(-5, 20, count)]
        return torch.stack([condition_vector(1 / 96, link, at="sender") for link in links])

    def delivered(by: str, rows: slice, condition: torch.Tensor) -> None:
        batch, said = latents[rows], None if text is None else text[rows]
        exact = len(batch) == 1
        symbols = codecs[by].encode(batch, [most] * len(batch), condition, text=said, exact=exact)
        codecs[by].decode(symbols, shape, condition, text=said, exact=exact)

    seconds: dict[str, list[float]] = {name: [] for pair in COSTS.items() for name in pair}
    for number in tqdm(range(rounds + WARM_UP), desc="cost"):
        row = number % len(latents)
        one, many = slice(row, row + 1), slice(COST_BATCH)
        alone, mixed = conditions(1), conditions(min(COST_BATCH, len(latents)))
        work = {
            "plain": partial(delivered, "plain", one, alone),
            "a new condition": partial(delivered, "gated", one, alone),
            "plain batch": partial(delivered, "plain", many, mixed),
            "a batch of mixed conditions": partial(delivered, "gated", many, mixed),
        }
        # in any order, as each leaves the caches of the processor as suits itself
        for name in rng.permutation(list(work)):
            seconds[name].append(_seconds(work[name]))
    return {name: values[WARM_UP:] for name, values in seconds.items()}


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@cache
def _trainings(profile: str, plan: Plan, runs: Path) -> Trainings:
    return Trainings(model_bank(profile), plan, ResultStore(runs))


@cache
def _study(profile: str, plan: Plan, count: int, runs: Path) -> CalaStudy:
    return CalaStudy.load(_trainings(profile, plan, runs), count)


def _train(training: Training, *, profile: str, plan: Plan, runs: Path, show: bool) -> None:
    _trainings(profile, plan, runs).train(training, show=show)


def _run(evaluation: ChannelEvaluation, *, profile: str, plan: Plan, count: int, runs: Path) -> Array:
    return _study(profile, plan, count, runs).run(evaluation)


_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def _each(
    work: Callable[[_Task], _Result], tasks: Sequence[_Task], workers: int
) -> Iterator[tuple[_Task, _Result]]:
    """Each task and its result; one worker is this process, which has loaded the models already."""
    return run_serially(work, [tasks]) if workers == 1 else run_in_processes(work, tasks, workers)


@dataclass(frozen=True)
class CalaResults:
    """Everything that the experiment measured.

    Attributes:
        study: what it was measured with.
        main: method, number of its training, channel -> METRICS, (rates, SNRs, n, 5).
        best: the baseline of no more parameters than CALA that is best in its first training; None if there
            is none.
        fractions: method and fraction -> PSNR over the subset of conditions, (cells, n), dB.
        lengths: steps of CALA's training -> the same.
        oracles: the subset's cells by the oracle, (cells, n), dB; no cells if it was not measured.
        subset: method -> the same cells by that method, (trainings, cells, n).
        unseen: name -> PSNR there and in the trained condition beside it, (cells, n) each.
        mismatch: channel and offset, dB -> PSNR, (rates, SNRs, n).
        prompts: name in PROMPTS and channel -> PSNR, (rates, SNRs, n).
        requests: of rate control, by the offset of the SNR that was told, dB.
        costs: seconds, of `gate_cost`.
    """

    study: CalaStudy
    main: dict[tuple[str, int, str], Array]
    best: str | None
    fractions: dict[tuple[str, float], Array]
    lengths: dict[int, Array]
    oracles: Array
    subset: dict[str, Array]
    unseen: dict[str, tuple[Array, Array]]
    mismatch: dict[tuple[str, float], Array]
    prompts: dict[tuple[str, str], Array]
    requests: dict[float, list[Request]]
    costs: dict[str, list[float]]


def _psnr(found: Array) -> Array:
    """METRICS (rates, SNRs, n, 5) -> PSNR, (cells, n)."""
    return found[..., 0].reshape(-1, found.shape[2])


def compared(trainings: Trainings) -> list[str]:
    """The methods in the order of tables: both definitions of no alignment, then CALA and the others."""
    measured = {*trainings.unaligned, "cala", *trainings.baselines()}
    order = ["none", STRONG, "cala", EQUAL, *(name for name in METHODS if name not in ("none", "cala"))]
    return [name for name in order if name in measured]


def measure(
    *,
    profile: str,
    plan: Plan,
    count: int,
    requests: int,
    rounds: int,
    workers: int,
    runs: Path = RUNS,
) -> CalaResults:
    """Train and measure what no earlier run has, in `workers` processes of one thread each."""
    trainings = _trainings(profile, plan, runs)
    _ = trainings.metric  # with the examples: made once, before several processes would make them at once
    baselines, oracles = trainings.baselines(), trainings.oracles()
    fractions, lengths = trainings.fractions(), trainings.lengths()
    train = partial(_train, profile=profile, plan=plan, runs=runs, show=workers == 1)
    run = partial(_run, profile=profile, plan=plan, count=count, runs=runs)

    def make(group: Sequence[Training]) -> None:
        todo = list(dict.fromkeys(group))
        with tqdm(total=sum(each.steps for each in todo), desc="training steps") as bar:
            for training, _ in _each(train, todo, workers):
                bar.update(training.steps)

    def found_of(evaluations: Sequence[ChannelEvaluation]) -> dict[ChannelEvaluation, Array]:
        todo = list(dict.fromkeys(evaluations))
        return dict(tqdm(_each(run, todo, workers), total=len(todo), desc="measurements"))

    make([*baselines.values(), *trainings.repeats("cala"), *fractions, *lengths])
    make(oracles)  # second, as they go on from the shared fine-tune
    made: dict[str, list[Training | None]] = {name: [baselines.get(name)] for name in compared(trainings)}
    made[trainings.compared] += trainings.repeats("cala")

    def of_grid(method: str) -> dict[tuple[str, int, str], ChannelEvaluation]:
        return {
            (method, number, channel): main_evaluation(method, channel, training)
            for number, training in enumerate(made[method])
            for channel in CHANNELS
        }

    grid = {key: each for name in made for key, each in of_grid(name).items()}
    unseen, mismatch, prompts = unseen_evaluations(), mismatch_evaluations(), prompt_evaluations()
    curves = {
        training: [curve_evaluation(training, channel) for channel in ORACLE_CHANNELS]
        for training in [*fractions, *lengths]
    }
    tops = [oracle_evaluation(training) for training in oracles]
    found = found_of(
        [
            *grid.values(),
            *(each for points in curves.values() for each in points),
            *tops,
            *(each for pair in unseen.values() for each in pair),
            *mismatch.values(),
            *prompts.values(),
        ]
    )
    best = _best({key: found[each] for key, each in grid.items()})
    if best is not None:
        made[best] += trainings.repeats(best)
        make([each for each in made[best] if each is not None])
        grid |= of_grid(best)
        found |= found_of(list(grid.values()))
    study = _study(profile, plan, count, runs)

    def curve(training: Training) -> Array:
        return np.concatenate([_psnr(found[each]) for each in curves[training]])

    def cells_of(method: str, number: int) -> Array:
        cells = []
        for top in oracles:
            channel, cbr, snr_db = top.only or ("", 0.0, 0.0)
            each = grid[method, number, channel]
            cells.append(found[each][each.cbrs.index(cbr), each.snrs_db.index(snr_db), :, 0])
        return np.stack(cells)

    return CalaResults(
        study,
        {key: found[evaluation] for key, evaluation in grid.items()},
        best,
        {(training.method, training.fraction): curve(training) for training in fractions},
        {training.steps: curve(training) for training in lengths},
        np.concatenate([np.empty((0, count)), *(_psnr(found[evaluation]) for evaluation in tops)]),
        {
            method: np.stack([cells_of(method, number) for number in range(len(made[method]))])
            for method in (*REFERENCES, "cala", EQUAL, "fine-tune")
            if oracles and method in made
        },
        {name: (_psnr(found[there]), _psnr(found[beside])) for name, (there, beside) in unseen.items()},
        {key: found[evaluation][..., 0] for key, evaluation in mismatch.items()},
        {key: found[evaluation][..., 0] for key, evaluation in prompts.items()},
        {offset: rate_control(study, requests, offset) for offset in (0.0, 3.0)},
        gate_cost(study, rounds),
    )


def run_tka(
    *,
    plan: Plan,
    count: int,
    requests: int,
    rounds: int,
    workers: int,
    profile: str,
    results: Path = RESULTS,
    runs: Path = RUNS,
) -> None:
    """Train and measure what is not measured yet, then write rows, figures and images.

    Args:
        plan: on what and for how long everything is trained.
        count: images.
        requests: of rate control.
        rounds: of the comparison of costs.
        workers: processes, one thread each.
        profile: the models.
        results: where headline.json is.
        runs: where trainings and measurements are kept.
    """
    measured = measure(
        profile=profile, plan=plan, count=count, requests=requests, rounds=rounds, workers=workers, runs=runs
    )
    write(measured, results)
    folder = results / FOLDER
    write_plot(gates_plot(measured.study.bank.cala()), folder / "gates.svg")
    write_plot(constellations_plot(measured.study), folder / "constellations.svg")
    for name in ("gates.svg", "constellations.svg"):
        note_image(folder, name, COMMAND)
    save_images(image_grid(measured.study), folder, "strip.png", COMMAND)


def run_costs(
    *, plan: Plan, count: int, rounds: int, profile: str, results: Path = RESULTS, runs: Path = RUNS
) -> None:
    """Measure the costs of gates anew, without trainings, and write their rows and figures alone.

    Args:
        plan, count, rounds, profile, results, runs: as in `run_tka`.
    """
    rows = cost_rows(gate_cost(_study(profile, plan, count, runs), rounds))
    write_rows(results / FOLDER / "costs.jsonl", rows)
    cost_figures(rows, results)


def write(measured: CalaResults, results: Path = RESULTS) -> None:
    """Write the rows of results/tka/* and the figures of headline.json."""
    folder = results / FOLDER
    study, trainings = measured.study, measured.study.trainings
    _, channels, height, width = study.latents.shape
    rendered, drawn = map(len, trainings.examples)
    setup = {
        "pictures": len(study.seeds),
        "structure_pictures": STRUCTURE_IMAGES,
        "rendered": rendered,
        "drawn": drawn,
        "prompts": trainings.text_width > 0,
        "bf16": trainings.plan.bf16,
        "trainings": trainings.plan.seeds,
        "best": measured.best,
        "shipped_steps": trainings.shipped_steps,
        "steps": trainings.steps,
        "codec_steps": trainings.codec_steps,
        "shipped_on_these_examples": trainings.shipped_on_these,
        "codec_on_these_examples": trainings.codec_on_these,
        "share_steps": trainings.plan.fraction_steps,
        "oracle_steps": trainings.plan.oracle_steps,
        "most_channel_uses": study.bank.codec.max_channel_uses((channels, height, width)),
    }
    requests = [{"offset_db": o, **asdict(r)} for o, found in measured.requests.items() for r in found]
    files: dict[str, list[Row]] = {
        "setup": [setup],
        "grid": grid_rows(measured),
        "methods": method_rows(measured),
        "trainings": training_rows(measured),
        "gains": gain_rows(measured),
        "ceilings": oracle_rows(measured),
        "shares": fraction_rows(measured),
        "lengths": length_rows(measured),
        "unseen": unseen_rows(measured),
        "mismatch": mismatch_rows(measured),
        "prompts": prompt_rows(measured),
        "requests": requests,
        "costs": cost_rows(measured.costs),
    }
    for name, rows in files.items():
        if rows:
            write_rows(folder / f"{name}.jsonl", rows)
        else:  # what an earlier run measured is of other trainings
            (folder / f"{name}.jsonl").unlink(missing_ok=True)
    figures(measured, results)


def of_grid(values: Array) -> Array:
    """METRICS of a method over a channel, (rates, SNRs, n, 5), at the SNRs that all methods share."""
    if values.shape[1] == len(SNRS_DB):
        return values[:, [SNRS_DB.index(snr) for snr in GRID_SNRS_DB]]
    return values


def cells(main: Mapping[tuple[str, int, str], Array], method: str, *, unseen: bool = False) -> Array:
    """PSNR of all trainings of a method over the grid, (trainings, channels, rates, SNRs, n), dB.

    Args:
        main: as in `CalaResults`.
        method: its name.
        unseen: over the channels that no training draws, instead of over the others.
    """
    found: dict[int, list[Array]] = {}
    for (name, number, channel), values in main.items():
        if name == method and (channel in UNSEEN) == unseen:
            found.setdefault(number, []).append(of_grid(values)[..., 0])
    return np.stack([np.stack(found[number]) for number in sorted(found)])


def per_image(measured: CalaResults, method: str, *, unseen: bool = False) -> Array:
    """Mean PSNR over the grid for each training and image, (trainings, n), dB; arguments as of `cells`."""
    mean: Array = cells(measured.main, method, unseen=unseen).mean(axis=(1, 2, 3))
    return mean


def _best(main: Mapping[tuple[str, int, str], Array]) -> str | None:
    """The best of BASELINES by the mean PSNR of its first training; None if none of them was measured."""
    measured = [name for name in BASELINES if any(method == name for method, _, _ in main)]
    return max(measured, key=lambda name: float(cells(main, name)[0].mean()), default=None)


def beside(measured: CalaResults, method: str) -> str:
    """The name of the CALA that a method is compared with: trained alike, or shipped beside shipped."""
    return "cala" if method in REFERENCES else measured.study.trainings.compared


def grid_rows(measured: CalaResults) -> list[Row]:
    """One row for each method, channel, rate and SNR, by the method's first training."""
    rows = []
    for (method, number, channel), values in measured.main.items():
        if number:
            continue
        snrs_db = SNRS_DB if values.shape[1] == len(SNRS_DB) else GRID_SNRS_DB
        for i, cbr in enumerate(RATES):
            for j, snr_db in enumerate(snrs_db):
                cell = values[i, j]
                _, interval = mean_ci95(cell[:, 0].tolist())
                row = {"method": method, "channel": channel, "cbr": round(cbr, 6), "snr_db": snr_db}
                row |= {"psnr_ci95": interval and _rounded(interval), "n": len(cell)}
                known = dict(zip(METRICS, cell.T, strict=True))
                row |= {
                    name: round(float(np.nanmean(each)), 4)
                    for name, each in known.items()
                    if not np.isnan(each).all()
                }
                rows.append(row)
    return rows


def method_rows(measured: CalaResults) -> list[Row]:
    """Each method in the mean over the grid and its trainings, and how far CALA is ahead of it."""
    trainings = measured.study.trainings
    whole = sum(p.numel() for p in measured.study.bank.codec.parameters())
    rows = []
    for name in compared(trainings):
        values = per_image(measured, name)
        mean, ci95 = bootstrap_trainings(values)
        first = [each for (method, number, _), each in measured.main.items() if (method, number) == (name, 0)]
        everything = np.concatenate([of_grid(each).reshape(-1, len(METRICS)) for each in first])
        trained = trainings.parameters(name, trainings.plan.fraction)
        row: Row = {
            "method": name,
            "trainings": len(values),
            "parameters": round(trained / whole, 4),
            "psnr_db": round(mean, 4),
            "unseen_psnr_db": round(float(per_image(measured, name, unseen=True).mean()), 4),
            "ssim": round(float(np.nanmean(everything[:, 1])), 4),
            "ms_ssim": round(float(np.nanmean(everything[:, 2])), 4),
            "ci95": _rounded(ci95),
        }
        if name not in ("cala", EQUAL):
            lead, lead_ci95 = bootstrap_trainings(per_image(measured, beside(measured, name)) - values)
            row |= {"cala_lead_db": round(lead, 3), "cala_lead_ci95": _rounded(lead_ci95)}
        rows.append(row)
    return rows


def training_rows(measured: CalaResults) -> list[Row]:
    """Each training of each method in the mean over the grid; its interval is over images."""
    rows = []
    for name in compared(measured.study.trainings):
        for number, values in enumerate(per_image(measured, name)):
            mean, ci95 = bootstrap_mean(values.tolist())
            row = {"method": name, "seed": measured.study.trainings.seed + number, "n": len(values)}
            rows.append({**row, "psnr_db": round(mean, 3), "ci95": _rounded(ci95)})
    return rows


def references(measured: CalaResults) -> list[str]:
    """Those of REFERENCES that were measured."""
    return [name for name in REFERENCES if any(method == name for method, _, _ in measured.main)]


def gain_rows(measured: CalaResults) -> list[Row]:
    """CALA's gain over each of REFERENCES, by rate and SNR, over the channels used in training.

    A row without a rate is a mean over all rates, and one without an SNR a mean over all SNRs.
    """
    rows = []
    for name in references(measured):
        own = cells(measured.main, beside(measured, name))
        gains = (own - cells(measured.main, name)).mean(axis=1)
        for i, cbr in enumerate((None, *RATES)):
            for j, snr_db in enumerate((None, *GRID_SNRS_DB)):
                part = gains[:, slice(None) if cbr is None else slice(i - 1, i)]
                part = part[:, :, slice(None) if snr_db is None else slice(j - 1, j)]
                gain, ci95 = bootstrap_trainings(part.mean(axis=(1, 2)))
                row = {"over": name, "cbr": cbr and round(cbr, 6), "snr_db": snr_db}
                rows.append(
                    {**row, "gain_db": round(gain, 3), "ci95": _rounded(ci95), "n": part[:, 0, 0].size}
                )
    return rows


def oracle_rows(measured: CalaResults) -> list[Row]:
    """Mean PSNR in the conditions that have a fine-tune of their own, the oracle."""
    if not len(measured.oracles):
        return []
    found = {**measured.subset, "ceiling": measured.oracles[None]}
    return [
        {"method": name, "conditions": values.shape[1], "psnr_db": round(float(values.mean()), 3)}
        for name, values in found.items()
    ]


def fraction_rows(measured: CalaResults) -> list[Row]:
    """PSNR against fraction of parameters."""
    trainings = measured.study.trainings
    whole = sum(p.numel() for p in measured.study.bank.codec.parameters())
    rows = []
    for (method, fraction), values in measured.fractions.items():
        mean, ci95 = bootstrap_mean(values.mean(axis=0).tolist())
        row = {"method": method, "most": fraction}
        row["share"] = round(trainings.parameters(method, fraction) / whole, 5)
        rows.append({**row, "psnr_db": round(mean, 3), "ci95": _rounded(ci95)})
    return rows


def length_rows(measured: CalaResults) -> list[Row]:
    """PSNR of CALA against the steps of its training; the last row took as many as the shipped one.

    It is the shipped one, unless another was trained as long as that, and as the others of the curve.
    """
    if not measured.lengths:
        return []
    trainings = measured.study.trainings
    last = trainings.compared if trainings.steps == trainings.shipped_steps else "cala"
    points = {**measured.lengths, trainings.shipped_steps: measured.subset[last][0]}
    rows = []
    for steps, values in points.items():
        mean, ci95 = bootstrap_mean(values.mean(axis=0).tolist())
        rows.append({"steps": steps, "psnr_db": round(mean, 3), "ci95": _rounded(ci95)})
    return rows


def unseen_rows(measured: CalaResults) -> list[Row]:
    """How far each unseen condition is below the trained one beside it."""
    rows = []
    for name, (there, beside) in measured.unseen.items():
        gap, ci95 = bootstrap_mean((beside - there).mean(axis=0).tolist())
        rows.append(
            {
                "condition": name,
                "psnr_db": round(float(there.mean()), 3),
                "beside_psnr_db": round(float(beside.mean()), 3),
                "gap_db": round(gap, 3),
                "ci95": _rounded(ci95),
                "n": there.shape[1],
            }
        )
    return rows


def worst_unseen(rows: Sequence[Row]) -> Row:
    """The unseen condition that is furthest below the one beside it.

    An SNR below the trained ones does not count: less SNR costs any codec.
    """
    return max(
        (row for row in rows if not row["condition"].startswith("-")), key=lambda row: float(row["gap_db"])
    )


def mismatch_rows(measured: CalaResults) -> list[Row]:
    """PSNR when the sender is told another SNR."""
    return [
        {
            "channel": channel,
            "offset_db": offset,
            "cbr": round(cbr, 6),
            "snr_db": snr_db,
            "psnr_db": round(float(values[i, j].mean()), 3),
        }
        for (channel, offset), values in measured.mismatch.items()
        for i, cbr in enumerate(ORACLE_CBRS)
        for j, snr_db in enumerate(MISMATCH_SNRS_DB)
    ]


def prompt_rows(measured: CalaResults) -> list[Row]:
    """PSNR of CALA with each of PROMPTS, and how far it is below that with the right one."""
    rows = []
    for (prompt, channel), values in measured.prompts.items():
        for i, cbr in enumerate(RATES):
            for j, snr_db in enumerate(GRID_SNRS_DB):
                loss, ci95 = bootstrap_trainings((measured.prompts["right", channel] - values)[None, i, j])
                row = {"prompt": prompt, "channel": channel, "cbr": round(cbr, 6), "snr_db": snr_db}
                row |= {"psnr_db": round(float(values[i, j].mean()), 3), "loss_db": round(loss, 3)}
                rows.append({**row, "loss_ci95": _rounded(ci95), "n": values.shape[2]})
    return rows


def cost_rows(costs: Mapping[str, list[float]]) -> list[Row]:
    """Median seconds of encoding and decoding, and the ratio to the plain codec."""
    rows = []
    for name, reference in COSTS.items():
        seconds, plain = costs[name], costs[reference]
        ratio, ci95 = ratio_of_medians(seconds, plain)
        median, median_ci95 = bootstrap_ci95(lambda each: float(np.median(each)), seconds)
        rows.append(
            {
                "what": name,
                "median_s": round(median, 6),
                "median_ci95": [round(limit, 6) for limit in median_ci95],
                "plain_s": round(float(np.median(plain)), 6),
                "ratio": round(ratio, 3),
                "ci95": _rounded(ci95),
                "n": len(seconds),
            }
        )
    return rows


def cost_figures(rows: Sequence[Row], results: Path) -> None:
    """The figures of headline.json that follow from `cost_rows`."""
    cost = next(row for row in rows if row["what"] == "a new condition")
    for key, value, unit, ci95 in (
        ("gate_cost_ratio", cost["ratio"], "ratio", cost["ci95"]),
        ("tka_codec_ms", 1e3 * cost["median_s"], "ms", [1e3 * limit for limit in cost["median_ci95"]]),
    ):
        record(key, value, unit, command=COMMAND, count=cost["n"], ci95=ci95, results=results)


def figures(measured: CalaResults, results: Path) -> None:
    """The figures of results/headline.json."""

    def put(key: str, values: Array, unit: str) -> None:
        """Mean and interval of values (trainings, n)."""
        mean, ci95 = bootstrap_trainings(values)
        record(key, mean, unit, command=COMMAND, count=values.size, ci95=ci95, results=results)

    own, bank = per_image(measured, "cala"), measured.study.bank
    equal = per_image(measured, measured.study.trainings.compared)
    put("tka_mean_psnr_db", own, "dB")
    if TOLD_SNR_DB in GRID_SNRS_DB:
        told = cells(measured.main, "cala")[:, :, RATES.index(max(RATES)), GRID_SNRS_DB.index(TOLD_SNR_DB)]
        put("tka_10db_psnr_db", told.mean(axis=1), "dB")
    put("tka_gain_db", own - per_image(measured, "none"), "dB")
    for key in ("tka_gain_strong_db", "tka_lead_over_best_baseline_db", "tka_oracle_gap_db"):
        forget(key, results)
    if STRONG in references(measured):
        put("tka_gain_strong_db", own - per_image(measured, STRONG), "dB")
    if measured.best is not None:
        put("tka_lead_over_best_baseline_db", equal - per_image(measured, measured.best), "dB")
    if len(measured.oracles):
        reached = measured.subset[measured.study.trainings.compared].mean(axis=1)
        put("tka_oracle_gap_db", measured.oracles.mean(axis=0) - reached, "dB")
    trained = sum(values.numel() for values in bank.adapters.tensors().values())
    share = 100 * trained / sum(p.numel() for p in bank.codec.parameters())
    record("tka_adapter_share", share, "%", command=COMMAND, count=1, results=results)
    worst = worst_unseen(unseen_rows(measured))
    record(
        "tka_unseen_gap_db", worst["gap_db"], "dB", command=COMMAND, count=worst["n"], ci95=worst["ci95"],
        results=results,
    )  # fmt: skip
    cost_figures(cost_rows(measured.costs), results)
    promised = [each for each in measured.requests[0.0] if each.promised]
    if promised:  # else no share of them can be kept
        kept = [100.0 * (each.psnr_db >= each.target_db) for each in promised]
        mean, ci95 = bootstrap_mean(kept, groups=[each.image for each in promised])
        record("auto_rate_hit_share", mean, "%", command=COMMAND, count=len(kept), ci95=ci95, results=results)


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in values]


@torch.inference_mode()
def gates_plot(adapted: Cala) -> Any:
    """Weight of every component against SNR, at the highest and the lowest rate."""
    snrs_db = np.arange(-10, 25.5, 0.5)
    figure, axes = panels(2, 2, height_in=6.4, sharex=True)
    for axis_row, side in zip(axes, ("encoder", "decoder"), strict=True):
        for axis, cbr in zip(axis_row, (RATES[0], RATES[-1]), strict=True):
            conditions = [LinkConditions(snr_db=float(snr), fading="rayleigh") for snr in snrs_db]
            vectors = torch.stack([condition_vector(cbr, each, at="sender") for each in conditions])
            gates = torch.cat(adapted.peft.base_model.gates(side, vectors), dim=1).T.numpy()
            image = axis.imshow(
                gates, aspect="auto", vmin=0, vmax=2, cmap="PuOr", interpolation="nearest",
                extent=(snrs_db[0], snrs_db[-1], len(gates), 0),
            )  # fmt: skip
            axis.set_title(f"{side}, CBR 1/{1 / cbr:.0f}")
            axis.set_ylabel("component, layer by layer")
    for axis in axes[-1]:
        axis.set_xlabel("SNR, dB")
    figure.colorbar(image, ax=axes, label="weight of the component", shrink=0.6)
    return figure


@torch.inference_mode()
def constellations_plot(study: CalaStudy) -> Any:
    """What the unaligned codec and CALA send of one image, and what the receiver equalises."""
    bank, latents = study.bank, study.latents[:1].float()
    channel_uses = bank.codec.max_channel_uses((latents.shape[1], latents.shape[2], latents.shape[3]))
    snrs_db = (-5.0, 5.0, 20.0)
    figure, axes = panels(len(snrs_db), 2, height_in=5.4, sharex=True, sharey=True)
    for axis_row, adapted, name in zip(
        axes, (bank.unaligned_codec(), bank.cala()), ("unaligned", "CALA"), strict=True
    ):
        for axis, snr_db in zip(axis_row, snrs_db, strict=True):
            conditions = LinkConditions.model_validate({**CHANNELS[SHOWN_CHANNEL], "snr_db": snr_db})
            result = SemanticLink(adapted).send(
                latents,
                [conditions],
                [0],
                source_values=source_values(latents),
                channel_uses=channel_uses,
                text=study.text(adapted, slice(1)),
            )
            sent = result.symbols[0]
            received = equalize(result.receptions[0], conditions.equalizer).symbols
            for symbols, color, label in ((received, "#E69F00", "equalised"), (sent, "k", "sent")):
                points = symbols[0].numpy()
                axis.plot(points.real, points.imag, ".", color=color, markersize=2, label=label)
            axis.set_title(f"{name}, {snr_db:g} dB")
            axis.set_aspect("equal")
    axes[0, 0].legend(frameon=False, fontsize=8)
    axes[0, 0].set_xlim(-3, 3)
    axes[0, 0].set_ylim(-3, 3)
    return figure


def image_grid(study: CalaStudy) -> list[list[npt.NDArray[np.uint8]]]:
    """One image by method (rows) and SNR (columns), the sent one first."""
    trained = study.trainings.baselines()
    rows = []
    for method in SHOWN_METHODS:
        if method not in compared(study.trainings):
            continue
        adapted = study.adapted(method, trained.get(method))
        row = [study.pixels[0]]
        for snr_db in GRID_SNRS_DB:
            conditions = LinkConditions.model_validate({**CHANNELS[SHOWN_CHANNEL], "snr_db": snr_db})
            text = study.text(adapted, slice(1))
            received = deliver(adapted, study.latents[:1], RATES[0], conditions, study.seeds[:1], text=text)
            row.append(study.bank.edge.decoder.decode(received)[0])
        rows.append(row)
    return rows
