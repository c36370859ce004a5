"""`dekag compare`: one's own curve beside others, with BD-rate and BD-PSNR."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dekag.console import plain_console
from dekag.errors import InvalidInputError
from dekag.files import check_folder


def compare(
    ours: Annotated[str, typer.Argument(help="JSON file with the curve to judge, in CompressAI's shape.")],
    theirs: Annotated[
        list[str],
        typer.Argument(
            help="Curves to compare it with: JSON files, or names of published curves such as kodak/vtm."
        ),
    ],
    metric: Annotated[str, typer.Option(help="Metric to compare: psnr or ms-ssim.")] = "psnr",
    plot: Annotated[
        Path | None, typer.Option(help="SVG file for a plot of all curves. Default: no plot.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare a curve of quality against rate with others: BD-rate, BD-PSNR and a plot.

    A negative BD-rate means that OURS needs a lower rate for the same quality; a positive BD-PSNR means that
    it has a higher quality at the same rate.
    """
    from dekag.evaluation import curves, plots

    if metric not in curves.METRICS:
        raise InvalidInputError("--metric", f"one of {', '.join(curves.METRICS)}", metric)
    if plot is not None:
        if plot.suffix.lower() != ".svg":
            raise InvalidInputError("--plot", "a file ending in .svg", plot)
        check_folder(plot.parent)
    mine, others = curves.read_curve(ours), [curves.read_curve(each) for each in theirs]
    found = [curves.compare(mine, each, metric) for each in others]
    if plot is not None:
        plots.write_plot(curves.plot([mine, *others], metric), plot)
    if as_json:
        rows = [
            {"ours": mine.name, "theirs": each.name, "source": each.source, **asdict(result)}
            for each, result in zip(others, found, strict=True)
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    over_snr = mine.axis == "snr_db"
    table = Table(title=f"{mine.name}, compared over {curves.AXES[mine.axis]}", title_justify="left")
    table.add_column("against")
    quality = "PSNR" if metric == "psnr" else "MS-SSIM"
    table.add_column(f"SNR at equal\n{quality}, dB" if over_snr else "BD-rate, %", justify="right")
    table.add_column(f"BD-{quality}, dB", justify="right")
    table.add_column(f"shared range\nof {quality}", justify="right")
    table.add_column("curve from")
    for each, result in zip(others, found, strict=True):
        saved = result.snr_db if over_snr else result.rate_percent
        table.add_row(
            each.name,
            _signed(saved),
            _signed(result.quality_db),
            f"{100 * result.overlap:.0f} %",
            "publication" if each.source else "own file",
        )
    console = plain_console()
    console.print(table)
    console.print(
        f"shared range: the part of the range of {quality} of both curves that both reach; below half, the "
        "means say little.",
        soft_wrap=True,
    )
    for each in others:
        if each.source:
            typer.echo(f"{each.name}: {each.source}")
    if plot is not None:
        console.print(f"Plot: {plot}", soft_wrap=True)


def _signed(value: float | None) -> str:
    return "no common range" if value is None else f"{value:+.2f}"
