"""The knowledge update: metaword and LoRA of one topic as an artifact that plain diffusers can load, too.

It is a folder with `pytorch_lora_weights.safetensors` for `load_lora_weights` (`compact_lora.safetensors` for
an update with fewer bits), `learned_embeds.safetensors` for `load_textual_inversion`, and `knowledge.json`
with a description and the hash of the content. Only safetensors and JSON are ever read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from safetensors.torch import load, save

from dekag.api.limits import MAX_PROMPT_CHARS, MAX_TRIGGERS, check_topic
from dekag.artifacts import Artifact
from dekag.makd.metaword import token_rows
from dekag.makd.quantization import pack, unpack

FORMAT = 1
METAWORD, LORA = "learned_embeds.safetensors", "pytorch_lora_weights.safetensors"
COMPACT = "compact_lora.safetensors"
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
PREFIX = "unet."  # by which diffusers distinguishes denoiser and text encoder


def placeholder(topic: str, word: str = "") -> str:
    """The placeholder token in plain diffusers for a topic's shared vectors, or for the vector of a trigger.

    Different triggers have different tokens, even for a tokenizer that ignores case: characters other than
    lower-case letters, digits and hyphens are written in hexadecimal.
    """
    escaped = "".join(
        chr(byte) if chr(byte) in _PLAIN else f"%{byte:02x}" for byte in word.encode("utf-8", "surrogatepass")
    )
    return f"<{topic}:{escaped}>" if word else f"<{topic}>"


def _earlier_placeholder(topic: str, word: str) -> str:
    """The token in older updates, where "red car" and "red-car" had the same one."""
    return f"<{topic} {word}>".replace(" ", "-")


def _described(info: Mapping[str, Any]) -> dict[str, str]:
    """Metadata of the safetensors files: what a file is, should it lie alone.

    One entry, as safetensors writes several in any order, which would change the content's hash.
    """
    said = {
        "topic": info["topic"],
        "base_hash": info.get("base_hash"),
        "rank": info.get("config", {}).get("rank"),
        "version": FORMAT,
    }
    return {"dekag": json.dumps(said, sort_keys=True)}


class KnowledgeUpdate(Artifact):
    """Metaword and LoRA of one topic.

    Immutable; created by `new`, or read by `from_files` and `load`.

    Attributes:
        info: content of knowledge.json: topic, triggers, base_hash, config, prompts, seeds, scores.
        metaword: vectors that precede every prompt, (tokens, width); no rows without a metaword.
        words: the vectors of triggers that have their own, (width,).
        lora: factors by name in the denoiser, "<layer>.lora_A.weight" (rank, in) and
            "<layer>.lora_B.weight" (out, rank); B @ A is added to a layer. Empty without a LoRA.
        content_hash: SHA-256 (hex) of its content.
    """

    label = "the knowledge update"
    parts = (METAWORD, LORA, COMPACT)

    def __init__(self, info: Mapping[str, Any], tensors: Mapping[str, bytes]) -> None:
        """`tensors`: the files of metaword and LoRA; use `new` or `from_files`."""
        super().__init__(info, tensors)
        vectors = load(tensors[METAWORD]) if METAWORD in tensors else {}
        self.metaword = vectors[placeholder(self.topic)] if vectors else torch.zeros(0, 0)
        self.words = {
            word: vectors[name][0]
            for word in self.triggers
            if isinstance(word, str)  # other types are refused by `check`
            and (name := next((each for each in self._names(word) if each in vectors), None)) is not None
        }
        self.lora: dict[str, torch.Tensor] = {}
        if LORA in tensors:
            self.lora = {name.removeprefix(PREFIX): t for name, t in load(tensors[LORA]).items()}
        elif COMPACT in tensors:
            self.lora = unpack(tensors[COMPACT])

    @classmethod
    def new(
        cls,
        info: Mapping[str, Any],
        metaword: torch.Tensor,
        lora: Mapping[str, torch.Tensor],
        *,
        words: Mapping[str, torch.Tensor] | None = None,
        bits: int = 16,
    ) -> Self:
        """An update of these tensors.

        Args:
            info: content of knowledge.json.
            metaword: (tokens, width).
            lora: factors by name.
            words: vectors (width,) of triggers that have their own.
            bits: bits per number of the LoRA, 4, 8 or 16; plain diffusers only reads 16.
        """
        tensors = {}
        described = _described(info)
        if len(metaword):
            topic = str(info["topic"])
            vectors = {placeholder(topic): metaword}
            vectors |= {placeholder(topic, word): vector[None] for word, vector in (words or {}).items()}
            halves = {name: vector.half().contiguous() for name, vector in vectors.items()}
            tensors[METAWORD] = save(halves, described)
        if lora and bits == 16:
            tensors[LORA] = save(
                {PREFIX + name: t.half().contiguous() for name, t in lora.items()}, described
            )
        elif lora:
            tensors[COMPACT] = pack(lora, bits, described)
        return cls(info, tensors)

    def scored(self, scores: Mapping[str, float]) -> Self:
        """The same update with these scores in knowledge.json."""
        return type(self)({**self.info, "scores": dict(scores)}, self._files)

    def expanded(self) -> Self:
        """The same update in 16 bits per number, which plain diffusers reads; it has another hash."""
        return self.new(self.info, self.metaword, self.lora, words=self.words)

    @property
    def topic(self) -> str:
        """Name of the topic."""
        return str(self.info["topic"])

    @property
    def triggers(self) -> tuple[str, ...]:
        """Words or phrases by which a prompt needs this update."""
        return tuple(self.info["triggers"])

    @property
    def vectors(self) -> torch.Tensor:
        """The shared vectors, then those of `words` in their order, (rows, width) float32."""
        return torch.cat([self.metaword, *(vector[None] for vector in self.words.values())]).float()

    def token_rows(self, text: str) -> list[int]:
        """Indices of the vectors that precede `text`, in order."""
        return token_rows(text, len(self.metaword), tuple(self.words))

    def vectors_for(self, prompt: str) -> torch.Tensor:
        """The vectors that precede `prompt`, (n, width) float32."""
        return self.vectors[self.token_rows(prompt)]

    @property
    def guidance_scale(self) -> float:
        """Classifier-free guidance scale for images with this update."""
        return float(self.info["config"]["guidance_scale"])

    @classmethod
    def known_format(cls, info: Mapping[str, Any]) -> bool:
        """Whether knowledge.json states this format and a valid topic."""
        return bool(info["format"] == FORMAT and check_topic(info["topic"]))

    def check(self) -> None:
        """Raises ValueError unless every part has the expected type and shape."""
        triggers = self.info["triggers"]
        if not isinstance(triggers, list) or not 0 < len(triggers) <= MAX_TRIGGERS:
            raise ValueError("triggers")
        for text in (self.info["topic"], *triggers, self.info["base_hash"]):
            if not isinstance(text, str) or len(text) > MAX_PROMPT_CHARS:
                raise ValueError("texts")
        if not 1 <= self.guidance_scale <= 30:
            raise ValueError("guidance_scale")
        self._check_files()
        for name, tensor in {"metaword": self.metaword, **self.words, **self.lora}.items():
            if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
                raise ValueError(name)
        if self.metaword.ndim != 2:
            raise ValueError("metaword")
        for word, vector in self.words.items():
            if vector.shape != self.metaword.shape[1:]:
                raise ValueError(word)
        for name, factor in self.lora.items():
            layer, which = name.rsplit(".lora_", 1)
            if which == "A.weight":
                other = self.lora[f"{layer}.lora_B.weight"]
                if (
                    factor.ndim not in (2, 4)
                    or other.ndim != factor.ndim
                    or other.shape[1] != factor.shape[0]
                ):
                    raise ValueError(name)
            elif which != "B.weight" or f"{layer}.lora_A.weight" not in self.lora:
                raise ValueError(name)

    def _names(self, word: str) -> tuple[str, str]:
        """Possible names of a trigger's vector."""
        return placeholder(self.topic, word), _earlier_placeholder(self.topic, word)

    def _check_files(self) -> None:
        """Raises ValueError if the files contain unused tensors, or the LoRA twice."""
        named = {placeholder(self.topic), *(name for word in self.triggers for name in self._names(word))}
        if METAWORD in self._files and not load(self._files[METAWORD]).keys() <= named:
            raise ValueError(METAWORD)
        if LORA in self._files:
            names = load(self._files[LORA])
            if COMPACT in self._files or not all(name.startswith(PREFIX) for name in names):
                raise ValueError(LORA)

    def parameters(self) -> int:
        """Numbers in metaword and LoRA."""
        vectors = self.metaword.numel() + sum(vector.numel() for vector in self.words.values())
        return vectors + sum(math.prod(factor.shape) for factor in self.lora.values())
