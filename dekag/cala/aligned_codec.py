"""The codec at run time, with or without transmission knowledge of CALA or another method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch.nn import functional as F

from dekag.arguments import check_each
from dekag.artifacts import UNREADABLE
from dekag.cala.artifact import TransmissionKnowledge
from dekag.cala.conditions import CONDITION_FEATURES, rate_and_snr_db
from dekag.cala.methods import AdaptedCodec, attached
from dekag.codec import JsccCodec, LatentCodec, Modulation
from dekag.codec.batch_invariance import safe_batch
from dekag.errors import InvalidInputError, MismatchError
from dekag.generation.loading import folder_hash

LatentShape = tuple[int, int, int]
MAX_BATCH = 16


class AlignedCodec:
    """A codec that encodes and decodes each image of a batch for that image's condition.

    The bits of an image do not depend on the rest of its batch. Not thread-safe: while a batch runs, its
    gates are stored in the layers.

    Attributes:
        base: the codec without knowledge.
        codec: the codec that runs: a copy with the knowledge attached, or `base` itself.
        base_hash: hash of the codec's folder.
        knowledge: the transmission knowledge. Without any, None, conditions choose the constellation alone.
        content_hash: of the knowledge, empty without any; what sender and receiver must agree on besides
            base_hash.
        quality: the expected PSNR at each rate; None if it was not measured.
        restoration: the timesteps for a `Restorer`; None if they were not measured.
        text_width: width of the prompts' states that it reads; 0 if it reads none.
        interleaved: whether symbols are sent interleaved.
        max_batch: largest batch of the codec without knowledge.
    """

    def __init__(
        self,
        codec: LatentCodec,
        base_hash: str,
        knowledge: TransmissionKnowledge | None = None,
        *,
        max_batch: int = MAX_BATCH,
    ) -> None:
        """Attach `knowledge` to a copy of `codec`.

        Raises:
            MismatchError: the knowledge was made for another codec, does not work with it, or has an unknown
                method.
        """
        self.base, self.base_hash, self.max_batch = codec, base_hash, max_batch
        self.knowledge = knowledge
        self.content_hash = "" if knowledge is None else knowledge.content_hash
        self.quality = None if knowledge is None else knowledge.quality
        self.restoration = None if knowledge is None else knowledge.restoration
        self._adapted = None if knowledge is None else self._adapt(knowledge)
        self.codec: LatentCodec = codec if self._adapted is None else self._adapted.codec
        self.text_width = codec.text_width if self._adapted is None else self._adapted.text_width
        self.interleaved = codec.interleaved
        self._safe_batches: dict[tuple[str, LatentShape], int] = {}

    @classmethod
    def load(
        cls, base_path: Path | str, adapter_path: Path | str | None = None, *, max_batch: int = MAX_BATCH
    ) -> Self:
        """The codec in one folder, with the transmission knowledge in another one if given.

        Raises:
            MismatchError: the knowledge is damaged or was made for another codec.
        """
        knowledge = None if adapter_path is None else TransmissionKnowledge.load(adapter_path)
        return cls(LatentCodec.load(base_path), folder_hash(base_path), knowledge, max_batch=max_batch)

    def with_knowledge(self, knowledge: TransmissionKnowledge) -> Self:
        """The same codec with that knowledge; MismatchError if it does not fit."""
        return type(self)(self.base, self.base_hash, knowledge, max_batch=self.max_batch)

    def modulation_at(self, snr_db: float) -> Modulation:
        """The constellation that is used where none is asked for, at a reported SNR in dB."""
        return (self.base if self._adapted is None else self._adapted).modulation_at(snr_db)

    def max_channel_uses(self, latent_shape: LatentShape) -> int:
        """The most symbols that a latent of (channels, height, width) can be sent with."""
        return self.base.max_channel_uses(latent_shape)

    @torch.inference_mode()
    def encode(
        self,
        latents: torch.Tensor,
        channel_uses: Sequence[int],
        condition: torch.Tensor,
        *,
        modulation: Modulation | None = None,
        text: torch.Tensor | None = None,
        exact: bool = True,
    ) -> torch.Tensor:
        """Latents (batch, channels, h, w) float32 -> symbols (batch, K) complex64, mean power 1 per image.

        Args:
            latents: latents to send.
            channel_uses: symbols for each image; shorter rows end in zeros.
            condition: (batch, C), `condition_vector(..., at="sender")` for each image.
            modulation: the constellation; default: that of the codec's training, or by the condition's SNR.
            text: states of the prompts, (batch, tokens, text_width), zero where nothing is said; None: of no
                image is the prompt read.
            exact: make a row's bits independent of the rest of the batch, by running adapters row by row;
                otherwise a large batch takes half the time per image.

        Raises:
            InvalidInputError: names the argument with an invalid shape or range.
        """
        check_each(len(latents), "latents", channel_uses=channel_uses, condition=condition)
        shape = (latents.shape[1], latents.shape[2], latents.shape[3])
        most = max(channel_uses, default=0)
        parts = [
            self._encode(
                latents[rows], channel_uses[rows], condition[rows], modulation, self._states(text, rows)
            )
            for rows in self._parts("encode", shape, len(latents), exact)
        ]
        return torch.cat([F.pad(each, (0, most - each.shape[1])) for each in parts])

    @torch.inference_mode()
    def decode(
        self,
        symbols: torch.Tensor,
        latent_shape: LatentShape,
        condition: torch.Tensor,
        *,
        text: torch.Tensor | None = None,
        exact: bool = True,
    ) -> torch.Tensor:
        """Equalised symbols (batch, K) complex64 -> latents (batch, channels, h, w) float32.

        Args:
            symbols: received symbols, zero where a row did not send.
            latent_shape: (channels, h, w).
            condition: (batch, C), `condition_vector(..., at="receiver")` for each image.
            text, exact: as in `encode`.

        Raises:
            InvalidInputError: `condition` has an invalid shape.
        """
        if len(condition) != len(symbols):
            raise InvalidInputError("condition", f"{len(symbols)} rows", len(condition))
        # always padded to the full length, so that a row does not depend on the length of others
        padded = F.pad(symbols, (0, self.max_channel_uses(latent_shape) - symbols.shape[1]))
        parts = self._parts("decode", latent_shape, len(symbols), exact)
        return torch.cat(
            [
                self._decode(padded[rows], latent_shape, condition[rows], self._states(text, rows))
                for rows in parts
            ]
        )

    def _adapt(self, knowledge: TransmissionKnowledge) -> AdaptedCodec:
        """A copy of the codec with the knowledge attached, after a trial with a small latent."""
        if knowledge.base_hash != self.base_hash:
            raise MismatchError(
                f"the transmission knowledge is for codec {knowledge.base_hash[:12]}, "
                f"but this codec is {self.base_hash[:12]}"
            )
        adapted = attached(self.base, knowledge)
        channels, condition = int(adapted.codec.config.latent_channels), torch.zeros(1, CONDITION_FEATURES)
        try:
            adapted.fuse()
            with torch.inference_mode():
                symbols = adapted.encode(torch.zeros(1, channels, 8, 8), [1], condition)
                adapted.decode(symbols, (channels, 8, 8), condition)
        except UNREADABLE as error:  # detected here instead of in the first request
            raise MismatchError("the transmission knowledge does not work with the codec") from error
        return adapted

    def _encode(
        self,
        latents: torch.Tensor,
        channel_uses: Sequence[int],
        condition: torch.Tensor,
        modulation: Modulation | None,
        text: torch.Tensor | None,
    ) -> torch.Tensor:
        if self._adapted is None:
            if modulation is None and isinstance(self.base, JsccCodec):
                snrs_db = rate_and_snr_db(condition)[1].tolist()
                chosen = [self.base.modulation_at(snr_db) for snr_db in snrs_db]
                symbols: torch.Tensor = self.base.encode(latents, channel_uses, modulation=chosen, text=text)
                return symbols
            return self.base.encode(latents, channel_uses, modulation=modulation, **_given(text))
        return self._adapted.encode(latents, channel_uses, condition, modulation=modulation, text=text)

    def _decode(
        self,
        symbols: torch.Tensor,
        latent_shape: LatentShape,
        condition: torch.Tensor,
        text: torch.Tensor | None,
    ) -> torch.Tensor:
        if self._adapted is None:
            return self.base.decode(symbols, latent_shape, **_given(text))
        return self._adapted.decode(symbols, latent_shape, condition, text=text)

    def _states(self, text: torch.Tensor | None, rows: slice) -> torch.Tensor | None:
        """The states of some rows, without the tokens at the end that none of them has.

        Raises:
            InvalidInputError: the states have another width than those of the codec's training.
        """
        if text is None or not self.text_width:
            return None
        if text.ndim != 3 or text.shape[2] != self.text_width:
            raise InvalidInputError("text", f"(batch, tokens, {self.text_width})", tuple(text.shape))
        part = text[rows].float()
        tokens = part.abs().amax(dim=(0, 2)).nonzero()
        return part[:, : int(tokens.max()) + 1] if len(tokens) else None

    def _parts(self, side: str, shape: LatentShape, count: int, exact: bool) -> list[slice]:
        """Splits a batch into slices that run together.

        Adapters run row by row if bits matter, and always if they separate groups of conditions. The codec
        alone runs in the largest batches that do not change any bit.
        """
        if self._adapted is None:
            size = self._safe_batch(side, shape) if exact and count > 1 else count
        else:
            size = 1 if exact or self._adapted.groups > 1 else count
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def _safe_batch(self, side: str, shape: LatentShape) -> int:
        """The largest batch of that shape that does not change any bit; determined on first use."""
        if (side, shape) not in self._safe_batches:
            self._safe_batches[side, shape] = self._try_batches(side, shape)
        return self._safe_batches[side, shape]

    def _try_batches(self, side: str, shape: LatentShape) -> int:
        rows, most = self.max_batch, self.max_channel_uses(shape)
        draw = torch.Generator().manual_seed(0)
        counts = torch.randint(1, most + 1, (rows,), generator=draw).tolist()
        latents = torch.randn(rows, *shape, generator=draw)
        symbols = torch.randn(rows, most, dtype=torch.complex64, generator=draw)

        def work(part: slice) -> torch.Tensor:
            if side == "decode":
                return self.base.decode(symbols[part], shape)
            # unquantised, as quantisation would hide differences
            sent = self.base.encode(latents[part], counts[part], modulation="unquantised")
            return F.pad(sent, (0, most - sent.shape[1]))

        return safe_batch(rows, work)


def _given(text: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The argument `text` of a codec's methods, which only those that read prompts take."""
    return {} if text is None else {"text": text}
