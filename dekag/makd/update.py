"""The knowledge update: metaword and LoRA of one topic as an artifact that plain diffusers loads too.

A folder of files. `pytorch_lora_weights.safetensors` is what `load_lora_weights` reads (an update in fewer
bits has `compact_lora.safetensors` instead), `learned_embeds.safetensors` what `load_textual_inversion`
reads, `knowledge.json` says what they are and carries the hash of all of it. Nothing but safetensors and JSON
is ever read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from safetensors.torch import load, save

from dekag.artifacts import Artifact
from dekag.makd.metaword import token_rows
from dekag.makd.quantization import pack, unpack
from dekag.makd.topics import MAX_PROMPT_CHARS, MAX_TRIGGERS, topic_name

FORMAT = 1
METAWORD, LORA = "learned_embeds.safetensors", "pytorch_lora_weights.safetensors"
COMPACT = "compact_lora.safetensors"
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
PREFIX = "unet."  # diffusers tells denoiser and text encoder apart by it


def placeholder(topic: str, word: str = "") -> str:
    """The pseudo-word by which plain diffusers calls a topic's shared vectors, or that of one trigger.

    Different triggers have different ones, also for a tokenizer that knows no upper case: all of a trigger
    but lower-case letters, digits and hyphens is written in hexadecimal.
    """
    said = "".join(
        chr(byte) if chr(byte) in _PLAIN else f"%{byte:02x}" for byte in word.encode("utf-8", "surrogatepass")
    )
    return f"<{topic}:{said}>" if word else f"<{topic}>"


def _earlier_placeholder(topic: str, word: str) -> str:
    """What it was in older updates, where "red boat" and "red-boat" were the same."""
    return f"<{topic} {word}>".replace(" ", "-")


class KnowledgeUpdate(Artifact):
    """Metaword and LoRA of one topic.

    Made by `new` or read by `from_files` and `load`; it never changes.

    Attributes:
        info: what knowledge.json says: topic, triggers, base_hash, config, prompts, seeds, scores.
        metaword: vectors in front of every prompt, (tokens, width); no rows without a metaword.
        words: for triggers that have a vector of their own, that vector, (width,).
        lora: factors by name in the denoiser, "<layer>.lora_A.weight" (rank, in) and
            "<layer>.lora_B.weight" (out, rank); a layer changes by B @ A. Empty without a LoRA.
        content_hash: SHA-256 (hex) over everything in the update.
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
            if isinstance(word, str)  # what else may stand there is for `check` to refuse
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
            info: what knowledge.json is to say.
            metaword: (tokens, width).
            lora: factors by name.
            words: vectors (width,) of triggers that have their own.
            bits: 4, 8 or 16 for each number of the LoRA; plain diffusers reads 16 alone.
        """
        tensors = {}
        if len(metaword):
            topic = str(info["topic"])
            vectors = {placeholder(topic): metaword}
            vectors |= {placeholder(topic, word): vector[None] for word, vector in (words or {}).items()}
            tensors[METAWORD] = save({name: vector.half().contiguous() for name, vector in vectors.items()})
        if lora and bits == 16:
            tensors[LORA] = save({PREFIX + name: t.half().contiguous() for name, t in lora.items()})
        elif lora:
            tensors[COMPACT] = pack(lora, bits)
        return cls(info, tensors)

    def scored(self, scores: Mapping[str, float]) -> Self:
        """The same update with these scores in knowledge.json."""
        return type(self)({**self.info, "scores": dict(scores)}, self._files)

    def expanded(self) -> Self:
        """The same update in 16 bits a number, which plain diffusers reads, with a hash of its own."""
        return self.new(self.info, self.metaword, self.lora, words=self.words)

    @property
    def topic(self) -> str:
        """Name of the topic."""
        return str(self.info["topic"])

    @property
    def triggers(self) -> tuple[str, ...]:
        """Words or phrases that say that a prompt needs this update."""
        return tuple(self.info["triggers"])

    @property
    def vectors(self) -> torch.Tensor:
        """The shared vectors, then those of `words` in their order, (rows, width) float32."""
        return torch.cat([self.metaword, *(vector[None] for vector in self.words.values())]).float()

    def token_rows(self, text: str) -> list[int]:
        """Which of the vectors stand in front of `text`, in order."""
        return token_rows(text, len(self.metaword), tuple(self.words))

    def vectors_for(self, prompt: str) -> torch.Tensor:
        """The vectors that stand in front of `prompt`, (n, width) float32."""
        return self.vectors[self.token_rows(prompt)]

    @property
    def guidance_scale(self) -> float:
        """Classifier-free guidance with which images are drawn with this update."""
        return float(self.info["config"]["guidance_scale"])

    @classmethod
    def known_format(cls, info: Mapping[str, Any]) -> bool:
        """Whether knowledge.json says that it is of this format, and of a topic that may be called so."""
        return bool(info["format"] == FORMAT and topic_name(info["topic"]))

    def check(self) -> None:
        """ValueError unless every part has the type and shape that its user counts on."""
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
        """Under which the vector of a trigger may stand."""
        return placeholder(self.topic, word), _earlier_placeholder(self.topic, word)

    def _check_files(self) -> None:
        """ValueError if the files hold tensors that nobody reads, or one thing twice."""
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
