"""The codec with its transmission knowledge, CALA's or another method's, as edge and user run it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

import torch
from torch.nn import functional as F

from dekag.artifacts import UNREADABLE
from dekag.cala.artifact import TransmissionKnowledge
from dekag.cala.conditions import CONDITION_FEATURES
from dekag.cala.methods import attached
from dekag.codec import JsccCodec, LatentCodec, Modulation
from dekag.errors import InvalidInputError, MismatchError
from dekag.generation.models import folder_hash


class AlignedCodec:
    """A codec that meets each image of a batch as that image's condition asks.

    Not for several threads at once: the gates of a batch are set in the layers while it runs.

    Attributes:
        codec: a copy of the codec, adapted.
        knowledge: what was loaded into it.
        base_hash: hash of the codec's folder.
        content_hash: of the knowledge; what sender and receiver must agree in beside base_hash.
    """

    def __init__(self, codec: LatentCodec, base_hash: str, knowledge: TransmissionKnowledge) -> None:
        """Put `knowledge` into a copy of `codec`.

        Raises:
            MismatchError: the knowledge was made for another codec, does not work with it, or is of a method
                that is not known here.
        """
        if knowledge.base_hash != base_hash:
            raise MismatchError(
                f"the transmission knowledge is for codec {knowledge.base_hash[:12]}, "
                f"but this codec is {base_hash[:12]}"
            )
        self.knowledge = knowledge
        self.base_hash = base_hash
        self.content_hash = knowledge.content_hash
        self._adapted = attached(codec, knowledge)
        self.codec: JsccCodec = self._adapted.codec
        try:
            self._adapted.fuse()
            self._try_out()
        except UNREADABLE as error:  # before the first request that it would spoil
            raise MismatchError("the transmission knowledge does not work with the codec") from error

    @classmethod
    def load(cls, base_path: Path | str, adapter_path: Path | str) -> Self:
        """The codec in one folder with the transmission knowledge in another.

        Raises:
            MismatchError: the knowledge is damaged or was made for another codec.
        """
        return cls(
            LatentCodec.load(base_path), folder_hash(base_path), TransmissionKnowledge.load(adapter_path)
        )

    def max_channel_uses(self, latent_shape: tuple[int, int, int]) -> int:
        """The most symbols that a latent of (channels, height, width) can be sent with."""
        return self.codec.max_channel_uses(latent_shape)

    @torch.inference_mode()
    def encode(
        self,
        latents: torch.Tensor,
        channel_uses: Sequence[int],
        condition: torch.Tensor,
        *,
        modulation: Modulation | None = None,
        exact: bool = True,
    ) -> torch.Tensor:
        """Latents (batch, channels, h, w) float32 -> symbols (batch, K) complex64, mean power 1 per image.

        Args:
            latents: what is sent.
            channel_uses: symbols for each image; shorter rows end in zeros.
            condition: (batch, C), `condition_vector(..., at="sender")` for each image.
            modulation: the constellation, if not the codec's own.
            exact: image by image, so that a row's bits do not depend on the rest of the batch; else all at
                once, which takes half the time for each of a large batch.

        Raises:
            InvalidInputError: names the argument that has another shape or range.
        """
        if len(channel_uses) != len(latents) or len(condition) != len(latents):
            raise InvalidInputError("channel_uses and condition", f"{len(latents)} each", len(channel_uses))

        def part(rows: slice) -> torch.Tensor:
            with self._conditioned("encoder", condition[rows]):
                counts = channel_uses[rows]
                uses = counts[0] if len(counts) == 1 else counts
                return self.codec.encode(latents[rows], uses, modulation=modulation)

        parts = [part(rows) for rows in self._parts(len(latents), exact)]
        most = max(channel_uses, default=0)
        return torch.cat([F.pad(each, (0, most - each.shape[1])) for each in parts])

    @torch.inference_mode()
    def decode(
        self,
        symbols: torch.Tensor,
        latent_shape: tuple[int, int, int],
        condition: torch.Tensor,
        *,
        exact: bool = True,
    ) -> torch.Tensor:
        """Equalised symbols (batch, K) complex64 -> latents (batch, channels, h, w) float32.

        Args:
            symbols: what was received, zero where a row did not send.
            latent_shape: (channels, h, w).
            condition: (batch, C), `condition_vector(..., at="receiver")` for each image.
            exact: as in `encode`.

        Raises:
            InvalidInputError: `condition` has another shape.
        """
        if len(condition) != len(symbols):
            raise InvalidInputError("condition", f"{len(symbols)} rows", len(condition))

        def part(rows: slice) -> torch.Tensor:
            with self._conditioned("decoder", condition[rows]):
                return self.codec.decode(symbols[rows], latent_shape)

        return torch.cat([part(rows) for rows in self._parts(len(symbols), exact)])

    def _try_out(self) -> None:
        """One of UNREADABLE unless a small latent can be encoded and decoded."""
        channels, condition = int(self.codec.config.latent_channels), torch.zeros(1, CONDITION_FEATURES)
        symbols = self.encode(torch.zeros(1, channels, 8, 8), [1], condition)
        self.decode(symbols, (channels, 8, 8), condition)

    def _conditioned(self, side: str, condition: torch.Tensor) -> AbstractContextManager[None]:
        if self._adapted.groups > 1:
            self._adapted.use_group(int(self._adapted.group_of(condition)[0]))
        return self._adapted.conditioned(side, condition)

    def _parts(self, count: int, exact: bool) -> list[slice]:
        """Slices of a batch that run at once; a method that keeps groups apart runs row by row."""
        alone = exact or self._adapted.groups > 1
        return [slice(row, row + 1) for row in range(count)] if alone else [slice(0, count)]
