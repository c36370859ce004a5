"""`dekag train vae|vae-quality|decoder`: the autoencoder that cloud, edge and user share."""

from __future__ import annotations

import json
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from dekag.paths import shipped_model
from services.cli.options import (
    FILES,
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
    Vae,
    World,
    writable_folder,
)
from services.cli.train.common import (
    RUNS,
    WEIGHTS,
    earlier_record,
    model_folder,
    placement_of,
    save_model,
    target_folder,
    training_record,
    use_threads,
    world_of,
)


def vae(
    steps: Steps = 8000,
    refinement_steps: Annotated[
        int, typer.Option(min=2, help="Number of further steps on whole images, after those on crops.")
    ] = 1000,
    seed: TrainingSeed = 1,
    profile: World = "stickers",
    size: Size = None,
    pictures: Images = 6000,
    start: Annotated[
        Path | None,
        typer.Option(help="Autoencoder to start from; a narrower one is widened."),
    ] = None,
    threads: Threads = 1,
    workers: Renderers = 2,
    device: Device = None,
    scale: Annotated[int, typer.Option(min=1, help="Multiply the batch size by this factor, for a GPU.")] = 1,
    bf16: Bf16 = False,
    runs: Runs = RUNS,
    out: Out = None,
) -> None:
    """Train the autoencoder that cloud, edge and user share."""
    use_threads(threads)
    import torch
    from diffusers import AutoencoderKL

    from dekag.training.data import rendered_scenes
    from dekag.training.vae import normalise_latents, refine_vae, train_vae
    from dekag.training.vae_quality import measure

    world, where, target = (
        world_of(profile, size),
        placement_of(device).device,
        target_folder(out, profile, "vae"),
    )
    seen = rendered_scenes(runs / "cache", "train", pictures, world=world, workers=workers)
    held_out = rendered_scenes(runs / "cache", "validation", 200, world=world, workers=workers)
    before = (
        None if start is None else AutoencoderKL.from_pretrained(shipped_model(start), dtype=torch.float32)
    )
    settings: dict[str, Any] = {"seed": seed, "device": where, "bf16": bf16}
    first, second = runs / profile / "vae", runs / profile / "vae-refined"
    model = train_vae(first, seen, held_out[:32], steps=steps, start=before, scale=scale, **settings)
    model = refine_vae(second, seen, held_out[:32], model, steps=refinement_steps, batch=scale, **settings)
    normalise_latents(model, seen)
    quality = measure(model.to("cpu"), held_out, world)[0]
    earlier = training_record(first, {}, seed, earlier_record(start))
    save_model(model, target, second, quality, seed, earlier)


def vae_quality(
    profile: World = "stickers",
    size: Size = None,
    count: Annotated[int, typer.Option(min=2, help="Number of held-out images.")] = 200,
    threads: Threads = 1,
    workers: Renderers = 2,
    runs: Runs = RUNS,
    vae: Vae = None,
    strip: Annotated[
        Path | None,
        typer.Option(
            help="Image file to write: the worst ten and the best ten images.", rich_help_panel=FILES
        ),
    ] = None,
    results: Annotated[
        Path, typer.Option(help="Folder of the results.", callback=writable_folder, rich_help_panel=FILES)
    ] = Path("results"),
) -> None:
    """Measure an autoencoder on held-out images, on the CPU: PSNR, SSIM, encoding and decoding time.

    Without --vae and --size, writes training/vae-PROFILE.json into --results; `dekag results book` shows it
    in docs/training.md.
    """
    use_threads(threads)
    import torch
    from diffusers import AutoencoderKL

    from dekag.training.data import rendered_scenes
    from dekag.training.vae_quality import measure, save_strip

    world, folder = world_of(profile, size), model_folder(vae, profile, "vae")
    model = AutoencoderKL.from_pretrained(folder, dtype=torch.float32)
    pixels = rendered_scenes(runs / "cache", "validation", count, world=world, workers=workers)
    quality, back, order = measure(model.eval().to(memory_format=torch.channels_last), pixels, world)
    if strip is not None:
        save_strip(strip, pixels, back, order)
    typer.echo(json.dumps(quality, indent=2))
    if vae is None and size is None:
        _record_quality(results / "training" / f"vae-{profile}.json", quality, folder, world.size, threads)


def _record_quality(path: Path, quality: dict[str, Any], model: Path, size: int, threads: int) -> None:
    """Write a measured quality with the command, the commit and the model that it belongs to."""
    from dekag.evaluation.registry import current_commit
    from dekag.generation.loading import folder_hash

    record = {
        "command": "dekag " + " ".join(sys.argv[1:]),
        "commit": current_commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "model_hash": folder_hash(model),
        "size": size,
        "threads": threads,
        "quality": quality,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def decoder(
    steps: Steps = 6000,
    seed: TrainingSeed = 1,
    profile: World = "stickers",
    pictures: Images = 6000,
    threads: Threads = 1,
    workers: Renderers = 2,
    device: Device = None,
    runs: Runs = RUNS,
    vae: Vae = None,
    out: Out = None,
) -> None:
    """Refine the autoencoder's decoder on whole images. Latents do not change."""
    use_threads(threads)
    import torch
    from diffusers import AutoencoderKL

    from dekag.training.data import rendered_scenes
    from dekag.training.latents import encoded_scenes
    from dekag.training.vae import refine_decoder
    from dekag.training.vae_quality import measure

    world, where, source = world_of(profile), placement_of(device).device, model_folder(vae, profile, "vae")
    target = target_folder(out, profile, "vae")
    before = earlier_record(source)
    model = AutoencoderKL.from_pretrained(source, dtype=torch.float32)
    cache = runs / "cache"
    latents = encoded_scenes(cache, model, pictures, world=world, workers=workers, device=where)
    seen = rendered_scenes(cache, "train", pictures, world=world, workers=workers)
    held_out = rendered_scenes(cache, "validation", 200, world=world, workers=workers)
    run = runs / profile / "decoder"
    model = refine_decoder(run, seen, held_out[:32], model, latents, steps=steps, seed=seed, device=where).to(
        "cpu"
    )
    save_model(model, target, run, measure(model, held_out, world)[0], seed, before)
    for pipeline in ("edge", "cloud"):
        copy = target.parent / pipeline / "vae"
        if copy.is_dir():
            shutil.copy(target / WEIGHTS, copy / WEIGHTS)
