"""Transmission knowledge: what was trained of a codec, CALA's adapters and gates, as one versioned artifact.

A folder: `adapter_config.json` and `adapter_model.safetensors` as PEFT's own `save_pretrained` writes them,
so that `PeftModel.from_pretrained(codec, folder)` loads it, and `knowledge.json`, which says which codec it
fits, how it scored and what quality to expect (for rate control), and carries the hash of all of it. Of any
other method there is no configuration: knowledge.json names the method and its share of parameters, the
weights are those that it trains. Nothing but safetensors and JSON is ever read.
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

from dekag.artifacts import UNREADABLE, Artifact
from dekag.cala.config import CalaConfig
from dekag.cala.rate import QualityModel
from dekag.codec import LatentCodec
from dekag.documents import parse_json, read_json
from dekag.errors import MismatchError

FORMAT = 1
KIND = "transmission"
CALA = "cala"
MAX_PARAMETER_FRACTION = 10.0  # a method may train more than the codec has
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LAYER = re.compile(r"[\w.]{1,200}")


class TransmissionKnowledge(Artifact):
    """What was trained for one codec; `dekag.cala.methods.attached` puts it in.

    Made by `new` or `of_method`, or read by `from_files` and `load`; it never changes.

    Attributes:
        info: what knowledge.json says: kind, base_hash, config, scores, quality; method, unless it is CALA.
        content_hash: SHA-256 (hex) over everything in it.
    """

    what = "transmission knowledge"
    parts = (CONFIG, WEIGHTS)

    @classmethod
    def new(cls, info: Mapping[str, Any], adapted: PeftModel) -> Self:
        """The knowledge in a codec that CALA adapted, its weights rounded to float16.

        Args:
            info: what knowledge.json is to say beside format and kind; `base_hash` at least.
            adapted: `get_peft_model(codec, CalaConfig(...))`, trained.
        """
        with tempfile.TemporaryDirectory() as name:
            adapted.save_pretrained(name)
            config = read_json(Path(name) / CONFIG)
            tensors = load((Path(name) / WEIGHTS).read_bytes())
        # where the codec lay when this was made says nothing to whoever loads it
        config = {**config, "base_model_name_or_path": None, "inference_mode": True}
        if isinstance(config["target_modules"], str):  # what matched, as nobody loads a regular expression
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
    ) -> Self:
        """The knowledge of another method, its weights rounded to float16.

        Args:
            info: as in `new`.
            method: its name; sender and receiver must both know it.
            share: largest share of parameters that it was built with.
            weights: trained, every parameter by name that `dekag.cala.methods.build(method, codec, share)`
                leaves to be trained.
        """
        named = {"method": {"name": method, "share": parameter_fraction}}
        rounded = {name: values.detach().half().contiguous() for name, values in weights.items()}
        return cls({"format": FORMAT, "kind": KIND, **named, **info}, {WEIGHTS: save(rounded)})

    def with_info(self, **changes: Any) -> Self:
        """The same adapters with these entries in knowledge.json."""
        return type(self)({**self.info, **changes}, self._files)

    @property
    def quality(self) -> QualityModel | None:
        """What to expect of it, if that was measured."""
        return QualityModel.from_json(self.info["quality"]) if self.info.get("quality") else None

    @property
    def method(self) -> str:
        """Name of the method that it is of."""
        return str(self.info["method"]["name"]) if "method" in self.info else CALA

    @property
    def parameter_fraction(self) -> float:
        """Largest share of parameters that its method was built with; CALA's configuration says more."""
        return float(self.info["method"]["share"])

    def config(self) -> CalaConfig:
        """How CALA's adapters are built."""
        return CalaConfig(**_fields(parse_json(self._files[CONFIG], CONFIG)))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its weights by name, float16."""
        return load(self._files[WEIGHTS])

    def attach(self, codec: LatentCodec) -> PeftModel:
        """Put CALA's adapters into `codec`, which is changed by it.

        Raises:
            MismatchError: the adapters do not fit the codec's layers.
        """
        try:
            adapted = get_peft_model(codec, self.config())
            outcome = set_peft_model_state_dict(adapted, self.tensors())
            # every key of the codec itself is "missing", as it should be
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
        """Whether knowledge.json says that it is transmission knowledge of this format."""
        return bool(info["format"] == FORMAT and info["kind"] == KIND)

    def check(self) -> None:
        """One of UNREADABLE unless every part is what its user counts on."""
        if not isinstance(self.info["base_hash"], str):
            raise TypeError("base_hash")
        if self.method == CALA:
            self._check_config(self.config())
        elif not 0 < self.parameter_fraction <= MAX_PARAMETER_FRACTION:
            raise ValueError("share")
        for name, tensor in self.tensors().items():
            if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
                raise ValueError(name)
        _ = self.quality

    def _check_config(self, config: CalaConfig) -> None:
        """ValueError if a layer is not called by its name: PEFT would match a pattern, at any cost."""
        lists = [config.target_modules or [], config.exclude_modules or [], config.sides]
        if not all(isinstance(names, list) for names in lists):
            raise ValueError("names of layers")
        for name in [*(name for names in lists for name in names), *config.rank_pattern]:
            if _LAYER.fullmatch(name) is None:
                raise ValueError(name)


def _fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that CalaConfig adds to PEFT's own, which say nothing that attaching needs."""
    own = CalaConfig.__dataclass_fields__.keys() - PeftConfig.__dataclass_fields__.keys()
    return {key: value for key, value in raw.items() if key in own}
