"""An image's way over the radio link: condition, encode, transmit, equalise, decode.

`Sender` and `Receiver` are the two ends of semantic delivery, `DigitalSender` and `DigitalReceiver` those of
conventional delivery; `apply_channel` is the air between them. The services run one part each; `SemanticLink`
runs all of them in one process, with the same bits.

A picture of a user's own is one transmission: its tiles are encoded one by one, and their symbols take turns,
so that each of n tiles has every n-th symbol and meets the fades of the whole transmission.

A batch is a sequence of images of one size. Each has link conditions, a rate and a seed of its own, and its
symbols do not depend on the rest of the batch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from dekag.api.limits import PIXEL_STEP, check_seed
from dekag.arguments import (
    check_each,
    check_latent_shape,
    check_latents,
    check_sides,
    check_states,
    check_symbols,
    check_whole,
    is_whole,
)
from dekag.errors import InvalidInputError, NotFoundError, described
from dekag.link.channel import ChannelState, Reception, block_of_symbol, compose_hops, transmit
from dekag.link.conditions import BUILT_IN_TRACES, MAX_SNR_DB, MIN_SNR_DB, EqualizerKind, LinkConditions
from dekag.link.equalizer import equalize
from dekag.link.interleaver import deinterleaved, interleaved
from dekag.numerics import check_finite

if TYPE_CHECKING:
    # Imported where they are needed: the channel service uses this module without any model's libraries.
    from dekag.api.schemas import Restoration
    from dekag.cala.rate import QualityModel
    from dekag.cala.restoration import RestorationTable
    from dekag.codec import Modulation
    from dekag.generation.images import ImageFormat, Pixels
    from dekag.generation.models import Generator, LatentDecoder
    from dekag.generation.placement import Placement
    from dekag.link.digital import ModulationAndCoding
    from dekag.pictures import Picture, Tiling
    from dekag.pixel_modules import AnyPixelCodec
    from dekag.profile import Profile

LatentShape = tuple[int, int, int]
Text = Sequence[torch.Tensor | None] | None
"""The states of each prompt of a batch, (tokens, text_width); None where it is withheld, or where all are."""
DEFAULT_CBR = 1 / 96


class ConditionedCodec(Protocol):
    """What a link encodes and decodes with: `AlignedCodec`, or `AdaptedCodec` while it is trained.

    Attributes:
        base_hash: hash of the codec's folder, for error messages; empty if unknown.
        quality: the PSNR to expect at each rate; None where it was not measured.
        restoration: the timesteps for a `Restorer`; None where they were not measured.
        text_width: width of the prompts' states that it reads; 0 if it reads none.
        interleaved: whether symbols are sent interleaved.
    """

    base_hash: str
    quality: QualityModel | None
    restoration: RestorationTable | None

    @property
    def text_width(self) -> int:
        """Width of the prompts' states that it reads."""

    @property
    def interleaved(self) -> bool:
        """Whether symbols are sent interleaved."""

    def modulation_at(self, snr_db: float, /) -> Modulation:
        """The constellation that is used where none is asked for, at a reported SNR in dB."""

    def max_channel_uses(self, latent_shape: LatentShape, /) -> int:
        """The most symbols that a latent of (channels, height, width) can be sent with."""

    def encode(
        self,
        latents: torch.Tensor,
        channel_uses: Sequence[int],
        condition: torch.Tensor,
        *,
        modulation: Modulation | None = None,
        text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Latents (B, channels, h, w) and conditions (B, C) -> symbols (B, K) complex64, zero-padded."""

    def decode(
        self,
        symbols: torch.Tensor,
        latent_shape: LatentShape,
        condition: torch.Tensor,
        *,
        text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Equalised symbols (B, K) and conditions (B, C) -> latents (B, channels, h, w) float32."""


@dataclass(frozen=True)
class Rate:
    """How many symbols an image is sent with.

    Attributes:
        channel_uses: complex symbols, without pilots.
        expected_psnr_db: expected PSNR, dB, if the rate was chosen for a target; None otherwise.
    """

    channel_uses: int
    expected_psnr_db: float | None = None


class Sender:
    """Encodes latents for what the sender knows of each image's channel.

    Example:
        >>> import torch
        >>> from dekag import LinkConditions, SemanticLink
        >>> sender = SemanticLink.load("stickers").sender
        >>> conditions = LinkConditions(snr_db=10)
        >>> rate = sender.rate(conditions, (4, 32, 32), source_values=3 * 256 * 256, target_psnr_db=20)
        >>> rate.expected_psnr_db > 20
        True
        >>> latents = torch.randn(1, 4, 32, 32)
        >>> (symbols,) = sender.encode(latents, [conditions], [256], source_values=3 * 256 * 256, seeds=[7])
        >>> symbols.shape
        torch.Size([1, 256])

    Args:
        codec: encodes; the receiver must have the same one.
    """

    def __init__(self, codec: ConditionedCodec) -> None:
        self.codec = codec

    def rate(
        self,
        conditions: LinkConditions,
        latent_shape: LatentShape,
        *,
        source_values: int,
        cbr: float = DEFAULT_CBR,
        target_psnr_db: float | None = None,
    ) -> Rate:
        """The rate asked for, or the smallest one that is expected to reach a PSNR.

        Args:
            conditions: of the link; the sender goes by the SNR that was last reported to it.
            latent_shape: (channels, h, w).
            source_values: values of the image, 3 * width * height.
            cbr: channel uses per source value; has no effect with a target.
            target_psnr_db: PSNR to reach, dB.

        Raises:
            InvalidInputError: the codec cannot send at that rate, or it is not known what PSNR to expect.
        """
        check_latent_shape(latent_shape)
        check_whole(source_values=source_values)
        most = self.codec.max_channel_uses(latent_shape)
        if target_psnr_db is None:
            channel_uses = round(cbr * source_values) if math.isfinite(cbr) else 0
            if not 1 <= channel_uses <= most:
                lowest, highest = 1 / source_values, most / source_values
                allowed = f"between {lowest:.3g} and {highest:.6g} for this size and codec"
                raise InvalidInputError("cbr", allowed, cbr)
            return Rate(channel_uses)
        if (quality := self.codec.quality) is None:
            raise InvalidInputError(
                "cbr",
                'a number: "auto" needs transmission knowledge that says what quality to expect, '
                "and there is none for this codec",
                "auto",
            )
        if not math.isfinite(target_psnr_db):
            raise InvalidInputError("target_psnr_db", "a finite number, dB", target_psnr_db)
        smallest = quality.smallest_cbr(target_psnr_db, conditions)
        channel_uses = min(max(math.ceil(smallest * source_values), 1), most)
        return Rate(channel_uses, quality.expected_psnr_db(channel_uses / source_values, conditions))

    @torch.inference_mode()
    def encode(
        self,
        latents: torch.Tensor,
        conditions: Sequence[LinkConditions],
        channel_uses: Sequence[int],
        *,
        source_values: int,
        seeds: Sequence[int],
        modulation: Modulation | None = None,
        text: Text = None,
    ) -> list[torch.Tensor]:
        """Symbols (1, K_i) complex64 of each image, mean power 1.

        Args:
            latents: (B, channels, h, w) float32.
            conditions: one per latent; the sender knows only the reported SNR.
            channel_uses: K_i of each image.
            source_values: values of each image, 3 * width * height.
            seeds: one per latent, for error messages.
            modulation: the constellation; default: by the SNR that was last reported, if the codec adapts it,
                otherwise that of its training.
            text: the states of each prompt, (tokens, text_width), or None where it is withheld; None: all
                are. Ignored by a codec that reads no prompts.

        Raises:
            InvalidInputError: names the argument that has another shape or range.
            NumericalError: a symbol is not finite.
        """
        from dekag.cala.conditions import condition_vector

        check_latents(latents)
        given = {"conditions": conditions, "channel_uses": channel_uses, "seeds": seeds, "text": text}
        check_each(len(latents), "latents", **given)
        most = _most(self.codec, _shape(latents), "latents")
        for uses in channel_uses:
            if not is_whole(uses, 1, most):
                raise InvalidInputError("channel_uses", f"between 1 and {most}", uses)
        check_whole(source_values=source_values)
        known = [
            condition_vector(uses / source_values, each, at="sender")
            for uses, each in zip(channel_uses, conditions, strict=True)
        ]
        symbols = self.codec.encode(
            latents, channel_uses, torch.stack(known), modulation=modulation, text=_padded(text, self.codec)
        )
        check_finite(symbols, "encode", seeds=seeds, model_hash=self.codec.base_hash)
        rows = [row[None, :uses].clone() for row, uses in zip(symbols, channel_uses, strict=True)]
        return [interleaved(row) for row in rows] if self.codec.interleaved else rows

    def tiles_rate(
        self,
        conditions: LinkConditions,
        latent_shape: LatentShape,
        tiling: Tiling,
        *,
        cbr: float = DEFAULT_CBR,
        target_psnr_db: float | None = None,
    ) -> Rate:
        """The rate of a whole picture, at least one symbol for each tile; see `rate`.

        Args:
            conditions: of the link.
            latent_shape: (channels, h, w) of a tile.
            tiling: of the picture; its CBR relates to the picture without padding.
            cbr: channel uses per source value of the picture; has no effect with a target. A codec of pixels
                that is a plug-in may send fewer, as it has only some numbers of symbols.
            target_psnr_db: PSNR to reach against what the autoencoder makes of the picture, dB.

        Raises:
            InvalidInputError: as `rate`.
        """
        if target_psnr_db is not None:
            each = self.rate(
                conditions, latent_shape, source_values=tiling.tile_values, target_psnr_db=target_psnr_db
            )
            return Rate(each.channel_uses * tiling.count, each.expected_psnr_db)
        from dekag.pixel_modules import PixelModules

        if isinstance(self.codec, PixelModules):
            return Rate(self.codec.channel_uses(tiling, cbr))
        most = self.codec.max_channel_uses(latent_shape) * tiling.count
        channel_uses = round(cbr * tiling.source_values) if math.isfinite(cbr) else 0
        if not 0 < cbr <= most / tiling.source_values:
            allowed = f"above 0 and at most {most / tiling.source_values:.6g} for this size and codec"
            raise InvalidInputError("cbr", allowed, cbr)
        return Rate(min(max(channel_uses, tiling.count), most))

    def encode_tiles(
        self,
        latents: torch.Tensor,
        conditions: LinkConditions,
        channel_uses: int,
        tiling: Tiling,
        *,
        seed: int,
        modulation: Modulation | None = None,
        text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Symbols (1, K) complex64 of a picture, mean power 1: symbol k belongs to tile k modulo n.

        Args:
            latents: (n, channels, h, w) float32, of the tiles.
            conditions: of the link.
            channel_uses: K, at least n.
            tiling: of the picture.
            seed: for error messages.
            modulation: the constellation; as of `encode`.
            text: the states of the picture's prompt, (tokens, text_width); None: it has none.

        Raises:
            InvalidInputError: names the argument that has another shape or range.
            NumericalError: a symbol is not finite.
        """
        count = tiling.count
        check_latents(latents)
        if len(latents) != count:
            raise InvalidInputError("latents", f"one for each of {count} tiles", len(latents))
        _check_scale(_shape(latents), tiling, "latents")
        if not is_whole(channel_uses, count):
            allowed = f"at least {count}, one for each tile"
            raise InvalidInputError("channel_uses", allowed, channel_uses)
        rows = self.encode(
            latents,
            [conditions] * count,
            [len(range(tile, channel_uses, count)) for tile in range(count)],
            source_values=tiling.tile_values,
            seeds=[seed] * count,
            modulation=modulation,
            text=[text] * count,
        )
        symbols = torch.empty(1, channel_uses, dtype=torch.complex64)
        for tile, row in enumerate(rows):
            symbols[:, tile::count] = row
        return symbols


class Receiver:
    """Equalises and decodes symbols for what the receiver knows of each image's channel.

    Example:
        >>> import torch
        >>> from dekag import LinkConditions, SemanticLink
        >>> from dekag.pipeline import apply_channel
        >>> link, conditions = SemanticLink.load("stickers"), LinkConditions(snr_db=10)
        >>> size = {"source_values": 3 * 256 * 256, "seeds": [7]}
        >>> (symbols,) = link.sender.encode(torch.randn(1, 4, 32, 32), [conditions], [256], **size)
        >>> reception = apply_channel(symbols, conditions, seed=7)
        >>> link.receiver.decode([reception], [conditions], latent_shape=(4, 32, 32), **size).shape
        torch.Size([1, 4, 32, 32])

    Args:
        codec: decodes; must be the sender's.
    """

    def __init__(self, codec: ConditionedCodec) -> None:
        self.codec = codec

    @torch.inference_mode()
    def decode(
        self,
        receptions: Sequence[Reception],
        conditions: Sequence[LinkConditions],
        *,
        latent_shape: LatentShape,
        source_values: int,
        seeds: Sequence[int],
        text: Text = None,
    ) -> torch.Tensor:
        """Latents (B, channels, h, w) float32 of B receptions of one image each.

        Args:
            receptions: what arrived.
            conditions: one per latent.
            latent_shape: (channels, h, w), of all.
            source_values: values of each image, 3 * width * height.
            seeds: one per latent, for error messages.
            text: as the sender's.

        Raises:
            InvalidInputError: names the argument that has another shape or range.
            NumericalError: a symbol or a latent is not finite.
        """
        from dekag.cala.conditions import block_snr_db, condition_vector

        if not len(receptions):
            raise InvalidInputError("receptions", "at least 1", 0)
        check_each(len(receptions), "receptions", conditions=conditions, seeds=seeds, text=text)
        check_latent_shape(latent_shape)
        check_whole(source_values=source_values)
        most = _most(self.codec, latent_shape, "latent_shape")
        for reception in receptions:
            check_symbols(reception.symbols, most, field="receptions")
        known, rows = [], []
        for reception, each in zip(receptions, conditions, strict=True):
            blocks = block_snr_db(reception.gains, reception.no, reception.gain_errors)[0]
            cbr = reception.symbols.shape[1] / source_values
            known.append(condition_vector(cbr, each, at="receiver", block_snr_db=blocks))
            equalised = equalize(reception, self._equalizer or each.equalizer).symbols
            rows.append((deinterleaved(equalised) if self.codec.interleaved else equalised)[0])
        symbols = pad_sequence(rows, batch_first=True)
        check_finite(symbols, "equalize", seeds=seeds)
        latents = self.codec.decode(symbols, latent_shape, torch.stack(known), text=_padded(text, self.codec))
        check_finite(latents, "decode", seeds=seeds, model_hash=self.codec.base_hash)
        return latents

    @property
    def _equalizer(self) -> EqualizerKind | None:
        """The one that the codec's decoder was made for, whatever the link says; None: the link's."""
        from dekag.pixel_modules import PixelModules

        return self.codec.equalizer if isinstance(self.codec, PixelModules) else None

    def decode_tiles(
        self,
        reception: Reception,
        conditions: LinkConditions,
        tiling: Tiling,
        *,
        latent_shape: LatentShape,
        seed: int,
        text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Latents (n, channels, h, w) float32 of a picture's tiles; see `Sender.encode_tiles`.

        Args:
            reception: of the whole picture.
            conditions: of the link.
            tiling: of the picture.
            latent_shape: (channels, h, w) of a tile.
            seed: for error messages.
            text: as the sender's.

        Raises:
            InvalidInputError: names the argument that has another shape or range.
            NumericalError: a symbol or a latent is not finite.
        """
        count = tiling.count
        check_latent_shape(latent_shape)
        _check_scale(latent_shape, tiling, "latent_shape")
        return self.decode(
            tile_receptions(reception, count),
            [conditions] * count,
            latent_shape=latent_shape,
            source_values=tiling.tile_values,
            seeds=[seed] * count,
            text=[text] * count,
        )

    def expected_psnr_db(self, reception: Reception, *, source_values: int) -> float:
        """PSNR to expect of one reception's image, dB, as its receiver knows it.

        The quality table is read at the SNR of a channel without fading that has the same capacity as the
        reception's blocks. It was measured with perfect CSI, MMSE and the prompt: without these, expect less.

        Args:
            reception: what arrived of one image.
            source_values: values of the image, 3 * width * height.

        Raises:
            InvalidInputError: the codec's quality was not measured.
        """
        from dekag.cala.conditions import block_snr_db

        if (quality := self.codec.quality) is None:
            allowed = "given to a codec with transmission knowledge that says what quality to expect"
            raise InvalidInputError("reception", allowed, "none")
        blocks = block_snr_db(reception.gains, reception.no, reception.gain_errors)[0].double()
        bits = torch.log2(1 + 10 ** (blocks / 10)).mean()
        snr_db = float(10 * torch.log10((2**bits - 1).clamp_min(1e-12)))
        steady = LinkConditions(fading="awgn", snr_db=min(max(snr_db, MIN_SNR_DB), MAX_SNR_DB))
        return quality.expected_psnr_db(reception.symbols.shape[1] / source_values, steady)

    def timestep(self, reception: Reception, conditions: LinkConditions, *, source_values: int) -> int:
        """The timestep with which a `Restorer` improves what was decoded of one reception.

        Raises:
            InvalidInputError: the codec has no transmission knowledge that says so, or the receiver does not
                know its gains.
        """
        if conditions.csi == "none":
            allowed = "none with csi none, as the receiver does not know how good a latent is"
            raise InvalidInputError("link.restoration", allowed, "denoiser")
        if (table := self.codec.restoration) is None or self.codec.quality is None:
            allowed = "none: there is no transmission knowledge that says how to restore with this codec"
            raise InvalidInputError("link.restoration", allowed, "denoiser")
        return table.timestep(self.expected_psnr_db(reception, source_values=source_values))


def _shape(latents: torch.Tensor) -> LatentShape:
    """(channels, h, w) of a batch of latents."""
    return latents.shape[1], latents.shape[2], latents.shape[3]


def _most(codec: ConditionedCodec, shape: LatentShape, field: str) -> int:
    """The most symbols that a codec sends a latent with; InvalidInputError if it is too small for one."""
    most = codec.max_channel_uses(shape)
    if most < 1:
        raise InvalidInputError(field, "large enough for a symbol of the codec", shape)
    return most


def _check_scale(shape: LatentShape, tiling: Tiling, field: str) -> None:
    """Raises InvalidInputError unless a latent is to a tile as its width is to the tile's width."""
    _, height, width = shape
    factor, rest = divmod(tiling.tile_width, width)
    if rest or height * factor != tiling.tile_height:
        allowed = f"of tiles of {tiling.tile_width}x{tiling.tile_height} pixels, of the same ratio of sides"
        raise InvalidInputError(field, allowed, f"{width}x{height}")


def _padded(text: Text, codec: ConditionedCodec) -> torch.Tensor | None:
    """The states of all prompts as (B, tokens, text_width), zero where nothing is said."""
    if text is None or not codec.text_width or not any(each is not None for each in text):
        return None
    check_states(text, codec.text_width)
    nothing = torch.zeros(0, codec.text_width)
    return pad_sequence([nothing if each is None else each.float() for each in text], batch_first=True)


def apply_channel(
    symbols: torch.Tensor,
    conditions: LinkConditions,
    seed: int,
    *,
    hop: int = 0,
    traces: Path = BUILT_IN_TRACES,
) -> Reception:
    """What arrives of one image's symbols (1, K) after a channel; see `dekag.link.channel.transmit`.

    Example:
        >>> import torch
        >>> from dekag import LinkConditions
        >>> from dekag.pipeline import apply_channel
        >>> symbols = torch.ones(1, 512, dtype=torch.complex64)
        >>> reception = apply_channel(symbols, LinkConditions(snr_db=5, fading="rayleigh"), seed=7)
        >>> reception.symbols.shape, reception.gains.shape
        (torch.Size([1, 512]), torch.Size([1, 8]))

    Args:
        symbols: (1, K) complex64.
        conditions: of the channel.
        seed: of fading and noise, 0 to 2**64 - 1.
        hop: how many channels the symbols crossed before.
        traces: folder of the traces that the conditions may name.

    Raises:
        InvalidInputError: names the argument that has another shape or range.
        NumericalError: a symbol is not finite.
    """
    reception = transmit(symbols, [conditions], [seed], hop=hop, traces=traces)
    check_finite(reception.symbols, "transmit", seeds=[seed])
    return reception


def receive(symbols: torch.Tensor, states: Sequence[ChannelState], seed: int) -> Reception:
    """The reception of one image's symbols (1, K) that crossed channels, the first crossed first.

    Example:
        >>> import torch
        >>> from dekag.link.channel import ChannelState
        >>> from dekag.pipeline import receive
        >>> two_hops = [ChannelState(torch.full((1, 8), 0.5 + 0j), torch.tensor([0.1]))] * 2
        >>> receive(torch.ones(1, 512, dtype=torch.complex64), two_hops, seed=7).no
        tensor([0.2000])

    Args:
        symbols: (1, K) complex64, as the last channel delivered them.
        states: what is known of each channel.
        seed: for error messages.

    Raises:
        InvalidInputError: the states do not fit the symbols or one another.
        NumericalError: a symbol or a gain is not finite.
    """
    reception = compose_hops(symbols, states)
    for values in (reception.symbols, reception.gains):
        check_finite(values, "receive", seeds=[seed])
    return reception


def tile_receptions(reception: Reception, count: int) -> list[Reception]:
    """The receptions of the tiles of a picture, from that of the whole (1, K); pilots count for the whole.

    Raises:
        InvalidInputError: there is not a symbol for each of `count` tiles, or the reception is of several.
    """
    check_whole(count=count)
    check_symbols(reception.symbols, field="reception")
    if (sent := reception.symbols.shape[1]) < count:
        raise InvalidInputError("reception", f"of at least {count} symbols, one for each tile", sent)
    if count == 1:
        return [reception]
    gains, errors = reception.symbol_gains, reception.gain_errors
    if errors is not None:
        errors = errors[:, block_of_symbol(reception.symbols.shape[1], errors.shape[1])]
    return [
        Reception(
            reception.symbols[:, tile::count],
            gains[:, tile::count],
            reception.no,
            None if errors is None else errors[:, tile::count],
        )
        for tile in range(count)
    ]


class DigitalSender:
    """Sends the bytes of an image file over 5G LDPC and QAM.

    Example:
        >>> from dekag import LinkConditions
        >>> from dekag.pipeline import DigitalReceiver, DigitalSender, apply_channel
        >>> payload, conditions = b"the bytes of an image file", LinkConditions(snr_db=15, fading="awgn")
        >>> symbols, coding = DigitalSender().encode(payload, conditions)
        >>> reception = apply_channel(symbols, conditions, seed=7)
        >>> DigitalReceiver().decode(reception, coding, len(payload), seed=7) == payload
        True
    """

    def encode(self, payload: bytes, conditions: LinkConditions) -> tuple[torch.Tensor, ModulationAndCoding]:
        """Symbols (1, K) complex64, and the modulation and coding that was chosen for the link.

        Args:
            payload: 1 to 2**20 bytes.
            conditions: of the link; the sender goes by the SNR that was last reported to it.

        Raises:
            InvalidInputError: the payload has another length.
        """
        from dekag.link.digital import DigitalLink

        link = DigitalLink()
        coding = link.choose(conditions, len(payload))
        return link.modulate(payload, coding), coding


class DigitalReceiver:
    """Decodes what `DigitalSender` sent; see the example there."""

    def decode(
        self, reception: Reception, coding: ModulationAndCoding, payload_bytes: int, *, seed: int
    ) -> bytes:
        """The payload of a reception of one image file.

        Args:
            reception: of all K symbols.
            coding: as chosen by the sender.
            payload_bytes: length of the payload.
            seed: for error messages.

        Raises:
            DecodingError: the CRC does not hold; the payload is lost.
            InvalidInputError: the reception does not fit coding and length.
            NumericalError: a soft bit is not finite.
        """
        from dekag.link.digital import DigitalLink

        link = DigitalLink()
        soft_bits = link.soft_bits(reception, coding, payload_bytes)
        check_finite(soft_bits[None], "equalize", seeds=[seed])
        return link.decode(soft_bits, coding, payload_bytes)


@dataclass(frozen=True)
class LinkResult:
    """What came of sending a batch.

    Attributes:
        latents: (B, channels, h, w) float32, as received.
        rates: of each image.
        symbols: (1, K_i) complex64 of each image, as sent.
        receptions: of each image, as they arrived.
    """

    latents: torch.Tensor
    rates: Sequence[Rate]
    symbols: Sequence[torch.Tensor]
    receptions: Sequence[Reception]


@dataclass(frozen=True, eq=False)
class ReceivedImage:
    """An image that was generated, sent and received.

    Attributes:
        pixels: (height, width, 3) uint8, as received.
        reference: (height, width, 3) uint8, as sent.
        seed: of generation, fading and noise.
        channel_uses: complex symbols, without pilots.
        pilot_uses: channel uses spent on pilots.
        expected_psnr_db: PSNR that the sender expected, dB, if it chose the rate for a target.
    """

    pixels: Pixels
    reference: Pixels
    seed: int
    channel_uses: int
    pilot_uses: int
    expected_psnr_db: float | None

    @property
    def cbr(self) -> float:
        """Channel bandwidth ratio: channel uses, pilots included, per source value."""
        return (self.channel_uses + self.pilot_uses) / int(self.reference.size)

    @property
    def psnr_db(self) -> float:
        """PSNR of what was received against what was sent, dB."""
        from dekag.metrics.image import psnr_db

        return psnr_db(self.pixels, self.reference)

    def save(self, path: Path | str) -> None:
        """Write the received image as a PNG file."""
        from dekag.generation.images import to_png

        Path(path).write_bytes(to_png(self.pixels))


@dataclass(frozen=True, eq=False)
class ReceivedPicture:
    """A picture of a user's own that was sent and received.

    Attributes:
        pixels: (height, width, 3) uint8, as received; None if a file did not decode.
        picture: as sent, with notes on what was done to its samples.
        tiling: how it was cut into tiles; None if it was sent as a file.
        seed: of fading and noise.
        channel_uses: complex symbols, without pilots.
        pilot_uses: channel uses spent on pilots.
        expected_psnr_db: PSNR that the sender expected, dB, if it chose the rate for a target.
        autoencoder_psnr_db: PSNR of what the autoencoder makes of the picture without any channel, dB: no
            delivery of its latents is better. None if no latents were sent, or if it was not measured.
        file_bytes: size of the file that was sent; None if none was.
    """

    pixels: Pixels | None
    picture: Picture
    tiling: Tiling | None
    seed: int
    channel_uses: int
    pilot_uses: int
    expected_psnr_db: float | None = None
    autoencoder_psnr_db: float | None = None
    file_bytes: int | None = None

    @property
    def cbr(self) -> float:
        """Channel uses, pilots included, per source value of the picture without padding."""
        return (self.channel_uses + self.pilot_uses) / int(self.picture.pixels.size)

    @property
    def psnr_db(self) -> float | None:
        """PSNR of what was received against the picture, dB; None if nothing was."""
        from dekag.metrics.image import psnr_db

        return None if self.pixels is None else psnr_db(self.pixels, self.picture.pixels)

    @property
    def ssim(self) -> float | None:
        """SSIM of what was received against the picture; None without it, and below 11 pixels a side."""
        from dekag.metrics.image import ssim

        return None if self.pixels is None else ssim(self.pixels, self.picture.pixels)

    def save(self, path: Path | str) -> None:
        """Write the received picture as a PNG file; InvalidInputError if nothing was received."""
        from dekag.generation.images import to_png

        if self.pixels is None:
            raise InvalidInputError("picture", "received, to be saved", "a file that did not decode")
        Path(path).write_bytes(to_png(self.pixels))


class SemanticLink:
    """Sender, channel and receiver of semantic delivery in one process.

    The same profile, prompt, seed and conditions give the same image as the running services do when no
    knowledge update takes part. Not for several threads at once.

    Example:
        >>> from dekag import LinkConditions, SemanticLink
        >>> link = SemanticLink.load("stickers")
        >>> conditions = LinkConditions(snr_db=10, fading="rayleigh")
        >>> image = link.image("a red car on the beach, pastel style", conditions, seed=7)
        >>> image.channel_uses, image.psnr_db > 15
        (2048, True)

    Args:
        codec: encodes and decodes.
        generator: generates latents and decodes received ones into images; `send` works without it.

    Attributes:
        sender, receiver: the two ends.
    """

    def __init__(self, codec: ConditionedCodec, generator: Generator | None = None) -> None:
        self.sender, self.receiver = Sender(codec), Receiver(codec)
        self._generator = generator

    @classmethod
    def load(
        cls,
        profile: Profile | Path | str = "stickers",
        *,
        aligned: bool = True,
        placed: Placement | None = None,
    ) -> Self:
        """The link of a profile: its edge model, its codec and its transmission knowledge.

        Example:
            >>> from dekag import SemanticLink, load_profile
            >>> unaligned = SemanticLink.load(load_profile("stickers"), aligned=False)
            >>> unaligned.sender.codec.knowledge is None
            True

        Args:
            profile: a profile, its name under models/, or its folder.
            aligned: the codec with the profile's transmission knowledge, if it has any, or the codec of
                unaligned deliveries.
            placed: where the edge computes; default: as the machine's settings say, such as DEKAG_DEVICE.

        Raises:
            NotFoundError: there is no such profile.
            MismatchError: the transmission knowledge does not fit the codec, one of them is made for another
                autoencoder, or a model is damaged.
            InvalidInputError: a setting of the machine is invalid.
        """
        from dekag.cala.aligned_codec import AlignedCodec
        from dekag.generation.models import Generator
        from dekag.inventory import check_latents
        from dekag.profile import Profile, load_profile

        models = profile if isinstance(profile, Profile) else load_profile(profile, check_models=True)
        check_latents(models)
        if aligned:
            codec = AlignedCodec.load(models.codec, models.adapters)
        else:
            codec = AlignedCodec.load(models.codec_without_alignment)
        return cls(codec, Generator.from_profile(models, "edge", placed))

    @property
    def generator(self) -> Generator:
        """The image generator; InvalidInputError if the link has none."""
        if self._generator is None:
            raise InvalidInputError("generator", "given to a link that draws images", None)
        return self._generator

    @torch.inference_mode()
    def send(
        self,
        latents: torch.Tensor,
        conditions: Sequence[LinkConditions],
        seeds: Sequence[int],
        *,
        source_values: int | None = None,
        cbr: float = DEFAULT_CBR,
        target_psnr_db: float | None = None,
        channel_uses: int | None = None,
        modulation: Modulation | None = None,
        text: Text = None,
        traces: Path = BUILT_IN_TRACES,
    ) -> LinkResult:
        """Send a batch of latents, each under conditions of its own.

        Example:
            >>> import torch
            >>> from dekag import LinkConditions, SemanticLink
            >>> link = SemanticLink.load("stickers")
            >>> latents = torch.cat([link.generator.latents("a red car", seed) for seed in (1, 2)])
            >>> result = link.send(latents, [LinkConditions(snr_db=snr) for snr in (0, 20)], [1, 2])
            >>> result.latents.shape, [rate.channel_uses for rate in result.rates]
            (torch.Size([2, 4, 32, 32]), [2048, 2048])

        Args:
            latents: (B, channels, h, w) float32.
            conditions: one per latent.
            seeds: one per latent, for fading and noise.
            source_values: values per image, 3 * width * height; default: from the latents' shape.
            cbr: rate of all, channel uses per source value.
            target_psnr_db: choose each rate to reach this PSNR, dB, instead.
            channel_uses: or send this many symbols of each.
            modulation: the constellation; default: by the SNR that was last reported, if the codec adapts it,
                otherwise that of its training.
            text: the prompts' states, as of `Sender.encode`.
            traces: folder of the traces that the conditions may name.

        Raises:
            InvalidInputError: names the argument that has another shape or range.
            NumericalError: a value is not finite.
        """
        self._check(latents)
        check_each(len(latents), "latents", conditions=conditions, seeds=seeds, text=text)
        shape = _shape(latents)
        values = self._source_values(shape) if source_values is None else source_values
        if channel_uses is not None:
            rates = [Rate(channel_uses)] * len(latents)
        else:
            rates = [
                self.sender.rate(each, shape, source_values=values, cbr=cbr, target_psnr_db=target_psnr_db)
                for each in conditions
            ]
        symbols = self.sender.encode(
            latents,
            conditions,
            [rate.channel_uses for rate in rates],
            source_values=values,
            seeds=seeds,
            modulation=modulation,
            text=text,
        )
        receptions = [
            apply_channel(*each, traces=traces) for each in zip(symbols, conditions, seeds, strict=True)
        ]
        decoded = self.receiver.decode(
            receptions, conditions, latent_shape=shape, source_values=values, seeds=seeds, text=text
        )
        return LinkResult(decoded, rates, symbols, receptions)

    def image(
        self,
        prompt: str,
        conditions: LinkConditions | None = None,
        *,
        seed: int = 0,
        width: int | None = None,
        height: int | None = None,
        cbr: float = DEFAULT_CBR,
        target_psnr_db: float | None = None,
        modulation: Modulation | None = None,
        restoration: Restoration = "none",
        traces: Path = BUILT_IN_TRACES,
    ) -> ReceivedImage:
        """Generate an image, send it and decode what arrives.

        Example:
            >>> from dekag import LinkConditions, SemanticLink
            >>> link, conditions = SemanticLink.load("stickers"), LinkConditions(snr_db=10)
            >>> image = link.image("a red car", conditions, seed=7, target_psnr_db=18)
            >>> image.channel_uses < 2048 and image.expected_psnr_db > 18
            True

        Args:
            prompt: text prompt.
            conditions: of the link; default: 10 dB, Rayleigh fading.
            seed: of generation, fading and noise, 0 to 2**63 - 1.
            width, height: pixels, multiples of 32; default: the profile's size.
            cbr: channel uses per source value, 3 * width * height.
            target_psnr_db: choose the smallest rate that is expected to reach this PSNR, dB, instead.
            modulation: the constellation; default: by the SNR that was last reported, if the codec adapts it,
                otherwise that of its training.
            restoration: "denoiser": the receiver improves the latent by one step of the edge's denoiser.
            traces: folder of the traces that the conditions may name.

        Raises:
            InvalidInputError: names the argument that has another shape or range.
            NumericalError: a value is not finite.
        """
        for name, side in (("width", width), ("height", height)):
            if side is not None and (side < PIXEL_STEP or side % PIXEL_STEP):
                raise InvalidInputError(name, f"a multiple of {PIXEL_STEP}, pixels", side)
        if restoration not in ("none", "denoiser"):
            raise InvalidInputError("restoration", "none or denoiser", restoration)
        check_seed(seed)
        generator, link = self.generator, conditions or LinkConditions()
        latents = generator.latents(prompt, seed, width=width, height=height)
        result = self.send(
            latents,
            [link],
            [seed],
            cbr=cbr,
            target_psnr_db=target_psnr_db,
            modulation=modulation,
            text=[self.side_information(prompt)],
            traces=traces,
        )
        (rate,), (reception,) = result.rates, result.receptions
        received = result.latents
        if restoration == "denoiser":
            received = self._restored(received, reception, link, prompt, seed)
        (reference,), (pixels,) = (generator.decoder.decode(each, [seed]) for each in (latents, received))
        return ReceivedImage(
            pixels, reference, seed, rate.channel_uses, sum(reception.pilot_uses), rate.expected_psnr_db
        )

    def picture(
        self,
        picture: Picture | Path | str,
        conditions: LinkConditions | None = None,
        *,
        prompt: str | None = None,
        seed: int = 0,
        cbr: float = DEFAULT_CBR,
        target_psnr_db: float | None = None,
        modulation: Modulation | None = None,
        restoration: Restoration = "none",
        traces: Path = BUILT_IN_TRACES,
        measure: bool = True,
    ) -> ReceivedPicture:
        """Send a picture of your own, as latents of the edge's autoencoder.

        A picture that is no image of the profile's size is cut into tiles or padded, never resized; `tiling`
        of what is returned says how.

        Example:
            >>> import numpy as np
            >>> from dekag import LinkConditions, SemanticLink
            >>> from dekag.pictures import Picture
            >>> link = SemanticLink.load("stickers")
            >>> grey = Picture(np.full((100, 300, 3), 128, np.uint8), "PNG")
            >>> received = link.picture(grey, LinkConditions(snr_db=10), seed=7)
            >>> received.pixels.shape, str(received.tiling)
            ((100, 300, 3), '2 tiles of 160x128, padded from 300x100 to 320x128')

        Args:
            picture: a picture, or the path of its file.
            conditions: of the link; default: 10 dB, Rayleigh fading.
            prompt: what it shows: side information for a codec that reads prompts.
            seed: of fading and noise, 0 to 2**63 - 1.
            cbr: channel uses per source value of the picture, 3 * width * height.
            target_psnr_db: choose the smallest rate that is expected to reach this PSNR, dB, against what the
                autoencoder makes of the picture; measured on images that the edge generates.
            modulation: the constellation; default: by the SNR that was last reported, if the codec adapts it,
                otherwise that of its training.
            restoration: "denoiser": the receiver improves each tile's latent by one step of the edge's
                denoiser.
            traces: folder of the traces that the conditions may name.
            measure: whether to decode what was sent, too, for `autoencoder_psnr_db`.

        Raises:
            FileError: the file is no picture that can be sent; says why.
            InvalidInputError: names the argument that has another shape or range.
            NumericalError: a value is not finite.
        """
        from dekag.pictures import Picture, find_pictures

        if restoration not in ("none", "denoiser"):
            raise InvalidInputError("restoration", "none or denoiser", restoration)
        check_seed(seed)
        if not isinstance(picture, Picture):
            picture = find_pictures(picture).pictures[0].read()
        link = conditions or LinkConditions()
        tiling = self._tiling(picture)
        latents = self._latents_of(tiling.split(picture.pixels))
        shape = _shape(latents)
        rate = self.sender.tiles_rate(link, shape, tiling, cbr=cbr, target_psnr_db=target_psnr_db)
        text = None if prompt is None else self.side_information(prompt)
        result = self.send_tiles(
            latents, tiling, link, seed, rate=rate, modulation=modulation, text=text, traces=traces
        )
        received, (reception,) = result.latents, result.receptions
        if restoration == "denoiser":
            parts = zip(received.split(1), tile_receptions(reception, tiling.count), strict=True)
            received = torch.cat([self._restored(one, part, link, prompt or "", seed) for one, part in parts])
        return ReceivedPicture(
            self._rendered(received, tiling, seed),
            picture,
            tiling,
            seed,
            rate.channel_uses,
            sum(reception.pilot_uses),
            rate.expected_psnr_db,
            self._autoencoder_psnr_db(latents, picture, tiling, seed) if measure else None,
        )

    def autoencoder_psnr_db(self, picture: Picture, seed: int = 0) -> float | None:
        """PSNR of a picture without any channel, dB, as `picture` measures it; None without latents."""
        tiling = self._tiling(picture)
        latents = self._latents_of(tiling.split(picture.pixels))
        return self._autoencoder_psnr_db(latents, picture, tiling, seed)

    def send_tiles(
        self,
        latents: torch.Tensor,
        tiling: Tiling,
        conditions: LinkConditions,
        seed: int,
        *,
        rate: Rate,
        modulation: Modulation | None = None,
        text: torch.Tensor | None = None,
        traces: Path = BUILT_IN_TRACES,
    ) -> LinkResult:
        """Send the latents (n, channels, h, w) of a picture's tiles as one transmission.

        Args:
            latents: of the tiles.
            tiling: of the picture.
            conditions: of the link.
            seed: of fading and noise.
            rate: of the whole picture, from `Sender.tiles_rate`.
            modulation, text: as of `Sender.encode_tiles`.
            traces: folder of the traces that the conditions may name.

        Raises:
            InvalidInputError: names the argument that has another shape or range.
            NumericalError: a value is not finite.
        """
        self._check(latents)
        symbols = self.sender.encode_tiles(
            latents, conditions, rate.channel_uses, tiling, seed=seed, modulation=modulation, text=text
        )
        reception = apply_channel(symbols, conditions, seed, traces=traces)
        received = self.receiver.decode_tiles(
            reception, conditions, tiling, latent_shape=_shape(latents), seed=seed, text=text
        )
        return LinkResult(received, [rate], [symbols], [reception])

    def side_information(self, prompt: str) -> torch.Tensor | None:
        """The states (tokens, text_width) of a prompt for `send`; None if the codec reads no prompts."""
        return self.generator.reader.side_information(prompt) if self.sender.codec.text_width else None

    def _check(self, latents: torch.Tensor) -> None:
        """Raises InvalidInputError("latents") unless they have a shape and format that can be sent."""
        check_latents(latents)

    def _restored(
        self,
        latents: torch.Tensor,
        reception: Reception,
        conditions: LinkConditions,
        prompt: str,
        seed: int,
    ) -> torch.Tensor:
        """One image's received latents (1, channels, h, w) after a step of the edge's denoiser."""
        from dekag.generation.restorer import Restorer

        _, channels, height, width = latents.shape
        values = self._source_values((channels, height, width))
        timestep = self.receiver.timestep(reception, conditions, source_values=values)
        return Restorer(self.generator).restore(latents, prompt, timestep=timestep, seeds=[seed])

    def _tiling(self, picture: Picture) -> Tiling:
        """How a picture is cut."""
        from dekag.pictures import Tiling

        return Tiling.of(picture.width, picture.height, self.generator.size)

    def _latents_of(self, tiles: Pixels) -> torch.Tensor:
        """What is sent of tiles (n, height, width, 3) uint8."""
        from dekag.generation.models import LatentEncoder

        return LatentEncoder(self.generator.decoder).encode(tiles)

    def _rendered(self, latents: torch.Tensor, tiling: Tiling, seed: int) -> Pixels:
        """The picture (height, width, 3) uint8 of its tiles' latents."""
        return render_tiles(self.generator.decoder, latents, tiling, seed)

    def _autoencoder_psnr_db(
        self, latents: torch.Tensor, picture: Picture, tiling: Tiling, seed: int
    ) -> float | None:
        """PSNR of a picture without any channel, dB; None if there is no autoencoder."""
        from dekag.metrics.image import psnr_db

        return psnr_db(self._rendered(latents, tiling, seed), picture.pixels)

    def _source_values(self, latent_shape: LatentShape) -> int:
        _, height, width = latent_shape
        return 3 * height * width * self.generator.decoder.factor**2


class PixelLink(SemanticLink):
    """Sender, channel and receiver of pictures as pixels: no autoencoder, no generator, no prompt.

    Example:
        >>> import numpy as np
        >>> from dekag import LinkConditions, PixelLink
        >>> from dekag.pictures import Picture
        >>> grey = Picture(np.full((100, 300, 3), 128, np.uint8), "PNG")
        >>> received = PixelLink.load("stickers").picture(grey, LinkConditions(snr_db=10), cbr=1 / 24)
        >>> received.psnr_db > 25, received.autoencoder_psnr_db is None
        (True, True)

    Args:
        codec: of pixels; encodes and decodes.

    Attributes:
        codec: the same.

    Raises:
        InvalidInputError: it is no codec of pixels.
        MismatchError: the sides of its tiles do not fit each other.
    """

    def __init__(self, codec: AnyPixelCodec) -> None:
        from dekag.pixel_modules import check_codec

        check_codec(codec)
        super().__init__(codec)
        self.codec = codec

    @classmethod
    def load(
        cls,
        profile: Profile | Path | str = "stickers",
        *,
        aligned: bool = True,
        placed: Placement | None = None,
    ) -> Self:
        """The link of a profile's codec of pixels, which knows rate and channel by itself.

        Args:
            profile: a profile, its name under models/, or its folder.
            aligned: must be true: there is one codec of pixels.
            placed: has no effect: codecs compute on the CPU.

        Raises:
            NotFoundError: there is no such profile, it has no codec of pixels, or that is a plug-in's, which
                is not loaded.
            InvalidInputError: an unaligned one is asked for.
            MismatchError: a model is damaged.
        """
        from dekag.pixel_modules import load_pixel_codec
        from dekag.profile import Profile, load_profile

        if not aligned:
            raise InvalidInputError("aligned", "true: there is one codec of pixels", aligned)
        models = profile if isinstance(profile, Profile) else load_profile(profile, check_models=True)
        if models.pixel_codec is None:
            raise NotFoundError("the profile names no pixel_codec")
        return cls(load_pixel_codec(models.pixel_codec))

    def rate(self, width: int, height: int, cbr: float) -> Rate:
        """The rate of a picture of that size, pixels.

        Raises:
            InvalidInputError: the codec cannot send it at that rate; says what it allows.
        """
        check_whole(width=width, height=height)
        tiling = self._tiling_of(width, height)
        shape = (3, tiling.tile_height, tiling.tile_width)
        return self.sender.tiles_rate(LinkConditions(), shape, tiling, cbr=cbr)

    def rate_note(self, cbr: float) -> str | None:
        """What to expect of a rate that the codec sends at but was not trained for; None of any other."""
        return self.codec.rate_note(cbr)

    def _check(self, latents: torch.Tensor) -> None:
        super()._check(latents)
        if latents.shape[1] != 3:
            raise InvalidInputError("latents", "(B, 3, height, width), pictures", described(latents))
        _, _, height, width = latents.shape
        check_sides(height, width, self.codec.step, self.codec.tile, field="latents")

    def _tiling(self, picture: Picture) -> Tiling:
        return self._tiling_of(picture.width, picture.height)

    def _tiling_of(self, width: int, height: int) -> Tiling:
        from dekag.pictures import Tiling

        return Tiling.of(width, height, self.codec.tile, self.codec.step)

    def _latents_of(self, tiles: Pixels) -> torch.Tensor:
        from dekag.pixel_codec import from_pixels

        return from_pixels(tiles)

    def _rendered(self, latents: torch.Tensor, tiling: Tiling, seed: int) -> Pixels:
        from dekag.pixel_codec import to_pixels

        return tiling.join(to_pixels(latents))

    def _autoencoder_psnr_db(
        self,
        latents: torch.Tensor,
        picture: Picture,
        tiling: Tiling,
        seed: int,
    ) -> None:
        return None

    def _source_values(self, latent_shape: LatentShape) -> int:
        return math.prod(latent_shape)


def render_tiles(decoder: LatentDecoder, latents: torch.Tensor, tiling: Tiling, seed: int) -> Pixels:
    """The picture (height, width, 3) uint8 of its tiles' latents (n, channels, h, w), rendered one by one."""
    return tiling.join(np.concatenate([decoder.decode(one, [seed]) for one in latents.split(1)]))


def send_file(
    picture: Picture,
    conditions: LinkConditions | None = None,
    *,
    image_format: ImageFormat = "webp",
    seed: int = 0,
    traces: Path = BUILT_IN_TRACES,
) -> ReceivedPicture:
    """Send a picture conventionally: as a file of its own size, over 5G LDPC and QAM.

    Example:
        >>> import numpy as np
        >>> from dekag import LinkConditions
        >>> from dekag.pictures import Picture
        >>> from dekag.pipeline import send_file
        >>> grey = Picture(np.full((100, 300, 3), 128, np.uint8), "PNG")
        >>> received = send_file(grey, LinkConditions(snr_db=20, fading="awgn"))
        >>> received.psnr_db > 40, received.channel_uses < 1000
        (True, True)

    Args:
        picture: to send.
        conditions: of the link; default: 10 dB, Rayleigh fading.
        image_format: "webp", "avif" or "jpeg", at its usual quality.
        seed: of fading and noise.
        traces: folder of the traces that the conditions may name.

    Raises:
        InvalidInputError: names the argument that has another range; or the file has more than 2**20 bytes.
    """
    from dekag.generation.images import from_bytes, to_format
    from dekag.link.digital import DecodingError

    check_seed(seed)
    link, file = conditions or LinkConditions(), to_format(picture.pixels, image_format)
    symbols, coding = DigitalSender().encode(file, link)
    reception = apply_channel(symbols, link, seed, traces=traces)
    pixels = None
    with contextlib.suppress(DecodingError):
        payload = DigitalReceiver().decode(reception, coding, len(file), seed=seed)
        pixels = from_bytes(payload, max_side=max(picture.width, picture.height))
    pilots = sum(reception.pilot_uses)
    return ReceivedPicture(pixels, picture, None, seed, symbols.shape[1], pilots, file_bytes=len(file))
