"""The knowledge update: metaword and LoRA of one topic as an artifact that plain diffusers loads too.

A folder of three files. `pytorch_lora_weights.safetensors` is what `load_lora_weights` reads,
`learned_embeds.safetensors` what `load_textual_inversion` reads, `knowledge.json` says what they are and
carries the hash of all of it. Nothing but safetensors and JSON is ever read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from dekag.errors import InvalidInputError, MismatchError
from dekag.makd.topics import topic_name

FORMAT = 1
INFO, METAWORD, LORA = "knowledge.json", "learned_embeds.safetensors", "pytorch_lora_weights.safetensors"
FILES = (INFO, METAWORD, LORA)
PREFIX = "unet."  # diffusers tells denoiser and text encoder apart by it
MAX_FILE_BYTES = 2**30
_UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
    SafetensorError,
    InvalidInputError,
)


def placeholder(topic: str) -> str:
    """The pseudo-word that stands for the metaword of `topic` where plain diffusers reads it."""
    return f"<{topic}>"


@dataclass(frozen=True)
class KnowledgeUpdate:
    """Metaword and LoRA of one topic.

    Attributes:
        info: what knowledge.json says: topic, triggers, base_hash, config, prompts, seeds, scores.
        metaword: vectors in front of the prompt, (tokens, width) float16; no rows without a metaword.
        lora: factors by name in the denoiser, "<layer>.lora_A.weight" (rank, in) and
            "<layer>.lora_B.weight" (out, rank), float16; a layer changes by B @ A. Empty without a LoRA.
    """

    info: Mapping[str, Any]
    metaword: torch.Tensor
    lora: Mapping[str, torch.Tensor]

    @property
    def topic(self) -> str:
        """Name of the topic."""
        return str(self.info["topic"])

    @property
    def triggers(self) -> tuple[str, ...]:
        """Words or phrases that say that a prompt needs this update."""
        return tuple(self.info["triggers"])

    @property
    def base_hash(self) -> str:
        """Hash of the edge model that this update was trained on and fits."""
        return str(self.info["base_hash"])

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) over everything in the update."""
        return _content_hash(self._tensor_files(), self.info)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(map(len, self.to_files().values()))

    def _tensor_files(self) -> dict[str, bytes]:
        files = {}
        if len(self.metaword):
            files[METAWORD] = save({placeholder(self.topic): self.metaword.half().contiguous()})
        if self.lora:
            files[LORA] = save({PREFIX + name: t.half().contiguous() for name, t in self.lora.items()})
        return files

    def to_files(self) -> dict[str, bytes]:
        """The files by name: knowledge.json, and those of metaword and LoRA as far as there are any."""
        files = self._tensor_files()
        info = {**self.info, "content_hash": _content_hash(files, self.info)}
        return {INFO: json.dumps(info, indent=1, sort_keys=True).encode(), **files}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """The update that `to_files` wrote.

        Raises:
            MismatchError: a file is missing, damaged, too large or not what the hash in knowledge.json was
                taken over.
        """
        tensors = {name: files[name] for name in (METAWORD, LORA) if name in files}
        if INFO not in files or any(len(data) > MAX_FILE_BYTES for data in files.values()):
            raise MismatchError(
                f"a knowledge update needs {INFO} and files of at most {MAX_FILE_BYTES} bytes"
            )
        try:
            info = json.loads(files[INFO])
            claimed = info.pop("content_hash")
            if info["format"] != FORMAT:
                raise MismatchError(f"knowledge update of format {info['format']!r}, not {FORMAT}")
            if claimed != _content_hash(tensors, info):
                raise MismatchError("the knowledge update is damaged: its content does not fit its hash")
            topic_name(info["topic"])
            words = load(tensors[METAWORD]) if METAWORD in tensors else {}
            lora = load(tensors[LORA]) if LORA in tensors else {}
            metaword = words.pop(placeholder(info["topic"])) if words else torch.zeros(0, 0)
            update = cls(info, metaword, {name.removeprefix(PREFIX): t for name, t in lora.items()})
            update._check()
        except _UNREADABLE as error:
            raise MismatchError("the knowledge update is damaged: it cannot be read") from error
        return update

    def _check(self) -> None:
        """ValueError unless every part has the type and shape that its user counts on."""
        texts = [self.topic, *self.info["triggers"], self.info["base_hash"]]
        if not all(isinstance(text, str) for text in texts) or not self.info["triggers"]:
            raise ValueError("texts")
        if self.metaword.ndim != 2 or not torch.isfinite(self.metaword).all():
            raise ValueError("metaword")
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
            if not torch.isfinite(factor).all():
                raise ValueError(name)

    def save(self, folder: Path) -> None:
        """Write the files into `folder`, which is made if missing."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.to_files().items():
            (folder / name).write_bytes(data)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an update from its folder; MismatchError as from_files says."""
        return cls.from_files(
            {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
        )

    def parameters(self) -> int:
        """Numbers in metaword and LoRA."""
        return self.metaword.numel() + sum(math.prod(factor.shape) for factor in self.lora.values())


def _content_hash(tensors: Mapping[str, bytes], info: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(dict(info), sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        digest.update(f"\0{name}\0{len(tensors[name])}\0".encode())
        digest.update(tensors[name])
    return digest.hexdigest()
