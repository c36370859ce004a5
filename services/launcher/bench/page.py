"""docs/results-load.md and its plots, from results/load/bench-*.json and headline.json alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dekag.documents import read_json
from dekag.experiments.book import MISSING, TARGETS, verdict
from dekag.experiments.files import plt, write_plot
from dekag.experiments.headline import RESULTS, mean_ci95
from services.launcher.bench import channel, overload, start, throughput, traffic
from services.launcher.bench.rows import Row, read_bench

PAGE = Path("docs/results-load.md")
KEYS = (
    "bench_chain_ratio",
    "bench_litserve_ratio",
    "bench_fastapi_ratio",
    "bench_cached_ratio",
    "bench_channel_ratio",
    "ready_seconds",
    "rss_gib",
    "overload_p50_ratio",
    "counters_gap_percent",
    "distill_seconds",
)
IMAGES = (1, 1000)  # of the plot of costs
Lines = list[str]
Bench = Mapping[str, Any]


def write_load_page(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Write the page and, of what was measured, the plots."""
    path = results / "headline.json"
    figures = read_json(path) if path.exists() else {}
    lines = [
        "# Load: what the services cost",
        "",
        "Written by `dekag bench page`, and by every other `dekag bench`, from `results/load/` and",
        "`results/headline.json`; do not edit. `make bench` measures all of it anew. Times depend on the",
        "machine; what counts are ratios to what was measured in turn with it in the same run. Intervals are",
        "95 %.",
        "",
        "| figure | target | value | interval | n | verdict | key |",
        "|---|---:|---:|---:|---:|---|---|",
        *(_figure(key, figures) for key in KEYS),
    ]
    sections = (
        ("Through all services, and in one process", "chain", _chain),
        ("Pictures per second", "throughput", lambda bench: _throughput(bench, results)),
        ("The same picture again", "cached", _cached),
        ("The channel", "channel", _channel),
        ("Start and memory", "start", _start),
        ("Overload", "overload", _overload),
        ("Traffic", "traffic", _traffic),
        ("Distillation", "distill", _distill),
        ("Cost against pictures", "cost", lambda bench: _cost(bench, figures, results)),
    )
    for title, name, text in sections:
        lines += ["", f"## {title}", ""]
        bench = read_bench(name, results)
        if bench is None:
            lines.append(f"`dekag bench {name}`: {MISSING}.")
        else:
            lines += [*text(bench), "", origin(bench, name)]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join([*lines, ""]))


def _figure(key: str, figures: Mapping[str, Any]) -> str:
    claim = next(claim for claim in TARGETS if claim.key == key)
    unit = "" if claim.unit == "ratio" else f" {claim.unit}"
    cells = [claim.words, f"at {claim.bound} {claim.target:g}{unit}"]
    if key not in figures:
        cells += [MISSING, "", "", ""]
    else:
        figure = figures[key]
        interval = " .. ".join(f"{limit:.3g}" for limit in figure["ci95"] or ())
        cells += [f"{figure['value']:.3g}{unit}", interval, str(figure["n"]), verdict(claim, figures)]
    return _row([*cells, f"`{key}`"])


def origin(bench: Bench, name: str) -> str:
    """Where and when a benchmark was run, and where its rows are."""
    where = bench["machine"]
    return (
        f"`{bench['command']}`, {bench['date']}, commit {bench['commit']}, {where['cpus']} CPUs "
        f"({where['system']}, {where['machine']}), Python {where['python']}, torch {where['torch']}: "
        f"[rows](../results/load/bench-{name}.json)."
    )


def _chain(bench: Bench) -> Lines:
    return [
        "One picture after another, none of them cached, over REST and by the same library calls.",
        "",
        "| | median, ms | 95th percentile, ms |",
        "|---|---:|---:|",
        _times("through all services", bench["rows"], "services_s"),
        _times("in one process", bench["rows"], "one_process_s"),
    ]


def _cached(bench: Bench) -> Lines:
    return [
        "The same request again and again, so that the latent comes from Redis and the edge encodes it,",
        "against everything that comes after the latent in one process: encoding, channel, equaliser,",
        "decoding, both pictures of the autoencoder, PSNR and PNG.",
        "",
        "| | median, ms | 95th percentile, ms |",
        "|---|---:|---:|",
        _times("through all services", bench["rows"], "services_s"),
        _times("bare", bench["rows"], "bare_s"),
    ]


def _throughput(bench: Bench, results: Path) -> Lines:
    rows, config = bench["rows"], bench["config"]
    names = list(dict.fromkeys(sorted((row["server"] for row in rows), key=_order)))
    users = config["users"]
    columns = [f"{each} users" if each > 1 else "1 user" for each in users]
    _plot_throughput(rows, names, users, results / "load" / "throughput.svg")
    lines = [
        "Closed loop: each user asks for its next picture when the last has come, with a seed of its own so",
        f"that no cache helps; {config['prompts']} held-out prompts that the edge knows. All servers run the",
        "same models with one thread for each model, and are asked for the same pictures, in turn and in",
        f"another order each round. {config['requests']} pictures are timed in each of {config['rounds']}",
        "rounds, all of them while every user waits for one. `litserve` and `fastapi` hold the pipeline in",
        "one process, as their documentation has it: LitServe with one worker, FastAPI with a plain handler",
        "that takes a lock. The headline is against these. LitServe with two workers holds the models",
        "twice, with batches it hands them up to 16 pictures at once. Of those that are not being measured",
        "all but the services are paused, as a LitServe that makes batches polls its queue when idle.",
        "",
        "Pictures per second:",
        "",
        _row(["server", *columns, "PSNR, dB"]),
        "|---|" + "---:|" * (len(users) + 1),
    ]
    for name in names:
        speeds = [f"{throughput.mean_of(rows, name, each, 'images_per_s'):.2f}" for each in users]
        psnr = statistics.fmean(row["psnr_db"] for row in rows if row["server"] == name)
        lines.append(_row([name, *speeds, f"{psnr:.2f}"]))
    lines += [
        "",
        "Ours over theirs, mean of the rounds with its interval:",
        "",
        _row(["server", *columns]),
        "|---|" + "---:|" * len(users),
    ]
    for name in names:
        if name != throughput.OURS and throughput.OURS in names:
            found = [throughput.ratios(rows, name, each) for each in users]
            lines.append(_row([name, *map(_with_interval, found)]))
    lines += [
        "",
        "Median latency, s:",
        "",
        _row(["server", *columns]),
        "|---|" + "---:|" * len(users),
    ]
    for name in names:
        lines.append(
            _row([name, *(f"{throughput.mean_of(rows, name, each, 'p50_s'):.2f}" for each in users)])
        )
    return [*lines, "", "![Seconds per picture](../results/load/throughput.svg)"]


def _channel(bench: Bench) -> Lines:
    rows, config = bench["rows"], bench["config"]
    lines = [
        "Symbols of a recording, played over gRPC to the channel service and from there, faded and noisy,",
        f"to the client, {config['streams']} transmissions at once. *Bare Sionna* is one thread of the",
        "client: Sionna's correlated flat fading and AWGN on symbols that are there, without seeds of their",
        "own, checks or bytes. *Library* is `dekag.link.channel.transmit`, which the service calls.",
        "Millions of symbols per second:",
        "",
        "| symbols of a transmission | service | bare Sionna | library | service over bare Sionna |",
        "|---:|---:|---:|---:|---:|",
    ]
    for uses in config["channel_uses"]:
        speeds = [
            f"{statistics.fmean(channel.values(rows, way, uses)) / 1e6:.2f}"
            for way in ("service", "sionna", "library")
        ]
        lines.append(_row([f"{uses:,}", *speeds, _with_interval(channel.ratios(rows, uses))]))
    return lines


def _start(bench: Bench) -> Lines:
    rows, config = bench["rows"], bench["config"]
    ready = [row["ready_s"] for row in rows if row["service"] == start.ALL]
    lines = [
        f"From the first process to all ready, files warm: {_with_interval(ready)} s over {config['rounds']}",
        f"starts. Memory after {config['requests']} pictures of each delivery, of each service and what it",
        "started. PSS counts a page that several processes share once, RSS in each of them; the figure above",
        "is PSS. The distiller loads its models with its first job, which is not in here.",
        "",
        "| service | PSS, GiB | RSS, GiB |",
        "|---|---:|---:|",
    ]
    for name in dict.fromkeys(row["service"] for row in rows):
        own = [row for row in rows if row["service"] == name]
        sizes = (statistics.fmean(row[what] for row in own) for what in ("pss_gib", "rss_gib"))
        lines.append(_row([name, *(f"{size:.3f}" for size in sizes)]))
    return lines


def _overload(bench: Bench) -> Lines:
    return [
        f"{overload.USERS} closed-loop users tell the capacity; then requests come as a Poisson process,",
        "each for a picture of its own, whatever becomes of those before.",
        "",
        *(f"- {line}" for line in overload.summary(bench["config"], bench["rows"])),
    ]


def _traffic(bench: Bench) -> Lines:
    rows, config = bench["rows"], bench["config"]
    settings, containers = config["load_test"], config["containers"]
    lines = [
        f"A load test of {config['requests']:,} requests, {config['answered']:,} of them answered,",
        f"{settings['users']} users, {settings['shape']}. {config['compared_requests']:,} semantic ones, of",
        f"{config['pictures']:,} different pictures, are held against the smallest file that shows the",
        "cloud's picture no worse than they showed the edge's.",
        "Updates are charged in full to the requests of the run that were drawn with them, so a longer run",
        "saves more backhaul.",
        "",
        "| at equal PSNR | backhaul, B a picture | ours, B | saved, % | channel uses | ours | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in traffic.FORMATS:
        own = [row for row in rows if row["format"] == name]
        columns = ("file_bytes", "semantic_backhaul_bytes", "file_channel_uses", "semantic_channel_uses")
        theirs, ours, uses, own_uses = (statistics.fmean(row[what] for row in own) for what in columns)
        saved, ratio = traffic.savings(rows, name)
        cells = [name, f"{theirs:,.0f}", f"{ours:,.0f}", _interval(*saved), f"{uses:,.0f}"]
        lines.append(_row([*cells, f"{own_uses:,.0f}", _interval(*ratio)]))
    as_sent = config["savings"]
    shown = [f"{as_sent[what].get('saved_percent', 0):.1f} %" for what in ("backhaul_bytes", "channel_uses")]
    lines += [
        "",
        f"Against `conventional` as it was sent in the same run, for {as_sent['questions']} of the same",
        f"requests: {shown[0]} of the backhaul and {shown[1]} of the channel uses saved, means over prompts;",
        "those pictures are of higher quality than ours.",
        "",
        "| topic | requests | update, B | charged to each, B |",
        "|---|---:|---:|---:|",
        *(
            _row([name, str(own["requests"]), f"{own['update_bytes']:,}", f"{own['bytes_per_request']:,.0f}"])
            for name, own in config["knowledge"].items()
        ),
    ]
    if "counters_gap_percent" in containers:
        lines += [
            "",
            f"The containers' counters come to {containers['counters_bytes']:,} bytes, what services and",
            f"load generator counted to {containers['interceptors_bytes']:,}:",
            f"{containers['counters_gap_percent']:.2f} % apart ([how it is counted](loadtest.md)).",
        ]
    return lines


def _distill(bench: Bench) -> Lines:
    lines = [
        "From asking for a topic over REST to the first picture drawn with it.",
        "",
        "| topic | s |",
        "|---|---:|",
    ]
    return lines + [_row([row["topic"], f"{row['seconds']:.1f}"]) for row in bench["rows"]]


def _cost(bench: Bench, figures: Mapping[str, Any], results: Path) -> Lines:
    rows, config = bench["rows"], bench["config"]
    means = {
        delivery: {
            what: statistics.fmean(row[what] for row in rows if row["delivery"] == delivery)
            for what in ("seconds", "backhaul_bytes", "channel_uses")
        }
        for delivery in ("semantic", "conventional")
    }
    lines = [
        f"{config['requests']} pictures with each delivery over the same link, one after another, none",
        "cached. PSNR is against what was sent, of those that decoded: the two deliveries are not of equal",
        "quality.",
        "",
        "| delivery | s | backhaul, B | channel uses | decoded | PSNR, dB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for delivery, mean in means.items():
        psnrs = [row["psnr_db"] for row in rows if row["delivery"] == delivery]
        decoded = [psnr for psnr in psnrs if psnr is not None]
        cells = [delivery, f"{mean['seconds']:.3f}", f"{mean['backhaul_bytes']:,.0f}"]
        cells += [f"{mean['channel_uses']:,.0f}", f"{len(decoded)} of {len(psnrs)}"]
        lines.append(_row([*cells, f"{statistics.fmean(decoded):.1f}" if decoded else ""]))
    update = {what: figures.get(key, {}).get("value") for what, key in UPDATE.items()}
    if None in update.values():
        return [*lines, "", "What a knowledge update costs is not measured yet, so there is no plot."]
    _plot_cost(means, update, results / "load" / "cost.svg")
    return [
        *lines,
        "",
        "The plot adds these means up, and for a topic that the edge does not know the time of one",
        f"distillation (`distill_seconds`, {update['seconds']:,.1f} s) and the bytes of the largest update",
        f"(`update_bytes`, {update['backhaul_bytes']:,.0f} B). It is calculated, not measured picture by",
        "picture.",
        "",
        "![Cost against pictures](../results/load/cost.svg)",
    ]


UPDATE = {"seconds": "distill_seconds", "backhaul_bytes": "update_bytes"}
"""What one update costs, and the figure of headline.json that says how much."""


def _plot_throughput(rows: Sequence[Row], names: Sequence[str], users: Sequence[int], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(6.4, 4.2))
    for name in names:
        seconds = [1 / throughput.mean_of(rows, name, each, "images_per_s") for each in users]
        axis.plot(users, seconds, marker="o", label=name, linewidth=2.2 if name == throughput.OURS else 1.2)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xticks(list(users), [str(each) for each in users])
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axis.set_xlabel("closed-loop users")
    axis.set_ylabel("seconds per picture")
    axis.grid(visible=True, which="both", alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    write_plot(figure, path)


def _plot_cost(means: Mapping[str, Mapping[str, float]], update: Mapping[str, float], path: Path) -> None:
    counts = np.unique(np.geomspace(*IMAGES, 60).round())
    titles = {"seconds": "time, s", "backhaul_bytes": "backhaul, B", "channel_uses": "radio, channel uses"}
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.6))
    for axis, (what, title) in zip(axes, titles.items(), strict=True):
        own, other = (means[delivery][what] * counts for delivery in ("semantic", "conventional"))
        lines = {
            "semantic, with one new topic": own + update.get(what, 0.0),
            "semantic, nothing new": own,
            "conventional": other,
        }
        for label, values in lines.items():
            if values.max() > 0:  # nothing has no logarithm
                axis.plot(counts, values, label=label, linestyle="--" if "nothing" in label else "-")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("pictures")
        axis.set_title(title, fontsize=10)
        axis.grid(visible=True, which="major", alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    write_plot(figure, path)


def _order(name: str) -> int:
    known = list(throughput.servers_of("embedded"))
    return known.index(name) if name in known else len(known)


def _times(label: str, rows: Sequence[Row], what: str) -> str:
    found = [1e3 * row[what] for row in rows]
    return _row([label, f"{statistics.median(found):.1f}", f"{np.percentile(found, 95):.1f}"])


def _with_interval(values: Sequence[float]) -> str:
    """Mean, with its 95 % interval if there are several."""
    mean, ci95 = mean_ci95(values)
    return f"{mean:.3g}" if ci95 is None else _interval(mean, ci95)


def _interval(value: float, ci95: Sequence[float]) -> str:
    return f"{value:.3g} ({ci95[0]:.3g} .. {ci95[1]:.3g})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
