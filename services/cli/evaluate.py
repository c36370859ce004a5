"""Commands that measure: `dekag experiment`, `bench`, `sweep`, and `results`, which fills pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from dekag.errors import DekagError, InvalidInputError
from dekag.places import shipped_sweep

Ray = Annotated[
    str | None, typer.Option(help="local: on this machine's cores; else the address of a Ray cluster.")
]
Workers = Annotated[int | None, typer.Option(help="Of Ray; as many as there are CPUs if left out.", min=1)]


def _fill_pages(*_: object, **__: object) -> None:
    """After a command that measured something, the pages say what is in results/."""
    from services.cli.book import has_pages, write_pages

    if has_pages():
        write_pages()


experiment = typer.Typer(
    help="Measure figures; each writes results/.", no_args_is_help=True, result_callback=_fill_pages
)
bench = typer.Typer(
    help="Measure speed, as ratios inside one run.", no_args_is_help=True, result_callback=_fill_pages
)
results = typer.Typer(help="What was measured, as pages.", no_args_is_help=True)


@experiment.command("first-image")
def first_image(
    count: Annotated[int, typer.Option(help="Images for each figure.", min=8)] = 500,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 2,
    only: Annotated[
        list[str] | None, typer.Option(help="vae, edge, cloud or codec; all if left out.")
    ] = None,
) -> None:
    """What the embedded models reach before any alignment; writes results/."""
    import torch

    from dekag.evaluation.studies.baseline_models import PARTS, run

    if unknown := set(only or ()) - set(PARTS):
        raise typer.BadParameter(f"{', '.join(unknown)} is none of {', '.join(PARTS)}", param_hint="--only")
    torch.set_num_threads(threads)
    run(count, parts=only or PARTS)


@experiment.command("gka")
def gka(
    prompts: Annotated[int, typer.Option(help="Test prompts of each topic.", min=4)] = 16,
    seeds: Annotated[int, typer.Option(help="Training seeds.", min=1)] = 3,
    workers: Annotated[int, typer.Option(help="Processes of one thread each.", min=1)] = 2,
    profile: Annotated[str, typer.Option(help="Models.")] = "embedded",
) -> None:
    """MAKD beside its baselines on every held-out topic; resumes, writes results/ and docs/results-gka.md."""
    from dekag.evaluation.studies.makd import run_gka

    _measure(lambda: run_gka(prompts=prompts, seeds=seeds, workers=workers, profile=profile))


@experiment.command("tka")
def tka(
    count: Annotated[int, typer.Option(help="Images.", min=8)] = 32,
    requests: Annotated[int, typer.Option(help="Requests of rate control.", min=4)] = 300,
    rounds: Annotated[int, typer.Option(help="Rounds of the comparison of costs.", min=5)] = 200,
    workers: Annotated[int, typer.Option(help="Processes of one thread each.", min=1)] = 2,
    profile: Annotated[str, typer.Option(help="Models.")] = "embedded",
) -> None:
    """CALA beside its baselines on every channel; resumes, writes results/ and docs/results-tka.md."""
    from dekag.evaluation.studies.cala import run_tka

    _measure(lambda: run_tka(count=count, requests=requests, rounds=rounds, workers=workers, profile=profile))


@experiment.command("digital")
def digital(
    count: Annotated[int, typer.Option(help="Images.", min=8)] = 32,
    checks: Annotated[int, typer.Option(help="Deliveries that are really decoded.", min=0)] = 100,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 1,
    channel: Annotated[list[str] | None, typer.Option(help="Channels; all if left out.")] = None,
    profile: Annotated[str, typer.Option(help="Models.")] = "embedded",
) -> None:
    """The conventional delivery at its best beside CALA; writes results/ and its page in docs/."""
    import torch

    from dekag.evaluation.studies.digital import CHANNELS, run_digital

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
    from dekag.evaluation.studies.end_to_end import run_overall

    _measure(lambda: run_overall(ray=ray, workers=workers))


def _existing_grid(grid: Path) -> Path:
    found = shipped_sweep(grid)
    if not found.is_file():
        raise typer.BadParameter(f"there is no file {str(grid)!r}, and no grid of that name ships")
    return found


def sweep(
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
    from dekag.evaluation.sweeps.command import run_sweep

    _measure(lambda: run_sweep(grid, ray=ray, workers=workers, results=results, as_json=as_json))


@bench.command("sweep")
def bench_sweep(
    cells: Annotated[int, typer.Option(help="Cells of the grid.", min=4)] = 200,
) -> None:
    """The same grid with one worker of Ray and with two, and one cell after another without Ray."""
    from dekag.evaluation.sweeps.command import bench_sweep

    _measure(lambda: bench_sweep(cells))


@bench.command("chain")
def bench_chain(
    requests: Annotated[int, typer.Option(help="Requests each way.", min=5)] = 40,
) -> None:
    """One request through all services against the same library calls in one process."""
    from services.bench.latency import run_chain_bench

    _launch(lambda: run_chain_bench(requests=requests))


@bench.command("throughput")
def bench_throughput(
    requests: Annotated[int, typer.Option(help="Images timed at each point of a round.", min=1)] = 48,
    rounds: Annotated[int, typer.Option(help="Rounds, the servers in another order in each.", min=1)] = 5,
    users: Annotated[str, typer.Option(help="Closed-loop users, separated by commas.")] = "1,2,4,8,16",
) -> None:
    """Images per second of the services, LitServe and a plain FastAPI handler, by number of users."""
    from services.bench.throughput import run_throughput_bench

    try:
        numbers = [int(number) for number in users.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise typer.BadParameter(f"{users!r} is not a list of different numbers", param_hint="--users")
    _launch(lambda: run_throughput_bench(requests=requests, rounds=rounds, users=numbers))


@bench.command("cached")
def bench_cached(
    requests: Annotated[int, typer.Option(help="Requests each way.", min=5)] = 100,
) -> None:
    """A cached prompt through all services against bare channel and decoding in one process."""
    from services.bench.latency import run_cached_bench

    _launch(lambda: run_cached_bench(requests=requests))


@bench.command("channel")
def bench_channel(
    symbols: Annotated[int, typer.Option(help="Sent in each measurement.", min=1)] = 4_000_000,
    rounds: Annotated[int, typer.Option(help="Rounds.", min=1)] = 7,
    streams: Annotated[int, typer.Option(help="Transmissions at once.", min=1)] = 4,
) -> None:
    """Symbols per second of the channel service against bare Sionna in one process."""
    from services.bench.channel import run_channel_bench

    _launch(lambda: run_channel_bench(symbols=symbols, rounds=rounds, streams=streams))


@bench.command("start")
def bench_start(
    rounds: Annotated[int, typer.Option(help="Starts that count.", min=1)] = 5,
    requests: Annotated[int, typer.Option(help="Images of each delivery before memory is read.", min=1)] = 4,
) -> None:
    """Time from start to ready, and the memory that each service holds."""
    from services.bench.start import run_start_bench

    _launch(lambda: run_start_bench(rounds=rounds, requests=requests))


@bench.command("parts")
def bench_parts(
    repeats: Annotated[int, typer.Option(help="Times that each part is timed.", min=1)] = 9,
    prompts: Annotated[int, typer.Option(help="Prompts that judge the sampler's steps.", min=2)] = 48,
) -> None:
    """What each part of an image costs, and what its alternatives would."""
    from services.bench.parts import run_parts_bench

    _launch(lambda: run_parts_bench(repeats=repeats, prompts=prompts))


@bench.command("overload")
def bench_overload(
    times: Annotated[float, typer.Option(help="Arrivals over capacity.", min=1)] = 4.0,
    seconds: Annotated[float, typer.Option(help="How long they come, s.", min=1)] = 120.0,
) -> None:
    """What becomes of requests when far more come than can be served."""
    from services.bench.overload import run_overload_bench

    _launch(lambda: run_overload_bench(times=times, seconds=seconds))


@bench.command("soak")
def bench_soak(
    seconds: Annotated[float, typer.Option(help="How long, s.", min=60)] = 3600.0,
    rate: Annotated[float, typer.Option(help="Requests a second.", min=0.05)] = 1.0,
) -> None:
    """Whether memory, open files or Redis keys grow under an hour of mixed load."""
    from services.bench.soak import run_soak_bench

    _launch(lambda: run_soak_bench(seconds=seconds, rate_hz=rate))


@bench.command("traffic")
def bench_traffic(
    report: Annotated[Path, typer.Option(help="Folder that a load test wrote.")] = Path("loadtest-out"),
    pictures: Annotated[int, typer.Option(help="Different pictures that are compressed.", min=1)] = 250,
) -> None:
    """What a load test saved against WebP and JPEG of equal quality."""
    from services.bench.traffic import run_traffic_bench

    _launch(lambda: run_traffic_bench(report, images=pictures))


@bench.command("cost")
def bench_cost(
    requests: Annotated[int, typer.Option(help="Images of each delivery.", min=1)] = 16,
) -> None:
    """Time, backhaul and channel uses of an image, semantic and conventional."""
    from services.bench.cost import run_cost_bench

    _launch(lambda: run_cost_bench(requests=requests))


@bench.command("distill")
def bench_distill(
    topics: Annotated[str, typer.Option(help="Topics, separated by commas.")] = "neon,rocket",
) -> None:
    """Time from asking for a distillation over REST to the first image drawn with it."""
    from services.bench.distill import run_distill_bench

    _launch(lambda: run_distill_bench(topics=topics.split(",")))


@bench.command("page")
def bench_page() -> None:
    """Fill docs/results-load.md and docs/performance.md from what was measured."""
    from services.bench.report import LOAD, PERFORMANCE

    LOAD.write()
    PERFORMANCE.write()


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
    from dekag.evaluation.reports import baseline_models, end_to_end
    from dekag.evaluation.studies.quick import QUICK, run_quick

    _measure(lambda: run_quick(ray=ray, workers=workers, keep=keep))
    for report in (baseline_models.REPORT, end_to_end.REPORT):
        report.write(results=QUICK, into=QUICK)
    if keep:
        _fill_pages()


@results.command("book")
def book() -> None:
    """Fill what the README and docs/ take from results/, and the reference from the code."""
    from services.cli.book import has_pages, write_pages, write_reference
    from services.cli.main import app

    if not has_pages():
        typer.echo(
            "There is no README.md and no docs/ here: the book is written in a clone of dekag", err=True
        )
        raise typer.Exit(2)
    write_pages()
    write_reference(app)


def _launch(work: Callable[[], object]) -> None:
    """Runs what starts the chain; a signal or what the chain refuses ends it without a traceback."""
    from services.launcher.stack import Stopped

    try:
        work()
    except Stopped:
        raise typer.Exit(130) from None
    except DekagError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
