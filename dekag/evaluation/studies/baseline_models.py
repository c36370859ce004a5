"""`dekag experiment first-image`: what the models reach before any alignment.

Everything is measured on held-out combinations of attributes and on seeds of the test split. Figures go to
results/headline.json, one line per image to results/first-image/*.jsonl, samples to a contact sheet.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from dekag.cala.aligned_codec import AlignedCodec
from dekag.codec.constellation import quantize_to_qam
from dekag.errors import NotFoundError
from dekag.evaluation.models import ModelBank, load_quietly
from dekag.evaluation.pages import save_images, write_rows
from dekag.evaluation.prompts import Prompt, cloud_prompts, edge_prompts, topic_prompts, world_prompts
from dekag.evaluation.registry import RESULTS, record
from dekag.evaluation.statistics import PERCENT, bootstrap_mean, mean_ci95
from dekag.generation.images import Pixels
from dekag.generation.models import Generator, LatentEncoder
from dekag.link import LinkConditions
from dekag.makd.aligned_generator import AlignedGenerator
from dekag.metrics.image import METRICS, psnr_db
from dekag.metrics.outline import OutlineJudge
from dekag.metrics.probe import AttributeProbe
from dekag.pipeline import SemanticLink
from dekag.stickers import EDGE_SUBJECTS, TOPICS, Scene, random_scene
from dekag.stickers.captions import says_size_and_side
from dekag.training.data import image_number
from dekag.training.worlds import STICKERS

COMMAND = "dekag experiment first-image"
FOLDER = "first-image"
PARTS = ("vae", "edge", "cloud", "codec", "steps")
PROBED = {"edge", "cloud", "steps"}
"""Parts whose images the attribute probe judges."""
STEPS = (1, 2, 3, 4, 6, 8, 12, 20)
STEP_PROMPTS = 48
"""Prompts at most, of each kind, whose images are judged for each number of steps."""
STEP_COLUMNS = 4
"""Of these, so many are shown."""
RAYLEIGH_SNRS_DB = (0.0, 5.0, 10.0)
TOP_RATE = 1 / 96
Tagged = tuple[str | None, Prompt]
"""A prompt with the taught topic that it needs, if any."""
ACROSS = 8
"""Images in a row of the sheet of subjects."""
DIRECT_SCALES = [0.3 + 0.05 * i for i in range(12)]


def measure_vae(generator: Generator, count: int, results: Path) -> None:
    """PSNR and SSIM of test scenes after encoding and decoding."""
    world = replace(STICKERS, size=generator.size)
    encoder, rows = LatentEncoder(generator.decoder), []
    for n in tqdm(range(count), desc="autoencoder"):
        scene, seed = image_number("test", n, world)
        pixels = world.render(scene, seed)
        decoded = generator.decoder.decode(encoder.encode(pixels[None]))[0]
        rows.append(
            {
                "seed": seed,
                "style": scene.style,
                "psnr_db": round(psnr_db(decoded, pixels), 3),
                "ssim": round(float(METRICS["ssim"].score(decoded[None], pixels[None])[0]), 4),
            }
        )
    write_rows(results / FOLDER / "vae.jsonl", rows)
    for metric, unit in (("psnr_db", "dB"), ("ssim", "ratio")):
        mean, interval = mean_ci95(
            [row[metric] for row in rows], (-math.inf, math.inf if unit == "dB" else 1.0)
        )
        record(f"vae_{metric}", mean, unit, command=COMMAND, count=count, ci95=interval, results=results)


def probe_accuracy(
    name: str,
    draw: Callable[[str, int], np.ndarray],
    prompts: list[Prompt],
    probe: AttributeProbe,
    outline: OutlineJudge | None,
    results: Path,
    *,
    tags: list[str] | None = None,
) -> None:
    """Draw every prompt and write what the evaluators say; the figures are means over the images.

    The outline judge compares the subject with its mask in the rendered scene of the prompt. It judges no
    scenes with a second subject, and none whose prompt leaves the subject's size or side open.
    """
    images = np.stack([draw(prompt, seed) for _, prompt, seed in tqdm(prompts, desc=name)])
    scenes = [scene for scene, _, _ in prompts]
    verdicts = probe.correct(images, scenes)
    agreement: dict[int, float] = {}
    if outline is not None:
        try:
            agreement = outline_agreement(outline, images, prompts)
        except NotFoundError as error:
            tqdm.write(f"{name}: outlines are not judged: {error}", file=sys.stderr)
    rows: list[dict[str, Any]] = []
    for i, ((scene, prompt, seed), verdict) in enumerate(zip(prompts, verdicts, strict=True)):
        rows.append({"prompt": prompt, "seed": seed, "correct": verdict, "judged": seen_whole(scene)})
        if i in agreement:
            rows[-1]["outline"] = agreement[i]
        if tags is not None:
            rows[-1]["topic"] = tags[i]
    write_rows(results / FOLDER / f"{name}.jsonl", rows)
    record_accuracy(name, rows, results)


def seen_whole(scene: Scene | None) -> bool:
    """Whether the probe sees all that a scene consists of: it knows no accessories and no companions."""
    return scene is not None and scene.accessory is None and scene.companion is None


Row = Mapping[str, Any]


def accuracy(rows: Sequence[Row]) -> tuple[float, list[float] | None]:
    """Mean of the attributes that are correct, %, and its interval, of the rows of `probe_accuracy`."""
    judged = [row for row in rows if row.get("judged", True)]
    return _mean([100 * sum(row["correct"].values()) / len(row["correct"]) for row in judged], judged)


def record_accuracy(name: str, rows: Sequence[Row], results: Path) -> None:
    """The figures of the rows of `probe_accuracy`."""
    outlined = [row for row in rows if "outline" in row]
    judged = sum(row.get("judged", True) for row in rows)
    found = {f"probe_{name}_accuracy": (judged, accuracy(rows))}
    if outlined:
        agreement = _mean([100 * row["outline"] for row in outlined], outlined)
        found[f"outline_{name}_agreement"] = (len(outlined), agreement)
    for key, (count, (mean, interval)) in found.items():
        record(key, mean, "%", command=COMMAND, count=count, ci95=interval, results=results)


def _mean(values: Sequence[float], rows: Sequence[Row]) -> tuple[float, list[float] | None]:
    """Mean of percentages; images of one topic are not independent of each other."""
    topics = [row.get("topic") for row in rows]
    return mean_ci95(values, PERCENT) if None in topics else bootstrap_mean(values, groups=topics)


def outline_agreement(
    judge: OutlineJudge, images: npt.NDArray[np.uint8], prompts: list[Prompt]
) -> dict[int, float]:
    """Agreement of the subject's outline with the rendered scene of its prompt, by position.

    Raises:
        NotFoundError: the artwork of the world is missing.
    """
    single = [
        i
        for i, (scene, prompt, _) in enumerate(prompts)
        if scene and not scene.companion and says_size_and_side(prompt, scene)
    ]
    if not single:
        return {}
    world = replace(STICKERS, size=images.shape[1])
    masks = [world.mask(prompts[i][0], prompts[i][2]) for i in single]
    found = judge.agreement(images[single], np.stack(masks))
    return {i: round(float(value), 4) for i, value in zip(single, found, strict=True)}


def sent_directly(latents: torch.Tensor, bits_per_symbol: int) -> torch.Tensor:
    """Latents as they come back when their numbers are snapped to the constellation without any codec.

    Pairs of numbers become complex symbols, scaled as suits this latent best. (1, c, h, w) both ways.
    """
    pairs = torch.view_as_complex(latents.reshape(-1, 2).contiguous())
    candidates = [quantize_to_qam(pairs * scale, bits_per_symbol) / scale for scale in DIRECT_SCALES]
    best = min(candidates, key=lambda symbols: float((symbols - pairs).abs().square().mean()))
    return torch.view_as_real(best).reshape(latents.shape)


@torch.inference_mode()
def measure_codec(bank: ModelBank, prompts: list[Prompt], results: Path) -> None:
    """The unaligned codec on latents that the edge generated: clean channel against its limit, and
    Rayleigh fading as it is delivered.

    The limit that the constellation sets: its 6 bits a symbol spend 3 bits on each of the latent's numbers,
    and no code for a Gaussian source does that with less error than D = 2^-6 of its variance (Shannon).
    Beside it stands what the constellation does to a latent sent without a codec.
    PSNR is against the same latent decoded without a channel.
    """
    edge, codec = bank.edge, bank.unaligned_codec().codec
    link = SemanticLink(AlignedCodec.load(bank.profile.codec_without_alignment), edge)
    rows: dict[str, list[float]] = {
        "clean": [],
        "limit": [],
        "direct": [],
        **{f"{s:g}": [] for s in RAYLEIGH_SNRS_DB},
    }
    for _, prompt, seed in tqdm(prompts, desc="codec"):
        latents = edge.latents(prompt, seed)
        shape = (latents.shape[1], latents.shape[2], latents.shape[3])
        reference = edge.decoder.decode(latents)[0]
        symbols = codec.encode(latents, round(TOP_RATE * 3 * edge.size**2))
        received = {"clean": codec.decode(symbols, shape)}
        distortion = 2.0 ** -float(codec.config.bits_per_symbol)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
        deviation = latents.std()
        received["limit"] = (1 - distortion) * latents + (
            distortion * (1 - distortion)
        ) ** 0.5 * deviation * noise
        received["direct"] = sent_directly(latents, codec.config.bits_per_symbol)
        for snr_db in RAYLEIGH_SNRS_DB:
            conditions = LinkConditions(snr_db=snr_db, fading="rayleigh")
            delivered = link.send(latents, [conditions], [seed], channel_uses=symbols.shape[1])
            received[f"{snr_db:g}"] = delivered.latents
        for name, latent in received.items():
            rows[name].append(psnr_db(edge.decoder.decode(latent)[0], reference))
    write_rows(
        results / FOLDER / "codec.jsonl",
        [
            {"seed": prompts[i][2], **{f"{name}_psnr_db": round(v[i], 3) for name, v in rows.items()}}
            for i in range(len(prompts))
        ],
    )
    gaps = [limit - clean for limit, clean in zip(rows["limit"], rows["clean"], strict=True)]
    figures = {"codec_clean_gap_db": gaps}
    figures |= {f"codec_rayleigh_{s:g}db_psnr_db": rows[f"{s:g}"] for s in RAYLEIGH_SNRS_DB}
    for key, values in figures.items():
        mean, interval = mean_ci95(values)
        record(key, mean, "dB", command=COMMAND, count=len(values), ci95=interval, results=results)


def measure_steps(bank: ModelBank, count: int, results: Path) -> None:
    """The edge's images with fewer and more steps of the sampler, on topics that it knows and was taught.

    A taught topic is one whose update comes with the profile; its update is active. Every image is compared
    with the cloud's of the same prompt and seed.

    Args:
        bank: the models.
        count: prompts of each kind, rounded up to equally many of each taught topic.
        results: where the rows go, one for each kind and number of steps, and the first images of each kind,
            in a row for each number of steps.
    """
    taught = bank.taught
    kinds: dict[str, list[Tagged]] = {"known": [(None, prompt) for prompt in edge_prompts(count)]}
    if taught:
        each = -(-count // len(taught))
        kinds["taught"] = []
        for name in taught:
            kinds["taught"].extend(
                (name, prompt) for prompt in bank.topic_prompts(name, each, bank.learnt(name))
            )
    updates = {topic: bank.update(topic) for topic in taught}
    references = {
        kind: [bank.cloud.image(text, seed) for _, (_, text, seed) in tqdm(tagged, desc=f"{kind}, cloud")]
        for kind, tagged in kinds.items()
    }
    edge, rows = bank.edge, []
    sheet: dict[int, list[Pixels]] = {}
    for kind, tagged in kinds.items():
        prompts = [prompt for _, prompt in tagged]
        for steps in sorted({*STEPS, edge.steps}):
            sampler = Generator(
                edge.pipeline,
                edge.model_hash,
                edge.decoder,
                steps=steps,
                guidance_scale=edge.guidance_scale,
                size=edge.size,
            )
            aligned = AlignedGenerator(sampler, capacity=len(taught) or 1)
            images = []
            for topic, (_, text, seed) in tqdm(tagged, desc=f"{kind}, {steps} steps"):
                update = None if topic is None else updates[topic]
                if update is not None:
                    aligned.add(update)
                active = () if update is None else (update.content_hash,)
                images.append(aligned.image(text, seed, updates=active))
            sheet.setdefault(steps, []).extend(images[:: -(-len(images) // STEP_COLUMNS)])
            scores = bank.score_images(np.stack(images), np.stack(references[kind]), prompts)
            row: dict[str, Any] = {"kind": kind, "steps": steps, "n": len(prompts)}
            row["own"] = steps == edge.steps
            for name in ("consistency", "probe"):
                mean, interval = mean_ci95([float(score[name]) for score in scores], (-1.0, 1.0))
                row |= {name: round(mean, 4), f"{name}_ci95": interval}
            rows.append(row)
    write_rows(results / FOLDER / "steps.jsonl", rows)
    save_images([sheet[steps] for steps in sorted(sheet)], results / FOLDER, "steps.webp", COMMAND)


def subject_images(edge: Generator) -> list[list[np.ndarray]]:
    """Rows of the edge's images, one of each subject that it knows, in sticker style."""
    prompts = [
        world_prompts(1, partial(random_scene, subjects=(subject,), styles=("sticker",)))[0]
        for subject in EDGE_SUBJECTS
    ]
    images = [edge.image(prompt, seed) for _, prompt, seed in tqdm(prompts, desc="subjects")]
    return [images[start : start + ACROSS] for start in range(0, len(images), ACROSS)]


def run(
    count: int = 500,
    *,
    parts: Collection[str] | None = None,
    profile: str = "stickers",
    results: Path = RESULTS,
) -> None:
    """Measure the figures of the first image.

    Args:
        count: images for each figure (the codec's at most 200).
        parts: of PARTS; the others' figures stay as they are. Enough when one model was replaced. Left out,
            all that the profile's evaluators can judge.
        profile: the models.
        results: where headline.json is.

    Raises:
        NotFoundError: there is no such profile, or it has no probe and a part needs it.
    """
    load_quietly()
    bank = ModelBank(profile)
    probed = bank.profile.scorer is not None and bank.profile.scorer.probe is not None
    if parts is None:
        parts = [part for part in PARTS if probed or part not in PROBED]
    elif not probed and PROBED & set(parts):
        raise NotFoundError(f"the profile {profile} names no scorer.probe, which edge, cloud and steps need")
    known = edge_prompts(count)
    everything = cloud_prompts(count)
    each = max(1, count // len(TOPICS))
    some = list(TOPICS.values())[:count]
    held_out = [(topic.name, p) for topic in some for p in topic_prompts(topic, each)]
    if "vae" in parts:
        measure_vae(bank.edge, count, results)
    if "edge" in parts:
        probe_accuracy("edge_known", bank.edge.image, known, bank.probe, bank.outline, results)
        tags = [name for name, _ in held_out]
        prompts = [prompt for _, prompt in held_out]
        probe_accuracy("edge_heldout", bank.edge.image, prompts, bank.probe, bank.outline, results, tags=tags)
    if "cloud" in parts:
        probe_accuracy("cloud", bank.cloud.image, everything, bank.probe, bank.outline, results)
    if "codec" in parts:
        measure_codec(bank, known[:200], results)
    if "steps" in parts:
        measure_steps(bank, min(count, STEP_PROMPTS), results)
    one_each = [prompt for _, prompt in held_out[::each]]
    width = len(one_each)

    def sample(model: Generator, *of: list[Prompt]) -> list[list[Pixels]]:
        return [[model.image(prompt, seed) for _, prompt, seed in prompts[:width]] for prompts in of]

    by_cloud, by_edge = sample(bank.cloud, everything, one_each), sample(bank.edge, known, one_each)
    rows = [row for both in zip(by_edge, by_cloud, strict=True) for row in both]
    save_images(rows, results / FOLDER, "samples.webp", COMMAND)
    save_images(subject_images(bank.edge), results / FOLDER, "subjects.webp", COMMAND)
