"""docs/results-city.md from results/city*/, and the fields of a city in docs/city.md from the code."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from dekag.evaluation import plots
from dekag.evaluation.cities import tables
from dekag.evaluation.pages import (
    Lines,
    NotMeasuredError,
    Report,
    Row,
    figures_table,
    read_measured,
    read_rows,
    table,
)
from dekag.simulation.city import City, Strategy
from dekag.simulation.deliveries import NAME, DeliveryTable
from dekag.simulation.policies import POLICIES, ROLES

FOLDER, VARIANTS = "city", "city-variants"
COMMAND = "dekag simulate week"
LEARNING, ORACLE = "break-even", "oracle"


def runs(results: Path, folder: str = FOLDER) -> list[Row]:
    """Rows of a city as it is, without its variants."""
    return [row for row in read_rows(results / folder / "runs.jsonl") if not row["variant"]]


def values(results: Path) -> Mapping[str, str]:
    """What the tables do not say."""
    rows = runs(results)
    about = read_measured(results / FOLDER / "city.json")
    seeds = sorted({row["seed"] for row in rows})

    def saved(name: str, what: str, *, decimals: int = 0) -> str:
        value = tables.VALUES[what][1]
        mean = np.mean([tables.saved_percent(rows, seed, name, value) for seed in seeds])
        return f"{mean:.{decimals}f} %"

    def mean(name: str, value: Any) -> float:
        return float(np.mean([value(row) for row in rows if row["strategy"] == name]))

    backhaul = tables.VALUES["backhaul_gb"][1]
    return {
        "seeds": str(len(seeds)),
        "requests": f"{np.mean([row['requests'] for row in rows]):,.0f}",
        "handovers": f"{np.mean([row['handovers'] for row in rows]):,.0f}",
        "saved_never": saved("never", "backhaul_gb"),
        "saved_always": saved("always", "backhaul_gb"),
        "saved_break_even": saved(LEARNING, "backhaul_gb"),
        "saved_oracle": saved(ORACLE, "backhaul_gb"),
        "uses_saved": saved(LEARNING, "channel_uses"),
        "money_never": saved("never", "money"),
        "money_break_even": saved(LEARNING, "money"),
        "money_always": saved("always", "money"),
        "energy_break_even": saved(LEARNING, "energy"),
        "over_oracle": f"{mean(LEARNING, backhaul) / mean(ORACLE, backhaul):.2f}",
        "p50_files": f"{mean('files', lambda row: row['latency_s']['p50']):.2f} s",
        "p50_break_even": f"{mean(LEARNING, lambda row: row['latency_s']['p50']):.2f} s",
        "consistency_files": f"{mean('files', lambda row: row['consistency']):.2f}",
        "consistency_break_even": f"{mean(LEARNING, lambda row: row['consistency']):.2f}",
        "paid_always": _paid(rows, "always"),
        "paid_break_even": _paid(rows, LEARNING),
        "table_commit": str(about["table"]["commit"]),
        "update_each": f"{mean('always', lambda row: row['update_bytes'] / row['transfers']) / 1000:.0f} kB",
    }


def _paid(rows: list[Row], name: str) -> str:
    own = [row["break_even"] for row in rows if row["strategy"] == name]
    return f"{100 * sum(each['paid'] for each in own) / sum(each['pairs'] for each in own):.0f} %"


def deliveries_table(results: Path) -> Lines:
    """The table of deliveries: rows by SNR."""
    path = results / FOLDER / f"bench-{NAME}.json"
    if not path.exists():
        raise FileNotFoundError(path)
    known = DeliveryTable.load(path)
    rows = [
        [
            f"{snr_db:g}",
            *(f"{psnr:.1f}" for psnr in known.psnr_db[index]),
            f"{known.file_channel_uses[index]:,.0f}",
            f"{100 * known.file_decoded[index]:.0f} %",
        ]
        for index, snr_db in enumerate(known.snrs_db)
    ]
    uses = [f"{uses:,.0f} channel uses, dB" for uses in known.channel_uses]
    return table(["SNR, dB", *uses, "channel uses of a file", "files decoded"], rows, words=())


def costs_table(results: Path) -> Lines:
    """The rest of the table of deliveries."""
    path = results / FOLDER / f"bench-{NAME}.json"
    if not path.exists():
        raise FileNotFoundError(path)
    known = DeliveryTable.load(path)
    rows = [[f"CPU time, {stage}", f"{seconds:,.3f} s"] for stage, seconds in known.seconds.items()]
    rows += [
        ["file, mean", f"{known.file_bytes.mean():,.0f} B"],
        ["knowledge update, mean", f"{known.update_bytes.mean():,.0f} B"],
        ["PSNR of a decoded file", f"{known.file_psnr_db:.1f} dB"],
    ]
    rows += [
        [f"consistency, {kind}, worst and best link", f"{values[0, 0]:.2f}, {values[-1, -1]:.2f}"]
        for kind, values in known.consistency.items()
    ]
    rows.append(["consistency of a decoded file", f"{known.file_consistency:.2f}"])
    return table(["", "value"], rows)


def fields_table(_: Path) -> Lines:
    """Every field of a city with its default, from the code."""
    return table(["field", "default", "meaning"], list(_fields(City, "")), words=(0, 1, 2))


def _fields(model: type[BaseModel], prefix: str) -> Iterator[list[str]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind.__module__ == City.__module__:
            yield from _fields(kind, f"{prefix}{name}.")
            continue
        items = [each for each in get_args(kind) if isinstance(each, type) and issubclass(each, BaseModel)]
        default = field.default
        if default is PydanticUndefined:
            shown = "required"
        elif isinstance(default, BaseModel):
            shown = f"`{default.name}`" if hasattr(default, "name") else ""
        elif items or default is None:
            shown = "two strategies" if name == "strategies" else ""
        else:
            shown = f"`{default}`"
        yield [f"`{prefix}{name}`", shown, field.description or ""]
        if get_origin(kind) not in (None, types.UnionType) and items == [Strategy]:
            yield from _fields(Strategy, f"{prefix}{name}[].")


def policies_table(_: Path) -> Lines:
    """The built-in policies by role, from the code."""
    rows = []
    for role, base in ROLES.items():
        for name, policy in POLICIES.items():
            if issubclass(policy, base) and policy.__module__ == base.__module__:
                about = (policy.__doc__ or "").strip().splitlines()[0]
                rows.append([f"`{role}`", f"`{name}`", about])
    return table(["role", "policy", "what it does"], rows, words=(0, 1, 2))


def cost_plot(results: Path) -> Any:
    """Time of the simulation against the number of requests, on logarithmic axes."""
    rows = read_measured(results / FOLDER / "bench-simulate.json")["rows"]
    figure, axes = plots.panels(1, height_in=3.2)
    axis = axes[0, 0]
    x = np.array([row["requests"] for row in rows], float)
    y = np.array([row["cpu_seconds"] for row in rows])
    axis.loglog(x, y, "o-", color=plots.OURS)
    axis.loglog(x, y[-1] * x / x[-1], "--", color=plots.BASE)
    axis.annotate("proportional to the requests", (x[0], 0.8 * y[-1] * x[0] / x[-1]), color=plots.BASE)
    axis.set(xlabel="requests", ylabel="CPU time, s")
    return figure


def cost_table(results: Path) -> Lines:
    """Time and memory of the simulation."""
    rows = read_measured(results / FOLDER / "bench-simulate.json")["rows"]
    lines = [
        [
            f"{row['requests']:,}",
            f"{row['seconds']:.1f}",
            f"{row['cpu_seconds']:.1f}",
            f"{row['rss_gib']:.2f}",
        ]
        for row in rows
    ]
    return table(["requests", "s", "CPU time, s", "GiB"], lines, words=())


def agreement_table(results: Path) -> Lines:
    """Real services and the simulation of the same small city."""
    path = results / FOLDER / "bench-simulate-agreement.json"
    if not path.exists():
        raise NotMeasuredError("dekag bench simulate-agreement")
    return tables.agreement_table(read_measured(path)["rows"])


REPORT = Report(
    page="results-city.md",
    command=COMMAND,
    tables={
        "summary": lambda results: tables.summary_table(runs(results)),
        "savings": lambda results: tables.savings_table(runs(results)),
        "quality": lambda results: tables.quality_table(runs(results)),
        "latency": lambda results: tables.latency_table(runs(results)),
        "updates": lambda results: tables.updates_table(runs(results)),
        "energy": lambda results: tables.parts_table(runs(results), "energy_kwh"),
        "money": lambda results: tables.parts_table(runs(results), "money"),
        "variants": lambda results: tables.variants_table(read_rows(results / VARIANTS / "runs.jsonl")),
        "deliveries": deliveries_table,
        "costs": costs_table,
        "cost": cost_table,
        "agreement": agreement_table,
        "gaps": figures_table(["simulate_bytes_gap_percent", "simulate_latency_gap_percent"]),
        "figures": figures_table(["simulate_million_seconds", "simulate_rss_gib", "simulate_ray_2_workers"]),
    },
    values=values,
    plots={
        "hours": lambda results: tables.hours_plot(read_rows(results / FOLDER / "hours.jsonl")),
        "latency": lambda results: tables.latency_plot(runs(results)),
        "topics": lambda results: tables.topics_plot(read_rows(results / FOLDER / "topics.jsonl")),
        "cost": cost_plot,
    },
)
REFERENCE = Report(
    page="city.md", command=COMMAND, tables={"fields": fields_table, "policies": policies_table}
)
