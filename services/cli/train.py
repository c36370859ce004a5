"""`dekag train ...`: the commands that made the embedded models, each resumable and seeded."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dekag.documents import read_json
from dekag.files import check_folder
from dekag.places import shipped_model

train = typer.Typer(help="Train the embedded models; an interrupted command resumes.", no_args_is_help=True)

Steps = Annotated[int, typer.Option(min=2, help="Optimiser steps in all.")]
Seed = Annotated[int, typer.Option(min=0, help="Seeds initial weights and every step.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Multiply in bfloat16: quicker if the processor can.")]


def _writable(folder: Path | None) -> Path | None:
    """Says so now if nothing can be written there, and not after hours of training."""
    if folder is not None:
        check_folder(folder)
    return folder


Runs = Annotated[
    Path, typer.Option(help="Where checkpoints and rendered scenes are kept.", callback=_writable)
]
Out = Annotated[Path, typer.Option(help="Where the finished model goes.", callback=_writable)]

Shipped = Annotated[
    Path, typer.Option(help="A model; one that ships, if it is not there.", callback=shipped_model)
]

RUNS = Path("runs")
EMBEDDED = Path("models/embedded")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def _threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def _save(
    model: Any,
    folder: Path,
    runs: Path,
    name: str,
    quality: dict[str, Any],
    seed: int,
    continues: dict[str, Any] | None = None,
) -> None:
    """Write `model` as fp16 safetensors and a training.json beside it; `continues`: the record it adds to."""
    import torch

    state = read_json(runs / name / "state.json")
    model.to(dtype=torch.float16)
    model.save_pretrained(folder, safe_serialization=True)
    record: dict[str, Any] = {
        "command": "dekag " + " ".join(sys.argv[1:]),
        "seed": seed,
        "steps": state["step"],
        "seconds": state["seconds"],
        "quality": quality,
    }
    if continues is not None:
        record["continues"] = continues
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    typer.echo(f"{name}: {json.dumps(quality)} -> {folder}")


@train.command()
def vae(
    steps: Steps = 8000, seed: Seed = 1, threads: Threads = 2, runs: Runs = RUNS, out: Out = EMBEDDED / "vae"
) -> None:
    """The autoencoder shared by cloud, edge and user."""
    _threads(threads)
    from dekag.training.vae import held_out_psnr, train_vae

    model = train_vae(runs / "vae", runs / "cache", steps=steps, seed=seed)
    psnr = float(held_out_psnr(model, runs / "cache").mean())
    _save(model, out, runs, "vae", {"validation_psnr_db": round(psnr, 2)}, seed)


@train.command()
def decoder(
    steps: Steps = 6000,
    seed: Seed = 1,
    threads: Threads = 1,
    runs: Runs = RUNS,
    vae: Shipped = EMBEDDED / "vae",
    out: Out = EMBEDDED / "vae",
) -> None:
    """Refine the autoencoder's decoder on whole pictures; its latents stay the same."""
    _threads(threads)
    import torch
    from diffusers import AutoencoderKL

    from dekag.training.diffusion import encoded_scenes
    from dekag.training.vae import held_out_psnr, refine_decoder

    model = AutoencoderKL.from_pretrained(vae, dtype=torch.float32)
    latents = encoded_scenes(runs / "cache", model)
    model = refine_decoder(runs / "decoder", runs / "cache", model, latents, steps=steps, seed=seed)
    psnr = float(held_out_psnr(model, runs / "cache").mean())
    before = read_json(vae / "training.json")
    _save(model, out, runs, "decoder", {"validation_psnr_db": round(psnr, 2)}, seed, before)
    for pipeline in ("edge", "cloud"):
        copy = out.parent / pipeline / "vae"
        if copy.is_dir():
            shutil.copy(out / WEIGHTS, copy / WEIGHTS)


@train.command()
def probe(
    steps: Steps = 2000,
    seed: Seed = 1,
    threads: Threads = 1,
    runs: Runs = RUNS,
    out: Out = EMBEDDED / "probe",
) -> None:
    """The attribute probe that judges the generators."""
    _threads(threads)
    from dekag.training.probe import rendered_accuracy, train_probe

    model = train_probe(runs / "probe", runs / "cache", steps=steps, seed=seed)
    _save(model, out, runs, "probe", rendered_accuracy(model, runs / "cache"), seed)


@train.command()
def encoders(
    steps: Steps = 1500,
    dino_steps: Steps = 1000,
    seed: Seed = 1,
    threads: Threads = 1,
    runs: Runs = RUNS,
    out: Out = EMBEDDED,
) -> None:
    """The metric encoders: CLIP and a DINOv2-style ViT."""
    _threads(threads)
    from dekag.training.encoders import clip_retrieval, dino_neighbours, train_clip, train_dino

    clip, tokenizer = train_clip(runs / "clip", runs / "cache", steps=steps, seed=seed)
    tokenizer.save_pretrained(out / "clip")
    quality = {"validation_retrieval_of_200": clip_retrieval(clip, tokenizer, runs / "cache")}
    _save(clip, out / "clip", runs, "clip", quality, seed)
    dino = train_dino(runs / "dino", runs / "cache", steps=dino_steps, seed=seed)
    _save(dino, out / "dino", runs, "dino", dino_neighbours(dino, runs / "cache"), seed)


@train.command()
def edge(
    steps: Steps = 4000,
    seed: Seed = 1,
    threads: Threads = 1,
    batch: int = 32,
    bf16: Bf16 = False,
    runs: Runs = RUNS,
    vae: Shipped = EMBEDDED / "vae",
    out: Out = EMBEDDED / "edge",
) -> None:
    """The edge-GAI; it never sees a held-out topic."""
    _threads(threads)
    from dekag.training.diffusion import probe_accuracy, train_edge

    pipeline = train_edge(runs / "edge", runs / "cache", vae, steps=steps, seed=seed, batch=batch, bf16=bf16)
    quality = probe_accuracy(pipeline, shipped_model(EMBEDDED / "probe"), cloud=False)
    _save(pipeline, out, runs, "edge", quality, seed)


@train.command()
def cloud(
    steps: Steps = 4000,
    seed: Seed = 1,
    threads: Threads = 1,
    batch: int = 32,
    bf16: Bf16 = False,
    start: Annotated[Path | None, typer.Option(help="A trained cloud to go on from.")] = None,
    runs: Runs = RUNS,
    vae: Shipped = EMBEDDED / "vae",
    out: Out = EMBEDDED / "cloud",
) -> None:
    """The cloud-GAI; it knows every topic."""
    _threads(threads)
    from dekag.training.diffusion import probe_accuracy, train_cloud

    pipeline = train_cloud(
        runs / "cloud", runs / "cache", vae, steps=steps, seed=seed, batch=batch, bf16=bf16, start=start
    )
    quality = probe_accuracy(pipeline, shipped_model(EMBEDDED / "probe"), cloud=True)
    continues = read_json(start / "training.json") if start else None
    _save(pipeline, out, runs, "cloud", quality, seed, continues)


@train.command()
def codec(
    steps: Steps = 1500,
    seed: Seed = 1,
    threads: Threads = 1,
    runs: Runs = RUNS,
    vae: Shipped = EMBEDDED / "vae",
    out: Out = EMBEDDED / "codec",
) -> None:
    """The base codec: clean channel, top rate."""
    _threads(threads)
    import torch
    from diffusers import AutoencoderKL

    from dekag.training.codec import clean_latent_snr_db, train_codec
    from dekag.training.diffusion import encoded_scenes

    latents = encoded_scenes(runs / "cache", AutoencoderKL.from_pretrained(vae, dtype=torch.float32))
    # the last thousand latents are kept out of training to measure on
    model = train_codec(runs / "codec", latents[:-1000], steps=steps, seed=seed)
    quality = {"held_out_latent_snr_db": clean_latent_snr_db(model, latents[-1000:])}
    _save(model, out, runs, "codec", quality, seed)


@train.command()
def cala(
    steps: Steps = 12000,
    seed: Seed = 1,
    threads: Threads = 1,
    share: Annotated[float, typer.Option(min=0.005, max=1, help="Most parameters, of the codec's.")] = 0.05,
    method: Annotated[
        str, typer.Option(help="What to train in CALA's place: a baseline of it, or a plug-in's name.")
    ] = "cala",
    bf16: Bf16 = False,
    calibrate_on: Annotated[int, typer.Option(min=2, help="Latents that measure what to expect.")] = 16,
    runs: Runs = RUNS,
    codec: Shipped = EMBEDDED / "codec",
    vae: Shipped = EMBEDDED / "vae",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where it is saved  [default: models/embedded/cala; RUNS/METHOD/knowledge if not CALA]",
            callback=_writable,
        ),
    ] = None,
) -> None:
    """Transmission knowledge: adapters of the base codec, CALA's, over random rates and channels."""
    _threads(threads)
    import torch
    from diffusers import AutoencoderKL

    from dekag.codec import JsccCodec
    from dekag.generation.models import folder_hash
    from dekag.training.cala import train_knowledge
    from dekag.training.diffusion import encoded_scenes

    model = AutoencoderKL.from_pretrained(vae, dtype=torch.float32).eval()
    latents = encoded_scenes(runs / "cache", model)
    folder = (EMBEDDED / "cala" if method == "cala" else runs / method / "knowledge") if out is None else out
    knowledge = train_knowledge(
        runs / method,
        JsccCodec.load(codec),
        folder_hash(codec),
        lambda batch: model.decode(batch).sample,
        latents[:-1000],
        latents[-1000:][:calibrate_on],
        steps=steps,
        seed=seed,
        share=share,
        method=method,
        bf16=bf16,
        command="dekag " + " ".join(sys.argv[1:]),
    )
    knowledge.save(folder)
    typer.echo(f"{method}: {json.dumps(knowledge.info['scores'])} -> {folder}")
    typer.echo(f"A running system uses it after `dekag publish {folder}`.")


@train.command()
def knowledge(
    topic: Annotated[list[str] | None, typer.Option(help="Topics; all if left out.")] = None,
    seed: Seed = 0,
    threads: Threads = 1,
    profile: Annotated[str, typer.Option(help="Models.")] = "embedded",
    runs: Runs = RUNS,
    out: Out = EMBEDDED / "knowledge",
) -> None:
    """Knowledge updates of the world's topics (MAKD), as a running system would distil them."""
    _threads(threads)
    from tqdm import tqdm

    from dekag.generation.models import Generator
    from dekag.generation.profile import load_profile
    from dekag.makd.config import DistillConfig
    from dekag.makd.topics import topic_prompts
    from dekag.metrics.features import ImageScorer
    from dekag.training.distill import Progress, distill
    from dekag.world import TOPICS

    if unknown := set(topic or ()) - set(TOPICS):
        raise typer.BadParameter(f"{', '.join(unknown)} is none of {', '.join(TOPICS)}", param_hint="--topic")
    models, config = load_profile(profile), DistillConfig(seed=seed)
    cloud, edge = Generator.from_profile(models.cloud), Generator.from_profile(models.edge)
    scorer = None if models.scorer is None else ImageScorer.load(models.scorer.clip, models.scorer.dino)
    for name in topic or TOPICS:
        prompts = topic_prompts(name, count=config.images, held_out=config.held_out, seed=seed)
        with tqdm(desc=name) as bar:

            def on_progress(progress: Progress, bar: Any = bar) -> None:
                bar.total = progress.total
                bar.set_postfix(stage=progress.stage, refresh=False)
                bar.n = progress.done
                bar.update(0)

            update = distill(
                cloud,
                edge,
                prompts,
                config,
                runs / "knowledge" / f"{name}-{seed}",
                scorer=scorer,
                on_progress=on_progress,
            )
        update.save(out / name)
        typer.echo(f"{name}: {json.dumps(update.info['scores'])} -> {out / name}")
    typer.echo(f"A running system uses them after `dekag publish {out}/TOPIC`.")


@train.command()
def golden(profile: Annotated[str, typer.Option(help="Models.")] = "embedded") -> None:
    """Write what the models compute, their golden values: `dekag doctor` compares them elsewhere."""
    from dekag.generation.profile import load_profile, profile_folder
    from dekag.golden import FILE, write

    folder = profile_folder(profile)
    typer.echo(f"{write(load_profile(profile), folder)} models -> {folder / FILE}")
