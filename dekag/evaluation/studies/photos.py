"""`dekag experiment photos`: photographs through the field's usual baselines and through this project's link.

Each photograph is sent within K channel uses over AWGN and over Rayleigh block fading, by

* HEVC intra (what BPG is), JPEG XL, AVIF, WebP and JPEG: of each the file with the highest expected PSNR,
  bare, over 5G LDPC and QAM with the best modulation and code rate for the mean SNR (as `dekag experiment
  digital`);
* the same formats as an error-free code at capacity would carry them;
* the codec of pixels of a profile, in tiles as every picture of a user is sent;
* the semantic link of a profile, in tiles as every picture of a user is sent. The built-in models were
  trained on drawn images alone. The codec has symbols for a rate of 1/96 at most; for a higher rate the
  photograph is enlarged by sqrt(96 CBR) before it is cut into tiles, and the received one is reduced again.

If nothing fits or a payload is lost, the receiver shows uniform grey. `HevcGap` is arithmetic that knows
nothing of modulations and codes, only that they are so many dB away from capacity; HEVC over AWGN is compared
with it.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tqdm import tqdm

from dekag.errors import InvalidInputError
from dekag.evaluation.curves import Curve
from dekag.evaluation.models import ModelBank, model_bank
from dekag.evaluation.pages import Row, save_images, write_rows
from dekag.evaluation.photographs import Photograph, installed_photographs, photographs_in
from dekag.evaluation.registry import RESULTS, record
from dekag.evaluation.runner import run_in_processes, run_serially
from dekag.evaluation.statistics import mean_ci95
from dekag.evaluation.store import ResultStore, content_key
from dekag.evaluation.studies.digital import OUTAGES, Choice, Forecast, Ladder, choose, conditions_of
from dekag.generation.images import FILE_FORMATS, FileFormat, Pixels
from dekag.generation.loading import autoencoder_hash
from dekag.generation.models import LatentEncoder
from dekag.link.capacity import bytes_within, ergodic_capacity, outage_capacity
from dekag.link.conditions import LinkConditions
from dekag.link.harq import send_with_harq
from dekag.link.image_coding import SCALES, decode, encode, ladders
from dekag.link.mcs import INFORMATION_BITS, TABLE
from dekag.link.outage import codeword_threshold
from dekag.metrics.image import psnr_db
from dekag.pictures import Picture, PictureFolder, Tiling
from dekag.pipeline import Rate, SemanticLink, render_tiles
from dekag.pixel_modules import PixelModules, pixel_codec_hash

Array = npt.NDArray[np.float64]
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

COMMAND = "dekag experiment photos"
FOLDER = "photos"
RUNS = Path("runs/photos")
CHANNELS = ("awgn", "rayleigh-1us")
RATES = (1 / 6, 1 / 12, 1 / 24, 1 / 48, 1 / 96)
SNRS_DB = (0.0, 5.0, 10.0, 15.0, 20.0)
SEMANTIC, PIXELS = "semantic", "pixels"
SNRS_OF = {SEMANTIC: (0.0, 10.0, 20.0), PIXELS: SNRS_DB}
"""The SNRs at which the links of a profile are measured, dB."""

SETTINGS = tuple(itertools.product(range(0, 101, 2), SCALES))
"""Qualities and scales of files: for HEVC, every CRF. A reduced JPEG can be worth a high quality."""
CURVE_SNR_DB = 10.0
STRIP_CELLS = ((1 / 24, 10.0), (1 / 96, 0.0))
STRIP_PHOTOS = ("coffee", "astronaut", "china")
VERSION = 1  # raised when the code changes a ladder or a received photograph by more than rounding

_GREY = 128
_UNLIKELY = 0.01  # loss of a codeword at which a scheme counts as usable in the arithmetic
_LATENT_RATE = 96  # pixels' values for each symbol of the codec at its highest rate
_FORMAT_BARE = {name: [(name, True)] for name in FILE_FORMATS}


@dataclass(frozen=True)
class PhotoSet:
    """Photographs, and what a digital sender can expect of sending them.

    Attributes:
        photos: the photographs.
        ladders: by format and bareness, one for each photograph.
        fallback_values: PSNR of uniform grey against each, dB, (n, 1).
    """

    photos: Sequence[Photograph]
    ladders: dict[tuple[str, bool], list[Ladder]]
    fallback_values: Array

    def channel_uses(self, index: int, cbr: float) -> int:
        """K of a photograph at a rate."""
        return round(cbr * self.photos[index].pixels.size)


def psnrs_db(images: npt.NDArray[np.uint8], reference: Pixels) -> Array:
    """PSNR of images (n, height, width, 3) against one reference, dB, (n,)."""
    return np.array([psnr_db(image, reference) for image in images])


def measure_ladder(task: tuple[Photograph, FileFormat], *, runs: Path = RUNS) -> Ladder:
    """The bare files of one format that are worth sending of a photograph; measured or read."""
    photo, image_format = task
    pixels = photo.pixels

    def make() -> list[list[float]]:
        _, rungs = ladders(photo.pixels, image_format, SETTINGS)
        return [[len(rung.data), rung.quality, rung.scale, rung.psnr_db] for rung in rungs]

    key = content_key(VERSION, image_format, SETTINGS, pixels.shape, data=pixels.tobytes())
    rows = ResultStore(runs).json("ladders", key, make)
    sizes, settings = [int(row[0]) for row in rows], [(int(row[1]), int(row[2])) for row in rows]
    return Ladder(sizes, settings, np.array([row[3:] for row in rows]))


def enlarged_size(width: int, height: int, cbr: float) -> tuple[int, int]:
    """Width and height at which a photograph is encoded: sqrt(96 CBR) times its own."""
    factor = math.sqrt(_LATENT_RATE * cbr)
    return max(1, round(width * factor)), max(1, round(height * factor))


def send_semantic(
    bank: ModelBank, pixels: Pixels, conditions: Sequence[LinkConditions], cbr: float, seed: int
) -> npt.NDArray[np.uint8]:
    """The photograph as the semantic link delivers it under each of some conditions.

    Args:
        bank: autoencoder, codec and adapters.
        pixels: (height, width, 3) uint8.
        conditions: n of them.
        cbr: channel uses per value of `pixels`.
        seed: of fading and noise.

    Returns:
        (n, height, width, 3) uint8.
    """
    height, width = pixels.shape[:2]
    enlarged = enlarged_size(width, height, cbr)
    tiling = Tiling.of(*enlarged, size=bank.profile.size)
    codec, decoder = bank.codecs.get("adapters", bank.codecs["base"]), bank.edge.decoder
    latents = LatentEncoder(decoder).encode(tiling.split(_resized(pixels, *enlarged)))
    most = codec.max_channel_uses((latents.shape[1], latents.shape[2], latents.shape[3])) * tiling.count
    rate = Rate(min(round(cbr * pixels.size), most))
    shown = []
    for each in conditions:
        arrived = SemanticLink(codec).send_tiles(latents, tiling, each, seed, rate=rate)
        shown.append(_resized(render_tiles(decoder, arrived.latents, tiling, seed), width, height))
    return np.stack(shown)


def _resized(pixels: Pixels, width: int, height: int) -> Pixels:
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def send_pixels(
    bank: ModelBank, pixels: Pixels, conditions: Sequence[LinkConditions], cbr: float, seed: int
) -> npt.NDArray[np.uint8]:
    """The photograph as the codec of pixels delivers it; arguments and result as of `send_semantic`."""
    picture = Picture(pixels, "photograph")
    sent = [bank.pixel_link.picture(picture, each, seed=seed, cbr=cbr).pixels for each in conditions]
    return np.stack([each for each in sent if each is not None])


_SEND = {SEMANTIC: send_semantic, PIXELS: send_pixels}


def rates_of(link: str, bank: ModelBank, photographs: Sequence[Photograph]) -> list[float]:
    """The rates of RATES at which a link can send all photographs; a codec of a plug-in may need more."""
    if link != PIXELS:
        return list(RATES)

    def sends(photo: Photograph, cbr: float) -> bool:
        height, width = photo.pixels.shape[:2]
        try:
            bank.pixel_link.rate(width, height, cbr)
        except InvalidInputError:
            return False
        return True

    return [cbr for cbr in RATES if all(sends(each, cbr) for each in photographs)]


def sent_cbr(bank: ModelBank, photographs: Sequence[Photograph], cbr: float) -> float | None:
    """The mean rate that the codec of pixels really sends photographs with, which a plug-in may not fill.

    None for the built-in codec, which fills any rate.
    """
    link = bank.pixel_link
    if not isinstance(link.codec, PixelModules):
        return None
    sizes = [each.pixels.shape[:2] for each in photographs]
    uses = [link.rate(width, height, cbr).channel_uses for height, width in sizes]
    return float(np.mean([k / each.pixels.size for k, each in zip(uses, photographs, strict=True)]))


def measure_link(task: tuple[str, Photograph, float, int], *, profile: str, runs: Path = RUNS) -> Array:
    """PSNR, dB, of one link: (channels, SNRs), over CHANNELS and at SNRS_OF this link.

    Args:
        task: the link, a photograph, the rate, and the seed of fading and noise.
        profile: the models.
        runs: where measurements are kept.
    """
    link, photo, cbr, seed = task
    bank, snrs_db = model_bank(profile), SNRS_OF[link]

    def make() -> Array:
        conditions = [conditions_of(channel, snr_db) for channel in CHANNELS for snr_db in snrs_db]
        found = psnrs_db(_SEND[link](bank, photo.pixels, conditions, cbr, seed), photo.pixels)
        return found.reshape(len(CHANNELS), len(snrs_db))

    models = (
        (pixel_codec_hash(bank.profile.pixel_codec or ""),)
        if link == PIXELS
        else (
            autoencoder_hash(bank.profile.edge),
            bank.codec_hash,
            bank.profile.adapters and bank.adapters.content_hash,
        )
    )
    uses = () if link != PIXELS or (rate := sent_cbr(bank, [photo], cbr)) is None else (rate,)
    known = (CHANNELS, cbr, snrs_db, seed, photo.pixels.shape, *bank.facts("edge").departures, *uses)
    key = content_key(VERSION, models, *known, data=photo.pixels.tobytes())
    return ResultStore(runs).array(link, key, make)


def capacity_values(
    photos: PhotoSet, names: Sequence[tuple[str, bool]], cbr: float, conditions: LinkConditions
) -> Array:
    """PSNR, dB, (n,) of an error-free code at capacity, with the best of these formats.

    The sender does not know the fades: over fading it is the outage that suits the photographs best on
    average.
    """

    def at(bits_per_use: Callable[[int], float]) -> Array:
        values = []
        for index, lost in enumerate(photos.fallback_values):
            uses = photos.channel_uses(index, cbr)
            size = bytes_within(uses, bits_per_use(uses))
            reached = [lost]
            for name in names:
                ladder = photos.ladders[name][index]
                rung = ladder.best(size)
                reached += [ladder.values[rung]] if rung >= 0 else []
            values.append(max(reached, key=lambda each: float(each[0])))
        return np.stack(values)[:, 0]

    if conditions.fading == "awgn":
        return at(lambda uses: ergodic_capacity(conditions, channel_uses=uses))
    lost = photos.fallback_values[:, 0]

    def without(share: float, uses: int) -> float:
        return outage_capacity(conditions, share, channel_uses=uses)

    mixed = [(1 - share) * at(partial(without, share)) + share * lost for share in OUTAGES]
    return max(mixed, key=lambda values: float(values.mean()))


@dataclass(frozen=True)
class HevcGap:
    """Arithmetic of an adapted digital link: capacity at an SNR that is lower by a fixed number of dB.

    Attributes:
        code_db: mean distance of the schemes of TABLE from capacity: the SNR that each needs less the SNR at
            which capacity equals its efficiency.
        steps_db: what is lost on average because the table has steps.
    """

    code_db: float
    steps_db: float

    @property
    def total_db(self) -> float:
        """The gap."""
        return self.code_db + self.steps_db

    def bits_per_use(self, snr_db: float) -> float:
        """log2(1 + SNR / gap)."""
        return math.log2(1 + 10 ** ((snr_db - self.total_db) / 10))


@cache
def hevc_gap() -> HevcGap:
    """The gap over the SNRs of the grid, from the calibrated thresholds of codewords alone."""
    needed, bound = [], []
    for row in TABLE:
        threshold = codeword_threshold(row, INFORMATION_BITS)
        quantile = float(torch.special.ndtri(torch.tensor(1 - _UNLIKELY)))
        needed.append(threshold.mean_db + quantile * threshold.deviation_db)
        bound.append(10 * math.log10(2**row.efficiency - 1))
    code, total = [], []
    for snr_db in np.arange(SNRS_DB[0], SNRS_DB[-1] + 0.05, 0.1):
        usable = [i for i, need in enumerate(needed) if need <= snr_db]
        if usable:
            code.append(needed[usable[-1]] - bound[usable[-1]])
            total.append(float(snr_db) - bound[usable[-1]])
    return HevcGap(float(np.mean(code)), float(np.mean(total) - np.mean(code)))


def arithmetic_psnr_db(ladder: Ladder, grey_db: float, channel_uses: int, snr_db: float) -> float:
    """PSNR, dB, of the best file within the bytes of `HevcGap`; that of grey if none is as small."""
    rung = ladder.best(bytes_within(channel_uses, hevc_gap().bits_per_use(snr_db)))
    return float(ladder.values[rung, 0]) if rung >= 0 else grey_db


@dataclass(frozen=True)
class PhotoResults:
    """All that was measured.

    Attributes:
        rows: one for each channel, rate, SNR and sender.
        gaps: one for each rate and SNR over AWGN: HEVC as it is and by arithmetic.
        decoded: deliveries that were really transmitted.
    """

    rows: list[Row]
    gaps: list[Row]
    decoded: list[Row]


def measure(
    photos: PhotoSet,
    links: Mapping[str, Mapping[float, Array]],
    checks: int,
    sent: Mapping[float, float] | None = None,
) -> PhotoResults:
    """Every sender in every cell; HEVC beside the arithmetic; and a sample that is really decoded.

    Args:
        photos: with their ladders.
        links: PSNR of each link that was measured, dB, (n, channels, SNRs), by rate.
        checks: number of deliveries to decode.
        sent: `sent_cbr` of the codec of pixels, by rate; None if it fills every rate.
    """
    rows: list[Row] = []
    gaps: list[Row] = []
    chosen: list[tuple[str, float, float, int, Choice]] = []
    for channel, snr_db in tqdm([(c, s) for c in CHANNELS for s in SNRS_DB], desc="senders"):
        conditions = conditions_of(channel, snr_db)
        forecast = Forecast(conditions)
        for cbr in RATES:
            cell = {"channel": channel, "cbr": round(cbr, 6), "snr_db": snr_db}
            for name in FILE_FORMATS:
                bare = _FORMAT_BARE[name]
                choices = [
                    choose(photos, i, bare, photos.channel_uses(i, cbr), forecast)
                    for i in range(len(photos.photos))
                ]
                chosen += [
                    (channel, cbr, snr_db, i, c) for i, c in enumerate(choices) if c.coding is not None
                ]
                row = _row(cell, name, np.array([choice.values[0] for choice in choices]))
                row["lost"] = round(1 - float(np.mean([choice.arrives for choice in choices])), 4)
                rows.append(row)
                rows.append(_row(cell, f"{name}-capacity", capacity_values(photos, bare, cbr, conditions)))
                if name == "hevc" and channel == "awgn":
                    gaps.append(_gap_row(photos, cell, cbr, row["psnr_db"]))
            for link, found in links.items():
                if cbr in found and snr_db in SNRS_OF[link]:
                    values = found[cbr][:, CHANNELS.index(channel), SNRS_OF[link].index(snr_db)]
                    row = _row(cell, link, values)
                    if link == PIXELS and sent is not None:
                        row["sent_cbr"] = round(sent[cbr], 6)
                    rows.append(row)
    return PhotoResults(rows, gaps, check(photos, chosen, checks))


def _row(cell: Row, sender: str, values: Array) -> Row:
    psnr, interval = mean_ci95(values.tolist())
    return {
        **cell,
        "sender": sender,
        "psnr_db": round(psnr, 3),
        "psnr_ci95": interval and [round(limit, 3) for limit in interval],
    }


def rate_of(row: Row) -> float:
    """The mean rate that was really sent in a row."""
    return float(row["sent_cbr"] if "sent_cbr" in row else row["cbr"])


def _gap_row(photos: PhotoSet, cell: Row, cbr: float, psnr_db: float) -> Row:
    hevc = photos.ladders["hevc", True]
    uses = [photos.channel_uses(i, cbr) for i in range(len(hevc))]
    known = zip(hevc, photos.fallback_values[:, 0], uses, strict=True)
    by_arithmetic = [arithmetic_psnr_db(*each, cell["snr_db"]) for each in known]
    expected = float(np.mean(by_arithmetic))
    return {
        "cbr": cell["cbr"],
        "snr_db": cell["snr_db"],
        "psnr_db": psnr_db,
        "arithmetic_psnr_db": round(expected, 3),
        "difference_db": round(psnr_db - expected, 3),
    }


def check(
    photos: PhotoSet, chosen: Sequence[tuple[str, float, float, int, Choice]], count: int, seed: int = 0
) -> list[Row]:
    """Encode, transmit and decode a sample of the deliveries; what was predicted of them beside it."""
    rows = []
    picked = np.random.default_rng(seed).permutation(len(chosen))[:count]
    for number, place in enumerate(tqdm(picked, desc="decode")):
        channel, cbr, snr_db, index, choice = chosen[int(place)]
        assert choice.ladder is not None and choice.coding is not None  # noqa: S101, PT018
        name: FileFormat = choice.ladder[0]  # type: ignore[assignment]
        photo = photos.photos[index]
        height, width = photo.pixels.shape[:2]
        quality, scale = photos.ladders[choice.ladder][index].settings[choice.rung]
        payload = encode(photo.pixels, name, quality, scale=scale, headerless=True)
        delivery = send_with_harq(
            payload, choice.coding, conditions_of(channel, snr_db), number, max_transmissions=1
        )
        shown = np.full_like(photo.pixels, _GREY)
        if delivery.payload is not None:
            shown = decode(delivery.payload, width, height, headerless=True)
        rows.append(
            {
                "channel": channel,
                "cbr": round(cbr, 6),
                "snr_db": snr_db,
                "photo": photo.name,
                "format": name,
                "bytes": len(payload),
                "predicted_arrival": round(choice.arrives, 4),
                "arrived": delivery.payload is not None,
                "predicted_psnr_db": round(float(choice.values[0]), 3),
                "psnr_db": round(psnr_db(shown, photo.pixels), 3),
            }
        )
    return rows


def run_photos(
    *,
    folder: PictureFolder | None,
    side: int,
    checks: int,
    semantic: bool,
    workers: int,
    profile: str,
    results: Path = RESULTS,
    runs: Path = RUNS,
) -> list[Row]:
    """Measure what is not measured yet, then write rows, figures, curves and pictures.

    Args:
        folder: of the photographs; None: those that installed packages bring.
        side: longer side to which photographs are reduced, pixels.
        checks: deliveries that are really decoded.
        semantic: whether the semantic link is measured too; the codec of pixels always is, if the profile
            has one.
        workers: processes, one thread each.
        profile: the models of both links.
        results: where headline.json is.
        runs: where measurements are kept.

    Returns:
        The rows of results/photos/senders.jsonl.

    Raises:
        FileError: a photograph is damaged or too large.
        ModuleNotFoundError: the extra `photos` is not installed.
    """
    photographs = installed_photographs(side) if folder is None else photographs_in(folder, side)
    grey = [[psnr_db(np.full_like(each.pixels, _GREY), each.pixels)] for each in photographs]
    tasks = [(each, image_format) for each in photographs for image_format in FILE_FORMATS]
    found = _run(partial(measure_ladder, runs=runs), tasks, workers, "encode")
    rungs: dict[tuple[str, bool], list[Ladder]] = {
        (name, True): [found[i] for i, task in enumerate(tasks) if task[1] == name] for name in FILE_FORMATS
    }
    photos = PhotoSet(photographs, rungs, np.array(grey))
    bank = model_bank(profile)
    measured_links = [PIXELS] * (bank.profile.pixel_codec is not None) + [SEMANTIC] * semantic
    work = partial(measure_link, profile=profile, runs=runs)
    links: dict[str, dict[float, Array]] = {}
    for link in measured_links:
        # the cheapest first, so that the progress bar does not promise too little
        rates = rates_of(link, bank, photographs)[::-1]
        sendings = [(link, each, cbr, seed) for cbr in rates for seed, each in enumerate(photographs)]
        received = zip(sendings, _run(work, sendings, workers, link), strict=True)
        by_rate: dict[float, list[Array]] = {}
        for (_, _, cbr, _), values in received:
            by_rate.setdefault(cbr, []).append(values)
        links[link] = {cbr: np.stack(values) for cbr, values in by_rate.items()}
    means = {cbr: sent_cbr(bank, photographs, cbr) for cbr in links.get(PIXELS, {})}
    sent = {cbr: mean for cbr, mean in means.items() if mean is not None}
    measured = measure(photos, links, checks, sent or None)
    write(measured, photos, results)
    save_images(strip(photos, bank, measured_links), results / FOLDER, "strip.webp", COMMAND)
    return measured.rows


def _run(work: Callable[[_Task], _Result], tasks: Sequence[_Task], workers: int, label: str) -> list[_Result]:
    """The results of tasks, in their order, with a progress bar."""
    numbered = list(enumerate(tasks))
    each = partial(_numbered, work)
    pairs = run_serially(each, [numbered]) if workers == 1 else run_in_processes(each, numbered, workers)
    found = {number: result for (number, _), result in tqdm(pairs, total=len(numbered), desc=label)}
    return [found[number] for number, _ in numbered]


def _numbered(work: Callable[[_Task], _Result], task: tuple[int, _Task]) -> _Result:
    return work(task[1])


def write(measured: PhotoResults, photos: PhotoSet, results: Path = RESULTS) -> None:
    """Write results/photos/*, curves in CompressAI's shape, and two figures of headline.json."""
    folder = results / FOLDER
    write_rows(folder / "senders.jsonl", measured.rows)
    write_rows(folder / "gaps.jsonl", measured.gaps)
    write_rows(folder / "decoded.jsonl", measured.decoded)
    write_rows(
        folder / "photographs.jsonl",
        [
            {
                "name": each.name,
                "source": each.source,
                "original": list(each.original),
                "sent": [each.pixels.shape[1], each.pixels.shape[0]],
                **({"notes": each.notes} if each.notes else {}),
            }
            for each in photos.photos
        ],
    )
    gap = hevc_gap()
    (folder / "gap.json").write_text(
        json.dumps({"code_db": round(gap.code_db, 3), "steps_db": round(gap.steps_db, 3)}) + "\n"
    )
    for curve in [*link_curves(measured.rows), *source_curves(photos)]:
        curve.write(folder / "curves")
    count = len(photos.photos)
    record("photos_tried", count, "images", command=COMMAND, count=count, results=results)
    distance = float(np.mean([abs(row["difference_db"]) for row in measured.gaps]))
    record("hevc_capacity_gap_db", distance, "dB", command=COMMAND, count=len(measured.gaps), results=results)


def link_curves(rows: Sequence[Row]) -> list[Curve]:
    """Quality against rate of every sender over each channel at CURVE_SNR_DB."""
    curves = []
    for channel in CHANNELS:
        own = [row for row in rows if row["channel"] == channel and row["snr_db"] == CURVE_SNR_DB]
        for sender in dict.fromkeys(row["sender"] for row in own):
            points = sorted((row for row in own if row["sender"] == sender), key=lambda row: row["cbr"])
            curves.append(
                Curve(
                    f"{sender} {channel} {CURVE_SNR_DB:g} dB",
                    f"Mean over photographs of {COMMAND}, {channel} at {CURVE_SNR_DB:g} dB",
                    {
                        "cbr": [rate_of(row) for row in points],
                        "psnr": [row["psnr_db"] for row in points],
                    },
                )
            )
    return curves


def source_curves(photos: PhotoSet) -> list[Curve]:
    """Quality of each format against bits per pixel, without a channel, at rates that all of them reach."""
    curves = []
    sizes = [each.pixels.shape[0] * each.pixels.shape[1] for each in photos.photos]
    for name in FILE_FORMATS:
        own = photos.ladders[name, True]
        bpp = [8 * np.array(ladder.sizes) / size for ladder, size in zip(own, sizes, strict=True)]
        low, high = max(each[0] for each in bpp), min(each[-1] for each in bpp)
        grid = [step for step in 2.0 ** np.arange(-4, 3.5, 0.5) if low <= step <= high]
        means = [
            np.mean(
                [
                    np.interp(np.log(step), np.log(x), ladder.values[:, 0])
                    for x, ladder in zip(bpp, own, strict=True)
                ]
            )
            for step in grid
        ]
        curves.append(
            Curve(
                f"{name} source",
                f"Bare files without a channel, mean over photographs of {COMMAND}",
                {
                    "bpp": [round(float(step), 6) for step in grid],
                    "psnr": [round(float(mean), 3) for mean in means],
                },
            )
        )
    return curves


def strip(photos: PhotoSet, bank: ModelBank, links: Sequence[str]) -> list[list[Pixels]]:
    """Photographs as sent, and as delivered over AWGN by HEVC, WebP and links of a profile.

    At the rates and SNRs of STRIP_CELLS; all in squares of the longer side, with white around.
    """
    shown = [i for i, each in enumerate(photos.photos) if each.name in STRIP_PHOTOS] or [0]
    rows = []
    for cbr, snr_db in STRIP_CELLS:
        conditions = conditions_of("awgn", snr_db)
        forecast = Forecast(conditions)
        for index in shown:
            photo = photos.photos[index]
            height, width = photo.pixels.shape[:2]
            row = [photo.pixels]
            for name in ("hevc", "webp"):
                choice = choose(photos, index, [(name, True)], photos.channel_uses(index, cbr), forecast)
                image = np.full_like(photo.pixels, _GREY)
                if choice.ladder is not None:
                    quality, scale = photos.ladders[choice.ladder][index].settings[choice.rung]
                    data = encode(photo.pixels, name, quality, scale=scale, headerless=True)
                    image = decode(data, width, height, headerless=True)
                row.append(image)
            row += [
                _SEND[link](bank, photo.pixels, [conditions], cbr, index)[0]
                if cbr in rates_of(link, bank, [photo])
                else np.full_like(photo.pixels, _GREY)
                for link in links
            ]
            rows.append([_squared(each) for each in row])
    return rows


def _squared(pixels: Pixels) -> Pixels:
    side = max(pixels.shape[:2])
    square = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - pixels.shape[0]) // 2, (side - pixels.shape[1]) // 2
    square[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return square
