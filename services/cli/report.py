"""Output of the commands that request images: tables and files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

from dekag import client
from dekag.client import LinkReport

_TILE, _LABEL, _GAP = 384, 52, 16  # pixels


def write_images(images: Mapping[str, client.Image], folder: Path) -> list[Path]:
    """Writes one PNG per decoded delivery, and one with all of them side by side; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    width = len(images) * (_TILE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, _TILE + _LABEL + 2 * _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    for index, (delivery, image) in enumerate(images.items()):
        report, left = image.report, _GAP + index * (_TILE + _GAP)
        if image.png is None:
            draw.rectangle((left, _GAP, left + _TILE - 1, _GAP + _TILE - 1), fill="#dddddd")
            draw.text((left + _TILE // 2, _GAP + _TILE // 2), "did not decode", "#555555", font, anchor="mm")
        else:
            path = folder / f"{delivery}.png"
            path.write_bytes(image.png)
            written.append(path)
            picture = Image.open(io.BytesIO(image.png)).convert("RGB")
            sheet.paste(picture.resize((_TILE, _TILE), Image.Resampling.LANCZOS), (left, _GAP))
        quality = f"PSNR {_psnr(report)}" if report.decoded else "no image"
        label = f"{delivery} at {report.snr_db:g} dB\n{report.channel_uses} channel uses, {quality}"
        draw.multiline_text((left, _GAP + _TILE + 6), label, "black", font)
    sheet.save(path := folder / "side-by-side.png")
    return [*written, path]


def _psnr(report: LinkReport) -> str:
    if report.decoded and report.psnr_db is None:
        return "not measured"
    return _or_dash(report.psnr_db, "dB")


def report_table(images: Mapping[str, client.Image]) -> Table:
    """One column per delivery, one row per value of its report."""
    reports = {delivery: image.report for delivery, image in images.items()}
    columns: dict[str, dict[str, str]] = {}
    for delivery, report in reports.items():
        rows = {
            "delivery": "decoded" if report.decoded else "did not decode",
            "fading": report.fading,
            "mean SNR": f"{report.snr_db:g} dB",
            "SNR incl. fading": _or_dash(report.instantaneous_snr_db, "dB"),
            "PSNR": _psnr(report),
            "channel uses": f"{report.channel_uses:,}",
            "pilots": f"{report.pilot_uses:,}",
            "CBR": f"1/{1 / report.cbr:.1f}",
        }
        rows |= {name: "-" if score is None else f"{score:.3f}" for name, score in report.scores.items()}
        rows |= {f"bytes {each.hop}": f"{each.sent_bytes:,}" for each in report.hops}
        if report.latency is not None:
            parts = report.latency.model_dump()
            rows |= {f"latency {part[:-2]}": f"{1e3 * seconds:,.1f} ms" for part, seconds in parts.items()}
        rows |= {f"time {each.stage}": f"{1e3 * each.seconds:,.0f} ms" for each in report.stages}
        columns[delivery] = rows
    table = Table("", *columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for name in dict.fromkeys(name for rows in columns.values() for name in rows):
        table.add_row(name, *(rows.get(name, "-") for rows in columns.values()))
    return table


def _or_dash(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.1f} {unit}"
