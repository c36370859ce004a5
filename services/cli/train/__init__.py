"""`dekag train ...`: the commands that train the models, each resumable and seeded."""

from __future__ import annotations

import typer

from services.cli.train.autoencoder import decoder, vae, vae_quality
from services.cli.train.generators import cloud, edge
from services.cli.train.judges import encoders, outline, probe
from services.cli.train.knowledge import golden, knowledge
from services.cli.train.link import cala, codec, latents, restoration

train = typer.Typer(
    help="Train the models. Every command is seeded and resumes after an interruption.", no_args_is_help=True
)
for command in (
    vae, vae_quality, decoder, probe, outline, encoders, edge, cloud, latents, codec, cala, restoration,
    knowledge, golden,
):  # fmt: skip
    train.command()(command)
