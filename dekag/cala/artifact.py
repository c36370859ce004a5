"""Transmission knowledge: CALA's adapters and gates as one versioned artifact.

A folder: `adapter_config.json` and `adapter_model.safetensors` as PEFT's own `save_pretrained` writes them,
so that `PeftModel.from_pretrained(codec, folder)` loads it, and `knowledge.json`, which says which codec it
fits, how it scored and what quality to expect (for rate control), and carries the hash of all of it. Nothing
but safetensors and JSON is ever read.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from peft import PeftModel, get_peft_model
from peft.utils import set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load, save

from dekag.artifacts import content_hash
from dekag.cala.config import CalaConfig
from dekag.cala.rate import QualityModel
from dekag.codec import JsccCodec
from dekag.errors import InvalidInputError, MismatchError

FORMAT = 1
KIND = "transmission"
INFO, CONFIG, WEIGHTS = "knowledge.json", "adapter_config.json", "adapter_model.safetensors"
FILES = (INFO, CONFIG, WEIGHTS)
MAX_FILE_BYTES = 2**28
_UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
    RuntimeError,
    SafetensorError,
    InvalidInputError,
)


class TransmissionKnowledge:
    """Adapters and gates for one codec.

    Made by `new` or read by `from_files` and `load`; it never changes.

    Attributes:
        info: what knowledge.json says: kind, base_hash, config, scores, quality.
        content_hash: SHA-256 (hex) over everything in it.
    """

    def __init__(self, info: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """`files`: PEFT's two; use `new` or `from_files`."""
        self.info = dict(info)
        self._files = dict(files)
        self.content_hash = content_hash(self._files, self.info)

    @classmethod
    def new(cls, info: Mapping[str, Any], adapted: PeftModel) -> Self:
        """The knowledge in an adapted codec, its weights rounded to float16.

        Args:
            info: what knowledge.json is to say beside format and kind; `base_hash` at least.
            adapted: `get_peft_model(codec, CalaConfig(...))`, trained.
        """
        with tempfile.TemporaryDirectory() as name:
            adapted.save_pretrained(name)
            config = json.loads((Path(name) / CONFIG).read_text())
            tensors = load((Path(name) / WEIGHTS).read_bytes())
        # where the codec lay when this was made says nothing to whoever loads it
        config = {**config, "base_model_name_or_path": None, "inference_mode": True}
        files = {
            CONFIG: json.dumps(config, indent=1, sort_keys=True).encode(),
            WEIGHTS: save({key: value.half().contiguous() for key, value in tensors.items()}),
        }
        return cls({"format": FORMAT, "kind": KIND, **info}, files)

    def with_info(self, **changes: Any) -> Self:
        """The same adapters with these entries in knowledge.json."""
        return type(self)({**self.info, **changes}, self._files)

    @property
    def base_hash(self) -> str:
        """Hash of the codec that it was trained on and fits."""
        return str(self.info["base_hash"])

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(map(len, self.to_files().values()))

    @property
    def quality(self) -> QualityModel | None:
        """What to expect of it, if that was measured."""
        return QualityModel.from_json(self.info["quality"]) if self.info.get("quality") else None

    def config(self) -> CalaConfig:
        """How its adapters are built."""
        return CalaConfig(**_fields(json.loads(self._files[CONFIG])))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its weights by name, float16."""
        return load(self._files[WEIGHTS])

    def attach(self, codec: JsccCodec) -> PeftModel:
        """Put the adapters into `codec`, which is changed by it.

        Raises:
            MismatchError: the adapters do not fit the codec's layers.
        """
        try:
            adapted = get_peft_model(codec, self.config())
            outcome = set_peft_model_state_dict(adapted, self.tensors())
            # every key of the codec itself is "missing", as it should be
            missing = [key for key in outcome.missing_keys if "cala_" in key]
        except _UNREADABLE as error:
            raise MismatchError("the transmission knowledge does not fit the codec") from error
        if missing or outcome.unexpected_keys:
            raise MismatchError("the transmission knowledge does not fit the codec's layers")
        adapted.requires_grad_(False)
        adapted.eval()
        return adapted

    def to_files(self) -> dict[str, bytes]:
        """The files by name."""
        info = {**self.info, "content_hash": self.content_hash}
        return {INFO: json.dumps(info, indent=1, sort_keys=True).encode(), **self._files}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """The knowledge that `to_files` wrote.

        Raises:
            MismatchError: a file is missing, damaged, too large or not what the hash in knowledge.json was
                taken over.
        """
        if any(name not in files or len(files[name]) > MAX_FILE_BYTES for name in FILES):
            raise MismatchError(
                f"transmission knowledge has {', '.join(FILES)} of at most {MAX_FILE_BYTES} bytes"
            )
        adapters = {name: files[name] for name in (CONFIG, WEIGHTS)}
        try:
            info = json.loads(files[INFO])
            claimed = info.pop("content_hash")
            if info["format"] != FORMAT or info["kind"] != KIND:
                raise MismatchError(f"not transmission knowledge of format {FORMAT}")
            if claimed != content_hash(adapters, info):
                raise MismatchError(
                    "the transmission knowledge is damaged: its content does not fit its hash"
                )
            knowledge = cls(info, adapters)
            knowledge._check()
        except _UNREADABLE as error:
            raise MismatchError("the transmission knowledge is damaged: it cannot be read") from error
        return knowledge

    def _check(self) -> None:
        """ValueError or another of _UNREADABLE unless every part is what its user counts on."""
        if not isinstance(self.info["base_hash"], str):
            raise TypeError("base_hash")
        self.config()
        if not all(torch.isfinite(tensor).all() for tensor in self.tensors().values()):
            raise ValueError("weights")
        _ = self.quality

    def save(self, folder: Path) -> None:
        """Write the files into `folder`, which is made if missing."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.to_files().items():
            (folder / name).write_bytes(data)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read knowledge from its folder; MismatchError as from_files says."""
        place = Path(folder)
        return cls.from_files(
            {name: (place / name).read_bytes() for name in FILES if (place / name).is_file()}
        )


def _fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a CalaConfig in an adapter_config.json, which also holds what PEFT itself notes there."""
    known = CalaConfig.__dataclass_fields__
    return {key: value for key, value in raw.items() if key in known and key != "peft_type"}
