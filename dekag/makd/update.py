"""The knowledge update: metaword and LoRA of one topic, as small as an edge can use it.

It is a folder with `knowledge.json`, which says what the update is for, and `update.safetensors`, its
tensors in the compact form of `dekag.makd.quantization`: all that travels to the edge. How it was made is in
`history.json` beside them, which stays at the cloud. `KnowledgeUpdate.expanded` gives the standard files that
plain diffusers loads. Only safetensors and JSON are ever read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from safetensors.torch import save

from dekag.api.limits import MAX_PROMPT_CHARS, check_topic, check_trigger_lengths
from dekag.artifacts import HISTORY, Artifact, content_hash, load_tensors
from dekag.documents import MAX_NODES, DocumentError, parse_json
from dekag.errors import InvalidInputError, MismatchError, NumericalError
from dekag.makd.metaword import token_rows
from dekag.makd.quantization import (
    LAYERS,
    STEPS,
    VALUES,
    VECTOR_BITS,
    WORD_BITS,
    pack,
    pack_vectors,
    unpack,
    unpack_vectors,
)

FORMAT = 3
_READ = (2, FORMAT)  # in format 2, all vectors are in float16
TENSORS = "update.safetensors"
METAWORD, WORDS = "metaword", "words"
MAX_HISTORY_BYTES = 2**24
EMBEDS, LORA = "learned_embeds.safetensors", "pytorch_lora_weights.safetensors"
PREFIX = "unet."  # by which diffusers distinguishes denoiser and text encoder
_INFO = {"format", "topic", "triggers", "base_hash", "guidance_scale"}
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


def placeholder(topic: str, word: str = "") -> str:
    """The placeholder token in plain diffusers for a topic's shared vectors, or for the vector of a trigger.

    Different triggers have different tokens, even for a tokenizer that ignores case: characters other than
    lower-case letters, digits and hyphens are written in hexadecimal.
    """
    escaped = "".join(
        chr(byte) if chr(byte) in _PLAIN else f"%{byte:02x}" for byte in word.encode("utf-8", "surrogatepass")
    )
    return f"<{topic}:{escaped}>" if word else f"<{topic}>"


class KnowledgeUpdate(Artifact):
    """Metaword and LoRA of one topic.

    Immutable; created by `new`, or read by `from_files` and `load`.

    Attributes:
        info: content of knowledge.json: format, topic, triggers, base_hash, guidance_scale.
        history: how it was made: cloud_hash, config, prompts, seeds, steps, scores. Empty if that is unknown,
            as at an edge.
        metaword: vectors that precede every prompt, (tokens, width); no rows without a metaword.
        words: the vectors of triggers, (width,), if they have their own.
        lora: factors by name in the denoiser, "<layer>.lora_A.weight" (rank, in) and
            "<layer>.lora_B.weight" (out, rank); B @ A is added to a layer. Empty without a LoRA.
        content_hash: SHA-256 (hex) of its content, to which the history does not belong.
    """

    label = "the knowledge update"
    parts = (TENSORS,)
    beside = (HISTORY,)

    def __init__(
        self, info: Mapping[str, Any], files: Mapping[str, bytes], history: Mapping[str, Any] | None = None
    ) -> None:
        """`files`: that of the tensors, if there are any; use `new` or `from_files`."""
        super().__init__(info, files)
        self.history = dict(history or {})
        self._tensors = load_tensors(files[TENSORS]) if TENSORS in files else {}
        packed = self._tensors
        self.metaword = unpack_vectors(packed[METAWORD]) if METAWORD in packed else torch.zeros(0, 0)
        words = dict.fromkeys(self.triggers) if WORDS in packed else {}
        vectors = unpack_vectors(packed[WORDS], self.metaword.shape[1]) if words else torch.zeros(0, 0)
        if len(words) != len(vectors):  # before each row becomes an object
            raise ValueError(WORDS)
        self.words = dict(zip(words, vectors, strict=True))
        self.lora = unpack(self._tensors) if LAYERS in self._tensors else {}

    @classmethod
    def new(
        cls,
        info: Mapping[str, Any],
        metaword: torch.Tensor,
        lora: Mapping[str, torch.Tensor],
        *,
        words: Mapping[str, torch.Tensor] | None = None,
        bits: int = 16,
        history: Mapping[str, Any] | None = None,
    ) -> Self:
        """An update of these tensors.

        Args:
            info: topic, triggers, base_hash and guidance_scale.
            metaword: (tokens, width).
            lora: factors by name.
            words: vectors (width,) of all triggers, if they have their own.
            bits: how exact the LoRA is, as in `DistillConfig`. At 16, the vectors are in float16; otherwise,
                the metaword has four bits a number, and the vectors of triggers two.
            history: how it was made.

        Raises:
            InvalidInputError: `bits` is not possible.
            NumericalError: a number is not finite, or too large for 16 bits in the metaword.
        """
        tensors = pack(lora, bits) if lora else {}
        vectors = {METAWORD: metaword} if len(metaword) else {}
        if words:
            vectors[WORDS] = torch.stack([words[word] for word in dict.fromkeys(info["triggers"])])
        for name, each in vectors.items():
            if not torch.isfinite(each.half()).all():
                raise NumericalError(f"{name}: a number is not finite in 16 bits")
            each_bits = WORD_BITS if name == WORDS else VECTOR_BITS
            tensors[name] = each.half().contiguous() if bits == 16 else pack_vectors(each, each_bits)
        files = {TENSORS: save(tensors)} if tensors else {}
        return cls({"format": FORMAT, **info}, files, history)

    def scored(self, scores: Mapping[str, float], ladder: Sequence[Mapping[str, Any]] = ()) -> Self:
        """The same update with these scores in its history, and with the forms that were compared."""
        said = {"scores": dict(scores), **({"ladder": [dict(each) for each in ladder]} if ladder else {})}
        return type(self)(self.info, self._files, {**self.history, **said})

    def saved_files(self) -> dict[str, bytes]:
        """The files by name: those of `to_files`, and history.json if there is a history."""
        if not self.history:
            return self.to_files()
        said = {**self.history, "hash": _history_hash(self.history, self.content_hash)}
        return {**self.to_files(), HISTORY: json.dumps(said, indent=1, sort_keys=True).encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], *, announced: str = "", base_hash: str = "") -> Self:
        """The update in the files, with its history if history.json is among them.

        Args:
            files, announced, base_hash: as in `Artifact.from_files`.

        Raises:
            MismatchError: as in `Artifact.from_files`; or history.json is damaged or of another update.
        """
        update = super().from_files(files, announced=announced, base_hash=base_hash)
        if HISTORY in files:
            update.history = _read_history(files[HISTORY], update.content_hash)
        return update

    def expanded(self, version: int | None = None) -> dict[str, bytes]:
        """Standard files by name, of 16 bits per number, for plain diffusers.

        `load_lora_weights` reads `pytorch_lora_weights.safetensors`, and `load_textual_inversion` each of the
        other files: `learned_embeds.safetensors` with the shared vectors, and `learned_embeds_1.safetensors`
        and so on with that of a trigger each, in their order. The tensor in such a file is named as its token
        in a prompt: `placeholder(topic)` and `placeholder(topic, word)`.

        The metadata of each file have an entry `dekag`, JSON with topic, version, rank (the largest of all
        layers, 0 without a LoRA), base_hash and content_hash. The content hash covers the bytes of the
        update's own file, which has no such entry: what it would say is in knowledge.json and the catalogue.

        Args:
            version: of the topic, under which the update was published; None, which becomes null: not known.
        """
        said = {
            "topic": self.topic,
            "version": version,
            "rank": self.rank,
            "base_hash": self.base_hash,
            "content_hash": self.content_hash,
        }
        # one entry, as safetensors writes several in any order
        described = {"dekag": json.dumps(said, sort_keys=True)}
        files = {}
        if len(self.metaword):
            files[EMBEDS] = save({placeholder(self.topic): self.metaword}, described)
        for i, (word, vector) in enumerate(self.words.items(), 1):
            name = EMBEDS.replace(".", f"_{i}.")
            files[name] = save({placeholder(self.topic, word): vector[None].contiguous()}, described)
        if self.lora:
            halves = {PREFIX + name: factor.half().contiguous() for name, factor in self.lora.items()}
            files[LORA] = save(halves, described)
        return files

    @property
    def topic(self) -> str:
        """Name of the topic."""
        return str(self.info["topic"])

    @property
    def triggers(self) -> tuple[str, ...]:
        """Words or phrases by which a prompt needs this update."""
        return tuple(self.info["triggers"])

    @property
    def rank(self) -> int:
        """The largest rank of a layer's LoRA; 0 without a LoRA."""
        return max((len(factor) for name, factor in self.lora.items() if ".lora_A." in name), default=0)

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
        return float(self.info["guidance_scale"])

    @classmethod
    def known_format(cls, info: Mapping[str, Any]) -> bool:
        """Whether knowledge.json states a format that is read and a valid topic."""
        return bool(info["format"] in _READ and check_topic(info["topic"]))

    @classmethod
    def advice(cls, info: Mapping[str, Any]) -> str:
        """What to do about an update of an earlier or a later version of this software."""
        found: object = info["format"]
        if not isinstance(found, int) or found in _READ:
            return ""
        if found > FORMAT:
            return f" {found}, newer than {FORMAT}, which is the newest known here: update this software"
        name = check_topic(info["topic"])
        return (
            f" {found}, which is no longer read: make it anew, with `dekag distill {name}` or "
            f"`dekag train knowledge --topic {name}`"
        )

    @classmethod
    def check_info(cls, info: Mapping[str, Any]) -> None:
        """Raises ValueError or MismatchError unless knowledge.json says what it must."""
        triggers = info.get("triggers")
        if unknown := ", ".join(sorted(info.keys() - _INFO)):
            raise MismatchError(f"{cls.label} has entries that are not known here: {unknown[:200]}")
        if info.keys() != _INFO:
            raise ValueError("entries")
        if not isinstance(triggers, list) or not triggers:
            raise ValueError("triggers")
        named = (info["topic"], info["base_hash"])
        if not all(isinstance(text, str) for text in (*named, *triggers)):
            raise ValueError("texts")
        if max(map(len, named)) > MAX_PROMPT_CHARS:
            raise ValueError("texts")
        try:
            check_trigger_lengths(triggers)
        except InvalidInputError as error:  # which says what is allowed, other than for damage
            raise MismatchError(f"{cls.label} cannot be used: {error}") from None
        if not 1 <= float(info["guidance_scale"]) <= 30:
            raise ValueError("guidance_scale")

    def check(self) -> None:
        """Raises ValueError unless every part has the expected type and shape."""
        if not self._tensors.keys() <= {METAWORD, WORDS, LAYERS, STEPS, VALUES}:
            raise ValueError(TENSORS)
        if not self.lora and self._tensors.keys() & {STEPS, VALUES}:
            raise ValueError(LAYERS)
        vectors = {METAWORD: self.metaword, **self.words}
        for name, tensor in {**vectors, **self.lora}.items():
            # of the extremes, which NaN is among: one of all numbers takes several times their memory
            if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
                raise ValueError(name)
        if self.metaword.ndim != 2:
            raise ValueError(METAWORD)
        for vector in self.words.values():
            if vector.shape != self.metaword.shape[1:]:
                raise ValueError(WORDS)

    def parameters(self) -> int:
        """Numbers in metaword and LoRA."""
        vectors = self.metaword.numel() + sum(vector.numel() for vector in self.words.values())
        return int(vectors + sum(math.prod(factor.shape) for factor in self.lora.values()))


def _history_hash(history: Mapping[str, Any], update_hash: str) -> str:
    """SHA-256 (hex) of a history and of the update that it belongs to."""
    return content_hash({}, {"update": update_hash, "history": dict(history)})


def _read_history(data: bytes, update_hash: str) -> dict[str, Any]:
    if len(data) > MAX_HISTORY_BYTES:
        raise MismatchError(f"{HISTORY} is larger than {MAX_HISTORY_BYTES} bytes")
    try:
        history = parse_json(data, HISTORY, max_nodes=MAX_NODES)
    except DocumentError as error:
        raise MismatchError(f"the history of the knowledge update is damaged: {error}") from error
    if isinstance(history, dict) and history.pop("hash", None) == _history_hash(history, update_hash):
        return history
    raise MismatchError(f"{HISTORY} is damaged, or of another update: remove it to use the update alone")
