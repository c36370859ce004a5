"""Latents of the training images, computed once and memory-mapped."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dekag.generation.autoencoder import encode, scaling
from dekag.training.data import SCENES, rendered_scenes, to_tensor
from dekag.training.device import CPU
from dekag.training.worlds import STICKERS, World

CHUNK = 200
AT_ONCE = 20


def autoencoder_hash(vae: Any) -> str:
    """The first twelve hex digits of a hash of an autoencoder: its weights and the scale of its latents."""
    digest = _digest(vae)
    if scale := scaling(vae):
        digest.update(str(sorted(scale.items())).encode())
    found: str = digest.hexdigest()[:12]
    return found


def weights_hash(model: torch.nn.Module) -> str:
    """The first twelve hex digits of a hash of a model's weights, for the names of cache files."""
    found: str = _digest(model).hexdigest()[:12]
    return found


def _digest(model: torch.nn.Module) -> Any:
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        raw = weight.detach().cpu().reshape(-1).view(torch.uint8)  # NumPy has no bfloat16
        digest.update(name.encode() + b"\0" + raw.numpy().tobytes())
    return digest


@torch.inference_mode()
def encoded_scenes(
    cache: Path,
    vae: Any,
    count: int = SCENES,
    *,
    world: World = STICKERS,
    workers: int = 2,
    device: torch.device = CPU,
) -> torch.Tensor:
    """Latents of training images 0..count-1, (count, 4, size / 8, size / 8) float16; resumable.

    Args:
        cache: cache folder; the file name identifies the world, its version, the autoencoder, size and count,
            and a device other than the CPU, which rounds differently.
        vae: the autoencoder; latents are the means of its posterior.
        count: number of images.
        world: world to render.
        workers: number of rendering processes.
        device: device of the autoencoder.
    """
    stem = f"{world.profile}-{world.version}-{autoencoder_hash(vae)}-{world.size}-{count}"
    if device.type != "cpu":
        stem += f"-{device.type}"
    path, progress = cache / f"latents-{stem}.npy", cache / f"latents-{stem}.done"
    done = int(progress.read_text()) if path.exists() and progress.exists() else 0
    cache.mkdir(parents=True, exist_ok=True)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    side = world.size // factor
    shape = (count, vae.config.latent_channels, side, side)
    out = np.lib.format.open_memmap(path, mode="r+" if done else "w+", dtype=np.float16, shape=shape)
    if done < count:
        pixels = rendered_scenes(cache, "train", count, world=world, workers=workers)
        vae = vae.to(device, memory_format=torch.channels_last)
        for start in tqdm(range(done, count, CHUNK), desc="encode images", mininterval=10):
            images = to_tensor(pixels[start : start + CHUNK])
            parts = [encode(vae, part.to(device)).cpu() for part in images.split(AT_ONCE)]
            out[start : start + len(images)] = torch.cat(parts).half().numpy()
            progress.write_text(str(start + CHUNK))
        out.flush()
    return torch.from_numpy(np.load(path, mmap_mode="c"))
