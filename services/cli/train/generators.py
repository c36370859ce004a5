"""`dekag train edge|cloud`: the generators."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from dekag.documents import read_json
from services.cli.options import (
    Batch,
    Bf16,
    Device,
    Images,
    Out,
    Renderers,
    Runs,
    Size,
    StartPipeline,
    Steps,
    Threads,
    TrainingSeed,
    Vae,
    World,
)
from services.cli.train.common import (
    RUNS,
    SCENES,
    earlier_record,
    model_folder,
    placement_of,
    save_model,
    target_folder,
    use_threads,
    world_of,
)

DistilGuidance = Annotated[
    float | None,
    typer.Option(
        "--distil-guidance",
        min=1,
        help="Distil this guidance scale into the pipeline given by --start, which then needs no guidance: "
        "one denoiser row per step instead of two.",
    ),
]


def edge(
    steps: Steps = 10000,
    seed: TrainingSeed = 1,
    profile: World = "stickers",
    size: Size = None,
    pictures: Images = SCENES,
    batch: Batch = 32,
    start: StartPipeline = None,
    distil: DistilGuidance = None,
    threads: Threads = 1,
    workers: Renderers = 2,
    device: Device = None,
    bf16: Bf16 = False,
    runs: Runs = RUNS,
    vae: Vae = None,
    out: Out = None,
) -> None:
    """Train the edge generator, without the topics."""
    _generator("edge", **locals())


def cloud(
    steps: Steps = 20000,
    seed: TrainingSeed = 1,
    profile: World = "stickers",
    size: Size = None,
    pictures: Images = SCENES,
    batch: Batch = 32,
    unet: Annotated[
        bool,
        typer.Option(
            "--unet",
            help="Train a U-Net twice as deep as the edge's instead of PixArt. With --start EDGE, it grows "
            "from a trained edge.",
        ),
    ] = False,
    start: StartPipeline = None,
    distil: DistilGuidance = None,
    threads: Threads = 1,
    workers: Renderers = 2,
    device: Device = None,
    bf16: Bf16 = False,
    runs: Runs = RUNS,
    vae: Vae = None,
    out: Out = None,
) -> None:
    """Train the cloud generator, with every topic."""
    arguments = locals()
    _generator("cloud-unet" if arguments.pop("unet") else "cloud", **arguments)


def _generator(
    kind: str,
    *,
    steps: int,
    seed: int,
    profile: str,
    size: int | None,
    pictures: int,
    batch: int,
    start: Path | None,
    distil: float | None,
    threads: int,
    workers: int,
    device: str | None,
    bf16: bool,
    runs: Path,
    vae: Path | None,
    out: Path | None,
) -> None:
    """Train a generator, measure it with the attribute probe if there is one, and write it."""
    use_threads(threads)
    from dekag.training.diffusion import probe_accuracy, train_generator

    world, where = world_of(profile, size), placement_of(device).device
    role = kind.removesuffix("-unet")
    if size is not None and size != world_of(profile).size and out is None:
        raise typer.BadParameter(
            "requires --out: the profile's own models generate another size", param_hint="--size"
        )
    target = target_folder(out, profile, role)
    if distil is not None and start is None:
        raise typer.BadParameter(
            "requires --start, the pipeline to distil into", param_hint="--distil-guidance"
        )
    run = runs / profile / "-".join([role, *(["guided"] if distil else []), *([str(size)] if size else [])])
    pipeline = train_generator(
        kind,
        run,
        runs / "cache",
        model_folder(vae, profile, "vae"),
        world,
        steps=steps,
        seed=seed,
        batch=batch,
        start=start,
        guidance_scale=distil,
        pictures=pictures,
        workers=workers,
        device=where,
        bf16=bf16,
    )
    judge = model_folder(None, profile, "probe")
    quality: dict[str, Any] = {}
    if judge.is_dir():
        guidance = 3.0 if distil is None else 1.0
        quality = probe_accuracy(pipeline, judge, world, cloud=role == "cloud", guidance_scale=guidance)
    save_model(pipeline, target, run, quality, seed, earlier_record(start))
    described = target.parent / "profile.json"
    if out is None and described.exists():
        part = read_json(described)[role].get("components", {})
        if "vae" in part:  # the profile's pipelines share one
            shutil.rmtree(target / "vae")
