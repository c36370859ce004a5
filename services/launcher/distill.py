"""`dekag distill`: has a running system teach its edge a topic, and shows what that changed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dekag.errors import DekagError, UnavailableError
from dekag.makd.topics import topic_prompts
from services.launcher.demo import RefusedError, ask, exit_status, problem_text, write_images

SNR_DB = 30.0  # high, so that the pictures show the knowledge and not the radio link
IMAGE_SEED = 7
_STAGES = {"generate": "the cloud draws", "train": "the edge learns", "score": "scoring", None: "waiting"}
_OVER = ("finished", "failed", "cancelled")
_TIMEOUT_S, _EVENT_TIMEOUT_S = 90.0, 60.0  # the gateway sends something every 15 s
_RECONNECTS, _RECONNECT_S = 30, 1.0


def run_distill(
    topic: str,
    *,
    prompts: Sequence[str],
    config: Mapping[str, int],
    url: str,
    output: Path,
    as_json: bool = False,
) -> int:
    """Starts a distillation, shows its progress, then its scores and pictures before and after.

    Args:
        topic: its name.
        prompts: to learn from; the embedded world's if there are none. Blank lines are left out.
        config: images, rank, tokens, steps and seed, as far as they are not the defaults.
        url: of the gateway.
        output: folder for ``samples.png``, ``before.png``, ``after.png`` and ``side-by-side.png``.
        as_json: what came of it as JSON is all that goes to the standard output; the progress goes to the
            other one.

    Returns:
        The exit status: 2 for what another request mends, 1 if the system does not run or the job fails, 130
        after Ctrl-C.
    """
    err = Console(stderr=True)
    console, url = err if as_json else Console(), url.rstrip("/")
    said = [line.strip() for line in prompts if line.strip()]
    try:
        with httpx2.Client(base_url=url, timeout=_TIMEOUT_S, trust_env=False) as client:
            order = {"topic": topic, **({"prompts": said} if said else {}), **config}
            job = _json(client.post("/v1/knowledge", json=order))
            try:
                job = _follow(client, job, console)
            except KeyboardInterrupt:
                return _cancel(client, job, console)
            if job["status"] != "finished":
                raise RefusedError(f"The job {job['status']}: {job['error'] or 'somebody asked for it'}")
            learned = _json(client.get(f"/v1/knowledge/{topic}"))
            console.print(_scores(learned))
            output.mkdir(parents=True, exist_ok=True)
            samples = output / "samples.png"
            samples.write_bytes(_checked(client.get(f"/v1/knowledge/{topic}/samples")).content)
        written = [samples, *_before_and_after(topic, said, url, output, console)]
    except httpx2.TransportError as error:
        err.print(
            f"No system answers at {url} ({error}): start it with `make up` or `dekag up`.",
            style="red",
            markup=False,
            soft_wrap=True,
        )
        return 1
    except DekagError as error:
        err.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return exit_status(error)
    if as_json:
        typer.echo(json.dumps({**learned, "pictures": [str(path) for path in written]}))
        return 0
    console.print(f"\nPictures: {', '.join(map(str, written))}", highlight=False, soft_wrap=True)
    return 0


def _follow(client: httpx2.Client, job: dict[str, Any], console: Console) -> dict[str, Any]:
    """The job when it is over, its progress shown until then."""
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    console.print(f"Distilling {job['topic']} as job {job['id']}. Ctrl-C cancels it.", highlight=False)
    with Progress(*columns, console=console) as progress:
        bars = {}
        for state in _states(client, job):
            job, stage = state, state["stage"]
            if stage not in bars:
                bars[stage] = progress.add_task(_STAGES[stage], loss="")
            loss = "" if state["loss"] is None else f"loss {state['loss']:.3f}"
            progress.update(bars[stage], completed=state["done"], total=state["total"] or None, loss=loss)
        if job["status"] == "finished":
            for bar in progress.tasks:  # training may stop before its last step
                progress.update(bar.id, total=bar.completed or 1, completed=bar.completed or 1)
    return job


def _states(client: httpx2.Client, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The job after each change, until it is over; a stream that breaks off is asked for again."""
    for _ in range(_RECONNECTS):
        try:
            with client.stream("GET", f"/v1/jobs/{job['id']}/events", timeout=_EVENT_TIMEOUT_S) as answer:
                _checked(answer)
                for line in answer.iter_lines():
                    if line.startswith("data:"):
                        job = json.loads(line.removeprefix("data:"))
                        yield job
        except (httpx2.TransportError, UnavailableError):
            pass
        if job["status"] in _OVER:
            return
        time.sleep(_RECONNECT_S)
    raise RefusedError(f"the system went away; job {job['id']} may go on when it is back")


def _cancel(client: httpx2.Client, job: Mapping[str, Any], console: Console) -> int:
    try:
        _checked(client.delete(f"/v1/jobs/{job['id']}"))
        console.print(f"Cancelled job {job['id']}.", highlight=False)
    except (httpx2.TransportError, DekagError) as error:
        console.print(f"Job {job['id']} could not be cancelled: {error}", style="red", markup=False)
    return 130


def _before_and_after(
    topic: str, prompts: Sequence[str], url: str, output: Path, console: Console
) -> list[Path]:
    """Pictures of a prompt that training has not seen, by the edge without and with the knowledge."""
    held_out = topic_prompts(topic, prompts=prompts, count=4, held_out=1, seed=IMAGE_SEED).held_out
    images = {}
    for name, knowledge in (("before", "none"), ("after", topic)):
        request = {
            "prompt": held_out[0],
            "seed": IMAGE_SEED,
            "knowledge": knowledge,
            "link": {"snr_db": SNR_DB, "fading": "awgn"},
        }
        with console.status(f"the edge draws, {name}"):
            images[name] = ask(url, request)
    console.print(f'"{held_out[0]}"', markup=False, highlight=False)
    return write_images(images, output)


def _scores(topic: Mapping[str, Any]) -> Table:
    title = f"{topic['topic']}, version {topic['version']}: {topic['size_bytes']:,} bytes"
    table = Table("on held-out prompts", "", title=title)
    for name, value in topic["scores"].items():
        table.add_row(name.replace("_", " "), f"{value:g}")
    return table


def _json(answer: httpx2.Response) -> dict[str, Any]:
    body: dict[str, Any] = _checked(answer).json()
    return body


def _checked(answer: httpx2.Response) -> httpx2.Response:
    """``answer`` unless it is a problem: raises RefusedError, or UnavailableError if it may pass."""
    if answer.is_success:
        return answer
    answer.read()
    text = problem_text(answer)
    if answer.status_code == httpx2.codes.SERVICE_UNAVAILABLE:
        raise UnavailableError(text)
    raise RefusedError(text, answer.status_code)
