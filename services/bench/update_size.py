"""`dekag bench update-size`: sizes of the paper's models, of their updates, and of photographs' files.

The factors are random. Their components are all about as strong, which takes the most bytes: trained ones are
smaller. They say nothing about quality: whether so small an update carries a topic needs trained models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from torch import nn

from dekag.errors import FileError
from dekag.evaluation.pages import Row
from dekag.evaluation.registry import RESULTS
from dekag.evaluation.statistics import POSITIVE, mean_ci95
from dekag.generation.images import ImageFormat, to_format
from dekag.makd.config import BITS, DistillConfig, Layers
from dekag.makd.update import KnowledgeUpdate
from dekag.training.distill import LAYERS
from services.bench.results_io import write_bench

FOLDER = "real-models"
SIDES = (512, 1024)
FORMATS: tuple[ImageFormat, ...] = ("webp", "jpeg")
RANKS = (1, 2, 4, 5, 16)
TOKEN_WIDTH = 1024  # of the text encoder
_PHOTOS = ("*.jpg", "*.jpeg", "*.png", "*.webp")


def run_update_size_bench(photos: Path, *, results: Path = RESULTS) -> list[Row]:
    """Bytes of updates by layers, rank and bits, and of photographs as the files of a conventional delivery.

    Args:
        photos: folder of photographs, each side at least 1024 pixels; cropped to a square and reduced.
        results: folder of the results; writes real-models/bench-update-size.json.

    Returns:
        A row for each model (parameters), for each kind of update (bytes, adapted layers, numbers), and for
        each size and format of the photographs (mean bytes and 95 % confidence interval).

    Raises:
        FileError: a photograph is too small, or there are fewer than two.
    """
    from dekag.training.full_size_models import new_unet, parameters

    console = Console()
    files = sorted(path for pattern in _PHOTOS for path in photos.rglob(pattern))
    pictures = [_square(path) for path in files]
    if len(pictures) < 2:
        raise FileError(photos, f"has {len(pictures)} photographs; two are needed for an interval")
    with torch.device("meta"):
        unet = new_unet()
    rows: list[Row] = [{"model": name, "parameters": count} for name, count in parameters().items()]
    for layers in get_args(Layers):
        for rank in RANKS:
            factors = _factors(unet, layers, rank)
            numbers = sum(factor.numel() for factor in factors.values())
            for bits in BITS:
                size = _update(factors, layers, rank, bits).size_bytes
                row: Row = {"layers": layers, "rank": rank, "bits": bits, "bytes": size}
                rows.append(row | {"adapted_layers": len(factors) // 2, "numbers": numbers})
        console.print(f"{layers}: {len(factors) // 2} layers", highlight=False)
    for side in SIDES:
        for image_format in FORMATS:
            reduced = [picture.resize((side, side), Image.Resampling.LANCZOS) for picture in pictures]
            sizes = [float(len(to_format(np.asarray(each), image_format))) for each in reduced]
            mean, ci95 = mean_ci95(sizes, POSITIVE)
            row = {"side": side, "format": image_format, "mean_bytes": mean, "ci95": ci95, "n": len(sizes)}
            rows.append(row)
            console.print(f"{side}x{side} {image_format}: {mean:,.0f} bytes", highlight=False)
    write_bench("update-size", {"photos": [path.name for path in files]}, rows, results, folder=FOLDER)
    return rows


def _square(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        if min(picture.size) < max(SIDES):
            size = f"{picture.width}x{picture.height}"
            raise FileError(path, f"is {size}; each side must have {max(SIDES)} pixels or more")
        side = min(picture.size)
        return ImageOps.fit(picture.convert("RGB"), (side, side))


def _factors(unet: nn.Module, layers: str, rank: int) -> dict[str, torch.Tensor]:
    """Random LoRA factors of every adapted layer."""
    found = {}
    for name, layer in unet.named_modules():
        if name.endswith(LAYERS[layers]) and isinstance(layer, nn.Linear | nn.Conv2d):
            out, into, *kernel = layer.weight.shape
            found[f"{name}.lora_A.weight"] = torch.randn(rank, into, *kernel)
            found[f"{name}.lora_B.weight"] = torch.randn(out, rank, *(1 for _ in kernel))
    return found


def _update(factors: dict[str, torch.Tensor], layers: Any, rank: int, bits: int) -> KnowledgeUpdate:
    config = DistillConfig(layers=layers, rank=rank, bits=bits)
    info = {
        "topic": "topic",
        "triggers": ["topic"],
        "base_hash": "0" * 64,
        "guidance_scale": config.guidance_scale,
    }
    return KnowledgeUpdate.new(info, torch.randn(config.tokens, TOKEN_WIDTH), factors, bits=bits)
