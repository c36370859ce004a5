"""`dekag bench traffic`: what a load test saved against WebP and JPEG of equal quality.

A load test compares its semantic deliveries with conventional ones of another quality. Here each answered
semantic request is held against the smallest file of the cloud's image that shows it no worse than the
request's own delivery showed the edge's: as many bytes on the backhaul, and as many channel uses on the same
link as conventional delivery takes for them. Knowledge updates are charged to the requests drawn with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from dekag.generation.images import Pixels
from dekag.generation.models import Generator
from dekag.link import LinkConditions
from dekag.link.digital import DigitalLink
from dekag.link.image_coding import EncodedImage, ladders
from dekag.profile import load_profile
from services.bench.results_io import write_bench

COMMAND = "dekag bench traffic"
FORMATS = ("webp", "jpeg")
HEADLINE_FORMAT = "webp"
BATCH = 8
_MAX_REPORT_BYTES = 2**30  # of a load test of hours
_LINK = (
    "snr_db", "fading", "tau_rms_s", "rician_k_db", "speed_m_s", "trace", "trace_start_s", "csi", "equalizer"
)  # fmt: skip


@dataclass(frozen=True)
class AnsweredRequest:
    """A semantic request that was answered.

    Attributes:
        prompt, seed: of its image.
        psnr_db: of what was received against what was sent.
        link: it was sent over.
        topics: whose updates drew it.
        backhaul_bytes: that crossed for it, its fraction of the updates included.
        channel_uses: with pilots.
    """

    prompt: str
    seed: int
    psnr_db: float
    link: LinkConditions
    topics: tuple[str, ...]
    backhaul_bytes: float
    channel_uses: int


def run_traffic_bench(
    report: Path, *, images: int = 250, profile: str = "stickers", results: Path = RESULTS
) -> list[Row]:
    """Hold a load test's requests against files of equal PSNR.

    Args:
        report: folder that `make loadtest-compose` or `make loadtest` wrote.
        images: different images that are drawn again to be compressed, those that were asked for first;
            requests for others are left out.
        profile: the models that the load test ran with.
        results: where headline.json is.

    Returns:
        A row for each request and format. In headline.json `backhaul_saved_percent` and `radio_saved_ratio`
        are of totals over these requests, against WebP, with intervals over resampled requests;
        `counters_gap_percent` is the load test's own, if it ran on containers.

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
        asked = list(answered([parse_json(line, "answers.jsonl") for line in lines], figures["knowledge"]))
    except (ValueError, KeyError, TypeError) as error:
        raise MismatchError(f"{report} holds no report of a load test") from error
    chosen = set(list(dict.fromkeys((each.prompt, each.seed) for each in asked))[:images])
    asked = [each for each in asked if (each.prompt, each.seed) in chosen]
    if not asked:
        raise MismatchError(f"{report}: no semantic request was answered and measured")
    files = compressed(sorted(chosen), profile, console)
    rows = [row for each in asked for row in compare(each, files[each.prompt, each.seed])]
    config = {
        "profile": profile,
        "load_test": figures["settings"],
        "load_test_commit": figures["commit"],
        "requests": figures["requests"],
        "answered": figures["answered"],
        "latency_s": figures["latency_s"],
        "knowledge": figures["knowledge"],
        "savings": figures["savings"],
        "compared_requests": len(asked),
        "pictures": len(chosen),
        "containers": {k: v for k, v in (figures["containers"] or {}).items() if k != "rows"},
    }
    write_bench("traffic", config, rows, results)
    for name in FORMATS:
        saved, ratio = savings(rows, name)
        console.print(
            f"against {name} of equal PSNR: backhaul saved {saved[0]:.1f} %, channel uses {ratio[0]:.2f} "
            "times as many",
            highlight=False,
        )
        if name == HEADLINE_FORMAT:
            common: dict[str, Any] = {"command": COMMAND, "count": len(asked), "results": results}
            record("backhaul_saved_percent", saved[0], "%", ci95=saved[1], **common)
            record("radio_saved_ratio", ratio[0], "ratio", ci95=ratio[1], **common)
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
        topics = tuple(each["topic"] for each in report["knowledge"])
        yield AnsweredRequest(
            line["prompt"],
            report["seed"],
            report["psnr_db"],
            # null: of no matter to that kind of fading
            LinkConditions.model_validate({k: report[k] for k in _LINK if report[k] is not None}),
            topics,
            sum(knowledge[topic]["bytes_per_request"] for topic in topics),
            report["channel_uses"] + report["pilot_uses"],
        )


def compressed(
    images: Sequence[tuple[str, int]], profile: str, console: Console
) -> dict[tuple[str, int], dict[str, list[EncodedImage]]]:
    """For each prompt and seed the cloud's image as files of each format, by rising bytes and PSNR."""
    cloud = Generator.from_profile(load_profile(profile), "cloud")
    found = {}
    for start in track(range(0, len(images), BATCH), "images", console=console):
        part = images[start : start + BATCH]
        latents = cloud.batch([prompt for prompt, _ in part], [seed for _, seed in part])
        for image, pixels in zip(part, cloud.decoder.decode(latents), strict=True):
            found[image] = _ladders(pixels)
    return found


def _ladders(pixels: Pixels) -> dict[str, list[EncodedImage]]:
    return {"webp": ladders(pixels, "webp")[0], "jpeg": ladders(pixels, "jpeg")[0]}


def compare(asked: AnsweredRequest, files: Mapping[str, Sequence[EncodedImage]]) -> Iterator[Row]:
    """What each format would have cost for the PSNR that the request got."""
    link = DigitalLink()
    for name, ladder in files.items():
        # the best there is where even that shows less
        file = next((each for each in ladder if each.psnr_db >= asked.psnr_db), ladder[-1])
        coding = link.choose(asked.link, len(file.data))
        yield {
            "format": name,
            "topics": ",".join(asked.topics),
            "snr_db": asked.link.snr_db,
            "psnr_db": asked.psnr_db,
            "file_psnr_db": file.psnr_db,
            "semantic_backhaul_bytes": asked.backhaul_bytes,
            "file_bytes": len(file.data),
            "semantic_channel_uses": asked.channel_uses,
            "file_channel_uses": link.channel_uses(len(file.data), coding),
        }


def savings(rows: Sequence[Row], name: str) -> tuple[tuple[float, list[float]], tuple[float, list[float]]]:
    """Backhaul saved, %, and channel uses of the files over ours, against one format, with intervals."""
    own = [row for row in rows if row["format"] == name]

    def column(what: str) -> list[float]:
        return [float(row[what]) for row in own]

    saved = bootstrap_ci95(
        lambda ours, theirs: float(100 * (1 - ours.sum() / theirs.sum())),
        column("semantic_backhaul_bytes"),
        column("file_bytes"),
    )
    ratio = bootstrap_ci95(
        lambda ours, theirs: float(theirs.sum() / ours.sum()),
        column("semantic_channel_uses"),
        column("file_channel_uses"),
    )
    return saved, ratio
