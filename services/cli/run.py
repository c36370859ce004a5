"""Commands that start a system or send requests to one: `dekag up`, `demo`, `image`, `distill`."""

from __future__ import annotations

import secrets
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from pydantic import ValidationError

from dekag.api.limits import MAX_STEPS, check_cbr, check_prompt, check_target_psnr_db
from dekag.api.schemas import ImageFormat, Restoration
from dekag.errors import InvalidInputError
from dekag.files import list_folder
from dekag.link.conditions import BUILT_IN_TRACES, Csi, EqualizerKind, Fading, LinkConditions, unread
from dekag.link.registry import MIMO
from dekag.makd.config import RANGES, DistillConfig
from services.cli.extras import UsageError
from services.cli.link import DELIVERIES as LINK_DELIVERIES
from services.cli.options import (
    DEFAULT_TIMEOUT_S,
    DEFAULT_URL,
    Force,
    FreePorts,
    Profile,
    RequestSeed,
    Timeout,
    Url,
    finite,
)

# the link of `demo`, `link` and `image`
Prompt = Annotated[str, typer.Option(help="Text that describes the image.")]
_SNR_DB = "Mean Es/N0 per complex channel use, dB; -20 to 40."
TauRms = Annotated[float, typer.Option(help="RMS delay spread, s; rayleigh, rician, tdl-* and mimo-* only.")]
RicianK = Annotated[
    float, typer.Option(help="Power of the direct path over the scattered ones, dB; rician only.")
]
Speed = Annotated[float, typer.Option(help="Speed of the receiver, m/s; tdl-* only.")]
Trace = Annotated[str | None, typer.Option(help="Name of the trace, such as walk or drive; trace only.")]
Traces = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the traces: files NAME.csv, or SigMF recordings NAME.sigmf-meta; trace only. "
        "Default: the built-in ones."
    ),
]
TraceStart = Annotated[
    float, typer.Option(help="Time in the trace at which each transmission starts, s; trace only.")
]
ReceiverCsi = Annotated[Csi, typer.Option(help="Channel state information at the receiver.")]
Equalizer = Annotated[EqualizerKind, typer.Option(help="Equaliser of the receiver.")]
_FADING = f"Kind of fading: {', '.join(get_args(Fading))}, or the name of a plug-in."


def up(free_ports: FreePorts = False) -> None:
    """Start Redis, the five services and a distiller on this machine; Ctrl-C stops them."""
    from services.launcher.up import run_up

    raise typer.Exit(run_up(free_ports=free_ports))


def demo(
    context: typer.Context,
    prompt: Prompt = "a snail on the beach",
    snr_db: Annotated[float, typer.Option(help=_SNR_DB)] = 5.0,
    fading: Annotated[str, typer.Option(help=_FADING)] = "rayleigh",
    tau_rms_s: TauRms = 1e-6,
    rician_k_db: RicianK = 6.0,
    speed_m_s: Speed = 0.0,
    trace: Trace = None,
    csi: ReceiverCsi = "perfect",
    equalizer: Equalizer = "mmse",
    seed: RequestSeed = 7,
    output: Annotated[str, typer.Option(help="Folder for the images.")] = "demo-out",
) -> None:
    """Send one image with each delivery mode through all services and compare the costs."""
    from services.cli.demo import run_demo

    link = _conditions(
        context,
        snr_db=snr_db,
        fading=fading,
        tau_rms_s=tau_rms_s,
        rician_k_db=rician_k_db,
        speed_m_s=speed_m_s,
        trace=trace,
        csi=csi,
        equalizer=equalizer,
    )
    raise typer.Exit(run_demo(prompt=prompt, link=link, seed=seed, output=output))


def _given(context: typer.Context, name: str) -> bool:
    """Whether an option was given, be it with its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _conditions(context: typer.Context, **values: Any) -> LinkConditions:
    """The conditions that options give; BadParameter names the option that is out of range, or not read."""
    try:
        conditions = LinkConditions(**values)
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}"
        problem = _bounds(str(first["loc"][0]), first["type"])
        said = f"must be {problem}; got {first['input']}" if problem else _in_options(first["msg"])
        raise typer.BadParameter(said, param_hint=option) from None
    for name in values:
        if (allowed := unread(name, conditions.fading)) is not None and _given(context, name):
            raise typer.BadParameter(
                _in_options(f"must be {allowed}"), param_hint=f"--{name.replace('_', '-')}"
            )
    return conditions


def _in_options(said: str) -> str:
    """What is said of fields, said of the options that give them."""
    return said.replace("fading is", "--fading is")


def _bounds(field: str, kind: str) -> str | None:
    """What a condition may be, if this kind of error says only part of it."""
    if kind == "string_pattern_mismatch":  # the name of a trace
        return "1 to 64 lower-case letters, digits and hyphens"
    ends: dict[str, float] = {}
    for bound in LinkConditions.model_fields[field].metadata:
        ends |= {name: getattr(bound, name) for name in ("ge", "le") if hasattr(bound, name)}
    if len(ends) < 2 or kind not in ("greater_than_equal", "less_than_equal", "finite_number"):
        return None
    return f"a number from {ends['ge']:g} to {ends['le']:g}"


def _rate(text: str) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise typer.BadParameter(
            f"must be a number, a fraction such as 1/96, or auto; got {text!r}", param_hint="--cbr"
        ) from None


def image(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="Text that describes the image.", show_default=False)
    ] = None,
    made: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Make an image again from the metadata of its file, instead of a prompt and options; fails "
            "unless models and pixels are the same.",
            dir_okay=False,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of generation, fading and noise. Default: random.", min=0)
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT in pixels, such as 128x128. Default: the profile's size.")
    ] = None,
    snr_db: Annotated[float | None, typer.Option(help=_SNR_DB, callback=finite)] = None,
    cbr: Annotated[
        str | None,
        typer.Option(
            help="Channel bandwidth ratio: a number, a fraction such as 1/96, or auto; at most 1/6."
        ),
    ] = None,
    target_psnr_db: Annotated[
        float | None, typer.Option(help="Target PSNR, dB; requires --cbr auto.", callback=finite)
    ] = None,
    fading: Annotated[
        str | None,
        typer.Option(help=_FADING, autocompletion=lambda: list(get_args(Fading))),
    ] = None,
    delivery: Annotated[
        str | None,
        typer.Option(
            help="Delivery mode: semantic, semantic-unaligned or conventional.",
            autocompletion=lambda: ["semantic", "semantic-unaligned", "conventional"],
        ),
    ] = None,
    knowledge: Annotated[
        list[str] | None,
        typer.Option(
            help="Knowledge updates to use: auto, none, or a topic; can be repeated for up to 4 topics."
        ),
    ] = None,
    on_long_prompt: Annotated[
        str | None,
        typer.Option(
            help="Handling of a prompt that exceeds the model's window: read (in several windows) or refuse.",
            autocompletion=lambda: ["read", "refuse"],
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps. Default: the model's.", min=1, max=MAX_STEPS)
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance. Default: the model's.", callback=finite)
    ] = None,
    negative_prompt: Annotated[
        str | None,
        typer.Option(help="What the image is guided away from; requires --guidance-scale above 1."),
    ] = None,
    adapter_scale: Annotated[
        float | None,
        typer.Option(help="Factor of the adapters of knowledge updates; 0: none.", callback=finite),
    ] = None,
    measure: Annotated[
        bool | None,
        typer.Option(
            "--measure/--no-measure",
            help="Whether to measure the image against the sent one; --no-measure saves computing time "
            "of the server.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write: PNG, or JPEG or WebP if its name ends in .jpg, .jpeg or .webp. Default: a "
            "name from prompt and seed.",
            dir_okay=False,
        ),
    ] = None,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the link report, as JSON.")] = False,
    url: Url = DEFAULT_URL,
    timeout_s: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """Request one image from a running system. Omitted options use the server's defaults.

    The file says how the image was made; `dekag image --from FILE` makes it again.

    The exit status is 2 if a different request would succeed, and 1 if there is no image for another reason.
    """
    from services.cli.image import run_again, run_image

    shared: dict[str, Any] = {
        "url": url,
        "timeout_s": timeout_s,
        "output": output,
        "force": force,
        "as_json": as_json,
    }
    if made is not None:
        kept = {"made", "measure", "output", "force", "as_json", "url", "timeout_s"}
        for name, value in context.params.items():
            if name not in kept and value not in (None, [], ()):
                option = name if name == "prompt" else f"--{name.replace('_', '-')}"
                raise UsageError(f"--from takes the whole request from the file; leave out {option}")
        raise typer.Exit(run_again(made, measure=measure, **shared))
    if prompt is None:
        raise UsageError("Missing argument 'prompt': text that describes the image, or --from FILE")
    link = {
        "snr_db": snr_db,
        "cbr": None if cbr is None else _rate(cbr),
        "target_psnr_db": target_psnr_db,
        "fading": fading,
    }
    request = {
        "prompt": prompt,
        "seed": secrets.randbelow(2**31)
        if seed is None
        else seed,  # here, because it is part of the file name
        "size": size,
        "delivery": delivery,
        "knowledge": knowledge or None,
        "on_long_prompt": on_long_prompt,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "adapter_scale": adapter_scale,
        "measure": measure,
        "link": {name: value for name, value in link.items() if value is not None},
    }
    given = {name: value for name, value in request.items() if value is not None}
    raise typer.Exit(run_image(given, **shared))


def link(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE|FOLDER",
            help="A picture (PNG, JPEG, WebP, AVIF, BMP or PPM), a folder of pictures with its subfolders, "
            "or CIFAR-10 in its binary version.",
        ),
    ],
    snr_db: Annotated[float, typer.Option(help=_SNR_DB)] = 10.0,
    cbr: Annotated[
        str,
        typer.Option(
            help="Channel uses per value of the picture, 3 * width * height: a number, a fraction such as "
            "1/96, or auto. Semantic deliveries only."
        ),
    ] = "1/96",
    target_psnr_db: Annotated[
        float | None,
        typer.Option(
            help="Target PSNR, dB, against what the autoencoder makes of the picture; requires --cbr auto. "
            "Delivery semantic only.",
            callback=finite,
        ),
    ] = None,
    fading: Annotated[str, typer.Option(help=_FADING)] = "rayleigh",
    tau_rms_s: TauRms = 1e-6,
    rician_k_db: RicianK = 6.0,
    speed_m_s: Speed = 0.0,
    trace: Trace = None,
    traces: Traces = None,
    trace_start_s: TraceStart = 0.0,
    csi: ReceiverCsi = "perfect",
    equalizer: Equalizer = "mmse",
    delivery: Annotated[
        list[str] | None,
        typer.Option(
            help="Delivery mode: semantic, semantic-unaligned, pixels or conventional; can be repeated. "
            "Default: semantic and conventional.",
            autocompletion=lambda: list(LINK_DELIVERIES),
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="What all pictures show: side information. Default: the text of each in metadata.jsonl."
        ),
    ] = None,
    restoration: Annotated[
        Restoration, typer.Option(help="Restoration at the receiver; delivery semantic only.")
    ] = "none",
    image_format: Annotated[
        ImageFormat, typer.Option(help="Format of the file; delivery conventional only.")
    ] = "webp",
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of fading and noise of the first picture; each further one has the next.", min=0
        ),
    ] = 0,
    count: Annotated[
        int | None, typer.Option(help="Number of pictures to send. Default: all.", min=1)
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the received pictures and link.jsonl.")] = Path(
        "link-out"
    ),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the results of an earlier run.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print only a line of JSON for each picture and delivery.")
    ] = False,
    profile: Profile = "stickers",
) -> None:
    """Send pictures of your own over the link, in this process: no running system is needed.

    A picture of another size than the profile's images is cut into tiles or padded, never resized. The exit
    status is 1 if a picture could not be sent.
    """
    from services.cli.link import LinkOptions, run_link

    conditions = _conditions(
        context,
        snr_db=snr_db,
        fading=fading,
        tau_rms_s=tau_rms_s,
        rician_k_db=rician_k_db,
        speed_m_s=speed_m_s,
        trace=trace,
        trace_start_s=trace_start_s,
        csi=csi,
        equalizer=equalizer,
    )
    if traces is not None:
        if fading != "trace":
            raise typer.BadParameter("must be left out unless --fading is trace", param_hint="--traces")
        list_folder(traces)
    rate, deliveries = _rate(cbr), list(dict.fromkeys(delivery or ["semantic", "conventional"]))
    if unknown := [name for name in deliveries if name not in LINK_DELIVERIES]:
        problem = f"must be of {', '.join(LINK_DELIVERIES)}; got {', '.join(unknown)}"
        raise typer.BadParameter(problem, param_hint="--delivery")
    if (rate == "auto") != (target_psnr_db is not None):
        problem = "is required with --cbr auto" if rate == "auto" else "requires --cbr auto"
        raise typer.BadParameter(problem, param_hint="--target-psnr-db")
    latent = [name for name in deliveries if name.startswith("semantic")]
    as_file = deliveries == ["conventional"]
    joint = "semantic, semantic-unaligned or pixels"
    for name, unused, needed in (
        ("restoration", "semantic" not in deliveries, "semantic"),
        ("prompt", not latent, "semantic or semantic-unaligned"),
        ("image_format", "conventional" not in deliveries, "conventional"),
        ("cbr", as_file, joint),
        ("equalizer", as_file and fading not in MIMO, joint),
    ):
        if unused and _given(context, name):
            option = f"--{name.replace('_', '-')}"
            raise typer.BadParameter(f"requires --delivery {needed}", param_hint=option)
    for name in ("semantic-unaligned", "pixels"):
        if rate == "auto" and name in deliveries:
            raise typer.BadParameter(f"auto needs the adapters, which {name} lacks", param_hint="--cbr")
    if isinstance(rate, float):
        try:
            check_cbr(rate)
        except InvalidInputError as error:
            raise InvalidInputError("--cbr", error.allowed, cbr) from None
    if target_psnr_db is not None:
        check_target_psnr_db(target_psnr_db)
    if prompt is not None:
        check_prompt(prompt)
    options = LinkOptions(
        deliveries=deliveries,
        conditions=conditions,
        cbr=rate if isinstance(rate, float) else 0.0,
        target_psnr_db=target_psnr_db,
        prompt=prompt,
        seed=seed,
        restoration=restoration,
        image_format=image_format,
        count=count,
        profile=profile,
        traces=traces or BUILT_IN_TRACES,
    )
    raise typer.Exit(run_link(path, options, output=output, force=force, as_json=as_json))


def _setting(name: str, text: str) -> str:
    """Help of a setting of a distillation, with its range and default."""
    low, high = RANGES[name]
    return f"{text}; {low:.0f} to {high:.0f}. Default: {getattr(DistillConfig(), name)}."


def distill(
    topic: Annotated[str, typer.Argument(help="Topic to teach the edge, such as neon.")],
    images: Annotated[
        int | None,
        typer.Option(help=_setting("images", "Number of images that the cloud generates for the training")),
    ] = None,
    rank: Annotated[int | None, typer.Option(help=_setting("rank", "Rank of the LoRA"))] = None,
    tokens: Annotated[
        int | None, typer.Option(help=_setting("tokens", "Number of pseudo-tokens of the metaword"))
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help=_setting("steps", "Upper limit of the optimiser steps of the full form")),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help=_setting("seed", "Seed of the images and of the training"))
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            help="Text file of training prompts, one per line; {red|blue} stands for either word. "
            "Blank lines and lines that start with `# ` are ignored. "
            "Default: those of the topic of that name in the profile, or else in the sticker world."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Publish the update even if its images score lower than before.")
    ] = False,
    url: Url = DEFAULT_URL,
    timeout_s: Timeout = DEFAULT_TIMEOUT_S,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the images. Default: demo-out/TOPIC.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print only the result, as JSON; progress goes to stderr.")
    ] = False,
) -> None:
    """Teach the edge of a running system a topic; shows progress, then images from before and after."""
    from services.cli.distill import read_prompts, run_distill

    config = {"images": images, "rank": rank, "tokens": tokens, "steps": steps, "seed": seed}
    raise typer.Exit(
        run_distill(
            topic,
            prompts=read_prompts(prompts_file) if prompts_file else (),
            config={name: value for name, value in config.items() if value is not None},
            force=force,
            url=url,
            timeout_s=timeout_s,
            output=output or Path("demo-out") / topic,
            as_json=as_json,
        )
    )
