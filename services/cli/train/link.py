"""`dekag train latents|codec|cala`: the codec, its adapters, and what they are trained on."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dekag.api.limits import MAX_PIXELS, PIXEL_STEP
from dekag.documents import read_json
from dekag.errors import FileError, InvalidInputError, MismatchError
from dekag.files import check_folder, read_lines
from services.cli.options import (
    DATA,
    FILES,
    HARDWARE,
    BaseCodec,
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
    Steps,
    Threads,
    TrainingSeed,
    Vae,
    World,
)
from services.cli.train.common import (
    MODELS,
    RUNS,
    SCENES,
    earlier_record,
    errors_of,
    model_folder,
    placement_of,
    refuse_options,
    save_model,
    target_folder,
    use_threads,
    world_of,
)

LATENTS = 2000
CROP = 16
HELD_OUT = 1000
FOLD = 4
HELD_OUT_EVERY = 6

Drawn = Annotated[
    Path | None,
    typer.Option(
        help="Latent set that the profile's edge generated (`dekag train latents --prompts`): half of each "
        "batch is from it. Not with --latents.",
        rich_help_panel=DATA,
    ),
]


def _rendered(
    profile: str,
    pictures: int,
    runs: Path,
    vae: Path | None,
    workers: int,
    drawn: Path | None,
    prompts: bool,
    *,
    placed: Any,
) -> tuple[Any, list[Any], Any]:
    """The profile's autoencoder, the sets of examples to train on, and the examples to measure on."""
    import torch
    from diffusers import AutoencoderKL

    from dekag.generation.side_information import SideInformation
    from dekag.profile import load_profile
    from dekag.training.examples import rendered_examples
    from dekag.training.latent_sets import LatentSet

    world, edge = world_of(profile), model_folder(None, profile, "edge")
    known = SideInformation.from_folder(edge) if prompts else None
    model = AutoencoderKL.from_pretrained(model_folder(vae, profile, "vae"), dtype=torch.float32).eval()
    model = model.to(placed.device)
    rendered = rendered_examples(
        runs / "cache", model, pictures, world=world, side_information=known, workers=workers
    )
    # the last thousand latents are kept out of training to measure on
    training, held_out = [rendered.rows(slice(-HELD_OUT))], rendered.rows(slice(-HELD_OUT, None))
    if drawn is not None:
        with errors_of("--drawn"):
            data = LatentSet.load(drawn)
            data.check_autoencoder(load_profile(profile).edge)
        more, held_out = data.examples(known)  # to measure on, rather what the edge sends
        training.append(more)
    return model, training, held_out


WITH_LATENTS = "cannot be used with --latents: images are neither rendered nor encoded"
WITHOUT_LATENTS = "requires --latents"


def latents(
    profile: Profile,
    out: OutOfLatents,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="File with one prompt per line, for the profile's edge to generate. Alternatives in braces "
            "are drawn: a {red|blue} car. Blank lines and comments (# ...) are skipped. Default: captions "
            "of the profile's own world, if it has one.",
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
    device: Device = None,
) -> None:
    """Make latents of a profile's own autoencoder, to train a codec and its adapters on.

    Its edge generates them from prompts, or its autoencoder encodes pictures. One in 24, at least 16, is held
    out of training.
    """
    use_threads(threads)
    from dekag.profile import load_profile
    from dekag.training.latent_sets import latents_of_pictures, latents_of_prompts
    from dekag.training.worlds import WORLDS

    captioned = prompts is None and pictures is None and profile in WORLDS
    if (prompts is None) == (pictures is None) and not captioned:
        raise typer.BadParameter("give either --prompts or --pictures", param_hint="--prompts")
    if size is not None and (size % PIXEL_STEP or size > MAX_PIXELS):
        raise typer.BadParameter(
            f"must be a multiple of {PIXEL_STEP} up to {MAX_PIXELS}; got {size}", param_hint="--size"
        )
    placed = placement_of(device)
    with errors_of("--profile"):
        models = load_profile(profile)
    more: dict[str, Any] = {"size": size, "seed": seed, "batch": batch, "placed": placed}
    if pictures is not None:
        with errors_of("--pictures"):
            latents_of_pictures(out, models, pictures, count=count, **more)
    else:
        with errors_of("--prompts"):
            if prompts is None:
                lines = WORLDS[profile].edge_captions(count or LATENTS, seed)
            else:
                lines = [line for _, line in read_lines(prompts, max_bytes=2**26)]
            latents_of_prompts(out, models, lines, count=count or LATENTS, **more)
    typer.echo(f"latents -> {out}")
    typer.echo(f"Train on them with `dekag train codec --profile {profile} --latents {out}`, then `cala`.")


def _own_latents(folder: Path, profile: str) -> tuple[Any, Any]:
    """The latent set in a folder, and the profile whose autoencoder it is of."""
    from dekag.profile import load_profile
    from dekag.training.latent_sets import LatentSet

    with errors_of("--profile"):
        models = load_profile(profile)
    with errors_of("--latents"):
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


def _crop(crop: int | None, fold: int) -> int:
    if crop is not None and crop % fold:
        raise typer.BadParameter(
            f"must be a multiple of {fold}, the codec's fold; got {crop}", param_hint="--crop"
        )
    return crop or CROP


def _side_information(models: Any) -> Any:
    from dekag.generation.side_information import SideInformation

    return SideInformation.load(models.edge)


def codec(
    context: typer.Context,
    steps: Steps = 6000,
    seed: TrainingSeed = 1,
    profile: World = "stickers",
    pictures: Images = SCENES,
    drawn: Drawn = None,
    latents: Latents = None,
    crop: Crop = None,
    width: Annotated[int, typer.Option(min=2, help="Channels of the codec's hidden layers; even.")] = 160,
    blocks: Annotated[
        int, typer.Option(min=0, help="Residual blocks in the encoder and in the decoder.")
    ] = 4,
    every_rate: Annotated[
        bool,
        typer.Option(
            "--every-rate/--one-rate",
            help="Train at every rate and with the prompt: the codec that adapters adapt. Or at the highest "
            "rate and without: the codec of unaligned deliveries.",
        ),
    ] = True,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a codec to go on from, for --steps more. It keeps its size. Default: random "
            "weights.",
            rich_help_panel=FILES,
        ),
    ] = None,
    threads: Threads = 1,
    workers: Renderers = 2,
    bf16: Bf16 = False,
    runs: Runs = RUNS,
    vae: Vae = None,
    out: Out = None,
) -> None:
    """Train a codec on a clean channel: the one that adapters adapt, or that of unaligned deliveries."""
    use_threads(threads)
    from dekag.codec import JsccCodec
    from dekag.codec.jscc import with_text
    from dekag.generation.loading import folder_hash
    from dekag.training.codec import clean_latent_snr_db, train_codec
    from dekag.training.examples import examples_hash

    if width % 2:
        raise typer.BadParameter(f"must be even; got {width}", param_hint="--width")
    settings: dict[str, Any] = {"every_rate": every_rate}
    if start is None:
        settings |= {"width": width, "blocks": blocks}
    else:
        refuse_options(context, "cannot be used with --start: its size stays", "width", "blocks")
        with errors_of("--start"):
            _check_codec(start)
        before, settings["start"] = JsccCodec.load(start), folder_hash(start)
    more: dict[str, Any] = {}
    name = "codec" if every_rate else "codec-one-rate"
    if latents is None:
        refuse_options(context, WITHOUT_LATENTS, "crop")
        target = target_folder(out, profile, name)
        _, training, held_out = _rendered(
            profile, pictures, runs, vae, workers, drawn, every_rate, placed=placement_of(None)
        )
        # another one for each start: not to go on with a training that started elsewhere
        run = runs / profile / (name if start is None else f"{name}-{settings['start'][:12]}")
    else:
        refuse_options(context, WITH_LATENTS, "pictures", "workers", "vae", "drawn")
        settings["crop"] = _crop(crop, FOLD)
        models, own = _own_latents(latents, profile)
        if start is not None:
            with errors_of("--start"):
                _check_codec(start, own.info.latent_shape[0])
        target = _own_target(out, profile, models.codec if every_rate else models.unaligned_codec or name)
        run = _own_run(runs, profile, name, own, seed=seed, **settings)
        first, held_out = own.examples(_side_information(models) if every_rate else None)
        training = [first]
        more = {"vae_hash": own.info.vae_hash, "size": own.info.size}
    text_width = training[0].text_width if every_rate else 0
    if start is None:
        settings |= {"text_width": text_width, "fold": FOLD, "interleaved": True, "adaptive_modulation": True}
    else:
        settings["start"] = with_text(before, text_width) if text_width else before
    model = train_codec(run, training, steps=steps, seed=seed, bf16=bf16, **settings)
    quality = {"held_out_latent_snr_db": clean_latent_snr_db(model, held_out)}
    more["examples_hash"] = examples_hash(training)
    save_model(model, target, run, quality, seed, earlier_record(start), **more)
    if latents is not None and out is None and not every_rate and models.unaligned_codec is None:
        typer.echo(f'To use it in the profile, add "unaligned_codec": "{name}" to its profile.json.')


def pixels(
    photographs: Annotated[
        Path,
        typer.Option(
            help="Folder of photographs to learn from; every sixth is kept out of training to measure on.",
            rich_help_panel=DATA,
        ),
    ],
    steps: Steps = 10_000,
    seed: TrainingSeed = 1,
    profile: World = "stickers",
    pictures: Images = SCENES,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a codec of pixels to go on from, for --steps more. Default: random weights.",
            rich_help_panel=FILES,
        ),
    ] = None,
    threads: Threads = 1,
    workers: Renderers = 2,
    bf16: Bf16 = False,
    runs: Runs = RUNS,
    out: Out = None,
) -> None:
    """Train the codec of pixels over random channels: on photographs, the profile's world and textures."""
    use_threads(threads)
    from dekag.pictures import find_pictures
    from dekag.pixel_codec import PixelCodec
    from dekag.training.data import rendered_scenes
    from dekag.training.pixels import (
        delivered_psnr_db,
        reduced_photographs,
        squares_of,
        textures,
        train_pixels,
    )

    target = target_folder(out, profile, "pixels")
    with errors_of("--photographs"):
        sized = reduced_photographs(find_pictures(photographs))
        if len(sized) < HELD_OUT_EVERY:
            raise InvalidInputError(
                "photographs", f"at least {HELD_OUT_EVERY} that are large enough", len(sized)
            )
    held_out = [each[0] for each in sized[::HELD_OUT_EVERY]]
    training = [one for place, each in enumerate(sized) if place % HELD_OUT_EVERY for one in each]
    scenes = rendered_scenes(runs / "cache", "train", pictures, world=world_of(profile), workers=workers)
    sources = [squares_of(training), squares_of(scenes), textures]
    run = runs / profile / "pixels"
    before = None
    if start is not None:
        before = PixelCodec.load(start)
        run = run.with_name(f"pixels-{before.base_hash[:12]}")  # not to go on with another training
    model = train_pixels(run, sources, steps=steps, seed=seed, bf16=bf16, start=before)
    quality = {
        f"psnr_db_of_photographs_at_1/{round(1 / cbr)}_and_{snr_db:g}_db": delivered_psnr_db(
            model, held_out, cbr, snr_db
        )
        for cbr in (1 / 6, 1 / 24, 1 / 96)
        for snr_db in (0.0, 10.0, 20.0)
    }
    save_model(model, target, run, quality, seed, earlier_record(start))


def cala(
    context: typer.Context,
    steps: Steps = 12000,
    seed: TrainingSeed = 1,
    profile: World = "stickers",
    pictures: Images = SCENES,
    drawn: Drawn = None,
    latents: Latents = None,
    crop: Crop = None,
    prompts: Annotated[
        bool, typer.Option(help="Whether sender and receiver read the prompt.", rich_help_panel=DATA)
    ] = True,
    threads: Threads = 1,
    workers: Renderers = 2,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where images are encoded and decoded: cpu, cuda, cuda:N, mps or auto. Training is on the "
            "CPU. Default: DEKAG_DEVICE, else cpu.",
            rich_help_panel=HARDWARE,
        ),
    ] = None,
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
            "adapters that it names; for another method, PROFILE/METHOD-CODEC/knowledge under --runs, "
            "where CODEC is the start of its codec's hash.",
            rich_help_panel=FILES,
        ),
    ] = None,
) -> None:
    """Train transmission knowledge: CALA, adapters of the base codec, over random rates and channels."""
    use_threads(threads)
    from dekag.codec import JsccCodec
    from dekag.generation.autoencoder import decode
    from dekag.generation.loading import folder_hash
    from dekag.generation.models import LatentDecoder
    from dekag.training.cala import train_knowledge

    placed = placement_of(device)
    if latents is None:
        refuse_options(context, WITHOUT_LATENTS, "crop")
        model, training, held_out = _rendered(
            profile, pictures, runs, vae, workers, drawn, prompts, placed=placed
        )
        base = model_folder(codec, profile, "codec")
        # another one for each codec: adapters of one must not go on as those of another
        run = runs / profile / f"{method}-{folder_hash(base)[:12]}"
        folder = (
            (MODELS / profile / "cala" if method == "cala" else run / "knowledge") if out is None else out
        )
        of_autoencoder, more = lambda batch: decode(model, batch), {}
    else:
        refuse_options(context, WITH_LATENTS, "pictures", "workers", "vae", "drawn")
        models, own = _own_latents(latents, profile)
        if own.info.size != models.size:
            raise typer.BadParameter(
                f"holds latents of {own.info.size}-pixel images; the table for rate control is measured on "
                f"images of the profile's size, {models.size} pixels",
                param_hint="--latents",
            )
        base = _own_codec(codec, models, own)
        side = _crop(crop, int(read_json(base / "config.json").get("fold", 2)))
        if calibrate_on > own.info.held_out:
            raise typer.BadParameter(
                f"must be at most {own.info.held_out}, the latents held out in {latents}; got {calibrate_on}",
                param_hint="--calibrate-on",
            )
        changing = {
            "seed": seed,
            "crop": side,
            "prompts": prompts,
            "share": share,
            "bf16": bf16,
            "codec": folder_hash(base),
        }
        run = _own_run(runs, profile, method, own, **changing)
        named = models.adapters or "adapters"
        folder = run / "knowledge" if out is None and method != "cala" else _own_target(out, profile, named)
        first, held_out = own.examples(_side_information(models) if prompts else None)
        training = [first]
        of_autoencoder = LatentDecoder.load(models.edge, placed).images
        more = {"crop": side, "vae_hash": own.info.vae_hash}
    knowledge = train_knowledge(
        run,
        JsccCodec.load(base),
        folder_hash(base),
        of_autoencoder,
        training,
        held_out.rows(slice(calibrate_on)),
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


def restoration(
    latents: Annotated[
        Path,
        typer.Option(
            help="Latent set that the profile's edge generated (`dekag train latents --prompts`).",
            rich_help_panel=DATA,
        ),
    ],
    count: Annotated[int, typer.Option(min=2, help="Latents to send over each channel.")] = 8,
    seed: TrainingSeed = 1,
    profile: Profile = "stickers",
    adapters: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the transmission knowledge to add the timesteps to. Default: the profile's.",
            rich_help_panel=FILES,
        ),
    ] = None,
    threads: Threads = 1,
) -> None:
    """Measure the denoiser's timesteps for `link.restoration`; adds them to the transmission knowledge."""
    use_threads(threads)
    from dekag.cala.aligned_codec import AlignedCodec
    from dekag.cala.artifact import TransmissionKnowledge
    from dekag.generation.models import Generator
    from dekag.generation.restorer import Restorer
    from dekag.pipeline import SemanticLink
    from dekag.training.restoration import fit_restoration

    models, data = _own_latents(latents, profile)
    folder = models.adapters if adapters is None else adapters
    if folder is None:
        raise typer.BadParameter("is required: the profile names no adapters", param_hint="--adapters")
    if adapters is None:
        _own_target(None, profile, str(folder))
    with errors_of("--adapters"):
        knowledge = TransmissionKnowledge.load(folder)
    prompts = [row.prompt or "" for row in data.info.rows[: -data.info.held_out][:count]]
    if len(prompts) < count or not all(prompts):
        allowed = f"must hold {count} latents of prompts, without those held out"
        raise typer.BadParameter(
            f"{allowed}; {len([each for each in prompts if each])} are", param_hint="--latents"
        )
    edge = Generator.from_profile(models, "edge")
    codec = AlignedCodec.load(models.codec).with_knowledge(knowledge)
    table = fit_restoration(
        SemanticLink(codec, edge), Restorer(edge), data.latents[:count], prompts, seed=seed
    )
    knowledge.with_info(restoration=table.to_json()).save(Path(folder))
    typer.echo(f"{json.dumps(table.to_json())} -> {folder}")


def _own_codec(folder: Path | None, models: Any, data: Any) -> Path:
    """Folder of the codec to adapt: `folder`, else the profile's; checked to fit the latents."""
    base = Path(models.codec) if folder is None else folder
    with errors_of("--codec"):
        _check_codec(base, data.info.latent_shape[0])
    return base


def _check_codec(folder: Path, own: int | None = None) -> None:
    """FileError if there is no codec, MismatchError if it is not for latents of `own` channels."""
    if not (folder / "config.json").is_file():
        raise FileError(folder, "holds no codec: train one with `dekag train codec`")
    channels = read_json(folder / "config.json").get("latent_channels")
    if own is not None and channels != own:
        raise MismatchError(f"{folder} is a codec for latents of {channels} channels; these have {own}")
