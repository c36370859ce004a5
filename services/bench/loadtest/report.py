"""What a run's answers say about latency, traffic and savings: report.json, report.md. No Locust in here."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt

from dekag.evaluation.pages import write_rows
from dekag.evaluation.plots import write_plot
from dekag.evaluation.registry import current_commit
from dekag.evaluation.statistics import bootstrap_ci95

PERCENTILES = (50, 90, 95, 99)
BACKHAUL = "cloud-edge"
LEAST_PROMPTS = 8  # that were answered both ways: fewer tell too little of an interval
_FORMAT = 1
_COUNTS = '"sent_bytes"'  # is in the lines of the services' logs that count bytes
_LEFT_OUT = ("gains",)  # of link reports: many numbers that no figure is made of


@dataclass(frozen=True)
class Answer:
    """What came of one request.

    Attributes:
        request_id: it was sent with this `X-Request-ID`.
        question: the same for the two deliveries that are compared.
        prompt: asked for.
        delivery: asked for.
        planned_s: when it was to be sent, s since the start of the run.
        late_s: how much later the load generator got to sending it, s.
        latency_s: from the planned time to the whole answer, s.
        error: what went wrong in a few words; None if there was an answer.
        sent_bytes: body of the HTTP request.
        received_bytes: body of the HTTP response.
        link_report: of the answer; None without one.
    """

    request_id: str
    question: str
    prompt: str
    delivery: str
    planned_s: float
    late_s: float
    latency_s: float
    error: str | None
    sent_bytes: int
    received_bytes: int
    link_report: Mapping[str, Any] | None

    @property
    def report(self) -> Mapping[str, Any]:
        """The link report of a request that was answered."""
        if self.link_report is None:
            raise ValueError(f"{self.request_id} was not answered: {self.error}")
        return self.link_report

    @property
    def channel_uses(self) -> int:
        """Channel uses in all, pilots included."""
        return int(self.report["channel_uses"]) + int(self.report["pilot_uses"])

    def hop_bytes(self, hop: str) -> int:
        """Bytes that the link report says crossed that hop."""
        return sum(int(each["sent_bytes"]) for each in self.report["hops"] if each["hop"] == hop)

    @property
    def topics(self) -> list[str]:
        """Topics whose knowledge updates drew it."""
        return [str(each["topic"]) for each in self.report["knowledge"]]


def summarise(answers: Sequence[Answer], *, load_s: float, updates: Mapping[str, int]) -> dict[str, Any]:
    """The figures of a run.

    Args:
        answers: one for each request, in any order.
        load_s: how long requests were sent, s.
        updates: bytes of the current knowledge update of each topic, as the gateway lists them.

    Returns:
        What report.json holds: times in s, traffic in bytes and channel uses. Percentiles interpolate
        linearly; intervals are 95 %, of ratios of sums over resampled prompts. Traffic is that of answered
        requests.
    """
    good = [answer for answer in answers if answer.error is None]
    end_s = max((answer.planned_s + answer.latency_s for answer in answers), default=0.0)
    knowledge = _knowledge(good, updates)
    return {
        "load_s": load_s,
        "requests": len(answers),
        "answered": len(good),
        "errors": dict(Counter(answer.error for answer in answers if answer.error is not None).most_common()),
        "offered_per_s": len(answers) / load_s if load_s > 0 else 0.0,
        "throughput_per_s": len(good) / end_s if good and end_s > 0 else 0.0,
        "latency_s": {"all": _percentiles([answer.latency_s for answer in good])}
        | {name: _percentiles([each.latency_s for each in own]) for name, own in _by_delivery(good).items()},
        "late_s": _percentiles([answer.late_s for answer in answers]),
        "deliveries": {name: _delivery(own) for name, own in _by_delivery(good).items()},
        "knowledge": knowledge,
        "savings": _savings(good, knowledge),
    }


def _by_delivery(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    names = sorted({answer.delivery for answer in answers}, reverse=True)  # semantic first
    return {name: [answer for answer in answers if answer.delivery == name] for name in names}


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    """`n`, and unless that is 0 `p50` and so on."""
    found: dict[str, float] = {"n": len(values)}
    if values:
        found |= {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES}
    return found


def _delivery(own: Sequence[Answer]) -> dict[str, Any]:
    stages, hops = defaultdict(list), Counter[str]()
    for answer in own:
        for stage in answer.report["stages"]:
            stages[stage["stage"]].append(stage["seconds"])
        for hop in answer.report["hops"]:
            hops[hop["hop"]] += hop["sent_bytes"]
        hops["gateway-client"] += answer.sent_bytes + answer.received_bytes
    psnrs = [each.report["psnr_db"] for each in own if each.report["psnr_db"] is not None]
    return {
        "requests": len(own),
        "decoded": sum(each.report["decoded"] for each in own),
        "cache_hits": sum(each.report["cached"] for each in own),
        "psnr_db": float(np.mean(psnrs)) if psnrs else None,
        "channel_uses": sum(each.report["channel_uses"] for each in own),
        "pilot_uses": sum(each.report["pilot_uses"] for each in own),
        "hops_bytes": dict(hops),
        "stages_s": {name: _percentiles(seconds) for name, seconds in stages.items()},
    }


def _knowledge(good: Sequence[Answer], updates: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """What each topic's update cost the backhaul, spread over the requests that were drawn with it.

    A request that fetched for several topics is counted for each in equal parts. An edge that held an update
    before the run fetched nothing in it; it is charged with the update's size all the same.
    """
    semantic = [answer for answer in good if answer.delivery == "semantic"]
    fetched: dict[str, float] = defaultdict(float)
    used = Counter(topic for answer in semantic for topic in answer.topics)
    for answer in semantic:
        for topic in answer.topics:
            fetched[topic] += answer.hop_bytes(BACKHAUL) / len(answer.topics)
    found = {}
    for topic, requests in sorted(used.items()):
        charged = max(fetched[topic], updates.get(topic, 0))
        found[topic] = {
            "requests": requests,
            "fetched_bytes": fetched[topic],
            "update_bytes": updates.get(topic),
            "bytes_per_request": charged / requests,
        }
    return found


def _savings(good: Sequence[Answer], knowledge: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Semantic against conventional delivery of the same prompt, seed and link, summed over prompts."""
    asked: dict[str, dict[str, Answer]] = defaultdict(dict)
    for answer in good:
        asked[answer.question][answer.delivery] = answer
    pairs: dict[str, list[tuple[Answer, Answer]]] = defaultdict(list)
    for both in asked.values():
        if "semantic" in both and "conventional" in both:
            pairs[both["semantic"].prompt].append((both["semantic"], both["conventional"]))
    backhaul, radio = [], []
    for own in pairs.values():
        # an update is charged to all that used it, so what one request happened to fetch does not count
        updates = [sum(knowledge[topic]["bytes_per_request"] for topic in mine.topics) for mine, _ in own]
        others = [0 if mine.topics else mine.hop_bytes(BACKHAUL) for mine, _ in own]  # adapters of the codec
        backhaul.append((float(np.mean(updates) + np.mean(others)), _mean(own, BACKHAUL)))
        radio.append((float(np.mean([mine.channel_uses for mine, _ in own])), _mean(own, None)))
    return {
        "questions": sum(map(len, pairs.values())),
        "backhaul_bytes": _saved(backhaul),
        "channel_uses": _saved(radio),
    }


def _mean(pairs: Sequence[tuple[Answer, Answer]], hop: str | None) -> float:
    theirs = [other for _, other in pairs]
    return float(np.mean([other.hop_bytes(hop) if hop else other.channel_uses for other in theirs]))


def _saved(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Of (semantic, conventional) costs, a pair for each prompt: both means, and the share saved of the sum.

    A mean of each prompt's share would count a prompt that cost next to nothing as much as any other, and one
    that cost nothing at all could not be counted.
    """
    if sum(other for _, other in pairs) <= 0:
        return {"n": 0}

    def saved(mine: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
        return float(100 * (1 - mine.sum() / other.sum()))

    mine, other = zip(*pairs, strict=True)
    value, ci95 = bootstrap_ci95(saved, mine, other)
    enough = len(pairs) >= LEAST_PROMPTS
    return {
        "n": len(pairs),
        "semantic": float(np.mean(mine)),
        "conventional": float(np.mean(other)),
        "saved_percent": value,
        "ci95": ci95 if enough else None,
        "decides": enough and not ci95[0] <= 0 <= ci95[1],
    }


def log_lines(folder: Path) -> list[str]:
    """Lines of the logs ``*.log`` in that folder, and of older parts of them, that may count bytes."""
    lines: list[str] = []
    for path in sorted({*folder.glob("*.log"), *folder.glob("*.log.[0-9]")}):
        with path.open(encoding="utf-8", errors="replace") as file:
            lines += [text for text in file if _COUNTS in text]
    return lines


def service_traffic(lines: Iterable[str], request_ids: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Bytes that the services counted for those requests, or for all of them, of the lines of their logs.

    They are gRPC messages as serialised, whatever became of the call, without the framing of gRPC and
    HTTP/2. They hold what only serves to measure (the reference for the PSNR), which link reports leave out;
    updates that an edge took from Redis never crossed gRPC.

    Returns:
        For each service and method `calls`, `received_bytes` and `sent_bytes`.
    """
    totals: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    ours = None if request_ids is None else frozenset(request_ids)
    for text in lines:
        if _COUNTS not in text:
            continue
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line.get("event") == "request" and (ours is None or line.get("request_id") in ours):
            total = totals[line["service"], line["method"].rsplit("/", 1)[-1]]
            total["calls"] += 1
            total["received_bytes"] += line["received_bytes"]
            total["sent_bytes"] += line["sent_bytes"]
    return [{"service": key[0], "method": key[1], **total} for key, total in sorted(totals.items())]


def write_report(
    folder: Path,
    answers: Sequence[Answer],
    settings: Mapping[str, Any],
    *,
    load_s: float,
    updates: Mapping[str, int],
    log: Iterable[str] | None = None,
    containers: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write report.json, report.md with its plots, and answers.jsonl, a line for each request.

    Args:
        folder: made if missing; what an earlier run wrote is replaced.
        answers: of the run.
        settings: how it was run, to stand in the report.
        load_s: how long requests were sent, s.
        updates: bytes of the current knowledge update of each topic.
        log: lines of the services' logs, if they can be read from here.
        containers: what `containers.compare` returned, or `not_told` with the reason.

    Returns:
        The lines of the summary table, Markdown.
    """
    figures = summarise(answers, load_s=load_s, updates=updates)
    figures["services"] = None
    if log is not None:
        figures["services"] = service_traffic(log, [answer.request_id for answer in answers])
    figures["containers"] = containers
    run = {"format": _FORMAT, "commit": current_commit(), "settings": dict(settings)}
    write_rows(folder / "answers.jsonl", [_row(answer) for answer in answers])
    (folder / "report.json").write_text(json.dumps(run | figures, indent=2) + "\n")
    good = [answer for answer in answers if answer.error is None]
    plots = [_plot_latency(good, folder), _plot_time(answers, load_s, folder), _plot_traffic(figures, folder)]
    (folder / "report.md").write_text("\n".join(_page(settings, figures, plots)) + "\n")
    return _summary(figures)


def _row(answer: Answer) -> dict[str, Any]:
    row = asdict(answer)
    if row["link_report"] is not None:
        row["link_report"] = {k: v for k, v in row["link_report"].items() if k not in _LEFT_OUT}
    return row


def _summary(figures: Mapping[str, Any]) -> list[str]:
    latency, savings = figures["latency_s"], figures["savings"]
    lines = ["| figure | value |", "|---|---:|"]
    lines.append(f"| requests, answered | {figures['requests']}, {figures['answered']} |")
    lines += [f"| error: {kind} | {count} |" for kind, count in figures["errors"].items()]
    lines.append(f"| offered | {figures['offered_per_s']:.2f} /s |")
    lines.append(f"| answered | {figures['throughput_per_s']:.2f} /s |")
    for name, found in latency.items():
        if found["n"]:
            shown = ", ".join(f"{1e3 * found[f'p{p}']:.0f}" for p in PERCENTILES)
            lines.append(f"| latency, {name}: p{'/'.join(map(str, PERCENTILES))} | {shown} ms |")
    lines.append(f"| backhaul saved | {_percent(savings['backhaul_bytes'])} |")
    lines.append(f"| channel uses saved | {_percent(savings['channel_uses'])} |")
    if "counters_gap_percent" in (containers := figures["containers"] or {}):
        lines.append(f"| bytes that only containers counted | {containers['counters_gap_percent']:.1f} % |")
    return lines


def _percent(saved: Mapping[str, Any]) -> str:
    """What was saved, with its interval, and whether that decides anything."""
    if not saved["n"]:
        return "not measured: nothing that costs something was answered both ways"
    interval = "" if saved["ci95"] is None else " [{:.1f}, {:.1f}]".format(*saved["ci95"])
    said = f"{saved['saved_percent']:.1f}{interval} %, n = {saved['n']}"
    if not saved["decides"]:
        return f"{said}: too few to tell" + (" which is cheaper" if interval else "")
    return said if saved["saved_percent"] >= 0 else f"{said}: more was spent"


def _page(settings: Mapping[str, Any], figures: Mapping[str, Any], plots: Sequence[str]) -> list[str]:
    lines = ["# Load test", "", ", ".join(f"{name} {value}" for name, value in settings.items()) + ".", ""]
    lines += [*_summary(figures), ""]
    lines += [
        "Latency counts from the time at which a request was to be sent, answered or not what was sent before"
    ]
    lines += [f"it. {_lateness(figures['late_s'])} Intervals are 95 %.", ""]
    lines += [f"![{name}]({name}.svg)" for name in plots] + [""]
    lines += [
        "## Time per stage",
        "",
        "| delivery | stage | n | " + " | ".join(f"p{p}, ms" for p in PERCENTILES),
    ]
    lines[-1] += " |"
    lines.append("|---|---|" + "---:|" * (1 + len(PERCENTILES)))
    for name, own in figures["deliveries"].items():
        for stage, found in own["stages_s"].items():
            shown = " | ".join(f"{1e3 * found[f'p{p}']:.1f}" for p in PERCENTILES)
            lines.append(f"| {name} | {stage} | {found['n']} | {shown} |")
    lines += ["", "## Traffic, as the link reports say", ""]
    lines += [
        "Serialised messages both ways, without what only serves to measure. `gateway-client` are bodies of"
    ]
    lines += ["HTTP, as the load generator saw them. Requests without an answer are not in it.", ""]
    lines += ["| delivery | what | in all | per request |", "|---|---|---:|---:|"]
    for name, own in figures["deliveries"].items():
        rows = {f"bytes {hop}": count for hop, count in own["hops_bytes"].items()}
        rows |= {"channel uses": own["channel_uses"], "pilots": own["pilot_uses"]}
        rows |= {"cache hits": own["cache_hits"], "decoded": own["decoded"]}
        for what, count in rows.items():
            lines.append(f"| {name} | {what} | {count:,} | {count / own['requests']:,.2f} |")
    lines += ["", "## Savings against `conventional`", ""]
    lines += [
        f"{figures['savings']['questions']} requests were answered both ways, with the same prompt, seed and"
    ]
    lines += [
        "link. Means over prompts, and 1 - semantic / conventional of their sums: 100 % at most, below 0",
        "where more was spent; the interval is over resampled prompts. Quality is not the same, see the",
        "PSNR, which is that of what was received against what was sent.",
        "",
    ]
    lines += ["| | semantic | conventional | saved |", "|---|---:|---:|---:|"]
    for what, name in (("backhaul, bytes", "backhaul_bytes"), ("channel uses with pilots", "channel_uses")):
        saved = figures["savings"][name]
        means = f"{saved['semantic']:,.0f} | {saved['conventional']:,.0f}" if saved["n"] else "- | -"
        lines.append(f"| {what} | {means} | {_percent(saved)} |")
    psnrs = [figures["deliveries"].get(name, {}).get("psnr_db") for name in ("semantic", "conventional")]
    shown = " | ".join("-" if psnr is None else f"{psnr:.1f}" for psnr in psnrs)
    lines += [f"| PSNR of all that decoded, dB | {shown} | |", ""]
    lines += _knowledge_lines(figures["knowledge"])
    lines += _service_lines(figures["services"])
    return lines if figures["containers"] is None else lines + _container_lines(figures["containers"])


def _lateness(found: Mapping[str, float]) -> str:
    if not found["n"]:
        return "Nothing was sent."
    return f"The generator itself was late by {1e3 * found['p50']:.0f} ms (p99 {1e3 * found['p99']:.0f} ms)."


def _knowledge_lines(knowledge: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["## Knowledge updates", ""]
    if not knowledge:
        return [*lines, "No request was drawn with a knowledge update.", ""]
    lines += [
        "A request is charged with its share of what was fetched, or of the update's size if the edge held it"
    ]
    lines += ["from before the run.", ""]
    lines += ["| topic | requests | fetched, bytes | size, bytes | charged per request, bytes |"]
    lines += ["|---|---:|---:|---:|---:|"]
    for topic, own in knowledge.items():
        size = "-" if own["update_bytes"] is None else f"{own['update_bytes']:,}"
        lines.append(
            f"| {topic} | {own['requests']} | {own['fetched_bytes']:,.0f} | {size} "
            f"| {own['bytes_per_request']:,.0f} |"
        )
    return [*lines, ""]


def _service_lines(services: Sequence[Mapping[str, Any]] | None) -> list[str]:
    lines = ["## Traffic, as the services counted it", ""]
    if services is None:
        return [*lines, "Not told: the services' logs cannot be read from here."]
    if not services:
        return [*lines, "Not told: the logs hold none of these requests."]
    lines += [
        "gRPC messages as serialised, whatever became of the call, and with what only serves to measure;"
    ]
    lines += ["without the framing of gRPC and HTTP/2. What came from Redis is not in it.", ""]
    lines += ["| service | method | calls | received, bytes | sent, bytes |", "|---|---|---:|---:|---:|"]
    for each in services:
        lines.append(
            f"| {each['service']} | {each['method']} | {each['calls']} | {each['received_bytes']:,} "
            f"| {each['sent_bytes']:,} |"
        )
    return lines


def _container_lines(containers: Mapping[str, Any]) -> list[str]:
    lines = ["", "## Traffic, as the containers counted it", ""]
    if "not_told" in containers:
        return [*lines, f"Not told: {containers['not_told']}."]
    idle_s, run_s = containers["idle_s"], containers["run_s"]
    lines += [
        "Network counters of the containers over the run, whoever caused it, in bytes. `idle` is what they",
        f"counted in {idle_s:.0f} s without load, scaled to the run's {run_s:.0f} s; `headers` are those of",
        "the packets, up to TCP; `messages` are those of gRPC as the services logged them, at both ends, and",
        "bodies of HTTP; `rest` is Redis and the framing of gRPC and HTTP.",
        "",
        "| service | direction | counted | idle | headers | messages | rest |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    shown = ("counted_bytes", "idle_bytes", "headers_bytes", "messages_bytes", "rest_bytes")
    for row in containers["rows"]:
        numbers = " | ".join(f"{row[name]:,}" for name in shown)
        lines.append(f"| {row['service']} | {row['direction']} | {numbers} |")
    gap, raw = containers["counters_gap_percent"], containers["raw_gap_percent"]
    return [
        *lines,
        "",
        "Without `idle`, `headers` and what went to and from Redis",
        f"({containers['redis_bytes']:,} bytes) the counters come to {containers['counters_bytes']:,} bytes,",
        f"the messages to {containers['interceptors_bytes']:,}. The gap is the framing of gRPC and HTTP:",
        f"**{gap:.2f} %**, or {raw:.2f} % with `idle` and `headers`.",
    ]


def _plot_latency(good: Sequence[Answer], folder: Path) -> str:
    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name, own in _by_delivery(good).items():
        axis.ecdf([answer.latency_s for answer in own], label=name)
    axis.set(xlabel="latency, s", ylabel="share of requests", xlim=(0, None))
    if good:
        axis.legend(frameon=False)
    write_plot(figure, folder / "latency.svg")
    return "latency"


def _plot_time(answers: Sequence[Answer], load_s: float, folder: Path) -> str:
    """Requests planned and answered in each of 20 equal parts of the run, per second."""
    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    done = [answer.planned_s + answer.latency_s for answer in answers if answer.error is None]
    edges = np.linspace(0, max([load_s, *done]), 21)
    for label, times in (("sent", [answer.planned_s for answer in answers]), ("answered", done)):
        axis.stairs(np.histogram(times, edges)[0] / np.diff(edges), edges, label=label)
    axis.set(xlabel="time, s", ylabel="requests/s", xlim=(0, None), ylim=(0, None))
    axis.legend(frameon=False)
    write_plot(figure, folder / "requests.svg")
    return "requests"


def _plot_traffic(figures: Mapping[str, Any], folder: Path) -> str:
    """Bytes per request on each hop."""
    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    deliveries = figures["deliveries"]
    hops = list(dict.fromkeys(hop for own in deliveries.values() for hop in own["hops_bytes"]))
    width = 0.8 / max(1, len(deliveries))
    for i, (name, own) in enumerate(deliveries.items()):
        means = [own["hops_bytes"].get(hop, 0) / own["requests"] for hop in hops]
        axis.bar(np.arange(len(hops)) + i * width, means, width, label=name)
    axis.set_xticks(np.arange(len(hops)) + width * (len(deliveries) - 1) / 2, hops, fontsize=8)
    axis.set(ylabel="bytes per request", yscale="symlog")
    if deliveries:
        axis.legend(frameon=False)
    write_plot(figure, folder / "traffic.svg")
    return "traffic"
