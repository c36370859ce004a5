"""`dekag train knowledge|golden`: knowledge updates, and the values that verify all models."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.options import (
    FILES,
    Profile,
    Runs,
    Threads,
    TrainingSeed,
    writable_folder,
)
from services.cli.train.common import (
    RUNS,
    use_threads,
)


def knowledge(
    topic: Annotated[
        list[str] | None, typer.Option(help="Topic to train; can be repeated. Default: all topics.")
    ] = None,
    seed: TrainingSeed = 0,
    threads: Threads = 1,
    profile: Profile = "stickers",
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
    use_threads(threads)
    from tqdm import tqdm

    from dekag.evaluation.store import content_key
    from dekag.generation.models import Generator
    from dekag.makd.config import DistillConfig
    from dekag.makd.topics import read_topics, topic_prompts
    from dekag.metrics.features import ImageScorer
    from dekag.profile import load_profile, profile_folder
    from dekag.stickers import TOPICS
    from dekag.training.distill import Progress, distill

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
    # another model, sampling, setting or prompt has a run of its own: its images and checkpoints do not fit
    of_models = [(each.model_hash, each.steps, each.guidance_scale, each.size) for each in (cloud, edge)]
    scorer = None if models.scorer is None else ImageScorer.load(models.scorer.clip, models.scorer.dino)
    for name in topic or own or TOPICS:
        prompts = topic_prompts(name, topics=own, count=config.images, held_out=config.held_out, seed=seed)
        # `keep` chooses among the forms of what a run made
        settings = {key: value for key, value in asdict(config).items() if key != "keep"}
        identity = content_key(*of_models, settings, asdict(prompts))[:12]
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
                runs / "knowledge" / f"{name}-{identity}",
                scorer=scorer,
                on_progress=on_progress,
            )
        update.save(folder / name)
        typer.echo(f"{name}: {json.dumps(update.history['scores'])} -> {folder / name}")
    typer.echo(f"To use them in a running system: `dekag publish {folder}/TOPIC`.")


def golden(profile: Profile = "stickers") -> None:
    """Write the models' golden values, with which `dekag doctor` verifies other machines."""
    from dekag.golden import FILE, write
    from dekag.profile import load_profile, profile_folder

    folder = profile_folder(profile)
    typer.echo(f"{write(load_profile(profile), folder)} models -> {folder / FILE}")
