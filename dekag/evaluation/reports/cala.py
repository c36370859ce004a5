"""docs/results-transmission.md from results/tka/: CALA and its baselines."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dekag.cala.methods import METHODS
from dekag.evaluation import plots
from dekag.evaluation.pages import Lines, NotMeasuredError, Report, Row, figures_table, read_rows, table
from dekag.evaluation.prompts import edge_prompts, held_out_share
from dekag.evaluation.registry import MISSING
from dekag.evaluation.studies.cala import (
    BASELINES,
    BEYOND_DB,
    COMMAND,
    FOLDER,
    GRID_SNRS_DB,
    OFFSETS_DB,
    PROMPTS,
    REFERENCES,
    SHOWN_CHANNEL,
    SHOWN_METHODS,
    worst_unseen,
)
from dekag.evaluation.studies.cala_training import EQUAL, FRACTION_METHODS, STRONG
from dekag.evaluation.studies.digital import RATES

SHORT = {
    "cala": "CALA", "none": "unaligned", STRONG: "strong", "lora": "one LoRA", "fine-tune": "full fine-tune"
}  # fmt: skip
COLOURS = {
    "none": plots.BASE, STRONG: plots.FOURTH, "cala": plots.OURS, "lora": plots.SECOND,
    "fine-tune": plots.THIRD,
}  # fmt: skip
PROMPT_TITLES = {
    "right": "its own", "withheld": "withheld", "foreign": "another image's", "wrong": "another subject"
}  # fmt: skip

_EXAMPLES = {
    True: "the same examples",
    False: "other examples",
    None: "examples that its record does not name",
}
"""On what a shipped model was trained, by whether that is what the run trained on."""

Cells = dict[str, dict[tuple[Any, ...], float]]


def rows_of(results: Path, name: str) -> list[Row]:
    """A file of results/tka/."""
    return read_rows(results / FOLDER / f"{name}.jsonl")


def grid(results: Path) -> list[Row]:
    """The cells that all methods share."""
    return [row for row in rows_of(results, "grid") if row["snr_db"] in GRID_SNRS_DB]


def title(method: str) -> str:
    """What readers call a method."""
    if method in (STRONG, EQUAL):
        return "unaligned, strong" if method == STRONG else "CALA, trained as the baselines"
    return METHODS[method].title if method in METHODS else method


def setup(results: Path) -> Row:
    """With what it was measured."""
    (found,) = rows_of(results, "setup")
    return found


def values(results: Path) -> Mapping[str, str]:
    """How it was measured, and what the tables do not say."""
    of = setup(results)
    methods = {row["method"]: row for row in rows_of(results, "methods")}
    gains = [row for row in rows_of(results, "gains") if row["over"] == STRONG and row["snr_db"] is not None]
    counts = ("shipped_steps", "steps", "codec_steps", "share_steps", "oracle_steps", "rendered", "drawn")
    found = {
        "pictures": str(of["pictures"]),
        "structure_pictures": str(of["structure_pictures"]),
        **{name: f"{of[name]:,}" for name in counts},
        "precision": "bfloat16" if of["bf16"] else "float32",
        "shipped_examples": _EXAMPLES[of.get("shipped_on_these_examples")],
        "codec_examples": _EXAMPLES[of.get("codec_on_these_examples")],
        "trainings": "one seed" if of["trainings"] == 1 else f"{of['trainings']} seeds",
        "channels": ", ".join(dict.fromkeys(row["channel"] for row in grid(results))),
        "worst_unseen": worst_unseen(rows_of(results, "unseen"))["condition"],
        "beyond": ", ".join(f"{snr:g}" for snr in BEYOND_DB),
        "rivals": ", ".join(title(name) for name in BASELINES if name in methods),
        "shown": ", ".join(title(name) for name in SHOWN_METHODS if name in methods),
        "combinations": str(_combinations(of["pictures"])),
        "held_out_share": f"{100 * held_out_share():.0f} %",
        "lora_over_strong": _over_strong(methods, "lora"),
        "equal_over_strong": _over_strong(methods, EQUAL if EQUAL in methods else "cala"),
    }
    if of["best"]:
        found["best"] = title(of["best"])
    for name, method in (("gates_worth", "cala-ungated"), ("prompt_worth", "cala-unprompted")):
        if method in methods:
            found[name] = _lead(methods[method])
    if gains:
        own, columns = ([row for row in gains if bool(row["cbr"]) == one] for one in (True, False))
        least = min(own, key=lambda row: float(row["gain_db"]))
        found |= {
            "strong_columns": f"{sum(row['gain_db'] > 0 for row in columns)} of {len(columns)}",
            "strong_cells": f"{sum(row['gain_db'] > 0 for row in own)} of {len(own)}",
            "strong_least": f"{least['gain_db']:.2f} dB",
            "strong_last": f"{columns[-1]['gain_db']:.2f} dB",
            "strong_last_at": f"{columns[-1]['snr_db']:g} dB",
            "strong_least_at": f"CBR 1/{1 / least['cbr']:.0f} and {least['snr_db']:g} dB",
        }
    with contextlib.suppress(FileNotFoundError):
        found |= _prompt_worth(rows_of(results, "prompts"))
    with contextlib.suppress(FileNotFoundError):
        found["conditions"] = str(rows_of(results, "ceilings")[-1]["conditions"])
    return found


def _combinations(pictures: int) -> int:
    """Different combinations of subject, colour and setting of the images that are sent."""
    scenes = [scene for scene, _, _ in edge_prompts(pictures) if scene is not None]
    return len({(each.subject, each.colour, each.setting) for each in scenes})


def _over_strong(methods: Mapping[str, Row], name: str) -> str:
    """The gain of a method over the strong codec."""
    if name not in methods or STRONG not in methods:
        return MISSING
    return f"{methods[name]['psnr_db'] - methods[STRONG]['psnr_db']:.2f} dB"


def _prompt_worth(rows: list[Row]) -> dict[str, str]:
    """What a withheld prompt costs, over all cells and at the lowest SNR."""
    own = [row for row in rows if row["prompt"] == "withheld"]
    lowest = min(row["snr_db"] for row in own)
    at_lowest = [row["loss_db"] for row in own if row["snr_db"] == lowest]
    return {
        "prompt_mean": f"{np.mean([row['loss_db'] for row in own]):.1f} dB",
        "prompt_lowest": f"{np.mean(at_lowest):.1f} dB",
        "prompt_lowest_at": f"{lowest:g} dB",
    }


def _lead(row: Row) -> str:
    """CALA's lead over a method."""
    low, high = row["cala_lead_ci95"]
    return f"{row['cala_lead_db']:.2f} dB ({low:.2f} .. {high:.2f})"


def methods(results: Path) -> Lines:
    """Every method in the mean over the grid and its trainings."""
    lines = []
    for row in rows_of(results, "methods"):
        low, high = row["ci95"]
        lines.append(
            [
                f"**{title('cala')}**" if row["method"] == "cala" else title(row["method"]),
                f"{100 * row['parameters']:.1f} %",
                str(row["trainings"]),
                f"{row['psnr_db']:.2f}",
                f"{low:.2f} .. {high:.2f}",
                f"{row['unseen_psnr_db']:.2f}",
                f"{row['ssim']:.3f}",
                f"{row['ms_ssim']:.3f}",
            ]
        )
    header = ["method", "parameters", "trainings", "PSNR, dB", "95 % interval", "unseen, dB", "SSIM"]
    return table([*header, "MS-SSIM"], lines)


def trainings(results: Path) -> Lines:
    """The methods that were trained several times, training by training."""
    found: dict[str, list[Row]] = {}
    for row in rows_of(results, "trainings"):
        found.setdefault(row["method"], []).append(row)
    lines = [
        [
            title(method),
            str(row["seed"]),
            f"{row['psnr_db']:.2f}",
            "{:.2f} .. {:.2f}".format(*row["ci95"]),
        ]
        for method, own in found.items()
        for row in own
        if len(own) > 1
    ]
    if not lines:
        raise NotMeasuredError(COMMAND)
    return table(["method", "seed", "PSNR, dB", "95 % interval over images"], lines)


def gains(results: Path) -> Lines:
    """CALA's gain over both definitions of no alignment, by rate and SNR."""
    found = {(row["over"], row["cbr"], row["snr_db"]): row["gain_db"] for row in rows_of(results, "gains")}
    lines = []
    for cbr in dict.fromkeys(cbr for _, cbr, _ in found):
        shown = "all" if cbr is None else f"1/{1 / cbr:.0f}"
        for over in dict.fromkeys(name for name, _, _ in found):
            own = [found[over, cbr, snr_db] for snr_db in (*GRID_SNRS_DB, None)]
            lines.append([shown, title(over), *(f"{gain:+.2f}" for gain in own)])
    header = ["CBR", "gain over", *(f"{snr_db:g} dB" for snr_db in GRID_SNRS_DB), "all"]
    return table(header, lines, words=(0, 1))


def by_column(results: Path) -> dict[str, dict[str, float]]:
    """Mean PSNR by channel, by rate and by SNR: column -> method -> dB."""
    rows = grid(results)
    columns: dict[str, dict[str, list[float]]] = {}
    for name, shown in (("channel", "{}"), ("cbr", "1/{:.0f}"), ("snr_db", "{:g} dB")):
        for row in rows:
            column = shown.format(1 / row["cbr"] if name == "cbr" else row[name])
            columns.setdefault(column, {}).setdefault(row["method"], []).append(row["psnr_db"])
    return {
        column: {method: float(np.mean(found)) for method, found in own.items()}
        for column, own in columns.items()
    }


def columns(results: Path) -> Lines:
    """Every method by channel, by rate and by SNR."""
    found = by_column(results)
    names = list(next(iter(found.values())))
    lines = [[column, *(f"{own[name]:.2f}" for name in names)] for column, own in found.items()]
    return table(["", *map(title, names)], lines)


def _cells(results: Path) -> Cells:
    found: Cells = {}
    for row in grid(results):
        place = (row["channel"], row["cbr"], row["snr_db"])
        found.setdefault(row["method"], {})[place] = row["psnr_db"]
    return found


def losing_conditions(results: Path) -> Lines:
    """Where CALA is not ahead: columns for baselines of its size, cells for all methods."""
    cells, lines = _cells(results), []
    if not set(BASELINES) & set(cells):
        raise NotMeasuredError(COMMAND)
    for column, own in by_column(results).items():
        cala = own[EQUAL if EQUAL in own else "cala"]
        ahead = [f"{title(name)} {own[name]:.2f}" for name in BASELINES if own.get(name, -np.inf) >= cala]
        if ahead:
            lines.append(f"- {column}: {', '.join(ahead)}, CALA {cala:.2f}")
    lines = lines or ["In no channel, at no rate and at no SNR is a baseline of its size ahead."]
    compared = cells[EQUAL if EQUAL in cells else "cala"]
    rows = [
        [title(name), str(sum(own[place] >= compared[place] for place in own)), str(len(own))]
        for name, own in cells.items()
        if name not in ("none", "cala", EQUAL)
    ]
    return [*lines, "", *table(["method", "cells where it is as good or better", "of"], rows)]


def oracles(results: Path) -> Lines:
    """CALA below a codec for each condition."""
    names = {"ceiling": "full fine-tune for each condition"}
    lines = [
        [names.get(row["method"]) or title(row["method"]), f"{row['psnr_db']:.2f}"]
        for row in rows_of(results, "ceilings")
    ]
    return table(["", "PSNR, dB"], lines)


def fractions(results: Path) -> Lines:
    """PSNR against the fraction of parameters."""
    found = {(row["method"], row["most"]): row for row in rows_of(results, "shares")}
    most = sorted({fraction for _, fraction in found})
    lines = []
    for method in FRACTION_METHODS:
        own = [found.get((method, fraction)) for fraction in most]
        shown = [f"{row['psnr_db']:.2f} ({100 * row['share']:.1f} %)" if row else "-" for row in own]
        lines.append([title(method), *shown])
    return table(["method", *(f"{100 * fraction:g} %" for fraction in most)], lines)


def lengths(results: Path) -> Lines:
    """PSNR of CALA against the length of its training."""
    lines = [
        [f"{row['steps']:,}", f"{row['psnr_db']:.2f}", "{:.2f} .. {:.2f}".format(*row["ci95"])]
        for row in rows_of(results, "lengths")
    ]
    return table(["steps", "PSNR, dB", "95 % interval"], lines)


def prompts(results: Path) -> Lines:
    """What a prompt is worth to CALA: its PSNR, and the loss with a withheld or another prompt."""
    rows = rows_of(results, "prompts")
    columns = {"all": rows}
    for name, shown in (("channel", "{}"), ("cbr", "1/{:.0f}"), ("snr_db", "{:g} dB")):
        for row in rows:
            columns.setdefault(shown.format(1 / row["cbr"] if name == "cbr" else row[name]), []).append(row)
    lines = []
    for column, own in columns.items():
        right = [row["psnr_db"] for row in own if row["prompt"] == "right"]
        losses = [[row["loss_db"] for row in own if row["prompt"] == name] for name in PROMPTS[1:]]
        lines.append([column, f"{np.mean(right):.2f}", *(f"{-np.mean(each):+.2f}" for each in losses)])
    changes = (f"{PROMPT_TITLES[name]}, change" for name in PROMPTS[1:])
    return table(["", f"{PROMPT_TITLES['right']}, PSNR", *changes], lines)


def unseen(results: Path) -> Lines:
    """Conditions that no training drew."""
    lines = [
        [
            row["condition"],
            *(f"{row[name]:.2f}" for name in ("psnr_db", "beside_psnr_db", "gap_db")),
            "{:.2f} .. {:.2f}".format(*row["ci95"]),
        ]
        for row in rows_of(results, "unseen")
    ]
    return table(["condition", "PSNR, dB", "trained neighbour, dB", "loss, dB", "95 % interval"], lines)


def mismatch(results: Path) -> Lines:
    """A sender that is told a wrong SNR."""
    found: dict[tuple[str, float], list[float]] = {}
    for row in rows_of(results, "mismatch"):
        found.setdefault((row["channel"], row["offset_db"]), []).append(row["psnr_db"])
    lines = []
    for channel in dict.fromkeys(channel for channel, _ in found):
        right = np.mean(found[channel, 0.0])
        lines.append([channel, *(f"{np.mean(found[channel, o]) - right:+.2f}" for o in OFFSETS_DB)])
    return table(["channel", *(f"{offset:+g} dB" for offset in OFFSETS_DB)], lines)


def rate_control(results: Path) -> Lines:
    """Requests for a quality."""
    most_uses = setup(results)["most_channel_uses"]
    requests: dict[float, list[Row]] = {}
    for row in rows_of(results, "requests"):
        requests.setdefault(row["offset_db"], []).append(row)
    lines = []
    for offset, own in requests.items():
        promised = [row for row in own if row["promised"]]
        kept = np.mean([row["psnr_db"] >= row["target_db"] for row in promised])
        spare = np.mean([row["psnr_db"] - row["target_db"] for row in promised])
        uses = np.mean([row["channel_uses"] for row in promised])
        lines.append(
            [
                f"{offset:+g} dB",
                str(len(own)),
                str(len(promised)),
                f"{100 * kept:.0f} %",
                f"{spare:.1f}",
                f"{uses:.0f}",
                f"{100 * uses / most_uses:.0f} %",
            ]
        )
    header = ["SNR told is off by", "requests", "promised", "kept", "dB to spare", "mean channel uses"]
    return table([*header, "of the most"], lines)


def costs(results: Path) -> Lines:
    """What the gates cost."""
    lines = [
        [
            row["what"],
            f"{1000 * row['plain_s']:.2f}",
            f"{1000 * row['median_s']:.2f}",
            f"{row['ratio']:.2f}",
            "{:.2f} .. {:.2f}".format(*row["ci95"]),
        ]
        for row in rows_of(results, "costs")
    ]
    return table(["", "plain codec, ms", "with gates, ms", "ratio", "95 % interval"], lines)


def psnr_plot(results: Path) -> Any:
    """PSNR against SNR at the highest and at a low rate."""
    rows = [row for row in grid(results) if row["channel"] == SHOWN_CHANNEL]
    figure, axes = plots.panels(2, height_in=3.6, sharey=True)
    for axis, cbr in zip(axes[0], (RATES[0], RATES[-2]), strict=True):
        for method, color in COLOURS.items():
            own = [row for row in rows if row["method"] == method and abs(row["cbr"] - cbr) < 1e-6]
            if not own:
                continue
            snrs, means = [row["snr_db"] for row in own], [row["psnr_db"] for row in own]
            bands = [row["psnr_ci95"] for row in own]
            plots.line(axis, snrs, means, SHORT[method], color, interval=bands)
    plots.label_rates(axes[0], (RATES[0], RATES[-2]), "PSNR, dB")
    return figure


def gain_plot(results: Path) -> Any:
    """Gain over both definitions of no alignment against SNR, at each rate."""
    rows = [row for row in rows_of(results, "gains") if row["snr_db"] is not None]
    figure, axes = plots.panels(len(RATES), height_in=2.9, sharey=True, sharex=True)
    for axis, cbr in zip(axes[0], RATES, strict=True):
        axis.axhline(0, color=plots.BASE, linewidth=0.8)
        for over in REFERENCES:
            own = [row for row in rows if row["over"] == over and row["cbr"] == round(cbr, 6)]
            if not own:
                continue
            snrs, means = [row["snr_db"] for row in own], [row["gain_db"] for row in own]
            bands = [row["ci95"] for row in own]
            plots.line(axis, snrs, means, SHORT[over], COLOURS[over], interval=bands)
        axis.set_title(f"CBR 1/{1 / cbr:.0f}")
        axis.set_xlabel("SNR, dB")
    axes[0, 0].set_ylabel("gain in PSNR, dB")
    plots.label_lines(axes[0, -1])
    return figure


def fractions_plot(results: Path) -> Any:
    """PSNR against fraction of parameters."""
    figure, axes = plots.panels(height_in=2.9)
    (axis,) = axes[0]
    for method in FRACTION_METHODS:
        own = [row for row in rows_of(results, "shares") if row["method"] == method]
        plots.line(
            axis, [100 * row["share"] for row in own], [row["psnr_db"] for row in own], title(method),
            COLOURS[method], interval=[row["ci95"] for row in own],
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    axis.minorticks_off()
    axis.set_xlabel("trained parameters, % of the codec's")
    axis.set_ylabel("PSNR, dB")
    plots.label_lines(axis)
    return figure


def lengths_plot(results: Path) -> Any:
    """PSNR of CALA against the length of its training."""
    rows = rows_of(results, "lengths")
    figure, axes = plots.panels(height_in=2.6)
    (axis,) = axes[0]
    steps = [row["steps"] for row in rows]
    means, bands = [row["psnr_db"] for row in rows], [row["ci95"] for row in rows]
    plots.line(axis, steps, means, title("cala"), COLOURS["cala"], interval=bands)
    axis.set_xscale("log")
    axis.set_xticks(steps, [f"{each:,}" for each in steps])
    axis.minorticks_off()
    axis.set_xlabel("optimiser steps")
    axis.set_ylabel("PSNR, dB")
    plots.label_lines(axis)
    return figure


REPORT = Report(
    page="results-transmission.md",
    command=COMMAND,
    values=values,
    partial=True,
    tables={
        "figures": figures_table(
            [
                "tka_gain_db", "tka_gain_strong_db", "tka_mean_psnr_db", "tka_10db_psnr_db",
                "tka_adapter_share",
                "tka_oracle_gap_db", "tka_lead_over_best_baseline_db", "tka_unseen_gap_db",
                "gate_cost_ratio", "tka_codec_ms", "auto_rate_hit_share",
            ]
        ),
        "methods": methods,
        "trainings": trainings,
        "gains": gains,
        "columns": columns,
        "losing-conditions": losing_conditions,
        "oracles": oracles,
        "shares": fractions,
        "lengths": lengths,
        "unseen": unseen,
        "mismatch": mismatch,
        "prompts": prompts,
        "rate-control": rate_control,
        "costs": costs,
    },
    plots={"psnr": psnr_plot, "gain": gain_plot, "shares": fractions_plot, "lengths": lengths_plot},
)  # fmt: skip
