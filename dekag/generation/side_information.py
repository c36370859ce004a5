"""Prompts as side information: what the edge's text encoder says of them, for a codec that reads it.

The edge and the user each have a text encoder of their own for it, so that nothing of a prompt crosses the
link, and that the vectors which a knowledge update puts into the edge's other one change nothing here.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any, Self

import torch

from dekag.generation import loading
from dekag.generation.machine import machine_placement
from dekag.generation.placement import Placement
from dekag.generation.profile import GeneratorProfile
from dekag.generation.prompts import PromptReader

RECENT = 256
"""Prompts whose states are kept."""


class SideInformation:
    """States of prompts, from any thread.

    Example:
        >>> from dekag import load_profile
        >>> from dekag.generation.side_information import SideInformation
        >>> known = SideInformation.load(load_profile("stickers").edge)
        >>> known.states("a red car").shape, known.width
        (torch.Size([3, 128]), 128)

    Args:
        tokenizer: of a pipeline.
        text_encoder: of the same.

    Attributes:
        width: numbers of each state.
        encoder: the text encoder.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any) -> None:
        self.encoder = text_encoder.eval()
        self.width = int(text_encoder.config.hidden_size)
        self._reader = PromptReader(SimpleNamespace(tokenizer=tokenizer, text_encoder=self.encoder))
        self._recent: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def load(cls, edge: GeneratorProfile, placed: Placement | None = None) -> Self:
        """The text encoder of a profile's edge; where it computes, the machine's settings say by default.

        Raises:
            NotFoundError: it is not on this machine.
            MismatchError: the pipeline has none.
        """
        tokenizer, text_encoder = (
            loading.load_component(edge, name) for name in ("tokenizer", "text_encoder")
        )
        return cls(tokenizer, text_encoder.to((placed or machine_placement()).text_device))

    @classmethod
    def from_folder(cls, pipeline: Path) -> Self:
        """The text encoder of a pipeline's folder."""
        return cls.load(GeneratorProfile(path=str(pipeline), steps=1, guidance_scale=1.0))

    def states(self, prompt: str) -> torch.Tensor:
        """The states of a prompt's tokens, (tokens, width) float32."""
        with self._lock:
            if prompt not in self._recent:
                self._recent[prompt] = self._reader.side_information(prompt)
                if len(self._recent) > RECENT:
                    self._recent.popitem(last=False)
            self._recent.move_to_end(prompt)
            return self._recent[prompt]
