"""`dekag experiment restoration`: a step of the edge's denoiser on received latents.

Images of held-out prompts that the edge knows, and of topics that it was taught, are sent by the unaligned
codec and by CALA. What CALA delivers is shown as it is and after `Restorer`, which is told the image's own
prompt, none, another image's, or one of another subject. The receiver's denoiser has no
knowledge updates: for images of a topic, it knows less than the edge.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from dekag.evaluation.models import ModelBank, model_bank
from dekag.evaluation.pages import Row, save_images, write_rows
from dekag.evaluation.prompts import Prompt, edge_prompts, wrong_prompts
from dekag.evaluation.registry import RESULTS, record
from dekag.evaluation.runner import run_in_processes, run_serially
from dekag.evaluation.statistics import bootstrap_mean
from dekag.evaluation.store import ResultStore, content_key
from dekag.evaluation.studies.digital import CHANNELS, RATES
from dekag.generation.loading import folder_hash
from dekag.link.conditions import LinkConditions
from dekag.metrics.image import psnr_db
from dekag.pipeline import LinkResult, SemanticLink
from dekag.training.cala import source_values

Array = npt.NDArray[np.float64]

COMMAND = "dekag experiment restoration"
FOLDER = "restoration"
RUNS = Path("runs/restoration")
SENT_OVER = ("awgn", "rayleigh-1us")
GRID_SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
PROMPTS = ("right", "withheld", "foreign", "wrong")
"""What the denoiser is told of an image: "foreign" is another image's, "wrong" has another subject."""
SHOWN = ("unaligned", "cala", *PROMPTS)
SETS = ("known", "taught")
STRIP_SNRS_DB = (-5.0, 0.0, 5.0, 10.0)
VERSION = 1  # raised when the code changes what a cell comes out as


@dataclass(frozen=True)
class Cell:
    """All images of a set over one channel at one rate and SNR.

    Attributes:
        images: of SETS.
        channel: of SENT_OVER.
        cbr: rate.
        snr_db: mean SNR, dB.
    """

    images: str
    channel: str
    cbr: float
    snr_db: float

    @property
    def conditions(self) -> LinkConditions:
        """Of the link."""
        return LinkConditions.model_validate({**CHANNELS[self.channel], "snr_db": self.snr_db})


@dataclass
class RestorationStudy:
    """What one process measures with.

    Attributes:
        bank: the models.
        count: images of each set.
        store: where results are kept.
    """

    bank: ModelBank
    count: int
    store: ResultStore
    _drawn: dict[str, tuple[torch.Tensor, list[Any]]] = field(default_factory=dict)

    def prompts(self, images: str) -> list[Prompt]:
        """Held-out prompts of a set."""
        if images == "known":
            return edge_prompts(self.count)
        topics = self.bank.topics
        each = -(-self.count // len(topics))
        found = [self.bank.topic_prompts(topic, each, self.bank.learnt(topic)) for topic in topics]
        return [prompts[n] for n in range(each) for prompts in found][: self.count]

    def drawn(self, images: str) -> tuple[torch.Tensor, list[Any]]:
        """Latents (n, c, h, w) of a set as the edge draws them, and the images that it sends."""
        if images in self._drawn:
            return self._drawn[images]
        edge, topics = self.bank.aligned_edge, self.bank.topics
        latents = []
        for n, (_, prompt, seed) in enumerate(self.prompts(images)):
            hashes = []
            if images == "taught":
                edge.add(update := self.bank.update(topics[n % len(topics)]))
                hashes = [update.content_hash]
            latents.append(edge.latents(prompt, seed, updates=hashes))
        self._drawn[images] = torch.cat(latents), [edge.decoder.decode(each)[0] for each in latents]
        return self._drawn[images]

    def told(self, images: str) -> dict[str, list[str]]:
        """What the denoiser is told of each image, by the names in PROMPTS.

        "wrong" is left out for prompts of a profile's own topics, whose subjects are not known.
        """
        prompts = self.prompts(images)
        own = [text for _, text, _ in prompts]
        told = {"right": own, "withheld": [""] * len(own), "foreign": own[1:] + own[:1]}
        if all(scene is not None for scene, _, _ in prompts):
            told["wrong"] = wrong_prompts(prompts)
        return told

    def send(self, cell: Cell, codec: str) -> LinkResult:
        """All images over the channel of a cell, by a codec of `ModelBank.codecs`; the same fades for all."""
        adapted, (latents, _) = self.bank.codecs[codec], self.drawn(cell.images)
        prompts = self.prompts(cell.images)
        values = source_values(latents)
        return SemanticLink(adapted).send(
            latents.float(),
            [cell.conditions] * len(latents),
            [seed for *_, seed in prompts],
            source_values=values,
            channel_uses=round(cell.cbr * values),
            text=self.bank.texts(adapted, [text for _, text, _ in prompts]),
        )

    def shown(self, cell: Cell) -> dict[str, list[torch.Tensor]]:
        """Received latents (1, c, h, w) of each image, by the names in SHOWN."""
        aligned = self.send(cell, "adapters")
        found = {
            "unaligned": list(self.send(cell, "unaligned").latents.split(1)),
            "cala": list(aligned.latents.split(1)),
        }
        receiver = SemanticLink(self.bank.codecs["adapters"]).receiver
        values = source_values(aligned.latents)
        steps = [
            receiver.timestep(each, cell.conditions, source_values=values) for each in aligned.receptions
        ]
        for name, prompts in self.told(cell.images).items():
            rows = zip(found["cala"], prompts, steps, strict=True)
            found[name] = [self.bank.restorer.restore(z, text, timestep=step) for z, text, step in rows]
        return found

    def measure(self, cell: Cell) -> Array:
        """PSNR, dB, of every image against the one sent, (SHOWN or all but its last, n); measured or read."""

        def measured() -> Array:
            _, sent = self.drawn(cell.images)
            decode = self.bank.edge.decoder.decode
            return np.array(
                [
                    [psnr_db(decode(z)[0], image) for z, image in zip(latents, sent, strict=True)]
                    for latents in self.shown(cell).values()
                ]
            )

        bank, edge = self.bank, self.bank.edge
        known = [VERSION, edge.model_hash, edge.steps, edge.guidance_scale, bank.codec_hash]
        known += [folder_hash(bank.profile.codec_without_alignment), *edge.departures]
        known += [bank.adapters.content_hash, self.count, self.told(cell.images), asdict(cell)]
        if cell.images == "taught":
            known += [bank.update(topic).content_hash for topic in bank.topics]
        return self.store.array("cells", content_key(*known), measured)


@cache
def _study(profile: str, count: int, runs: Path) -> RestorationStudy:
    return RestorationStudy(model_bank(profile), count, ResultStore(runs))


def _measure(cell: Cell, *, profile: str, count: int, runs: Path) -> Array:
    return _study(profile, count, runs).measure(cell)


def run_restoration(
    *, count: int, workers: int, profile: str, results: Path = RESULTS, runs: Path = RUNS
) -> None:
    """Measure what is not measured yet, then write rows, figures and pictures.

    Args:
        count: images of each set.
        workers: processes, one thread each.
        profile: the models.
        results: where headline.json is.
        runs: where measurements are kept.

    Raises:
        NotFoundError: the profile has no adapters, or no update of a topic.
        InvalidInputError: the adapters do not say how to restore.
    """
    bank = model_bank(profile)
    _ = bank.adapters
    for topic in bank.topics:
        bank.update(topic)
    cells = [
        Cell(images, channel, cbr, snr_db)
        for images in SETS
        for channel in SENT_OVER
        for cbr in RATES
        for snr_db in GRID_SNRS_DB
    ]
    work = partial(_measure, profile=profile, count=count, runs=runs)
    pairs = run_serially(work, [cells]) if workers == 1 else run_in_processes(work, cells, workers)
    found = dict(tqdm(pairs, total=len(cells), desc="cells"))
    write({cell: found[cell] for cell in cells}, results)
    save_images(strip(_study(profile, count, runs)), results / FOLDER, "strip.png", COMMAND)


def write(found: dict[Cell, Array], results: Path = RESULTS) -> None:
    """Write results/restoration/cells.jsonl and the figures of headline.json."""
    rows: list[Row] = []
    for cell, values in found.items():
        for name, psnrs in zip(SHOWN, values, strict=False):
            mean, ci95 = bootstrap_mean(psnrs.tolist())
            gain, gain_ci95 = bootstrap_mean((psnrs - values[SHOWN.index("cala")]).tolist())
            rows.append(
                {
                    **asdict(cell),
                    "cbr": round(cell.cbr, 6),
                    "shown": name,
                    "psnr_db": round(mean, 3),
                    "ci95": [round(limit, 3) for limit in ci95],
                    "gain_db": round(gain, 3),
                    "gain_ci95": [round(limit, 3) for limit in gain_ci95],
                    "n": len(psnrs),
                }
            )
    write_rows(results / FOLDER / "cells.jsonl", rows)
    means = per_image(found, "known")
    taught = per_image(found, "taught")
    for key, values in (
        ("restored_mean_psnr_db", means["right"]),
        ("restored_gain_db", means["right"] - means["unaligned"]),
        ("restored_lead_db", means["right"] - means["cala"]),
        ("restored_taught_lead_db", taught["right"] - taught["cala"]),
    ):
        mean, ci95 = bootstrap_mean(values.tolist())
        record(key, mean, "dB", command=COMMAND, count=len(values), ci95=ci95, results=results)


def per_image(found: dict[Cell, Array], images: str) -> dict[str, Array]:
    """Mean PSNR over all cells of each image of a set, (n,), by the names in SHOWN."""
    values = np.mean([each for cell, each in found.items() if cell.images == images], axis=0)
    return dict(zip(SHOWN, values, strict=False))


def strip(study: RestorationStudy) -> list[list[npt.NDArray[np.uint8]]]:
    """One image of each set as sent, and at each SNR unaligned, by CALA, and restored."""
    rows = []
    for images in SETS:
        _, sent = study.drawn(images)
        cells = [study.shown(Cell(images, "rayleigh-1us", RATES[-2], snr_db)) for snr_db in STRIP_SNRS_DB]
        for name in ("unaligned", "cala", "right"):
            decoded = [study.bank.edge.decoder.decode(each[name][0])[0] for each in cells]
            rows.append([sent[0], *decoded])
    return rows
