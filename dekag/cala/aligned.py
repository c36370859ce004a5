"""The codec with its transmission knowledge, as edge and user run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch

from dekag.cala.artifact import TransmissionKnowledge
from dekag.codec import JsccCodec, Modulation
from dekag.errors import MismatchError
from dekag.generation.models import folder_hash


class AlignedCodec:
    """A codec that meets each image of a batch as that image's condition asks.

    Not for several threads at once: the gates of a batch are set in the layers while it runs.

    Attributes:
        codec: the codec with its adapters.
        knowledge: what was loaded into it.
        base_hash: hash of the codec's folder.
        content_hash: of the knowledge; what sender and receiver must agree in beside base_hash.
    """

    def __init__(self, codec: JsccCodec, base_hash: str, knowledge: TransmissionKnowledge) -> None:
        """Put `knowledge` into `codec`, which is changed by it.

        Raises:
            MismatchError: the knowledge was made for another codec.
        """
        if knowledge.base_hash != base_hash:
            raise MismatchError(
                f"the transmission knowledge is for codec {knowledge.base_hash[:12]}, "
                f"but this codec is {base_hash[:12]}"
            )
        self.codec = codec
        self.knowledge = knowledge
        self.base_hash = base_hash
        self.content_hash = knowledge.content_hash
        self._adapted = knowledge.attach(codec)
        self._adapted.base_model.fuse()

    @classmethod
    def load(cls, base_path: Path | str, adapter_path: Path | str) -> Self:
        """The codec in one folder with the transmission knowledge in another.

        Raises:
            MismatchError: the knowledge is damaged or was made for another codec.
        """
        return cls(
            JsccCodec.load(base_path), folder_hash(base_path), TransmissionKnowledge.load(adapter_path)
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
    ) -> torch.Tensor:
        """Latents (batch, channels, h, w) float32 -> symbols (batch, K) complex64, mean power 1 per image.

        Args:
            latents: what is sent.
            channel_uses: symbols for each image; shorter rows end in zeros.
            condition: (batch, C), `condition_vector(..., at="sender")` for each image.
            modulation: the constellation, if not the codec's own.

        Raises:
            InvalidInputError: names the argument that has another shape or range.
        """
        with self._adapted.base_model.conditioned("encoder", condition):
            return self.codec.encode(latents, channel_uses, modulation=modulation)

    @torch.inference_mode()
    def decode(
        self, symbols: torch.Tensor, latent_shape: tuple[int, int, int], condition: torch.Tensor
    ) -> torch.Tensor:
        """Equalised symbols (batch, K) complex64 -> latents (batch, channels, h, w) float32.

        Args:
            symbols: what was received, zero where a row did not send.
            latent_shape: (channels, h, w).
            condition: (batch, C), `condition_vector(..., at="receiver")` for each image.

        Raises:
            InvalidInputError: `condition` has another shape.
        """
        with self._adapted.base_model.conditioned("decoder", condition):
            return self.codec.decode(symbols, latent_shape)
