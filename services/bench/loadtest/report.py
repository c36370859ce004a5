"""The report of a load test: latency, traffic and savings. Nothing here needs Locust."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dekag.evaluation import plots
from dekag.evaluation.pages import Lines, table, write_rows
from dekag.evaluation.registry import current_commit
from dekag.evaluation.statistics import bootstrap_ci95
from dekag.makd.demand import REPLAYED
from services.bench.loadtest.backhaul import (
    BACKHAUL,
    EQUAL,
    FILES,
    USUAL,
    Quality,
    compared,
    psnrs,
    verdict,
)

PERCENTILES = (50, 90, 95, 99)
_SYMBOL_HOPS = ("edge-channel", "channel-user", "edge-user")  # the simulator's samples: channel uses tell
LATENCY_PARTS = ("compute_s", "air_s", "backhaul_s")
LEAST_PROMPTS = 8  # that were answered both ways: fewer tell too little of an interval
_FORMAT = 2
_UNMEASURED = Quality({}, {}, {}, missing="it was not asked for")
_COUNTS = '"sent_bytes"'  # is in the lines of the services' logs that count bytes
_LEFT_OUT = ("gains",)  # of link reports: many numbers that no figure is made of


@dataclass(frozen=True)
class Answer:
    """What came of one request.

    Attributes:
        request_id: `X-Request-ID` of the response; empty if there was none.
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
        needs: topics that the prompt needs, sorted.
        consistency: of the image that the edge sent with the cloud's own; None unless measured after the run.
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
    needs: tuple[str, ...] = ()
    consistency: float | None = None

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

    @property
    def image(self) -> tuple[str, int]:
        """Prompt and seed."""
        return self.prompt, int(self.report["seed"])

    def hop_bytes(self, hop: str) -> int:
        """Bytes that the link report says crossed that hop."""
        return sum(int(each["sent_bytes"]) for each in self.report["hops"] if each["hop"] == hop)

    @property
    def topics(self) -> list[str]:
        """Topics whose knowledge updates drew it."""
        return [str(each["topic"]) for each in self.report["knowledge"]]


def summarise(
    answers: Sequence[Answer],
    *,
    load_s: float,
    updates: Mapping[str, int],
    quality: Quality = _UNMEASURED,
) -> dict[str, Any]:
    """The figures of a run.

    Args:
        answers: one for each request, in any order.
        load_s: how long requests were sent, s.
        updates: bytes of the current knowledge update of each topic, as the gateway lists them.
        quality: of the answers.

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
        "backhaul": compared(good, updates, quality, load_s=load_s),
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
    parts: dict[str, list[float]] = {part: [] for part in LATENCY_PARTS}
    for answer in own:
        for part, seconds in (answer.report.get("latency") or {}).items():
            parts[part].append(seconds)
        for stage in answer.report["stages"]:
            stages[stage["stage"]].append(stage["seconds"])
        for hop in answer.report["hops"]:
            if hop["hop"] not in _SYMBOL_HOPS:
                hops[hop["hop"]] += hop["sent_bytes"]
        hops["gateway-client"] += answer.sent_bytes + answer.received_bytes
    return {
        "requests": len(own),
        "decoded": sum(each.report["decoded"] for each in own),
        "cache_hits": sum(each.report["cached"] for each in own),
        "psnr_db": _psnr(own),
        "channel_uses": sum(each.report["channel_uses"] for each in own),
        "pilot_uses": sum(each.report["pilot_uses"] for each in own),
        "hops_bytes": dict(hops),
        "latency_parts": {name: _percentiles(seconds) for name, seconds in parts.items()},
        "stages_s": {name: _percentiles(seconds) for name, seconds in stages.items()},
    }


def _psnr(answers: Iterable[Answer]) -> float | None:
    """Mean PSNR of the images that decoded and were measured, dB."""
    found = psnrs(answers)
    return float(np.mean(found)) if found else None


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
    both_ways = [both for own in pairs.values() for both in own]
    backhaul, radio = [], []
    for own in pairs.values():
        # an update is charged to all that used it, so what one request happened to fetch does not count
        updates = [sum(knowledge[topic]["bytes_per_request"] for topic in mine.topics) for mine, _ in own]
        others = [0 if mine.topics else mine.hop_bytes(BACKHAUL) for mine, _ in own]  # adapters of the codec
        backhaul.append((float(np.mean(updates) + np.mean(others)), _mean(own, BACKHAUL)))
        radio.append((float(np.mean([mine.channel_uses for mine, _ in own])), _mean(own, None)))
    return {
        "questions": len(both_ways),
        "backhaul_bytes": _saved(backhaul),
        "channel_uses": _saved(radio),
        "psnr_db": {
            "semantic": _psnr(mine for mine, _ in both_ways),
            "conventional": _psnr(other for _, other in both_ways),
        },
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
    quality: Quality = _UNMEASURED,
    demand: Mapping[str, Any] | None = None,
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
        quality: of the answers, measured after the run.
        demand: what the demand policy has counted and decided, as `GET /v1/demand` says it.

    Returns:
        The verdict and the lines of the summary table, Markdown.
    """
    answers = [replace(each, consistency=quality.consistency.get(each.request_id)) for each in answers]
    figures = summarise(answers, load_s=load_s, updates=updates, quality=quality)
    figures["demand"], figures["verdict"] = demand, verdict(figures["backhaul"])
    figures["services"] = None
    if log is not None:
        figures["services"] = service_traffic(log, [answer.request_id for answer in answers])
    figures["containers"] = containers
    run = {"format": _FORMAT, "commit": current_commit(), "settings": dict(settings)}
    write_rows(folder / "answers.jsonl", [_row(answer) for answer in answers])
    (folder / "report.json").write_text(json.dumps(run | figures, indent=2) + "\n")
    plots.write_plot(_load_plot(answers, load_s), folder / "load.svg")
    plots.write_plot(_backhaul_plot(figures["backhaul"]), folder / "backhaul.svg")
    (folder / "report.md").write_text("\n".join(_page(settings, figures)) + "\n")
    return [verdict(figures["backhaul"]), "", *_summary(figures)]


def _row(answer: Answer) -> dict[str, Any]:
    row = asdict(answer)
    if row["link_report"] is not None:
        row["link_report"] = {k: v for k, v in row["link_report"].items() if k not in _LEFT_OUT}
    return row


def _summary(figures: Mapping[str, Any]) -> Lines:
    savings, containers = figures["savings"], figures["containers"] or {}
    rows = [["requests, answered", f"{figures['requests']}, {figures['answered']}"]]
    rows += [[f"error: {kind}", str(count)] for kind, count in figures["errors"].items()]
    rows.append(["offered", f"{figures['offered_per_s']:.2f} /s"])
    rows.append(["answered", f"{figures['throughput_per_s']:.2f} /s"])
    for name, found in figures["latency_s"].items():
        if found["n"]:
            times = ", ".join(f"{1e3 * found[f'p{p}']:.0f}" for p in PERCENTILES)
            rows.append([f"latency, {name}: p{'/'.join(map(str, PERCENTILES))}", f"{times} ms"])
    as_sent = "against `conventional` as sent"
    rows.append([f"backhaul saved {as_sent}", _percent(savings["backhaul_bytes"])])
    rows.append([f"channel uses saved {as_sent}", _percent(savings["channel_uses"])])
    quality = [
        f"{name} {'not measured' if psnr is None else f'{psnr:.1f} dB'}"
        for name, psnr in savings["psnr_db"].items()
    ]
    rows.append(["PSNR of the same requests, of those that decoded", ", ".join(quality)])
    if "counters_gap_percent" in containers:
        rows.append(["bytes that only containers counted", f"{containers['counters_gap_percent']:.1f} %"])
    return table(["figure", "value"], rows)


def _percent(saved: Mapping[str, Any]) -> str:
    """What was saved, with its interval, and whether that decides anything."""
    if not saved["n"]:
        return "not measured: nothing that costs something was answered both ways"
    interval = "" if saved["ci95"] is None else " [{:.1f}, {:.1f}]".format(*saved["ci95"])
    text = f"{saved['saved_percent']:.1f}{interval} %, n = {saved['n']}"
    if not saved["decides"]:
        return f"{text}: too few to tell" + (" which is cheaper" if interval else "")
    return text if saved["saved_percent"] >= 0 else f"{text}: more was spent"


def _page(settings: Mapping[str, Any], figures: Mapping[str, Any]) -> Lines:
    """report.md; docs/loadtest.md says how each figure is counted."""
    sections = {
        "Compute, air and backhaul": _latency_parts(figures["deliveries"]),
        "Backhaul": _backhaul(figures["backhaul"]),
        "Topic by topic": _topics(figures["backhaul"]),
        "Demand policies": _policies(figures["backhaul"], figures["demand"]),
        "Time per stage": _stages(figures["deliveries"]),
        "Traffic, as the link reports count it": _traffic(figures["deliveries"]),
        "Savings against `conventional`": _savings_table(settings, figures),
        "Knowledge updates": _updates(figures["knowledge"]),
        "Traffic, as the services counted it": _services(figures["services"]),
    }
    if figures["containers"] is not None:
        sections["Traffic, as the containers counted it"] = _containers(figures["containers"])
    late = figures["late_s"]
    lateness = (
        f"The load generator was late by {1e3 * late['p50']:.0f} ms (p99 {1e3 * late['p99']:.0f} ms)."
        if late["n"]
        else "Nothing was sent."
    )
    lines = ["# Load test", "", verdict(figures["backhaul"]), ""]
    lines += ["![bytes cloud-edge against images](backhaul.svg)", ""]
    lines += [", ".join(f"{name} {value}" for name, value in settings.items()) + ".", ""]
    lines += [*_summary(figures), "", f"Latency counts from the planned time of a request. {lateness}"]
    lines += ["Intervals are 95 %.", "", "![latency, and requests over time](load.svg)"]
    for title, section in sections.items():
        lines += ["", f"## {title}", "", *section]
    return lines


def _backhaul(found: Mapping[str, Any]) -> Lines:
    """What files would have taken for the same requests, with the quality of both."""
    if not found["files"]:
        return ["Nothing to compare with: no conventional image was delivered, and no file was made."]
    rows = []
    for kind, own in found["files"].items():
        quality = _score(found["consistency"]["mean"])
        theirs = quality if kind == EQUAL else _score(found["usual_consistency"])
        for cache, saved, name in (
            ("", own["saved_percent"], own["bytes"]),
            (", kept in a cache of the edge", own["saved_percent_cached"], own["cached_bytes"]),
        ):
            images, minutes = own["break_even_images"], own["break_even_minutes"]
            cells = [f"{FILES[kind]}{cache}", f"{name:,.0f}", f"{found['bytes']:,.0f}", _saved_cell(saved)]
            cells += [theirs, quality]
            cells += ["", ""] if cache else [_count(images), "-" if minutes is None else f"{minutes:,.1f}"]
            rows.append(cells)
    header = ["files", "theirs, bytes", "ours, bytes", "saved, %", "their consistency", "ours"]
    lines = table([*header, "break-even, images", "min"], rows)
    lines += [
        "",
        f"Bytes from cloud to edge of {found['requests']:,} aligned semantic images.",
        f"Updates are {found['update_bytes']:,.0f} of ours. The break-even counts aligned semantic images,",
        "and minutes at this load.",
    ]
    if found["quality_missing"]:
        lines.append(f"Files of equal quality were not measured: {found['quality_missing']}.")
    else:
        received = _score(found["received_consistency"]["mean"])
        lines.append(
            f"Consistency with the cloud's images is that of {found['consistency']['n']} images as the edge "
            f"sent them; as they arrived, it is {received}."
        )
    if found["radio_saved_percent"] is not None:
        lines += [
            f"Channel uses saved against WebP of equal PSNR: {found['radio_saved_percent']:.1f} %.",
            f"Of {found['radio_compared']} answers, with a mean PSNR of {found['radio_psnr_db']:.1f} dB.",
        ]
    return lines


def _score(consistency: float | None) -> str:
    return "-" if consistency is None else f"{consistency:.3f}"


def _saved_cell(saved: float | None) -> str:
    return "-" if saved is None else f"{saved:.1f}"


def _count(value: float | None) -> str:
    return "never" if value is None else f"{value:,}"


def _topics(found: Mapping[str, Any]) -> Lines:
    main = found["main"]
    rows = []
    for own in found["topics"]:
        file, scored = own["files"].get(main), own["consistency"]
        cells = [", ".join(own["topics"]) or "no topic", f"{own['requests']:,}", f"{own['images']:,}"]
        cells += ["" if own["update_bytes"] is None else f"{own['update_bytes']:,}", f"{own['bytes']:,.0f}"]
        cells += ["-" if scored["mean"] is None else f"{scored['mean']:.3f} ({scored['n']})"]
        cells.append(_score(own["received_consistency"]["mean"]))
        if file is None:
            cells += ["-"] * 6
        else:
            cells.append(_score(scored["mean"] if main == EQUAL else found["usual_consistency"]))
            cells += [f"{file['bytes_each']:,.0f}", f"{file['bytes']:,.0f}", f"{file['saved_by_cache']:,.0f}"]
            cells.append(_saved_cell(file["saved_percent"]))
            minutes = file["break_even_minutes"]
            when = "" if minutes is None else f" ({minutes:,.1f} min)"
            cells.append("" if not own["topics"] else f"{_count(file['break_even_images'])}{when}")
        rows.append(cells)
    if not rows:
        return ["No aligned semantic image was delivered."]
    header = [
        "topic",
        "requests",
        "images",
        "update, bytes",
        "ours, bytes",
        "consistency (n)",
        "as received",
        "of a file",
        "a file, bytes",
    ]
    header += ["files, bytes", "of which a cache saves", "saved, %", "break-even, images"]
    return [
        *table(header, rows),
        "",
        f"Files: {FILES[main] if main else 'none'}. *Images* counts different ones. An update of 0 bytes",
        "means that there is none: the edge draws the topic as well as it can.",
    ]


def _policies(found: Mapping[str, Any], demand: Mapping[str, Any] | None) -> Lines:
    lines: Lines = []
    kinds = [kind for kind in FILES if kind in found["files"]]
    if kinds:
        rows = [
            [f"`{name}`", what, *(f"{found['files'][kind]['policies'][name]:,.0f}" for kind in kinds)]
            for name, what in REPLAYED.items()
        ]
        lines += [
            "The same requests under other policies: bytes cloud-edge, by what a file is. The cloud's demand",
            "policy sends files of quality 75.",
            "",
            *table(["policy", "what it sends", *(FILES[kind] for kind in kinds)], rows, words=(0, 1)),
            "",
        ]
    if demand is None:
        return [*lines, "What the cloud decided is not known: the gateway did not say."]
    if not demand["data"]:
        return [*lines, f"The cloud's demand policy is `{demand['policy']}`; it has decided nothing."]
    rows = []
    for each in demand["data"]:
        counts = [f"{each[name]:,}" for name in ("requests", "files", "file_bytes", "update_bytes")]
        rows.append([each["topic"], *counts, each["action"], each["reason"]])
    header = ["topic", "requests", "files", "files, bytes", "update, bytes", "next", "why"]
    return [
        *lines,
        f"What the cloud has decided so far; its demand policy is `{demand['policy']}`:",
        "",
        *table(header, rows, words=(0, 5, 6)),
    ]


def _latency_parts(deliveries: Mapping[str, Any]) -> Lines:
    rows = [
        [
            name,
            part.removesuffix("_s"),
            str(found["n"]),
            *(f"{1e3 * found[f'p{p}']:.1f}" for p in PERCENTILES),
        ]
        for name, own in deliveries.items()
        for part, found in own["latency_parts"].items()
        if found["n"]
    ]
    return [
        "Compute was measured; air and backhaul are modelled (see `DEKAG_AIR_*` and `DEKAG_BACKHAUL_*`) and",
        "not part of the latency above.",
        "",
        *table(["delivery", "part", "n", *(f"p{p}, ms" for p in PERCENTILES)], rows, words=(0, 1)),
    ]


def _stages(deliveries: Mapping[str, Any]) -> Lines:
    rows = [
        [name, stage, str(found["n"]), *(f"{1e3 * found[f'p{p}']:.1f}" for p in PERCENTILES)]
        for name, own in deliveries.items()
        for stage, found in own["stages_s"].items()
    ]
    return table(["delivery", "stage", "n", *(f"p{p}, ms" for p in PERCENTILES)], rows, words=(0, 1))


def _traffic(deliveries: Mapping[str, Any]) -> Lines:
    rows = []
    for name, own in deliveries.items():
        counts = {f"bytes {hop}": count for hop, count in own["hops_bytes"].items()}
        counts |= {"channel uses": own["channel_uses"], "pilots": own["pilot_uses"]}
        counts |= {"cache hits": own["cache_hits"], "decoded": own["decoded"]}
        rows += [
            [name, what, f"{count:,}", f"{count / own['requests']:,.2f}"] for what, count in counts.items()
        ]
    return table(["delivery", "what", "in all", "per request"], rows, words=(0, 1))


def _savings_table(settings: Mapping[str, Any], figures: Mapping[str, Any]) -> Lines:
    savings = figures["savings"]
    rows = []
    for label, name in (("backhaul, bytes", "backhaul_bytes"), ("channel uses with pilots", "channel_uses")):
        saved = savings[name]
        means = [f"{saved[way]:,.0f}" if saved["n"] else "-" for way in ("semantic", "conventional")]
        rows.append([label, *means, _percent(saved)])
    both = [savings["psnr_db"][name] for name in ("semantic", "conventional")]
    rows.append(
        ["PSNR of those that decoded, dB", *("-" if psnr is None else f"{psnr:.1f}" for psnr in both), ""]
    )
    lines = [f"{savings['questions']} requests were answered both ways. Means over prompts; quality differs."]
    if settings.get("measure") == "no":
        lines.append("The PSNR of the deliveries was not measured: the load test ran with `--measure no`.")
    return [
        *lines,
        "",
        *table(["", "semantic", "conventional", "saved"], rows),
    ]


def _updates(knowledge: Mapping[str, Mapping[str, Any]]) -> Lines:
    if not knowledge:
        return ["No request used a knowledge update."]
    rows = [
        [
            topic,
            str(own["requests"]),
            f"{own['fetched_bytes']:,.0f}",
            "-" if own["update_bytes"] is None else f"{own['update_bytes']:,}",
            f"{own['bytes_per_request']:,.0f}",
        ]
        for topic, own in knowledge.items()
    ]
    return table(["topic", "requests", "fetched, bytes", "size, bytes", "charged per request, bytes"], rows)


def _services(services: Sequence[Mapping[str, Any]] | None) -> Lines:
    if not services:
        why = "cannot be read from here" if services is None else "hold none of these requests"
        return [f"Not measured: the services' logs {why}."]
    rows = [
        [each["service"], each["method"]]
        + [f"{each[name]:,}" for name in ("calls", "received_bytes", "sent_bytes")]
        for each in services
    ]
    return table(["service", "method", "calls", "received, bytes", "sent, bytes"], rows, words=(0, 1))


def _containers(containers: Mapping[str, Any]) -> Lines:
    if "not_told" in containers:
        return [f"Not measured: {containers['not_told']}."]
    names = ("counted", "idle", "headers", "messages", "rest")
    gap, raw_gap = containers["counters_gap_percent"], containers["raw_gap_percent"]
    rows = [
        [row["service"], row["direction"], *(f"{row[f'{name}_bytes']:,}" for name in names)]
        for row in containers["rows"]
    ]
    return [
        *table(["service", "direction", *names], rows, words=(0, 1)),
        "",
        f"Without `idle`, `headers` and Redis the counters hold {containers['counters_bytes']:,} bytes,",
        f"the messages {containers['interceptors_bytes']:,}.",
        f"Gap: **{gap:.2f} %**, or {raw_gap:.2f} % with `idle` and `headers`.",
    ]


def _backhaul_plot(found: Mapping[str, Any]) -> Any:
    """Bytes from cloud to edge against images, ours and those of files, with the break-even."""
    figure, axes = plots.panels(height_in=3.6)
    (axis,) = axes[0]
    curves, main = found["curves"], found["main"]
    colors = {EQUAL: plots.SECOND, USUAL: plots.FOURTH}
    named = {EQUAL: "WebP, equal\nconsistency", USUAL: "WebP, q75"}
    shown = [("ours", "ours, with\nupdates", plots.OURS, "-")]
    for kind in found["files"]:
        shown += [(kind, named[kind], colors[kind], "-")]
        if kind == main:
            shown += [(f"{kind}_cached", "the same,\nedge cache", colors[kind], ":")]
    for name, label, color, style in shown:
        if curves[name]:
            x, y = np.array(curves[name]).T
            axis.plot(x, y / 1000, style, color=color, label=label)
    if main is not None and found["files"][main]["break_even_in_run"]:
        images = found["files"][main]["break_even_images"]
        axis.axvline(images, color=plots.BASE, linewidth=1)
        axis.annotate(
            f" break-even: {images:,} images", (images, 0.97), xycoords=("data", "axes fraction"), va="top",
            color=plots.BASE, fontsize=10,
        )  # fmt: skip
    axis.set(xlabel="aligned semantic images", ylabel="kB from cloud to edge", xlim=(0, None), ylim=(0, None))
    plots.label_lines(axis, gap=0.14)
    return figure


def _load_plot(answers: Sequence[Answer], load_s: float) -> Any:
    """Latency by delivery, and the requests that were sent and answered in each twentieth of the run."""
    figure, axes = plots.panels(2, height_in=3.2)
    latency, rate = axes[0]
    good = [answer for answer in answers if answer.error is None]
    for (name, own), color in zip(_by_delivery(good).items(), (plots.OURS, plots.SECOND), strict=False):
        latency.ecdf([answer.latency_s for answer in own], label=name, color=color)
    latency.set(xlabel="latency, s", ylabel="fraction of requests", xlim=(0, None))
    answered_s = [answer.planned_s + answer.latency_s for answer in good]
    edges = np.linspace(0, max([load_s, *answered_s]), 21)
    for label, times, color in (
        ("sent", [answer.planned_s for answer in answers], plots.BASE),
        ("answered", answered_s, plots.OURS),
    ):
        rate.stairs(np.histogram(times, edges)[0] / np.diff(edges), edges, label=label, color=color)
    rate.set(xlabel="time, s", ylabel="requests/s", xlim=(0, None), ylim=(0, None))
    for axis in axes[0] if good else axes[0, 1:]:
        axis.legend(frameon=False)
    return figure
