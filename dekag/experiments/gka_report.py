"""What `dekag experiment gka` found: figures, tables, plots and the page, all from one measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dekag.documents import read_json
from dekag.experiments.consistency import bootstrap_ci95, mean_of
from dekag.experiments.files import plt, write_plot, write_rows
from dekag.experiments.gka import BITS, STUDIES, STUDY_TOPICS, Cell, Measured, Row, measure, sample_rows
from dekag.experiments.headline import RESULTS, record
from dekag.generation.profile import load_profile
from dekag.makd.config import METHODS, DistillConfig
from dekag.world import TOPICS
from dekag.world.sheet import save_sheet

COMMAND = "dekag experiment gka"
FOLDER = "gka"
NAMES = {
    "none": "no alignment",
    "metaword": "metaword only",
    "lora": "LoRA only",
    "lora-equal-bytes": "LoRA only, equal bytes",
    "full": "full fine-tune",
    "makd": "**MAKD**",
    "ceiling": "ceiling: cloud, another seed",
}
# baselines whose update is as large as MAKD's or smaller, to within one percent
RIVALS = ("metaword", "lora", "lora-equal-bytes")


def run_gka(*, prompts: int, seeds: int, workers: int, profile: str, results: Path = RESULTS) -> None:
    """Measure what is not measured yet, then write figures, tables, plots and page.

    Args:
        prompts: test prompts of each topic.
        seeds: training seeds.
        workers: processes, one thread each.
        profile: the models.
        results: where headline.json is.
    """
    base = DistillConfig()
    measured = measure(base, profile=profile, prompts=prompts, seeds=seeds, workers=workers)
    samples = sample_rows(base, profile=profile, prompts=prompts)
    save_sheet(samples, results / FOLDER / "samples.png")
    edge_bytes = sum(file.stat().st_size for file in Path(load_profile(profile).edge.path).rglob("*.*"))
    write(measured, base, results, Path("docs/results-gka.md"), edge_bytes)


def rows_of(measured: Measured, method: str, topics: Sequence[str], base: DistillConfig) -> list[Row]:
    """One row for each topic and test prompt: scores averaged over the training seeds."""
    found: list[Row] = []
    for topic in topics:
        if method in ("none", "ceiling"):
            found += [{**row, "topic": topic} for row in measured.ends[topic][method]]
            continue
        runs = [
            result["rows"][str(base.bits)]
            for cell, result in measured.cells.items()
            if cell.topic == topic and _is_main(cell, base, method)
        ]
        for same in zip(*runs, strict=True):
            means = {name: mean_of(same, name) for name in ("clip", "dino", "consistency", "probe")}
            found.append({**same[0], **means, "topic": topic})
    return found


def _is_main(cell: Cell, base: DistillConfig, method: str) -> bool:
    wanted = {**base.as_dict(), "method": method, "seed": cell.config.seed}
    return cell.config.as_dict() == wanted


def column(rows: Sequence[Row], name: str = "consistency") -> list[float]:
    """One score of all rows."""
    return [row[name] for row in rows]


def gain(before: np.ndarray, after: np.ndarray) -> float:
    """Gain of the mean, percent."""
    return float(100 * (after.mean() / before.mean() - 1))


def write(measured: Measured, base: DistillConfig, results: Path, page: Path, edge_bytes: int) -> None:
    """Write results/gka/*, the figures of headline.json and the page."""
    folder = results / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    methods = ["none", *(m for m in METHODS if m != "makd"), "makd", "ceiling"]
    rows = {method: rows_of(measured, method, list(TOPICS), base) for method in methods}
    scored = [{"method": method, **row} for method in methods for row in rows[method]]
    write_rows(folder / "methods.jsonl", scored)
    trainings = [
        {**result, "rows": {bits: _summary(scores) for bits, scores in result["rows"].items()}}
        for result in measured.cells.values()
    ]
    write_rows(folder / "trainings.jsonl", trainings)
    write_rows(folder / "compositions.jsonl", measured.pairs)
    figures(measured, rows, base, results, edge_bytes)
    plot_methods(rows, folder / "methods.svg")
    plot_studies(measured, base, folder / "studies.svg")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(page_text(measured, rows, base, results))


def figures(
    measured: Measured, rows: dict[str, list[Row]], base: DistillConfig, results: Path, edge_bytes: int
) -> None:
    """The figures of results/headline.json."""
    none, makd, ceiling = (column(rows[name]) for name in ("none", "makd", "ceiling"))
    count = len(makd)

    def put(key: str, value: float, unit: str, ci95: list[float] | None, n: int = count) -> None:
        record(key, value, unit, command=COMMAND, count=n, ci95=ci95, results=results)

    put("gka_gain_percent", *_with_unit(bootstrap_ci95(gain, none, makd), "%"))
    share = bootstrap_ci95(
        lambda n, m, c: 100 * float((m.mean() - n.mean()) / (c.mean() - n.mean())), none, makd, ceiling
    )
    put("gka_ceiling_share", *_with_unit(share, "%"))
    probe = bootstrap_ci95(lambda p: 100 * float(p.mean()), column(rows["makd"], "probe"))
    put("gka_probe_heldout_accuracy", *_with_unit(probe, "%"))
    best = max(RIVALS, key=lambda method: mean_of(rows[method], "consistency"))
    lead = bootstrap_ci95(gain, column(rows[best]), makd)
    put("gka_lead_over_best_baseline_percent", *_with_unit(lead, "%"))
    sizes = [r["bytes"][str(base.bits)] for c, r in measured.cells.items() if _is_main(c, base, "makd")]
    put("update_bytes", max(sizes), "B", None, len(sizes))
    put("update_model_share", 100 * max(sizes) / edge_bytes, "%", None, len(sizes))


def _with_unit(result: tuple[float, list[float]], unit: str) -> tuple[float, str, list[float]]:
    return result[0], unit, result[1]


def _summary(rows: Sequence[Row]) -> dict[str, float]:
    return {name: round(mean_of(rows, name), 4) for name in ("clip", "dino", "consistency", "probe")}


def smallest(measured: Measured, base: DistillConfig) -> list[dict[str, Any]]:
    """Sizes of update that were tried, the largest first, with the share of the whole gain that each keeps.

    Over the study topics and training seed 0; the whole gain is that of the default update.
    """
    topics = list(STUDY_TOPICS)
    none = mean_of(rows_of(measured, "none", topics, base), "consistency")
    tried: dict[tuple[str, int, int], list[Row]] = {}
    sizes: dict[tuple[str, int, int], list[int]] = {}
    for cell, result in measured.cells.items():
        config = cell.config
        plain = {**base.as_dict(), "rank": config.rank, "layers": config.layers}
        if cell.topic not in topics or config.as_dict() != plain:
            continue
        for bits in BITS:
            what = (config.layers, config.rank, bits)
            tried.setdefault(what, []).extend(result["rows"][str(bits)])
            sizes.setdefault(what, []).append(result["bytes"][str(bits)])
    whole = mean_of(tried[(base.layers, base.rank, base.bits)], "consistency") - none
    found = [
        {
            "layers": layers,
            "rank": rank,
            "bits": bits,
            "bytes": max(sizes[(layers, rank, bits)]),
            "consistency": mean_of(rows, "consistency"),
            "gain_kept": (mean_of(rows, "consistency") - none) / whole,
        }
        for (layers, rank, bits), rows in tried.items()
    ]
    return sorted(found, key=lambda each: -each["bytes"])


def plot_methods(rows: dict[str, list[Row]], path: Path) -> None:
    """Consistency by method and kind of topic."""
    kinds = ("style", "subject", "vocabulary")
    figure, axis = plt.subplots(figsize=(9, 3.6), layout="constrained")
    for i, (method, scores) in enumerate(rows.items()):
        means, errors = [], []
        for kind in kinds:
            values = column([row for row in scores if TOPICS[row["topic"]].kind == kind])
            mean, (low, high) = bootstrap_ci95(lambda v: float(v.mean()), values)
            means.append(mean)
            errors.append((mean - low, high - mean))
        places = np.arange(len(kinds)) + (i - len(rows) / 2) * 0.12
        axis.bar(places, means, 0.11, yerr=np.array(errors).T, label=NAMES[method].strip("*"), capsize=2)
    axis.set_xticks(range(len(kinds)), kinds)
    axis.set_ylabel("consistency with the cloud")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    write_plot(figure, path)


def plot_studies(measured: Measured, base: DistillConfig, path: Path) -> None:
    """Consistency against rank, cloud pictures and metaword tokens, over the study topics."""
    shown = [name for name in STUDIES if name != "layers"]
    figure, axes = plt.subplots(1, len(shown), figsize=(9, 3), sharey=True, layout="constrained")
    for axis, name in zip(axes, shown, strict=True):
        for topic in STUDY_TOPICS:
            points = study_points(measured, base, name, topic)
            axis.plot(*zip(*points, strict=True), "o-", label=topic)
        axis.set_xscale("log", base=2)
        axis.set_xlabel({"rank": "rank", "images": "cloud pictures", "tokens": "metaword tokens"}[name])
    axes[0].set_ylabel("consistency with the cloud")
    axes[-1].legend(frameon=False)
    write_plot(figure, path)


def study_points(measured: Measured, base: DistillConfig, name: str, topic: str) -> list[tuple[Any, float]]:
    """(value of the setting, consistency) of one topic's study, training seed 0."""
    points = []
    for cell, result in measured.cells.items():
        value = getattr(cell.config, name)
        if cell.topic == topic and cell.config.as_dict() == {**base.as_dict(), name: value}:
            points.append((value, mean_of(result["rows"][str(base.bits)], "consistency")))
    return sorted(points)


def page_text(measured: Measured, rows: dict[str, list[Row]], base: DistillConfig, results: Path) -> str:
    """docs/results-gka.md."""
    figures = read_json(results / "headline.json")
    lines = [
        "# Generation-knowledge alignment: MAKD beside its baselines",
        "",
        f"Written by `{COMMAND}` from its measurements; do not edit. Consistency is the mean of CLIP- and",
        "DINO-score of the edge's picture against the cloud's of the same prompt and seed, by the project's",
        "own small encoders, which never saw a generated picture: do not compare the scores with those of",
        "encoders trained on photographs. Test prompts combine attributes that no training ever drew.",
        "",
        f"Every method learns from the same {base.images} cloud pictures of a topic for at most {base.steps}",
        f"steps of {base.batch}. LoRA: rank {base.rank}, layers: {base.layers}, {base.bits} bits a number.",
        f"Metaword: {base.tokens} tokens, and one for each of several triggers.",
        f"{len(rows['makd']) // len(TOPICS)} test prompts a topic, {_seeds(measured)} training seeds;",
        "intervals are 95 % bootstraps over prompts.",
        "",
        "## Figures",
        "",
        "| figure | value | interval | n |",
        "|---|---:|---:|---:|",
    ]
    for key in (
        "gka_gain_percent", "gka_ceiling_share", "gka_probe_heldout_accuracy",
        "gka_lead_over_best_baseline_percent", "update_bytes", "update_model_share",
    ):  # fmt: skip
        if key in figures:
            each = figures[key]
            interval = "" if each["ci95"] is None else "{:.1f} .. {:.1f}".format(*each["ci95"])
            lines.append(f"| `{key}` | {each['value']:.6g} {each['unit']} | {interval} | {each['n']} |")
    lines += ["", "## Methods", "", "| method | bytes | CLIP | DINO | consistency | interval | probe |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for method, scores in rows.items():
        _, (low, high) = bootstrap_ci95(lambda v: float(v.mean()), column(scores))
        mean = _summary(scores)
        shown = " | ".join(f"{mean[name]:.3f}" for name in ("clip", "dino", "consistency"))
        size = _bytes(measured, base, method)
        lines.append(
            f"| {NAMES[method]} | {size} | {shown} | {low:.3f} .. {high:.3f} | {100 * mean['probe']:.1f} % |"
        )
    lines += [
        "",
        "![Methods](../results/gka/methods.svg)",
        "",
        "### By topic: consistency (probe accuracy)",
        "",
    ]
    lines += ["| topic | kind | " + " | ".join(NAMES[m].strip("*") for m in rows) + " |"]
    lines += ["|---|---|" + "---:|" * len(rows)]
    for name, topic in TOPICS.items():
        values = []
        for scores in rows.values():
            mean = _summary([row for row in scores if row["topic"] == name])
            values.append(f"{mean['consistency']:.3f} ({100 * mean['probe']:.0f} %)")
        lines.append(f"| {name} | {topic.kind} | " + " | ".join(values) + " |")
    lines += ["", "### Where MAKD is not ahead", "", *behind(rows)]
    lines += ["", "## One setting at a time", "", f"Topics {', '.join(STUDY_TOPICS)}; training seed 0.", ""]
    lines += ["![Studies](../results/gka/studies.svg)", ""]
    for setting in STUDIES:
        points = [dict(study_points(measured, base, setting, topic)) for topic in STUDY_TOPICS]
        told = [f"{v}: {np.mean([each[v] for each in points]):.3f}" for v in points[0]]
        lines.append(f"- {setting}: " + ", ".join(told))
    lines += ["", "## How small an update may be", ""]
    lines += ["| layers | rank | bits | bytes | consistency | gain kept |", "|---|---:|---:|---:|---:|---:|"]
    table = smallest(measured, base)
    for each in table:
        lines.append(
            "| {layers} | {rank} | {bits} | {bytes:,} | {consistency:.3f} |".format(**each)
            + f" {100 * each['gain_kept']:.0f} % |"
        )
    enough = [each for each in table if each["gain_kept"] >= 0.95]
    if enough:
        least = enough[-1]
        what = f"rank {least['rank']} on {least['layers']} in {least['bits']} bits"
        lines += ["", f"The smallest that keeps 95 % of the gain takes {least['bytes']:,} bytes: {what}."]
    lines += ["", "## Two updates in one prompt", ""]
    lines += ["| style + subject | none | style | subject | both | ceiling | probe, both |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    for pair in measured.pairs:
        names = ("none", pair["style"], pair["subject"], "both", "ceiling")
        shown = " | ".join(f"{mean_of(pair['rows'][name], 'consistency'):.3f}" for name in names)
        probe = 100 * mean_of(pair["rows"]["both"], "probe")
        lines.append(f"| {pair['style']} + {pair['subject']} | {shown} | {probe:.0f} % |")
    lines += [
        "",
        "## Samples",
        "",
        "![Samples](../results/gka/samples.png)",
        "",
        f"One test prompt of each topic: {', '.join(TOPICS)}.",
        "Rows: the cloud, the edge before, the edge after. Scores per prompt: `results/gka/*.jsonl`.",
        "",
    ]
    return "\n".join(lines)


def behind(rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """A line for each topic on which a baseline of equal or smaller size is as good as MAKD or better."""
    lines = []
    for name in TOPICS:
        own, others = (
            {m: mean_of([row for row in rows[m] if row["topic"] == name], "consistency") for m in methods}
            for methods in (("makd",), RIVALS)
        )
        ahead = {method: value for method, value in others.items() if value >= own["makd"]}
        if ahead:
            told = ", ".join(f"{NAMES[method]} {value:.3f}" for method, value in ahead.items())
            lines.append(f"- {name}: {told}, MAKD {own['makd']:.3f}")
    why = "Why that is so, as far as we know: [decision 6](decisions/0006-the-metaword-stands-in-front.md)."
    return [*lines, "", why] if lines else ["Nowhere."]


def _seeds(measured: Measured) -> int:
    return len({cell.config.seed for cell in measured.cells})


def _bytes(measured: Measured, base: DistillConfig, method: str) -> str:
    sizes = [r["bytes"][str(base.bits)] for c, r in measured.cells.items() if _is_main(c, base, method)]
    return f"{max(sizes):,}" if sizes else ""
