"""Pages of docs/ that code writes: claims.md from headline.json, settings.md from the services' settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from dekag.experiments.headline import RESULTS
from dekag.experiments.page import FIRST_IMAGE

CLAIMS_PAGE = Path("docs/claims.md")
SETTINGS_PAGE = Path("docs/settings.md")
COMMAND = "dekag results book"
MISSING = "not measured yet"
DECIMALS = {"B": 0, "images": 0, "s": 1}  # 2 in all other units

Figures = Mapping[str, Mapping[str, Any]]
Fields = Mapping[str, Mapping[str, Any]]


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
    Claim("One request through all services over one process", 1.15, "ratio", "chain_overhead_ratio", "most"),
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
)

OTHERS = {
    **FIRST_IMAGE,
    "probe_edge_heldout_accuracy": "Edge-GAI: visible attributes right, topics it never learned",
    "digital_lead_db": "CALA: lead in PSNR over the best digital sender at equal channel uses",
    "digital_channel_use_ratio": "Channel uses that the digital sender needs for CALA's PSNR, over CALA's",
    "backhaul_saved_percent": "Traffic of a load test: backhaul bytes saved against WebP of equal PSNR",
    "radio_saved_ratio": "Traffic of a load test: channel uses that WebP of equal PSNR needs, over ours",
    "auto_rate_hit_share": "Rate for a quality: promises of a PSNR that were kept",
}


def write_claims_page(page: Path = CLAIMS_PAGE, results: Path = RESULTS) -> None:
    """Write docs/claims.md from headline.json."""
    page.write_text(claims_text(json.loads((results / "headline.json").read_text())))


def claims_text(figures: Figures) -> str:
    """docs/claims.md: what was claimed beside what was measured, or that it was not."""
    verdicts = [verdict(claim, figures) for claim in TARGETS]
    met, missed, unknown = (sum(v.startswith(w) for v in verdicts) for w in ("met", "missed", MISSING))
    lines = [
        "# Claims and figures",
        "",
        f"Written by `{COMMAND}` from `results/headline.json`; do not edit. Intervals are 95 %.",
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
        lines.append(_row([claim.words, said, *_measured(claim.key, figures), f"`{claim.key}`"]))
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
        lines.append(_row([*cells, judged, f"`{claim.key}`"]))
    lines += ["", "## Everything else that was measured", "", "| what | value | interval | n | key |"]
    lines += ["|---|---:|---:|---:|---|"]
    described = list(OTHERS)
    others = sorted(figures.keys() - {claim.key for claim in (*PAPER, *TARGETS)})
    for key in sorted(others, key=lambda key: described.index(key) if key in OTHERS else len(OTHERS)):
        lines.append(_row([OTHERS.get(key, ""), *_measured(key, figures), f"`{key}`"]))
    lines += ["", "## Where each figure comes from", ""]
    lines += ["Where a commit has a +, files differed from it.", "", "| key | command | commit | date |"]
    lines += ["|---|---|---|---|"]
    for key, figure in sorted(figures.items()):
        lines.append(_row([f"`{key}`", f"`{figure['command']}`", figure["commit"], figure["date"]]))
    return "\n".join([*lines, ""])


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


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write_settings_page(services: Mapping[str, type[BaseModel]], page: Path = SETTINGS_PAGE) -> None:
    """Write docs/settings.md from the settings of each service, by its name."""
    page.write_text(settings_text(services))


def settings_text(services: Mapping[str, type[BaseModel]], prefix: str = "DEKAG_") -> str:
    """docs/settings.md: a table of the settings that all services share, then one for what each adds."""
    fields: dict[str, Fields] = {name: _fields(settings) for name, settings in services.items()}
    first = next(iter(fields.values()))
    shared = {
        name: field
        for name, field in first.items()
        if all(each.get(name) == field for each in fields.values())
    }
    lines = [
        "# Settings",
        "",
        f"Written by `{COMMAND}` from `services/*/settings.py`; do not edit.",
        f"Every service reads its settings from the environment, with the prefix `{prefix}`. A value that is",
        "not allowed stops it at its start.",
        "",
        "## All services",
        "",
        *_settings_table(shared, prefix),
    ]
    for name, own in fields.items():
        rest = {field: what for field, what in own.items() if field not in shared}
        lines += ["", f"## {name.capitalize()}", "", *_settings_table(rest, prefix)]
    return "\n".join([*lines, ""])


def _fields(settings: type[BaseModel]) -> Fields:
    """The settings' JSON schemas by name; of those that may be left out, the schema of the rest."""
    properties = settings.model_json_schema()["properties"]
    return {
        name: field | next((one for one in field.get("anyOf", ()) if one.get("type") != "null"), {})
        for name, field in properties.items()
    }


def _settings_table(fields: Fields, prefix: str) -> list[str]:
    lines = ["| variable | default | allowed | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        default = _default(field.get("default"))
        lines.append(_row([f"`{prefix}{name.upper()}`", default, _allowed(field), field["description"]]))
    return lines


def _default(value: object) -> str:
    if value is None or value == "":
        return ""
    root = Path(__file__).resolve().parents[2]
    path = Path(str(value))
    return f"`{path.relative_to(root) if path.is_absolute() and path.is_relative_to(root) else value}`"


def _allowed(field: Mapping[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}
    return ", ".join(f"{said} {field[name]:.10g}" for name, said in words.items() if name in field)
