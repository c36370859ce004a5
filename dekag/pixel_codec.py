"""A joint source-channel codec for pictures as they are: pixels to complex symbols, without an autoencoder.

A convolutional network at both ends, as in DeepJSCC (Bourtsoulatze, Burth Kurka and Gündüz 2019), that knows
rate and channel as in ADJSCC (Xu et al. 2022): scales and shifts of its features are functions of the
condition. Layers and sizes are our choice. As in the codec of latents, any prefix of its symbols is a valid
transmission. As in these works, symbols are any complex numbers, not points of a constellation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from dekag.api.limits import PIXEL_CODEC_STEP as STEP
from dekag.api.limits import PIXEL_CODEC_TILE
from dekag.arguments import check_each, check_sides
from dekag.cala.conditions import CONDITION_FEATURES, RATE_CENTRES
from dekag.codec.batch_invariance import Conv2d
from dekag.codec.constellation import padded_unit_power, quantize_to_qam, to_maps, to_symbols, unit_power
from dekag.codec.jscc import BITS_PER_SYMBOL, MODULATIONS, Modulation
from dekag.errors import InvalidInputError, described
from dekag.generation.loading import folder_hash

PixelShape = tuple[int, int, int]
OCTAVES = 4
"""The rates of the training span so many factors of two below the highest one."""

_RATE_FEATURES = 1 + len(RATE_CENTRES)  # of a condition vector, which knows the rates of latents only
_CONDITION = CONDITION_FEATURES - _RATE_FEATURES + OCTAVES + 1


class Modulated(nn.Module):
    """Two 3x3 convolutions around a GELU, scaled and shifted by the condition, added to the input.

    forward: features (batch, width, h, w) and conditions (batch, hidden) -> (batch, width, h, w).
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first = Conv2d(width, width, 3, padding=1)
        self.second = Conv2d(width, width, 3, padding=1)
        self.gates = nn.Linear(hidden, 2 * width)
        for zero in (self.second.weight, self.gates.weight, self.gates.bias):
            nn.init.zeros_(zero)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Refine the features for the condition."""
        scale, shift = self.gates(condition)[:, :, None, None].chunk(2, dim=1)
        inside = self.first(F.gelu(x)) * (1 + scale) + shift
        refined: torch.Tensor = x + self.second(F.gelu(inside))
        return refined


class Tower(nn.Module):
    """Encoder or decoder: blocks at one position per STEP pixels between two outer parts, and a linear map.

    The linear map of squares of STEP x STEP pixels soon becomes as good as a transform code; without it, high
    rates learn slowly.
    """

    def __init__(
        self, before: nn.Module, width: int, blocks: int, hidden: int, after: nn.Module, linear: nn.Module
    ) -> None:
        super().__init__()
        self.before, self.after, self.linear = before, after, linear
        self.condition = nn.Sequential(nn.Linear(_CONDITION, hidden), nn.GELU())
        self.blocks = nn.ModuleList(Modulated(width, hidden) for _ in range(blocks))

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Maps (batch, c, h, w) of one end and conditions (batch, _CONDITION) -> maps of the other end."""
        inner, known = self.before(x), self.condition(condition)
        for block in self.blocks:
            inner = block(inner, known)
        maps: torch.Tensor = self.after(inner) + self.linear(x)
        return maps


class PixelCodec(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Codec of pixels, which a `Sender` and a `Receiver` use in place of a codec of latents.

    Its "latents" are pictures (3, height, width) in [-1, 1]. Each picture of a batch is encoded and decoded
    by itself, so that its bits do not depend on the rest of the batch.

    Example:
        >>> import torch
        >>> from dekag.pixel_codec import PixelCodec
        >>> codec = PixelCodec(width=16, blocks=1)
        >>> codec.max_channel_uses((3, 256, 256)) / (3 * 256 * 256)
        0.16666666666666666

    Args:
        symbol_channels: complex symbols for each 8x8 pixels; 32 is a rate of 1/6.
        width: channels of the inner layers.
        blocks: residual blocks in the encoder and in the decoder.
        hidden: width of the network that reads the condition.

    Attributes:
        base_hash: hash of the folder that it was loaded from; empty otherwise.
        content_hash: empty: it has no adapters.
        quality, restoration: None: neither is measured for pixels.
        text_width: 0: prompts are not read.
        interleaved: symbols are sent interleaved.
        step: sides of tiles are multiples of it, pixels.
        tile: the longest side of a tile, pixels.
    """

    step = STEP
    tile = PIXEL_CODEC_TILE
    quality = None
    restoration = None
    text_width = 0
    interleaved = True
    base_hash = ""
    content_hash = ""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, symbol_channels: int = 32, width: int = 128, blocks: int = 4, hidden: int = 64
    ) -> None:
        super().__init__()
        outer, middle = width // 4, width // 2
        self.encoder = Tower(
            nn.Sequential(
                Conv2d(3, outer, 5, stride=2, padding=2),
                nn.GELU(),
                Conv2d(outer, middle, 3, stride=2, padding=1),
                nn.GELU(),
                Conv2d(middle, width, 3, stride=2, padding=1),
            ),
            width,
            blocks,
            hidden,
            nn.Sequential(nn.GELU(), Conv2d(width, 2 * symbol_channels, 3, padding=1)),
            nn.Sequential(nn.PixelUnshuffle(STEP), Conv2d(3 * STEP**2, 2 * symbol_channels, 1)),
        )
        self.decoder = Tower(
            Conv2d(2 * symbol_channels, width, 3, padding=1),
            width,
            blocks,
            hidden,
            nn.Sequential(
                nn.GELU(),
                Conv2d(width, 4 * middle, 3, padding=1),
                nn.PixelShuffle(2),
                nn.GELU(),
                Conv2d(middle, 4 * outer, 3, padding=1),
                nn.PixelShuffle(2),
                nn.GELU(),
                Conv2d(outer, 4 * 3, 3, padding=1),
                nn.PixelShuffle(2),
            ),
            nn.Sequential(Conv2d(2 * symbol_channels, 3 * STEP**2, 1), nn.PixelShuffle(STEP)),
        )

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """The codec in that folder, in float32, ready for inference."""
        codec: Self = cls.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
        codec.eval()
        codec.base_hash = folder_hash(path)
        return codec

    def modulation_at(self, snr_db: float) -> Modulation:
        """The constellation that is used where none is asked for: none at any SNR."""
        return "unquantised"

    @property
    def trained_cbrs(self) -> tuple[float, float]:
        """The lowest and the highest rate of the training, channel uses per value."""
        highest = self.config.symbol_channels / (3 * STEP**2)
        return highest / 2**OCTAVES, highest

    def rate_note(self, cbr: float) -> str | None:
        """What to expect of a rate that it sends at but was not trained for; None of any other."""
        lowest, highest = self.trained_cbrs
        if not 0 < cbr < lowest * (1 - 1e-6):
            return None
        return (
            f"the codec of pixels was trained at rates from 1/{1 / lowest:g} to 1/{1 / highest:g}; at "
            f"1/{1 / cbr:.4g}, colours may be quite wrong"
        )

    def max_channel_uses(self, shape: PixelShape) -> int:
        """The most symbols that a picture of (3, height, width) can be sent with."""
        _, height, width = shape
        return int(self.config.symbol_channels) * (height // STEP) * (width // STEP)

    def features(
        self, pictures: torch.Tensor, channel_uses: Sequence[int], condition: torch.Tensor
    ) -> torch.Tensor:
        """Pictures (batch, 3, h, w) -> symbols (batch, K) complex64, mean power 1 each, zero-padded.

        Args:
            pictures: (batch, 3, h, w) in [-1, 1].
            channel_uses: of each picture.
            condition: (batch, C), `condition_vector(..., at="sender")` of each.

        Raises:
            InvalidInputError: a number is not within 1..max_channel_uses, or a side is no multiple of STEP.
        """
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise InvalidInputError("pictures", "(batch, 3, h, w)", described(pictures))
        _, _, height, width = pictures.shape
        for name, side in (("height", height), ("width", width)):
            if not side or side % STEP:
                raise InvalidInputError(name, f"a multiple of {STEP}, pixels", side)
        most = self.max_channel_uses((3, height, width))
        for count in channel_uses:
            if not 1 <= count <= most:
                raise InvalidInputError("channel_uses", f"between 1 and {most}", count)
        values = self.encoder(pictures, _known(channel_uses, most, condition)).float()
        return padded_unit_power(to_symbols(values)[:, : max(channel_uses)], channel_uses)

    def reconstruct(
        self,
        symbols: torch.Tensor,
        shape: PixelShape,
        channel_uses: Sequence[int],
        condition: torch.Tensor,
    ) -> torch.Tensor:
        """Equalised symbols (batch, K) -> pictures (batch, 3, h, w), about in [-1, 1].

        Args:
            symbols: zero where nothing was sent.
            shape: (3, height, width).
            channel_uses: of each picture.
            condition: (batch, C), `condition_vector(..., at="receiver")` of each.
        """
        _, height, width = shape
        most = self.max_channel_uses(shape)
        maps = to_maps(
            F.pad(symbols, (0, most - symbols.shape[1])),
            height // STEP,
            width // STEP,
        )
        pictures: torch.Tensor = self.decoder(maps, _known(channel_uses, most, condition)).float()
        return pictures

    @torch.inference_mode()
    def encode(
        self,
        latents: torch.Tensor,
        channel_uses: Sequence[int],
        condition: torch.Tensor,
        *,
        modulation: Modulation | None = None,
        text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Pictures (batch, 3, h, w) -> symbols (batch, K) complex64, mean power 1 each, zero-padded.

        Args:
            latents: the pictures, in [-1, 1].
            channel_uses: of each picture.
            condition: (batch, C), `condition_vector(..., at="sender")` of each.
            modulation: a constellation whose nearest points are sent; default: none.
            text: ignored.

        Raises:
            InvalidInputError: names the argument with an invalid shape or range.
        """
        check_modulation(modulation)
        check_each(len(latents), "pictures", channel_uses=channel_uses, condition=condition)
        rows = []
        for picture, count, known in zip(latents.split(1), channel_uses, condition.split(1), strict=True):
            rows.append(as_sent(self.features(picture, [count], known), modulation, max(channel_uses)))
        return torch.cat(rows)

    @torch.inference_mode()
    def decode(
        self,
        symbols: torch.Tensor,
        latent_shape: PixelShape,
        condition: torch.Tensor,
        *,
        text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Equalised symbols (batch, K) -> pictures (batch, 3, h, w) float32, about in [-1, 1].

        Args:
            symbols: (batch, K) complex64; those that a row did not send are zero.
            latent_shape: (3, height, width).
            condition: (batch, C), `condition_vector(..., at="receiver")` of each.
            text: ignored.

        Raises:
            InvalidInputError: names the argument with an invalid shape or range.
        """
        check_received(symbols, latent_shape, condition, STEP, self.max_channel_uses(latent_shape))
        pictures = []
        for row, known in zip(symbols.split(1), condition.split(1), strict=True):
            count = int(row[0].nonzero().max()) + 1 if row.any() else 1
            pictures.append(self.reconstruct(row[:, :count], latent_shape, [count], known))
        return torch.cat(pictures)


def check_received(
    symbols: torch.Tensor, shape: PixelShape, condition: torch.Tensor, step: int, most: int
) -> None:
    """Raises InvalidInputError unless a codec of pixels can decode these.

    Args:
        symbols: (batch, K) complex64, K at most `most`.
        shape: (3, height, width).
        condition: (batch, C).
        step: the sides are multiples of it, pixels.
        most: number of symbols that a picture can be sent with.
    """
    if len(shape) != 3 or shape[0] != 3:
        raise InvalidInputError("latent_shape", "(3, height, width)", shape)
    check_sides(shape[1], shape[2], step, field="latent_shape")
    if symbols.ndim != 2 or not symbols.is_complex() or not 1 <= symbols.shape[1] <= most:
        raise InvalidInputError(
            "symbols", f"(batch, K) complex64, K between 1 and {most}", described(symbols)
        )
    if len(condition) != len(symbols):
        raise InvalidInputError("condition", f"{len(symbols)} rows", len(condition))


def check_modulation(modulation: Modulation | None) -> None:
    """Raises InvalidInputError("modulation") unless there is such a constellation; None is none."""
    if modulation is not None and modulation not in MODULATIONS:
        raise InvalidInputError("modulation", f"one of {', '.join(MODULATIONS)}", modulation)


def as_sent(symbols: torch.Tensor, modulation: Modulation | None, most: int) -> torch.Tensor:
    """A picture's symbols (1, K) complex64 as they are sent: (1, most), zero-padded.

    With a constellation, its nearest points are sent, scaled to mean power 1.
    """
    if modulation is not None and modulation != "unquantised":
        symbols = unit_power(quantize_to_qam(symbols, BITS_PER_SYMBOL[modulation]))
    return F.pad(symbols, (0, most - symbols.shape[1]))


def from_pixels(tiles: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Pixels (n, height, width, 3) uint8 -> pictures (n, 3, height, width) in [-1, 1], as they are sent."""
    return torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(pictures: torch.Tensor) -> npt.NDArray[np.uint8]:
    """The inverse of `from_pixels`, of pictures as they were received."""
    pixels = pictures.add(1).mul(127.5).clamp(0, 255).round().to(torch.uint8)
    rows: npt.NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).numpy()
    return rows


def _known(channel_uses: Sequence[int], most: int, condition: torch.Tensor) -> torch.Tensor:
    """What the network reads of rate and channel: (batch, _CONDITION) float32."""
    octaves = -torch.log2(torch.tensor(channel_uses, dtype=torch.float32) / most).clamp(-OCTAVES, 0)
    hats = (1 - (octaves[:, None] - torch.arange(OCTAVES + 1.0)).abs()).clamp_min(0)
    return torch.cat([hats, condition[:, _RATE_FEATURES:].float()], dim=1)
