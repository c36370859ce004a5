"""`dekag distill`: teaches the edge of a running system a topic and shows the effect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dekag.api.limits import MAX_PROMPT_CHARS, MAX_PROMPTS
from dekag.client import Client, Job, Knowledge, UnreachableError
from dekag.console import plain_console
from dekag.errors import DekagError, FileError, NotFoundError
from dekag.files import check_folder, read_lines
from dekag.makd.topics import topic_prompts
from services.cli.extras import as_typed, exit_status
from services.cli.options import DEFAULT_TIMEOUT_S
from services.cli.report import write_images

SNR_DB = 30.0  # high, so that differences come from the knowledge, not from the radio link
IMAGE_SEED = 7
_STAGES = {"generate": "generating", "train": "training", "score": "scoring", None: "waiting"}


def read_prompts(file: Path) -> list[str]:
    """The prompts in a file, one per line; FileError if it cannot be read or a line is not a valid prompt."""
    lines = read_lines(file)
    if not lines:
        raise FileError(file, "holds no prompt: write one per line")
    for number, line in lines:
        if len(line) > MAX_PROMPT_CHARS:
            raise FileError(file, f"has more than {MAX_PROMPT_CHARS} characters in line {number}")
    if len(lines) > MAX_PROMPTS:
        raise FileError(file, f"holds {len(lines)} prompts: at most {MAX_PROMPTS} are allowed")
    return [line for _, line in lines]


def run_distill(
    topic: str,
    *,
    prompts: Sequence[str],
    config: Mapping[str, int],
    force: bool = False,
    url: str,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    output: Path,
    as_json: bool = False,
) -> int:
    """Starts a distillation, shows its progress, then its scores and images from before and after.

    Args:
        topic: name of the topic.
        prompts: training prompts; by default those of the sticker world.
        config: images, rank, tokens, steps and seed; omitted ones use the defaults.
        force: publish the update even if it is not better than the current one.
        url: URL of the gateway.
        timeout_s: time limit of its responses, s; the job itself may take longer.
        output: folder for ``samples.png``, ``before.png``, ``after.png`` and ``side-by-side.png``.
        as_json: print only the result, as JSON, to standard output; progress goes to standard error.

    Returns:
        The exit status: 2 if a different request would succeed, 1 if the system is not running, the job fails
        or its update is kept aside, 130 after Ctrl-C.
    """
    err = plain_console(stderr=True)
    console = err if as_json else plain_console()
    prompts = list(prompts)
    check_folder(output)  # before the distillation
    try:
        with Client(url, timeout_s=timeout_s) as client:
            options: dict[str, Any] = {"prompts": prompts, "force": force, **config}
            job = client.start(topic, **options)
            try:
                job = _follow(client, job, console)
            except KeyboardInterrupt:
                return _cancel(client, job, console)
            if job.status != "finished":
                raise DekagError(f"The job {job.status}" + (f": {job.error}" if job.error else ""))
            if job.kept_aside:
                if as_json:
                    typer.echo(job.model_dump_json())
                console.print(_table(f"{topic}: not published", job.scores))
                raise DekagError(f"The update was kept aside: {job.kept_aside}; --force publishes it")
            (update,) = [each for each in client.knowledge() if each.topic == topic]
            console.print(_scores(update))
            output.mkdir(parents=True, exist_ok=True)
            samples = output / "samples.png"
            samples.write_bytes(client.samples(topic))
            written = [samples, *_before_and_after(client, topic, prompts, output, console)]
    except UnreachableError as error:
        text = f"{error}: start it with `dekag up`"
        err.print(text, style="red", soft_wrap=True)
        return 1
    except DekagError as error:
        err.print(str(as_typed(error)), style="red", soft_wrap=True)
        return exit_status(error)
    if as_json:
        typer.echo(json.dumps({**update.model_dump(), "pictures": [str(path) for path in written]}))
        return 0
    console.print(f"\nImages: {', '.join(map(str, written))}", soft_wrap=True)
    return 0


def _follow(client: Client, job: Job, console: Console) -> Job:
    """Shows the progress of a job until its end; returns its last state."""
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    console.print(f"Distilling {job.topic} as job {job.id}. Ctrl-C cancels it.")
    with Progress(*columns, console=console) as progress:
        bars = {}
        for state in client.watch(job.id):
            job, stage = state, state.stage
            if stage not in bars:
                bars[stage] = progress.add_task(_STAGES[stage], loss="")
            loss = "" if state.loss is None else f"loss {state.loss:.3f}"
            progress.update(bars[stage], completed=state.done, total=state.total or None, loss=loss)
        if job.status == "finished":
            for bar in progress.tasks:  # training may stop before its last step
                progress.update(bar.id, total=bar.completed or 1, completed=bar.completed or 1)
    return job


def _cancel(client: Client, job: Job, console: Console) -> int:
    try:
        client.cancel(job.id)
        console.print(f"Cancelled job {job.id}.")
    except DekagError as error:
        console.print(f"Job {job.id} could not be cancelled: {error}", style="red")
    return 130


def _before_and_after(
    client: Client, topic: str, prompts: Sequence[str], output: Path, console: Console
) -> list[Path]:
    """Images of a held-out prompt, generated by the edge without and with the update."""
    try:
        held_out = topic_prompts(topic, prompts=prompts, count=4, held_out=1, seed=IMAGE_SEED).held_out
    except NotFoundError:  # a topic of the profile, whose prompts only the cloud knows
        held_out = (topic,)
    link = {"snr_db": SNR_DB, "fading": "awgn"}
    images = {}
    for name, knowledge in (("before", "none"), ("after", topic)):
        with console.status(f"requesting the image {name} the distillation"):
            images[name] = client.image(held_out[0], seed=IMAGE_SEED, knowledge=knowledge, link=link)
    console.print(f'"{held_out[0]}"')
    return write_images(images, output)


def _scores(knowledge: Knowledge) -> Table:
    title = f"{knowledge.topic}, version {knowledge.version}: {knowledge.size_bytes:,} bytes"
    return _table(title, knowledge.scores)


def _table(title: str, scores: Mapping[str, float]) -> Table:
    table = Table("on held-out prompts", "", title=title)
    for name, value in scores.items():
        table.add_row(name.replace("_", " "), f"{value:g}")
    return table
