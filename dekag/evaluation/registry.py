"""The registry of figures: what each key of results/headline.json is called, its unit, and what was promised.

A command that measures a figure writes it with `record`; pages show it by its name.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from dekag.documents import read_json

RESULTS = Path("results")
PAGES = ("results", "docs", "README.md")  # what measuring itself changes
MISSING = "not measured yet"
EDITION = 2
"""Raised when world and shipped models are replaced: figures of earlier ones say nothing about them."""
DECIMALS = dict.fromkeys(
    ("B", "kB", "MiB", "images", "inputs", "requests", "faults", "kills", "items", "metrics", "points"), 0
) | {"s": 1}
"""By unit; 2 for all others."""

OF_THE_PAGE = (
    "page_kilobytes",
    "page_other_hosts",
    "page_understood_does_percent",
    "page_understood_alignment_percent",
    "page_accessibility",
    "page_best_practices",
)
"""Figures of the web page itself, whatever the models draw."""
LASTING = frozenset(
    {
        "bench_channel_ratio",
        "counters_gap_percent",
        "soak_rss_growth_percent",
        "soak_week_growth_percent",
        "scale_2_edges",
        "scale_4_edges",
        "upgrade_failed_requests",
        "faults_tried",
        "faults_lost_requests",
        "fuzz_inputs",
        "fuzz_5xx",
        "hostile_pictures_tried",
        "hostile_pictures_5xx",
        "kills_tried",
        "kills_residue",
        "attacks_tried",
        "attacks_failed",
        "install_demo_seconds",
        "install_demo_mib",
        "ray_speedup_2_workers",
        "photos_tried",
        "hevc_capacity_gap_db",
        "metrics_checked",
        *OF_THE_PAGE,
        "simulate_million_seconds",
        "simulate_rss_gib",
        "simulate_ray_2_workers",
    }
)
"""Figures that depend on code alone, and stay when the models are replaced."""

Figures = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Figure:
    """What a key of headline.json stands for.

    Attributes:
        key: in headline.json.
        name: what readers see.
        unit: of its value.
        target: what we set out to reach; None if nothing was promised.
        bound: "least" if more is better, "most" if less is.
        paper: what the paper reports; None if it names no figure.
        claimed: whether the paper makes the claim.
        summary: whether the README shows it.
    """

    key: str
    name: str
    unit: str
    target: float | None = None
    bound: Literal["least", "most"] = "least"
    paper: float | None = None
    claimed: bool = False
    summary: bool = False


_MOST: Literal["most"] = "most"
FIGURES: dict[str, Figure] = {
    figure.key: figure
    for figure in (
        # generation knowledge
        Figure(
            "gka_gain_percent", "MAKD: gain in consistency over no alignment", "%", 60,
            paper=44, claimed=True, summary=True,
        ),
        Figure("gka_ceiling_share", "MAKD: part of the gap to the upper bound that it closes", "%", 95),
        Figure(
            "gka_probe_heldout_accuracy", "MAKD: visible attributes correct on held-out topics", "%", 85
        ),
        Figure(
            "gka_lead_over_best_baseline_percent",
            "MAKD: lead in consistency over the best baseline of no more bytes", "%", claimed=True,
        ),
        Figure("update_bytes", "Largest knowledge update", "B", 40_000, _MOST),
        Figure("update_bytes_median", "Knowledge updates, median over topics", "B", 12_000, _MOST),
        Figure("update_model_share", "Largest knowledge update, of the edge model's bytes", "%", 2, _MOST),
        Figure(
            "distill_seconds", "Time to teach the edge a topic, until its first image", "s", 60, _MOST,
            summary=True,
        ),
        # transmission knowledge
        Figure(
            "tka_gain_db", "CALA: gain in PSNR over no alignment", "dB", 8,
            paper=6.5, claimed=True, summary=True,
        ),
        Figure(
            "tka_gain_strong_db", "CALA: gain in PSNR over the strongest codec that knows no channel", "dB",
            summary=True,
        ),
        Figure("tka_mean_psnr_db", "CALA: mean PSNR of received images", "dB", 24.6),
        Figure("tka_10db_psnr_db", "CALA: PSNR of received images at CBR 1/96 and 10 dB", "dB", 30),
        Figure("tka_adapter_share", "CALA: trained parameters, of the codec's", "%", 5, _MOST),
        Figure(
            "tka_lead_over_best_baseline_db",
            "CALA: lead in PSNR over the best baseline of no more parameters", "dB", claimed=True,
        ),
        Figure("tka_oracle_gap_db", "CALA: PSNR below a full fine-tune for each condition", "dB", 1.2, _MOST),
        Figure(
            "tka_unseen_gap_db", "CALA: largest loss in a condition not seen in training", "dB", 0.5, _MOST
        ),
        Figure(
            "gate_cost_ratio", "CALA: codec time at a new condition, relative to no gates", "ratio", 1.25,
            _MOST, summary=True,
        ),
        Figure("tka_codec_ms", "CALA: time to encode and decode an image, one thread", "ms", 12, _MOST),
        Figure("restored_mean_psnr_db", "CALA, restored at the receiver: mean PSNR of received images", "dB"),
        Figure("restored_gain_db", "CALA, restored at the receiver: gain in PSNR over no alignment", "dB"),
        Figure("restored_lead_db", "CALA, restored at the receiver: lead in PSNR over CALA alone", "dB"),
        Figure(
            "restored_taught_lead_db",
            "CALA, restored at the receiver: lead in PSNR over CALA alone, taught topics", "dB",
        ),
        Figure("auto_rate_hit_share", "Rate control: promised qualities that were kept", "%", 85),
        # against digital transmission
        Figure(
            "digital_lead_db", "CALA: lead in PSNR over the best digital sender, equal channel uses", "dB",
            summary=True,
        ),
        Figure(
            "digital_channel_use_ratio", "Channel uses for CALA's PSNR: best digital sender over CALA",
            "ratio",
        ),
        Figure(
            "digital_ahead_from_db", "SNR from which on the best digital sender is ahead of CALA, CBR 1/96",
            "dB", summary=True,
        ),
        Figure(
            "digital_harq_ahead_from_db", "SNR from which on it is ahead with HARQ, CBR 1/96", "dB",
        ),
        Figure(
            "digital_awgn_ahead_from_db", "SNR from which on it is ahead over AWGN alone, CBR 1/96", "dB",
        ),
        Figure(
            "digital_low_rate_consistency_lead",
            "CALA: least lead in consistency over digital senders that maximise it, "
            "CBR 1/384 and 1/768, up to 10 dB",
            "ratio", 0,
        ),
        Figure("photos_tried", "Photographs sent through every baseline", "images", 12),
        Figure(
            "hevc_capacity_gap_db",
            "HEVC, LDPC and QAM over AWGN: mean distance in PSNR from capacity less a fixed gap", "dB", 0.5,
            _MOST,
        ),
        # both alignments
        Figure(
            "overall_gain_percent", "Both alignments: gain in consistency of received images", "%", 60,
            summary=True,
        ),
        Figure(
            "break_even_images",
            "Images until an update has saved its own backhaul, in the median: WebP of equal consistency",
            "images", 60, _MOST, summary=True,
        ),
        Figure(
            "break_even_q75_images",
            "Images until an update has saved its own backhaul, in the median: WebP of quality 75",
            "images", 10, _MOST,
        ),
        # models before any alignment
        Figure("vae_psnr_db", "Autoencoder: PSNR of held-out scenes", "dB", 33),
        Figure("vae_ssim", "Autoencoder: SSIM of held-out scenes", "ratio", 0.96),
        Figure("naming_cloud_subject_percent", "Cloud model: subjects named right, blind", "%", 95),
        Figure("naming_edge_subject_percent", "Edge model: subjects named right, blind", "%", 90),
        Figure("naming_cloud_colour_percent", "Cloud model: colours named right, blind", "%", 95),
        Figure("naming_edge_colour_percent", "Edge model: colours named right, blind", "%", 95),
        Figure("naming_cloud_setting_percent", "Cloud model: settings named right, blind", "%", 95),
        Figure("naming_edge_setting_percent", "Edge model: settings named right, blind", "%", 95),
        Figure("naming_cloud_acceptable_percent", "Cloud model: images marked acceptable or nice", "%", 80),
        Figure("naming_edge_acceptable_percent", "Edge model: images marked acceptable or nice", "%", 80),
        Figure("probe_cloud_accuracy", "Cloud model: visible attributes correct, all topics", "%", 97),
        Figure("probe_edge_known_accuracy", "Edge model: visible attributes correct, known topics", "%", 95),
        Figure(
            "probe_edge_heldout_accuracy", "Edge model: visible attributes correct, held-out topics", "%",
            75, _MOST,
        ),
        Figure("outline_cloud_agreement", "Cloud model: outline of the subject, size and side told", "%"),
        Figure(
            "outline_edge_known_agreement",
            "Edge model: outline of the subject, size and side told, known topics", "%",
        ),
        Figure(
            "outline_edge_heldout_agreement",
            "Edge model: outline of the subject, size and side told, held-out topics", "%",
        ),
        Figure(
            "codec_clean_gap_db", "Unaligned codec, clean channel: below the limit of 64-QAM", "dB", 1, _MOST
        ),
        Figure("codec_rayleigh_0db_psnr_db", "Unaligned codec, Rayleigh fading at 0 dB: PSNR", "dB"),
        Figure("codec_rayleigh_5db_psnr_db", "Unaligned codec, Rayleigh fading at 5 dB: PSNR", "dB"),
        Figure("codec_rayleigh_10db_psnr_db", "Unaligned codec, Rayleigh fading at 10 dB: PSNR", "dB"),
        Figure(
            "picture_time_ratio", "Time of an image, relative to the first edition's at 128x128", "ratio",
            0.9, _MOST,
        ),
        # serving
        Figure(
            "bench_chain_ratio", "Time of an image through all services, relative to library calls", "ratio",
            1.1, _MOST, summary=True,
        ),
        Figure(
            "bench_litserve_ratio", "Images per second, relative to LitServe (8 and 16 users, the lower)",
            "ratio", 3,
        ),
        Figure(
            "bench_fastapi_ratio",
            "Images per second, relative to a FastAPI handler (8 and 16 users, the lower)", "ratio", 4,
            summary=True,
        ),
        Figure(
            "bench_cached_ratio", "Time of a cached image, relative to channel and decoding alone", "ratio",
            1.15, _MOST,
        ),
        Figure(
            "bench_channel_ratio",
            "Channel service: symbols per second, relative to bare Sionna "
            "(512 to 32,768 symbols, the lowest)",
            "ratio", 0.6, summary=True,
        ),
        Figure(
            "bench_topics_ratio", "Drawing of eight images of four topics, relative to none, same guidance",
            "ratio", 1.2, _MOST,
        ),
        Figure(
            "ldpc_seconds",
            "Conventional delivery: CPU time to demodulate and decode a file, the slowest link", "s", 0.15,
            _MOST,
        ),
        Figure("ready_seconds", "Time from start until all services are ready, files cached", "s", 8, _MOST),
        Figure(
            "recovery_seconds",
            "Time until images arrive after a service was killed and forked again from a warm process, "
            "the slowest service",
            "s", 6, _MOST,
        ),
        Figure("rss_gib", "Resident memory of all services (PSS)", "GiB", 1.6, _MOST),
        Figure(
            "overload_p50_ratio", "Median latency at four times capacity, relative to full load", "ratio", 2,
            _MOST,
        ),
        Figure(
            "counters_gap_percent", "Traffic that only the containers' counters saw", "%", 2, _MOST,
        ),
        Figure(
            "backhaul_saved_percent", "Load test: backhaul saved against WebP of equal consistency", "%", 50
        ),
        Figure(
            "radio_saved_ratio", "Load test: channel uses of WebP of equal PSNR, relative to ours", "ratio",
            summary=True,
        ),
        Figure("soak_rss_growth_percent", "Growth of memory in an hour of mixed load", "%", 5, _MOST),
        Figure("scale_2_edges", "Calls per second with two simulated edges, relative to one", "ratio", 1.8),
        Figure("scale_4_edges", "Calls per second with four simulated edges, relative to one", "ratio", 3.2),
        # the web page
        Figure(
            "page_first_image_seconds", "Web page of a warm system: from opening it to the first image", "s",
            3, _MOST,
        ),
        Figure("page_kilobytes", "Web page: what it loads, without pictures", "kB", 300, _MOST),
        Figure("page_other_hosts", "Web page: requests to other hosts", "requests", 0, _MOST),
        Figure("page_understood_does_percent", "Web page: viewers who say after a minute what it does", "%"),
        Figure(
            "page_understood_alignment_percent",
            "Web page: viewers who say after a minute what alignment changes", "%",
        ),
        Figure("page_accessibility", "Web page: Lighthouse, accessibility", "points", 95),
        Figure("page_best_practices", "Web page: Lighthouse, best practices", "points", 95),
        # robustness
        Figure(
            "upgrade_failed_requests", "Requests that failed while edges were restarted, replaced or killed",
            "requests", 0, _MOST,
        ),
        Figure("faults_tried", "Faults tried under load, one at a time and in pairs", "faults"),
        Figure("faults_lost_requests", "Requests lost silently in these faults", "requests", 0, _MOST),
        Figure("fuzz_inputs", "Hostile inputs tried", "inputs", 10_000),
        Figure("fuzz_5xx", "Hostile inputs answered with a 5xx status", "inputs", 0, _MOST),
        Figure("attacks_tried", "Attacks on a system of real processes", "attacks", 100),
        Figure("attacks_failed", "Attacks that worked", "attacks", 0, _MOST),
        Figure("hostile_pictures_tried", "Hostile pictures sent to the gateway", "inputs", 1_000),
        Figure("hostile_pictures_5xx", "Hostile pictures answered with a 5xx status", "inputs", 0, _MOST),
        Figure("kills_tried", "Processes killed while they published or distilled", "kills", 1_000),
        Figure(
            "kills_residue", "Left behind, half visible, lost or revived by kills", "items", 0, _MOST
        ),
        Figure(
            "soak_week_growth_percent", "Growth of memory in a week on a shifted clock", "%", 5, _MOST
        ),
        # installing
        Figure(
            "install_demo_seconds",
            "First `make demo` in a fresh clone, until the first images; slowest Python", "s",
        ),
        Figure("install_demo_mib", "Installed size of `make demo`; largest over Pythons", "MiB"),
        # a city
        Figure(
            "simulate_million_seconds", "City: CPU time to simulate a million requests", "s", 300, _MOST,
        ),
        Figure("simulate_rss_gib", "City: memory to simulate a million requests", "GiB", 2, _MOST),
        Figure("simulate_ray_2_workers", "City: speed of two Ray workers, relative to one", "ratio", 1.7),
        Figure(
            "simulate_bytes_gap_percent", "City: bytes to the edges, simulated against real services", "%", 2,
            _MOST,
        ),
        Figure(
            "simulate_latency_gap_percent", "City: median latency, simulated against real services", "%", 15,
            _MOST,
        ),
        # the evaluation itself
        Figure("metrics_checked", "Metrics equal to their reference implementation within 1e-3", "metrics"),
        Figure("results_quick_seconds", "Time of all quick results", "s", 600, _MOST),
        Figure("ray_speedup_2_workers", "Sweep on two Ray workers, speed relative to one", "ratio", 1.7),
    )
}  # fmt: skip


def read_figures(results: Path = RESULTS) -> dict[str, Any]:
    """headline.json; empty if nothing was measured."""
    path = results / "headline.json"
    figures: dict[str, Any] = read_json(path) if path.exists() else {}
    return figures


def record(
    key: str,
    value: float,
    unit: str,
    *,
    command: str,
    count: int,
    ci95: list[float] | None = None,
    results: Path = RESULTS,
) -> None:
    """Write figure `key` into headline.json, replacing what an earlier run wrote."""
    figures = read_figures(results)
    figures[key] = {
        "value": round(value, 4),
        "unit": unit,
        "ci95": None if ci95 is None else [round(limit, 4) for limit in ci95],
        "n": count,
        "edition": EDITION,
        "command": command,
        "commit": current_commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    results.mkdir(parents=True, exist_ok=True)
    (results / "headline.json").write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")


def forget(key: str, results: Path = RESULTS) -> None:
    """Remove a figure that a run could not measure: what an earlier run wrote is of other models, perhaps."""
    figures = read_figures(results)
    if figures.pop(key, None) is not None:
        (results / "headline.json").write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")


def current_commit() -> str:
    """Short hash of the checked-out commit, with "+" when code differs from it; "unknown" outside git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=True)  # noqa: S603, S607
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", *(f":!{name}" for name in PAGES))
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def outdated(key: str, measured: Mapping[str, Any]) -> bool:
    """Whether a figure was measured on models that have been replaced since."""
    return key not in LASTING and edition_of(measured) < EDITION


def edition_of(measured: Mapping[str, Any]) -> int:
    """The edition whose models a figure was measured on; the first one wrote none."""
    return int(measured.get("edition", 1))


def verdict(figure: Figure, figures: Figures) -> str:
    """Whether a target was met or by how much it was missed, and whether the interval leaves that open."""
    measured = figures.get(figure.key)
    if measured is None or figure.target is None:
        return MISSING
    if outdated(figure.key, measured):
        return MISSING
    sign = 1 if figure.bound == "least" else -1
    lead = sign * (measured["value"] - figure.target)
    unit = {"%": " points", "ratio": ""}.get(figure.unit, f" {figure.unit}")
    text = (
        "met"
        if lead >= 0
        else f"missed by {-lead:,.0f}{unit}"
        if lead < -99
        else f"missed by {-lead:.2g}{unit}"
    )
    low, high = measured["ci95"] or (figure.target, figure.target)
    return f"{text}; the interval contains the target" if low < figure.target < high else text


def count_verdicts(figures: Figures) -> tuple[int, int, int]:
    """Targets that were met, missed, and not measured."""
    verdicts = [verdict(figure, figures) for figure in FIGURES.values() if figure.target is not None]
    met, missed, unknown = (sum(v.startswith(w) for v in verdicts) for w in ("met", "missed", MISSING))
    return met, missed, unknown


def target_text(figure: Figure) -> str:
    """A figure's target, such as "at most 5 %"; empty if it has none."""
    return "" if figure.target is None else f"at {figure.bound} {with_unit(figure.target, figure.unit)}"


def with_unit(value: float, unit: str) -> str:
    """A round number with its unit."""
    return f"{value:,.10g}" + ("" if unit == "ratio" else f" {unit}")


def value_text(value: float, unit: str, decimals: int | None = None, *, bare: bool = False) -> str:
    """A measured value with its unit, or `bare`."""
    if decimals is None:
        decimals = 3 if unit == "s" and abs(value) < 1 else DECIMALS.get(unit, 2)
    number = f"{value:,.{decimals}f}"
    return number if bare or unit == "ratio" else f"{number} {unit}"


def figure_cells(key: str, figures: Figures) -> list[str]:
    """Value, 95 % interval and n of a figure, as cells of a table."""
    if key not in figures:
        return [MISSING, "", ""]
    figure = figures[key]
    interval = " .. ".join(value_text(limit, figure["unit"], bare=True) for limit in figure["ci95"] or ())
    value = value_text(figure["value"], figure["unit"])
    if outdated(key, figure):
        value += f" (edition {edition_of(figure)})"
    return [value, interval, str(figure["n"])]
