"""`dekag experiment gka`: generation-knowledge alignment, MAKD and its baselines.

The updates that come with the profile, each in the smallest form that is good enough, are scored on test
prompts that are not in any training data. MAKD's full form and the baselines are trained on the same cloud
images for the same steps, for every topic and several training seeds, and scored on the same prompts. A
profile's own topics are evaluated instead of the sticker world's, without the attribute probe and without
compositions.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from dekag.errors import InvalidInputError
from dekag.evaluation.models import ModelBank, model_bank
from dekag.evaluation.pages import Row, read_rows, save_images, write_rows
from dekag.evaluation.prompts import Prompt, world_prompts
from dekag.evaluation.registry import RESULTS, record
from dekag.evaluation.runner import run_in_processes
from dekag.evaluation.statistics import bootstrap_ci95, bootstrap_mean, mean_of, percent_gain
from dekag.evaluation.store import ResultStore, content_key
from dekag.generation.machine import TrainingMachine, read
from dekag.generation.models import Generator
from dekag.generation.trajectories import check_teachable
from dekag.makd.aligned_generator import AlignedGenerator
from dekag.makd.config import BITS, METHODS, DistillConfig
from dekag.makd.topics import TopicPrompts
from dekag.makd.topics import topic_prompts as distillation_prompts
from dekag.makd.update import FORMAT, KnowledgeUpdate
from dekag.stickers import TOPICS, random_scene
from dekag.training.distill import CloudImages, cloud_images, kept_cloud_images, new_update, targets_of, train

COMMAND = "dekag experiment gka"
FOLDER = "gka"
RUNS = Path("runs/gka")
OTHER_SEED = 500_000_000  # added to a test prompt's seed: the cloud against itself
# of the sticker world, for the studies of a single setting: a style and a subject
STUDY_TOPICS = ("watercolour", "rocket")
STUDIES: dict[str, list[Any]] = {
    "rank": [1, 2],
    "images": [24, 48],
    "tokens": [1, 8],
    "layers": ["attention", "attention+convolution"],
}
PAIRS = (("neon", "rocket"), ("watercolour", "snail"), ("thermal", "rocket"), ("vaporwave", "snail"))
VERSION = 2  # raised when the code changes what a cell comes out as

SCORES = ("clip", "dino", "consistency", "probe")
SHIPPED = "shipped"
"""The updates that come with the profile, beside the methods that are trained here."""
GUIDED = "guided"
BOUNDS = ("none", GUIDED, "ceiling")
"""Methods without an update."""
# baselines whose update is as large as MAKD's or smaller, to within one percent
BASELINES = ("metaword", "lora", "lora-equal-bytes")


@dataclass(frozen=True)
class TopicTraining:
    """One training: a topic and how it is distilled."""

    topic: str
    config: DistillConfig


@dataclass(frozen=True)
class Plan:
    """What is trained beside the updates that come with the profile, which are measured in any case.

    Attributes:
        seeds: training seeds.
        train: whether to train anything.
        methods: of `METHODS`, on every topic; MAKD's full form is always one.
        studies: whether to train variants of single settings, on two topics.
    """

    seeds: int = 3
    train: bool = True
    methods: tuple[str, ...] = METHODS
    studies: bool = True


def trainings(base: DistillConfig, plan: Plan, topics: Sequence[str]) -> list[TopicTraining]:
    """All trainings of the experiment, each once, those of one topic together."""
    if not plan.train:
        return []
    found: dict[TopicTraining, None] = {}
    methods = [method for method in METHODS if method in ("makd", *plan.methods)]
    for topic, seed, method in itertools.product(topics, range(plan.seeds), methods):
        found[TopicTraining(topic, dataclasses.replace(base, method=method, seed=seed))] = None
    studied = [topic for topic in STUDY_TOPICS if topic in topics] or topics[: len(STUDY_TOPICS)]
    studies = STUDIES if plan.studies else {}
    for topic, (name, values) in itertools.product(studied, studies.items()):
        for value in values:
            found[TopicTraining(topic, dataclasses.replace(base, **{name: value}))] = None
    return list(found)


@dataclass
class MakdStudy:
    """What one process trains and scores with.

    Attributes:
        bank: the models.
        prompts: test prompts of each topic.
        seeds: training seeds.
        store: where results, images and checkpoints are kept.
    """

    bank: ModelBank
    prompts: int
    seeds: int
    store: ResultStore

    def test_prompts(self, topic: str) -> list[Prompt]:
        """Prompts of a topic that no training of any seed draws."""
        learnt: set[str] = set()
        if topic in self.bank.own_topics:
            base = DistillConfig(**self.bank.profile.distill.given())
            drawn = (self._distilled(topic, dataclasses.replace(base, seed=n)) for n in range(self.seeds))
            learnt.update(*(each.prompts for each in drawn))
        return self.bank.topic_prompts(topic, self.prompts, learnt)

    def _distilled(self, topic: str, config: DistillConfig) -> TopicPrompts:
        return distillation_prompts(
            topic,
            topics=self.bank.own_topics,
            count=config.images,
            held_out=config.held_out,
            seed=config.seed,
        )

    def key(self, *parts: object) -> str:
        """Hash of `parts` and of everything that every result depends on."""
        cloud, edge = self.bank.facts("cloud"), self.bank.facts("edge")
        known = [VERSION, cloud.model_hash, edge.model_hash, self.prompts, cloud.steps, cloud.guidance_scale]
        if cloud.departures or edge.departures:
            known += [cloud.departures, edge.departures]
        if self.bank.own_topics:
            known.append({name: self.test_prompts(name) for name in self.bank.own_topics})
        return content_key(*known, edge.steps, edge.guidance_scale, self.bank.metrics_hash, *parts)

    def references(self, name: str, prompts: Sequence[Prompt], offset: int = 0) -> npt.NDArray[np.uint8]:
        """The cloud's images of test prompts, with `offset` added to their seeds."""
        folder = self.store.folder("references", self.bank.facts("cloud").model_hash[:12], name)
        return self.bank.references(prompts, folder, offset)

    def score_images(
        self, images: Sequence[Any], references: npt.NDArray[np.uint8], prompts: Sequence[Prompt]
    ) -> list[Row]:
        """Rows of scores, one for each test prompt."""
        return self.bank.score_images(np.stack(images), references, prompts)

    def unaligned(self, topic: str) -> dict[str, list[Row]]:
        """Rows of what no update takes part in, by method of BOUNDS.

        "none" is the edge as it is, GUIDED the edge at the guidance scale of updates, if that is another, and
        "ceiling" the cloud with another seed.
        """

        def measure() -> dict[str, list[Row]]:
            prompts = self.test_prompts(topic)
            references = self.references(topic, prompts)
            again = list(self.references(topic, prompts, OTHER_SEED))
            plain = [self.bank.edge.image(prompt, seed) for _, prompt, seed in prompts]
            bounds = {"none": plain, "ceiling": again}
            return {name: self.score_images(images, references, prompts) for name, images in bounds.items()}

        result: dict[str, list[Row]] = self.store.json("cells", self.key("ends", topic), measure)
        scale = DistillConfig(**self.bank.profile.distill.given()).guidance_scale
        if scale == self.bank.profile.edge.guidance_scale:  # then it is the first
            return result

        def measure_guided() -> list[Row]:
            prompts = self.test_prompts(topic)
            references, edge = self.references(topic, prompts), self.bank.edge
            drawn = [edge.latents(prompt, seed, guidance_scale=scale) for _, prompt, seed in prompts]
            images = [edge.decoder.decode(latents)[0] for latents in drawn]
            return self.score_images(images, references, prompts)

        guided = self.store.json("cells", self.key(GUIDED, topic, scale), measure_guided)
        return {**result, GUIDED: guided}

    def shipped(self, topic: str) -> Row:
        """The profile's update of a topic: its form, bytes, ladder, and rows of scores."""
        update = self.bank.update(topic)

        def measure() -> list[Row]:
            prompts = self.test_prompts(topic)
            references = self.references(topic, prompts)
            return self.score_images(self.aligned_images([update], prompts), references, prompts)

        ladder = update.history.get("ladder", [])
        return {
            "topic": topic,
            "content_hash": update.content_hash,
            "form": next((rung["form"] for rung in ladder if rung["chosen"]), ""),
            "bytes": update.size_bytes,
            "ladder": ladder,
            "rows": self.store.json("cells", self.key(SHIPPED, "rows", topic, update.content_hash), measure),
        }

    def _key_of(self, training: TopicTraining) -> str:
        """Key of a training, which makes no smaller forms."""
        return self.key(training.topic, training.config.of_full_form(), FORMAT)

    def run(self, training: TopicTraining) -> Row:
        """Train and score, or read what an earlier run found."""
        key = self._key_of(training)
        result: Row = self.store.json(
            "cells", key, lambda: self._run(training, self.store.folder("work", key))
        )
        return result

    def draw(self, training: TopicTraining) -> tuple[TopicPrompts, CloudImages]:
        """The topic's prompts and the cloud's images of them; methods and studies share them."""
        config = training.config
        topic = self._distilled(training.topic, config)
        name = f"{training.topic}-{config.seed}"
        cloud = self.bank.facts("cloud")
        folder = self.store.folder("images", cloud.model_hash[:12], name)
        kept = kept_cloud_images(cloud, topic, config, folder)
        return topic, cloud_images(self.bank.cloud, topic, config, folder) if kept is None else kept

    def _run(self, training: TopicTraining, folder: Path) -> Row:
        config = training.config
        topic, images = self.draw(training)
        prompts = self.test_prompts(training.topic)
        references = self.references(training.topic, prompts)
        targets, n = targets_of(images, self.bank.edge, config), len(topic.prompts)
        learnt, held_out = targets.rows(slice(n)), targets.rows(slice(n, None))
        machine = read(TrainingMachine)
        start = time.perf_counter()
        trained = train(
            self.bank.edge.pipeline,
            learnt,
            held_out,
            topic,
            config,
            folder,
            micro_batch=machine.distill_micro_batch or None,
            gradient_checkpointing=machine.gradient_checkpointing,
        )
        result: Row = {
            "topic": training.topic,
            "config": config.as_dict(),
            "steps": trained.steps,
            "held_out_loss": trained.held_out_loss,
            "train_seconds": round(time.perf_counter() - start, 1),
            "bytes": {},
            "rows": {},
        }
        if trained.unet is not None:
            tuned = self._tuned_images(trained.unet, prompts, config.guidance_scale)
            result["bytes"][str(config.bits)] = 2 * sum(p.numel() for p in trained.unet.parameters())
            result["rows"][str(config.bits)] = self.score_images(tuned, references, prompts)
            return result
        cloud, edge = self.bank.facts("cloud").model_hash, self.bank.edge
        update = new_update(cloud, edge, topic, config, trained, config.bits)
        update.save(folder / "update")
        # other sizes are tried where they may be the answer: on MAKD, once for each topic
        tried = BITS if config.method == "makd" and config.seed == 0 else (config.bits,)
        for bits in tried:
            coarse = new_update(cloud, edge, topic, config, trained, bits)
            aligned = self.aligned_images([coarse], prompts)
            result["bytes"][str(bits)] = coarse.size_bytes
            result["rows"][str(bits)] = self.score_images(aligned, references, prompts)
        return result

    def _tuned_images(self, unet: Any, prompts: Sequence[Prompt], guidance_scale: float) -> list[Any]:
        """The edge's images of `prompts` with another denoiser, in the number format of its own."""
        edge = self.bank.edge
        own = edge.pipeline.unet
        edge.pipeline.unet = unet.to(own.dtype)  # full fine-tuning computes in float32
        try:
            drawn = [edge.latents(text, seed, guidance_scale=guidance_scale) for _, text, seed in prompts]
        finally:
            edge.pipeline.unet = own
        return [edge.decoder.decode(latents)[0] for latents in drawn]

    def aligned_images(self, updates: Sequence[KnowledgeUpdate], prompts: Sequence[Prompt]) -> list[Any]:
        """The edge's images of `prompts` with `updates`."""
        aligned = AlignedGenerator(self.bank.edge)
        for update in updates:
            aligned.add(update)
        hashes = [update.content_hash for update in updates]
        images = [aligned.image(prompt, seed, updates=hashes) for _, prompt, seed in prompts]
        for content_hash in hashes:
            aligned.remove(content_hash)
        return images

    def update_of(self, training: TopicTraining) -> KnowledgeUpdate:
        """The profile's update of a topic; if it has none, the one that a cell's training made."""
        if training.topic in self.bank.taught:
            return self.bank.update(training.topic)
        folder = self.store.folder("work", self._key_of(training), "update")
        return KnowledgeUpdate.load(folder)

    def compose(self, pair: tuple[str, str], base: DistillConfig) -> Row:
        """Two updates in one prompt: none, each alone, and both."""
        style, subject = pair
        prompts = world_prompts(self.prompts, partial(random_scene, subjects=(subject,), styles=(style,)))
        references = self.references(f"{style}+{subject}", prompts)
        again = list(self.references(f"{style}+{subject}", prompts, OTHER_SEED))
        first, second = (self.update_of(TopicTraining(name, base)) for name in pair)
        rows = {
            name: self.score_images(self.aligned_images(updates, prompts), references, prompts)
            for name, updates in (
                ("none", []),
                (style, [first]),
                (subject, [second]),
                ("both", [first, second]),
            )
        }
        rows["ceiling"] = self.score_images(again, references, prompts)
        return {"style": style, "subject": subject, "rows": rows}


@cache
def _study(profile: str, prompts: int, seeds: int, runs: Path) -> MakdStudy:
    return MakdStudy(model_bank(profile), prompts, seeds, ResultStore(runs))


Where = tuple[str, int, int, Path]
"""Arguments of `_study`."""


def _bounds(topic: str, *, where: Where) -> dict[str, list[Row]]:
    return _study(*where).unaligned(topic)


def _shipped(topic: str, *, where: Where) -> Row:
    return _study(*where).shipped(topic)


def _draw(training: TopicTraining, *, where: Where) -> None:
    _study(*where).draw(training)


def _run_training(training: TopicTraining, *, where: Where) -> Row:
    return _study(*where).run(training)


@dataclass(frozen=True)
class MakdResults:
    """Everything that the experiment measured.

    Attributes:
        bounds: topic -> method of BOUNDS -> rows.
        shipped: topic -> the result of the update that comes with the profile; empty if any topic has none.
        trainings: every training's result; empty if nothing was trained.
        pairs: every composition's result.
    """

    bounds: dict[str, dict[str, list[Row]]]
    shipped: dict[str, Row]
    trainings: dict[TopicTraining, Row]
    pairs: list[Row]


def measure(
    base: DistillConfig,
    *,
    profile: str,
    prompts: int,
    plan: Plan,
    workers: int,
    runs: Path = RUNS,
) -> MakdResults:
    """Run all cells in `workers` processes; what an earlier run finished is read, not run again.

    Raises:
        InvalidInputError: nothing is to be trained, and the profile does not have an update of every topic.
    """
    bank = model_bank(profile)
    topics = bank.topics
    untaught = sorted(set(topics) - set(bank.taught))
    if untaught and not plan.train:
        raise InvalidInputError("trainings", f"on: {profile} has no update of {', '.join(untaught)}", "off")
    todo = trainings(base, plan, topics)
    where = (profile, prompts, plan.seeds, runs)
    done = run_in_processes(partial(_bounds, where=where), topics, workers)
    bounds = dict(tqdm(done, total=len(topics), desc="references"))
    taught = [] if untaught else topics
    scored = run_in_processes(partial(_shipped, where=where), taught, workers)
    shipped = dict(tqdm(scored, total=len(taught), desc="updates of the profile"))
    # drawn before any training, so that no two workers draw the same images
    shared = [
        training
        for training in todo
        if training.config == dataclasses.replace(base, seed=training.config.seed)
    ]
    for _ in tqdm(
        run_in_processes(partial(_draw, where=where), shared, workers), total=len(shared), desc="images"
    ):
        pass
    # by training seed first, so that an interrupted experiment has whole seeds
    todo.sort(key=lambda training: training.config.seed)
    trained = run_in_processes(partial(_run_training, where=where), todo, workers)
    found = dict(tqdm(trained, total=len(todo), desc="trainings"))
    study = _study(*where)
    composed = [pair for pair in PAIRS if set(pair) <= set(topics) - set(study.bank.own_topics)]
    pairs = [study.compose(pair, base) for pair in tqdm(composed, desc="compositions")]
    return MakdResults(bounds, shipped, found, pairs)


def sample_rows(
    base: DistillConfig, *, profile: str, prompts: int, seeds: int, runs: Path = RUNS
) -> list[list[Any]]:
    """One test prompt of every topic: the cloud's images, the edge's before and after."""
    study = _study(profile, prompts, seeds, runs)
    rows: list[list[Any]] = [[], [], []]
    for topic in study.bank.topics:
        chosen = study.test_prompts(topic)[:1]
        rows[0].append(study.references(topic, chosen)[0])
        rows[1].append(study.bank.edge.image(chosen[0][1], chosen[0][2]))
        rows[2] += study.aligned_images([study.update_of(TopicTraining(topic, base))], chosen)
    return rows


def run_gka(
    *,
    prompts: int,
    plan: Plan,
    workers: int,
    profile: str,
    results: Path = RESULTS,
    runs: Path = RUNS,
) -> None:
    """Measure what is not measured yet, then write rows, figures and images.

    Args:
        prompts: test prompts of each topic.
        plan: what is trained.
        workers: processes, one thread each.
        profile: the models, which need evaluators.
        results: where headline.json is.
        runs: where measurements are kept.

    Raises:
        NotFoundError: the profile names no scorer.
        InvalidInputError: a topic of its own has no prompts left for the test, or nothing is to be trained
            and a topic has no update.
    """
    bank = model_bank(profile)
    _ = bank.evaluators
    base = DistillConfig(**bank.profile.distill.given())
    if plan.train:
        check_teachable(bank.profile, base.objective)
    measured = measure(base, profile=profile, prompts=prompts, plan=plan, workers=workers, runs=runs)
    edge_bytes = model_bytes(bank.edge)
    write(measured, base, results, edge_bytes)
    samples = sample_rows(base, profile=profile, prompts=prompts, seeds=plan.seeds, runs=runs)
    save_images(samples, results / FOLDER, "samples.png", COMMAND)


def model_bytes(generator: Generator) -> int:
    """Bytes of a generator's parameters in float16, the format of the files that ship."""
    models = [part for part in generator.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return 2 * sum(parameter.numel() for part in models for parameter in part.parameters())


def write(measured: MakdResults, base: DistillConfig, results: Path, edge_bytes: int) -> None:
    """Write results/gka/* and the figures of headline.json."""
    folder = results / FOLDER
    methods = {training.config.method for training in measured.trainings}
    trained = sorted(methods, key=lambda method: (method == "makd", METHODS.index(method)))
    shipped = [SHIPPED] if measured.shipped else []
    unaligned = [name for name in ("none", GUIDED) if all(name in own for own in measured.bounds.values())]
    rows = {
        method: rows_of(measured, method, list(measured.bounds), base)
        for method in (*unaligned, *trained, *shipped, "ceiling")
    }
    scored = {method: [{"method": method, **row} for row in own] for method, own in rows.items()}
    kept = {} if trained else _trained_earlier(folder, scored["none"], base)
    scored = {name: scored.pop(name) for name in unaligned} | kept | scored
    write_rows(folder / "methods.jsonl", [row for own in scored.values() for row in own])
    updates = [{**row, "rows": _means(row["rows"])} for row in measured.shipped.values()]
    trainings = [
        {**result, "rows": {bits: _means(scores) for bits, scores in result["rows"].items()}}
        for result in measured.trainings.values()
    ]
    for name, found in {"updates": updates, "trainings": trainings, "compositions": measured.pairs}.items():
        if found:
            write_rows(folder / f"{name}.jsonl", found)
        elif not (name == "trainings" and kept):
            (folder / f"{name}.jsonl").unlink(missing_ok=True)  # of other models or prompts
    sizes = [row["bytes"] for row in updates] or [
        result["bytes"][str(base.bits)]
        for training, result in measured.trainings.items()
        if _is_main(training, base, "makd")
    ]
    figures(rows, sizes, results, edge_bytes)


def _trained_earlier(folder: Path, none: list[Row], base: DistillConfig) -> dict[str, list[Row]]:
    """Rows of the methods that an earlier run trained with the same settings, models and prompts."""
    found: dict[str, list[Row]] = {}
    path, trainings = folder / "methods.jsonl", folder / "trainings.jsonl"
    for row in read_rows(path) if path.exists() else []:
        found.setdefault(row["method"], []).append(row)
    if found.get("none") != none or not trainings.exists():
        return {}
    usual = {"objective": "images"}  # of runs that began before there was another
    configs = [{**usual, **row["config"], "seed": base.seed} for row in read_rows(trainings)]
    if base.as_dict() not in configs:
        return {}
    return {method: own for method, own in found.items() if method in METHODS}


def rows_of(measured: MakdResults, method: str, topics: Sequence[str], base: DistillConfig) -> list[Row]:
    """One row for each topic and test prompt: scores averaged over the training seeds."""
    found: list[Row] = []
    for topic in topics:
        if method in (*BOUNDS, SHIPPED):
            once = measured.shipped[topic]["rows"] if method == SHIPPED else measured.bounds[topic][method]
            found += [{**row, "topic": topic} for row in once]
            continue
        runs = [
            result["rows"][str(base.bits)]
            for training, result in measured.trainings.items()
            if training.topic == topic and _is_main(training, base, method)
        ]
        for same in zip(*runs, strict=True):
            found.append({**same[0], **{name: mean_of(same, name) for name in _scored(same)}, "topic": topic})
    return found


def _is_main(training: TopicTraining, base: DistillConfig, method: str) -> bool:
    return training.config.as_dict() == {**base.as_dict(), "method": method, "seed": training.config.seed}


def _means(rows: Sequence[Row]) -> dict[str, float]:
    return {name: round(mean_of(rows, name), 4) for name in _scored(rows)}


def _scored(rows: Sequence[Row]) -> list[str]:
    """Names of the scores that all rows have."""
    return [name for name in SCORES if all(name in row for row in rows)]


def _seen_whole(topic: str) -> bool:
    """Whether the attribute probe sees what a topic is about: it knows no accessories and no companions."""
    return topic not in TOPICS or TOPICS[topic].kind != "combination"


def figures(rows: dict[str, list[Row]], sizes: Sequence[int], results: Path, edge_bytes: int) -> None:
    """The figures of results/headline.json: of the updates that ship, or else of MAKD as trained here."""
    ours = SHIPPED if SHIPPED in rows else "makd"

    def column(method: str, name: str = "consistency") -> list[float]:
        return [row[name] for row in rows[method]]

    none, aligned, oracle = (column(name) for name in ("none", ours, "ceiling"))
    by_topic = [row["topic"] for row in rows[ours]]

    def put(
        key: str, measured: tuple[float, list[float] | None], unit: str = "%", n: int = len(aligned)
    ) -> None:
        value, ci95 = measured
        record(key, value, unit, command=COMMAND, count=n, ci95=ci95, results=results)

    put("gka_gain_percent", bootstrap_ci95(percent_gain, none, aligned, groups=by_topic))
    fraction = bootstrap_ci95(
        lambda n, m, c: 100 * float((m.mean() - n.mean()) / (c.mean() - n.mean())),
        none, aligned, oracle, groups=by_topic,
    )  # fmt: skip
    put("gka_ceiling_share", fraction)
    if judged := [row for row in rows[ours] if "probe" in row and _seen_whole(row["topic"])]:
        values, topics = zip(*((100 * row["probe"], row["topic"]) for row in judged), strict=True)
        put("gka_probe_heldout_accuracy", bootstrap_mean(values, groups=topics), n=len(judged))
    rivals = [method for method in BASELINES if method in rows]
    if rivals:  # of MAKD's full form, which is trained as they are
        best = max(rivals, key=lambda method: mean_of(rows[method], "consistency"))
        trained = [row["topic"] for row in rows["makd"]]
        lead = bootstrap_ci95(percent_gain, column(best), column("makd"), groups=trained)
        put("gka_lead_over_best_baseline_percent", lead)
    put("update_bytes", (max(sizes), None), "B", len(sizes))
    put("update_bytes_median", (statistics.median(sizes), None), "B", len(sizes))
    put("update_model_share", (100 * max(sizes) / edge_bytes, None), "%", len(sizes))
