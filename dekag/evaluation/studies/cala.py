"""`dekag experiment tka`: transmission-knowledge alignment, CALA and its baselines.

Every method sends the same images, which the edge drew of held-out prompts, over every channel, rate and
SNR of the grid, with the same fades and noise for all. Channels that no training ever drew, a sender that is
told a wrong SNR, and rate control are measured as well.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from dekag import plugins
from dekag.cala.aligned_codec import AlignedCodec
from dekag.cala.conditions import condition_vector
from dekag.cala.methods import METHODS, AdaptedCodec, Cala
from dekag.documents import parse_json
from dekag.errors import NotFoundError
from dekag.evaluation.models import ModelBank, model_bank
from dekag.evaluation.pages import Row, note_image, save_images, write_rows
from dekag.evaluation.plots import panels, write_plot
from dekag.evaluation.prompts import edge_prompts
from dekag.evaluation.registry import RESULTS, record
from dekag.evaluation.runner import run_in_processes
from dekag.evaluation.statistics import bootstrap_mean, mean_ci95, ratio_of_medians
from dekag.evaluation.store import ResultStore, content_key
from dekag.evaluation.studies.cala_training import (
    FRACTION,
    ORACLE_CBRS,
    ORACLE_CHANNELS,
    ORACLE_SNRS_DB,
    Plan,
    Training,
    Trainings,
)
from dekag.evaluation.studies.digital import CHANNELS, RATES, SNRS_DB, Semantic, draw_edge_images
from dekag.generation.loading import folder_hash
from dekag.link.conditions import LinkConditions
from dekag.link.equalizer import equalize
from dekag.metrics.image import psnr_db
from dekag.pipeline import SemanticLink
from dekag.training.cala import deliver, source_values

Array = npt.NDArray[np.float64]

COMMAND = "dekag experiment tka"
FOLDER = "tka"
RUNS = Path("runs/tka")
GRID_SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
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
    "the same condition again": "plain",
    "a batch of mixed conditions": "plain batch",
}
BASELINES = ("lora", "lora-groups", "snr-attention")  # baselines of no more parameters than CALA
SHOWN_CHANNEL = "rayleigh-1us"
VERSION = 1  # raised when the code changes what a block comes out as


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
        features: whether CLIP- and DINO-scores are wanted.
        structure: whether SSIM and MS-SSIM are wanted.
    """

    method: str
    channel: str
    cbrs: tuple[float, ...] = RATES
    snrs_db: tuple[float, ...] = GRID_SNRS_DB
    offset_db: float = 0.0
    training: Training | None = None
    features: bool = False
    structure: bool = False

    def hashed(self) -> Row:
        """What is hashed of it: its fields."""
        training = None if self.training is None else self.training.hashed()
        return {**asdict(self), "training": training}

    def conditions(self, snr_db: float) -> LinkConditions:
        """At one of its SNRs."""
        told = None if self.offset_db == 0 else snr_db + self.offset_db
        link = parse_json(self.channel, "channel")
        return LinkConditions.model_validate({**link, "snr_db": snr_db, "reported_snr_db": told})


def as_channel(link: dict[str, Any]) -> str:
    """What `ChannelEvaluation.channel` holds."""
    return json.dumps(link, sort_keys=True)


def main_evaluation(method: str, channel: str, training: Training | None = None) -> ChannelEvaluation:
    """A method over a channel of the grid; CALA, which is compared with digital baselines, in more detail."""
    fine = method == "cala"
    return ChannelEvaluation(
        method,
        as_channel(CHANNELS[channel]),
        snrs_db=SNRS_DB if fine else GRID_SNRS_DB,
        training=training,
        features=fine,
        structure=True,
    )


def fraction_evaluation(training: Training, channel: str) -> ChannelEvaluation:
    """A point of the curve against the fraction of trained parameters."""
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


@dataclass(frozen=True)
class CalaStudy:
    """What one process measures with: the images that all methods send, and the methods.

    Attributes:
        trainings: makes the methods.
        latents: (n, c, h, w).
        pixels: (n, height, width, 3) uint8: the latents, decoded without a channel.
        seeds: of each image, also of its channel.
        identity: hash of all that a block depends on beside itself.
        prompts: what the edge drew.
    """

    trainings: Trainings
    latents: torch.Tensor
    pixels: npt.NDArray[np.uint8]
    seeds: list[int]
    identity: str
    prompts: list[str]

    @property
    def bank(self) -> ModelBank:
        """The models."""
        return self.trainings.bank

    @property
    def store(self) -> ResultStore:
        """Where results are kept."""
        return self.trainings.store

    @classmethod
    def load(cls, bank: ModelBank, plan: Plan, count: int, store: ResultStore) -> CalaStudy:
        """Let the edge draw `count` images."""
        edge = bank.edge
        latents, pixels, seeds = draw_edge_images(edge, count)
        known = [VERSION, bank.codec_hash, bank.adapters.content_hash, edge.model_hash, edge.steps]
        scorer = bank.evaluators
        known += [edge.guidance_scale, count, folder_hash(scorer.clip), folder_hash(scorer.dino)]
        # the whole hash, as results on disk were found by it from the start
        identity = hashlib.sha256(json.dumps(known).encode()).hexdigest()
        prompts = [prompt for _, prompt, _ in edge_prompts(count)]
        return cls(Trainings(bank, plan, store), latents, pixels, seeds, identity, prompts)

    def text(self, adapted: AdaptedCodec, rows: slice = slice(None)) -> list[torch.Tensor] | None:
        """The states of the prompts of some images, for a codec that reads them."""
        return self.bank.texts(adapted, self.prompts[rows])

    def adapted(self, method: str, training: Training | None) -> AdaptedCodec:
        """The method, trained."""
        if training is not None:
            return self.trainings.train(training, show=False)
        return self.bank.unaligned_codec() if method == "none" else self.bank.cala()

    def key(self, evaluation: ChannelEvaluation) -> str:
        """Hash of a block and of all that it depends on."""
        trained = [] if evaluation.training is None else [self.trainings.key(evaluation.training)]
        return content_key(self.identity, evaluation.hashed(), *trained)

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
        received = deliver(
            adapted, self.latents, cbr, evaluation.conditions(snr_db), self.seeds, text=self.text(adapted)
        )
        shown = self.bank.edge.decoder.decode(received)
        values = np.full((len(shown), len(METRICS)), np.nan)
        values[:, 0] = [psnr_db(one, sent) for one, sent in zip(shown, self.pixels, strict=True)]
        if evaluation.structure:
            first = slice(0, STRUCTURE_IMAGES)
            for column in ("ssim", "ms_ssim"):
                scores = plugins.get("metric", column).score(shown[first], self.pixels[first])
                values[first, METRICS.index(column)] = scores
        if evaluation.features:
            scores = self.bank.scorer.scores(shown, self.pixels)
            values[:, 3], values[:, 4] = scores["clip"], scores["dino"]
        return values


@dataclass(frozen=True)
class Request:
    """One image that asked for a quality and got the smallest rate that promises it.

    Attributes:
        channel: of CHANNELS.
        snr_db: mean SNR, dB.
        told_db: what the sender was told, dB.
        target_db: the PSNR asked for, dB.
        promised: whether any rate promises the target there.
        channel_uses: that were taken.
        psnr_db: what came out.
    """

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
        one = slice(number % len(study.seeds), number % len(study.seeds) + 1)
        # far from every other image's seed, and another one each time that the image is asked for
        channel_seed = study.seeds[one][0] + 1_000_003 * (number + 1)
        received = deliver(
            adapted, study.latents[one], cbr, conditions, [channel_seed], text=study.text(adapted, one)
        )
        psnr = psnr_db(study.bank.edge.decoder.decode(received)[0], study.pixels[one][0])
        found.append(
            Request(channel, snr_db, told_db, target_db, promised, max(1, round(cbr * source)), psnr)
        )
    return found


def gate_cost(study: CalaStudy, rounds: int) -> dict[str, list[float]]:
    """Seconds of encoding and decoding, in turns, by the plain codec and with gates: see COSTS."""
    bank, latents = study.bank, study.latents.float()
    aligned = AlignedCodec(bank.codec, bank.codec_hash, bank.adapters)
    shape = (latents.shape[1], latents.shape[2], latents.shape[3])
    most = bank.codec.max_channel_uses(shape)
    rng = np.random.default_rng(0)

    def conditions(count: int) -> torch.Tensor:
        links = [LinkConditions(snr_db=float(snr)) for snr in rng.uniform(-5, 20, count)]
        return torch.stack([condition_vector(1 / 96, link, at="sender") for link in links])

    def plain(batch: torch.Tensor) -> None:
        with torch.inference_mode():
            bank.codec.decode(bank.codec.encode(batch, most), shape)

    def gated(batch: torch.Tensor, condition: torch.Tensor) -> None:
        exact = len(batch) == 1
        symbols = aligned.encode(batch, [most] * len(batch), condition, exact=exact)
        aligned.decode(symbols, shape, condition, exact=exact)

    seconds: dict[str, list[float]] = {name: [] for pair in COSTS.items() for name in pair}
    for number in range(rounds + WARM_UP):
        one, known = latents[number % len(latents)][None], conditions(1)
        many, mixed = latents[:COST_BATCH], conditions(min(COST_BATCH, len(latents)))
        work = {
            "plain": partial(plain, one),
            "a new condition": partial(gated, one, known),
            "plain batch": partial(plain, many),
            "a batch of mixed conditions": partial(gated, many, mixed),
        }
        # in any order, as each leaves the caches of the processor as suits itself
        for name in rng.permutation(list(work)):
            seconds[name].append(_seconds(work[name]))
            if name == "a new condition":
                seconds["the same condition again"].append(_seconds(work[name]))
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
    return CalaStudy.load(model_bank(profile), plan, count, ResultStore(runs))


def _train(training: Training, *, profile: str, plan: Plan, runs: Path) -> None:
    _trainings(profile, plan, runs).train(training, show=False)


def _run(evaluation: ChannelEvaluation, *, profile: str, plan: Plan, count: int, runs: Path) -> Array:
    return _study(profile, plan, count, runs).run(evaluation)


@dataclass(frozen=True)
class CalaResults:
    """Everything that the experiment measured.

    Attributes:
        study: what it was measured with.
        main: method and channel -> METRICS, (rates, SNRs, n, 5).
        shares: method and share -> PSNR over the subset of conditions, (cells, n), dB.
        oracles: the subset's cells by the oracle, (cells, n), dB.
        subset: method -> the same cells by that method.
        unseen: name -> PSNR there and in the trained condition beside it, (cells, n) each.
        mismatch: channel and offset, dB -> PSNR, (rates, SNRs, n).
        requests: of rate control, by the offset of the SNR that was told, dB.
        costs: seconds, of `gate_cost`.
    """

    study: CalaStudy
    main: dict[tuple[str, str], Array]
    fractions: dict[tuple[str, float], Array]
    oracles: Array
    subset: dict[str, Array]
    unseen: dict[str, tuple[Array, Array]]
    mismatch: dict[tuple[str, float], Array]
    requests: dict[float, list[Request]]
    costs: dict[str, list[float]]


def _psnr(found: Array) -> Array:
    """METRICS (rates, SNRs, n, 5) -> PSNR, (cells, n)."""
    return found[..., 0].reshape(-1, found.shape[2])


def measure(
    *,
    profile: str,
    plan: Plan,
    count: int,
    requests: int,
    rounds: int,
    workers: int,
    runs: Path = RUNS,
    channels: Sequence[str] = tuple(CHANNELS),
) -> CalaResults:
    """Train and measure what no earlier run has, in `workers` processes of one thread each."""
    trainings = _trainings(profile, plan, runs)
    baselines = {training.method: training for training in trainings.baselines()}
    oracles, fractions = trainings.oracles(), trainings.fractions()
    made: dict[str, Training | None] = {"none": None, "cala": None, **baselines}
    main = {
        (method, channel): main_evaluation(method, channel, made[method])
        for method in METHODS
        for channel in channels
    }
    unseen, mismatch = unseen_evaluations(), mismatch_evaluations()
    curve = {
        (training, channel): fraction_evaluation(training, channel)
        for training in fractions
        for channel in ORACLE_CHANNELS
    }
    tops = [oracle_evaluation(training) for training in oracles]
    evaluations = [
        *main.values(),
        *curve.values(),
        *tops,
        *(b for pair in unseen.values() for b in pair),
        *mismatch.values(),
    ]
    # oracles go on from the shared fine-tune, so they come second
    train = partial(_train, profile=profile, plan=plan, runs=runs)
    for group in ([*baselines.values(), *fractions], oracles):
        for _ in tqdm(run_in_processes(train, group, workers), total=len(group), desc="trainings"):
            pass
    work = partial(_run, profile=profile, plan=plan, count=count, runs=runs)
    todo = list(dict.fromkeys(evaluations))
    found = dict(tqdm(run_in_processes(work, todo, workers), total=len(todo), desc="measurements"))
    study = _study(profile, plan, count, runs)
    subset = {}
    for method in ("none", "cala", "fine-tune"):
        cells = []
        for top in oracles:
            channel, cbr, snr_db = top.only or ("", 0.0, 0.0)
            evaluation = main[(method, channel)]
            cells.append(
                found[evaluation][evaluation.cbrs.index(cbr), evaluation.snrs_db.index(snr_db), :, 0]
            )
        subset[method] = np.stack(cells)
    return CalaResults(
        study,
        {key: found[evaluation] for key, evaluation in main.items()},
        {
            (training.method, training.fraction): np.concatenate(
                [_psnr(found[curve[(training, channel)]]) for channel in ORACLE_CHANNELS]
            )
            for training in fractions
        },
        np.concatenate([_psnr(found[evaluation]) for evaluation in tops]),
        subset,
        {name: (_psnr(found[there]), _psnr(found[beside])) for name, (there, beside) in unseen.items()},
        {key: found[evaluation][..., 0] for key, evaluation in mismatch.items()},
        {offset: rate_control(study, requests, offset) for offset in (0.0, 3.0)},
        gate_cost(study, rounds),
    )


def run_tka(
    *, count: int, requests: int, rounds: int, workers: int, profile: str, results: Path = RESULTS
) -> None:
    """Train and measure what is not measured yet, then write rows, figures and images.

    Args:
        count: images.
        requests: of rate control.
        rounds: of the comparison of costs.
        workers: processes, one thread each.
        profile: the models.
        results: where headline.json is.
    """
    measured = measure(
        profile=profile, plan=Plan(), count=count, requests=requests, rounds=rounds, workers=workers
    )
    write(measured, results)
    folder = results / FOLDER
    write_plot(gates_plot(measured.study.bank.cala()), folder / "gates.svg")
    write_plot(constellations_plot(measured.study), folder / "constellations.svg")
    for name in ("gates.svg", "constellations.svg"):
        note_image(folder, name, COMMAND)
    save_images(image_grid(measured.study), folder, "strip.png", COMMAND)


def write(measured: CalaResults, results: Path = RESULTS) -> None:
    """Write the rows of results/tka/* and the figures of headline.json."""
    folder = results / FOLDER
    study, plan = measured.study, measured.study.trainings.plan
    _, channels, height, width = study.latents.shape
    setup = {
        "pictures": len(study.seeds),
        "structure_pictures": STRUCTURE_IMAGES,
        "steps": study.trainings.steps,
        "share_steps": plan.fraction_steps,
        "oracle_steps": plan.oracle_steps,
        "most_channel_uses": study.bank.codec.max_channel_uses((channels, height, width)),
    }
    write_rows(folder / "setup.jsonl", [setup])
    write_rows(folder / "grid.jsonl", grid_rows(measured))
    write_rows(folder / "methods.jsonl", method_rows(measured))
    write_rows(folder / "ceilings.jsonl", oracle_rows(measured))
    write_rows(folder / "shares.jsonl", fraction_rows(measured))
    write_rows(folder / "unseen.jsonl", unseen_rows(measured))
    write_rows(folder / "mismatch.jsonl", mismatch_rows(measured))
    requests = [{"offset_db": o, **asdict(r)} for o, found in measured.requests.items() for r in found]
    write_rows(folder / "requests.jsonl", requests)
    write_rows(folder / "costs.jsonl", cost_rows(measured))
    figures(measured, results)


def grid(measured: CalaResults, method: str) -> dict[str, Array]:
    """METRICS of a method over the grid that all methods share: channel -> (rates, SNRs, n, 5)."""
    found = {}
    for (name, channel), values in measured.main.items():
        if name == method:
            fine = values.shape[1] == len(SNRS_DB)
            places = [SNRS_DB.index(snr) for snr in GRID_SNRS_DB] if fine else range(len(GRID_SNRS_DB))
            found[channel] = values[:, list(places)]
    return found


def per_image(measured: CalaResults, method: str, *, unseen: bool = False) -> Array:
    """Mean PSNR over the grid for each image, (n,), dB: over trained channels, or over the unseen ones."""
    wanted = [each for channel, each in grid(measured, method).items() if (channel in UNSEEN) == unseen]
    mean: Array = np.mean([each[..., 0].mean(axis=(0, 1)) for each in wanted], axis=0)
    return mean


def grid_rows(measured: CalaResults) -> list[Row]:
    """One row for each method, channel, rate and SNR."""
    rows = []
    for (method, channel), values in measured.main.items():
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
    """Each method in the mean over the grid, and how far CALA is ahead of it."""
    codec = measured.study.bank.codec
    whole = sum(p.numel() for p in codec.parameters())
    own = per_image(measured, "cala")
    rows = []
    for name, method in METHODS.items():
        values = per_image(measured, name)
        mean, ci95 = bootstrap_mean(values.tolist())
        lead, lead_ci95 = bootstrap_mean((own - values).tolist())
        everything = np.concatenate([each.reshape(-1, 5) for each in grid(measured, name).values()])
        row = {"method": name, "parameters": method.build(codec, FRACTION).trained_parameters() / whole}
        row |= {"psnr_db": mean, "unseen_psnr_db": float(per_image(measured, name, unseen=True).mean())}
        row |= {"ssim": float(np.nanmean(everything[:, 1])), "ms_ssim": float(np.nanmean(everything[:, 2]))}
        rounded: Row = {key: value if key == "method" else round(value, 4) for key, value in row.items()}
        rounded["ci95"] = _rounded(ci95)
        if name != "cala":
            rounded |= {"cala_lead_db": round(lead, 3), "cala_lead_ci95": _rounded(lead_ci95)}
        rows.append(rounded)
    return rows


def oracle_rows(measured: CalaResults) -> list[Row]:
    """Mean PSNR in the conditions that have a fine-tune of their own, the oracle."""
    found = {**measured.subset, "ceiling": measured.oracles}
    return [
        {"method": name, "conditions": len(values), "psnr_db": round(float(values.mean()), 3)}
        for name, values in found.items()
    ]


def fraction_rows(measured: CalaResults) -> list[Row]:
    """PSNR against fraction of parameters."""
    codec = measured.study.bank.codec
    whole = sum(p.numel() for p in codec.parameters())
    rows = []
    for (method, fraction), values in measured.fractions.items():
        trained = METHODS[method].build(codec, fraction).trained_parameters()
        mean, ci95 = bootstrap_mean(values.mean(axis=0).tolist())
        row = {"method": method, "most": fraction, "share": round(trained / whole, 5)}
        rows.append({**row, "psnr_db": round(mean, 3), "ci95": _rounded(ci95)})
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


def cost_rows(measured: CalaResults) -> list[Row]:
    """Median seconds of encoding and decoding, and the ratio to the plain codec."""
    rows = []
    for name, reference in COSTS.items():
        seconds, plain = measured.costs[name], measured.costs[reference]
        ratio, ci95 = ratio_of_medians(seconds, plain)
        rows.append(
            {
                "what": name,
                "median_s": round(float(np.median(seconds)), 6),
                "plain_s": round(float(np.median(plain)), 6),
                "ratio": round(ratio, 3),
                "ci95": _rounded(ci95),
                "n": len(seconds),
            }
        )
    return rows


def figures(measured: CalaResults, results: Path) -> None:
    """The figures of results/headline.json."""

    def put(key: str, values: Iterable[float], unit: str) -> None:
        column = list(values)
        mean, ci95 = bootstrap_mean(column)
        record(key, mean, unit, command=COMMAND, count=len(column), ci95=ci95, results=results)

    own = per_image(measured, "cala")
    best = max(BASELINES, key=lambda method: float(per_image(measured, method).mean()))
    put("tka_gain_db", own - per_image(measured, "none"), "dB")
    put("tka_lead_over_best_baseline_db", own - per_image(measured, best), "dB")
    put("tka_oracle_gap_db", (measured.oracles - measured.subset["cala"]).mean(axis=0), "dB")
    fraction = measured.study.bank.adapters.info["scores"]["share"]
    record("tka_adapter_share", 100 * fraction, "%", command=COMMAND, count=1, results=results)
    worst = worst_unseen(unseen_rows(measured))
    cost = next(row for row in cost_rows(measured) if row["what"] == "a new condition")
    for key, value, unit, row in (
        ("tka_unseen_gap_db", worst["gap_db"], "dB", worst),
        ("gate_cost_ratio", cost["ratio"], "ratio", cost),
    ):
        record(key, value, unit, command=COMMAND, count=row["n"], ci95=row["ci95"], results=results)
    kept = [100.0 * (each.psnr_db >= each.target_db) for each in measured.requests[0.0] if each.promised]
    put("auto_rate_hit_share", kept, "%")


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
                latents, [conditions], [0], source_values=source_values(latents), channel_uses=channel_uses
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
    trained = {training.method: training for training in study.trainings.baselines()}
    rows = []
    for method in ("none", "lora", "cala", "fine-tune"):
        adapted = study.adapted(method, trained.get(method))
        row = [study.pixels[0]]
        for snr_db in GRID_SNRS_DB:
            conditions = LinkConditions.model_validate({**CHANNELS[SHOWN_CHANNEL], "snr_db": snr_db})
            text = study.text(adapted, slice(1))
            received = deliver(adapted, study.latents[:1], RATES[0], conditions, study.seeds[:1], text=text)
            row.append(study.bank.edge.decoder.decode(received)[0])
        rows.append(row)
    return rows
