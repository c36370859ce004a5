"""Options that several commands share, each defined once, and the sections that `--help` shows them in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from dekag.files import check_folder

DEFAULT_URL = "http://127.0.0.1:8080"
DEFAULT_TIMEOUT_S = 90.0  # that of `dekag.client.Client`

SYSTEM, KNOWLEDGE, OPERATION, RESEARCH = "Run", "Knowledge", "Operation", "Training and measurement"
"""Sections of `dekag --help`."""
DATA, HARDWARE, FILES = "Training data", "Hardware", "Files"
"""Sections of the options of `dekag train`."""


def writable_folder(folder: Path | None) -> Path | None:
    """Checks before hours of work, not after them, that a folder can be written; FileError if not."""
    if folder is not None:
        check_folder(folder)
    return folder


def finite(value: float | None) -> float | None:
    """Refuses NaN and infinity, which JSON cannot express."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"must be a finite number; got {value}")
    return value


# Requests
Url = Annotated[str, typer.Option(help="URL of the gateway. The scheme can be omitted.")]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout-s",
        help="Time limit of a response, s; above 0, at most a day. As long as DEKAG_DEADLINE_S of a system "
        "that is slower than its default.",
        callback=finite,
    ),
]
FreePorts = Annotated[
    bool, typer.Option("--free-ports", help="Use free ports instead of 8080 and 50051 to 50054.")
]
RequestSeed = Annotated[int, typer.Option(help="Seed of generation, fading and noise.", min=0)]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")]

# Models
Profile = Annotated[
    str, typer.Option(help="Models to use: a profile under models/, or a folder with a profile.json.")
]

# Evaluation
Threads = Annotated[int, typer.Option(help="CPU threads.", min=1, rich_help_panel=HARDWARE)]
Processes = Annotated[
    int,
    typer.Option(
        "--workers", help="Processes that measure, each with one thread.", min=1, rich_help_panel=HARDWARE
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        help="Measure in parallel with Ray: `local` for this machine, or the HOST:PORT of a cluster. "
        "Default: serial, without Ray.",
        rich_help_panel=HARDWARE,
    ),
]
RayWorkers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        help="Ray workers; requires --ray. Default: one per CPU.",
        min=1,
        rich_help_panel=HARDWARE,
    ),
]

# Training
Steps = Annotated[int, typer.Option(min=2, help="Total number of optimiser steps.")]
TrainingSeed = Annotated[
    int, typer.Option("--seed", min=0, help="Seed of the initial weights and of every step.")
]
World = Annotated[
    str,
    typer.Option("--profile", help="Models to train: stickers.", rich_help_panel=DATA),
]
Size = Annotated[
    int | None,
    typer.Option(
        min=64,
        help="Side of the images, pixels; a multiple of 32. Default: the profile's.",
        rich_help_panel=DATA,
    ),
]
Images = Annotated[
    int,
    typer.Option("--pictures", min=2, help="Number of rendered training images.", rich_help_panel=DATA),
]
Renderers = Annotated[
    int,
    typer.Option("--workers", min=1, help="Processes that render training images.", rich_help_panel=HARDWARE),
]
Latents = Annotated[
    Path | None,
    typer.Option(
        help="Train on this latent set (`dekag train latents`) instead of rendered images; --profile is then "
        "any profile: its name under models/, or its folder.",
        rich_help_panel=DATA,
    ),
]
Crop = Annotated[
    int | None,
    typer.Option(
        min=8,
        help="With --latents: side of the random squares to train on, latent pixels; a multiple of"
        " the codec's fold. Default: 16.",
        rich_help_panel=DATA,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda, cuda:N, mps, or auto, which takes what is there. Default: DEKAG_DEVICE, else cpu.",
        rich_help_panel=HARDWARE,
    ),
]
Bf16 = Annotated[
    bool,
    typer.Option(
        "--bf16",
        help="Compute products in bfloat16: faster where the hardware supports it.",
        rich_help_panel=HARDWARE,
    ),
]
Batch = Annotated[int, typer.Option(min=1, help="Latents per step.")]
Runs = Annotated[
    Path,
    typer.Option(
        help="Folder for checkpoints and rendered images.", callback=writable_folder, rich_help_panel=FILES
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the finished model. Default: the profile's folder.",
        callback=writable_folder,
        rich_help_panel=FILES,
    ),
]
Vae = Annotated[
    Path | None,
    typer.Option(help="Folder of the autoencoder. Default: the profile's.", rich_help_panel=FILES),
]
BaseCodec = Annotated[
    Path | None,
    typer.Option(help="Folder of the base codec. Default: the profile's.", rich_help_panel=FILES),
]
OutOfLatents = Annotated[
    Path,
    typer.Option("--out", help="Folder for the latent set.", callback=writable_folder, rich_help_panel=FILES),
]
StartPipeline = Annotated[
    Path | None,
    typer.Option(
        "--start",
        help="Trained pipeline to start from: of the same kind, or an edge for a cloud U-Net.",
        rich_help_panel=FILES,
    ),
]
