"""docs/results-knowledge-updates.md from results/gka/: MAKD and its baselines."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dekag.evaluation import plots
from dekag.evaluation.pages import Lines, NotMeasuredError, Report, Row, figures_table, read_rows, table
from dekag.evaluation.statistics import bootstrap_mean, mean_of
from dekag.evaluation.studies.makd import BASELINES, BOUNDS, COMMAND, FOLDER, GUIDED, SHIPPED, STUDIES
from dekag.makd.config import METHODS
from dekag.stickers import TOPICS

NAMES = {
    "none": "no alignment",
    GUIDED: "no alignment, guided as an update is",
    "metaword": "metaword only",
    "lora": "LoRA only",
    "lora-equal-bytes": "LoRA only, equal bytes",
    "full": "full fine-tune",
    "makd": "MAKD, full form",
    SHIPPED: "MAKD",
    "ceiling": "upper bound: the cloud itself, another seed",
}
SETTINGS_PLOT = "Consistency against the rank, the number of cloud images and the number of tokens"
ENOUGH = 0.95  # of the gap to the upper bound, and of the whole gain, that the smallest update is to keep


def scores(results: Path) -> dict[str, list[Row]]:
    """Rows of each test prompt by method."""
    found: dict[str, list[Row]] = {}
    for row in read_rows(results / FOLDER / "methods.jsonl"):
        found.setdefault(row["method"], []).append(row)
    return found


def trainings(results: Path) -> list[Row]:
    """Every training; FileNotFoundError if nothing was trained."""
    return read_rows(results / FOLDER / "trainings.jsonl")


def updates(results: Path) -> dict[str, Row]:
    """The updates that ship, by topic; none if any topic has none."""
    path = results / FOLDER / "updates.jsonl"
    return {row["topic"]: row for row in read_rows(path)} if path.exists() else {}


def main_method(found: Mapping[str, list[Row]]) -> str:
    """What the figures are of: the updates that ship, or else MAKD as it was trained for the comparison."""
    return SHIPPED if SHIPPED in found else "makd"


def base_config(rows: Sequence[Row]) -> dict[str, Any]:
    """The settings of the main comparison: those of most of MAKD's trainings, seeds apart."""
    makd = [each["config"] for each in rows if each["config"]["method"] == "makd"]
    counted = Counter(json.dumps({**config, "seed": 0}) for config in makd)
    found: dict[str, Any] = json.loads(counted.most_common(1)[0][0])
    return found


def differing(rows: Sequence[Row], **changes: Any) -> list[Row]:
    """Trainings with the settings of the main comparison but for `changes`; an Ellipsis is any value."""
    base = {**base_config(rows), **changes}
    return [
        row
        for row in rows
        if all(wanted is ... or row["config"][name] == wanted for name, wanted in base.items())
    ]


def update_sizes(results: Path, method: str) -> list[int]:
    """Bytes of a method's updates: of those that ship, or in the main comparison; none if it has none."""
    if method == SHIPPED:
        return [row["bytes"] for row in updates(results).values()]
    if method in BOUNDS:
        return []
    rows = trainings(results)
    bits = str(base_config(rows)["bits"])
    return [row["bytes"][bits] for row in differing(rows, method=method, seed=...)]


def values(results: Path) -> Mapping[str, str]:
    """How it was measured."""
    found = scores(results)
    ours = found[main_method(found)]
    names = topics_of(ours)
    shown = {"prompts": str(len(ours) // len(names)), "topics": str(len(names))}
    none, oracle = (mean_of(found[name], "consistency") for name in ("none", "ceiling"))
    shown |= {"none_consistency": f"{none:.2f}", "ceiling_consistency": f"{oracle:.2f}"}
    shown["our_consistency"] = f"{mean_of(ours, 'consistency'):.2f}"
    bound = 100 * (oracle / none - 1)
    shown |= {"ceiling_gain": f"+{bound:.1f} %", "near_ceiling_gain": f"+{ENOUGH * bound:.1f} %"}
    if (results / FOLDER / "trainings.jsonl").exists():
        shown["smallest"] = f"{smallest(results)['bytes']:,}"
    return shown


def methods(results: Path) -> Lines:
    """Every method over all topics."""
    found = scores(results)
    lines = []
    for method, own in found.items():
        sizes = update_sizes(results, method)
        mean, (low, high) = bootstrap_mean(
            [row["consistency"] for row in own], groups=[row["topic"] for row in own]
        )
        lines.append(
            [
                f"**{NAMES[method]}**" if method == main_method(found) else NAMES[method],
                f"{np.median(sizes):,.0f}" if sizes else "",
                f"{max(sizes):,}" if sizes else "",
                f"{mean_of(own, 'clip'):.3f}",
                f"{mean_of(own, 'dino'):.3f}",
                f"{mean:.3f}",
                f"{low:.3f} .. {high:.3f}",
                f"{100 * mean_of(own, 'probe'):.1f} %",
            ]
        )
    header = ["method", "median bytes", "largest", "CLIP", "DINO", "consistency", "95 % interval"]
    return table([*header, "attributes correct"], lines)


def topics_of(rows: Sequence[Row]) -> list[str]:
    """The topics of rows, in their order."""
    return list(dict.fromkeys(row["topic"] for row in rows))


def kind_of(topic: str) -> str:
    """What is new about a topic: style, subject, vocabulary or combination."""
    return TOPICS[topic].kind


def study_topics(rows: Sequence[Row]) -> list[str]:
    """The topics of the studies of a single setting."""
    rank = base_config(rows)["rank"]
    return topics_of([row for row in differing(rows, rank=...) if row["config"]["rank"] != rank])


def topics(results: Path) -> Lines:
    """Every method on every topic."""
    found, shipped = scores(results), updates(results)
    found.pop(GUIDED, None)  # of all topics together it says enough
    lines = []
    for name in topics_of(found["none"]):
        here = {m: [row for row in own if row["topic"] == name] for m, own in found.items()}
        cells = [
            f"{mean_of(own, 'consistency'):.3f} ({100 * mean_of(own, 'probe'):.0f} %)"
            for own in here.values()
        ]
        none, ours, oracle = (
            mean_of(here[m], "consistency") for m in ("none", main_method(found), "ceiling")
        )
        form = [shipped[name]["form"], f"{shipped[name]['bytes']:,}"] if shipped else ["", ""]
        closed = f"{100 * (ours - none) / (oracle - none):.0f} %" if oracle > none else ""
        lines.append([name, kind_of(name), *form, *cells, closed])
    names = (NAMES[method] for method in found)
    header = ["topic", "kind", "form", "bytes", *names, "part of the gap closed"]
    return table(header, lines, words=(0, 1, 2))


def forms(results: Path) -> Lines:
    """What each form costs and gives, over the updates that ship; and for how many topics it was chosen."""
    ladders = [row["ladder"] for row in updates(results).values() if row["ladder"]]
    if not ladders:
        raise NotMeasuredError(COMMAND)
    found: dict[str, list[tuple[int, float, bool]]] = {}
    for ladder in ladders:
        best = max(rung["gain"] for rung in ladder)
        for rung in ladder:
            kept = rung["gain"] / best if best > 0 else math.nan
            found.setdefault(rung["form"], []).append((rung["bytes"], kept, rung["chosen"]))
    lines = [
        [
            form,
            f"{np.median([size for size, *_ in rungs]):,.0f}",
            f"{100 * np.nanmean([kept for _, kept, _ in rungs]):.0f} %",
            f"{sum(chosen for *_, chosen in rungs)} of {len(rungs)}",
        ]
        for form, rungs in sorted(found.items(), key=lambda each: np.median([size for size, *_ in each[1]]))
    ]
    return table(["form", "median bytes", "part of the best form's gain", "chosen for"], lines)


def losing_topics(results: Path) -> Lines:
    """The topics on which a baseline of equal or smaller size is as good as MAKD's full form or better."""
    found = scores(results)
    rivals = [method for method in BASELINES if method in found]
    if not rivals:
        raise NotMeasuredError(COMMAND)
    lines = []
    for name in topics_of(found["makd"]):
        here = {
            method: mean_of([row for row in found[method] if row["topic"] == name], "consistency")
            for method in ("makd", *rivals)
        }
        ahead = [f"{NAMES[m]} {here[m]:.3f}" for m in rivals if here[m] >= here["makd"]]
        if ahead:
            lines.append([name, f"{here['makd']:.3f}", ", ".join(ahead)])
    header = ["topic", NAMES["makd"], "as good or better"]
    return table(header, lines, words=(0, 2)) if lines else ["Nowhere."]


def study_points(rows: Sequence[Row], setting: str, topic: str) -> list[tuple[Any, float]]:
    """(value of the setting, consistency) of one topic's study, training seed 0."""
    bits = str(base_config(rows)["bits"])
    own = [row for row in differing(rows, **{setting: ...}) if row["topic"] == topic]
    return sorted((row["config"][setting], row["rows"][bits]["consistency"]) for row in own)


def training(results: Path) -> Lines:
    """How the methods of the comparison were trained."""
    rows = trainings(results)
    base, seeds = base_config(rows), len({row["config"]["seed"] for row in rows})
    said = (
        f"Every method learns from the same {base['images']} cloud images of a topic, for at most "
        f"{base['steps']} steps of {base['batch']}. The LoRA has rank {base['rank']} and {base['bits']} bits "
        f"per number; the metaword has {base['tokens']} tokens, and one more for each of several triggers. "
        f"{'There is one training seed.' if seeds == 1 else f'There are {seeds} training seeds.'}"
    )
    missing = [NAMES[method] for method in METHODS if not differing(rows, method=method, seed=...)]
    return [f"{said} Not trained: {', '.join(missing)}." if missing else said]


def settings(results: Path) -> Lines:
    """One setting at a time."""
    rows = trainings(results)
    if not study_topics(rows):
        raise NotMeasuredError(COMMAND)
    lines = []
    for setting in STUDIES:
        points = [dict(study_points(rows, setting, topic)) for topic in study_topics(rows)]
        shown = [f"{value}: {np.mean([each[value] for each in points]):.3f}" for value in points[0]]
        lines.append([setting, ", ".join(shown)])
    plot = f"![{SETTINGS_PLOT}](plots/results-knowledge-updates-settings.svg)"
    return [plot, "", *table(["setting", "consistency by its value"], lines, words=(0, 1))]


def sizes_tried(results: Path) -> list[Row]:
    """Sizes of update, the largest first, with the part of the default update's gain that each keeps."""
    rows = trainings(results)
    base = base_config(rows)
    studied = study_topics(rows) or topics_of(rows)
    none = mean_of([row for row in scores(results)["none"] if row["topic"] in studied], "consistency")
    tried: dict[tuple[str, int, int], list[tuple[int, float]]] = {}
    for row in differing(rows, rank=..., layers=...):
        if row["topic"] in studied:
            for bits in map(int, row["bytes"]):
                what = (row["config"]["layers"], row["config"]["rank"], bits)
                found = (row["bytes"][str(bits)], row["rows"][str(bits)]["consistency"])
                tried.setdefault(what, []).append(found)
    means = {what: float(np.mean([score for _, score in each])) for what, each in tried.items()}
    whole = means[(base["layers"], base["rank"], base["bits"])] - none
    return sorted(
        (
            {
                "layers": layers,
                "rank": rank,
                "bits": bits,
                "bytes": max(size for size, _ in each),
                "consistency": means[layers, rank, bits],
                "gain_kept": (means[layers, rank, bits] - none) / whole,
            }
            for (layers, rank, bits), each in tried.items()
        ),
        key=lambda row: -row["bytes"],
    )


def smallest(results: Path) -> Row:
    """The smallest update that keeps enough of the gain."""
    return [row for row in sizes_tried(results) if row["gain_kept"] >= ENOUGH][-1]


def sizes(results: Path) -> Lines:
    """How small an update may be."""
    lines = [
        [
            row["layers"],
            str(row["rank"]),
            str(row["bits"]),
            f"{row['bytes']:,}",
            f"{row['consistency']:.3f}",
            f"{100 * row['gain_kept']:.0f} %",
        ]
        for row in sizes_tried(results)
    ]
    return table(["layers", "rank", "bits", "bytes", "consistency", "gain kept"], lines)


def pairs(results: Path) -> Lines:
    """Two updates in one prompt."""
    lines = []
    for pair in read_rows(results / FOLDER / "compositions.jsonl"):
        names = ("none", pair["style"], pair["subject"], "both", "ceiling")
        shown = [f"{mean_of(pair['rows'][name], 'consistency'):.3f}" for name in names]
        probe = f"{100 * mean_of(pair['rows']['both'], 'probe'):.0f} %"
        lines.append([f"{pair['style']} + {pair['subject']}", *shown, probe])
    header = [
        "style + subject",
        "none",
        "style",
        "subject",
        "both",
        "upper bound",
        "attributes correct, both",
    ]
    return table(header, lines)


def methods_plot(results: Path) -> Any:
    """Consistency of every method, over all topics and by what is new about them."""
    found = scores(results)
    kinds = {
        "all topics": ("style", "subject", "vocabulary", "combination"),
        "new shapes": ("style", "subject", "combination"),
        "new words": ("vocabulary",),
    }
    figure, axes = plots.panels(len(kinds), height_in=3.1, sharey=True, sharex=True)
    special = {main_method(found): plots.OURS, "ceiling": "#000000"}
    colors = [special.get(method, plots.BASE) for method in found]
    names = [NAMES[method].split(":")[0] for method in found]
    for axis, (title, kind) in zip(axes[0], kinds.items(), strict=True):
        means, intervals = [], []
        for own in found.values():
            here = [row for row in own if kind_of(row["topic"]) in kind]
            mean, ci95 = bootstrap_mean(
                [row["consistency"] for row in here], groups=[row["topic"] for row in here]
            )
            means.append(mean)
            intervals.append(ci95)
        plots.dots(axis, names, means, intervals, colors=colors)
        axis.set_title(title)
        axis.set_xlim(0.3, 1.15)
    figure.supxlabel("consistency with the cloud's images", fontsize=10.5)
    return figure


def settings_plot(results: Path) -> Any:
    """Consistency against rank, cloud images and metaword tokens."""
    rows = trainings(results)
    if not study_topics(rows):
        raise NotMeasuredError(COMMAND)
    shown = {"rank": "rank of the LoRA", "images": "cloud images", "tokens": "tokens of the metaword"}
    figure, axes = plots.panels(len(shown), height_in=2.7, sharey=True)
    for axis, (setting, label) in zip(axes[0], shown.items(), strict=True):
        for topic, color in zip(study_topics(rows), (plots.OURS, plots.SECOND), strict=True):
            points = study_points(rows, setting, topic)
            plots.line(axis, [each for each, _ in points], [each for _, each in points], topic, color)
        ticks = [value for value, _ in points]
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(value) for value in ticks])
        axis.minorticks_off()
        axis.set_xlabel(label)
    axes[0, 0].set_ylabel("consistency")
    plots.label_lines(axes[0, -1])
    return figure


REPORT = Report(
    page="results-knowledge-updates.md",
    command=COMMAND,
    values=values,
    tables={
        "figures": figures_table(
            [
                "gka_gain_percent", "gka_ceiling_share", "gka_probe_heldout_accuracy",
                "gka_lead_over_best_baseline_percent",
                "update_bytes", "update_bytes_median", "update_model_share",
            ]
        ),
        "methods": methods,
        "topics": topics,
        "training": training,
        "forms": forms,
        "losing-topics": losing_topics,
        "settings": settings,
        "sizes": sizes,
        "pairs": pairs,
    },
    plots={"methods": methods_plot, "settings": settings_plot},
    partial=True,
)  # fmt: skip
