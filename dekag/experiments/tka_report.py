"""What `dekag experiment tka` found: figures, tables, plots and the page, all from one measurement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dekag.cala.conditions import condition_vector
from dekag.cala.methods import METHODS, Cala
from dekag.documents import read_json
from dekag.experiments.consistency import bootstrap_ci95
from dekag.experiments.digital import CHANNELS, RATES, SNRS_DB
from dekag.experiments.files import plt, write_plot, write_rows
from dekag.experiments.headline import RESULTS, mean_ci95, record
from dekag.experiments.tka import (
    BEYOND_DB,
    COST_BATCH,
    COSTS,
    GRID_SNRS_DB,
    METRICS,
    MISMATCH_SNRS_DB,
    OFFSETS_DB,
    STRUCTURE_PICTURES,
    UNSEEN,
    Array,
    Measured,
    Request,
    measure,
)
from dekag.experiments.tka_training import (
    ORACLE_CBRS,
    ORACLE_CHANNELS,
    ORACLE_SNRS_DB,
    SHARE,
    SHARE_METHODS,
    SHARES,
    Plan,
)
from dekag.link.conditions import LinkConditions
from dekag.link.equalizer import equalize
from dekag.pipeline import SemanticLink
from dekag.training.cala import SOURCE_VALUES, deliver
from dekag.world.sheet import save_sheet

COMMAND = "dekag experiment tka"
FOLDER = "tka"
PAGE = Path("docs/results-tka.md")
RIVALS = ("lora", "lora-groups", "snr-attention")  # baselines of no more parameters than CALA
COLOURS = {"none": "0.6", "cala": "k"}  # all others by their place in METHODS
SHOWN_CHANNEL = "rayleigh-1us"
Row = dict[str, Any]


def run_tka(
    *, count: int, requests: int, rounds: int, workers: int, profile: str, results: Path = RESULTS
) -> None:
    """Train and measure what is not measured yet, then write figures, tables, plots and page.

    Args:
        count: pictures.
        requests: of rate control.
        rounds: of the comparison of costs.
        workers: processes, one thread each.
        profile: the models.
        results: where headline.json is.
    """
    measured = measure(
        profile=profile, plan=Plan(), count=count, requests=requests, rounds=rounds, workers=workers
    )
    write(measured, results, PAGE)


def grid(measured: Measured, method: str) -> dict[str, Array]:
    """METRICS of a method over the grid that all methods share: channel -> (rates, SNRs, n, 5)."""
    found = {}
    for (name, channel), values in measured.main.items():
        if name == method:
            fine = values.shape[1] == len(SNRS_DB)
            places = [SNRS_DB.index(snr) for snr in GRID_SNRS_DB] if fine else range(len(GRID_SNRS_DB))
            found[channel] = values[:, list(places)]
    return found


def per_picture(measured: Measured, method: str, *, unseen: bool = False) -> Array:
    """Mean PSNR over the grid for each picture, (n,), dB: over trained channels, or over the unseen ones."""
    wanted = [each for channel, each in grid(measured, method).items() if (channel in UNSEEN) == unseen]
    mean: Array = np.mean([each[..., 0].mean(axis=(0, 1)) for each in wanted], axis=0)
    return mean


def write(measured: Measured, results: Path, page: Path) -> None:
    """Write results/tka/*, the figures of headline.json and the page."""
    folder = results / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "grid.jsonl", grid_rows(measured))
    write_rows(folder / "shares.jsonl", share_rows(measured))
    write_rows(folder / "unseen.jsonl", unseen_rows(measured))
    write_rows(folder / "mismatch.jsonl", mismatch_rows(measured))
    requests = [{"offset_db": o, **asdict(r)} for o, found in measured.requests.items() for r in found]
    write_rows(folder / "requests.jsonl", requests)
    write_rows(folder / "costs.jsonl", cost_rows(measured))
    figures(measured, results)
    plot_curves(measured, folder / "psnr.svg")
    plot_shares(measured, folder / "shares.svg")
    plot_gates(measured.workbench.bench.cala(), folder / "gates.svg")
    plot_constellations(measured, folder / "constellations.svg")
    save_sheet(strip(measured), folder / "strip.png")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(page_text(measured, results))


def grid_rows(measured: Measured) -> list[Row]:
    """One row for each method, channel, rate and SNR."""
    rows = []
    for (method, channel), values in measured.main.items():
        snrs_db = SNRS_DB if values.shape[1] == len(SNRS_DB) else GRID_SNRS_DB
        for i, cbr in enumerate(RATES):
            for j, snr_db in enumerate(snrs_db):
                cell = values[i, j]
                _, interval = mean_ci95(cell[:, 0].tolist())
                row = {"method": method, "channel": channel, "cbr": round(cbr, 6), "snr_db": snr_db}
                row |= {"psnr_ci95": interval and _rounded(interval), "n": len(cell)}
                known = dict(zip(METRICS, cell.T, strict=True))
                row |= {
                    name: round(float(np.nanmean(each)), 4)
                    for name, each in known.items()
                    if not np.isnan(each).all()
                }
                rows.append(row)
    return rows


def share_rows(measured: Measured) -> list[Row]:
    """PSNR against share of parameters."""
    codec = measured.workbench.bench.codec
    whole = sum(p.numel() for p in codec.parameters())
    rows = []
    for (method, share), values in measured.shares.items():
        trained = METHODS[method].build(codec, share).trained_parameters()
        mean, ci95 = bootstrap_ci95(lambda each: float(each.mean()), values.mean(axis=0).tolist())
        row = {"method": method, "most": share, "share": round(trained / whole, 5)}
        rows.append({**row, "psnr_db": round(mean, 3), "ci95": _rounded(ci95)})
    return rows


def unseen_rows(measured: Measured) -> list[Row]:
    """How far each unseen condition is below the trained one beside it."""
    rows = []
    for name, (there, beside) in measured.unseen.items():
        gap, ci95 = bootstrap_ci95(lambda each: float(each.mean()), (beside - there).mean(axis=0).tolist())
        rows.append(
            {
                "condition": name,
                "psnr_db": round(float(there.mean()), 3),
                "beside_psnr_db": round(float(beside.mean()), 3),
                "gap_db": round(gap, 3),
                "ci95": _rounded(ci95),
                "n": there.shape[1],
            }
        )
    return rows


def mismatch_rows(measured: Measured) -> list[Row]:
    """PSNR when the sender is told another SNR."""
    return [
        {
            "channel": channel,
            "offset_db": offset,
            "cbr": round(cbr, 6),
            "snr_db": snr_db,
            "psnr_db": round(float(values[i, j].mean()), 3),
        }
        for (channel, offset), values in measured.mismatch.items()
        for i, cbr in enumerate(ORACLE_CBRS)
        for j, snr_db in enumerate(MISMATCH_SNRS_DB)
    ]


def worst_unseen(measured: Measured) -> Row:
    """The unseen condition that is furthest below the one beside it.

    An SNR below the trained ones does not count: less SNR costs any codec.
    """
    rows = [row for row in unseen_rows(measured) if not row["condition"].startswith("-")]
    return max(rows, key=lambda row: float(row["gap_db"]))


def cost_rows(measured: Measured) -> list[Row]:
    """Median seconds of encoding and decoding, and the ratio to the plain codec."""
    rows = []
    for name, reference in COSTS.items():
        seconds, plain = measured.costs[name], measured.costs[reference]
        ratio, ci95 = bootstrap_ci95(lambda a, b: float(np.median(a) / np.median(b)), seconds, plain)
        rows.append(
            {
                "what": name,
                "median_s": round(float(np.median(seconds)), 6),
                "plain_s": round(float(np.median(plain)), 6),
                "ratio": round(ratio, 3),
                "ci95": _rounded(ci95),
                "n": len(seconds),
            }
        )
    return rows


def hits(requests: Sequence[Request]) -> list[float]:
    """1 for each request that got what was promised, 0 for each that did not; promises only."""
    return [float(each.psnr_db >= each.target_db) for each in requests if each.promised]


def figures(measured: Measured, results: Path) -> None:
    """The figures of results/headline.json."""

    def put(key: str, values: Iterable[float], unit: str) -> None:
        column = list(values)
        mean, ci95 = bootstrap_ci95(lambda each: float(each.mean()), column)
        record(key, mean, unit, command=COMMAND, count=len(column), ci95=ci95, results=results)

    own = per_picture(measured, "cala")
    put("tka_gain_db", own - per_picture(measured, "none"), "dB")
    put("tka_lead_over_best_baseline_db", own - per_picture(measured, best_rival(measured)), "dB")
    put("tka_oracle_gap_db", (measured.ceilings - measured.subset["cala"]).mean(axis=0), "dB")
    share = measured.workbench.bench.shipped.info["scores"]["share"]
    record("tka_adapter_share", 100 * share, "%", command=COMMAND, count=1, results=results)
    worst = worst_unseen(measured)
    record(
        "tka_unseen_gap_db", worst["gap_db"], "dB",
        command=COMMAND, count=worst["n"], ci95=worst["ci95"], results=results,
    )  # fmt: skip
    cost = next(row for row in cost_rows(measured) if row["what"] == "a new condition")
    record(
        "gate_cost_ratio", cost["ratio"], "ratio",
        command=COMMAND, count=cost["n"], ci95=cost["ci95"], results=results,
    )  # fmt: skip
    put("auto_rate_hit_share", [100 * hit for hit in hits(measured.requests[0.0])], "%")


def colour(method: str) -> str:
    """The method's in all plots."""
    return COLOURS.get(method, f"C{list(METHODS).index(method)}")


def best_rival(measured: Measured) -> str:
    """The best baseline of no more parameters than CALA, by the mean over the grid."""
    return max(RIVALS, key=lambda method: float(per_picture(measured, method).mean()))


def plot_curves(measured: Measured, path: Path) -> None:
    """PSNR against SNR with 95 % bands: channels down, rates across."""
    channels = list(dict.fromkeys(channel for _, channel in measured.main))
    figure, axes = plt.subplots(
        len(channels), len(RATES), figsize=(3.2 * len(RATES), 2.6 * len(channels)),
        sharex=True, sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    for axis_row, channel in zip(axes, channels, strict=True):
        for i, (axis, cbr) in enumerate(zip(axis_row, RATES, strict=True)):
            for method in METHODS:
                values = grid(measured, method)[channel][i, :, :, 0]
                found = [mean_ci95(each) for each in values.tolist()]
                mean = [each for each, _ in found]
                lows, highs = zip(*(interval or (each, each) for each, interval in found), strict=True)
                axis.plot(GRID_SNRS_DB, mean, color=colour(method), label=METHODS[method].title)
                axis.fill_between(GRID_SNRS_DB, lows, highs, color=colour(method), alpha=0.12, linewidth=0)
            axis.set_title(f"{channel}, CBR 1/{1 / cbr:.0f}", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("SNR, dB")
    for axis in axes[:, 0]:
        axis.set_ylabel("PSNR, dB")
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    write_plot(figure, path)


def plot_shares(measured: Measured, path: Path) -> None:
    """PSNR against share of parameters."""
    figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
    rows = share_rows(measured)
    for method in SHARE_METHODS:
        own = [row for row in rows if row["method"] == method]
        means = np.array([row["psnr_db"] for row in own])
        limits = np.array([row["ci95"] for row in own]).T
        axis.errorbar(
            [100 * row["share"] for row in own], means, yerr=abs(limits - means),
            fmt="o-", color=colour(method), label=METHODS[method].title, capsize=2,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xticks([100 * share for share in SHARES], [f"{100 * share:g}" for share in SHARES])
    axis.set_xlabel("parameters, % of the codec's")
    axis.set_ylabel("PSNR, dB")
    axis.legend(frameon=False)
    write_plot(figure, path)


@torch.inference_mode()
def plot_gates(adapted: Cala, path: Path) -> None:
    """Weight of every component against SNR, at the highest and the lowest rate."""
    snrs_db = np.arange(-10, 25.5, 0.5)
    figure, axes = plt.subplots(2, 2, figsize=(9, 8), sharex=True, layout="constrained")
    for axis_row, side in zip(axes, ("encoder", "decoder"), strict=True):
        for axis, cbr in zip(axis_row, (RATES[0], RATES[-1]), strict=True):
            conditions = [LinkConditions(snr_db=float(snr), fading="rayleigh") for snr in snrs_db]
            vectors = torch.stack([condition_vector(cbr, each, at="sender") for each in conditions])
            gates = torch.cat(adapted.peft.base_model.gates(side, vectors), dim=1).T.numpy()
            image = axis.imshow(
                gates, aspect="auto", vmin=0, vmax=2, cmap="coolwarm", interpolation="nearest",
                extent=(snrs_db[0], snrs_db[-1], len(gates), 0),
            )  # fmt: skip
            axis.set_title(f"{side}, CBR 1/{1 / cbr:.0f}", fontsize=9)
            axis.set_ylabel("component, layer by layer")
    for axis in axes[-1]:
        axis.set_xlabel("SNR, dB")
    figure.colorbar(image, ax=axes, label="weight of the component", shrink=0.6)
    write_plot(figure, path)


@torch.inference_mode()
def plot_constellations(measured: Measured, path: Path) -> None:
    """What the unaligned codec and CALA send of one picture, and what the receiver equalises."""
    bench, latents = measured.workbench.bench, measured.workbench.latents[:1].float()
    channel_uses = bench.codec.max_channel_uses((latents.shape[1], latents.shape[2], latents.shape[3]))
    snrs_db = (-5.0, 5.0, 20.0)
    figure, axes = plt.subplots(
        2, len(snrs_db), figsize=(9, 6), sharex=True, sharey=True, layout="constrained"
    )
    for axis_row, adapted, name in zip(
        axes, (bench.plain(), bench.cala()), ("unaligned", "CALA"), strict=True
    ):
        for axis, snr_db in zip(axis_row, snrs_db, strict=True):
            conditions = LinkConditions.model_validate({**CHANNELS[SHOWN_CHANNEL], "snr_db": snr_db})
            result = SemanticLink(adapted).send(
                latents, [conditions], [0], source_values=SOURCE_VALUES, channel_uses=channel_uses
            )
            received = equalize(result.receptions[0], conditions.equalizer).symbols
            for symbols, colour, label in ((received, "C1", "equalised"), (result.symbols[0], "k", "sent")):
                points = symbols[0].numpy()
                axis.plot(points.real, points.imag, ".", color=colour, markersize=2, label=label)
            axis.set_title(f"{name}, {snr_db:g} dB", fontsize=9)
            axis.set_aspect("equal")
    axes[0, 0].legend(frameon=False, fontsize=8)
    axes[0, 0].set_xlim(-3, 3)
    axes[0, 0].set_ylim(-3, 3)
    write_plot(figure, path)


def strip(measured: Measured) -> list[list[npt.NDArray[np.uint8]]]:
    """One picture by method (rows) and SNR (columns), the sent one first."""
    workbench = measured.workbench
    bench = workbench.bench
    trained = {training.method: training for training in bench.baselines()}
    rows = []
    for method in ("none", "lora", "cala", "fine-tune"):
        adapted = workbench.adapted(method, trained.get(method))
        row = [workbench.pixels[0]]
        for snr_db in GRID_SNRS_DB:
            conditions = LinkConditions.model_validate({**CHANNELS[SHOWN_CHANNEL], "snr_db": snr_db})
            received = deliver(adapted, workbench.latents[:1], RATES[0], conditions, workbench.seeds[:1])
            row.append(workbench.edge.decoder.decode(received)[0])
        rows.append(row)
    return rows


def page_text(measured: Measured, results: Path) -> str:
    """docs/results-tka.md."""
    shown = read_json(results / "headline.json")
    bench = measured.workbench.bench
    count = len(measured.workbench.seeds)
    unseen = [channel for channel in measured_channels(measured) if channel in UNSEEN]
    lines = [
        "# Transmission-knowledge alignment: CALA beside its baselines",
        "",
        f"Written by `{COMMAND}` from its measurements; do not edit. {count} pictures that the edge drew of",
        "held-out prompts; PSNR of what arrives against what was sent, its latent decoded without a channel.",
        f"The grid: {', '.join(measured_channels(measured))};",
        "SNR -5 to 20 dB in steps of 5; CBR 1/96, 1/192, 1/384 and 1/768. Every method meets the same fades",
        "and noise. CALA is what ships in `models/embedded/cala`; the baselines were trained as long",
        f"({bench.steps:,} steps), on the same latents, with the same loss, once each: intervals are over",
        "pictures, not over trainings.",
        f"Figures are over the channels that training draws; {' and '.join(unseen)}, which it does not,",
        "stand apart as *unseen*.",
        "",
        "## Figures",
        "",
        "| figure | value | interval | n |",
        "|---|---:|---:|---:|",
    ]
    for key in (
        "tka_gain_db", "tka_adapter_share", "tka_oracle_gap_db", "tka_lead_over_best_baseline_db",
        "tka_unseen_gap_db", "gate_cost_ratio", "auto_rate_hit_share",
    ):  # fmt: skip
        each = shown[key]
        interval = "" if each["ci95"] is None else "{:.2f} .. {:.2f}".format(*each["ci95"])
        lines.append(f"| `{key}` | {each['value']:.3g} {each['unit']} | {interval} | {each['n']} |")
    lines += ["", *_methods_table(measured), "", "![PSNR against SNR](../results/tka/psnr.svg)", ""]
    lines += _columns(measured)
    lines += ["", "## Where CALA is not ahead", "", *behind(measured)]
    lines += ["", "## Below a full fine-tune for each condition", "", *_ceiling_text(measured)]
    lines += ["", "## PSNR against share of parameters", "", *_share_table(measured)]
    lines += ["", "## Conditions never trained on", "", *_unseen_table(measured)]
    lines += ["", "## A sender that is told a wrong SNR", "", *_mismatch_table(measured)]
    lines += ["", "## Rate control", "", *_rate_text(measured)]
    lines += ["", "## What the gates cost", "", *_cost_table(measured)]
    lines += [
        "",
        "## Which components open when",
        "",
        "Weights of all components on rayleigh-1us as the sender's condition asks, layer by layer; 1 is an",
        "ungated component's.",
        "",
        "![Gates](../results/tka/gates.svg)",
        "",
        "## Constellations",
        "",
        f"One picture at CBR 1/96 over {SHOWN_CHANNEL}.",
        "",
        "![Constellations](../results/tka/constellations.svg)",
        "",
        "## One picture",
        "",
        f"CBR 1/96 over {SHOWN_CHANNEL}. Columns: what was sent, then SNR -5, 0, 5, 10, 15, 20 dB. Rows:",
        "unaligned, one shared LoRA, CALA, shared full fine-tune.",
        "",
        "![Strip](../results/tka/strip.png)",
        "",
        "Every cell: `results/tka/*.jsonl`.",
        "",
    ]
    return "\n".join(lines)


def measured_channels(measured: Measured) -> list[str]:
    """Names of the grid's channels."""
    return list(dict.fromkeys(channel for _, channel in measured.main))


def _methods_table(measured: Measured) -> list[str]:
    workbench = measured.workbench
    codec = sum(p.numel() for p in workbench.bench.codec.parameters())
    lines = ["## Methods", "", "| method | parameters | PSNR, dB | interval | unseen, dB | SSIM | MS-SSIM |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    for name, method in METHODS.items():
        trained = method.build(workbench.bench.codec, SHARE).trained_parameters()
        mean, (low, high) = bootstrap_ci95(lambda e: float(e.mean()), per_picture(measured, name).tolist())
        other = per_picture(measured, name, unseen=True).mean()
        values = np.concatenate([each.reshape(-1, 5) for each in grid(measured, name).values()])
        one, many = np.nanmean(values[:, 1]), np.nanmean(values[:, 2])
        lines.append(
            f"| {method.title} | {100 * trained / codec:.1f} % | {mean:.2f} | {low:.2f} .. {high:.2f} "
            f"| {other:.2f} | {one:.3f} | {many:.3f} |"
        )
    gates = per_picture(measured, "cala") - per_picture(measured, "cala-ungated")
    mean, (low, high) = bootstrap_ci95(lambda each: float(each.mean()), gates.tolist())
    return [
        *lines,
        "",
        f"SSIM and MS-SSIM (over four scales) are of the first {STRUCTURE_PICTURES} pictures, all channels.",
        f"Gates that know the condition are worth {mean:.2f} dB ({low:.2f} .. {high:.2f}); the rest of the",
        "lead over LoRA is CALA's low-rank form, which is that of *CALA without conditions*.",
    ]


def columns(measured: Measured) -> dict[str, dict[str, Array]]:
    """PSNR of each picture by channel, by rate and by SNR: column -> method -> (n,), dB."""
    found: dict[str, dict[str, Array]] = {}
    for method in METHODS:
        by_channel = {channel: each[..., 0] for channel, each in grid(measured, method).items()}
        everything = np.stack(list(by_channel.values()))  # (channels, rates, SNRs, n)
        for channel, each in by_channel.items():
            found.setdefault(channel, {})[method] = each.mean(axis=(0, 1))
        for i, cbr in enumerate(RATES):
            found.setdefault(f"1/{1 / cbr:.0f}", {})[method] = everything[:, i].mean(axis=(0, 1))
        for j, snr_db in enumerate(GRID_SNRS_DB):
            found.setdefault(f"{snr_db:g} dB", {})[method] = everything[:, :, j].mean(axis=(0, 1))
    return found


def _columns(measured: Measured) -> list[str]:
    table = columns(measured)
    lines = ["### By channel, by rate and by SNR: PSNR, dB", ""]
    lines += [
        "| | " + " | ".join(METHODS[name].title for name in METHODS) + " |",
        "|---|" + "---:|" * len(METHODS),
    ]
    for column, values in table.items():
        lines.append(f"| {column} | " + " | ".join(f"{values[name].mean():.2f}" for name in METHODS) + " |")
    return lines


def behind(measured: Measured) -> list[str]:
    """Where CALA is not ahead: columns for baselines of its size, cells for all methods."""
    sized = ", ".join(METHODS[name].title for name in RIVALS)
    lines = []
    for column, values in columns(measured).items():
        own = float(values["cala"].mean())
        ahead = {name: float(values[name].mean()) for name in RIVALS if values[name].mean() >= own}
        if ahead:
            told = ", ".join(f"{METHODS[name].title} {value:.2f}" for name, value in ahead.items())
            lines.append(f"- {column}: {told}, CALA {own:.2f}")
    lines = lines or ["- In no column is one of these ahead."]
    own_cells = _cells(measured, "cala")
    for name, method in METHODS.items():
        if name not in ("none", "cala"):
            size = "" if name in (*RIVALS, "cala-ungated") else ", which trains more,"
            lost = int((_cells(measured, name) >= own_cells).sum())
            lines.append(f"- {method.title}{size} is as good or better in {lost} of {len(own_cells)} cells.")
    return [f"Baselines of CALA's size: {sized}. A cell is one channel, rate and SNR.", "", *lines]


def _cells(measured: Measured, method: str) -> Array:
    """Mean PSNR over pictures in every cell of the grid, (cells,), dB."""
    means: Array = np.concatenate(
        [each[..., 0].mean(axis=2).ravel() for each in grid(measured, method).values()]
    )
    return means


def _ceiling_text(measured: Measured) -> list[str]:
    plan = measured.workbench.bench.plan
    lines = [
        f"Channels {', '.join(ORACLE_CHANNELS)}; SNR {', '.join(f'{s:g}' for s in ORACLE_SNRS_DB)} dB; CBR "
        + ", ".join(f"1/{1 / cbr:.0f}" for cbr in ORACLE_CBRS)
        + f": {len(measured.ceilings)} conditions.",
        "Each has a codec of its own: the shared full fine-tune, trained on for",
        f"{plan.oracle_steps} steps on that condition alone.",
        "",
        "| | PSNR, dB |",
        "|---|---:|",
    ]
    named = [(METHODS[name].title, values) for name, values in measured.subset.items()]
    for title, values in [*named, ("full fine-tune for each condition", measured.ceilings)]:
        lines.append(f"| {title} | {values.mean():.2f} |")
    return lines


def _share_table(measured: Measured) -> list[str]:
    plan = measured.workbench.bench.plan
    lines = [
        f"Shorter trainings of {plan.share_steps:,} steps each, over the conditions above. In brackets the",
        "share that the largest adapter within it really has; a dash where even the smallest is larger.",
        "",
    ]
    lines += ["| method | " + " | ".join(f"{100 * share:g} %" for share in SHARES) + " |"]
    lines += ["|---|" + "---:|" * len(SHARES)]
    for method in SHARE_METHODS:
        known = {row["most"]: row for row in share_rows(measured) if row["method"] == method}
        values = [
            f"{known[most]['psnr_db']:.2f} ({100 * known[most]['share']:.1f} %)" if most in known else "-"
            for most in SHARES
        ]
        lines.append(f"| {METHODS[method].title} | " + " | ".join(values) + " |")
    return [*lines, "", "![PSNR against share](../results/tka/shares.svg)"]


def _unseen_table(measured: Measured) -> list[str]:
    beyond = ", ".join(f"{snr:g}" for snr in BEYOND_DB)
    worst = worst_unseen(measured)["condition"]
    lines = [
        f"`tka_unseen_gap_db` is the worst of these, {worst}; SNRs below the trained ones do not count,",
        "since less SNR costs any codec.",
        "Means over CBR 1/96 and 1/384 and SNR 0, 10 and 20 dB, by the shipped CALA. Beside a TDL profile",
        "without a direct path stands Rayleigh fading of the same delay spread, beside one with it Rician",
        f"fading with K = 12 dB; beside SNRs beyond the trained ones ({beyond} dB) the nearest end; beside",
        "other delay spreads the nearest end of those trained on (10 ns to 10 us).",
        "",
        "| condition | PSNR, dB | beside it, dB | gap, dB | interval |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in unseen_rows(measured):
        low, high = row["ci95"]
        lines.append(
            f"| {row['condition']} | {row['psnr_db']:.2f} | {row['beside_psnr_db']:.2f} "
            f"| {row['gap_db']:.2f} | {low:.2f} .. {high:.2f} |"
        )
    return lines


def _mismatch_table(measured: Measured) -> list[str]:
    lines = [
        "Change of PSNR, dB, in the mean over SNR 0 to 15 dB and CBR 1/96 and 1/384, when the SNR that",
        "the sender is told is off by:",
        "",
    ]
    lines += ["| channel | " + " | ".join(f"{offset:+g} dB" for offset in OFFSETS_DB) + " |"]
    lines += ["|---|" + "---:|" * len(OFFSETS_DB)]
    for channel in dict.fromkeys(channel for channel, _ in measured.mismatch):
        right = measured.mismatch[(channel, 0.0)].mean()
        values = [f"{measured.mismatch[(channel, o)].mean() - right:+.2f}" for o in OFFSETS_DB]
        lines.append(f"| {channel} | " + " | ".join(values) + " |")
    return lines


def _rate_text(measured: Measured) -> list[str]:
    _, channels, height, width = measured.workbench.latents.shape
    most = measured.workbench.bench.codec.max_channel_uses((channels, height, width))
    lines = [
        "Requests with a random channel of the grid, SNR uniform over 0 to 20 dB and a target of 18, 20, 22",
        "or 24 dB. The rate is the smallest that promises the target with 80 % confidence; where none does,",
        "no promise is made, and the request does not count as kept or broken.",
        "",
        "| told SNR off by | requests | promised | kept | dB to spare | mean channel uses | of the most |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for offset, requests in measured.requests.items():
        promised = [each for each in requests if each.promised]
        spare = np.mean([each.psnr_db - each.target_db for each in promised])
        uses = np.mean([each.channel_uses for each in promised])
        lines.append(
            f"| {offset:+g} dB | {len(requests)} | {len(promised)} | {100 * np.mean(hits(requests)):.0f} % "
            f"| {spare:.1f} | {uses:.0f} | {100 * uses / most:.0f} % |"
        )
    return lines


def _cost_table(measured: Measured) -> list[str]:
    lines = [
        f"Encoding and decoding one picture, or a batch of {COST_BATCH}, in turns with the plain codec. The",
        "figure is that of a picture whose condition was never met before; the weights of the last ones",
        "are kept.",
        "",
        "| | plain, ms | with gates, ms | ratio | interval |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in cost_rows(measured):
        low, high = row["ci95"]
        lines.append(
            f"| {row['what']} | {1000 * row['plain_s']:.2f} | {1000 * row['median_s']:.2f} "
            f"| {row['ratio']:.2f} | {low:.2f} .. {high:.2f} |"
        )
    return lines


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in values]
