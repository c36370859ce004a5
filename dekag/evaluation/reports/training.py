"""docs/training.md from results/training/: the quality of the autoencoders."""

from __future__ import annotations

from pathlib import Path

from dekag.evaluation.pages import Lines, Report, read_measured, table

COMMAND = "dekag train vae-quality"
VAE = Path("training") / "vae-stickers.json"


def quality_table(results: Path) -> Lines:
    """PSNR, SSIM and durations over all held-out images."""
    measured = read_measured(results / VAE)
    quality, size = measured["quality"], measured["size"]
    rows = [
        ["images", f"{quality['pictures']}, {size}x{size} pixels"],
        ["mean PSNR", f"{quality['psnr_db']:.2f} dB"],
        ["lowest and highest PSNR", f"{quality['worst_psnr_db']:.1f} and {quality['best_psnr_db']:.1f} dB"],
        ["mean SSIM", f"{quality['ssim']:.3f}"],
        ["time to encode an image", f"{quality['encode_ms']:.0f} ms"],
        ["time to decode an image", f"{quality['decode_ms']:.0f} ms"],
        ["CPU threads", str(measured["threads"])],
        ["commit, date", f"{measured['commit']}, {measured['date']}"],
    ]
    return table(["", "measured"], rows)


def styles_table(results: Path) -> Lines:
    """PSNR and SSIM by style, best first."""
    styles = read_measured(results / VAE)["quality"]["styles"]
    ordered = sorted(styles.items(), key=lambda style: -style[1]["psnr_db"])
    rows = [[name, f"{each['psnr_db']:.1f}", f"{each['ssim']:.3f}"] for name, each in ordered]
    return table(["style", "PSNR, dB", "SSIM"], rows)


REPORT = Report(
    page="training.md",
    command=COMMAND,
    tables={"vae-quality": quality_table, "vae-styles": styles_table},
)
