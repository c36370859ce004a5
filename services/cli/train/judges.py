"""`dekag train probe|outline|encoders`: the models that judge images."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dekag.files import check_folder
from services.cli.options import (
    Bf16,
    Device,
    Images,
    Out,
    Renderers,
    Runs,
    Size,
    Steps,
    Threads,
    TrainingSeed,
    World,
)
from services.cli.train.common import (
    MODELS,
    RUNS,
    SCENES,
    placement_of,
    save_model,
    target_folder,
    use_threads,
    world_of,
)


def probe(
    steps: Steps = 2000,
    seed: TrainingSeed = 1,
    profile: World = "stickers",
    size: Size = None,
    pictures: Images = SCENES,
    threads: Threads = 1,
    workers: Renderers = 2,
    device: Device = None,
    bf16: Bf16 = False,
    runs: Runs = RUNS,
    out: Out = None,
) -> None:
    """Train the attribute probe, which evaluates the generators."""
    use_threads(threads)
    from dekag.training.data import reduced_scenes, rendered_scenes
    from dekag.training.probe import rendered_accuracy, seen_side, train_probe

    world, where, target = (
        world_of(profile, size),
        placement_of(device).device,
        target_folder(out, profile, "probe"),
    )
    run, cache, side = runs / profile / "probe", runs / "cache", seen_side(world)
    seen = reduced_scenes(cache, "train", pictures, side=side, world=world, workers=workers)
    held_out = rendered_scenes(cache, "validation", 500, world=world, workers=workers)
    model = train_probe(run, seen, world, steps=steps, seed=seed, device=where, bf16=bf16)
    save_model(model, target, run, rendered_accuracy(model, held_out, world), seed)


def outline(
    steps: Steps = 2000,
    seed: TrainingSeed = 1,
    profile: World = "stickers",
    size: Size = None,
    pictures: Images = SCENES,
    threads: Threads = 1,
    workers: Renderers = 2,
    device: Device = None,
    bf16: Bf16 = False,
    runs: Runs = RUNS,
    out: Out = None,
) -> None:
    """Train the outline probe, which evaluates shapes and saturates later than the attribute probe."""
    use_threads(threads)
    from dekag.training.data import rendered_masks, rendered_scenes
    from dekag.training.probe import outline_quality, train_outline_judge

    world, where, target = (
        world_of(profile, size),
        placement_of(device).device,
        target_folder(out, profile, "outline"),
    )
    run, cache = runs / profile / "outline", runs / "cache"
    held_out, masks = (
        render(cache, "validation", 200, world=world, workers=workers)
        for render in (rendered_scenes, rendered_masks)
    )
    model = train_outline_judge(
        run,
        rendered_scenes(cache, "train", pictures, world=world, workers=workers),
        rendered_masks(cache, "train", pictures, world=world, workers=workers),
        steps=steps,
        seed=seed,
        device=where,
        bf16=bf16,
    )
    save_model(model, target, run, outline_quality(model, held_out, masks), seed)


def encoders(
    steps: Steps = 3000,
    dino_steps: Annotated[
        int, typer.Option(min=2, help="Number of optimiser steps of the DINOv2-style encoder.")
    ] = 2000,
    seed: TrainingSeed = 1,
    profile: World = "stickers",
    size: Size = None,
    pictures: Images = SCENES,
    threads: Threads = 1,
    workers: Renderers = 2,
    device: Device = None,
    bf16: Bf16 = False,
    runs: Runs = RUNS,
    out: Out = None,
) -> None:
    """Train the metric encoders: CLIP and a DINOv2-style ViT."""
    use_threads(threads)
    from dekag.training.data import reduced_scenes, rendered_scenes
    from dekag.training.encoders import clip_quality, dino_quality, train_clip, train_dino

    world, where, cache = world_of(profile, size), placement_of(device).device, runs / "cache"
    folder = out or MODELS / profile
    check_folder(folder)
    # the encoders see no more
    seen = reduced_scenes(cache, "train", pictures, side=world.size // 2, world=world, workers=workers)
    held_out = rendered_scenes(cache, "validation", 500, world=world, workers=workers)
    settings: dict[str, Any] = {"seed": seed, "device": where, "bf16": bf16}
    run = runs / profile / "clip"
    clip, tokenizer = train_clip(run, seen, world, steps=steps, **settings)
    tokenizer.save_pretrained(folder / "clip")
    save_model(clip, folder / "clip", run, clip_quality(clip, tokenizer, held_out[:200], world), seed)
    run = runs / profile / "dino"
    dino = train_dino(run, seen, world, steps=dino_steps, **settings)
    save_model(dino, folder / "dino", run, dino_quality(dino, held_out, world), seed)
