"""Golden values: outputs of each model of a profile for fixed inputs, stored by model hash.

`golden.json` next to a profile was written on the machine that produced the results. It detects a machine, or
a version of a library, that computes something else with the same weights. The hashes of all files in it
detect damaged weights (`dekag.checksums`). The comparison has a tolerance, as
the order of sums depends on the processor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from dekag.checksums import GOLDEN, checksums
from dekag.documents import read_json
from dekag.errors import InvalidInputError, MismatchError
from dekag.profile import Profile

if TYPE_CHECKING:
    from dekag.cala.aligned_codec import AlignedCodec
    from dekag.pixel_modules import AnyPixelCodec

FILE = GOLDEN
TOLERANCE = 1e-3
"""Largest difference relative to the spread of the values; processors differ by a few millionths of it."""

KEPT = 16  # values stored of each output, evenly spaced
SEED, SIDE, STEPS, GUIDANCE = 7, 64, 2, 3.0  # not from a profile, so that values depend on the model alone
PROMPT = "a red car on the beach, pastel style"
TOKENS = 5  # of a prompt that a codec reads


class Output(NamedTuple):
    """Output of a model for the fixed input.

    Attributes:
        model: role of the model in its profile: "edge", "codec", "knowledge neon".
        model_hash: SHA-256 (hex) of its folder, or of the artifact's content.
        values: real, of any shape.
    """

    model: str
    model_hash: str
    values: torch.Tensor


@dataclass(frozen=True)
class Deviation:
    """Deviation of a model from its golden values.

    Attributes:
        model, model_hash: as in Output.
        relative_difference: largest difference over the spread of the values; None if none are stored.
    """

    model: str
    model_hash: str
    relative_difference: float | None

    @property
    def ok(self) -> bool:
        """Whether it is within the tolerance."""
        return self.relative_difference is not None and self.relative_difference <= TOLERANCE


def outputs(profile: Profile) -> Iterator[Output]:
    """Outputs of the models of `profile` for fixed inputs, one after another; loads each model."""
    yield from _of_generation(profile)
    yield from _of_transmission(profile)
    if profile.scorer is not None:
        yield from _of_scorer(profile.scorer.encoders)


def write(profile: Profile, folder: Path) -> int:
    """Write golden.json into `folder`, replacing an existing one: golden values, and hashes of its files.

    Returns:
        Number of models in it.
    """
    kept: dict[str, Any] = {}
    for each in outputs(profile):
        spread = float(each.values.std())
        values = [float(f"{value:.7g}") for value in _some(each.values)]
        kept[each.model_hash] = {"model": each.model, "spread": float(f"{spread:.7g}"), "values": values}
    document = {"torch": torch.__version__, "models": kept, "files": checksums(folder)}
    (folder / FILE).write_text(json.dumps(document, indent=1) + "\n")
    return len(kept)


def compare(profile: Profile, folder: Path) -> Iterator[Deviation]:
    """Deviation of each model of `profile` from the golden values in `folder`.

    Raises:
        MismatchError: golden.json is missing or cannot be read.
    """
    try:
        kept = read_json(folder / FILE)["models"]
        known = {key: (each["spread"], torch.tensor(each["values"])) for key, each in kept.items()}
    except (InvalidInputError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise MismatchError(f"cannot read golden values from {folder / FILE}") from error
    for each in outputs(profile):
        if each.model_hash not in known:
            yield Deviation(each.model, each.model_hash, None)
            continue
        spread, values = known[each.model_hash]
        found = torch.tensor(_some(each.values))
        same = found.shape == values.shape and bool(torch.isfinite(found).all())
        relative_difference = float((found - values).abs().max()) / spread if same else float("inf")
        yield Deviation(each.model, each.model_hash, relative_difference)


def _of_generation(profile: Profile) -> Iterator[Output]:
    from dekag.generation.autoencoder import decode
    from dekag.generation.models import Generator
    from dekag.generation.placement import ON_CPU
    from dekag.generation.profile import Role
    from dekag.makd.aligned_generator import AlignedGenerator
    from dekag.makd.update import KnowledgeUpdate

    # on the CPU in float32, whatever machine and profile say: other devices and formats round differently
    fixed = {"steps": STEPS, "guidance_scale": GUIDANCE, "dtype": "float32", "vae_dtype": "float32"}

    def load(role: Role) -> Generator:
        model = getattr(profile, role).model_copy(update=fixed)
        return Generator.from_profile(profile.model_copy(update={role: model}), role, ON_CPU)

    def of_latents(role: Role, generator: Generator) -> Output:
        latents = generator.latents(PROMPT, SEED, width=SIDE, height=SIDE)
        return Output(role, generator.model_hash, latents)

    yield of_latents("cloud", load("cloud"))  # it leaves memory before the edge is loaded
    generator = load("edge")
    of_edge = of_latents("edge", generator)
    yield of_edge
    decoder = generator.decoder  # the edge's, which the user has, too
    with torch.inference_mode():
        pixels = decode(decoder.vae, of_edge.values)
    yield Output("autoencoder", decoder.model_hash, pixels)
    if profile.knowledge is None:
        return
    aligned = AlignedGenerator(generator)
    for folder in sorted(path for path in Path(profile.knowledge).iterdir() if path.is_dir()):
        update = KnowledgeUpdate.load(folder)
        aligned.add(update)
        active = [update.content_hash]
        drawn = aligned.latents(update.triggers[0], SEED, width=SIDE, height=SIDE, updates=active)
        yield Output(f"knowledge {update.topic}", update.content_hash, drawn)


def _of_transmission(profile: Profile) -> Iterator[Output]:
    from dekag.cala.aligned_codec import AlignedCodec
    from dekag.pixel_modules import load_pixel_codec

    if profile.unaligned_codec is not None:
        yield _sent("unaligned codec", AlignedCodec.load(profile.unaligned_codec))
    yield _sent("codec", AlignedCodec.load(profile.codec))
    if profile.adapters is not None:
        yield _sent("adapters", AlignedCodec.load(profile.codec, profile.adapters))
    if profile.pixel_codec is not None:
        yield _sent_pixels(load_pixel_codec(profile.pixel_codec))


def _sent(name: str, codec: AlignedCodec) -> Output:
    """Symbols and decoded latents of a codec, which reads a prompt if it can."""
    from dekag.cala.conditions import CONDITION_FEATURES

    generator = torch.Generator().manual_seed(SEED)
    shape = (int(codec.base.config.latent_channels), SIDE // 8, SIDE // 8)
    latents = torch.randn(1, *shape, generator=generator)
    text = torch.randn(1, TOKENS, codec.text_width, generator=generator) if codec.text_width else None
    condition = torch.linspace(-1, 1, CONDITION_FEATURES)[None]
    uses = codec.max_channel_uses(shape)
    # unquantised: a symbol between two constellation points may be quantised to either
    symbols = codec.encode(latents, [uses], condition, modulation="unquantised", text=text)
    decoded = codec.decode(symbols, shape, condition, text=text)
    return Output(name, codec.content_hash or codec.base_hash, _both(symbols, decoded))


def _sent_pixels(codec: AnyPixelCodec) -> Output:
    """Symbols and the decoded picture of a codec of pixels."""
    from dekag.cala.conditions import CONDITION_FEATURES

    side = -(-SIDE // codec.step) * codec.step
    shape = (3, side, side)
    picture = 2 * torch.rand(1, *shape, generator=torch.Generator().manual_seed(SEED)) - 1
    condition = torch.linspace(-1, 1, CONDITION_FEATURES)[None]
    symbols = codec.encode(picture, [codec.max_channel_uses(shape)], condition, modulation="unquantised")
    return Output("pixel codec", codec.base_hash, _both(symbols, codec.decode(symbols, shape, condition)))


def _of_scorer(encoders: Mapping[str, Any]) -> Iterator[Output]:
    from dekag.metrics.features import ImageScorer, encoder_hashes

    noise = torch.randint(256, (1, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(SEED))
    features = ImageScorer.load(**encoders).features(noise.to(torch.uint8).numpy())
    for name, model_hash in encoder_hashes(**encoders).items():
        yield Output(name, model_hash, features[name])


def _both(symbols: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.view_as_real(symbols).flatten(), latents.flatten()])


def _some(values: torch.Tensor) -> list[float]:
    """KEPT of the values, evenly spaced, the first and the last among them."""
    flat = values.flatten().float()
    picked: list[float] = flat[torch.linspace(0, len(flat) - 1, KEPT).long()].tolist()
    return picked
