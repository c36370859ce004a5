"""`dekag train ...`: the commands that train the models, each resumable and seeded."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from services.cli.extras import Group
from services.cli.train.autoencoder import decoder, vae, vae_quality
from services.cli.train.generators import cloud, edge
from services.cli.train.judges import encoders, outline, probe
from services.cli.train.knowledge import golden, knowledge
from services.cli.train.link import cala, codec, latents, pixels, restoration

train = Group(
    help="Train the models. Every command is seeded and resumes after an interruption.", no_args_is_help=True
)


@train.callback()
def options(
    log: Annotated[
        str | None,
        typer.Option(
            help="Write the losses for tensorboard, wandb or mlflow, each an extra of the same name.",
            autocompletion=lambda: ["tensorboard", "wandb", "mlflow"],
        ),
    ] = None,
) -> None:
    """Options of all trainings precede the name of the command."""
    if log is not None:
        from dekag.training import log as training_log

        if log not in training_log.LOGS:
            allowed = ", ".join(training_log.LOGS)
            raise typer.BadParameter(f"must be one of {allowed}; got {log!r}", param_hint="--log")
        os.environ[training_log.ENVIRONMENT] = log


for command in (
    vae, vae_quality, decoder, probe, outline, encoders, edge, cloud, latents, codec, cala, restoration,
    pixels, knowledge, golden,
):  # fmt: skip
    train.command()(command)
