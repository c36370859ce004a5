"""`dekag train ...`: the commands that train the models, each resumable and seeded."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from dekag.api.limits import MAX_PIXELS, PIXEL_STEP
from dekag.documents import read_json
from dekag.errors import DekagError, FileError, MismatchError
from dekag.files import check_folder, read_lines
from dekag.paths import shipped_model
from services.cli.options import (
    DATA,
    FILES,
    HARDWARE,
    BaseCodec,
    Batch,
    Bf16,
    Crop,
    Device,
    Images,
    Latents,
    Out,
    OutOfLatents,
    Profile,
    Renderers,
    Runs,
    Size,
    StartPipeline,
    Steps,
    Threads,
    TrainingSeed,
    Vae,
    World,
    writable_folder,
)

train = typer.Typer(
    help="Train the models. Every command is seeded and resumes after an interruption.", no_args_is_help=True
)

RUNS = Path("runs")
MODELS = Path("models")
SCENES = 24_000
WEIGHTS = "diffusion_pytorch_model.safetensors"
LATENTS = 2000
CROP = 16


def _threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def _device(name: str) -> Any:
    import torch

    if name not in ("cpu", "cuda"):
        raise typer.BadParameter(f"must be cpu or cuda; got {name!r}", param_hint="--device")
    if name == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter(
            "cuda is not available on this machine or in this build of PyTorch", param_hint="--device"
        )
    return torch.device(name)


def _world(profile: str, size: int | None = None) -> Any:
    """The world of a profile, with images of `size` pixels a side if given."""
    from dekag.training.worlds import WORLDS

    if profile not in WORLDS:
        raise typer.BadParameter(
            f"must be one of {', '.join(WORLDS)}; got {profile!r}", param_hint="--profile"
        )
    if size is not None and size % 32:
        raise typer.BadParameter(f"must be a multiple of 32; got {size}", param_hint="--size")
    return WORLDS[profile] if size is None else replace(WORLDS[profile], size=size)


def _model(folder: Path | None, profile: str, name: str) -> Path:
    """Path of a model to read: `folder`, else the profile's; the shipped one if that does not exist."""
    return shipped_model(folder or MODELS / profile / name)


def _target(folder: Path | None, profile: str, name: str) -> Path:
    """Folder to write a model to: `folder`, else the profile's; checked before the training."""
    target = folder or MODELS / profile / name
    check_folder(target)
    return target


def _record(
    runs: Path, quality: dict[str, Any], seed: int, continues: dict[str, Any] | None
) -> dict[str, Any]:
    state = read_json(runs / "state.json")
    record: dict[str, Any] = {
        "command": "dekag " + " ".join(sys.argv[1:]),
        "seed": seed,
        "steps": state["step"],
        "seconds": state["seconds"],
        "quality": quality,
    }
    if continues is not None:
        record["continues"] = continues
    return record


def _save(
    model: Any,
    folder: Path,
    run: Path,
    quality: dict[str, Any],
    seed: int,
    continues: dict[str, Any] | None = None,
    **more: Any,
) -> None:
    """Write `model` as fp16 safetensors, with a training.json beside it.

    Args:
        model: the trained model.
        folder: the folder to write to.
        run: the folder of the checkpoints.
        quality: the measured quality on held-out images.
        seed: the seed of the training.
        continues: the training.json of the model that the training started from.
        more: further entries of training.json.
    """
    import torch

    model.to("cpu", torch.float16)
    model.save_pretrained(folder, safe_serialization=True)
    record = _record(run, quality, seed, continues) | more
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    typer.echo(f"{run.name}: {json.dumps(quality)} -> {folder}")


def _earlier(folder: Path | None) -> dict[str, Any] | None:
    """The training.json of the model that a training starts from, if it has one."""
    path = None if folder is None else folder / "training.json"
    return read_json(path) if path is not None and path.exists() else None


@train.command()
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
    device: Device = "cpu",
    scale: Annotated[int, typer.Option(min=1, help="Multiply the batch size by this factor, for a GPU.")] = 1,
    bf16: Bf16 = False,
    runs: Runs = RUNS,
    out: Out = None,
) -> None:
    """Train the autoencoder that cloud, edge and user share."""
    _threads(threads)
    import torch
    from diffusers import AutoencoderKL

    from dekag.training.data import rendered_scenes
    from dekag.training.vae import normalise_latents, refine_vae, train_vae
    from dekag.training.vae_quality import measure

    world, where, target = _world(profile, size), _device(device), _target(out, profile, "vae")
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
    earlier = _record(first, {}, seed, _earlier(start))
    _save(model, target, second, quality, seed, earlier)


@train.command("vae-quality")
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
    """Measure an autoencoder on held-out images: PSNR, SSIM, encoding and decoding time.

    Without --vae and --size, writes training/vae-PROFILE.json into --results; `dekag results book` shows it
    in docs/training.md.
    """
    _threads(threads)
    import torch
    from diffusers import AutoencoderKL

    from dekag.training.data import rendered_scenes
    from dekag.training.vae_quality import measure, save_strip

    world, folder = _world(profile, size), _model(vae, profile, "vae")
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


@train.command()
def decoder(
    steps: Steps = 6000,
    seed: TrainingSeed = 1,
    profile: World = "stickers",
    pictures: Images = 6000,
    threads: Threads = 1,
    workers: Renderers = 2,
    device: Device = "cpu",
    runs: Runs = RUNS,
    vae: Vae = None,
    out: Out = None,
) -> None:
    """Refine the autoencoder's decoder on whole images. Latents do not change."""
    _threads(threads)
    import torch
    from diffusers import AutoencoderKL

    from dekag.training.data import rendered_scenes
    from dekag.training.latents import encoded_scenes
    from dekag.training.vae import refine_decoder
    from dekag.training.vae_quality import measure

    world, where, source = _world(profile), _device(device), _model(vae, profile, "vae")
    target = _target(out, profile, "vae")
    before = _earlier(source)
    model = AutoencoderKL.from_pretrained(source, dtype=torch.float32)
    cache = runs / "cache"
    latents = encoded_scenes(cache, model, pictures, world=world, workers=workers, device=where)
    seen = rendered_scenes(cache, "train", pictures, world=world, workers=workers)
    held_out = rendered_scenes(cache, "validation", 200, world=world, workers=workers)
    run = runs / profile / "decoder"
    model = refine_decoder(run, seen, held_out[:32], model, latents, steps=steps, seed=seed, device=where).to(
        "cpu"
    )
    _save(model, target, run, measure(model, held_out, world)[0], seed, before)
    for pipeline in ("edge", "cloud"):
        copy = target.parent / pipeline / "vae"
        if copy.is_dir():
            shutil.copy(target / WEIGHTS, copy / WEIGHTS)


@train.command()
def probe(
    steps: Steps = 2000,
    seed: TrainingSeed = 1,
    profile: World = "stickers",
    size: Size = None,
    pictures: Images = SCENES,
    threads: Threads = 1,
    workers: Renderers = 2,
    device: Device = "cpu",
    bf16: Bf16 = False,
    runs: Runs = RUNS,
    out: Out = None,
) -> None:
    """Train the attribute probe, which evaluates the generators."""
    _threads(threads)
    from dekag.training.data import reduced_scenes, rendered_scenes
    from dekag.training.probe import rendered_accuracy, seen_side, train_probe

    world, where, target = _world(profile, size), _device(device), _target(out, profile, "probe")
    run, cache, side = runs / profile / "probe", runs / "cache", seen_side(world)
    seen = reduced_scenes(cache, "train", pictures, side=side, world=world, workers=workers)
    held_out = rendered_scenes(cache, "validation", 500, world=world, workers=workers)
    model = train_probe(run, seen, world, steps=steps, seed=seed, device=where, bf16=bf16)
    _save(model, target, run, rendered_accuracy(model, held_out, world), seed)


@train.command()
def outline(
    steps: Steps = 2000,
    seed: TrainingSeed = 1,
    profile: World = "stickers",
    size: Size = None,
    pictures: Images = SCENES,
    threads: Threads = 1,
    workers: Renderers = 2,
    device: Device = "cpu",
    bf16: Bf16 = False,
    runs: Runs = RUNS,
    out: Out = None,
) -> None:
    """Train the outline probe, which evaluates shapes and saturates later than the attribute probe."""
    _threads(threads)
    from dekag.training.data import rendered_masks, rendered_scenes
    from dekag.training.probe import outline_quality, train_outline_judge

    world, where, target = _world(profile, size), _device(device), _target(out, profile, "outline")
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
    _save(model, target, run, outline_quality(model, held_out, masks), seed)


@train.command()
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
    device: Device = "cpu",
    bf16: Bf16 = False,
    runs: Runs = RUNS,
    out: Out = None,
) -> None:
    """Train the metric encoders: CLIP and a DINOv2-style ViT."""
    _threads(threads)
    from dekag.training.data import rendered_scenes
    from dekag.training.encoders import clip_quality, dino_quality, train_clip, train_dino

    world, where, cache = _world(profile, size), _device(device), runs / "cache"
    folder = out or MODELS / profile
    check_folder(folder)
    seen = rendered_scenes(cache, "train", pictures, world=world, workers=workers)
    held_out = rendered_scenes(cache, "validation", 500, world=world, workers=workers)
    settings: dict[str, Any] = {"seed": seed, "device": where, "bf16": bf16}
    run = runs / profile / "clip"
    clip, tokenizer = train_clip(run, seen, world, steps=steps, **settings)
    tokenizer.save_pretrained(folder / "clip")
    _save(clip, folder / "clip", run, clip_quality(clip, tokenizer, held_out[:200], world), seed)
    run = runs / profile / "dino"
    dino = train_dino(run, seen, world, steps=dino_steps, **settings)
    _save(dino, folder / "dino", run, dino_quality(dino, held_out, world), seed)


DistilGuidance = Annotated[
    float | None,
    typer.Option(
        "--distil-guidance",
        min=1,
        help="Distil this guidance scale into the pipeline given by --start, which then needs no guidance: "
        "one denoiser row per step instead of two.",
    ),
]


@train.command()
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
    device: Device = "cpu",
    bf16: Bf16 = False,
    runs: Runs = RUNS,
    vae: Vae = None,
    out: Out = None,
) -> None:
    """Train the edge generator, without the topics."""
    _generator("edge", **locals())


@train.command()
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
    device: Device = "cpu",
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
    device: str,
    bf16: bool,
    runs: Path,
    vae: Path | None,
    out: Path | None,
) -> None:
    """Train a generator, measure it with the attribute probe if there is one, and write it."""
    _threads(threads)
    from dekag.training.diffusion import probe_accuracy, train_generator

    world, where = _world(profile, size), _device(device)
    role = kind.removesuffix("-unet")
    if size is not None and size != _world(profile).size and out is None:
        raise typer.BadParameter(
            "requires --out: the profile's own models generate another size", param_hint="--size"
        )
    target = _target(out, profile, role)
    if distil is not None and start is None:
        raise typer.BadParameter(
            "requires --start, the pipeline to distil into", param_hint="--distil-guidance"
        )
    run = runs / profile / "-".join([role, *(["guided"] if distil else []), *([str(size)] if size else [])])
    pipeline = train_generator(
        kind,
        run,
        runs / "cache",
        _model(vae, profile, "vae"),
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
    judge = _model(None, profile, "probe")
    quality: dict[str, Any] = {}
    if judge.is_dir():
        guidance = 3.0 if distil is None else 1.0
        quality = probe_accuracy(pipeline, judge, world, cloud=role == "cloud", guidance_scale=guidance)
    _save(pipeline, target, run, quality, seed, _earlier(start))


def _latents(profile: str, pictures: int, runs: Path, vae: Path | None, workers: int) -> tuple[Any, Any]:
    """The profile's autoencoder, and the latents of the training images."""
    import torch
    from diffusers import AutoencoderKL

    from dekag.training.latents import encoded_scenes

    model = AutoencoderKL.from_pretrained(_model(vae, profile, "vae"), dtype=torch.float32).eval()
    return model, encoded_scenes(runs / "cache", model, pictures, world=_world(profile), workers=workers)


@contextlib.contextmanager
def _errors_of(option: str) -> Iterator[None]:
    """Errors of the library name the option that they come from."""
    try:
        yield
    except DekagError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _refuse(context: typer.Context, why: str, *options: str) -> None:
    """Refuses options that would have no effect, if they are given."""
    for name in options:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(why, param_hint="--" + name.replace("_", "-"))


WITH_LATENTS = "cannot be used with --latents: images are neither rendered nor encoded"
WITHOUT_LATENTS = "requires --latents"


@train.command()
def latents(
    profile: Profile,
    out: OutOfLatents,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="File with one prompt per line, for the profile's edge to generate. Alternatives in braces "
            "are drawn: a {red|blue} boat. Blank lines and comments (# ...) are skipped.",
            rich_help_panel=DATA,
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="Folder of PNG, JPEG and WebP pictures to encode; each is cropped to its central square and "
            "reduced or enlarged.",
            rich_help_panel=DATA,
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            min=32,
            help=f"Number of latents. Default: {LATENTS} of prompts, all of pictures.",
            rich_help_panel=DATA,
        ),
    ] = None,
    size: Size = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the draw of prompts and images, or of the pictures' order.")
    ] = 1,
    batch: Annotated[
        int, typer.Option(min=1, max=16, help="Latents at once; more than one is faster on a GPU.")
    ] = 1,
    threads: Threads = 1,
    device: Device = "cpu",
) -> None:
    """Make latents of a profile's own autoencoder, to train a codec and its adapters on.

    Its edge generates them from prompts, or its autoencoder encodes pictures. One in 24, at least 16, is held
    out of training.
    """
    _threads(threads)
    from dekag.generation.placement import Placement
    from dekag.profile import load_profile
    from dekag.training.latent_sets import latents_of_pictures, latents_of_prompts

    if (prompts is None) == (pictures is None):
        raise typer.BadParameter("give either --prompts or --pictures", param_hint="--prompts")
    if size is not None and (size % PIXEL_STEP or size > MAX_PIXELS):
        raise typer.BadParameter(
            f"must be a multiple of {PIXEL_STEP} up to {MAX_PIXELS}; got {size}", param_hint="--size"
        )
    where = _device(device)
    with _errors_of("--profile"):
        models = load_profile(profile)
    more: dict[str, Any] = {
        "size": size, "seed": seed, "batch": batch, "placed": Placement(where, where)
    }  # fmt: skip
    if pictures is not None:
        with _errors_of("--pictures"):
            latents_of_pictures(out, models, pictures, count=count, **more)
    elif prompts is not None:
        with _errors_of("--prompts"):
            lines = [line for _, line in read_lines(prompts, max_bytes=2**26)]
            latents_of_prompts(out, models, lines, count=count or LATENTS, **more)
    typer.echo(f"latents -> {out}")
    typer.echo(f"Train on them with `dekag train codec --profile {profile} --latents {out}`, then `cala`.")


def _own_latents(folder: Path, profile: str) -> tuple[Any, Any]:
    """The latent set in a folder, and the profile whose autoencoder it is of."""
    from dekag.profile import load_profile
    from dekag.training.latent_sets import LatentSet

    with _errors_of("--profile"):
        models = load_profile(profile)
    with _errors_of("--latents"):
        data = LatentSet.load(folder)
        data.check_autoencoder(models.edge)
    return models, data


def _own_target(out: Path | None, profile: str, named: str) -> Path:
    """Folder to write a model of any profile to: `out`, else the one that its profile.json names."""
    from dekag.profile import profile_folder

    home = profile_folder(profile)
    target = out or home / named
    if out is None and home.resolve() not in target.resolve().parents:
        raise typer.BadParameter(
            f"is required: the profile names {named}, which is not in its folder", param_hint="--out"
        )
    check_folder(target)
    return target


def _own_run(runs: Path, profile: str, model: str, data: Any, **settings: Any) -> Path:
    """Folder of the checkpoints: another one for other latents or settings, which must not be continued."""
    from dekag.profile import profile_folder

    described = json.dumps([data.info.model_dump(mode="json"), settings], sort_keys=True)
    digest = hashlib.sha256(described.encode()).hexdigest()
    return runs / profile_folder(profile).resolve().name / f"{model}-{digest[:12]}"


def _even_crop(crop: int | None) -> int:
    if crop is not None and crop % 2:
        raise typer.BadParameter(f"must be even; got {crop}", param_hint="--crop")
    return crop or CROP


@train.command()
def codec(
    context: typer.Context,
    steps: Steps = 1500,
    seed: TrainingSeed = 1,
    profile: World = "embedded",
    pictures: Images = SCENES,
    latents: Latents = None,
    crop: Crop = None,
    width: Annotated[
        int, typer.Option(min=1, help="With --latents: channels of the codec's hidden layers.")
    ] = 64,
    blocks: Annotated[
        int, typer.Option(min=0, help="With --latents: residual blocks in the encoder and in the decoder.")
    ] = 3,
    threads: Threads = 1,
    workers: Renderers = 2,
    runs: Runs = RUNS,
    vae: Vae = None,
    out: Out = None,
) -> None:
    """Train the base codec, on a clean channel at the highest rate."""
    _threads(threads)
    from dekag.training.codec import clean_latent_snr_db, train_codec

    if latents is None:
        _refuse(context, WITHOUT_LATENTS, "crop", "width", "blocks")
        target = _target(out, profile, "codec")
        _, data = _latents(profile, pictures, runs, vae, workers)
        run = runs / profile / "codec"
        # the last thousand latents are kept out of training to measure on
        training, held_out = data[:-1000], data[-1000:]
        settings, more = {}, {}
    else:
        _refuse(context, WITH_LATENTS, "pictures", "workers", "vae")
        settings = {"crop": _even_crop(crop), "width": width, "blocks": blocks}
        models, own = _own_latents(latents, profile)
        target = _own_target(out, profile, models.codec)
        run = _own_run(runs, profile, "codec", own, seed=seed, **settings)
        training, held_out = own.training, own.held_out
        more = {"vae_hash": own.info.vae_hash, "size": own.info.size}
    model = train_codec(run, training, steps=steps, seed=seed, **settings)
    quality = {"held_out_latent_snr_db": clean_latent_snr_db(model, held_out)}
    _save(model, target, run, quality, seed, **more)


@train.command()
def cala(
    context: typer.Context,
    steps: Steps = 12000,
    seed: TrainingSeed = 1,
    profile: World = "embedded",
    pictures: Images = SCENES,
    latents: Latents = None,
    crop: Crop = None,
    threads: Threads = 1,
    workers: Renderers = 2,
    device: Annotated[
        str,
        typer.Option(
            help="With --latents: where images are decoded, cpu or cuda. Training is on the CPU.",
            rich_help_panel=HARDWARE,
        ),
    ] = "cpu",
    share: Annotated[
        float,
        typer.Option(
            min=0.005, max=1, help="Upper limit of the adapters' size, as a fraction of the codec's."
        ),
    ] = 0.05,
    method: Annotated[
        str, typer.Option(help="Adapter method: cala, one of its baselines, or the name of a plug-in.")
    ] = "cala",
    bf16: Bf16 = False,
    calibrate_on: Annotated[
        int, typer.Option(min=2, help="Number of held-out latents that measure the table for rate control.")
    ] = 16,
    runs: Runs = RUNS,
    codec: BaseCodec = None,
    vae: Vae = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the adapters. Default: cala in the profile's folder, or with --latents the "
            "adapters that it names; for another method, PROFILE/METHOD/knowledge under --runs.",
            rich_help_panel=FILES,
        ),
    ] = None,
) -> None:
    """Train transmission knowledge: CALA, adapters of the base codec, over random rates and channels."""
    _threads(threads)
    from dekag.codec import JsccCodec
    from dekag.generation.autoencoder import decode
    from dekag.generation.loading import folder_hash
    from dekag.generation.models import LatentDecoder
    from dekag.generation.placement import Placement
    from dekag.training.cala import train_knowledge

    if latents is None:
        _refuse(context, WITHOUT_LATENTS, "crop", "device")
        model, data = _latents(profile, pictures, runs, vae, workers)
        training, held_out = data[:-1000], data[-1000:]
        base = _model(codec, profile, "codec")
        run = runs / profile / method
        folder = (
            (MODELS / profile / "cala" if method == "cala" else run / "knowledge") if out is None else out
        )
        of_autoencoder, more = lambda batch: decode(model, batch), {}
    else:
        _refuse(context, WITH_LATENTS, "pictures", "workers", "vae")
        side, where = _even_crop(crop), _device(device)
        models, own = _own_latents(latents, profile)
        if own.info.size != models.size:
            raise typer.BadParameter(
                f"holds latents of {own.info.size}-pixel images; the table for rate control is measured on "
                f"images of the profile's size, {models.size} pixels",
                param_hint="--latents",
            )
        base = _own_codec(codec, models, own)
        if calibrate_on > own.info.held_out:
            raise typer.BadParameter(
                f"must be at most {own.info.held_out}, the latents held out in {latents}; got {calibrate_on}",
                param_hint="--calibrate-on",
            )
        changing = {"seed": seed, "crop": side, "share": share, "bf16": bf16, "codec": folder_hash(base)}
        run = _own_run(runs, profile, method, own, **changing)
        named = models.adapters or "adapters"
        folder = run / "knowledge" if out is None and method != "cala" else _own_target(out, profile, named)
        training, held_out = own.training, own.held_out
        of_autoencoder = LatentDecoder.load(models.edge, Placement(where, where)).images
        more = {"crop": side, "vae_hash": own.info.vae_hash}
    knowledge = train_knowledge(
        run,
        JsccCodec.load(base),
        folder_hash(base),
        of_autoencoder,
        training,
        held_out[:calibrate_on],
        steps=steps,
        seed=seed,
        parameter_fraction=share,
        method=method,
        bf16=bf16,
        command="dekag " + " ".join(sys.argv[1:]),
        **more,
    )
    knowledge.save(folder)
    typer.echo(f"{method}: {json.dumps(knowledge.info['scores'])} -> {folder}")
    if latents is not None and out is None and method == "cala" and models.adapters is None:
        typer.echo(f'To use it in the profile, add "adapters": "{named}" to its profile.json.')
    typer.echo(f"To use it in a running system: `dekag publish {folder}`.")


def _own_codec(folder: Path | None, models: Any, data: Any) -> Path:
    """Folder of the codec to adapt: `folder`, else the profile's; checked to fit the latents."""
    base = Path(models.codec) if folder is None else folder
    with _errors_of("--codec"):
        if not (base / "config.json").is_file():
            raise FileError(base, "holds no codec: train one with `dekag train codec`")
        channels, own = read_json(base / "config.json").get("latent_channels"), data.info.latent_shape[0]
        if channels != own:
            raise MismatchError(f"{base} is a codec for latents of {channels} channels; these have {own}")
    return base


@train.command()
def knowledge(
    topic: Annotated[
        list[str] | None, typer.Option(help="Topic to train; can be repeated. Default: all topics.")
    ] = None,
    seed: TrainingSeed = 0,
    threads: Threads = 1,
    profile: Profile = "embedded",
    runs: Runs = RUNS,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the updates. Default: knowledge in the profile's folder.",
            callback=writable_folder,
            rich_help_panel=FILES,
        ),
    ] = None,
) -> None:
    """Distil knowledge updates of a profile's topics, or of the world's (MAKD), without a running system."""
    _threads(threads)
    from tqdm import tqdm

    from dekag.generation.models import Generator
    from dekag.makd.config import DistillConfig
    from dekag.makd.topics import read_topics, topic_prompts
    from dekag.metrics.features import ImageScorer
    from dekag.profile import load_profile, profile_folder
    from dekag.training.distill import Progress, distill
    from dekag.world import TOPICS

    models = load_profile(profile)
    own = read_topics(models.topics)
    known = [*own, *(name for name in TOPICS if name not in own)]
    if unknown := set(topic or ()) - set(known):
        raise typer.BadParameter(
            f"must be one of {', '.join(known)}; got {', '.join(unknown)}", param_hint="--topic"
        )
    config = DistillConfig(**{**models.distill.given(), "seed": seed})
    folder = out or profile_folder(profile) / "knowledge"
    cloud, edge = Generator.from_profile(models, "cloud"), Generator.from_profile(models, "edge")
    scorer = None if models.scorer is None else ImageScorer.load(models.scorer.clip, models.scorer.dino)
    for name in topic or own or TOPICS:
        prompts = topic_prompts(name, topics=own, count=config.images, held_out=config.held_out, seed=seed)
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
        update.save(folder / name)
        typer.echo(f"{name}: {json.dumps(update.info['scores'])} -> {folder / name}")
    typer.echo(f"To use them in a running system: `dekag publish {folder}/TOPIC`.")


@train.command()
def golden(profile: Profile = "embedded") -> None:
    """Write the models' golden values, with which `dekag doctor` verifies other machines."""
    from dekag.golden import FILE, write
    from dekag.profile import load_profile, profile_folder

    folder = profile_folder(profile)
    typer.echo(f"{write(load_profile(profile), folder)} models -> {folder / FILE}")
