"""docs/results-load.md and docs/performance.md from results/load/."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dekag.evaluation import plots
from dekag.evaluation.pages import Lines, NotMeasuredError, Report, Row, figures_table, table
from dekag.evaluation.registry import MISSING, OF_THE_PAGE, read_figures
from dekag.evaluation.statistics import POSITIVE, mean_ci95, mean_of, proportion_ci95
from dekag.makd.demand import REPLAYED
from services.bench import channel, overload, scale, start, throughput, traffic, upgrade
from services.bench.conventional import LINKS
from services.bench.cost import DELIVERY
from services.bench.growth import growth_plot, growth_table, growth_values
from services.bench.loadtest import backhaul
from services.bench.parts import FOUR_TOPICS, GUIDED, IMAGES_AT_ONCE, UNALIGNED
from services.bench.results_io import read_bench

KEYS = (
    "bench_chain_ratio",
    "bench_litserve_ratio",
    "bench_fastapi_ratio",
    "bench_cached_ratio",
    "bench_channel_ratio",
    "bench_topics_ratio",
    "ready_seconds",
    "recovery_seconds",
    "rss_gib",
    "overload_p50_ratio",
    "counters_gap_percent",
    "distill_seconds",
    "soak_rss_growth_percent",
    "scale_2_edges",
    "scale_4_edges",
    "upgrade_failed_requests",
    "page_first_image_seconds",
    *OF_THE_PAGE,
)
BENCHES = (
    "chain",
    "throughput",
    "cached",
    "channel",
    "start",
    "overload",
    "scale",
    "upgrade",
    "traffic",
    "distill",
    "cost",
    "restoration",
    "web-page",
)
SERVERS = {
    "services": ("DeKA-g's services", plots.OURS),
    "litserve": ("LitServe", plots.SECOND),
    "litserve, 2 workers": ("LitServe, 2 workers", plots.FIFTH),
    "fastapi, 2 processes": ("FastAPI handler, 2 processes", plots.THIRD),
    "litserve, batches": ("LitServe, batches", plots.FOURTH),
    "fastapi": ("FastAPI handler", plots.BASE),
}
IMAGES = (1, 1000)  # of the plot of costs
POLICY_FILES = {backhaul.EQUAL: "WebP of equal consistency", backhaul.USUAL: "WebP of quality 75"}
POLICY_NAMES = {backhaul.EQUAL: "equal", backhaul.USUAL: "usual"}
UPDATE = {"seconds": "distill_seconds", "backhaul_bytes": "update_bytes"}
Bench = Mapping[str, Any]


def origins(results: Path) -> Lines:
    """Where and when each benchmark was run, and where its rows are."""
    lines = []
    for name in BENCHES:
        try:
            lines.append(_origin(name, results))
        except FileNotFoundError:
            lines.append([f"`dekag bench {name}`", "not measured yet", "", "", ""])
    return table(["command", "date", "commit", "machine", "rows"], lines, words=(0, 1, 2, 3, 4))


def _origin(name: str, results: Path) -> list[str]:
    bench = read_bench(name, results)
    where = bench["machine"]
    machine = f"{where['cpus']} CPUs, {where['system']} {where['machine']}, torch {where['torch']}"
    rows = f"[bench-{name}.json](../results/load/bench-{name}.json)"
    return [f"`{bench['command']}`", bench["date"], bench["commit"], machine, rows]


def load_values(results: Path) -> Mapping[str, str]:
    """Settings of the benchmarks, and what the tables do not say."""
    found: dict[str, str] = {}
    for name in BENCHES:
        try:
            config = read_bench(name, results)["config"]
        except FileNotFoundError:
            continue
        found |= {
            f"{name.replace('-', '_')}_{key}": f"{value:,}" if isinstance(value, int) else f"{value:g}"
            for key, value in config.items()
            if isinstance(value, int | float)
        }
        if name == "traffic":
            found |= _traffic_values(config)
    if not found:
        raise FileNotFoundError(results / "load")
    return found


def _traffic_values(config: Mapping[str, Any]) -> dict[str, str]:
    as_sent = config["savings"]
    found = {f"load_test_{name}": str(config["load_test"][name]) for name in ("users", "shape")}
    found["compared_with_conventional"] = str(as_sent["questions"])
    for what in ("backhaul_bytes", "channel_uses"):
        found[f"saved_{what}"] = f"{as_sent[what].get('saved_percent', 0):.1f} %"
    ours = config["backhaul"]["bytes"]
    for what, score in (
        ("sent_consistency", (config["backhaul"].get("consistency") or {}).get("mean")),
        ("received_consistency", (config["backhaul"].get("received_consistency") or {}).get("mean")),
        ("usual_consistency", config["backhaul"].get("usual_consistency")),
    ):
        found[what] = MISSING if score is None else f"{score:.3f}"
    found["policies_ours"] = f"{ours:,.0f} B"
    found["policies_requests"] = str(config["backhaul"].get("requests", 0))
    for kind, taken in _policies(config).items():
        short = POLICY_NAMES[kind]
        found |= {f"{short}_{name.replace(' ', '_')}": f"{taken[name]:,.0f} B" for name in REPLAYED}
        found[f"{short}_pays"] = "paid" if ours < taken["never"] else "did not pay"
    return found


def _paired(name: str, columns: Mapping[str, str]) -> Callable[[Path], Lines]:
    """Makes a table of the times in these columns of a benchmark."""

    def make(results: Path) -> Lines:
        rows = read_bench(name, results)["rows"]
        lines = []
        for column, label in columns.items():
            times = [1e3 * row[column] for row in rows]
            lines.append([label, f"{statistics.median(times):.1f}", f"{np.percentile(times, 95):.1f}"])
        return table(["", "median, ms", "95th percentile, ms"], lines)

    return make


def _servers(bench: Bench) -> list[str]:
    there = {row["server"] for row in bench["rows"]}
    return [name for name in SERVERS if name in there]


def throughput_table(results: Path) -> Lines:
    """Images per second, ratios and latency of every server, by number of users."""
    bench = read_bench("throughput", results)
    rows, users, names = bench["rows"], bench["config"]["users"], _servers(bench)
    header = ["", *(f"{each} users" if each > 1 else "1 user" for each in users)]

    def means(what: str) -> list[list[str]]:
        return [
            [SERVERS[name][0], *(f"{throughput.mean_of(rows, name, each, what):.2f}" for each in users)]
            for name in names
        ]

    others = [name for name in names if name != throughput.OURS and throughput.OURS in names]
    ratios = [
        [SERVERS[name][0], *(_with_interval(throughput.ratios(rows, name, each)) for each in users)]
        for name in others
    ]
    return [
        *table(["images per second", *header[1:]], means("images_per_s")),
        "",
        *table(["services relative to", *header[1:]], ratios),
        "",
        *table(["median latency, s", *header[1:]], means("p50_s")),
    ]


def channel_table(results: Path) -> Lines:
    """Symbols per second by symbols of a transmission."""
    bench = read_bench("channel", results)
    lines = []
    for uses in bench["config"]["channel_uses"]:
        speeds = [
            f"{statistics.fmean(channel.values(bench['rows'], way, uses)) / 1e6:.2f}"
            for way in ("service", "sionna", "library")
        ]
        lines.append([f"{uses:,}", *speeds, _with_interval(channel.ratios(bench["rows"], uses))])
    header = ["symbols of a transmission", "service", "bare Sionna", "library", "service over bare Sionna"]
    return table(header, lines, words=())


def start_table(results: Path) -> Lines:
    """Memory of every service, and how long it takes to recover."""
    rows = read_bench("start", results)["rows"]
    lines = []
    for name in dict.fromkeys(row["service"] for row in rows):
        own = [row for row in rows if row["service"] == name]
        sizes = [statistics.fmean(row[what] for row in own) for what in ("pss_gib", "rss_gib")]
        recovery_s = [row["recovery_s"] for row in own if "recovery_s" in row]
        recovered = f"{statistics.fmean(recovery_s):.1f}" if recovery_s else ""
        lines.append([name, *(f"{size:.3f}" for size in sizes), recovered])
    ready = _with_interval([row["ready_s"] for row in rows if row["service"] == start.ALL])
    header = ["service", "PSS, GiB", "RSS, GiB", "recovered after, s"]
    return [*table(header, lines), "", f"Ready after {ready} s."]


def restoration_table(results: Path) -> Lines:
    """Memory of the user service, without and with the edge's model."""
    rows = read_bench("restoration", results)["rows"]
    lines = [[row["after"], f"{row['pss_gib']:.3f}", f"{row['rss_gib']:.3f}"] for row in rows]
    return table(["user service, after", "PSS, GiB", "RSS, GiB"], lines)


def overload_table(results: Path) -> Lines:
    """What became of requests under full load and under overload."""
    bench = read_bench("overload", results)
    return table(overload.COLUMNS, overload.summary(bench["config"], bench["rows"]))


def scale_table(results: Path) -> Lines:
    """Throughput by number of edges."""
    return table(scale.COLUMNS, scale.summary(read_bench("scale", results)["rows"]))


def choice_table(results: Path) -> Lines:
    """How a caller chooses among four edges."""
    return table(scale.CHOICE_COLUMNS, scale.choice_summary(read_bench("scale", results)["rows"]))


def upgrade_table(results: Path) -> Lines:
    """What became of requests while edges were upgraded."""
    bench = read_bench("upgrade", results)
    return table(upgrade.COLUMNS, upgrade.summary(bench["config"], bench["rows"]))


def page_table(results: Path) -> Lines:
    """How soon the web page shows its first image, with the load of the machine."""
    rows = read_bench("web-page", results)["rows"]
    lines = [[f"{row['first_image_s']:.2f}", f"{row['load_average']:.1f}"] for row in rows]
    return table(["first image after, s", "load average"], lines, words=())


def traffic_table(results: Path) -> Lines:
    """Backhaul and channel uses against image files of equal quality."""
    rows = read_bench("traffic", results)["rows"]
    on_backhaul, radio = [], []
    for name in traffic.FORMATS:
        own = [row for row in rows if row["format"] == name]
        for column, quality in ((traffic.BY_CONSISTENCY, "consistency"), (traffic.BY_PSNR, "PSNR")):
            files = f"{name} of equal {quality}"
            on_backhaul += _backhaul_row(files, own, name, column)
            if (name, column) == (traffic.HEADLINE_FORMAT, traffic.BY_CONSISTENCY):
                on_backhaul += _stricter_rows(own, name, column)
        uses, own_uses = (
            f"{statistics.fmean(row[what] for row in own):,.0f}"
            for what in ("file_channel_uses", "semantic_channel_uses")
        )
        ratio = _interval(*traffic.radio_ratio(rows, name))
        radio.append([f"{name} of equal PSNR", uses, own_uses, ratio, *_qualities(own, traffic.BY_PSNR)])
    qualities = ["quality of theirs", "of ours"]
    return [
        *table(["backhaul of an image", "theirs, B", "ours, B", "saved, %", *qualities], on_backhaul),
        "",
        *table(["channel uses of an image", "theirs", "ours", "ratio", *qualities], radio),
    ]


def _qualities(rows: Sequence[Row], column: str) -> list[str]:
    """The quality of files in that column and of our images, each against what was sent or the cloud's."""
    if column == traffic.BY_CONSISTENCY:
        # files are chosen so that they are, on average over a topic, as consistent as our images
        return [f"consistency {traffic.mean_consistency(rows):.3f}"] * 2
    means = (statistics.fmean(row[what] for row in rows) for what in ("file_psnr_db", "psnr_db"))
    return [f"PSNR {mean:.1f} dB" for mean in means]


def _backhaul_row(files: str, rows: Sequence[Row], name: str, column: str) -> list[list[str]]:
    """The row that compares with files of one format; none if nothing was compared."""
    saved = traffic.backhaul_saved(rows, name, column)
    if saved is None:
        return []
    theirs = statistics.fmean(row[column] for row in rows if row.get(column) is not None)
    ours = f"{statistics.fmean(row['semantic_backhaul_bytes'] for row in rows):,.0f}"
    return [[files, f"{theirs:,.0f}", ours, _interval(*saved), *_qualities(rows, column)]]


def _stricter_rows(rows: Sequence[Row], name: str, column: str) -> list[list[str]]:
    """The same files for an edge that caches them, and for requests that an update is of use for."""
    needing = [row for row in rows if row["topics"]]
    kept = "kept in a cache at the edge"
    return [
        *_backhaul_row(f"same files, {kept}", traffic.kept_in_cache(rows, column), name, column),
        *_backhaul_row("same files, requests that need a topic only", needing, name, column),
        *_backhaul_row(
            f"same files, requests that need a topic only, {kept}",
            traffic.kept_in_cache(needing, column),
            name,
            column,
        ),
    ]


def _policies(config: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Bytes of a load test under each policy, by kind of file."""
    updates = {topic: own["update_bytes"] for topic, own in config["knowledge"].items()}
    return backhaul.policies(config["backhaul"], updates)


def _consistencies(found: Mapping[str, Any]) -> dict[str, str]:
    """Consistency with the cloud's images: of each kind of file, and of the images that the edge sent."""
    ours, usual = (
        MISSING if score is None else f"{score:.3f}"
        for score in (found["consistency"]["mean"], found["usual_consistency"])
    )
    return {backhaul.EQUAL: f"{ours}, ours {ours}", backhaul.USUAL: f"{usual}, ours {ours}"}


def policies_table(results: Path) -> Lines:
    """What the requests of the load test would have taken under each policy, beside what they took."""
    config = read_bench("traffic", results)["config"]
    by_kind = _policies(config)
    if not by_kind:
        raise NotMeasuredError(traffic.COMMAND)
    ours = config["backhaul"]["bytes"]
    lines = [["in this run", "updates that were there from the start", *[f"{ours:,.0f}", ""] * len(by_kind)]]
    for name, what in REPLAYED.items():
        cells = []
        for taken in by_kind.values():
            theirs = taken[name]
            cells += [f"{theirs:,.0f}", f"{100 * (1 - ours / theirs):.1f}" if theirs else ""]
        lines.append([f"`{name}`", what, *cells])
    header, scores = ["policy", "what it sends"], _consistencies(config["backhaul"])
    for kind in by_kind:
        header += [f"with {POLICY_FILES[kind]} ({scores[kind]}), B", "saved in this run, %"]
    return table(header, lines, words=(0, 1))


def knowledge_table(results: Path) -> Lines:
    """What each topic's update was charged to the requests drawn with it."""
    config = read_bench("traffic", results)["config"]
    lines = [
        [name, str(own["requests"]), f"{own['update_bytes']:,}", f"{own['bytes_per_request']:,.0f}"]
        for name, own in config["knowledge"].items()
    ]
    return table(["topic", "requests", "update, B", "charged to each, B"], lines)


def distill_table(results: Path) -> Lines:
    """Time to teach each topic."""
    bench = read_bench("distill", results)
    threads = bench["config"].get("threads", 1) or "all"
    lines = [[row["topic"], str(threads), f"{row['seconds']:.1f}"] for row in bench["rows"]]
    return table(["topic", "threads", "s"], lines)


def _cost_rows(results: Path) -> list[Row]:
    return [row for row in read_bench("cost", results)["rows"] if row["kind"] == DELIVERY]


def _costs(results: Path) -> dict[str, dict[str, float]]:
    rows = _cost_rows(results)
    return {
        delivery: {
            what: statistics.fmean(row[what] for row in rows if row["delivery"] == delivery)
            for what in ("seconds", "backhaul_bytes", "channel_uses")
        }
        for delivery in ("semantic", "conventional")
    }


def cost_table(results: Path) -> Lines:
    """What an image costs, by delivery."""
    rows = _cost_rows(results)
    lines = []
    for delivery, mean in _costs(results).items():
        psnrs = [row["psnr_db"] for row in rows if row["delivery"] == delivery]
        decoded = [psnr for psnr in psnrs if psnr is not None]
        joules = [row.get("joules") for row in rows if row["delivery"] == delivery]
        known = [each for each in joules if each is not None]
        cells = [delivery, f"{mean['seconds']:.3f}", f"{statistics.fmean(known):.1f}" if known else "unknown"]
        cells += [f"{mean['backhaul_bytes']:,.0f}"]
        cells += [f"{mean['channel_uses']:,.0f}", f"{len(decoded)} of {len(psnrs)}"]
        lines.append([*cells, f"{statistics.fmean(decoded):.1f}" if decoded else ""])
    return table(["delivery", "s", "J", "backhaul, B", "channel uses", "decoded", "PSNR, dB"], lines)


def throughput_plot(results: Path) -> Any:
    """Images per second by number of users."""
    bench = read_bench("throughput", results)
    rows, users = bench["rows"], bench["config"]["users"]
    figure, axes = plots.panels(height_in=3.5)
    (axis,) = axes[0]
    for name in _servers(bench):
        label, color = SERVERS[name]
        found = [mean_ci95(throughput.values(rows, name, each, "images_per_s"), POSITIVE) for each in users]
        bands = [ci95 or [mean, mean] for mean, ci95 in found]
        plots.line(axis, users, [mean for mean, _ in found], label, color, interval=bands)
    axis.set_xscale("log", base=2)
    axis.set_xticks(users, [str(each) for each in users])
    axis.set_ylim(bottom=0)
    axis.set_xlabel("users who each wait for one image at a time")
    axis.set_ylabel("images per second")
    plots.label_lines(axis, gap=0.07)
    return figure


def cost_plot(results: Path) -> Any:
    """Time, backhaul and channel uses against the number of images."""
    means, figures = _costs(results), read_figures(results)
    update = {what: figures[key]["value"] for what, key in UPDATE.items() if key in figures}
    counts = np.unique(np.geomspace(*IMAGES, 60).round())
    titles = {"seconds": "time, s", "backhaul_bytes": "backhaul, bytes", "channel_uses": "channel uses"}
    figure, axes = plots.panels(3, height_in=3.0)
    for axis, (what, title) in zip(axes[0], titles.items(), strict=True):
        own, other = (means[delivery][what] * counts for delivery in ("semantic", "conventional"))
        lines = [("conventional", other, plots.SECOND), ("semantic", own, plots.OURS)]
        if what in update:
            lines.insert(1, ("semantic, new topic", own + update[what], plots.THIRD))
        for label, values, color in lines:
            if values.max() > 0:  # nothing has no logarithm
                axis.plot(counts, values, color=color, label=label)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("images")
        axis.set_title(title)
        plots.label_corner(axis)
    return figure


def _with_interval(values: Sequence[float]) -> str:
    """Mean, with its 95 % interval if there are several."""
    mean, ci95 = mean_ci95(values, POSITIVE)
    return f"{mean:.3g}" if ci95 is None else _interval(mean, ci95)


def _interval(value: float, ci95: Sequence[float]) -> str:
    return f"{value:.3g} ({ci95[0]:.3g} .. {ci95[1]:.3g})"


LOAD = Report(
    page="results-load.md",
    command="make bench",
    values=lambda results: {**load_values(results), **growth_values(results)},
    partial=True,
    tables={
        "figures": figures_table(KEYS),
        "chain": _paired("chain", {"services_s": "through all services", "one_process_s": "in one process"}),
        "throughput": throughput_table,
        "cached": _paired(
            "cached", {"services_s": "through all services", "bare_s": "channel and decoding alone"}
        ),
        "channel": channel_table,
        "start": start_table,
        "restoration": restoration_table,
        "overload": overload_table,
        "scale": scale_table,
        "choice": choice_table,
        "upgrade": upgrade_table,
        "page": page_table,
        "traffic": traffic_table,
        "policies": policies_table,
        "knowledge": knowledge_table,
        "distill": distill_table,
        "cost": cost_table,
        "growth": growth_table,
        "origins": origins,
    },
    plots={"throughput": throughput_plot, "cost": cost_plot, "growth": growth_plot},
)


# docs/performance.md

ALONE: dict[tuple[str, str | None], str] = {  # of the parts of one image, in the order of the chain
    ("text", "prompt and empty prompt"): "text encoder",
    ("denoiser", "traced"): "denoiser, one call",
    ("drawing", "no update"): "drawing an image, whole",
    ("drawing", "one topic"): "drawing an image with a topic's update",
    ("codec", "encode"): "codec: encoding",
    ("channel", None): "channel, {}",
    ("codec", "decode"): "codec: decoding",
    ("decoder", "channels last"): "autoencoder: decoding",
    ("PNG", ""): "PNG",
    ("PSNR", ""): "PSNR",
    ("hop of gRPC", "512 symbols in three messages"): "a hop of gRPC, 512 symbols",
}


def _times(results: Path) -> list[Row]:
    return [row for row in read_bench("parts", results)["rows"] if row["kind"] == "time"]


def _of(times: Sequence[Row], part: str, variant: str | None, images: int | None = None) -> list[Row]:
    """The rows of a part; of any variant or number of images where that is None."""
    return [
        row
        for row in times
        if row["part"] == part and variant in (None, row["variant"]) and images in (None, row["pictures"])
    ]


def performance_values(results: Path) -> Mapping[str, str]:
    """What the tables do not say."""
    bench, times = read_bench("parts", results), _times(results)
    (traced,), (plain,) = (_of(times, "denoiser", each, 1) for each in ("traced", "as it is"))
    return {
        "traced_ms": f"{traced['ms']:.1f} ms",
        "plain_ms": f"{plain['ms']:.1f} ms",
        "measured": f"{bench['date']}, commit {bench['commit']}, {bench['machine']['cpus']} CPUs",
    }


def alone_table(results: Path) -> Lines:
    """Every part of one image."""
    times = _times(results)
    lines = [
        [name.format(row["variant"]), f"{row['ms']:.2f}"]
        for what, name in ALONE.items()
        for row in _of(times, *what, images=1)
    ]
    return table(["part", "ms"], lines)


def rows_table(results: Path) -> Lines:
    """The denoiser by rows that share a call, as diffusers runs it and traced."""
    plain, traced = (_of(_times(results), "denoiser", each) for each in ("as it is", "traced"))
    found = {row["pictures"]: (f"{row['ms']:.1f}", f"{row['ms_each']:.1f}") for row in traced}
    lines = [
        [str(row["pictures"]), f"{row['ms']:.1f}", *found.get(row["pictures"], ("", ""))] for row in plain
    ]
    return table(["rows", "ms", "ms, traced", "ms a row, traced"], lines, words=())


def drawings_table(results: Path) -> Lines:
    """Milliseconds an image, by images at once and whose updates draw them."""
    times = _times(results)
    columns = {
        UNALIGNED: UNALIGNED,
        GUIDED: "with guidance",
        "one topic": "one topic",
        "one topic, PEFT's layers": "the same, PEFT",
        FOUR_TOPICS: FOUR_TOPICS,
        f"{FOUR_TOPICS}, PEFT's layers": "the same, PEFT",
    }
    if not _of(times, "drawing", GUIDED):  # updates need none
        del columns[GUIDED]
    lines = []
    for images in IMAGES_AT_ONCE:
        found = [_of(times, "drawing", name, images) for name in columns]
        lines.append([str(images), *(f"{each[0]['ms_each']:.0f}" if each else "" for each in found)])
    return table(["images at once", *columns.values()], lines, words=())


def decoders_table(results: Path) -> Lines:
    """The autoencoder by layout and precision."""
    rows, times = read_bench("parts", results)["rows"], _times(results)
    lines = []
    for error in (row for row in rows if row["kind"] == "decoder"):
        cells = [f"{_of(times, 'decoder', error['variant'], n)[0]['ms_each']:.1f}" for n in (1, 4)]
        lines.append([error["variant"], *cells, f"{error['psnr_db']:.1f}"])
    return table(["", "ms an image, alone", "ms an image, of four", "PSNR against the first, dB"], lines)


CONVENTIONAL_STEPS = ("coding_s", "channel_s", "demodulation_s", "decoding_s")


def conventional_table(results: Path) -> Lines:
    """CPU times of conventional deliveries, by link."""
    rows = [row for row in read_bench("parts", results)["rows"] if row["kind"] == "conventional"]
    if not rows:
        raise NotMeasuredError(PERFORMANCE.command)
    lines = []
    for name in LINKS:
        sent = [row for row in rows if row["link"] == name]
        steps = [f"{1e3 * mean_of(sent, step):.1f}" if step in sent[0] else "" for step in CONVENTIONAL_STEPS]
        total = [sum(row.get(step, 0.0) for step in (*CONVENTIONAL_STEPS, "all_s")) for row in sent]
        mean, ci95 = mean_ci95([1e3 * seconds for seconds in total], POSITIVE)
        interval = "" if ci95 is None else f" ({ci95[0]:.1f} .. {ci95[1]:.1f})"
        sends = sum(row.get("transmissions", 1) for row in sent) / len(sent)
        lost = f"{sum(row['lost'] for row in sent)} of {len(sent)}"
        size, rate = f"{mean_of(sent, 'bytes'):,.0f}", f"{mean_of(sent, 'rate'):.2f}"
        lines.append([name, size, rate, f"{sends:.1f}", *steps, f"{mean:.1f}{interval}", lost])
    header = [
        "link", "bytes", "code rate", "transmissions", "coding", "channel", "demodulation", "LDPC decoding",
        "all, CPU ms", "lost",
    ]  # fmt: skip
    return table(header, lines)


def ldpc_table(results: Path) -> Lines:
    """Codewords lost by Sionna's decoder and by ours, by code."""
    rows = read_bench("ldpc", results)["rows"]
    lines = []
    for code in dict.fromkeys((row["information_bits"], row["qam"], row["rate"]) for row in rows):
        found = [row for row in rows if (row["information_bits"], row["qam"], row["rate"]) == code]
        snrs = [row["snr_db"] for row in found]
        total = _totals(found)
        count = total["codewords"]
        lines.append(
            [
                f"{code[0]:,} bits, {code[1]}-QAM, {code[2]}",
                f"{min(snrs):.1f} .. {max(snrs):.1f}",
                *(_percent(total[which], count) for which in ("lost_sionna", "lost")),
                f"{total['only_sionna']} / {total['only_dekag']}",
                *(f"{1e3 * total[which] / count:.2f}" for which in ("cpu_s_sionna", "cpu_s")),
            ]
        )
    header = [
        "code", "SNR, dB", "lost: Sionna, %", "lost: DeKA-g, %", "decoded by Sionna / DeKA-g alone",
        "CPU ms: Sionna", "DeKA-g",
    ]  # fmt: skip
    return table(header, lines)


def _totals(rows: Sequence[Row]) -> Row:
    """Sums of what `dekag bench ldpc` counted and timed."""
    names = ("codewords", "lost_sionna", "lost", "only_sionna", "only_dekag", "undetected")
    return {name: sum(row[name] for row in rows) for name in (*names, "cpu_s_sionna", "cpu_s")}


def _percent(part: int, count: int) -> str:
    low, high = proportion_ci95(part, count)
    return f"{100 * part / count:.1f} ({100 * low:.1f} .. {100 * high:.1f})"


def ldpc_values(results: Path) -> Mapping[str, str]:
    """Of all codes and SNRs together; nothing if they were not measured."""
    try:
        total = _totals(read_bench("ldpc", results)["rows"])
    except NotMeasuredError:
        return {}
    different = total["only_sionna"] + total["only_dekag"]
    return {
        "ldpc_codewords": f"{total['codewords']:,}",
        "ldpc_only_sionna": f"{total['only_sionna']:,}",
        "ldpc_only_dekag": f"{total['only_dekag']:,}",
        "ldpc_different_percent": f"{100 * proportion_ci95(different, total['codewords'])[1]:.2f} %",
        "ldpc_undetected": f"{total['undetected']:,}",
    }


def parts_plot(results: Path) -> Any:
    """Where the time of an image goes."""
    times = _times(results)
    found = {
        name.format(row["variant"]): row["ms"]
        for what, name in ALONE.items()
        for row in _of(times, *what, images=1)
        if what not in {("drawing", "one topic"), ("denoiser", "traced"), ("text", "prompt and empty prompt")}
    }
    figure, axes = plots.panels(height_in=3.0)
    plots.dots(axes[0, 0], list(found), list(found.values()), text="{:.1f} ms")
    axes[0, 0].set_xscale("log")
    axes[0, 0].set_xlim(0.1, 1000)
    axes[0, 0].set_xlabel("ms, one image alone, one thread")
    return figure


PERFORMANCE = Report(
    page="performance.md",
    command="dekag bench parts",
    values=lambda results: {**performance_values(results), **ldpc_values(results)},
    partial=True,
    tables={
        "parts": alone_table,
        "rows": rows_table,
        "drawings": drawings_table,
        "decoders": decoders_table,
        "conventional": conventional_table,
        "ldpc": ldpc_table,
    },
    plots={"parts": parts_plot},
)
