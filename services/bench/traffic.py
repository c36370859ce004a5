"""`dekag bench traffic`: what a load test saved against WebP and JPEG of equal quality.

A load test compares its semantic deliveries with conventional ones of another quality. Here each answered
semantic request is held against files of the cloud's image. On the radio link, that is the smallest file that
shows the image no worse than the request's own delivery showed the edge's. On the backhaul, it is as large as
files whose mean consistency with the cloud's images is that of the edge's images of the same topic.
Knowledge updates are charged to the requests drawn with them.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from dekag.documents import parse_json
from dekag.errors import FileError, MismatchError, NotFoundError
from dekag.evaluation.pages import Row
from dekag.evaluation.registry import RESULTS, record
from dekag.evaluation.statistics import bootstrap_ci95
from dekag.files import read_lines, read_text
from services.bench.loadtest.quality import ImageFiles, equal_consistency, equal_psnr, image_files
from services.bench.results_io import write_bench

COMMAND = "dekag bench traffic"
FORMATS = ("webp", "jpeg")
HEADLINE_FORMAT = "webp"
_MAX_REPORT_BYTES = 2**30  # of a load test of hours
BY_CONSISTENCY, BY_PSNR = "consistency_file_bytes", "file_bytes"


@dataclass(frozen=True)
class AnsweredRequest:
    """A semantic request that was answered.

    Attributes:
        prompt, seed: of its image.
        report: its link report.
        topics: that its prompt needs.
        consistency: of the edge's image with the cloud's; None if it was not measured.
        backhaul_bytes: that crossed for it, its fraction of the updates included.
        channel_uses: with pilots.
    """

    prompt: str
    seed: int
    report: Mapping[str, Any]
    topics: tuple[str, ...]
    consistency: float | None
    backhaul_bytes: float
    channel_uses: int


def run_traffic_bench(
    report: Path, *, images: int = 250, profile: str = "stickers", results: Path = RESULTS
) -> list[Row]:
    """Hold a load test's requests against files of equal quality.

    Args:
        report: folder that `make loadtest-compose` or `make loadtest` wrote.
        images: different images that are drawn again to be compressed, those that were asked for first;
            requests for others are left out.
        profile: the models that the load test ran with.
        results: where headline.json is.

    Returns:
        A row for each request and format. In headline.json `backhaul_saved_percent` (equal consistency, if
        the load test measured it) and `radio_saved_ratio` (equal PSNR) are of totals over these requests,
        against WebP, with intervals over resampled images; `counters_gap_percent` is the load test's own,
        if it ran on containers.

    Raises:
        NotFoundError: there is no report in that folder.
        MismatchError: the report was not written by a load test, or none of its requests was answered.
    """
    console = Console()
    try:
        figures = parse_json(read_text(report / "report.json", max_bytes=_MAX_REPORT_BYTES), "report.json")
        lines = [line for _, line in read_lines(report / "answers.jsonl", max_bytes=_MAX_REPORT_BYTES)]
    except FileError as error:
        raise NotFoundError(
            f"no report of a load test: {error}. A clone's `make loadtest-compose` writes one"
        ) from error
    except ValueError as error:
        raise MismatchError(f"{report} holds no report of a load test") from error
    try:
        verdict, backhaul = figures["verdict"], dict(figures["backhaul"])
        asked = list(answered([parse_json(line, "answers.jsonl") for line in lines], figures["knowledge"]))
    except (ValueError, KeyError, TypeError) as error:
        raise MismatchError(f"{report} holds no report of a load test") from error
    chosen = set(list(dict.fromkeys((each.prompt, each.seed) for each in asked))[:images])
    asked = [each for each in asked if (each.prompt, each.seed) in chosen]
    if not asked:
        raise MismatchError(
            f"{report}: no semantic request was answered and measured; with --measure no, none is measured"
        )
    files = image_files(
        sorted(chosen),
        profile,
        formats=FORMATS,
        on_progress=lambda starts: track(starts, "images", console=console),
    )
    sizes = {name: consistent_bytes(asked, files, name) for name in FORMATS}
    rows = [row for each in asked for row in compare(each, files[each.prompt, each.seed], sizes)]
    config = {
        "profile": profile,
        "load_test": figures["settings"],
        "load_test_commit": figures["commit"],
        "requests": figures["requests"],
        "answered": figures["answered"],
        "latency_s": figures["latency_s"],
        "knowledge": figures["knowledge"],
        "savings": figures["savings"],
        "verdict": verdict,
        "backhaul": {name: value for name, value in backhaul.items() if name != "curves"},
        "compared_requests": len(asked),
        "pictures": len(chosen),
        "containers": {k: v for k, v in (figures["containers"] or {}).items() if k != "rows"},
    }
    write_bench("traffic", config, rows, results)
    for name in FORMATS:
        ratio = radio_ratio(rows, name)
        own = [row for row in rows if row["format"] == name]
        psnrs = "ours {:.1f} dB, theirs {:.1f} dB".format(
            *(statistics.fmean(row[what] for row in own) for what in ("psnr_db", "file_psnr_db"))
        )
        if (saved := backhaul_saved(rows, name, BY_CONSISTENCY)) is not None:
            equal = f"equal consistency (both {mean_consistency(own):.3f})"
            console.print(f"against {name} of {equal}: backhaul saved {saved[0]:.1f} %", highlight=False)
        if (saved := backhaul_saved(rows, name, BY_PSNR)) is not None:
            equal = f"equal PSNR ({psnrs})"
            console.print(f"against {name} of {equal}: backhaul saved {saved[0]:.1f} %", highlight=False)
        times = f"{ratio[0]:.2f} times our channel uses"
        console.print(f"against {name} of equal PSNR ({psnrs}): {times}", highlight=False)
        if name == HEADLINE_FORMAT:
            common: dict[str, Any] = {"command": COMMAND, "results": results}
            if (saved := backhaul_saved(rows, name, BY_CONSISTENCY)) is not None:
                count = len(_full(rows, name, BY_CONSISTENCY))
                record("backhaul_saved_percent", saved[0], "%", ci95=saved[1], count=count, **common)
            record("radio_saved_ratio", ratio[0], "ratio", ci95=ratio[1], count=len(asked), **common)
    gap = config["containers"].get("counters_gap_percent")
    if gap is not None:
        record(
            "counters_gap_percent", gap, "%", command=COMMAND, count=figures["requests"], ci95=None,
            results=results,
        )  # fmt: skip
    return rows


def answered(lines: Sequence[Mapping[str, Any]], knowledge: Mapping[str, Any]) -> Iterator[AnsweredRequest]:
    """The semantic requests of a load test that were answered and measured.

    Args:
        lines: of answers.jsonl.
        knowledge: of report.json: what a request is charged for each topic.
    """
    for line in lines:
        report = line["link_report"]
        if line["delivery"] != "semantic" or line["error"] is not None or report["psnr_db"] is None:
            continue
        drawn_with = [each["topic"] for each in report["knowledge"]]
        fetched = sum(each["sent_bytes"] for each in report["hops"] if each["hop"] == "cloud-edge")
        yield AnsweredRequest(
            line["prompt"],
            report["seed"],
            report,
            tuple(line["needs"]),
            line["consistency"],
            sum(knowledge[topic]["bytes_per_request"] for topic in drawn_with) if drawn_with else fetched,
            report["channel_uses"] + report["pilot_uses"],
        )


def consistent_bytes(
    asked: Sequence[AnsweredRequest], files: Mapping[tuple[str, int], ImageFiles], name: str
) -> dict[tuple[str, ...], float]:
    """Mean bytes of files of one format that are as consistent as the edge's images, by topics."""
    scored: dict[tuple[str, ...], list[AnsweredRequest]] = defaultdict(list)
    for each in asked:
        if each.consistency is not None:
            scored[each.topics].append(each)
    found = {}
    for topics, own in scored.items():
        size = equal_consistency(
            [each.consistency for each in own if each.consistency is not None],
            [files[each.prompt, each.seed].ladders[name] for each in own],
        )
        if size is not None:
            found[topics] = size
    return found


def compare(
    asked: AnsweredRequest, files: ImageFiles, sizes: Mapping[str, Mapping[tuple[str, ...], float]]
) -> Iterator[Row]:
    """What each format would have cost for the quality that the request got.

    Args:
        asked: the request.
        files: of the cloud's image of it.
        sizes: what `consistent_bytes` returns for each format.
    """
    for name, ladder in files.ladders.items():
        file = equal_psnr(asked.report, ladder)
        yield {
            "format": name,
            "prompt": asked.prompt,
            "seed": asked.seed,
            "topics": ",".join(asked.topics),
            "snr_db": asked.report["snr_db"],
            "psnr_db": asked.report["psnr_db"],
            "consistency": asked.consistency,
            "file_psnr_db": file.psnr_db,
            "semantic_backhaul_bytes": asked.backhaul_bytes,
            BY_PSNR: file.size_bytes,
            BY_CONSISTENCY: sizes[name].get(asked.topics),
            "semantic_channel_uses": asked.channel_uses,
            "file_channel_uses": file.channel_uses,
        }


def _full(rows: Sequence[Row], name: str, *columns: str) -> list[Row]:
    """The rows of one format that have a value in each of these columns."""
    own = [row for row in rows if row["format"] == name]
    return [row for row in own if all(row.get(column) is not None for column in columns)]


def _compared(
    rows: Sequence[Row], name: str, ours: str, theirs: str, statistic: Callable[..., float]
) -> tuple[float, list[float]]:
    """A statistic of two columns of one format, with its interval over resampled images."""
    full = _full(rows, name, ours, theirs)
    own, other = ([float(row[column]) for row in full] for column in (ours, theirs))
    images = [(row["prompt"], row["seed"]) for row in full]
    return bootstrap_ci95(statistic, own, other, groups=images)


def backhaul_saved(rows: Sequence[Row], name: str, files: str) -> tuple[float, list[float]] | None:
    """Backhaul saved, %, against one format, with its interval; None if nothing was compared.

    Args:
        rows: of `run_traffic_bench`.
        name: of the format.
        files: column of the files' bytes, BY_CONSISTENCY or BY_PSNR.
    """
    ours = "semantic_backhaul_bytes"
    if not _full(rows, name, ours, files):
        return None
    return _compared(rows, name, ours, files, lambda own, other: float(100 * (1 - own.sum() / other.sum())))


def mean_consistency(rows: Sequence[Row]) -> float:
    """Mean consistency over requests, from the means of those that were measured of each group of topics."""
    scored: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["consistency"] is not None:
            scored[row["topics"]].append(row["consistency"])
    return statistics.fmean(
        statistics.fmean(scored[row["topics"]]) for row in rows if row["topics"] in scored
    )


def kept_in_cache(rows: Sequence[Row], column: str) -> list[Row]:
    """The rows as if the edge kept the files: each image takes the bytes in `column` once for each format."""
    seen: set[tuple[Any, ...]] = set()
    found = []
    for row in rows:
        image = row["format"], row["prompt"], row["seed"]
        again = image in seen and row.get(column) is not None
        found.append({**row, column: 0} if again else row)
        seen.add(image)
    return found


def radio_ratio(rows: Sequence[Row], name: str) -> tuple[float, list[float]]:
    """Channel uses of files of equal PSNR over ours, against one format, with its interval."""
    columns = "semantic_channel_uses", "file_channel_uses"
    return _compared(rows, name, *columns, lambda own, other: float(other.sum() / own.sum()))
