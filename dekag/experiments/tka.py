"""`dekag experiment tka`: transmission-knowledge alignment, CALA beside its baselines.

Every method sends the same pictures, which the edge drew of held-out prompts, over every channel, rate and
SNR of the grid, with the same fades and noise for all. Channels that no training ever drew, a sender that is
told a wrong SNR, and rate control are measured as well. Whatever was measured is kept in runs/tka under a
hash of all it depends on: an interrupted experiment goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from dekag import plugins
from dekag.cala.aligned import AlignedCodec
from dekag.cala.conditions import condition_vector
from dekag.cala.methods import METHODS, Adapted
from dekag.documents import parse_json
from dekag.errors import NotFoundError
from dekag.experiments.digital import CHANNELS, RATES, SNRS_DB, Semantic, draw_pictures
from dekag.experiments.tka_training import (
    ORACLE_CBRS,
    ORACLE_CHANNELS,
    ORACLE_SNRS_DB,
    Bench,
    Plan,
    Training,
)
from dekag.generation.models import Generator, folder_hash
from dekag.generation.profile import load_profile
from dekag.link.conditions import LinkConditions
from dekag.metrics.features import ImageScorer
from dekag.metrics.image import psnr_db
from dekag.training.cala import deliver

Array = npt.NDArray[np.float64]

RUNS = Path("runs/tka")
GRID_SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
METRICS = ("psnr_db", "ssim", "ms_ssim", "clip", "dino")
STRUCTURE_PICTURES = 8  # SSIM takes longer than all the rest: it is of the first pictures only
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
VERSION = 1  # raised when the code changes what a block comes out as


@dataclass(frozen=True)
class Block:
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

    def conditions(self, snr_db: float) -> LinkConditions:
        """At one of its SNRs."""
        told = None if self.offset_db == 0 else snr_db + self.offset_db
        link = parse_json(self.channel, "channel")
        return LinkConditions.model_validate({**link, "snr_db": snr_db, "reported_snr_db": told})


def as_channel(link: dict[str, Any]) -> str:
    """What `Block.channel` holds."""
    return json.dumps(link, sort_keys=True)


def main_block(method: str, channel: str, training: Training | None = None) -> Block:
    """A method over a channel of the grid; CALA, which is compared with digital rivals, in more detail."""
    fine = method == "cala"
    return Block(
        method,
        as_channel(CHANNELS[channel]),
        snrs_db=SNRS_DB if fine else GRID_SNRS_DB,
        training=training,
        features=fine,
        structure=True,
    )


def subset_block(training: Training, channel: str) -> Block:
    """A point of the curve against share."""
    link = as_channel(CHANNELS[channel])
    return Block(training.method, link, ORACLE_CBRS, ORACLE_SNRS_DB, training=training)


def ceiling_block(training: Training) -> Block:
    """A ceiling in the one cell that it was trained for."""
    if training.only is None:
        raise ValueError("not a ceiling")
    channel, cbr, snr_db = training.only
    return Block("fine-tune", as_channel(CHANNELS[channel]), (cbr,), (snr_db,), training=training)


def unseen_blocks() -> dict[str, tuple[Block, Block]]:
    """Each unseen condition with the trained one beside it, both for the shipped CALA."""
    found = {}
    for name, pair in UNSEEN.items():
        beside, trained = (
            Block("cala", as_channel(link), UNSEEN_CBRS, UNSEEN_SNRS_DB) for link in (pair[0], pair[1])
        )
        found[name] = (beside, trained)
    for snr_db, end_db in BEYOND_DB.items():
        for channel in MISMATCH_CHANNELS:
            link = as_channel(CHANNELS[channel])
            found[f"{snr_db:g} dB, {channel}"] = (
                Block("cala", link, UNSEEN_CBRS, (snr_db,)),
                Block("cala", link, UNSEEN_CBRS, (end_db,)),
            )
    return found


def mismatch_blocks() -> dict[tuple[str, float], Block]:
    """CALA with a sender that is told a wrong SNR."""
    return {
        (channel, offset): Block(
            "cala", as_channel(CHANNELS[channel]), (1 / 96, 1 / 384), MISMATCH_SNRS_DB, offset_db=offset
        )
        for channel in MISMATCH_CHANNELS
        for offset in OFFSETS_DB
    }


@dataclass(frozen=True)
class Workbench:
    """The models and judges of one worker process, and the pictures that all methods send.

    Attributes:
        bench: what trainings need.
        edge: whose pictures are sent.
        scorer: judges consistency.
        latents: (n, c, h, w).
        pixels: (n, height, width, 3) uint8: the latents, decoded without a channel.
        seeds: of each picture, also of its channel.
        identity: hash of all that a block depends on beside itself.
    """

    bench: Bench
    edge: Generator
    scorer: ImageScorer
    latents: torch.Tensor
    pixels: npt.NDArray[np.uint8]
    seeds: list[int]
    identity: str

    @classmethod
    def load(cls, profile: str, plan: Plan, count: int, runs: Path) -> Workbench:
        """Load a profile's models, and let its edge draw `count` pictures."""
        bench = Bench.load(profile, plan, runs)
        models, judges = load_profile(profile), load_profile("embedded").scorer
        if judges is None:
            raise NotFoundError("the embedded profile names no scorer")
        edge = Generator.from_profile(models.edge)
        scorer = ImageScorer.load(judges.clip, judges.dino)
        latents, pixels, seeds = draw_pictures(edge, count)
        known = [VERSION, bench.base_hash, bench.shipped.content_hash, edge.model_hash, edge.steps]
        known += [edge.guidance_scale, count, folder_hash(judges.clip), folder_hash(judges.dino)]
        identity = hashlib.sha256(json.dumps(known).encode()).hexdigest()
        return cls(bench, edge, scorer, latents, pixels, seeds, identity)

    def adapted(self, method: str, training: Training | None) -> Adapted:
        """The method, trained."""
        if training is not None:
            return self.bench.train(training, show=False)
        return self.bench.plain() if method == "none" else self.bench.cala()

    def run(self, block: Block) -> Array:
        """METRICS of every picture, (rates, SNRs, n, 5), nan where not asked for; measured or read."""
        known = [self.identity, asdict(block)]
        if block.training is not None:
            known.append(self.bench.key(block.training))
        name = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:24]
        path = self.bench.runs / "blocks" / f"{name}.npy"
        if not path.exists():
            adapted = self.adapted(block.method, block.training)
            found = np.stack(
                [
                    np.stack([self.cell(adapted, block, cbr, snr_db) for snr_db in block.snrs_db])
                    for cbr in block.cbrs
                ]
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".new.npy")
            np.save(unfinished, found)
            unfinished.replace(path)
        result: Array = np.load(path)
        return result

    def semantic(self, channels: Sequence[str]) -> Semantic:
        """PSNR, CLIP- and DINO-score of each picture by CALA, as digital rivals are compared with."""
        found = {}
        for channel in channels:
            values = self.run(main_block("cala", channel))
            for i, cbr in enumerate(RATES):
                for j, snr_db in enumerate(SNRS_DB):
                    found[(channel, cbr, snr_db)] = values[i, j][:, [0, 3, 4]]
        return found

    def cell(self, adapted: Adapted, block: Block, cbr: float, snr_db: float) -> Array:
        """METRICS of every picture at one rate and SNR, (n, 5)."""
        received = deliver(adapted, self.latents, cbr, block.conditions(snr_db), self.seeds)
        shown = self.edge.decoder.decode(received)
        values = np.full((len(shown), len(METRICS)), np.nan)
        values[:, 0] = [psnr_db(one, sent) for one, sent in zip(shown, self.pixels, strict=True)]
        if block.structure:
            first = slice(0, STRUCTURE_PICTURES)
            for column in ("ssim", "ms_ssim"):
                scores = plugins.get("metric", column).score(shown[first], self.pixels[first])
                values[first, METRICS.index(column)] = scores
        if block.features:
            scores = self.scorer.scores(shown, self.pixels)
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


def rate_control(workbench: Workbench, count: int, offset_db: float = 0.0) -> list[Request]:
    """`count` requests with random channels, SNRs (0 to 20 dB) and targets, through rate control.

    Args:
        workbench: whose pictures are asked for, in turn.
        count: requests.
        offset_db: added to the SNR that the sender is told.
    """
    quality = workbench.bench.shipped.quality
    if quality is None:
        raise NotFoundError("the shipped adapters carry no quality model")
    adapted, rng = workbench.bench.cala(), np.random.default_rng(7)
    source = int(np.prod(workbench.pixels.shape[1:]))
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
        one = slice(number % len(workbench.seeds), number % len(workbench.seeds) + 1)
        # far from every other picture's seed, and another one each time that the picture is asked for
        channel_seed = workbench.seeds[one][0] + 1_000_003 * (number + 1)
        received = deliver(adapted, workbench.latents[one], cbr, conditions, [channel_seed])
        psnr = psnr_db(workbench.edge.decoder.decode(received)[0], workbench.pixels[one][0])
        found.append(
            Request(channel, snr_db, told_db, target_db, promised, max(1, round(cbr * source)), psnr)
        )
    return found


def gate_cost(workbench: Workbench, rounds: int) -> dict[str, list[float]]:
    """Seconds of encoding and decoding, in turns, by the plain codec and with gates: see COSTS."""
    bench, latents = workbench.bench, workbench.latents.float()
    aligned = AlignedCodec(bench.codec, bench.base_hash, bench.shipped)
    shape = (latents.shape[1], latents.shape[2], latents.shape[3])
    most = bench.codec.max_channel_uses(shape)
    rng = np.random.default_rng(0)

    def conditions(count: int) -> torch.Tensor:
        links = [LinkConditions(snr_db=float(snr)) for snr in rng.uniform(-5, 20, count)]
        return torch.stack([condition_vector(1 / 96, link, at="sender") for link in links])

    def plain(batch: torch.Tensor) -> None:
        with torch.inference_mode():
            bench.codec.decode(bench.codec.encode(batch, most), shape)

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
def _workbench(profile: str, plan: Plan, count: int, runs: Path) -> Workbench:
    return Workbench.load(profile, plan, count, runs)


@cache
def _bench(profile: str, plan: Plan, runs: Path) -> Bench:
    return Bench.load(profile, plan, runs)


def _train(profile: str, plan: Plan, runs: Path, training: Training) -> None:
    _bench(profile, plan, runs).train(training, show=False)


def _run(profile: str, plan: Plan, count: int, runs: Path, block: Block) -> tuple[Block, Array]:
    return block, _workbench(profile, plan, count, runs).run(block)


@dataclass(frozen=True)
class Measured:
    """Everything that the experiment measured.

    Attributes:
        workbench: what it was measured with.
        main: method and channel -> METRICS, (rates, SNRs, n, 5).
        shares: method and share -> PSNR over the subset of conditions, (cells, n), dB.
        ceilings: the subset's cells by the ceiling, (cells, n), dB.
        subset: method -> the same cells by that method.
        unseen: name -> PSNR there and in the trained condition beside it, (cells, n) each.
        mismatch: channel and offset, dB -> PSNR, (rates, SNRs, n).
        requests: of rate control, by the offset of the SNR that was told, dB.
        costs: seconds, of `gate_cost`.
    """

    workbench: Workbench
    main: dict[tuple[str, str], Array]
    shares: dict[tuple[str, float], Array]
    ceilings: Array
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
) -> Measured:
    """Train and measure what no earlier run has, in `workers` processes of one thread each."""
    bench = _bench(profile, plan, runs)
    baselines = {training.method: training for training in bench.baselines()}
    ceilings, shares = bench.ceilings(), bench.shares()
    made: dict[str, Training | None] = {"none": None, "cala": None, **baselines}
    main = {
        (method, channel): main_block(method, channel, made[method])
        for method in METHODS
        for channel in channels
    }
    unseen, mismatch = unseen_blocks(), mismatch_blocks()
    curve = {
        (training, channel): subset_block(training, channel)
        for training in shares
        for channel in ORACLE_CHANNELS
    }
    tops = [ceiling_block(training) for training in ceilings]
    blocks = [
        *main.values(),
        *curve.values(),
        *tops,
        *(b for pair in unseen.values() for b in pair),
        *mismatch.values(),
    ]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        # ceilings go on from the shared fine-tune, so they come second
        for group in ([*baselines.values(), *shares], ceilings):
            training = [pool.submit(_train, profile, plan, runs, each) for each in group]
            for each in tqdm(as_completed(training), total=len(training), desc="trainings"):
                each.result()
        running = [pool.submit(_run, profile, plan, count, runs, block) for block in dict.fromkeys(blocks)]
        found = dict(
            each.result() for each in tqdm(as_completed(running), total=len(running), desc="measurements")
        )
    workbench = _workbench(profile, plan, count, runs)
    subset = {}
    for method in ("none", "cala", "fine-tune"):
        cells = []
        for top in ceilings:
            channel, cbr, snr_db = top.only or ("", 0.0, 0.0)
            block = main[(method, channel)]
            cells.append(found[block][block.cbrs.index(cbr), block.snrs_db.index(snr_db), :, 0])
        subset[method] = np.stack(cells)
    return Measured(
        workbench,
        {key: found[block] for key, block in main.items()},
        {
            (training.method, training.share): np.concatenate(
                [_psnr(found[curve[(training, channel)]]) for channel in ORACLE_CHANNELS]
            )
            for training in shares
        },
        np.concatenate([_psnr(found[block]) for block in tops]),
        subset,
        {name: (_psnr(found[there]), _psnr(found[beside])) for name, (there, beside) in unseen.items()},
        {key: found[block][..., 0] for key, block in mismatch.items()},
        {offset: rate_control(workbench, requests, offset) for offset in (0.0, 3.0)},
        gate_cost(workbench, rounds),
    )
