"""What `dekag experiment digital` found: tidy files, figures, plots and the page, from one measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dekag.documents import read_json
from dekag.experiments.consistency import bootstrap_ci95
from dekag.experiments.digital import (
    RUNS,
    USES,
    Key,
    Measured,
    Row,
    Semantic,
    load_pictures,
    measure,
)
from dekag.experiments.files import plt, write_plot, write_rows
from dekag.experiments.headline import RESULTS, record
from dekag.experiments.tka import RUNS as TKA_RUNS
from dekag.experiments.tka import Workbench
from dekag.experiments.tka_training import Plan

COMMAND = "dekag experiment digital"
FOLDER = "digital"
PAGE = Path("docs/results-digital.md")
PLOTTED = {
    "webp-file": ("WebP, whole file", "C0", ":"),
    "avif-file": ("AVIF, whole file", "C1", ":"),
    "jpeg-file": ("JPEG, whole file", "C2", ":"),
    "webp": ("WebP, bare", "C0", "-"),
    "avif": ("AVIF, bare", "C1", "-"),
    "jpeg": ("JPEG, bare", "C2", "-"),
    "best-harq": ("best, bare, HARQ", "C4", "--"),
    "shannon-outage": ("Shannon, outage", "0.5", "--"),
    "shannon-ergodic": ("Shannon, ergodic", "0.7", ":"),
}


def run_digital(
    *, count: int, checks: int, channels: Sequence[str], profile: str, results: Path = RESULTS
) -> None:
    """Measure the digital rival beside CALA, whose pictures `dekag experiment tka` sends as well.

    Args:
        count: pictures.
        checks: deliveries that are really decoded.
        channels: of CHANNELS.
        profile: the models.
        results: where headline.json is.
    """
    workbench = Workbench.load(profile, Plan(), count, TKA_RUNS)
    pictures = load_pictures(workbench.edge, workbench.scorer, count, RUNS)
    semantic = workbench.semantic(channels)
    measured = measure(pictures, semantic, channels=channels, checks=checks)
    write(measured, semantic, "CALA", results, PAGE)


def write(measured: Measured, semantic: Semantic, name: str, results: Path, page: Path | None) -> None:
    """Write results/digital/*, the two figures of headline.json and, if asked for, the page.

    Args:
        measured: of `dekag.experiments.digital.measure`, with the same `semantic`.
        semantic: METRICS of the semantic delivery.
        name: what plots and page call it.
        results: where headline.json is.
        page: where the page goes.
    """
    folder = results / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "rivals.jsonl", measured.rows)
    write_rows(folder / "leads.jsonl", leads(measured, semantic))
    write_rows(folder / "decoded.jsonl", measured.checks)
    figures(measured, semantic, results)
    plot_curves(measured, semantic, name, folder / "psnr.svg", "psnr_db")
    plot_curves(measured, semantic, name, folder / "consistency.svg", "consistency")
    if page is not None:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(page_text(measured, semantic, name, results))


def leads(measured: Measured, semantic: Semantic) -> list[Row]:
    """For each cell: how far the semantic delivery is ahead of the best rival, and what that one needs."""
    rows = []
    for key, theirs in measured.best.items():
        if key not in semantic:
            continue
        channel, cbr, snr_db = key
        ours = semantic[key]
        gap = bootstrap_ci95(lambda each: float(each.mean()), (ours - theirs)[:, 0].tolist())
        ratio = _ratio(measured, key)
        rows.append(
            {
                "channel": channel,
                "cbr": round(cbr, 6),
                "snr_db": snr_db,
                "semantic_psnr_db": round(float(ours[:, 0].mean()), 3),
                "digital_psnr_db": round(float(theirs[:, 0].mean()), 3),
                "lead_db": round(gap[0], 3),
                "lead_ci95": [round(limit, 3) for limit in gap[1]],
                "semantic_consistency": round(float(ours[:, 1:].mean()), 4),
                "digital_consistency": round(float(theirs[:, 1:].mean()), 4),
                "channel_use_ratio": None if math.isinf(ratio) else round(ratio, 3),
            }
        )
    return rows


def _ratio(measured: Measured, key: Key) -> float:
    """Channel uses that the rival needs over those that the semantic delivery took; inf if none suffice."""
    own = key[1] * measured.source_values
    return measured.uses[key] / own


def figures(measured: Measured, semantic: Semantic, results: Path) -> None:
    """The figures of results/headline.json, over all cells that can be compared."""
    keys = [key for key in measured.best if key in semantic]
    if not keys:
        return
    lead = np.mean([(semantic[key] - measured.best[key])[:, 0] for key in keys], axis=0)
    mean, ci95 = bootstrap_ci95(lambda each: float(each.mean()), lead.tolist())
    record("digital_lead_db", mean, "dB", command=COMMAND, count=len(lead), ci95=ci95, results=results)
    # what is never reached counts as the most that was tried: the figure is then a lower bound
    most = [USES[-1] / (key[1] * measured.source_values) for key in keys]
    ratios = [min(_ratio(measured, key), limit) for key, limit in zip(keys, most, strict=True)]
    ratio = math.exp(float(np.mean(np.log(ratios))))
    record("digital_channel_use_ratio", ratio, "ratio", command=COMMAND, count=len(keys), results=results)


def plot_curves(measured: Measured, semantic: Semantic, name: str, path: Path, metric: str) -> None:
    """A metric against SNR: channels down, rates across."""
    channels = list(dict.fromkeys(row["channel"] for row in measured.rows))
    rates = sorted({row["cbr"] for row in measured.rows}, reverse=True)
    size = (3.2 * len(rates), 2.6 * len(channels))
    figure, axes = plt.subplots(
        len(channels), len(rates), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis_row, channel in zip(axes, channels, strict=True):
        for axis, cbr in zip(axis_row, rates, strict=True):
            for rival, (label, colour, style) in PLOTTED.items():
                axis.plot(
                    *_points(measured.rows, channel, cbr, rival, metric), style, color=colour, label=label
                )
            cells = [(k, v) for k, v in semantic.items() if (k[0], round(k[1], 6)) == (channel, cbr)]
            own = sorted((k[2], v[:, 0].mean() if metric == "psnr_db" else v[:, 1:].mean()) for k, v in cells)
            if own:
                axis.plot(*zip(*own, strict=True), "k-", linewidth=2, label=name)
            axis.set_title(f"{channel}, CBR 1/{1 / cbr:.0f}", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("SNR, dB")
    for axis in axes[:, 0]:
        axis.set_ylabel("PSNR, dB" if metric == "psnr_db" else metric)
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    write_plot(figure, path)


def _points(
    rows: Sequence[Row], channel: str, cbr: float, rival: str, metric: str
) -> tuple[list[float], list[float]]:
    cell = [row for row in rows if (row["channel"], row["cbr"], row["rival"]) == (channel, cbr, rival)]
    return [row["snr_db"] for row in cell], [row[metric] for row in cell]


def page_text(measured: Measured, semantic: Semantic, name: str, results: Path) -> str:
    """docs/results-digital.md."""
    shown = read_json(results / "headline.json")
    lines = [
        "# The digital rival",
        "",
        f"Written by `{COMMAND}` from its measurements; do not edit.",
        f"{measured.count} pictures that the edge drew of held-out prompts; PSNR against what it drew.",
        "For each picture the digital sender picks format, quality, scale, modulation and code rate for the",
        "best PSNR that it can expect within the channel uses; what is lost or does not fit is shown, and",
        "scored, as the mean picture of the world. *Bare* pictures leave out what the receiver knows anyway.",
        "Losses are predicted from calibrated needs of SNR; a sample was really decoded, see below. HARQ:",
        "chase combining of up to 4 transmissions, with the same channel uses on average.",
        "",
        "| figure | value | interval | n |",
        "|---|---:|---:|---:|",
    ]
    for key in ("digital_lead_db", "digital_channel_use_ratio"):
        if key in shown:
            each = shown[key]
            interval = "" if each["ci95"] is None else "{:.2f} .. {:.2f}".format(*each["ci95"])
            lines.append(f"| `{key}` | {each['value']:.3g} {each['unit']} | {interval} | {each['n']} |")
    never = sum(math.isinf(uses) for uses in measured.uses.values())
    lines += [
        "",
        f"The lead is that of {name} over the best rival, bare and without HARQ, in the mean over all cells",
        "of channel, rate and SNR; the ratio is the geometric mean of the channel uses that the rival needs",
        f"for equal PSNR. In {never} of {len(measured.uses)} cells {USES[-1]:,} did not suffice and count as",
        "if they did.",
        "",
        *_leads_table(measured, semantic, name),
    ]
    for channel in dict.fromkeys(row["channel"] for row in measured.rows):
        lines += _channel_table(measured, semantic, name, channel)
    lines += [
        "",
        "![PSNR](../results/digital/psnr.svg)",
        "",
        "![Consistency](../results/digital/consistency.svg)",
    ]
    lines += ["", "## Really decoded", "", *_decoded_table(measured.checks)]
    lines += ["", "Every cell and rival: `results/digital/rivals.jsonl`; leads: `leads.jsonl`.", ""]
    return "\n".join(lines)


def _leads_table(measured: Measured, semantic: Semantic, name: str) -> list[str]:
    """The lead by channel, by rate and by SNR, over the best rival and over it with HARQ."""
    harq = {
        (row["channel"], row["cbr"], row["snr_db"]): row["psnr_db"]
        for row in measured.rows
        if row["rival"] == "best-harq"
    }
    rows = leads(measured, semantic)
    for row in rows:
        row["over_harq_db"] = row["semantic_psnr_db"] - harq[(row["channel"], row["cbr"], row["snr_db"])]
        row["consistency"] = row["semantic_consistency"] - row["digital_consistency"]
    groups: dict[str, list[Row]] = {"everything": rows}
    for axis in ("channel", "cbr", "snr_db"):
        for row in rows:
            shown = {"cbr": f"CBR 1/{1 / row['cbr']:.0f}", "snr_db": f"{row['snr_db']:g} dB"}
            groups.setdefault(shown.get(axis, str(row["channel"])), []).append(row)
    lines = [f"| {name}'s lead | PSNR, dB | over HARQ, dB | consistency | cells behind |"]
    lines.append("|---|---:|---:|---:|---:|")
    for group, own in groups.items():
        lead, over_harq, consistency = (
            float(np.mean([row[key] for row in own])) for key in ("lead_db", "over_harq_db", "consistency")
        )
        behind = sum(row["lead_db"] < 0 for row in own)
        lines.append(
            f"| {group} | {lead:+.2f} | {over_harq:+.2f} | {consistency:+.3f} | {behind} of {len(own)} |"
        )
    return [*lines, "", "Consistency is the mean of CLIP- and DINO-score, against what was sent."]


def _channel_table(measured: Measured, semantic: Semantic, name: str, channel: str) -> list[str]:
    """PSNR at the top rate, and how often the best rival is lost."""
    cbr = max(row["cbr"] for row in measured.rows)
    cells: dict[float, dict[str, Row]] = {}
    for row in measured.rows:
        if row["channel"] == channel and row["cbr"] == cbr:
            cells.setdefault(row["snr_db"], {})[row["rival"]] = row
    rivals = ["best-file", "best", "best-harq", "shannon-outage", "shannon-ergodic"]
    lines = ["", f"## {channel}, CBR 1/{1 / cbr:.0f}: PSNR, dB", ""]
    lines += [f"| SNR, dB | {name} | " + " | ".join(rivals) + " | lost, best | nothing fits, best-file |"]
    lines += ["|---:|" + "---:|" * (len(rivals) + 3)]
    for snr_db, cell in cells.items():
        place = (channel, cbr, snr_db)
        own = [v[:, 0].mean() for k, v in semantic.items() if (k[0], round(k[1], 6), k[2]) == place]
        values = " | ".join(f"{cell[rival]['psnr_db']:.1f}" for rival in rivals)
        lines.append(
            f"| {snr_db:g} | {f'{own[0]:.1f}' if own else ''} | {values} "
            f"| {100 * cell['best']['lost']:.0f} % | {100 * cell['best-file']['unfit']:.0f} % |"
        )
    lines += ["", "More than half of the pictures do not arrive up to, by CBR:", ""]
    for rival in ("best-file", "best"):
        told = []
        for rate in sorted({row["cbr"] for row in measured.rows}, reverse=True):
            failing = fails_up_to_db(measured.rows, channel, rate, rival)
            told.append(f"1/{1 / rate:.0f}: " + ("never" if failing is None else f"{failing:g} dB"))
        lines.append(f"- {rival}: " + ", ".join(told))
    return lines


def fails_up_to_db(rows: Sequence[Row], channel: str, cbr: float, rival: str) -> float | None:
    """The highest SNR of the grid, dB, at which more than half of the pictures do not arrive, if any."""
    cell = [row for row in rows if (row["channel"], row["cbr"], row["rival"]) == (channel, cbr, rival)]
    return max((row["snr_db"] for row in cell if row["lost"] > 0.5), default=None)


def _decoded_table(checks: Sequence[Row]) -> list[str]:
    lines = ["| transmissions allowed | n | predicted to arrive | arrived | predicted PSNR | PSNR |"]
    lines += ["|---:|---:|---:|---:|---:|---:|"]
    for most in sorted({row["max_transmissions"] for row in checks}):
        group = [row for row in checks if row["max_transmissions"] == most]

        def mean(column: str, group: Sequence[dict[str, Any]] = group) -> float:
            return float(np.mean([row[column] for row in group]))

        lines.append(
            f"| {most} | {len(group)} | {100 * mean('predicted_arrival'):.0f} % "
            f"| {100 * mean('arrived'):.0f} % | {mean('predicted_psnr_db'):.2f} dB "
            f"| {mean('psnr_db'):.2f} dB |"
        )
    return lines
