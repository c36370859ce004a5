"""Quality of an autoencoder on held-out images: figures in total and by style, and an image strip."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dekag.metrics.image import METRICS
from dekag.training.data import Pixels, batches, image_number
from dekag.training.vae import reconstructed
from dekag.training.worlds import World

SHOWN = 10
TIMED = 10


def measure(vae: Any, pixels: Pixels, world: World) -> tuple[dict[str, Any], Pixels, list[int]]:
    """Quality of `vae` on held-out images 0..n-1 of `world`.

    Returns:
        `psnr_db` and `ssim` (means), the worst and the best PSNR, PSNR and SSIM of each style, and the times
        to encode and to decode one image, ms; the reconstructions, in the form of `pixels`; and the numbers
        of the images, from the worst to the best.
    """
    back = reconstructed(vae, pixels)
    psnr = METRICS["psnr_db"].score(back, pixels)
    ssim = np.concatenate(
        [METRICS["ssim"].score(back[part], pixels[part]) for part in batches(len(pixels), 20)]
    )
    styles = defaultdict(list)
    for n in range(len(pixels)):
        styles[image_number("validation", n, world)[0].style].append(n)
    encode_ms, decode_ms = _milliseconds(vae, pixels.shape[1])
    quality = {
        "pictures": len(pixels),
        "psnr_db": round(float(psnr.mean()), 2),
        "ssim": round(float(ssim.mean()), 4),
        "worst_psnr_db": round(float(psnr.min()), 2),
        "best_psnr_db": round(float(psnr.max()), 2),
        "styles": {
            name: {"psnr_db": round(float(psnr[of].mean()), 2), "ssim": round(float(ssim[of].mean()), 4)}
            for name, of in sorted(styles.items())
        },
        "encode_ms": encode_ms,
        "decode_ms": decode_ms,
    }
    return quality, back, [int(n) for n in psnr.argsort()]


@torch.inference_mode()
def _milliseconds(vae: Any, size: int) -> tuple[float, float]:
    """Shortest of several times to encode and to decode one image, ms."""
    image = torch.zeros(1, 3, size, size).to(vae.device, memory_format=torch.channels_last)
    latent = vae.encode(image).latent_dist.mean
    quickest = []
    for work, given in ((vae.encode, image), (vae.decode, latent)):
        seconds = []
        for _ in range(TIMED):
            start = time.perf_counter()
            work(given)
            seconds.append(time.perf_counter() - start)
        quickest.append(round(1000 * min(seconds), 1))
    return quickest[0], quickest[1]


def save_strip(path: Path, pixels: Pixels, back: Pixels, order: list[int]) -> None:
    """Save four columns: the ten worst images, their reconstructions, the ten best, their reconstructions."""
    shown = min(SHOWN, len(order) // 2)
    rows = [
        np.concatenate([each for n in pair for each in (pixels[n], back[n])], axis=1)
        for pair in zip(order[:shown], order[::-1][:shown], strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path, quality=92)
