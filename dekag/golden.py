"""Golden values: what each model of a profile makes of fixed inputs, kept by the hash of that model.

`golden.json` beside a profile was written where its models were measured. Another machine, or another version
of a library, that computes something else with the same weights is found by it before any figure is. They
agree within a tolerance and not to the bit: how sums are split depends on the processor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dekag.documents import read_json
from dekag.errors import InvalidInputError, MismatchError
from dekag.generation.profile import Profile

FILE = "golden.json"
TOLERANCE = 1e-3
"""Largest difference, as a fraction of the values' spread; processors differ by some millionths of it."""

KEPT = 16  # values of each output, evenly spaced
SEED, SIDE, STEPS, GUIDANCE = 7, 64, 2, 3.0  # no profile's settings, so that a value is the model's alone
PROMPT = "a red boat on the beach, pastel style"


class Output(NamedTuple):
    """What a model made of the fixed input.

    Attributes:
        model: what the model is in its profile: "edge", "codec", "knowledge neon".
        model_hash: SHA-256 (hex) of its folder, or of the artifact's content.
        values: real, of any shape.
    """

    model: str
    model_hash: str
    values: torch.Tensor


@dataclass(frozen=True)
class Deviation:
    """How far a model is from its golden values.

    Attributes:
        model, model_hash: as in Output.
        share: largest difference over the spread of the values; None where none are kept for that hash.
    """

    model: str
    model_hash: str
    fraction: float | None

    @property
    def ok(self) -> bool:
        """Whether it computes what it did where its golden values were written."""
        return self.fraction is not None and self.fraction <= TOLERANCE


def outputs(profile: Profile) -> Iterator[Output]:
    """What the models of `profile` make of fixed inputs, one after another; loads each of them."""
    yield from _of_generation(profile)
    yield from _of_transmission(profile)
    if profile.scorer is not None:
        yield from _of_scorer(profile.scorer.clip, profile.scorer.dino)


def write(profile: Profile, folder: Path) -> int:
    """Write golden.json into `folder`, over what was there.

    Returns:
        How many models it holds.
    """
    kept: dict[str, Any] = {}
    for each in outputs(profile):
        spread = float(each.values.std())
        values = [float(f"{value:.7g}") for value in _some(each.values)]
        kept[each.model_hash] = {"model": each.model, "spread": float(f"{spread:.7g}"), "values": values}
    (folder / FILE).write_text(json.dumps({"torch": torch.__version__, "models": kept}, indent=1) + "\n")
    return len(kept)


def compare(profile: Profile, folder: Path) -> Iterator[Deviation]:
    """How far each model of `profile` is from the golden values in `folder`.

    Raises:
        MismatchError: there is no golden.json, or it cannot be read.
    """
    try:
        kept = read_json(folder / FILE)["models"]
        known = {key: (each["spread"], torch.tensor(each["values"])) for key, each in kept.items()}
    except (InvalidInputError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise MismatchError(f"no golden values can be read from {folder / FILE}") from error
    for each in outputs(profile):
        if each.model_hash not in known:
            yield Deviation(each.model, each.model_hash, None)
            continue
        spread, values = known[each.model_hash]
        found = torch.tensor(_some(each.values))
        same = found.shape == values.shape and bool(torch.isfinite(found).all())
        fraction = float((found - values).abs().max()) / spread if same else float("inf")
        yield Deviation(each.model, each.model_hash, fraction)


def _of_generation(profile: Profile) -> Iterator[Output]:
    from dekag.generation.models import Generator
    from dekag.makd.aligned import AlignedGenerator
    from dekag.makd.update import KnowledgeUpdate

    for name, model in (("cloud", profile.cloud), ("edge", profile.edge)):
        generator = Generator.load(model.path, steps=STEPS, guidance_scale=GUIDANCE)
        latents = generator.latents(PROMPT, SEED, width=SIDE, height=SIDE)
        yield Output(name, generator.model_hash, latents)
    decoder = generator.decoder  # the edge's, which is the user's too
    with torch.inference_mode():
        pixels = decoder.vae.decode(latents / decoder.vae.config.scaling_factor).sample
    yield Output("autoencoder", decoder.model_hash, pixels)
    if profile.knowledge is None:
        return
    aligned = AlignedGenerator(generator)
    for folder in sorted(path for path in Path(profile.knowledge).iterdir() if path.is_dir()):
        update = KnowledgeUpdate.load(folder)
        aligned.add(update)
        acting = [update.content_hash]
        drawn = aligned.latents(update.triggers[0], SEED, width=SIDE, height=SIDE, updates=acting)
        yield Output(f"knowledge {update.topic}", update.content_hash, drawn)


def _of_transmission(profile: Profile) -> Iterator[Output]:
    from dekag.cala.aligned import AlignedCodec
    from dekag.cala.conditions import CONDITION_FEATURES
    from dekag.codec import LatentCodec
    from dekag.generation.models import folder_hash

    codec = LatentCodec.load(profile.codec)
    shape = (int(codec.config.latent_channels), SIDE // 8, SIDE // 8)
    latents = torch.randn(1, *shape, generator=torch.Generator().manual_seed(SEED))
    uses = codec.max_channel_uses(shape)
    # unquantised: a symbol that lies between two points of a constellation may snap to either
    with torch.inference_mode():
        symbols = codec.encode(latents, uses, modulation="unquantised")
        decoded = codec.decode(symbols, shape)
    yield Output("codec", folder_hash(profile.codec), _both(symbols, decoded))
    if profile.adapters is None:
        return
    adapted = AlignedCodec.load(profile.codec, profile.adapters)
    condition = torch.linspace(-1, 1, CONDITION_FEATURES)[None]
    symbols = adapted.encode(latents, [uses], condition, modulation="unquantised")
    decoded = adapted.decode(symbols, shape, condition)
    yield Output("adapters", adapted.content_hash, _both(symbols, decoded))


def _of_scorer(clip: str, dino: str) -> Iterator[Output]:
    from dekag.generation.models import folder_hash
    from dekag.metrics.features import ImageScorer

    noise = torch.randint(256, (1, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(SEED))
    features = ImageScorer.load(clip, dino).features(noise.to(torch.uint8).numpy())
    yield Output("clip", folder_hash(clip), features["clip"])
    yield Output("dino", folder_hash(dino), features["dino"])


def _both(symbols: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.view_as_real(symbols).flatten(), latents.flatten()])


def _some(values: torch.Tensor) -> list[float]:
    """KEPT of the values, evenly spaced, the first and the last among them."""
    flat = values.flatten().float()
    picked: list[float] = flat[torch.linspace(0, len(flat) - 1, KEPT).long()].tolist()
    return picked
