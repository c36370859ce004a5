"""What was promised beside what was measured: docs/claims.md and the README's table, from headline.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dekag.documents import read_json
from dekag.experiments.headline import RESULTS
from dekag.experiments.page import BOOK_COMMAND, FIRST_IMAGE, fill, row

CLAIMS_PAGE = Path("docs/claims.md")
README = Path("README.md")
MISSING = "not measured yet"
DECIMALS = {
    "B": 0,
    "images": 0,
    "inputs": 0,
    "requests": 0,
    "faults": 0,
    "MiB": 0,
    "s": 1,
}  # 2 in all other units

Figures = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Claim:
    """What was promised of a figure.

    Attributes:
        words: what is claimed.
        target: the promised figure, in the unit of headline.json; None if none was named.
        unit: that unit.
        key: what measures it in headline.json.
        bound: "least" if more is better, "most" if less is.
    """

    words: str
    target: float | None
    unit: str
    key: str
    bound: Literal["least", "most"] = "least"


PAPER = (
    Claim("Consistency of edge and cloud images, gain over no alignment", 44, "%", "gka_gain_percent"),
    Claim("Mean transmission quality (PSNR), gain over no alignment", 6.5, "dB", "tka_gain_db"),
    Claim(
        "A metaword helps: lead in consistency over the best baseline of no more bytes",
        None, "%", "gka_lead_over_best_baseline_percent",
    ),
    Claim(
        "CALA suits conditions: lead in PSNR over the best baseline of no more parameters",
        None, "dB", "tka_lead_over_best_baseline_db",
    ),
)  # fmt: skip

TARGETS = (
    Claim("Autoencoder: PSNR of held-out scenes", 29, "dB", "vae_psnr_db"),
    Claim("Cloud-GAI: visible attributes right", 90, "%", "probe_cloud_accuracy"),
    Claim("Edge-GAI: visible attributes right, prompts it knows", 85, "%", "probe_edge_known_accuracy"),
    Claim(
        "Base codec, clean channel: limit of its 64-QAM minus codec", 1, "dB", "codec_clean_gap_db", "most"
    ),
    Claim("MAKD: gain in consistency over no alignment", 60, "%", "gka_gain_percent"),
    Claim("MAKD: share of the gap to the ceiling that it closes", 90, "%", "gka_ceiling_share"),
    Claim("MAKD: visible attributes right on held-out topics", 85, "%", "gka_probe_heldout_accuracy"),
    Claim("Knowledge update: size of the largest", 200_000, "B", "update_bytes", "most"),
    Claim("Knowledge update: share of the edge's model, by bytes", 2, "%", "update_model_share", "most"),
    Claim("From asking for a topic to the first image drawn with it", 180, "s", "distill_seconds", "most"),
    Claim("CALA: gain in PSNR over no alignment", 8, "dB", "tka_gain_db"),
    Claim("CALA: trained parameters over the codec's", 5, "%", "tka_adapter_share", "most"),
    Claim("CALA: behind a full fine-tune for each condition", 0.7, "dB", "tka_oracle_gap_db", "most"),
    Claim("CALA: worst loss in a condition that no training drew", 1, "dB", "tka_unseen_gap_db", "most"),
    Claim(
        "CALA: time of the codec at a new condition over that without gates",
        1.3,
        "ratio",
        "gate_cost_ratio",
        "most",
    ),
    Claim("Both alignments: gain of the whole chain over none", 60, "%", "overall_gain_percent"),
    Claim("Images after which an update has paid for itself", 60, "images", "break_even_images", "most"),
    Claim("All results in the quick mode", 600, "s", "results_quick_seconds", "most"),
    Claim("Experiments on two Ray workers over one", 1.7, "ratio", "ray_speedup_2_workers"),
    Claim("One request through all services over library calls", 1.10, "ratio", "bench_chain_ratio", "most"),
    Claim(
        "Throughput of the services over LitServe's, 8 and 16 users, the worse",
        1.5,
        "ratio",
        "bench_litserve_ratio",
    ),
    Claim(
        "Throughput of the services over a FastAPI handler's, 8 and 16 users, the worse",
        2,
        "ratio",
        "bench_fastapi_ratio",
    ),
    Claim(
        "A cached prompt through all services over bare channel and decoding",
        1.25,
        "ratio",
        "bench_cached_ratio",
        "most",
    ),
    Claim(
        "Channel service: symbols per second over bare Sionna's, 65,536 at once",
        0.85,
        "ratio",
        "bench_channel_ratio",
    ),
    Claim("From start to all services ready, files warm", 15, "s", "ready_seconds", "most"),
    Claim("Resident memory of all services (PSS)", 3, "GiB", "rss_gib", "most"),
    Claim(
        "Overload of four times capacity: latency of what is served over that under full load",
        2,
        "ratio",
        "overload_p50_ratio",
        "most",
    ),
    Claim(
        "Traffic: bytes by container counters beyond those by interceptors",
        5,
        "%",
        "counters_gap_percent",
        "most",
    ),
    Claim(
        "Faults under load: requests that were lost silently", 0, "requests", "faults_lost_requests", "most"
    ),
    Claim("Hostile inputs that were tried", 10_000, "inputs", "fuzz_inputs"),
    Claim("Hostile inputs that were answered with a 5xx", 0, "inputs", "fuzz_5xx", "most"),
    Claim("An hour of mixed load: growth of resident memory", 5, "%", "soak_rss_growth_percent", "most"),
)

OTHERS = {
    **FIRST_IMAGE,
    "probe_edge_heldout_accuracy": "Edge-GAI: visible attributes right, topics it never learned",
    "digital_lead_db": "CALA: lead in PSNR over the best digital sender at equal channel uses",
    "digital_channel_use_ratio": "Channel uses that the digital sender needs for CALA's PSNR, over CALA's",
    "backhaul_saved_percent": "Traffic of a load test: backhaul bytes saved against WebP of equal PSNR",
    "radio_saved_ratio": "Traffic of a load test: channel uses that WebP of equal PSNR needs, over ours",
    "faults_tried": "Faults that were tried, one at a time and in pairs",
    "install_demo_seconds": "From nothing to the first pictures, the slowest of the supported Pythons",
    "install_demo_mib": "What `make demo` installs, the Python with the most",
    "auto_rate_hit_share": "Rate for a quality: promises of a PSNR that were kept",
}

SUMMARY = {
    "gka_gain_percent": "What the edge draws: gain in likeness to the cloud's pictures by MAKD",
    "tka_gain_db": "What the radio link does to it: gain in PSNR by CALA",
    "overall_gain_percent": "What arrives: gain in likeness to the cloud's pictures by both",
    "digital_lead_db": "PSNR beyond that of the best image file in as many channel uses",
    "radio_saved_ratio": "Channel uses that WebP of equal PSNR takes, over ours",
    "break_even_images": "Pictures of a topic until its update has paid for its backhaul bytes",
    "gate_cost_ratio": "Time of the codec with its gates, over without",
    "distill_seconds": "Time to teach the edge a topic",
    "bench_chain_ratio": "Time of a picture through all services, over library calls",
    "bench_fastapi_ratio": "Pictures per second, over a plain FastAPI handler's",
    "bench_channel_ratio": "Symbols per second of the channel service, over bare Sionna's",
}
"""What the README shows, in its words."""


def has_pages() -> bool:
    """Whether the current folder is a clone's, with pages to write; elsewhere there are only results."""
    return README.is_file() and CLAIMS_PAGE.is_file()


def write_summary(page: Path = README, results: Path = RESULTS) -> None:
    """Write the table of results in the README from headline.json."""
    fill(page, "results", summary_lines(read_json(results / "headline.json")))


def summary_lines(figures: Figures) -> list[str]:
    """The main figures beside what was promised of them, and how many promises were kept in all."""
    promised = {claim.key: claim for claim in TARGETS}
    published = {claim.key: f"; paper: {_target(claim)}" for claim in PAPER if claim.target is not None}
    lines = ["| | target | measured | 95 % | n | |", "|---|---|---:|---:|---:|---|"]
    for key, words in SUMMARY.items():
        claim = promised.get(key)
        target = "" if claim is None else f"at {claim.bound} {_target(claim)}"
        judged = "" if claim is None else verdict(claim, figures).split(";")[0]
        lines.append(row([words, target + published.get(key, ""), *_measured(key, figures), judged]))
    met, missed, unknown = _counts(figures)
    return [
        *lines,
        "",
        f"Of {len(TARGETS)} targets {met} are met, {missed} missed, {unknown} {MISSING}:",
        "[all of them](docs/claims.md), with the command that measures each. The paper's models, data and",
        "channels are not ours, so its figures and these do not compare.",
    ]


def write_install(page: Path = README, results: Path = RESULTS) -> None:
    """Write into the README what `make install-times` measured."""
    path = results / "load" / "install.json"
    if path.exists():
        fill(page, "install", install_lines(read_json(path)["rows"]))


def install_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How long `make demo` takes from nothing and how much it installs, without CUDA and with it."""
    lines = []
    for what, cuda in (("without", False), ("with", True)):
        if found := [each for each in rows if each["what"] == "demo" and bool(each["cuda"]) is cuda]:
            slowest = max(found, key=lambda each: each["seconds"])
            size, packages = max(each["mib"] for each in found), max(each["packages"] for each in found)
            pythons = ", ".join(sorted((each["python"] for each in found), key=_numbers))
            lines.append(
                f"- {what} CUDA (Python {pythons}): {size / 1024:.1f} GiB in {packages} packages; "
                f"{slowest['seconds'] / 60:.1f} minutes at a load of {slowest['load_average']:g}, "
                f"{slowest['cpu_seconds'] / 60:.1f} of them the processors' work"
            )
    return [
        "From nothing to the first pictures, `make demo` in a fresh clone with an empty cache of pip, on two",
        "cores that others used as well; the slowest Python counts:",
        "",
        *lines,
    ]


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def write_claims_page(page: Path = CLAIMS_PAGE, results: Path = RESULTS) -> None:
    """Write docs/claims.md from headline.json."""
    page.write_text(claims_text(read_json(results / "headline.json")))


def claims_text(figures: Figures) -> str:
    """docs/claims.md: what was claimed beside what was measured, or that it was not."""
    verdicts = [verdict(claim, figures) for claim in TARGETS]
    met, missed, unknown = _counts(figures)
    lines = [
        "# Claims and figures",
        "",
        f"Written by `{BOOK_COMMAND}` from `results/headline.json`; do not edit. Intervals are 95 %.",
        "",
        "## The paper's claims",
        "",
        "The paper's models, data, metric encoders and channels are not ours ([what is whose](paper.md)).",
        "A figure above the paper's does not mean that we do better than the paper. It means that the effect",
        "shows here as well.",
        "",
        "| claim | paper | here | interval | n | key |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for claim in PAPER:
        said = "no figure" if claim.target is None else f"+{_target(claim)}"
        lines.append(row([claim.words, said, *_measured(claim.key, figures), f"`{claim.key}`"]))
    lines += [
        "",
        "All of them are means; the results say topic by topic",
        "[where MAKD is not ahead](results-gka.md#where-makd-is-not-ahead).",
        "",
        "For the first version of the paper, +28 % at low SNR and +116 % in the efficiency of adapting to",
        "rates are reported. Nothing here measures the same.",
        "",
        "## Our own targets",
        "",
        f"{len(TARGETS)} targets: {met} met, {missed} missed, {unknown} {MISSING}. The verdict goes by the",
        "value. Where the target lies inside the interval, another sample might come out on its other side.",
        "",
        "| what | target | measured | interval | n | verdict | key |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    for claim, judged in zip(TARGETS, verdicts, strict=True):
        cells = [claim.words, f"at {claim.bound} {_target(claim)}", *_measured(claim.key, figures)]
        lines.append(row([*cells, judged, f"`{claim.key}`"]))
    lines += ["", "## Everything else that was measured", "", "| what | value | interval | n | key |"]
    lines += ["|---|---:|---:|---:|---|"]
    described = list(OTHERS)
    others = sorted(figures.keys() - {claim.key for claim in (*PAPER, *TARGETS)})
    for key in sorted(others, key=lambda key: described.index(key) if key in OTHERS else len(OTHERS)):
        lines.append(row([OTHERS.get(key, ""), *_measured(key, figures), f"`{key}`"]))
    lines += ["", "## Where each figure comes from", ""]
    lines += ["Where a commit has a +, files differed from it.", "", "| key | command | commit | date |"]
    lines += ["|---|---|---|---|"]
    for key, figure in sorted(figures.items()):
        lines.append(row([f"`{key}`", f"`{figure['command']}`", figure["commit"], figure["date"]]))
    return "\n".join([*lines, ""])


def _counts(figures: Figures) -> tuple[int, int, int]:
    """Targets that were met, missed, and not measured."""
    verdicts = [verdict(claim, figures) for claim in TARGETS]
    met, missed, unknown = (sum(v.startswith(w) for v in verdicts) for w in ("met", "missed", MISSING))
    return met, missed, unknown


def verdict(claim: Claim, figures: Figures) -> str:
    """Whether a target was met or by how much it was missed, and whether the interval leaves that open."""
    figure = figures.get(claim.key)
    if figure is None or claim.target is None:
        return MISSING
    sign = 1 if claim.bound == "least" else -1
    lead = sign * (figure["value"] - claim.target)
    unit = {"%": " points", "ratio": ""}.get(claim.unit, f" {claim.unit}")
    said = (
        "met"
        if lead >= 0
        else f"missed by {-lead:,.0f}{unit}"
        if lead < -99
        else f"missed by {-lead:.2g}{unit}"
    )
    low, high = figure["ci95"] or (claim.target, claim.target)
    return f"{said}; the interval holds the target" if low < claim.target < high else said


def _target(claim: Claim) -> str:
    unit = "" if claim.unit == "ratio" else f" {claim.unit}"
    return f"{claim.target:,.10g}{unit}"


def _measured(key: str, figures: Figures) -> list[str]:
    """Value, interval and n of a figure, as cells."""
    if key not in figures:
        return [MISSING, "", ""]
    figure = figures[key]
    unit = figure["unit"]
    interval = " .. ".join(_shown(limit, unit, bare=True) for limit in figure["ci95"] or ())
    return [_shown(figure["value"], unit), interval, str(figure["n"])]


def _shown(value: float, unit: str, *, bare: bool = False) -> str:
    """A value with its unit, or `bare`."""
    number = f"{value:,.{DECIMALS.get(unit, 2)}f}"
    return number if bare or unit == "ratio" else f"{number} {unit}"
