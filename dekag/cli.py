"""The `dekag` command: `dekag up`, `dekag demo`, and what other modules add to `app`."""

from __future__ import annotations

import io
import math
import os
import secrets
import sys
from collections.abc import Callable
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer
from pydantic import BaseModel, ValidationError

from dekag import plugins
from dekag.errors import DekagError, InvalidInputError
from dekag.extras import Commands
from dekag.link.conditions import Csi, EqualizerKind, Fading, LinkConditions
from dekag.places import shipped_sweep
from dekag.training.cli import train

if TYPE_CHECKING:
    from google.protobuf.descriptor import ServiceDescriptor


app = typer.Typer(
    name="dekag",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


def _keep_claims(*_: object, **__: object) -> None:
    """After a command that measured something, the pages that show headline.json say what is in it."""
    from dekag.experiments.book import has_pages, write_claims_page, write_install, write_summary

    if has_pages():
        write_claims_page()
        write_summary()
        write_install()


experiment = typer.Typer(
    help="Measure figures; each writes results/.", no_args_is_help=True, result_callback=_keep_claims
)
app.add_typer(train, name="train")
app.add_typer(experiment, name="experiment")
bench = typer.Typer(
    help="Measure speed, as ratios inside one run.", no_args_is_help=True, result_callback=_keep_claims
)
app.add_typer(bench, name="bench")
results = typer.Typer(help="What was measured, as pages.", no_args_is_help=True)
app.add_typer(results, name="results")

Ray = Annotated[
    str | None, typer.Option(help="local: on this machine's cores; else the address of a Ray cluster.")
]
Workers = Annotated[int | None, typer.Option(help="Of Ray; as many as there are CPUs if left out.", min=1)]
FreePorts = Annotated[bool, typer.Option("--free-ports", help="Take free ports instead of the default ones.")]


Url = Annotated[str, typer.Option(help="Where the system runs.")]
DEFAULT_URL = "http://127.0.0.1:8080"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dekag {version('dekag')}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            help="One's own class: package.module:Name or path/to/file.py:Name. See docs/plugins.md."
        ),
    ] = None,
    _: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Generative semantic communication with distillation-enabled knowledge alignment."""
    for out in (sys.stdout, sys.stderr):
        if isinstance(out, io.TextIOWrapper):  # names of files may be no text: then they are shown escaped
            out.reconfigure(errors="backslashreplace")
    if any(name.upper().startswith("DEKAG_") for name in os.environ):
        from services.common.environment import unknown

        for told in unknown():
            typer.secho(f"Warning: {told}", fg="yellow", err=True)
    if plugin:  # in the environment, so that the services and workers that are started load it, too
        named = [*plugins.split(os.environ.get(plugins.ENVIRONMENT, "")), *plugin]
        os.environ[plugins.ENVIRONMENT] = plugins.join(named)
    if context.invoked_subcommand == "doctor":  # says itself what is wrong with them
        return
    try:
        plugins.load_from_environment()
    except DekagError as error:
        raise typer.BadParameter(str(error), param_hint=f"--plugin or {plugins.ENVIRONMENT}") from None


@app.command()
def up(free_ports: FreePorts = False) -> None:
    """Start Redis, the five services and a distiller on this machine until Ctrl-C."""
    from services.launcher.up import run_up

    raise typer.Exit(run_up(free_ports=free_ports))


@app.command()
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
    from services.launcher.demo import run_demo

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


@app.command()
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
    from services.launcher.image import run_image

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


@app.command()
def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was found as JSON, nothing else.")
    ] = False,
) -> None:
    """Say what is missing on this machine and the command that mends it; exits with 1 if it is needed."""
    from services.launcher.doctor import run_doctor

    raise typer.Exit(run_doctor(as_json=as_json))


@app.command()
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
    from services.launcher.distill import read_prompts, run_distill

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


@app.command()
def publish(
    folders: Annotated[
        list[Path],
        typer.Argument(help="What `dekag train cala` or `dekag train knowledge` wrote."),
    ],
    url: Url = DEFAULT_URL,
) -> None:
    """Make a codec's adapters or topics' updates current in a running system, which uses them at once."""
    from services.launcher.publish import run_publish

    raise typer.Exit(run_publish(folders, url=url))


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="Whose key it is; stands in logs.")],
    requests_per_minute: Annotated[
        int | None, typer.Option(help="What it may do; if left out, what the gateway's settings say.", min=1)
    ] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests at a time, likewise.", min=1)] = None,
) -> None:
    """Make an API key: shows it once, and prints the line with its hash: dekag key NAME >> api-keys."""
    from services.gateway.keys import new_key

    try:
        made, line = new_key(name, requests_per_minute=requests_per_minute, concurrency=concurrency)
    except InvalidInputError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from None
    typer.echo(f"The key, which is shown only now:\n{made}\nThe line for DEKAG_API_KEYS_FILE:", err=True)
    typer.echo(line)


@app.command()
def credentials(
    folder: Annotated[Path, typer.Argument(help="Made if missing; what it holds stays while it is valid.")],
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="Host name or IP address by which clients know the gateway; more than once for several.",
            envvar="DEKAG_HOSTNAMES",
        ),
    ] = None,
    days: Annotated[int, typer.Option(help="That new certificates are valid.", min=31, max=3650)] = 365,
) -> None:
    """Make certificates for mutual TLS and users of Redis, a folder for each service: docs/security.md."""
    from services.launcher.credentials import make_credentials

    try:
        made = make_credentials(folder, names=name or (), days=days)
    except InvalidInputError as error:
        raise typer.BadParameter(str(error), param_hint="--name") from None
    typer.echo(f"{folder}: " + (f"new certificates of {', '.join(made)}" if made else "all valid"))


@app.command()
def world(
    output: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("world.png"),
    seed: Annotated[int, typer.Option(help="Draws what is not a style or a subject.", min=0)] = 0,
) -> None:
    """Draw a contact sheet of the embedded world: every style against every subject."""
    from dekag.world.sheet import world_sheet

    world_sheet(output, seed)
    typer.echo(f"wrote {output}")


@experiment.command("first-image")
def first_image(
    count: Annotated[int, typer.Option(help="Pictures for each figure.", min=8)] = 500,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 2,
    only: Annotated[
        list[str] | None, typer.Option(help="vae, edge, cloud or codec; all if left out.")
    ] = None,
) -> None:
    """What the embedded models reach before any alignment; writes results/."""
    import torch

    from dekag.experiments.first_image import PARTS, run
    from dekag.experiments.page import write_first_image_page

    if unknown := set(only or ()) - set(PARTS):
        raise typer.BadParameter(f"{', '.join(unknown)} is none of {', '.join(PARTS)}", param_hint="--only")
    torch.set_num_threads(threads)
    run(count, parts=only or PARTS)
    write_first_image_page(Path("docs/results-first-image.md"))


@experiment.command("gka")
def gka(
    prompts: Annotated[int, typer.Option(help="Test prompts of each topic.", min=4)] = 16,
    seeds: Annotated[int, typer.Option(help="Training seeds.", min=1)] = 3,
    workers: Annotated[int, typer.Option(help="Processes of one thread each.", min=1)] = 2,
    profile: Annotated[str, typer.Option(help="Models.")] = "embedded",
) -> None:
    """MAKD beside its baselines on every held-out topic; resumes, writes results/ and docs/results-gka.md."""
    from dekag.experiments.gka_report import run_gka

    _measure(lambda: run_gka(prompts=prompts, seeds=seeds, workers=workers, profile=profile))


@experiment.command("tka")
def tka(
    count: Annotated[int, typer.Option(help="Pictures.", min=8)] = 32,
    requests: Annotated[int, typer.Option(help="Requests of rate control.", min=4)] = 300,
    rounds: Annotated[int, typer.Option(help="Rounds of the comparison of costs.", min=5)] = 200,
    workers: Annotated[int, typer.Option(help="Processes of one thread each.", min=1)] = 2,
    profile: Annotated[str, typer.Option(help="Models.")] = "embedded",
) -> None:
    """CALA beside its baselines on every channel; resumes, writes results/ and docs/results-tka.md."""
    from dekag.experiments.tka_report import run_tka

    _measure(lambda: run_tka(count=count, requests=requests, rounds=rounds, workers=workers, profile=profile))


@experiment.command("digital")
def digital(
    count: Annotated[int, typer.Option(help="Pictures.", min=8)] = 32,
    checks: Annotated[int, typer.Option(help="Deliveries that are really decoded.", min=0)] = 100,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 1,
    channel: Annotated[list[str] | None, typer.Option(help="Channels; all if left out.")] = None,
    profile: Annotated[str, typer.Option(help="Models.")] = "embedded",
) -> None:
    """The conventional delivery at its best beside CALA; writes results/ and its page in docs/."""
    import torch

    from dekag.experiments.digital import CHANNELS
    from dekag.experiments.digital_report import run_digital

    if unknown := set(channel or ()) - set(CHANNELS):
        named = f"{', '.join(unknown)} is none of {', '.join(CHANNELS)}"
        raise typer.BadParameter(named, param_hint="--channel")
    torch.set_num_threads(threads)
    _measure(
        lambda: run_digital(count=count, checks=checks, channels=channel or list(CHANNELS), profile=profile)
    )


@experiment.command("overall")
def overall(
    ray: Ray = None,
    workers: Workers = None,
) -> None:
    """DeKA-g, its halves and the best digital delivery; resumes, writes docs/results-overall.md."""
    from dekag.experiments.overall import run_overall

    _measure(lambda: run_overall(ray=ray, workers=workers))


def _existing_grid(grid: Path) -> Path:
    found = shipped_sweep(grid)
    if not found.is_file():
        raise typer.BadParameter(f"there is no file {str(grid)!r}, and no grid of that name ships")
    return found


@app.command("sweep")
def sweep_command(
    grid: Annotated[
        Path,
        typer.Argument(
            help="A YAML file, or the name of one that ships: quick or overall.", callback=_existing_grid
        ),
    ],
    ray: Ray = None,
    workers: Workers = None,
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a summary as JSON; progress goes to stderr.")
    ] = False,
) -> None:
    """Measure a grid of deliveries, topics, channels, SNRs and rates; resumes, writes tables and plots."""
    from dekag.sweeps.command import run_sweep

    _measure(lambda: run_sweep(grid, ray=ray, workers=workers, results=results, as_json=as_json))


@bench.command("sweep")
def bench_sweep(
    cells: Annotated[int, typer.Option(help="Cells of the grid.", min=4)] = 200,
) -> None:
    """The same grid with one worker of Ray and with two, and one cell after another without Ray."""
    from dekag.sweeps.command import bench_sweep

    _measure(lambda: bench_sweep(cells))


@bench.command("chain")
def bench_chain(
    requests: Annotated[int, typer.Option(help="Requests each way.", min=5)] = 40,
) -> None:
    """One request through all services against the same library calls in one process."""
    from dekag.experiments.page import write_first_image_page
    from services.launcher.bench.chain import run_chain_bench

    _bench(lambda: run_chain_bench(requests=requests))
    write_first_image_page(Path("docs/results-first-image.md"))


@bench.command("throughput")
def bench_throughput(
    requests: Annotated[int, typer.Option(help="Pictures timed at each point of a round.", min=1)] = 48,
    rounds: Annotated[int, typer.Option(help="Rounds, the servers in another order in each.", min=1)] = 5,
    users: Annotated[str, typer.Option(help="Closed-loop users, separated by commas.")] = "1,2,4,8,16",
) -> None:
    """Pictures per second of the services, LitServe and a plain FastAPI handler, by number of users."""
    from services.launcher.bench.throughput import run_throughput_bench

    try:
        numbers = [int(number) for number in users.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise typer.BadParameter(f"{users!r} is not a list of different numbers", param_hint="--users")
    _bench(lambda: run_throughput_bench(requests=requests, rounds=rounds, users=numbers))


@bench.command("cached")
def bench_cached(
    requests: Annotated[int, typer.Option(help="Requests each way.", min=5)] = 100,
) -> None:
    """A cached prompt through all services against bare channel and decoding in one process."""
    from services.launcher.bench.cached import run_cached_bench

    _bench(lambda: run_cached_bench(requests=requests))


@bench.command("channel")
def bench_channel(
    symbols: Annotated[int, typer.Option(help="Sent in each measurement.", min=1)] = 4_000_000,
    rounds: Annotated[int, typer.Option(help="Rounds.", min=1)] = 7,
    streams: Annotated[int, typer.Option(help="Transmissions at once.", min=1)] = 4,
) -> None:
    """Symbols per second of the channel service against bare Sionna in one process."""
    from services.launcher.bench.channel import run_channel_bench

    _bench(lambda: run_channel_bench(symbols=symbols, rounds=rounds, streams=streams))


@bench.command("start")
def bench_start(
    rounds: Annotated[int, typer.Option(help="Starts that count.", min=1)] = 5,
    requests: Annotated[
        int, typer.Option(help="Pictures of each delivery before memory is read.", min=1)
    ] = 4,
) -> None:
    """Time from start to ready, and the memory that each service holds."""
    from services.launcher.bench.start import run_start_bench

    _bench(lambda: run_start_bench(rounds=rounds, requests=requests))


@bench.command("parts")
def bench_parts(
    repeats: Annotated[int, typer.Option(help="Times that each part is timed.", min=1)] = 9,
    prompts: Annotated[int, typer.Option(help="Prompts that judge the sampler's steps.", min=2)] = 48,
) -> None:
    """What each part of a picture costs, and what its alternatives would."""
    from services.launcher.bench.parts import run_parts_bench
    from services.launcher.bench.performance import write_performance_page

    _launch(lambda: run_parts_bench(repeats=repeats, prompts=prompts))
    write_performance_page()


@bench.command("overload")
def bench_overload(
    times: Annotated[float, typer.Option(help="Arrivals over capacity.", min=1)] = 4.0,
    seconds: Annotated[float, typer.Option(help="How long they come, s.", min=1)] = 120.0,
) -> None:
    """What becomes of requests when far more come than can be served."""
    from services.launcher.bench.overload import run_overload_bench

    _bench(lambda: run_overload_bench(times=times, seconds=seconds))


@bench.command("soak")
def bench_soak(
    seconds: Annotated[float, typer.Option(help="How long, s.", min=60)] = 3600.0,
    rate: Annotated[float, typer.Option(help="Requests a second.", min=0.05)] = 1.0,
) -> None:
    """Whether memory, open files or Redis keys grow under an hour of mixed load."""
    from services.launcher.bench.soak import run_soak_bench

    _launch(lambda: run_soak_bench(seconds=seconds, rate_hz=rate))


@bench.command("traffic")
def bench_traffic(
    report: Annotated[Path, typer.Option(help="Folder that a load test wrote.")] = Path("loadtest-out"),
    pictures: Annotated[int, typer.Option(help="Different pictures that are compressed.", min=1)] = 250,
) -> None:
    """What a load test saved against WebP and JPEG of equal quality."""
    from services.launcher.bench.traffic import run_traffic_bench

    _bench(lambda: run_traffic_bench(report, pictures=pictures))


@bench.command("cost")
def bench_cost(
    requests: Annotated[int, typer.Option(help="Pictures of each delivery.", min=1)] = 16,
) -> None:
    """Time, backhaul and channel uses of a picture, semantic and conventional."""
    from services.launcher.bench.cost import run_cost_bench

    _bench(lambda: run_cost_bench(requests=requests))


@bench.command("distill")
def bench_distill(
    topics: Annotated[str, typer.Option(help="Topics, separated by commas.")] = "neon,rocket",
) -> None:
    """Time from asking for a distillation over REST to the first picture drawn with it."""
    from services.launcher.bench.distill import run_distill_bench

    _bench(lambda: run_distill_bench(topics=topics.split(",")))


@bench.command("page")
def bench_page() -> None:
    """Write docs/results-load.md from what was measured."""
    from services.launcher.bench.page import write_load_page

    write_load_page()


def _bench(work: Callable[[], object]) -> None:
    """Runs a benchmark of the services, then writes the page on load."""
    _launch(work)
    bench_page()


def _measure(work: Callable[[], object]) -> None:
    """Runs a measurement; what is wrong with the request ends it without a traceback."""
    try:
        work()
    except DekagError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2 if isinstance(error, InvalidInputError) else 1) from None


@results.command("quick")
def quick(
    ray: Ray = None,
    workers: Workers = None,
    keep: Annotated[bool, typer.Option("--record", help="Write the time it took into results/.")] = False,
) -> None:
    """In minutes and without training: figures of the shipped models beside the committed ones."""
    from dekag.experiments.quick import run_quick

    _measure(lambda: run_quick(ray=ray, workers=workers, keep=keep))
    if keep:
        _keep_claims()


@results.command("book")
def book() -> None:
    """Write what the README and docs/ take from results/, and the reference from the code."""
    from dekag.experiments import reference
    from dekag.experiments.book import has_pages
    from dekag.experiments.trust_report import write_trust_page

    if not has_pages():
        typer.echo(
            "There is no README.md and no docs/ here: the book is written in a clone of dekag", err=True
        )
        raise typer.Exit(2)
    _keep_claims()
    write_trust_page()
    reference.write_settings_page(settings_of_services())
    reference.write_cli_page(app)
    reference.write_rest_page(openapi())
    reference.write_grpc_page(grpc_services())


def openapi() -> dict[str, Any]:
    """The gateway's OpenAPI document, which docs/rest.md shows."""
    from services.gateway.app import create_app

    return create_app().openapi()


def grpc_services() -> list[tuple[ServiceDescriptor, type]]:
    """The gRPC services that docs/grpc.md shows, in the order of the chain, each with its generated class."""
    from services.proto import (
        cloud_pb2,
        cloud_pb2_grpc,
        downlink_pb2,
        downlink_pb2_grpc,
        user_pb2,
        user_pb2_grpc,
    )

    return [
        (user_pb2.DESCRIPTOR.services_by_name["User"], user_pb2_grpc.UserServicer),
        (downlink_pb2.DESCRIPTOR.services_by_name["Downlink"], downlink_pb2_grpc.DownlinkServicer),
        (cloud_pb2.DESCRIPTOR.services_by_name["Cloud"], cloud_pb2_grpc.CloudServicer),
    ]


def settings_of_services() -> dict[str, type[BaseModel]]:
    """The settings that docs/settings.md shows, by the name of the service."""
    from services.channel.settings import ChannelSettings
    from services.cloud.settings import CloudSettings, DistillerSettings
    from services.edge.settings import EdgeSettings
    from services.gateway.settings import GatewaySettings
    from services.user.settings import UserSettings

    return {
        "gateway": GatewaySettings,
        "user": UserSettings,
        "channel": ChannelSettings,
        "edge": EdgeSettings,
        "cloud": CloudSettings,
        "distiller": DistillerSettings,
    }


def _launch(work: Callable[[], object]) -> None:
    """Runs what starts the chain; a signal or what the chain refuses ends it without a traceback."""
    from dekag.errors import DekagError
    from services.launcher.stack import Stopped

    try:
        work()
    except Stopped:
        raise typer.Exit(130) from None
    except DekagError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
