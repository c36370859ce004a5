"""Commands that measure: `dekag experiment`, `bench` and `sweep`; and `results`, which fills pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dekag.paths import shipped_sweep
from services.cli.extras import Group
from services.cli.options import DATA, Bf16, Processes, Profile, Ray, RayWorkers, Threads

Requests = Annotated[int, typer.Option(help="Number of requests to each side.", min=5)]
TestImages = Annotated[int, typer.Option("--count", help="Number of test images.", min=8)]


def _fill_pages(*_: object, **__: object) -> None:
    """Fills the pages from results/ after a measurement."""
    from services.cli.book import has_pages, write_pages

    if has_pages():
        write_pages()


experiment = Group(
    help="Run an experiment; writes results/ and fills its page in docs/.",
    no_args_is_help=True,
    result_callback=_fill_pages,
)
bench = Group(
    help="Benchmark the services; writes results/load/.", no_args_is_help=True, result_callback=_fill_pages
)
results = Group(help="Fill the pages from results/, or check the results quickly.", no_args_is_help=True)


@experiment.command("first-image")
def first_image(
    count: Annotated[int, typer.Option(help="Number of test images per figure.", min=8)] = 500,
    threads: Threads = 2,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="What to evaluate: vae, edge, cloud, codec or steps of the sampler; can be repeated. "
            "Default: all; vae and codec if the profile has no probe."
        ),
    ] = None,
    profile: Profile = "stickers",
) -> None:
    """Evaluate the models without any alignment; fills docs/results-first-image.md."""
    import torch

    from dekag.evaluation.studies.baseline_models import PARTS, run

    if unknown := set(only or ()) - set(PARTS):
        raise typer.BadParameter(
            f"must be one of {', '.join(PARTS)}; got {', '.join(unknown)}", param_hint="--only"
        )
    torch.set_num_threads(threads)
    run(count, parts=only or None, **_targets(profile))


@experiment.command("naming")
def naming(
    count: Annotated[int, typer.Option(help="Number of pictures of each generator.", min=2)] = 60,
    threads: Threads = 2,
    profile: Profile = "stickers",
) -> None:
    """Blind naming: draw numbered pictures for somebody who does not know the prompts; score the answers.

    The first run writes results/naming/sheet-*.webp and an empty answers.csv; once that is filled in, the
    next run scores it.
    """
    import torch

    from dekag.evaluation.studies.naming import run_naming

    torch.set_num_threads(threads)
    for line in run_naming(count=count, **_targets(profile)):
        typer.echo(line)


@experiment.command("first-minute")
def first_minute() -> None:
    """Count what viewers understood of the web page in a minute, as marked in results/page/answers.csv.

    results/page/protocol.txt says what they are shown and asked, and what the marks mean.
    """
    from dekag.evaluation.registry import RESULTS
    from dekag.evaluation.studies.first_minute import run_first_minute

    for line in run_first_minute(results=RESULTS):
        typer.echo(line)


@experiment.command("gka")
def gka(
    prompts: Annotated[int, typer.Option(help="Number of test prompts per topic.", min=4)] = 16,
    seeds: Annotated[int, typer.Option(help="Number of training seeds.", min=1)] = 3,
    trainings: Annotated[
        bool,
        typer.Option(
            help="Train MAKD's full form, its baselines and variants of single settings. Without: measure "
            "only the updates that come with the profile."
        ),
    ] = True,
    method: Annotated[
        list[str] | None, typer.Option(help="Baseline to train; can be repeated. Default: all.")
    ] = None,
    studies: Annotated[
        bool, typer.Option("--studies/--no-studies", help="Also train variants of single settings.")
    ] = True,
    workers: Processes = 2,
    profile: Profile = "stickers",
) -> None:
    """Generation-knowledge alignment: compare MAKD with its baselines on every topic.

    An interrupted run resumes. Fills docs/results-knowledge-updates.md.
    """
    from dekag.evaluation.studies.makd import Plan, run_gka
    from dekag.makd.config import METHODS

    baselines = tuple(each for each in METHODS if each != "makd")
    plan = Plan(seeds, trainings, _chosen(method, baselines), studies)
    run_gka(prompts=prompts, plan=plan, workers=workers, **_targets(profile))


@experiment.command("tka")
def tka(
    count: TestImages = 32,
    requests: Annotated[int, typer.Option(help="Number of requests that test rate control.", min=4)] = 300,
    rounds: Annotated[int, typer.Option(help="Number of rounds of the cost comparison.", min=5)] = 200,
    seeds: Annotated[
        int,
        typer.Option(
            help="Number of training seeds of CALA and of the best baseline; others are trained once.", min=1
        ),
    ] = 3,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Optimiser steps of each baseline. Default: as the shipped adapters. If those were trained "
            "otherwise than the baselines are, or do not say on which examples, another CALA is trained to "
            "compare.",
            min=1,
        ),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Baseline to train; can be repeated. Default: all.")
    ] = None,
    curves: Annotated[
        bool,
        typer.Option(
            "--curves/--no-curves",
            help="Also train for the curves over parameters and length, and an oracle for each condition.",
        ),
    ] = True,
    costs_only: Annotated[
        bool,
        typer.Option("--costs-only", help="Measure only the time that gates take, and keep all other rows."),
    ] = False,
    drawn: Annotated[
        Path | None,
        typer.Option(
            help="Latent set that the profile's edge generated (`dekag train latents`), the one that the "
            "profile's adapters were trained on: half of each batch is from it. Default: one is generated.",
            rich_help_panel=DATA,
        ),
    ] = None,
    bf16: Bf16 = False,
    workers: Processes = 2,
    profile: Profile = "stickers",
) -> None:
    """Transmission-knowledge alignment: compare CALA with its baselines on every channel.

    Baselines are trained as `dekag train cala --drawn` trains CALA. An interrupted run resumes. Fills
    docs/results-transmission.md.
    """
    from dekag.evaluation.studies.cala import run_costs, run_tka
    from dekag.evaluation.studies.cala_training import COMPARABLE, Plan

    plan = Plan(drawn, bf16, _chosen(method, COMPARABLE), curves, seeds, steps)
    if costs_only:
        run_costs(plan=plan, count=count, rounds=rounds, **_targets(profile))
        return
    run_tka(plan=plan, count=count, requests=requests, rounds=rounds, workers=workers, **_targets(profile))


@experiment.command("restoration")
def restoration(
    count: TestImages = 32,
    workers: Processes = 2,
    profile: Profile = "stickers",
) -> None:
    """Measure what a step of the edge's denoiser at the receiver adds to CALA.

    An interrupted run resumes. Fills docs/results-restoration.md.
    """
    from dekag.evaluation.studies.restoration import run_restoration

    run_restoration(count=count, workers=workers, **_targets(profile))


@experiment.command("digital")
def digital(
    count: TestImages = 32,
    checks: Annotated[
        int, typer.Option(help="Number of deliveries that are decoded to check the predictions.", min=0)
    ] = 100,
    threads: Threads = 1,
    channel: Annotated[
        list[str] | None, typer.Option(help="Channel to evaluate; can be repeated. Default: all.")
    ] = None,
    profile: Profile = "stickers",
) -> None:
    """Compare CALA with the best digital sender; fills docs/results-digital.md."""
    import torch

    from dekag.evaluation.studies.digital import CHANNELS, run_digital

    if unknown := set(channel or ()) - set(CHANNELS):
        problem = f"must be one of {', '.join(CHANNELS)}; got {', '.join(unknown)}"
        raise typer.BadParameter(problem, param_hint="--channel")
    torch.set_num_threads(threads)
    run_digital(count=count, checks=checks, channels=channel or list(CHANNELS), **_targets(profile))


@experiment.command("photos")
def photos(
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Picture or folder of pictures. Default: photographs that installed packages bring."
        ),
    ] = None,
    side: Annotated[
        int, typer.Option(help="Longer side to which photographs are reduced, pixels.", min=100, max=4096)
    ] = 272,
    checks: Annotated[
        int, typer.Option(help="Number of deliveries that are decoded to check the predictions.", min=0)
    ] = 60,
    semantic: Annotated[
        bool,
        typer.Option(
            help="Whether the semantic link is measured beside file formats and the codec of pixels."
        ),
    ] = True,
    workers: Processes = 2,
    profile: Profile = "stickers",
) -> None:
    """Send photographs by HEVC, JPEG XL, AVIF, WebP and JPEG over LDPC and QAM, and by a profile's links.

    Prints PSNR by channel, rate and SNR. An interrupted run resumes. Without --folder it fills
    docs/results-photos.md.
    """
    from dekag.evaluation.reports.photos import psnr_tables
    from dekag.evaluation.studies.photos import run_photos
    from dekag.pictures import find_pictures

    targets, pictures = _targets(profile), None
    if folder is not None:
        pictures = find_pictures(folder)
        targets["results"] = Path("runs", f"photos-{pictures.name}", "results")
        if pictures.skipped:
            typer.echo(pictures.skipped_note, err=True)
        typer.echo(f"The results of {folder} go to {targets['results']}.")
    run_photos(folder=pictures, side=side, checks=checks, semantic=semantic, workers=workers, **targets)
    for line in psnr_tables(targets["results"]):
        typer.echo(line)


@experiment.command("metrics")
def metrics() -> None:
    """Compare metrics with their reference implementations on made data; fills docs/metrics.md."""
    from dekag.evaluation.studies.metrics import run_metrics

    typer.echo(f"{run_metrics()} metrics are equal to their references; docs/metrics.md lists all")


@experiment.command("overall")
def overall(
    ray: Ray = None,
    workers: RayWorkers = None,
    profile: Profile = "stickers",
) -> None:
    """Compare DeKA-g with its halves and the best digital sender; resumes, fills docs/results-overall.md."""
    from dekag.evaluation.studies.end_to_end import run_overall

    run_overall(ray=ray, workers=workers, **_targets(profile))


def _existing_grid(grid: Path) -> Path:
    path = shipped_sweep(grid)
    if not path.is_file():
        raise typer.BadParameter(f"there is no file and no shipped sweep {str(grid)!r}")
    return path


def sweep(
    grid: Annotated[
        Path,
        typer.Argument(
            help="YAML file, or the name of a shipped sweep: quick, overall or own-pictures.",
            callback=_existing_grid,
        ),
    ],
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="Pictures of your own to send: a picture, a folder of pictures, or CIFAR-10. Default: what "
            "the grid says."
        ),
    ] = None,
    traces: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the traces (NAME.csv) and SigMF recordings that links of the grid name. Default: "
            "what the grid says."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Metric to measure, such as ssim or a plug-in's; can be repeated. Default: what the grid "
            "says."
        ),
    ] = None,
    ray: Ray = None,
    workers: RayWorkers = None,
    results: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print only a summary, as JSON; progress goes to stderr.")
    ] = False,
) -> None:
    """Evaluate a grid of deliveries, topics, channels, SNRs and rates; resumes, writes tables and plots."""
    from dekag.evaluation.sweeps.command import run_sweep

    run_sweep(
        grid,
        ray=ray,
        workers=workers,
        pictures=pictures,
        traces=traces,
        metrics=metric,
        results=results,
        as_json=as_json,
    )


def _existing_city(city: Path) -> Path:
    from dekag.simulation.city import shipped_city

    path = shipped_city(city)
    if not path.is_file():
        raise typer.BadParameter(f"there is no file and no shipped city {str(city)!r}")
    return path


City = Annotated[
    Path,
    typer.Argument(
        help="YAML file, or the name of a shipped city: small, variants or week.", callback=_existing_city
    ),
]


def simulate(
    city: City,
    ray: Ray = None,
    workers: RayWorkers = None,
    results: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print only a summary, as JSON; progress goes to stderr.")
    ] = False,
) -> None:
    """Simulate strategies in a city of many cells and users; resumes, writes tables and plots."""
    from dekag.evaluation.cities.command import run_city

    run_city(city, ray=ray, workers=workers, results=results, as_json=as_json)
    if results == Path("results"):
        _fill_pages()


@bench.command("simulate")
def bench_simulate(
    city: City = Path("week"),
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Compare one and two workers of Ray instead, on all runs of the city."),
    ] = False,
) -> None:
    """Measure time and memory of the simulation with up to a million requests."""
    from dekag.evaluation.cities.command import bench_ray, bench_simulate

    if ray:
        bench_ray(city)
    else:
        bench_simulate(city)


@bench.command("simulate-agreement")
def bench_simulate_agreement(
    requests: Annotated[int, typer.Option(help="Expected number of requests.", min=10, max=10_000)] = 300,
    rate: Annotated[
        float, typer.Option(help="Requests per second, fewer than the machine can serve.", min=0.05, max=100)
    ] = 0.75,
    profile: Profile = "stickers",
) -> None:
    """Run a small city on real services, simulate it, and compare bytes and latency."""
    from services.bench.agreement import run_agreement_bench

    _launch(lambda: run_agreement_bench(requests=requests, rate_hz=rate, **_targets(profile)))


@bench.command("sweep")
def bench_sweep(
    cells: Annotated[int, typer.Option(help="Number of cells of the grid.", min=4)] = 200,
    profile: Profile = "stickers",
) -> None:
    """Compare the duration of a sweep: serial, with one Ray worker, with two."""
    from dekag.evaluation.sweeps.command import bench_sweep

    bench_sweep(cells, **_targets(profile))


@bench.command("chain")
def bench_chain(
    requests: Requests = 40,
    profile: Profile = "stickers",
) -> None:
    """Compare a request through all services with the same library calls in one process."""
    from services.bench.latency import run_chain_bench

    _launch(lambda: run_chain_bench(requests=requests, **_targets(profile)))


@bench.command("picture")
def bench_picture(
    requests: Requests = 20,
    profile: Profile = "stickers",
) -> None:
    """Compare the time of an image with that of the first edition's models, in one run."""
    from services.bench.picture import run_picture_bench

    _launch(lambda: run_picture_bench(requests=requests, **_targets(profile)))


@bench.command("web-page")
def bench_web_page(
    openings: Annotated[int, typer.Option(help="How often the page is opened.", min=2)] = 10,
    lighthouse: Annotated[bool, typer.Option(help="Run Lighthouse as well; needs npx.")] = True,
    profile: Profile = "stickers",
) -> None:
    """Measure how soon the web page shows its first image, what it loads, and its Lighthouse scores.

    Needs Playwright and Chromium, as `make test-browser` does.
    """
    from services.bench.web_page import run_web_page_bench

    _launch(lambda: run_web_page_bench(openings=openings, lighthouse=lighthouse, **_targets(profile)))


@bench.command("throughput")
def bench_throughput(
    requests: Annotated[int, typer.Option(help="Number of images per measurement.", min=1)] = 48,
    rounds: Annotated[
        int, typer.Option(help="Number of rounds; the order of the servers changes each round.", min=1)
    ] = 5,
    users: Annotated[
        str, typer.Option(help="Numbers of closed-loop users, separated by commas.")
    ] = "1,2,4,8,16",
    profile: Profile = "stickers",
) -> None:
    """Compare the throughput of the services with LitServe and a plain FastAPI handler."""
    from services.bench.throughput import run_throughput_bench

    try:
        numbers = [int(number) for number in users.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise typer.BadParameter(
            f"must be different positive integers, separated by commas; got {users!r}", param_hint="--users"
        )
    _launch(
        lambda: run_throughput_bench(requests=requests, rounds=rounds, users=numbers, **_targets(profile))
    )


@bench.command("cached")
def bench_cached(
    requests: Requests = 100,
    profile: Profile = "stickers",
) -> None:
    """Compare a cached request through all services with channel and decoder calls in one process."""
    from services.bench.latency import run_cached_bench

    _launch(lambda: run_cached_bench(requests=requests, **_targets(profile)))


@bench.command("channel")
def bench_channel(
    symbols: Annotated[int, typer.Option(help="Number of symbols per measurement.", min=1)] = 4_000_000,
    rounds: Annotated[int, typer.Option(help="Number of rounds.", min=1)] = 7,
    streams: Annotated[int, typer.Option(help="Number of simultaneous transmissions.", min=1)] = 4,
) -> None:
    """Compare the symbol rate of the channel service with bare Sionna in one process."""
    from services.bench.channel import run_channel_bench

    _launch(lambda: run_channel_bench(symbols=symbols, rounds=rounds, streams=streams))


@bench.command("start")
def bench_start(
    rounds: Annotated[int, typer.Option(help="Number of timed starts.", min=1)] = 5,
    requests: Annotated[
        int, typer.Option(help="Number of images per delivery before memory is measured.", min=1)
    ] = 4,
    profile: Profile = "stickers",
) -> None:
    """Measure the start-up time, the memory of each service, and the time to recover from its end."""
    from services.bench.start import run_start_bench

    _launch(lambda: run_start_bench(rounds=rounds, requests=requests, **_targets(profile)))


@bench.command("restoration")
def bench_restoration(
    requests: Annotated[int, typer.Option(help="Number of images of each kind.", min=1)] = 4,
    profile: Profile = "stickers",
) -> None:
    """Measure the memory of the user service before and after requests with `link.restoration`."""
    from services.bench.restoration import run_restoration_bench

    _launch(lambda: run_restoration_bench(requests=requests, **_targets(profile)))


@bench.command("full-size")
def bench_full_size(
    models: Annotated[
        Path | None,
        typer.Option(help="Folder for the models, 5 GB; written if missing. Default: one below .run."),
    ] = None,
) -> None:
    """Measure time and memory of Stable Diffusion 2.1 and PixArt-Sigma at 512x512, with random weights."""
    from services.bench.full_size import run_full_size_bench

    _launch(lambda: run_full_size_bench(models=models))


@bench.command("update-size")
def bench_update_size(
    photos: Annotated[Path, typer.Option(help="Folder of photographs with sides of at least 1024 pixels.")],
) -> None:
    """Compare the bytes of an update of Stable Diffusion 2.1 with those of photographs, without training."""
    from services.bench.update_size import run_update_size_bench

    run_update_size_bench(photos)


@bench.command("parts")
def bench_parts(
    repeats: Annotated[int, typer.Option(help="Number of measurements of each part.", min=1)] = 9,
    profile: Profile = "stickers",
) -> None:
    """Measure the time of each part of an image, and of its alternatives."""
    from services.bench.parts import run_parts_bench

    _launch(lambda: run_parts_bench(repeats=repeats, **_targets(profile)))


@bench.command("ldpc")
def bench_ldpc(
    codewords: Annotated[int, typer.Option(help="Codewords of each code and SNR.", min=1)] = 200,
) -> None:
    """Compare codewords lost by the LDPC decoder, and its CPU time, with Sionna's decoder."""
    from services.bench.ldpc import run_ldpc_bench

    _launch(lambda: run_ldpc_bench(codewords=codewords))


@bench.command("overload")
def bench_overload(
    times: Annotated[float, typer.Option(help="Arrival rate, as a multiple of the capacity.", min=1)] = 4.0,
    seconds: Annotated[float, typer.Option(help="Duration of the load, s.", min=1)] = 120.0,
    profile: Profile = "stickers",
) -> None:
    """Measure response times and refusals under overload."""
    from services.bench.overload import run_overload_bench

    _launch(lambda: run_overload_bench(times=times, seconds=seconds, **_targets(profile)))


@bench.command("scale")
def bench_scale(
    seconds: Annotated[float, typer.Option(help="Duration of each load, s.", min=1)] = 20.0,
    rounds: Annotated[int, typer.Option(help="Number of rounds.", min=2)] = 3,
) -> None:
    """Measure the throughput of 1, 2 and 4 simulated edges, and compare choices among them."""
    from services.bench.scale import run_scale_bench

    _launch(lambda: run_scale_bench(seconds=seconds, rounds=rounds))


@bench.command("upgrade")
def bench_upgrade(
    service: Annotated[str, typer.Option(help="Service to upgrade: edge, channel or user.")] = "edge",
    rate: Annotated[float, typer.Option(help="Requests per second.", min=0.1, max=100)] = 8.0,
    runs: Annotated[int, typer.Option(help="Runs of each event.", min=1, max=100)] = 3,
) -> None:
    """Count the requests that fail while one of two replicas is restarted, replaced or killed."""
    from services.bench.upgrade import SERVICES, run_upgrade_bench

    if service not in SERVICES:
        raise typer.BadParameter(f"must be one of {', '.join(SERVICES)}", param_hint="--service")
    _launch(lambda: run_upgrade_bench(service=service, rate_hz=rate, runs=runs))


@bench.command("soak")
def bench_soak(
    seconds: Annotated[float, typer.Option(help="Duration, s.", min=60)] = 3600.0,
    rate: Annotated[float, typer.Option(help="Arrival rate, requests per second.", min=0.05)] = 1.0,
    profile: Profile = "stickers",
) -> None:
    """Measure the growth of memory, open files and Redis keys during an hour of mixed load."""
    from services.bench.soak import run_soak_bench

    _launch(lambda: run_soak_bench(seconds=seconds, rate_hz=rate, **_targets(profile)))


@bench.command("traffic")
def bench_traffic(
    report: Annotated[Path, typer.Option(help="Folder of a load test's report.")] = Path("loadtest-out"),
    pictures: Annotated[
        int, typer.Option(help="Upper limit of the number of different images that are compressed.", min=1)
    ] = 250,
    profile: Profile = "stickers",
) -> None:
    """Compare the traffic of a load test with WebP and JPEG files of equal quality."""
    from services.bench.traffic import run_traffic_bench

    _launch(lambda: run_traffic_bench(report, images=pictures, **_targets(profile)))


@bench.command("cost")
def bench_cost(
    requests: Annotated[int, typer.Option(help="Number of images per delivery.", min=1)] = 16,
    profile: Profile = "stickers",
) -> None:
    """Compare time, backhaul and channel uses of semantic and conventional delivery."""
    from services.bench.cost import run_cost_bench

    _launch(lambda: run_cost_bench(requests=requests, **_targets(profile)))


@bench.command("deliveries")
def bench_deliveries(
    prompts: Annotated[int, typer.Option(help="Number of prompts that the edge knows.", min=2)] = 8,
    topics: Annotated[
        str, typer.Option(help="Topics whose shipped updates are used, separated by commas; empty for all.")
    ] = "",
    profile: Profile = "stickers",
) -> None:
    """Measure cost and quality of single deliveries: the table that `dekag simulate` reads."""
    from services.bench.deliveries import run_deliveries_bench

    names = [name for name in topics.split(",") if name]
    _launch(lambda: run_deliveries_bench(prompts=prompts, topics=names, **_targets(profile)))


@bench.command("distill")
def bench_distill(
    topics: Annotated[
        str | None,
        typer.Option(
            help="Topics to distil, separated by commas. Default: the profile's own, or neon and rocket."
        ),
    ] = None,
    threads: Annotated[
        int,
        typer.Option(min=0, help="CPU threads of a distillation (DEKAG_DISTILL_THREADS); 0: all cores."),
    ] = 0,
    profile: Profile = "stickers",
) -> None:
    """Measure the time from the request for a distillation to the first image generated with it."""
    from services.bench.distill import default_topics, run_distill_bench

    chosen = topics.split(",") if topics else default_topics(profile)
    _launch(lambda: run_distill_bench(topics=chosen, threads=threads, **_targets(profile)))


@bench.command("page")
def bench_page() -> None:
    """Fill docs/results-load.md and docs/performance.md from results/load/."""
    from services.bench.report import LOAD, PERFORMANCE

    LOAD.write()
    PERFORMANCE.write()


def _chosen(methods: list[str] | None, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """The baselines of --method: all, if none is given."""
    if unknown := set(methods or ()) - set(allowed):
        problem = f"must be one of {', '.join(allowed)}; got {', '.join(sorted(unknown))}"
        raise typer.BadParameter(problem, param_hint="--method")
    return tuple(methods or allowed)


def _targets(profile: str) -> dict[str, Any]:
    """Arguments that say which models are measured, and where results go.

    Those of the shipped profile are committed, and fill the pages; others must not replace them.
    """
    from dekag.evaluation.registry import RESULTS

    if profile == "stickers":
        return {"profile": profile, "results": RESULTS}
    folder = Path("runs", Path(profile).resolve().name, "results")
    typer.echo(f"The results of the profile {profile} go to {folder}.")
    return {"profile": profile, "results": folder}


@results.command("quick")
def quick(
    ray: Ray = None,
    workers: RayWorkers = None,
    keep: Annotated[bool, typer.Option("--record", help="Record the duration in results/.")] = False,
) -> None:
    """Measure the shipped models again within minutes, without training, beside the committed figures."""
    from dekag.evaluation.reports import baseline_models, end_to_end
    from dekag.evaluation.studies.quick import QUICK, run_quick

    run_quick(ray=ray, workers=workers, keep=keep)
    for report in (baseline_models.REPORT, end_to_end.REPORT):
        report.write(results=QUICK, into=QUICK)
    if keep:
        _fill_pages()


@results.command("book")
def book() -> None:
    """Fill README and docs/ from results/, and the reference pages from the code. Measures nothing."""
    from services.cli.book import has_pages, write_pages, write_reference
    from services.cli.main import app

    if not has_pages():
        typer.echo(
            "There is no README.md and no docs/ here: run this command in a clone of the repository", err=True
        )
        raise typer.Exit(2)
    write_pages()
    write_reference(app)


def _launch(work: Callable[[], object]) -> None:
    """Runs a benchmark that starts services; a signal ends it without a traceback."""
    from services.launcher.stack import Stopped

    try:
        work()
    except Stopped:
        raise typer.Exit(130) from None
