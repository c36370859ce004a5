"""Transmission knowledge: the trained adapters and gates of a codec as a versioned artifact.

It is a folder with `adapter_config.json` and `adapter_model.safetensors`, written by PEFT's `save_pretrained`
so that `PeftModel.from_pretrained(codec, folder)` loads it, and `knowledge.json` with the hash of the codec,
scores, expected quality (for rate control), and the hash of the content. Other methods than CALA have no
configuration: knowledge.json names the method and its parameter fraction, and the weights are the trained
parameters. Only safetensors and JSON are ever read.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load, save

from dekag.artifacts import UNREADABLE, Artifact, load_tensors
from dekag.cala.config import MAX_TEXT_WIDTH, CalaConfig
from dekag.cala.rate import QualityModel
from dekag.cala.restoration import RestorationTable
from dekag.codec import LatentCodec
from dekag.documents import parse_json, read_json
from dekag.errors import MismatchError

FORMAT = 1
KIND = "transmission"
CALA = "cala"
MAX_PARAMETER_FRACTION = 10.0  # a method may train more parameters than the codec has
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LAYER = re.compile(r"[\w.]{1,200}")


class TransmissionKnowledge(Artifact):
    """The trained parameters for one codec; `dekag.cala.methods.attached` attaches them.

    Immutable; created by `new` or `of_method`, or read by `from_files` and `load`.

    Attributes:
        info: content of knowledge.json: kind, base_hash, config, scores, quality, restoration; method,
            unless it is CALA.
        content_hash: SHA-256 (hex) of its content.
    """

    label = "transmission knowledge"
    base = "codec"
    parts = (CONFIG, WEIGHTS)

    @classmethod
    def new(cls, info: Mapping[str, Any], adapted: PeftModel) -> Self:
        """The knowledge in a codec adapted by CALA, with weights rounded to float16.

        Args:
            info: content of knowledge.json besides format and kind; at least `base_hash`.
            adapted: `get_peft_model(codec, CalaConfig(...))`, trained.
        """
        with tempfile.TemporaryDirectory() as name:
            adapted.save_pretrained(name)
            config = read_json(Path(name) / CONFIG)
            tensors = load((Path(name) / WEIGHTS).read_bytes())
        # the path of the codec on this machine is meaningless elsewhere
        config = {**config, "base_model_name_or_path": None, "inference_mode": True}
        if isinstance(config["target_modules"], str):  # list the matches, as regular expressions are refused
            config["target_modules"] = list(adapted.base_model.targeted_module_names)
            config["exclude_modules"] = None
        files = {
            CONFIG: json.dumps(config, indent=1, sort_keys=True).encode(),
            WEIGHTS: save({key: value.half().contiguous() for key, value in tensors.items()}),
        }
        return cls({"format": FORMAT, "kind": KIND, **info}, files)

    @classmethod
    def of_method(
        cls,
        info: Mapping[str, Any],
        method: str,
        parameter_fraction: float,
        weights: Mapping[str, torch.Tensor],
        text_width: int = 0,
    ) -> Self:
        """The knowledge of another method, with weights rounded to float16.

        Args:
            info: as in `new`.
            method: its name; sender and receiver must both know it.
            parameter_fraction: largest fraction of parameters with which it was built.
            weights: values of all trainable parameters of
                `dekag.cala.methods.build(method, codec, parameter_fraction, text_width)`, by name.
            text_width: width of the prompts' states with which it was built; 0: it reads none.
        """
        named = {"method": {"name": method, "share": parameter_fraction, "text_width": text_width}}
        rounded = {name: values.detach().half().contiguous() for name, values in weights.items()}
        return cls({"format": FORMAT, "kind": KIND, **named, **info}, {WEIGHTS: save(rounded)})

    def with_info(self, **changes: Any) -> Self:
        """The same adapters with these entries in knowledge.json."""
        return type(self)({**self.info, **changes}, self._files)

    @property
    def quality(self) -> QualityModel | None:
        """The expected quality, if it was measured."""
        return QualityModel.from_json(self.info["quality"]) if self.info.get("quality") else None

    @property
    def restoration(self) -> RestorationTable | None:
        """The timesteps of the denoiser for what this codec leaves of errors, if they were measured."""
        found = self.info.get("restoration")
        return RestorationTable.from_json(found) if found else None

    @property
    def method(self) -> str:
        """Name of its method."""
        return str(self.info["method"]["name"]) if "method" in self.info else CALA

    @property
    def parameter_fraction(self) -> float:
        """Largest fraction of parameters with which its method was built; not for CALA."""
        return float(self.info["method"]["share"])

    @property
    def text_width(self) -> int:
        """Width of the prompts' states that it reads; 0 if it reads none."""
        if self.method == CALA:
            return self.config().text_width
        return int(self.info["method"].get("text_width", 0))

    def config(self) -> CalaConfig:
        """The configuration of CALA's adapters."""
        return CalaConfig(**_fields(parse_json(self._files[CONFIG], CONFIG)))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its weights by name, float16."""
        return load_tensors(self._files[WEIGHTS])

    def attach(self, codec: LatentCodec) -> PeftModel:
        """Attach CALA's adapters to `codec`, which is modified.

        Raises:
            MismatchError: the adapters do not fit the codec's layers.
        """
        try:
            adapted = get_peft_model(codec, self.config())
            outcome = set_peft_model_state_dict(adapted, self.tensors())
            # every key of the codec itself is "missing", as expected
            missing = [key for key in outcome.missing_keys if "cala_" in key]
        except UNREADABLE as error:
            raise MismatchError("the transmission knowledge does not fit the codec") from error
        if missing or outcome.unexpected_keys:
            raise MismatchError("the transmission knowledge does not fit the codec's layers")
        adapted.requires_grad_(False)
        adapted.eval()
        return adapted

    @classmethod
    def known_format(cls, info: Mapping[str, Any]) -> bool:
        """Whether knowledge.json states transmission knowledge of this format."""
        return bool(info["format"] == FORMAT and info["kind"] == KIND)

    @classmethod
    def advice(cls, info: Mapping[str, Any]) -> str:
        """What to do about transmission knowledge of a later version of this software."""
        found: object = info["format"]
        if isinstance(found, int) and found > FORMAT:
            return f" {found}, newer than {FORMAT}, which is the newest known here: update this software"
        return ""

    @classmethod
    def check_info(cls, info: Mapping[str, Any]) -> None:
        """Raises one of UNREADABLE unless knowledge.json names a codec."""
        if not isinstance(info["base_hash"], str):
            raise TypeError("base_hash")

    def check(self) -> None:
        """Raises one of UNREADABLE unless every part is valid.

        What a few bytes of a configuration could make huge is limited, as attaching builds it before it is
        compared with the weights.
        """
        tensors = self.tensors()
        if self.method == CALA:
            config = self.config()
            self._check_config(config)
            # keys and values of one layer, of those that read the prompt
            if 2 * config.text_rank * config.text_width > sum(each.numel() for each in tensors.values()):
                raise ValueError("text_width")
        elif not 0 < self.parameter_fraction <= MAX_PARAMETER_FRACTION:
            raise ValueError("share")
        elif not 0 <= self.text_width <= MAX_TEXT_WIDTH:
            raise ValueError("text_width")
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
                raise ValueError(name)
        _ = self.quality, self.restoration

    def _check_config(self, config: CalaConfig) -> None:
        """Raises ValueError unless layers are plain names: PEFT would match a pattern, however expensive."""
        lists = [
            config.target_modules or [], config.exclude_modules or [], config.sides, config.text_modules
        ]  # fmt: skip
        if not all(isinstance(names, list) for names in lists):
            raise ValueError("names of layers")
        for name in [*(name for names in lists for name in names), *config.rank_pattern]:
            if _LAYER.fullmatch(name) is None:
                raise ValueError(name)


def _fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that CalaConfig adds to PEFT's own; the latter are not needed for attaching."""
    own = CalaConfig.__dataclass_fields__.keys() - PeftConfig.__dataclass_fields__.keys()
    return {key: value for key, value in raw.items() if key in own}
