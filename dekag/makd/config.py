"""What a distillation is made with. Our choices throughout: the paper's abstract fixes none of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from dekag.errors import InvalidInputError

Method = Literal["makd", "metaword", "lora", "lora-equal-bytes", "full"]
METHODS: tuple[Method, ...] = get_args(Method)
Layers = Literal["attention", "attention+feed-forward", "attention+convolution", "all"]

# field: (lowest, highest)
RANGES: dict[str, tuple[float, float]] = {
    "images": (4, 4096),
    "held_out": (1, 256),
    "tokens": (1, 16),
    "rank": (1, 256),
    "steps": (2, 100_000),
    "batch": (1, 1024),
    "lora_learning_rate": (1e-7, 1.0),
    "metaword_learning_rate": (1e-7, 1.0),
    "full_learning_rate": (1e-7, 1.0),
    "prompt_dropout": (0.0, 0.9),
    "guidance_scale": (1.0, 30.0),
    "check_every": (1, 100_000),
    "patience": (1, 1000),
    "seed": (0, 2**31 - 1),
}


@dataclass(frozen=True)
class DistillConfig:
    """Settings of one distillation; a value outside its range raises InvalidInputError("config.<field>").

    Attributes:
        method: "makd" trains metaword and LoRA together; the others are its baselines.
        images: N, images that the cloud-GAI draws to learn from.
        held_out: further images, of held-out prompts, on which early stopping looks.
        tokens: pseudo-tokens of the metaword that every prompt shares; each of several triggers has one more.
        rank: rank of the LoRA.
        layers: which layers of the denoiser the LoRA adapts.
        bits: 16, 8 or 4 bits for each number of the LoRA in the update; plain diffusers reads 16, which
            `KnowledgeUpdate.expanded` makes of the others.
        steps: optimiser steps at most.
        batch: latents in a step.
        lora_learning_rate: peak learning rate of the LoRA.
        metaword_learning_rate: peak learning rate of the metaword.
        full_learning_rate: peak learning rate of the full fine-tune.
        prompt_dropout: share of a batch trained without its prompt, for classifier-free guidance.
        guidance_scale: classifier-free guidance with which images are drawn afterwards; less than the
            edge's own, since the cloud's images that are learnt from are guided already.
        check_every: steps between two looks at the held-out loss.
        patience: looks without a better held-out loss after which training stops.
        seed: seeds the cloud's images, the initial weights and every step.
    """

    method: Method = "makd"
    images: int = 96
    held_out: int = 8
    tokens: int = 2
    rank: int = 5
    layers: Layers = "all"
    bits: int = 4
    steps: int = 300
    batch: int = 8
    lora_learning_rate: float = 4e-3
    metaword_learning_rate: float = 3e-2
    full_learning_rate: float = 3e-4
    prompt_dropout: float = 0.1
    guidance_scale: float = 1.5
    check_every: int = 25
    patience: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise InvalidInputError(f"config.{name}", f"between {low:g} and {high:g}", value)
            if self.__dataclass_fields__[name].type == "int" and not isinstance(value, int):
                raise InvalidInputError(f"config.{name}", "an integer", value)
        choices: dict[str, tuple[object, ...]] = {
            "method": METHODS,
            "layers": get_args(Layers),
            "bits": (4, 8, 16),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                said = "one of " + ", ".join(map(str, allowed))
                raise InvalidInputError(f"config.{name}", said, getattr(self, name))

    @property
    def has_metaword(self) -> bool:
        """Whether this method trains a metaword."""
        return self.method in ("makd", "metaword")

    @property
    def has_lora(self) -> bool:
        """Whether this method trains a LoRA."""
        return self.method in ("makd", "lora", "lora-equal-bytes")

    def as_dict(self) -> dict[str, str | int | float]:
        """The settings as JSON can hold them."""
        return dataclasses.asdict(self)
