"""`dekag experiment digital`: the conventional delivery at its best, beside a semantic one.

At given channel uses K and a given channel, a digital sender picks for each image what it can expect the
best PSNR from: format, quality and scale of the image, modulation and code rate. It knows the mean SNR and
the kind of fading, not the fades. If nothing fits into K, or the payload is lost, the receiver shows the mean
image of what the edge draws, and that is scored: a failure is a result.

Losses are predicted (`dekag.link.outage`), as decoding every cell would take days; `check` really transmits
and decodes a sample of the deliveries and says how far the predictions are off. ImageSet are the edge's own,
and quality is measured against what the edge drew, as it is for a semantic delivery.

Baselines: each format by itself and the best of them, as whole files and bare (without what the receiver
knows anyway); HARQ of up to 4 transmissions at equal mean channel uses; the best of all, bare, with one
transmission and with HARQ, that maximises consistency instead of PSNR; and what Shannon's bound allows.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from dekag.api.limits import MAX_PAYLOAD_BYTES
from dekag.evaluation.models import model_bank
from dekag.evaluation.pages import Row, write_rows
from dekag.evaluation.prompts import edge_prompts
from dekag.evaluation.registry import RESULTS, forget, record
from dekag.evaluation.statistics import bootstrap_mean, mean_ci95
from dekag.evaluation.store import ResultStore, content_key
from dekag.generation.images import IMAGE_FORMATS, ImageFormat, Pixels
from dekag.generation.models import Generator
from dekag.link.capacity import bytes_within, ergodic_capacity, outage_capacity
from dekag.link.conditions import LinkConditions
from dekag.link.harq import MAX_TRANSMISSIONS, send_with_harq
from dekag.link.image_coding import QUALITIES, SCALES, EncodedImage, candidates, decode, encode, ladders
from dekag.link.mcs import TABLE, CodewordLayout, ModulationAndCoding, largest_payload
from dekag.link.outage import slot_snrs_db, success
from dekag.metrics.features import ImageScorer
from dekag.metrics.image import psnr_db
from dekag.training.worlds import STICKERS

Array = npt.NDArray[np.float64]
Key = tuple[str, float, float]  # channel (of CHANNELS), CBR, mean SNR in dB
Place = tuple[str, float, float]  # a Key in rows: its rate is rounded
Semantic = Mapping[Key, Array]  # METRICS of each image, (n, 3), in the order of the images

COMMAND = "dekag experiment digital"
FOLDER = "digital"
RUNS = Path("runs/digital")
CHANNELS: dict[str, dict[str, Any]] = {
    "awgn": {"fading": "awgn"},
    "rayleigh-flat": {"fading": "rayleigh", "tau_rms_s": 0.0},
    "rayleigh-100ns": {"fading": "rayleigh", "tau_rms_s": 1e-7},
    "rayleigh-1us": {"fading": "rayleigh", "tau_rms_s": 1e-6},
    "rician-6db": {"fading": "rician", "rician_k_db": 6.0, "tau_rms_s": 1e-7},
    "tdl-a-100ns": {"fading": "tdl-a", "tau_rms_s": 1e-7},
}
RATES = (1 / 96, 1 / 192, 1 / 384, 1 / 768)
SNRS_DB = tuple(-5.0 + 2.5 * step for step in range(11))
USES = tuple(round(16 * 2 ** (step / 2)) for step in range(23))  # 16 to 32768
OUTAGES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
HARQ_OVERPROVISIONS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0)  # K over the channel uses of one transmission
METRICS = ("psnr_db", "clip", "dino")
CONSISTENCY = (0.0, 0.5, 0.5)
"""Weights of METRICS for a sender that goes by consistency."""
VERSION = 1  # raised when the code changes what a ladder comes out as
_SLOT_USES = 64  # symbols of a slot of the bounds: for CHANNELS, more of them change less than 0.001 bit

# at which losses are predicted; between them they are interpolated
_PAYLOADS = np.unique(
    np.concatenate([np.geomspace(1, 8192, 40), np.geomspace(8192, MAX_PAYLOAD_BYTES, 16)]).round().astype(int)
)
_MEAN_IMAGES = 32


@dataclass(frozen=True)
class Ladder:
    """What could be sent of one image in one format, by rising bytes.

    Attributes:
        sizes: bytes of each rung.
        settings: quality and scale of each.
        values: METRICS of what the receiver shows against the image, (rungs, 3), or PSNR alone, (rungs, 1).
    """

    sizes: list[int]
    settings: list[tuple[int, int]]
    values: Array
    _best: dict[tuple[float, ...], list[int]] = field(default_factory=dict, init=False, repr=False)

    def best(self, max_bytes: int, weights: tuple[float, ...] = (1.0,)) -> int:
        """Index of the rung of at most that many bytes with the largest weighted sum of the first metrics.

        A larger file may be less consistent, at another scale for example. -1 if all files are larger.
        """
        if weights not in self._best:
            sums = (self.values[:, : len(weights)] @ np.array(weights)).tolist()

            def better(best: int, rung: int) -> int:
                return rung if sums[rung] > sums[best] else best

            self._best[weights] = list(accumulate(range(len(sums)), better))
        count = bisect_right(self.sizes, max_bytes)
        return self._best[weights][count - 1] if count else -1


class Choices(Protocol):
    """What a sender chooses from, image by image.

    Attributes:
        ladders: by format and bareness, one for each image.
        fallback_values: scores of what is shown when nothing arrives, (n, metrics); PSNR first.
    """

    @property
    def ladders(self) -> Mapping[tuple[str, bool], Sequence[Ladder]]:
        """By format and bareness, one for each image."""

    @property
    def fallback_values(self) -> Array:
        """Scores of what is shown when nothing arrives, (n, metrics)."""


@dataclass(frozen=True)
class ImageSet:
    """The edge's images and all that is known of sending them.

    Attributes:
        latents: (n, c, h, w).
        pixels: (n, height, width, 3) uint8: what the edge drew, the reference.
        seeds: of each, also of its channel.
        fallback: (height, width, 3) uint8, shown when nothing arrives.
        fallback_values: METRICS of the fallback against each image, (n, 3).
        ladders: by format and bareness, one for each image.
    """

    latents: torch.Tensor
    pixels: npt.NDArray[np.uint8]
    seeds: list[int]
    fallback: Pixels
    fallback_values: Array
    ladders: dict[tuple[str, bool], list[Ladder]]

    @property
    def source_values(self) -> int:
        """3 * width * height."""
        return int(np.prod(self.pixels.shape[1:]))


def draw_edge_images(edge: Generator, count: int) -> tuple[torch.Tensor, npt.NDArray[np.uint8], list[int]]:
    """Latents, pixels and seeds of `count` images that the edge draws of held-out prompts."""
    prompts = edge_prompts(count)
    latents = torch.cat([edge.latents(prompt, seed) for _, prompt, seed in tqdm(prompts, desc="images")])
    pixels = np.concatenate([edge.decoder.decode(one[None]) for one in latents])
    return latents, pixels, [seed for *_, seed in prompts]


def load_image_set(edge: Generator, scorer: ImageScorer, count: int, store: ResultStore) -> ImageSet:
    """`count` images that the edge draws of held-out prompts, with their ladders, which are kept."""
    latents, pixels, seeds = draw_edge_images(edge, count)
    return prepare_image_set(latents, pixels, seeds, mean_image(edge, store), scorer, store)


def prepare_image_set(
    latents: torch.Tensor,
    pixels: npt.NDArray[np.uint8],
    seeds: list[int],
    fallback: Pixels,
    scorer: ImageScorer,
    store: ResultStore,
) -> ImageSet:
    """ImageSet with all that a digital sender can expect of sending them."""
    found: dict[tuple[str, bool], list[Ladder]] = {}
    for image in tqdm(pixels, desc="encode"):
        for key, one in image_ladders(image, scorer, store).items():
            found.setdefault(key, []).append(one)
    scores = scorer.scores(np.repeat(fallback[None], len(pixels), 0), pixels)
    values = np.stack([[psnr_db(fallback, p) for p in pixels], scores["clip"], scores["dino"]], axis=1)
    return ImageSet(latents, pixels, seeds, fallback, values, found)


def mean_image(edge: Generator, store: ResultStore) -> Pixels:
    """The mean of images that the edge draws of training captions, (height, width, 3) uint8.

    A receiver that knows what the edge draws, and nothing of this image, shows it.
    """

    captions = STICKERS.edge_captions(_MEAN_IMAGES, seed=0)

    def make() -> Array:
        total = 0.0
        for seed, caption in enumerate(tqdm(captions, "mean image")):
            total = total + edge.decoder.decode(edge.latents(caption, seed))[0].astype(np.float64)
        return np.asarray(total / _MEAN_IMAGES)

    sampled = edge.steps, edge.guidance_scale
    key = content_key(VERSION, edge.model_hash, *sampled, *captions, *edge.departures)
    return store.array("mean", key, make).round().astype(np.uint8)


def image_ladders(
    image: Pixels, scorer: ImageScorer | None, store: ResultStore
) -> dict[tuple[str, bool], Ladder]:
    """The ladders of one image by format and bareness, read where they have been made before.

    With a scorer they have every quality and scale, since the metrics disagree on which is best. Without one,
    PSNR alone is measured, and the other METRICS are 0.
    """

    def make() -> dict[str, list[list[float]]]:
        made = {}
        for image_format in IMAGE_FORMATS:
            if scorer is None:
                files = ladders(image, image_format)
                scores = [[[0.0, 0.0]] * len(each) for each in files]
            else:
                files = candidates(image, image_format)
                scores = [_scores(files[0], image, scorer)] * 2  # both decode to the same images
            for bare in (False, True):
                made[f"{image_format}/{bare:d}"] = _rows(files[bare], scores[bare])
        return made

    scored_by = [] if scorer is None else [scorer.model_hash]
    key = content_key(VERSION, QUALITIES, SCALES, image.shape, *scored_by, data=image.tobytes())
    found = {}
    kind = "candidates" if scorer is not None else "ladders-psnr"
    for name, rungs in store.json(kind, key, make).items():
        image_format, bare = name.split("/")
        found[image_format, bare == "1"] = _ladder(rungs)
    return found


def scored_ladder(image: Pixels, image_format: ImageFormat, scorer: ImageScorer) -> Ladder:
    """The ladder of whole files of one image in one format."""
    files, _ = candidates(image, image_format)
    return _ladder(_rows(files, _scores(files, image, scorer)))


def _ladder(rows: Sequence[Sequence[Any]]) -> Ladder:
    """The ladder of what `_rows` returns."""
    rows = sorted(rows, key=lambda row: (row[0], -row[3]))
    settings = [(row[1], row[2]) for row in rows]
    return Ladder([row[0] for row in rows], settings, np.array([row[3:] for row in rows]))


def _rows(files: Sequence[EncodedImage], scores: Sequence[Sequence[float]]) -> list[list[float]]:
    """Bytes, quality, scale, PSNR and scores of each file."""
    return [
        [len(file.data), file.quality, file.scale, round(file.psnr_db, 4), *own]
        for file, own in zip(files, scores, strict=True)
    ]


def _scores(files: Sequence[EncodedImage], image: Pixels, scorer: ImageScorer) -> list[list[float]]:
    """CLIP and DINO score of what each whole file shows, against the image."""
    height, width = image.shape[:2]
    shown = np.stack([decode(file.data, width, height) for file in files])
    theirs, ours = scorer.features(image[None]), scorer.features(shown)
    columns = [(ours[name] @ theirs[name][0]).tolist() for name in METRICS[1:]]
    return [[round(value, 4) for value in row] for row in zip(*columns, strict=True)]


def conditions_of(channel: str, snr_db: float) -> LinkConditions:
    """A channel of CHANNELS at a mean SNR, dB."""
    return LinkConditions.model_validate({**CHANNELS[channel], "snr_db": snr_db})


class Forecast:
    """Chances that payloads arrive over a channel, after 1 to MAX_TRANSMISSIONS transmissions.

    Args:
        conditions: of the link.
        channel_uses: symbols of a transmission; it matters where every symbol has its own gain.
    """

    def __init__(self, conditions: LinkConditions, *, channel_uses: int = 64) -> None:
        self.conditions = conditions
        attempts = range(1, MAX_TRANSMISSIONS + 1)
        self._snrs = {
            order: [
                slot_snrs_db(order, conditions, channel_uses=channel_uses, transmissions=count)
                for count in attempts
            ]
            for order in {coding.bits_per_symbol for coding in TABLE}
        }
        self._tables: dict[ModulationAndCoding, Array] = {}

    def arrives(self, coding: ModulationAndCoding, payload_bytes: int) -> Array:
        """(MAX_TRANSMISSIONS,) chances of a payload of 1 to 2**20 bytes, by transmissions allowed."""
        if coding not in self._tables:
            snrs = self._snrs[coding.bits_per_symbol]
            layouts = [CodewordLayout.of(int(size), coding) for size in _PAYLOADS]
            chances = [[success(coding, layout, snr).mean() for layout in layouts] for snr in snrs]
            self._tables[coding] = np.array(chances)
        size = math.log(payload_bytes)
        return np.array([np.interp(size, np.log(_PAYLOADS), each) for each in self._tables[coding]])


@dataclass(frozen=True)
class Choice:
    """What the sender of one image chose, and what it may expect.

    Attributes:
        values: expected METRICS, (3,).
        arrives: chance that the image arrives.
        ladder: format and bareness; None if nothing fits, and nothing is sent.
        rung: of that ladder.
        coding: the row of TABLE.
        uses: channel uses, of all transmissions on average.
    """

    values: Array
    arrives: float
    ladder: tuple[str, bool] | None = None
    rung: int = -1
    coding: ModulationAndCoding | None = None
    uses: float = 0.0


@lru_cache(maxsize=4096)
def _capacity(channel_uses: int, coding: ModulationAndCoding) -> int:
    return largest_payload(channel_uses, coding)


def choose(
    images: Choices,
    index: int,
    names: Sequence[tuple[str, bool]],
    channel_uses: int,
    forecast: Forecast,
    *,
    transmissions: int = 1,
    weights: tuple[float, ...] = (1.0,),
) -> Choice:
    """What a sender picks for one image out of these formats: the best expected PSNR within K.

    With `weights` of the first metrics it is the best expected sum of them. With more than one transmission,
    K bounds the mean over fades of the channel uses of all of them.
    """
    lost = images.fallback_values[index]
    goal = np.zeros(len(lost))
    goal[: len(weights)] = weights
    best, reached = Choice(lost, 0.0), float(lost @ goal)
    overprovisions = HARQ_OVERPROVISIONS if transmissions > 1 else (1.0,)
    for coding in TABLE:
        for overprovision in overprovisions:
            one_use = int(channel_uses / overprovision)
            capacity = _capacity(one_use, coding)
            for name in names:
                ladder = images.ladders[name][index]
                rung = ladder.best(capacity, weights)
                if rung < 0 or ladder.values[rung] @ goal <= reached:
                    continue
                size = ladder.sizes[rung]
                chances = forecast.arrives(coding, size)[:transmissions]
                uses = CodewordLayout.of(size, coding).channel_uses * (1 + float((1 - chances[:-1]).sum()))
                values = chances[-1] * ladder.values[rung] + (1 - chances[-1]) * lost
                if uses <= channel_uses and values @ goal > reached:
                    reached = float(values @ goal)
                    best = Choice(values, float(chances[-1]), name, rung, coding, uses)
    return best


def shannon(images: ImageSet, channel_uses: int, conditions: LinkConditions) -> dict[str, Array]:
    """METRICS (n, 3) of error-free codes at Shannon's bound, with the best format, bare.

    "outage": a sender that does not know the fades, at the outage that suits the images best on average;
    "ergodic": the mean capacity of all slots, which no code of one slot reaches. On AWGN they are the same.
    """
    names = [(image_format, True) for image_format in IMAGE_FORMATS]

    def at(bits_per_use: float) -> Array:
        size = bytes_within(channel_uses, bits_per_use)
        values = []
        for index, lost in enumerate(images.fallback_values):
            best = [(ladder, ladder.best(size)) for ladder in (images.ladders[name][index] for name in names)]
            reached = [ladder.values[rung] for ladder, rung in best if rung >= 0]
            values.append(max([*reached, lost], key=lambda each: float(each[0])))
        return np.stack(values)

    found = {"ergodic": at(ergodic_capacity(conditions, channel_uses=_SLOT_USES))}
    if conditions.fading == "awgn":
        return {**found, "outage": found["ergodic"]}
    lost = images.fallback_values
    rates = {outage: at(outage_capacity(conditions, outage, channel_uses=_SLOT_USES)) for outage in OUTAGES}
    mixed = [(1 - outage) * values + outage * lost for outage, values in rates.items()]
    return {**found, "outage": max(mixed, key=lambda values: float(values[:, 0].mean()))}


BASELINES: dict[str, list[tuple[str, bool]]] = {
    **{f"{name}-file": [(name, False)] for name in IMAGE_FORMATS},
    **{name: [(name, True)] for name in IMAGE_FORMATS},
    "best-file": [(name, False) for name in IMAGE_FORMATS],
    "best": [(name, True) for name in IMAGE_FORMATS],
}


SENDERS: tuple[tuple[str, list[tuple[str, bool]], int, tuple[float, ...]], ...] = (
    *((name, names, 1, (1.0,)) for name, names in BASELINES.items()),
    ("best-harq", BASELINES["best"], MAX_TRANSMISSIONS, (1.0,)),
    ("consistent", BASELINES["best"], 1, CONSISTENCY),
    ("consistent-harq", BASELINES["best"], MAX_TRANSMISSIONS, CONSISTENCY),
)
"""Name, ladders, transmissions and weights of METRICS of each sender."""
LOW_RATES, LOW_SNR_DB = RATES[2:], 10.0
"""Where CALA should be ahead of every digital sender: at these rates, up to this SNR."""


def measure_cell(images: ImageSet, key: Key, forecast: Forecast) -> tuple[list[Row], list[Choice]]:
    """One row for each baseline at one channel, rate and SNR; and what the best one, bare, chose."""
    channel, cbr, snr_db = key
    channel_uses = round(cbr * images.source_values)
    indices = range(len(images.pixels))
    rows: list[Row] = []
    best: list[Choice] = []
    for baseline, names, transmissions, weights in SENDERS:
        choices = [
            choose(images, i, names, channel_uses, forecast, transmissions=transmissions, weights=weights)
            for i in indices
        ]
        sent = [choice for choice in choices if choice.coding is not None]
        row = _row(key, baseline, np.stack([choice.values for choice in choices]))
        row["lost"] = round(1 - float(np.mean([choice.arrives for choice in choices])), 4)
        row["unfit"] = round(1 - len(sent) / len(choices), 4)
        if sent:
            row["uses"] = round(float(np.mean([choice.uses for choice in sent])), 1)
            row["efficiency"] = round(float(np.mean([c.coding.efficiency for c in sent if c.coding])), 3)
            sizes = [images.ladders[c.ladder][i].sizes[c.rung] for i, c in enumerate(choices) if c.ladder]
            row["bytes"] = round(float(np.mean(sizes)), 1)
        rows.append(row)
        best = choices if baseline == "best" else best
    for bound, values in shannon(images, channel_uses, conditions_of(channel, snr_db)).items():
        rows.append(_row(key, f"shannon-{bound}", values))
    return rows, best


def _row(key: Key, baseline: str, values: Array) -> Row:
    channel, cbr, snr_db = key
    psnr, clip, dino = values.mean(axis=0)
    _, interval = mean_ci95(values[:, 0].tolist())
    return {
        "channel": channel,
        "cbr": round(cbr, 6),
        "snr_db": snr_db,
        "rival": baseline,
        "psnr_db": round(float(psnr), 3),
        "psnr_ci95": interval and [round(limit, 3) for limit in interval],
        "clip": round(float(clip), 4),
        "dino": round(float(dino), 4),
        "consistency": round(float((clip + dino) / 2), 4),
    }


def needed_uses(images: ImageSet, forecast: Forecast, targets_db: Sequence[float]) -> list[float]:
    """Channel uses at which the best baseline's mean PSNR reaches each target, dB; inf beyond USES."""
    means = []
    for channel_uses in USES:
        indices = range(len(images.pixels))
        choices = [choose(images, i, BASELINES["best"], channel_uses, forecast) for i in indices]
        means.append(float(np.mean([choice.values[0] for choice in choices])))
        if means[-1] > max(targets_db):
            break
    rising = np.maximum.accumulate(means) + 1e-9 * np.arange(len(means))
    places = np.log(np.array(USES[: len(means)], dtype=float))
    return [
        float(np.exp(np.interp(target, rising, places))) if target <= rising[-1] else math.inf
        for target in targets_db
    ]


def check(images: ImageSet, chosen: Mapping[Key, Sequence[Choice]], count: int, seed: int = 0) -> list[Row]:
    """Encode, transmit and decode a sample of the best baseline's deliveries, every second one with HARQ."""
    rng = np.random.default_rng(seed)
    cells = [
        (key, i) for key, choices in chosen.items() for i, c in enumerate(choices) if c.coding is not None
    ]
    picked = rng.permutation(len(cells))[:count]
    rows = []
    for number, place in enumerate(tqdm(picked, desc="decode")):
        key, index = cells[int(place)]
        choice = chosen[key][index]
        if choice.ladder is None or choice.coding is None:
            continue
        ladder = images.ladders[choice.ladder][index]
        quality, scale = ladder.settings[choice.rung]
        conditions = conditions_of(key[0], key[2])
        transmissions = MAX_TRANSMISSIONS if number % 2 else 1
        name, bare = choice.ladder
        payload = encode(images.pixels[index], name, quality, scale=scale, headerless=bare)  # type: ignore[arg-type]
        delivery = send_with_harq(payload, choice.coding, conditions, images.seeds[index] + number,
                           max_transmissions=transmissions)  # fmt: skip
        shown, (height, width) = images.fallback, images.pixels.shape[1:3]
        if delivery.payload is not None:
            shown = decode(delivery.payload, width, height, headerless=bare)
        chances = Forecast(conditions).arrives(choice.coding, len(payload))[:transmissions]
        lost = images.fallback_values[index, 0]
        rows.append(
            {
                "channel": key[0],
                "cbr": round(key[1], 6),
                "snr_db": key[2],
                "format": name,
                "bytes": len(payload),
                "max_transmissions": transmissions,
                "predicted_arrival": round(float(chances[-1]), 4),
                "predicted_transmissions": round(1 + float((1 - chances[:-1]).sum()), 3),
                "predicted_psnr_db": round(
                    float(chances[-1] * ladder.values[choice.rung, 0] + (1 - chances[-1]) * lost), 3
                ),
                "arrived": delivery.payload is not None,
                "transmissions": delivery.transmissions,
                "psnr_db": round(psnr_db(shown, images.pixels[index]), 3),
            }
        )
    return rows


@dataclass(frozen=True)
class DigitalResults:
    """All that was found.

    Attributes:
        rows: one for each cell and baseline.
        best: METRICS of each image by the best baseline, (n, 3), by cell.
        uses: channel uses of the best baseline for the semantic quality, by cell; inf if none suffice.
        checks: deliveries that were really decoded.
        count: images.
        source_values: 3 * width * height of one.
    """

    rows: list[Row]
    best: dict[Key, Array]
    uses: dict[Key, float]
    checks: list[Row]
    count: int
    source_values: int


def measure(
    images: ImageSet,
    semantic: Semantic,
    *,
    channels: Sequence[str] = tuple(CHANNELS),
    rates: Sequence[float] = RATES,
    snrs_db: Sequence[float] = SNRS_DB,
    checks: int = 60,
) -> DigitalResults:
    """The baselines in every cell of the grid, and what they need for the semantic delivery's quality.

    Args:
        images: of `load_image_set`.
        semantic: METRICS of the same images; cells that it lacks are measured but not compared.
        channels, rates, snrs_db: the grid; channels of CHANNELS.
        checks: deliveries to decode really.
    """
    rows: list[Row] = []
    chosen: dict[Key, list[Choice]] = {}
    uses: dict[Key, float] = {}
    for channel, snr_db in tqdm([(c, s) for c in channels for s in snrs_db], desc="rivals"):
        forecast = Forecast(conditions_of(channel, snr_db))
        keys = [(channel, cbr, snr_db) for cbr in rates]
        for key in keys:
            found, chosen[key] = measure_cell(images, key, forecast)
            rows += found
        compared = [key for key in keys if key in semantic]
        if compared:
            targets = [float(semantic[key][:, 0].mean()) for key in compared]
            uses |= dict(zip(compared, needed_uses(images, forecast, targets), strict=True))
    best = {key: np.stack([choice.values for choice in choices]) for key, choices in chosen.items()}
    decoded = check(images, chosen, checks)
    return DigitalResults(rows, best, uses, decoded, len(images.pixels), images.source_values)


def run_digital(
    *, count: int, checks: int, channels: Sequence[str], profile: str, results: Path = RESULTS
) -> None:
    """Measure the digital baseline beside CALA, whose images `dekag experiment tka` sends as well.

    Args:
        count: images.
        checks: deliveries that are really decoded.
        channels: of CHANNELS.
        profile: the models.
        results: where headline.json is.
    """
    from dekag.evaluation.studies.cala import RUNS as CALA_RUNS
    from dekag.evaluation.studies.cala import CalaStudy
    from dekag.evaluation.studies.cala_training import Plan, Trainings

    study = CalaStudy.load(Trainings(model_bank(profile), Plan(), ResultStore(CALA_RUNS)), count)
    images = load_image_set(study.bank.edge, study.bank.scorer, count, ResultStore(RUNS))
    semantic = study.semantic(channels)
    write(measure(images, semantic, channels=channels, checks=checks), semantic, results)


def write(measured: DigitalResults, semantic: Semantic, results: Path = RESULTS) -> None:
    """Write results/digital/* and the figures of headline.json, over all cells that can be compared."""
    folder = results / FOLDER
    write_rows(folder / "rivals.jsonl", measured.rows)
    rows = leads(measured, semantic)
    write_rows(folder / "leads.jsonl", rows)
    write_rows(folder / "decoded.jsonl", measured.checks)
    keys = [key for key in measured.best if key in semantic]
    if not keys:
        return
    lead = np.mean([(semantic[key] - measured.best[key])[:, 0] for key in keys], axis=0)
    mean, ci95 = bootstrap_mean(lead.tolist())
    record("digital_lead_db", mean, "dB", command=COMMAND, count=len(lead), ci95=ci95, results=results)
    # what is never reached counts as the most that was tried: the figure is then a lower bound
    most = [USES[-1] / (key[1] * measured.source_values) for key in keys]
    ratios = [min(_ratio(measured, key), limit) for key, limit in zip(keys, most, strict=True)]
    ratio = math.exp(float(np.mean(np.log(ratios))))
    record("digital_channel_use_ratio", ratio, "ratio", command=COMMAND, count=len(keys), results=results)
    for name, ahead in crossovers_db(rows, measured.rows).items():
        if ahead is None:
            forget(name, results)
        else:
            record(name, ahead, "dB", command=COMMAND, count=len(lead), results=results)
    name, least = "digital_low_rate_consistency_lead", least_consistency_lead(rows, measured.rows)
    if least is None:
        forget(name, results)
    else:
        record(name, least, "ratio", command=COMMAND, count=len(lead), results=results)


def over_sender(
    rows: Sequence[Row], rivals: Sequence[Row], sender: str, metric: str = "psnr_db"
) -> list[Row]:
    """The rows of `leads`, each with its `lead` in a metric over a sender, where that one was measured.

    Args:
        rows: of `leads`.
        rivals: of `measure`.
        sender: one of SENDERS.
        metric: "psnr_db" or "consistency".
    """
    theirs = {place_of(row): row[metric] for row in rivals if row["rival"] == sender}
    return [
        {**row, "lead": row[f"semantic_{metric}"] - theirs[place_of(row)]}
        for row in rows
        if place_of(row) in theirs
    ]


def place_of(row: Row) -> Place:
    """The channel, rate and SNR of a row."""
    return row["channel"], row["cbr"], row["snr_db"]


def least_consistency_lead(rows: Sequence[Row], rivals: Sequence[Row]) -> float | None:
    """CALA's least lead in consistency over senders that maximise it, of all cells at low rates and SNRs.

    None if none of these cells was measured.

    Args:
        rows: of `leads`.
        rivals: of `measure`.
    """
    rates = {round(cbr, 6) for cbr in LOW_RATES}
    low = [row for row in rows if row["cbr"] in rates and row["snr_db"] <= LOW_SNR_DB]
    senders = ("consistent", "consistent-harq")
    return min(
        (float(row["lead"]) for sender in senders for row in over_sender(low, rivals, sender, "consistency")),
        default=None,
    )


def crossovers_db(rows: Sequence[Row], rivals: Sequence[Row]) -> dict[str, float | None]:
    """SNRs from which on a digital sender is ahead at the highest rate, dB, by the name of the figure.

    Args:
        rows: of `leads`.
        rivals: of `measure`.
    """
    best = [{**row, "lead": row["lead_db"]} for row in rows]
    return {
        "digital_ahead_from_db": ahead_from_db(best),
        "digital_harq_ahead_from_db": ahead_from_db(over_sender(rows, rivals, "best-harq")),
        "digital_awgn_ahead_from_db": ahead_from_db([row for row in best if row["channel"] == "awgn"]),
    }


def ahead_from_db(rows: Sequence[Row], cbr: float | None = None) -> float | None:
    """SNR from which on a digital sender is ahead at a rate, dB, in the mean over the channels.

    Between the SNRs of the grid the lead is linear. None if it is behind at the highest SNR, or without rows.

    Args:
        rows: of `over_sender`.
        cbr: the rate, one of the rows'; default: their highest.
    """
    if not rows:
        return None
    rate = max(row["cbr"] for row in rows) if cbr is None else cbr
    by_snr: dict[float, list[float]] = {}
    for row in rows:
        if row["cbr"] == rate:
            by_snr.setdefault(row["snr_db"], []).append(row["lead"])
    snrs_db = sorted(by_snr)
    leads = [float(np.mean(by_snr[snr_db])) for snr_db in snrs_db]
    if leads[-1] >= 0:
        return None
    last = max((i for i, lead in enumerate(leads) if lead >= 0), default=None)
    if last is None:
        return snrs_db[0]
    share = leads[last] / (leads[last] - leads[last + 1])
    return float(snrs_db[last] + share * (snrs_db[last + 1] - snrs_db[last]))


def leads(measured: DigitalResults, semantic: Semantic) -> list[Row]:
    """For each cell: how far the semantic delivery is ahead of the best baseline, and what that one needs."""
    rows = []
    for key, theirs in measured.best.items():
        if key not in semantic:
            continue
        channel, cbr, snr_db = key
        ours = semantic[key]
        lead, ci95 = bootstrap_mean((ours - theirs)[:, 0].tolist())
        ratio = _ratio(measured, key)
        rows.append(
            {
                "channel": channel,
                "cbr": round(cbr, 6),
                "snr_db": snr_db,
                "semantic_psnr_db": round(float(ours[:, 0].mean()), 3),
                "digital_psnr_db": round(float(theirs[:, 0].mean()), 3),
                "lead_db": round(lead, 3),
                "lead_ci95": [round(limit, 3) for limit in ci95],
                "semantic_consistency": round(float(ours[:, 1:].mean()), 4),
                "digital_consistency": round(float(theirs[:, 1:].mean()), 4),
                "channel_use_ratio": None if math.isinf(ratio) else round(ratio, 3),
            }
        )
    return rows


def _ratio(measured: DigitalResults, key: Key) -> float:
    """Channel uses of the baseline over those of the semantic delivery; inf if none suffice."""
    return measured.uses[key] / (key[1] * measured.source_values)
