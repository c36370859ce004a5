"""What the training commands share: options' values, folders, and records of trainings."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from dekag.documents import read_json
from dekag.errors import DekagError, InvalidInputError
from dekag.files import check_folder
from dekag.paths import shipped_model
from services.cli.extras import as_typed

RUNS = Path("runs")
MODELS = Path("models")
SCENES = 24_000
WEIGHTS = "diffusion_pytorch_model.safetensors"


def use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def placement_of(device: str | None) -> Any:
    """Where the machine's settings place models; `device`, if given, replaces that of the settings."""
    from dekag.generation.machine import machine_placement

    try:
        return machine_placement(device=device)
    except InvalidInputError as error:
        if device is None or error.field != "DEKAG_DEVICE":
            raise
        raise typer.BadParameter(f"must be {error.allowed}; got {device!r}", param_hint="--device") from None


def world_of(profile: str, size: int | None = None) -> Any:
    """The world of a profile, with images of `size` pixels a side if given."""
    from dekag.training.worlds import WORLDS

    if profile not in WORLDS:
        raise typer.BadParameter(
            f"must be one of {', '.join(WORLDS)}; got {profile!r}", param_hint="--profile"
        )
    if size is not None and size % 32:
        raise typer.BadParameter(f"must be a multiple of 32; got {size}", param_hint="--size")
    return WORLDS[profile] if size is None else replace(WORLDS[profile], size=size)


def model_folder(folder: Path | None, profile: str, name: str) -> Path:
    """Path of a model to read: `folder`, else the profile's; the shipped one if that does not exist."""
    return shipped_model(folder or MODELS / profile / name)


def target_folder(folder: Path | None, profile: str, name: str) -> Path:
    """Folder to write a model to: `folder`, else the profile's; checked before the training."""
    target = folder or MODELS / profile / name
    check_folder(target)
    return target


def training_record(
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


def save_model(
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
    record = training_record(run, quality, seed, continues) | more
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    typer.echo(f"{run.name}: {json.dumps(quality)} -> {folder}")


def earlier_record(folder: Path | None) -> dict[str, Any] | None:
    """The training.json of the model that a training starts from, if it has one."""
    path = None if folder is None else folder / "training.json"
    return read_json(path) if path is not None and path.exists() else None


@contextlib.contextmanager
def errors_of(option: str) -> Iterator[None]:
    """Errors of the library name the option that sets their field, or else the one that they come from."""
    try:
        yield
    except DekagError as error:
        if (typed := as_typed(error)) is not error:
            raise typed from None
        raise typer.BadParameter(str(error), param_hint=option) from None


def refuse_options(context: typer.Context, why: str, *options: str) -> None:
    """Refuses options that would have no effect, if they are given."""
    for name in options:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(why, param_hint="--" + name.replace("_", "-"))
