"""What codecs and their adapters are trained on: latents, and the states of their prompts."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from dekag.generation.placement import device_and_dtype, other_devices
from dekag.generation.side_information import SideInformation
from dekag.training.data import image_number, picked
from dekag.training.latents import encoded_scenes, weights_hash
from dekag.training.worlds import World

WITHHELD = 0.1
"""Fraction of training images whose prompt is withheld, so that a codec also works without."""


@dataclass(frozen=True)
class Examples:
    """Latents, and the states of their prompts.

    Example:
        >>> import torch
        >>> from dekag.training.examples import Examples
        >>> examples = Examples.of(torch.zeros(2, 4, 32, 32), [torch.ones(5, 128), torch.ones(3, 128)])
        >>> len(examples), examples.text.shape
        (2, torch.Size([2, 5, 128]))

    Attributes:
        latents: (n, channels, h, w).
        text: (n, tokens, text_width), zero where a prompt says nothing; None: no prompt is known.
    """

    latents: torch.Tensor
    text: torch.Tensor | None = None

    @classmethod
    def of(cls, latents: torch.Tensor, text: Sequence[torch.Tensor] | None = None) -> Self:
        """Latents (n, channels, h, w), and the states (tokens, text_width) of each one's prompt."""
        return cls(latents, None if text is None else pad_sequence(list(text), batch_first=True).half())

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def text_width(self) -> int:
        """Width of the prompts' states; 0 if no prompt is known."""
        return 0 if self.text is None else int(self.text.shape[2])

    def rows(self, part: slice) -> Self:
        """Some of the rows."""
        return type(self)(self.latents[part], None if self.text is None else self.text[part])

    def draw(
        self, count: int, generator: torch.Generator, *, crop: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Random rows: latents (count, channels, h, w) and states (count, tokens, text_width), both float32.

        Args:
            count: number of rows.
            generator: source of all draws.
            crop: side of random squares to cut out of the latents; None: whole latents.
        """
        pick = torch.randint(len(self), (count,), generator=generator)
        latents = picked(self.latents, pick, crop, generator)
        if self.text is None:
            return latents, None
        kept = torch.rand(count, 1, 1, generator=generator) >= WITHHELD
        return latents, self.text[pick].float() * kept


def examples_hash(sets: Sequence[Examples]) -> str:
    """SHA-256 (hex) of sets of examples: of all latents and of the states of all prompts.

    Example:
        >>> import torch
        >>> from dekag.training.examples import Examples, examples_hash
        >>> examples_hash([Examples(torch.zeros(2, 4, 32, 32))])[:12]
        'e65c0775e862'
    """
    digest = hashlib.sha256()
    for each in sets:
        for part in (each.latents, each.text):
            digest.update(b"none" if part is None else f"{part.dtype} {tuple(part.shape)}".encode())
            if part is not None:
                digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()


def states_of(
    prompts: Sequence[str], side_information: SideInformation, cache: Path | None = None
) -> torch.Tensor:
    """States of prompts, (n, tokens, width) float16, zero after each one's last token.

    Args:
        prompts: one for each latent; an empty one says nothing.
        side_information: the edge's text encoder.
        cache: file to keep them in, or to read them from if an earlier run wrote it.
    """
    if cache is not None and cache.exists():
        return torch.from_numpy(np.load(cache, mmap_mode="c"))
    rows = [
        side_information.states(each).half() for each in tqdm(prompts, desc="read prompts", mininterval=5)
    ]
    states = pad_sequence(rows, batch_first=True)
    if cache is not None:
        unfinished = cache.with_suffix(".new.npy")
        np.save(unfinished, states.numpy())
        unfinished.rename(cache)
    return states


def rendered_examples(
    cache: Path,
    vae: Any,
    count: int,
    *,
    world: World,
    side_information: SideInformation | None = None,
    workers: int = 2,
) -> Examples:
    """Latents of training images 0..count-1 and, with the edge's text encoder, a caption of each.

    Args:
        cache: cache folder.
        vae: the autoencoder, which encodes where it is.
        count: number of images.
        world: world to render and describe.
        side_information: reads the captions, which use all of the cloud's words; None: no prompts.
        workers: number of rendering processes.
    """
    device, _ = device_and_dtype(vae)
    latents = encoded_scenes(cache, vae, count, world=world, workers=workers, device=device)
    if side_information is None:
        return Examples(latents)
    scenes = (image_number("train", n, world) for n in range(count))
    captions = [world.caption(scene, random.Random(-seed - 3), cloud=True) for scene, seed in scenes]
    encoder = side_information.encoder
    known = (weights_hash(encoder), str(count), *other_devices(encoder))
    name = f"states-{world.profile}-{world.version}-{'-'.join(known)}.npy"
    return Examples(latents, states_of(captions, side_information, cache / name))


def draw_mixed(
    sets: Sequence[Examples], count: int, generator: torch.Generator, *, crop: int | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As `Examples.draw`, with equally many rows of each set; all sets have prompts, or none has."""
    parts = [count * (i + 1) // len(sets) - count * i // len(sets) for i in range(len(sets))]
    drawn = [each.draw(part, generator, crop=crop) for each, part in zip(sets, parts, strict=True)]
    latents = torch.cat([each for each, _ in drawn])
    rows = [row for _, text in drawn if text is not None for row in text]
    return latents, pad_sequence(rows, batch_first=True) if rows else None
