"""Commands that start a system or ask one: `dekag up`, `demo`, `image`, `distill`."""

from __future__ import annotations

import math
import secrets
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer
from pydantic import ValidationError

from dekag.link.conditions import Csi, EqualizerKind, Fading, LinkConditions

FreePorts = Annotated[bool, typer.Option("--free-ports", help="Take free ports instead of the default ones.")]
Url = Annotated[str, typer.Option(help="Where the system runs.")]
DEFAULT_URL = "http://127.0.0.1:8080"


def up(free_ports: FreePorts = False) -> None:
    """Start Redis, the five services and a distiller on this machine until Ctrl-C."""
    from services.launcher.up import run_up

    raise typer.Exit(run_up(free_ports=free_ports))


def demo(
    prompt: Annotated[str, typer.Option(help="What to draw.")] = "a red boat on the beach, pastel style",
    snr_db: Annotated[float, typer.Option(help="Mean Es/N0 per complex channel use, dB.")] = 10.0,
    fading: Annotated[str, typer.Option(help="Kind of fading; a plug-in's name, too.")] = "rayleigh",
    tau_rms_s: Annotated[float, typer.Option(help="RMS delay spread, s.")] = 1e-6,
    rician_k_db: Annotated[float, typer.Option(help="Rician: direct over scattered power, dB.")] = 6.0,
    speed_m_s: Annotated[float, typer.Option(help="TDL: speed of the receiver, m/s.")] = 0.0,
    trace: Annotated[str | None, typer.Option(help="Trace: its name, such as walk or drive.")] = None,
    csi: Annotated[Csi, typer.Option(help="What the receiver knows of the gains.")] = "perfect",
    equalizer: Annotated[EqualizerKind, typer.Option(help="How the receiver equalises.")] = "mmse",
    seed: Annotated[int, typer.Option(help="Seeds generation, fading and noise.", min=0)] = 7,
    output: Annotated[str, typer.Option(help="Folder for the pictures.")] = "demo-out",
) -> None:
    """Ask the whole chain for one image per delivery mode and compare what each one cost."""
    from services.cli.demo import run_demo

    try:
        link = LinkConditions(
            snr_db=snr_db,
            fading=fading,
            tau_rms_s=tau_rms_s,
            rician_k_db=rician_k_db,
            speed_m_s=speed_m_s,
            trace=trace,
            csi=csi,
            equalizer=equalizer,
        )
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}"
        raise typer.BadParameter(first["msg"], param_hint=option) from None
    raise typer.Exit(run_demo(prompt=prompt, link=link, seed=seed, output=output))


def _rate(text: str) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is no number, fraction such as 1/96, or auto", param_hint="--cbr"
        ) from None


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):  # which JSON cannot say
        raise typer.BadParameter(f"{value} is no finite number")
    return value


def image(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    seed: Annotated[
        int | None, typer.Option(help="Seeds generation, fading and noise; drawn if left out.", min=0)
    ] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT, pixels.")] = None,
    snr_db: Annotated[
        float | None, typer.Option(help="Mean Es/N0 per complex channel use, dB.", callback=_finite)
    ] = None,
    cbr: Annotated[
        str | None,
        typer.Option(help="Channel bandwidth ratio: a number, a fraction such as 1/96, or auto."),
    ] = None,
    target_psnr_db: Annotated[
        float | None, typer.Option(help="PSNR to reach, dB; with --cbr auto.", callback=_finite)
    ] = None,
    fading: Annotated[
        str | None,
        typer.Option(
            help="Kind of fading; a plug-in's name, too.", autocompletion=lambda: list(get_args(Fading))
        ),
    ] = None,
    delivery: Annotated[
        str | None,
        typer.Option(
            help="semantic, semantic-unaligned or conventional.",
            autocompletion=lambda: ["semantic", "semantic-unaligned", "conventional"],
        ),
    ] = None,
    knowledge: Annotated[
        list[str] | None, typer.Option(help="auto, none, or a topic; more than once for several topics.")
    ] = None,
    on_long_prompt: Annotated[
        str | None,
        typer.Option(
            help="read or refuse: what becomes of a prompt that the model does not read at once.",
            autocompletion=lambda: ["read", "refuse"],
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Where the PNG goes; a name from prompt and seed if left out.", dir_okay=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the link report as JSON, nothing else.")
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Ask a running system for one image; what is left out is as the system has it by default.

    Exits with 2 for what another request mends, and with 1 if there is no picture for another reason.
    """
    from services.cli.image import run_image

    link = {
        "snr_db": snr_db,
        "cbr": None if cbr is None else _rate(cbr),
        "target_psnr_db": target_psnr_db,
        "fading": fading,
    }
    request = {
        "prompt": prompt,
        "seed": secrets.randbelow(2**31) if seed is None else seed,  # drawn here, as it is in the file's name
        "size": size,
        "delivery": delivery,
        "knowledge": knowledge or None,
        "on_long_prompt": on_long_prompt,
        "link": {name: value for name, value in link.items() if value is not None},
    }
    raise typer.Exit(
        run_image(
            {name: value for name, value in request.items() if value is not None},
            url=url,
            output=output,
            force=force,
            as_json=as_json,
        )
    )


def distill(
    topic: Annotated[str, typer.Argument(help="What the edge is to learn, such as neon.")],
    images: Annotated[int | None, typer.Option(help="Pictures that the cloud draws to learn from.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the LoRA.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Pseudo-tokens of the metaword.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps at most.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seeds pictures and training.")] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            help="Prompts to learn from, one a line; {red|blue} stands for either. Blank lines and lines "
            "that start with `# ` are left out."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Publish what was learnt even if it made the pictures worse.")
    ] = False,
    url: Url = DEFAULT_URL,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the pictures; demo-out/TOPIC if left out.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was learned as JSON; progress goes to stderr.")
    ] = False,
) -> None:
    """Have a running system teach its edge a topic; shows the progress, then pictures before and after."""
    from services.cli.distill import read_prompts, run_distill

    config = {"images": images, "rank": rank, "tokens": tokens, "steps": steps, "seed": seed}
    raise typer.Exit(
        run_distill(
            topic,
            prompts=read_prompts(prompts_file) if prompts_file else (),
            config={name: value for name, value in config.items() if value is not None},
            force=force,
            url=url,
            output=output or Path("demo-out") / topic,
            as_json=as_json,
        )
    )
