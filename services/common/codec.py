"""The codec, with adapters or without, for the batches that edge and user make of what is asked at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from dekag.cala import CONDITION_FEATURES
from dekag.cala.aligned import AlignedCodec
from dekag.cala.artifact import TransmissionKnowledge
from dekag.codec import LatentCodec, Modulation
from dekag.codec.rows import safe_batch
from dekag.finite import check_finite
from dekag.generation.models import folder_hash

LatentShape = tuple[int, int, int]


class Codec:
    """Encodes and decodes several transmissions at once, each with a rate and for a condition of its own.

    The bits of a transmission never depend on what else is in its batch: batches are split where they would.

    Args:
        base: the codec.
        base_hash: ``folder_hash`` of the codec.
        max_batch: most transmissions at once.
        aligned: a copy of the codec with adapters; without one, conditions are of no effect.

    Attributes:
        base, base_hash: as above.
        knowledge: the adapters, None without any.
        content_hash: of the adapters, empty without any.
        quality: what PSNR to expect of which rate; None where nobody has measured it.
    """

    def __init__(
        self, base: LatentCodec, base_hash: str, *, max_batch: int, aligned: AlignedCodec | None = None
    ) -> None:
        self.base, self.base_hash = base, base_hash
        self._max_batch, self._aligned = max_batch, aligned
        self.knowledge = None if aligned is None else aligned.knowledge
        self.content_hash = "" if aligned is None else aligned.content_hash
        self.quality = None if self.knowledge is None else self.knowledge.quality
        self._safe: dict[tuple[str, LatentShape], int] = {}

    @classmethod
    def load(cls, path: str, *, max_batch: int) -> Codec:
        """The codec in that folder, without adapters."""
        return cls(LatentCodec.load(path), folder_hash(path), max_batch=max_batch)

    def adapted_from(self, folder: str) -> Codec:
        """The codec with the adapters in ``folder``; MismatchError if they are damaged or do not fit."""
        return self.adapted(TransmissionKnowledge.load(Path(folder)))

    def adapted(self, knowledge: TransmissionKnowledge) -> Codec:
        """The codec with these adapters; MismatchError if they do not fit."""
        aligned = AlignedCodec(self.base, self.base_hash, knowledge)
        return Codec(self.base, self.base_hash, max_batch=self._max_batch, aligned=aligned)

    def encode(
        self,
        latents: Sequence[torch.Tensor],
        channel_uses: Sequence[int],
        modulation: Modulation,
        conditions: Sequence[torch.Tensor],
        seeds: Sequence[int],
    ) -> list[torch.Tensor]:
        """Symbols (1, K_i) complex64 of each latent (1, *shape), all of the same shape.

        Args:
            latents: what to send.
            channel_uses: K_i of each.
            modulation: where the symbols may lie.
            conditions: what the sender knows of each one's channel, (C,).
            seeds: by which an error calls them.

        Raises:
            NumericalError: a symbol is not finite.
        """
        batch = torch.cat(list(latents))
        shape: LatentShape = (batch.shape[1], batch.shape[2], batch.shape[3])

        def some(rows: slice) -> list[torch.Tensor]:
            counts = list(channel_uses[rows])
            symbols = self._encode(batch[rows], counts, modulation, conditions[rows])
            check_finite(symbols, "encode", seeds=seeds[rows], model_hash=self.base_hash)
            return [row[None, :count].clone() for row, count in zip(symbols, counts, strict=True)]

        return self._split(len(batch), ("encode", shape), some)

    def decode(
        self,
        symbols: Sequence[torch.Tensor],
        shape: LatentShape,
        conditions: Sequence[torch.Tensor],
        seeds: Sequence[int],
    ) -> list[torch.Tensor]:
        """Latents (1, *shape) of each transmission's equalised symbols (1, K_i).

        Args:
            symbols: as received.
            shape: of the latents.
            conditions: what the receiver knows of each one's channel, (C,).
            seeds: by which an error calls them.

        Raises:
            NumericalError: a symbol or what it is decoded to is not finite.
        """
        most = self.base.max_channel_uses(shape)
        batch = torch.cat([F.pad(row, (0, most - row.shape[1])) for row in symbols])

        def some(rows: slice) -> list[torch.Tensor]:
            check_finite(batch[rows], "equalize", seeds=seeds[rows])
            latents = self._decode(batch[rows], shape, conditions[rows])
            check_finite(latents, "decode", seeds=seeds[rows], model_hash=self.base_hash)
            return list(latents.split(1))

        return self._split(len(batch), ("decode", shape), some)

    def _split(
        self, count: int, kind: tuple[str, LatentShape], some: Callable[[slice], list[torch.Tensor]]
    ) -> list[torch.Tensor]:
        size = 1 if count == 1 else self._largest(*kind)
        return [
            row for start in range(0, count, size) for row in some(slice(start, min(start + size, count)))
        ]

    @torch.inference_mode()
    def _encode(
        self,
        latents: torch.Tensor,
        counts: list[int],
        modulation: Modulation,
        conditions: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        if self._aligned is None:
            return self.base.encode(latents, counts, modulation=modulation)
        return self._aligned.encode(latents, counts, torch.stack(list(conditions)), modulation=modulation)

    @torch.inference_mode()
    def _decode(
        self, symbols: torch.Tensor, shape: LatentShape, conditions: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        if self._aligned is None:
            return self.base.decode(symbols, shape)
        return self._aligned.decode(symbols, shape, torch.stack(list(conditions)))

    def _largest(self, what: str, shape: LatentShape) -> int:
        """The largest batch of that shape that changes no bit; tried out once, when it is first wanted."""
        if (what, shape) not in self._safe:
            self._safe[what, shape] = self._try_out(what, shape)
        return self._safe[what, shape]

    def _try_out(self, what: str, shape: LatentShape) -> int:
        rows, most = self._max_batch, self.base.max_channel_uses(shape)
        draw = torch.Generator().manual_seed(0)
        counts = torch.randint(1, most + 1, (rows,), generator=draw).tolist()
        conditions = list(torch.randn(rows, CONDITION_FEATURES, generator=draw))
        latents = torch.randn(rows, *shape, generator=draw)
        symbols = torch.randn(rows, most, dtype=torch.complex64, generator=draw)

        def work(some: slice) -> torch.Tensor:
            if what == "decode":
                return self._decode(symbols[some], shape, conditions[some])
            # unquantised, so that no bit is lost
            sent = self._encode(latents[some], counts[some], "unquantised", conditions[some])
            return F.pad(sent, (0, most - sent.shape[1]))

        return safe_batch(rows, work)
