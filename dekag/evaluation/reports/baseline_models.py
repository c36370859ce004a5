"""docs/results-first-image.md from results/first-image/: the models before any alignment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dekag.documents import read_json
from dekag.evaluation import plots
from dekag.evaluation.pages import Lines, Report, figures_table, read_rows, table
from dekag.evaluation.prompts import edge_prompts, held_out_combinations, held_out_share
from dekag.evaluation.studies.baseline_models import COMMAND, FOLDER, accuracy
from dekag.evaluation.studies.naming import FOLDER as NAMING
from dekag.evaluation.studies.naming import JUDGED, KEY, MARKS

KEYS = (
    "vae_psnr_db",
    "vae_ssim",
    "probe_cloud_accuracy",
    "probe_edge_known_accuracy",
    "probe_edge_heldout_accuracy",
    "outline_cloud_agreement",
    "outline_edge_known_agreement",
    "outline_edge_heldout_agreement",
    "codec_clean_gap_db",
    "codec_rayleigh_0db_psnr_db",
    "codec_rayleigh_5db_psnr_db",
    "codec_rayleigh_10db_psnr_db",
)
NAMING_KEYS = tuple(
    f"naming_{role}_{what}_percent" for what in (*JUDGED, "acceptable") for role in ("cloud", "edge")
)
"""Of `dekag experiment naming`."""
DRAWN = {
    "cloud": ("cloud, all topics", plots.BASE),
    "edge_known": ("edge, topics it knows", plots.BASE),
    "edge_heldout": ("edge, topics it never learned", plots.SECOND),
}


def values(results: Path) -> Mapping[str, str]:
    """How narrow the test set is, and what was named of prompts of two subjects and of one."""
    counts = held_out_combinations()
    shown = len(read_rows(results / FOLDER / "edge_known.jsonl"))
    scenes = [scene for scene, _, _ in edge_prompts(shown) if scene is not None]
    return {
        "edge_subjects": str(len(counts)),
        "edge_combinations": f"{sum(every for _, every in counts.values()):,}",
        "held_out": str(sum(held_out for held_out, _ in counts.values())),
        "held_out_once": str(sum(held_out == 1 for held_out, _ in counts.values())),
        "held_out_share": f"{100 * held_out_share():.0f} %",
        "shown": str(shown),
        "shown_combinations": str(len({(each.subject, each.colour, each.setting) for each in scenes})),
        **naming_values(results),
    }


def naming_values(results: Path) -> dict[str, str]:
    """How many prompts of two subjects were named right, and how many images show a single one twice."""
    folder = results / NAMING
    if not (folder / "scores.json").exists():
        return {}
    scores = read_json(folder / "scores.json")
    pairs = {row["number"] for row in read_json(folder / KEY) if "companion" in row}
    wrong = {each["number"] for own in scores.values() for each in own["wrong"] if each["of"] == "subject"}
    twice = {f"naming_{model}_twice": len(own.get("twice", [])) for model, own in scores.items()}
    counts = {"naming_pairs": len(pairs), "naming_pairs_right": len(pairs - wrong), **twice}
    return {name: str(count) for name, count in counts.items()} | {"naming_twice": str(sum(twice.values()))}


def attributes_plot(results: Path) -> Any:
    """Visible attributes that are correct, by generator and prompts."""
    means, intervals = [], []
    for name in DRAWN:
        mean, ci95 = accuracy(read_rows(results / FOLDER / f"{name}.jsonl"))
        means.append(mean)
        intervals.append(ci95 or [mean, mean])
    figure, axes = plots.panels(height_in=1.8)
    names, colors = zip(*DRAWN.values(), strict=True)
    plots.dots(axes[0, 0], names, means, intervals, colors=colors, text="{:.0f} %")
    axes[0, 0].set_xlim(50, 100)
    axes[0, 0].set_xlabel("visible attributes correct, %")
    return figure


def steps_table(results: Path) -> Lines:
    """The edge's images by the sampler's steps, on topics that it knows and was taught."""
    rows = read_rows(results / FOLDER / "steps.jsonl")
    lines = []
    for steps in dict.fromkeys(row["steps"] for row in rows):
        own = [row for row in rows if row["steps"] == steps]
        cells = []
        for row in own:
            low, high = row["consistency_ci95"] or (row["consistency"],) * 2
            cells += [f"{row['consistency']:.3f} ({low:.3f} .. {high:.3f})", f"{100 * row['probe']:.1f} %"]
        lines.append([f"**{steps}**" if own[0]["own"] else str(steps), *cells])
    kinds = dict.fromkeys(row["kind"] for row in rows)
    header = [f"{kind} topics: {what}" for kind in kinds for what in ("consistency", "attributes correct")]
    return table(["steps", *header], lines)


def naming_table(results: Path) -> Lines:
    """What somebody saw in the images of each generator who did not know the prompts."""
    path = results / NAMING / "scores.json"
    lines = []
    for model, scores in (read_json(path) if path.exists() else {}).items():
        cells = [
            "{percent:.0f} % ({right} of {asked}; {low:.0f} .. {high:.0f})".format(
                **scores[part], low=scores[part]["ci95"][0], high=scores[part]["ci95"][1]
            )
            for part in JUDGED
        ]
        lines.append([model, *cells, *(str(scores["marks"][mark]) for mark in MARKS)])
    return table(["generator", *(f"{part} right" for part in JUDGED), *MARKS], lines)


REPORT = Report(
    page="results-first-image.md",
    command=COMMAND,
    values=values,
    tables={"figures": figures_table((*KEYS, *NAMING_KEYS)), "steps": steps_table, "naming": naming_table},
    partial=True,
    plots={"attributes": attributes_plot},
)
