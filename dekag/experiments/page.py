"""Pages for people: tables, parts of a page that code writes, and the first page of results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dekag.documents import read_json
from dekag.experiments.headline import RESULTS

BOOK_COMMAND = "dekag results book"
"""What writes the pages that are made from figures and from code."""

FIRST_IMAGE = {
    "vae_psnr_db": "Autoencoder: PSNR of held-out scenes, encoded and decoded",
    "probe_cloud_accuracy": "Cloud-GAI: visible attributes right, held-out prompts of all topics",
    "probe_edge_known_accuracy": "Edge-GAI: visible attributes right, held-out prompts it knows",
    "probe_edge_heldout_accuracy": "Edge-GAI: the same on the topics it never learned",
    "codec_clean_gap_db": "Base codec, clean channel, CBR 1/96: limit of its 64-QAM minus codec, PSNR",
    "codec_rayleigh_0db_psnr_db": "Base codec in Rayleigh fading at 0 dB: PSNR",
    "codec_rayleigh_5db_psnr_db": "Base codec in Rayleigh fading at 5 dB: PSNR",
    "codec_rayleigh_10db_psnr_db": "Base codec in Rayleigh fading at 10 dB: PSNR",
    "bench_chain_ratio": "One request through all services, time relative to one process",
}


def row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def fill(page: Path, part: str, lines: Sequence[str]) -> None:
    """Write `lines` between the comments ``<!-- part`` and ``<!-- /part -->`` of a page that people write.

    Raises:
        ValueError: the page has no such part, or several.
    """
    part = re.escape(part)
    written, found = re.subn(
        rf"(<!-- {part}\b.*?-->\n).*?(<!-- /{part} -->)",
        lambda ends: ends[1] + "\n".join(["", *lines, "", ""]) + ends[2],
        page.read_text(),
        flags=re.DOTALL,
    )
    if found != 1:
        raise ValueError(f"{page} has {found} parts {part}, not one")
    page.write_text(written)


def write_first_image_page(page: Path, results: Path = RESULTS) -> None:
    """Write docs/results-first-image.md from headline.json; what was not measured is said to be missing."""
    figures = read_json(results / "headline.json")
    lines = [
        "# The first image: before any alignment",
        "",
        "Written by `dekag experiment first-image` and `dekag bench chain` from `results/headline.json`;",
        "do not edit.",
        "Held-out prompts are combinations of attributes that no training ever drew. Intervals are 95 %.",
        "",
        "| figure | value | interval | n | key |",
        "|---|---:|---:|---:|---|",
    ]
    for key, words in FIRST_IMAGE.items():
        if key not in figures:
            lines.append(f"| {words} | not measured | | | `{key}` |")
            continue
        figure = figures[key]
        interval = "" if figure["ci95"] is None else "{:.2f} .. {:.2f}".format(*figure["ci95"])
        unit = "" if figure["unit"] == "ratio" else f" {figure['unit']}"
        lines.append(f"| {words} | {figure['value']:.2f}{unit} | {interval} | {figure['n']} | `{key}` |")
    lines += [
        "",
        "![Samples](../results/first-image/samples.png)",
        "",
        "Rows: the edge on prompts that it knows; the cloud on prompts of all topics; the edge on one",
        "prompt of each held-out topic; the cloud on the same prompts and seeds. The gap between the last",
        "two rows is what generation-knowledge alignment is for.",
        "",
        "Lines per picture: `results/first-image/*.jsonl`.",
        "",
    ]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines))
