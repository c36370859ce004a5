"""`dekag experiment gka`: generation-knowledge alignment, MAKD beside its baselines.

Every method is trained on the same cloud pictures for the same steps, for every held-out topic and several
training seeds, and judged on test prompts whose combinations of attributes no training ever drew. A cell's
result is kept in runs/gka under a hash of all it depends on: an interrupted experiment goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import random
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from dekag.documents import read_json
from dekag.errors import NotFoundError
from dekag.experiments.consistency import judged
from dekag.experiments.first_image import Prompt, topic_prompts
from dekag.generation.models import Generator, folder_hash
from dekag.generation.profile import load_profile
from dekag.makd.aligned import AlignedGenerator
from dekag.makd.config import METHODS, DistillConfig
from dekag.makd.distill import draw_images, encode, new_update, seeds_for, train
from dekag.makd.topics import TopicPrompts
from dekag.makd.topics import topic_prompts as distillation_prompts
from dekag.makd.update import KnowledgeUpdate
from dekag.metrics.features import ImageScorer
from dekag.metrics.probe import AttributeProbe
from dekag.places import MODELS
from dekag.training.data import scene_number
from dekag.world import TOPICS, caption

RUNS = Path("runs/gka")
OTHER_SEED = 500_000_000  # added to a test prompt's seed: the cloud against itself
BITS = (16, 8, 4)
# a style and a subject for the studies of a single setting
STUDY_TOPICS = ("blueprint", "rocket")
STUDIES: dict[str, list[Any]] = {
    "rank": [1, 2],
    "images": [24, 48],
    "tokens": [1, 8],
    "layers": ["attention", "attention+convolution"],
}
PAIRS = (("neon", "rocket"), ("blueprint", "snail"), ("thermal", "rocket"), ("stencil", "snail"))
VERSION = 1  # raised when the code changes what a cell comes out as

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One training: a topic and how it is distilled."""

    topic: str
    config: DistillConfig


def cells(base: DistillConfig, seeds: int) -> list[Cell]:
    """All trainings of the experiment, each once, those of one topic together."""
    found: dict[Cell, None] = {}
    for topic, seed, method in itertools.product(TOPICS, range(seeds), METHODS):
        found[Cell(topic, dataclasses.replace(base, method=method, seed=seed))] = None
    for topic, (name, values) in itertools.product(STUDY_TOPICS, STUDIES.items()):
        for value in values:
            found[Cell(topic, dataclasses.replace(base, **{name: value}))] = None
    return list(found)


@dataclass
class Workbench:
    """The models and judges of one worker process, and the pictures that all cells share."""

    cloud: Generator
    edge: Generator
    scorer: ImageScorer
    probe: AttributeProbe
    judges_hash: str
    prompts: int
    runs: Path

    @classmethod
    def load(cls, profile_name: str, prompts: int, runs: Path) -> Workbench:
        """Load a profile's generators and its judges, one thread each."""
        torch.set_num_threads(1)
        profile = load_profile(profile_name)
        cloud, edge = Generator.from_profile(profile.cloud), Generator.from_profile(profile.edge)
        # the judges are the embedded world's own, whatever models the profile names
        judges = load_profile("embedded").scorer
        if judges is None:
            raise NotFoundError("the embedded profile names no scorer")
        scorer = ImageScorer.load(judges.clip, judges.dino)
        probe_path = MODELS / "embedded" / "probe"
        probe = AttributeProbe.from_pretrained(probe_path).eval()
        judges_hash = "".join(folder_hash(path) for path in (judges.clip, judges.dino, probe_path))
        return cls(cloud, edge, scorer, probe, judges_hash, prompts, runs)

    def key(self, *parts: object) -> str:
        """Hash of `parts` and of everything that every result depends on."""
        known = [VERSION, self.cloud.model_hash, self.edge.model_hash, self.prompts, self.cloud.steps]
        known += [self.cloud.guidance_scale, self.edge.steps, self.edge.guidance_scale, self.judges_hash]
        return hashlib.sha256(json.dumps([*known, *parts], default=str).encode()).hexdigest()[:24]

    def references(self, name: str, prompts: Sequence[Prompt], offset: int = 0) -> npt.NDArray[np.uint8]:
        """The cloud's pictures of test prompts, with `offset` added to their seeds."""
        folder = self.runs / "references" / self.cloud.model_hash[:12] / name
        texts, seeds = [p for _, p, _ in prompts], [seed + offset for _, _, seed in prompts]
        return draw_images(self.cloud, texts, seeds, folder)

    def judge(
        self, images: Sequence[Any], references: npt.NDArray[np.uint8], prompts: Sequence[Prompt]
    ) -> list[Row]:
        """Rows of scores, one for each test prompt."""
        rows = judged(
            np.stack(images), references, [scene for scene, _, _ in prompts], self.scorer, self.probe
        )
        return [{"prompt": p, "seed": s, **row} for (_, p, s), row in zip(prompts, rows, strict=True)]

    def unaligned(self, topic: str) -> dict[str, list[Row]]:
        """The ends of the scale: "none", the edge as it is, and "ceiling", the cloud with another seed."""
        path = self.runs / "cells" / f"{self.key('ends', topic)}.json"
        if not path.exists():
            prompts = topic_prompts(TOPICS[topic], self.prompts)
            references = self.references(topic, prompts)
            plain = [self.edge.image(prompt, seed) for _, prompt, seed in prompts]
            again = list(self.references(topic, prompts, OTHER_SEED))
            ends = {"none": plain, "ceiling": again}
            write_json(path, {name: self.judge(images, references, prompts) for name, images in ends.items()})
        result: dict[str, list[Row]] = read_json(path)
        return result

    def run(self, cell: Cell) -> Row:
        """Train and judge one cell, or read what an earlier run found."""
        name = self.key(cell.topic, cell.config.as_dict())
        path = self.runs / "cells" / f"{name}.json"
        if not path.exists():
            write_json(path, self._run(cell, self.runs / "work" / name))
        result: Row = read_json(path)
        return result

    def draw(self, cell: Cell) -> tuple[TopicPrompts, npt.NDArray[np.uint8]]:
        """The topic's prompts and the cloud's pictures of them; methods and studies share them."""
        config = cell.config
        topic = distillation_prompts(
            cell.topic, count=config.images, held_out=config.held_out, seed=config.seed
        )
        prompts = [*topic.prompts, *topic.held_out]
        seeds = seeds_for(config, len(topic.prompts), held_out=False)
        seeds += seeds_for(config, len(topic.held_out), held_out=True)
        folder = self.runs / "images" / self.cloud.model_hash[:12] / f"{cell.topic}-{config.seed}"
        return topic, draw_images(self.cloud, prompts, seeds, folder)

    def _run(self, cell: Cell, folder: Path) -> Row:
        config = cell.config
        topic, images = self.draw(cell)
        n = len(topic.prompts)
        latents = encode(self.edge.pipeline.vae, images)
        start = time.perf_counter()
        trained = train(self.edge.pipeline, latents[:n], latents[n:], topic, config, folder)
        result: Row = {
            "topic": cell.topic,
            "config": config.as_dict(),
            "steps": trained.steps,
            "held_out_loss": trained.held_out_loss,
            "train_seconds": round(time.perf_counter() - start, 1),
            "bytes": {},
            "rows": {},
        }
        prompts = topic_prompts(TOPICS[cell.topic], self.prompts)
        references = self.references(cell.topic, prompts)
        if trained.unet is not None:
            base, self.edge.pipeline.unet = self.edge.pipeline.unet, trained.unet
            drawn = [self.edge.latents(p, s, guidance_scale=config.guidance_scale) for _, p, s in prompts]
            tuned = [self.edge.decoder.decode(latents)[0] for latents in drawn]
            self.edge.pipeline.unet = base
            result["bytes"][str(config.bits)] = 2 * sum(p.numel() for p in trained.unet.parameters())
            result["rows"][str(config.bits)] = self.judge(tuned, references, prompts)
            return result
        update = new_update(self.cloud, self.edge, topic, config, trained)
        update.save(folder / "update")
        # other sizes are tried where they may be the answer: on MAKD, once for each topic
        tried = BITS if config.method == "makd" and config.seed == 0 else (config.bits,)
        for bits in tried:
            coarse = new_update(self.cloud, self.edge, topic, dataclasses.replace(config, bits=bits), trained)
            aligned = self.aligned_images([coarse], prompts)
            result["bytes"][str(bits)] = coarse.size_bytes
            result["rows"][str(bits)] = self.judge(aligned, references, prompts)
        return result

    def aligned_images(self, updates: Sequence[KnowledgeUpdate], prompts: Sequence[Prompt]) -> list[Any]:
        """The edge's pictures of `prompts` with `updates`."""
        aligned = AlignedGenerator(self.edge)
        for update in updates:
            aligned.add(update)
        hashes = [update.content_hash for update in updates]
        images = [aligned.image(prompt, seed, updates=hashes) for _, prompt, seed in prompts]
        for content_hash in hashes:
            aligned.remove(content_hash)
        return images

    def update_of(self, cell: Cell) -> KnowledgeUpdate:
        """The update that a cell's training made."""
        folder = self.runs / "work" / self.key(cell.topic, cell.config.as_dict()) / "update"
        return KnowledgeUpdate.load(folder)

    def compose(self, pair: tuple[str, str], base: DistillConfig) -> Row:
        """Two updates in one prompt: none, each alone, and both."""
        style, subject = pair
        prompts = pair_prompts(style, subject, self.prompts)
        references = self.references(f"{style}+{subject}", prompts)
        first, second = (self.update_of(Cell(name, base)) for name in pair)
        rows = {
            name: self.judge(self.aligned_images(updates, prompts), references, prompts)
            for name, updates in (
                ("none", []),
                (style, [first]),
                (subject, [second]),
                ("both", [first, second]),
            )
        }
        again = list(self.references(f"{style}+{subject}", prompts, OTHER_SEED))
        rows["ceiling"] = self.judge(again, references, prompts)
        return {"style": style, "subject": subject, "rows": rows}


def pair_prompts(style: str, subject: str, count: int) -> list[Prompt]:
    """Held-out scenes of the test split that need two topics."""
    prompts = []
    for n in range(count):
        scene, seed = scene_number("test", n, subjects=(subject,), styles=(style,))
        prompts.append((scene, caption(scene, random.Random(seed)), seed))
    return prompts


def write_json(path: Path, content: Any) -> None:
    """Write `content` so that a file is either complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".new")
    unfinished.write_text(json.dumps(content))
    unfinished.replace(path)


@cache
def _workbench(profile: str, prompts: int, runs: Path) -> Workbench:
    return Workbench.load(profile, prompts, runs)


def _run_topic_ends(profile: str, prompts: int, runs: Path, topic: str) -> tuple[str, dict[str, list[Row]]]:
    return topic, _workbench(profile, prompts, runs).unaligned(topic)


def _draw(profile: str, prompts: int, runs: Path, cell: Cell) -> None:
    _workbench(profile, prompts, runs).draw(cell)


def _run_cell(profile: str, prompts: int, runs: Path, cell: Cell) -> tuple[Cell, Row]:
    return cell, _workbench(profile, prompts, runs).run(cell)


@dataclass(frozen=True)
class Measured:
    """Everything that the experiment measured.

    Attributes:
        ends: topic -> "none" and "ceiling" -> rows.
        cells: every training's result.
        pairs: every composition's result.
    """

    ends: dict[str, dict[str, list[Row]]]
    cells: dict[Cell, Row]
    pairs: list[Row]


def measure(
    base: DistillConfig, *, profile: str, prompts: int, seeds: int, workers: int, runs: Path = RUNS
) -> Measured:
    """Run all cells in `workers` processes; what an earlier run finished is read, not run again."""
    todo = cells(base, seeds)
    where = (profile, prompts, runs)
    ends: dict[str, dict[str, list[Row]]] = {}
    done: dict[Cell, Row] = {}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        drawing = [pool.submit(_run_topic_ends, *where, topic) for topic in TOPICS]
        for topic_ends in tqdm(as_completed(drawing), total=len(drawing), desc="references"):
            topic, rows = topic_ends.result()
            ends[topic] = rows
        # drawn before any training, so that no two workers draw the same pictures
        shared = [cell for cell in todo if cell.config == dataclasses.replace(base, seed=cell.config.seed)]
        pictures = [pool.submit(_draw, *where, cell) for cell in shared]
        for picture in tqdm(as_completed(pictures), total=len(pictures), desc="pictures"):
            picture.result()
        # by training seed first, so that an interrupted experiment has whole seeds
        todo.sort(key=lambda cell: cell.config.seed)
        training = [pool.submit(_run_cell, *where, cell) for cell in todo]
        for trained in tqdm(as_completed(training), total=len(training), desc="trainings"):
            cell, row = trained.result()
            done[cell] = row
    workbench = _workbench(*where)
    pairs = [workbench.compose(pair, base) for pair in tqdm(PAIRS, desc="compositions")]
    return Measured(ends, done, pairs)


def sample_rows(base: DistillConfig, *, profile: str, prompts: int, runs: Path = RUNS) -> list[list[Any]]:
    """One test prompt of every topic: the cloud's pictures, the edge's before and after."""
    workbench = _workbench(profile, prompts, runs)
    rows: list[list[Any]] = [[], [], []]
    for topic in TOPICS:
        chosen = topic_prompts(TOPICS[topic], prompts)[:1]
        rows[0].append(workbench.references(topic, chosen)[0])
        rows[1].append(workbench.edge.image(chosen[0][1], chosen[0][2]))
        rows[2] += workbench.aligned_images([workbench.update_of(Cell(topic, base))], chosen)
    return rows
