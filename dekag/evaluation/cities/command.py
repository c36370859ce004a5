"""`dekag simulate` and `dekag bench simulate`.

A finished run, one strategy in the city of one seed, is kept under the hash of everything that it depends on,
so that an interrupted command resumes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import typer
from tqdm import tqdm

from dekag import plugins, simulation
from dekag.console import plain_console
from dekag.documents import read_json
from dekag.errors import DekagError
from dekag.evaluation import plots
from dekag.evaluation.cities import tables
from dekag.evaluation.cities.summary import by_hour, by_topic, names_of, summarise
from dekag.evaluation.pages import Row, write_rows
from dekag.evaluation.registry import RESULTS, current_commit, record
from dekag.evaluation.runner import LOCAL, WorkerDied, machine, run_on_ray, run_serially
from dekag.evaluation.store import ResultStore, content_key, write_whole
from dekag.files import check_folder
from dekag.simulation.city import City, read_city
from dekag.simulation.simulator import World, simulate

RUNS = Path("runs/cities")
COMMAND = "dekag simulate"
BENCH_COMMAND = "dekag bench simulate"


@dataclass(frozen=True)
class Task:
    """One strategy in the city of one seed.

    Attributes:
        city: with the changes of the variant.
        variant: name of the variant; empty without one.
        seed: of the city.
        strategy: index into the city's strategies.
    """

    city: City
    variant: str
    seed: int
    strategy: int

    def __hash__(self) -> int:
        return hash((self.variant, self.seed, self.strategy))


def run_city(
    path: Path,
    *,
    ray: str | None = None,
    workers: int | None = None,
    results: Path = RESULTS,
    runs: Path = RUNS,
    as_json: bool = False,
) -> list[Row]:
    """Simulate what is not simulated yet of a city, and write rows, a table and plots.

    Args:
        path: the city, a YAML file or the name of a shipped one.
        ray, workers: as `runner.run_on_ray` takes them; None: one run after another in this process.
        results: a folder with the city's name is made in it.
        runs: where finished runs are kept.
        as_json: the summary is JSON, and all that goes to the standard output.

    Returns:
        A row for each seed and strategy.

    Raises:
        InvalidInputError: the city is not valid, or Ray cannot be used.
        DekagError: runs failed; the others are kept, and the next command tries again.
    """
    city = read_city(path)
    city.deliveries()  # now, and not in each run
    folder = results / city.name
    check_folder(folder)
    store, code = ResultStore(runs), code_hash()
    variants = {"": city} | {each.name: city.with_variant(each) for each in city.variants}
    tasks = [
        Task(changed, name, seed, index)
        for name, changed in variants.items()
        for seed in city.seeds
        for index in range(len(city.strategies))
    ]
    places = {task: store.path("runs", key(task, code)) for task in tasks}
    todo = [task for task in tasks if not places[task].exists()]
    groups = [list(group) for _, group in itertools.groupby(todo, lambda task: (task.variant, task.seed))]
    total = sum(task.city.demand.requests for task in todo)
    failed: list[tuple[Task, str]] = []
    with tqdm(total=total, desc=city.name, unit="request", unit_scale=True, disable=not todo) as bar:
        found: Iterator[tuple[Task, Any]]
        if ray is None or not todo:
            found = run_serially(partial(attempt, progress=bar.update), groups)
        else:
            found = run_on_ray(attempt, groups, ray, workers)
        for task, rows in found:
            if isinstance(rows, WorkerDied | str):
                failed.append((task, rows.why if isinstance(rows, WorkerDied) else rows))
                continue
            write_whole(places[task], json.dumps(rows).encode())
            if ray is not None:
                bar.update(task.city.demand.requests)
    finished = [
        read_json(places[task]) | {"variant": task.variant} for task in tasks if places[task].exists()
    ]
    rows = [each["run"] | {"variant": each["variant"]} for each in finished]
    console = plain_console(stderr=as_json)
    if rows:
        write_folder(folder, city, rows, finished)
        said = f"{len(todo) - len(failed)} runs simulated, {len(tasks) - len(todo)} read -> {folder}"
        console.print(said, soft_wrap=True)
        if not as_json:
            shown = tables.summary_table([row for row in rows if not row["variant"]])
            console.print("\n".join(shown), soft_wrap=True)
    if as_json:
        problems = [
            {"variant": task.variant, "seed": task.seed, "strategy": _name(task), "error": why}
            for task, why in failed
        ]
        typer.echo(json.dumps({"runs": rows, "failed": problems, "folder": str(folder)}))
    if failed:
        for task, why in failed:
            console.print(f"failed: seed {task.seed}, {_name(task)}: {why}", style="red", soft_wrap=True)
        raise DekagError(f"{len(failed)} of {len(tasks)} runs failed; run again to retry")
    return rows


def _name(task: Task) -> str:
    return task.city.strategies[task.strategy].name


@cache
def code_hash() -> str:
    """SHA-256 of the code of the simulation and of its summary."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for file in sorted([*Path(simulation.__path__[0]).glob("*.py"), here / "summary.py"]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def key(task: Task, code: str) -> str:
    """Hash of everything that a run depends on."""
    left_out = {"strategies", "seeds", "name", "table", "variants"}
    city = task.city.model_dump(mode="json", exclude=left_out)
    table = task.city.deliveries().source
    strategy = task.city.strategies[task.strategy].model_dump(mode="json")
    return content_key(city, strategy, task.seed, table, code, plugins.code_hashes(), sort_keys=True)


_last_world: list[tuple[City, int, World]] = []  # of the last task: strategies of a seed share it


def attempt(task: Task, progress: Any = None) -> dict[str, Any] | str:
    """The rows of a run, or why it failed: one bad policy must not sink the rest."""
    try:
        start = time.perf_counter()
        if not _last_world or _last_world[0][:2] != (task.city, task.seed):
            _last_world[:] = [(task.city, task.seed, World.draw(task.city, task.seed))]
        world = _last_world[0][2]
        result = simulate(world, task.city.strategies[task.strategy], progress)
        detailed = task.seed == task.city.seeds[0] and not task.variant
        return {
            "run": summarise(result),
            "hours": by_hour(result) if detailed else [],
            "topics": by_topic(result) if detailed and result.distilled else [],
            "seconds": time.perf_counter() - start,
            "machine": machine(),
        }
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def write_folder(
    folder: Path, city: City, every: Sequence[Row], finished: Sequence[Mapping[str, Any]]
) -> None:
    """Write the rows of all runs, the city itself with the table's source, a summary and plots."""
    rows = [row for row in every if not row["variant"]]
    detailed = [each for each in finished if not each["variant"] and each["run"]["seed"] == city.seeds[0]]
    hours = [row for each in detailed for row in each["hours"]]
    topics = [row for each in detailed for row in each["topics"]]
    write_rows(folder / "runs.jsonl", every)
    write_rows(folder / "hours.jsonl", hours)
    write_rows(folder / "topics.jsonl", topics)
    about = {
        "command": COMMAND,
        "commit": current_commit(),
        "machine": finished[0]["machine"],
        "city": city.model_dump(mode="json", exclude={"table"}),
        "table": city.deliveries().source,
    }
    (folder / "city.json").write_text(json.dumps(about, indent=1) + "\n")
    lines = [f"# {city.name}", "", *tables.summary_table(rows), "", "Savings against the first strategy:", ""]
    if len(names_of(rows)) > 1:
        lines += [*tables.savings_table(rows), ""]
    lines += [*tables.quality_table(rows), "", *tables.updates_table(rows), "", *tables.latency_table(rows)]
    if city.variants:
        lines += ["", *tables.variants_table(every)]
    (folder / "summary.md").write_text("\n".join(lines) + "\n")
    if hours:
        plots.write_plot(tables.hours_plot(hours), folder / "hours.svg")
    plots.write_plot(tables.latency_plot(rows), folder / "latency.svg")
    if topics:
        plots.write_plot(tables.topics_plot(topics), folder / "topics.svg")


def bench_simulate(
    path: Path, *, requests: Sequence[int] = (10_000, 100_000, 1_000_000), results: Path = RESULTS
) -> list[Row]:
    """Time and memory of a city with rising numbers of requests, each in a process of its own.

    Args:
        path: the city; its last strategy but the oracles is simulated for its first seed.
        requests: numbers of requests.
        results: where headline.json is; rows go into its folder city/.

    Returns:
        A row for each number: `requests`, `seconds`, `cpu_seconds`, `rss_gib`. CPU time and memory of the
        last one are recorded as `simulate_million_seconds` and `simulate_rss_gib` if it is a million: unlike
        the time, they do not depend on what else runs on the machine.
    """
    rows: list[Row] = []
    for count in requests:
        command = [sys.executable, "-c", _PROBE, str(path), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise DekagError(f"the simulation of {count} requests failed: {done.stderr[-500:]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        plain_console().print(
            f"{count:,} requests: {rows[-1]['seconds']:.1f} s, CPU time {rows[-1]['cpu_seconds']:.1f} s, "
            f"{rows[-1]['rss_gib']:.2f} GiB",
        )
    about = {"command": BENCH_COMMAND, "commit": current_commit(), "machine": machine(), "rows": rows}
    write_whole(results / "city" / "bench-simulate.json", (json.dumps(about, indent=1) + "\n").encode())
    if requests[-1] == 1_000_000:
        common: dict[str, Any] = {"command": BENCH_COMMAND, "count": 1, "results": results}
        record("simulate_million_seconds", rows[-1]["cpu_seconds"], "s", **common)
        record("simulate_rss_gib", rows[-1]["rss_gib"], "GiB", **common)
    return rows


def bench_ray(path: Path, *, results: Path = RESULTS) -> dict[int, float]:
    """Seconds of all seeds and strategies of a city on one and two workers of Ray.

    Everything counts: starting Ray, drawing the cities, simulating, and writing results.

    Args:
        path: the city.
        results: where headline.json is; the speed of two workers relative to one is recorded as
            `simulate_ray_2_workers`.

    Raises:
        DekagError: the two did not simulate the same.
    """
    seconds: dict[int, float] = {}
    rows: list[list[Row]] = []
    with tempfile.TemporaryDirectory() as name:
        for workers in (1, 2):
            own = Path(name, str(workers))
            start = time.perf_counter()
            rows.append(
                run_city(path, ray=LOCAL, workers=workers, results=own / "results", runs=own / "runs")
            )
            seconds[workers] = time.perf_counter() - start
    if rows[0] != rows[1]:
        raise DekagError("one and two workers did not simulate the same: a policy depends on what ran before")
    for workers, value in seconds.items():
        plain_console().print(f"{len(rows[0])} runs, Ray with {workers} worker(s): {value:.1f} s")
    record(
        "simulate_ray_2_workers", seconds[1] / seconds[2], "ratio", command=f"{BENCH_COMMAND} --ray",
        count=len(rows[0]), results=results,
    )  # fmt: skip
    return seconds


_PROBE = "import sys; from dekag.evaluation.cities.command import probe; probe(sys.argv[1], int(sys.argv[2]))"


def probe(path: str, requests: int) -> None:
    """Print the time and memory of one simulation as JSON; a process of its own for each."""
    city = read_city(Path(path))
    city = city.model_copy(update={"demand": city.demand.model_copy(update={"requests": requests})})
    strategy = [each for each in city.strategies if "oracle" not in each.distil.name][-1]
    start, cpu = time.perf_counter(), time.process_time()
    result = simulate(World.draw(city, city.seeds[0]), strategy)
    summarise(result)
    row = {
        "requests": len(result.path),
        "seconds": round(time.perf_counter() - start, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 4),
    }
    sys.stdout.write(json.dumps(row) + "\n")
