"""The joint source-channel codec f_JE: Z -> C^K, f_JD: C^K -> Z (layers and sizes are our choice).

A residual convolutional network over the latent folded 2x2, for latents of any even size. Its output
channels are ordered: symbols are sent channel by channel, so any prefix of K symbols is a valid
transmission and the receiver fills what was not sent with zeros.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self, get_args

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from dekag import plugins
from dekag.codec.batch_invariance import Conv2d
from dekag.codec.constellation import padded_unit_power, quantize_to_qam, unit_power
from dekag.errors import InvalidInputError, MismatchError, NotFoundError

FOLD = 2

Modulation = Literal["qam4", "qam16", "qam64", "qam256", "unquantised"]
MODULATIONS: tuple[Modulation, ...] = get_args(Modulation)
BITS_PER_SYMBOL = {"qam4": 2, "qam16": 4, "qam64": 6, "qam256": 8}


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a GELU, added to the input; (batch, width, h, w) both ways."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Conv2d(width, width, 3, padding=1)
        self.second = Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Refine the features."""
        out: torch.Tensor = x + self.second(F.gelu(self.first(F.gelu(x))))
        return out


def _stack(inputs: int, width: int, blocks: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        Conv2d(inputs, width, 3, padding=1),
        *(ResidualBlock(width) for _ in range(blocks)),
        nn.GELU(),
        Conv2d(width, outputs, 3, padding=1),
    )


class LatentCodec(ModelMixin, ConfigMixin, ABC):  # type: ignore[misc]
    """Interface of codecs between latents and complex symbols.

    A plug-in codec is a diffusers model with `latent_channels` in its config, the number of channels of its
    latents. `save_pretrained` creates the folder that a profile names.

    Attributes:
        name: name of the kind of codec: lower-case letters, digits, - and _.
    """

    name: ClassVar[str]

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """The codec in that folder, of the class in its config.json, in float32, ready for inference.

        Raises:
            NotFoundError: the class is unknown.
            MismatchError: the class is not derived from this one.
        """
        known = {each.__name__: each for each in (plugins.get("codec", n) for n in plugins.names("codec"))}
        named = cls.load_config(path).get("_class_name", JsccCodec.__name__)
        if named not in known:
            raise NotFoundError(f"the codec in {path} is a {named}, not one of {', '.join(known)}")
        if not issubclass(known[named], cls):
            raise MismatchError(f"the codec in {path} is a {named}, not a {cls.__name__}")
        codec: Self = known[named].from_pretrained(path, dtype=torch.float32, use_safetensors=True)
        codec.eval()
        return codec

    @abstractmethod
    def max_channel_uses(self, latent_shape: tuple[int, int, int]) -> int:
        """The most symbols that a latent of (channels, height, width) can be sent with."""

    @abstractmethod
    def encode(
        self,
        latents: torch.Tensor,
        channel_uses: int | Sequence[int],
        *,
        modulation: Modulation | None = None,
    ) -> torch.Tensor:
        """Latents (batch, channels, h, w) float32 -> symbols (batch, K) complex64, mean power 1 per image.

        Args:
            latents: latents to send.
            channel_uses: 1 to `max_channel_uses` symbols, for every image or for each; shorter rows end in
                zeros, and K is the largest number.
            modulation: the constellation; default: that of the codec's training.
        """

    @abstractmethod
    def decode(self, symbols: torch.Tensor, latent_shape: tuple[int, int, int]) -> torch.Tensor:
        """Equalised symbols (batch, K) complex64 -> latents (batch, channels, h, w) float32.

        K is any number up to `max_channel_uses`; symbols that a row did not send are zero.
        """


class JsccCodec(LatentCodec):
    """The built-in codec: residual convolutions.

    Args:
        latent_channels: channels of the latent.
        symbol_channels: complex symbols for each folded position (8 for 512 symbols of a 4x16x16 latent).
        width: channels of the hidden layers.
        blocks: residual blocks in the encoder and in the decoder.
        bits_per_symbol: 6 is 64-QAM.
    """

    name = "jscc"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        latent_channels: int = 4,
        symbol_channels: int = 8,
        width: int = 64,
        blocks: int = 3,
        bits_per_symbol: int = 6,
    ) -> None:
        super().__init__()
        folded = latent_channels * FOLD**2
        self.encoder = _stack(folded, width, blocks, 2 * symbol_channels)
        self.decoder = _stack(2 * symbol_channels, width, blocks, folded)

    def max_channel_uses(self, latent_shape: tuple[int, int, int]) -> int:
        """The most symbols that a latent of (channels, height, width) can be sent with."""
        _, height, width = latent_shape
        return int(self.config.symbol_channels) * (height // FOLD) * (width // FOLD)

    def features(self, latents: torch.Tensor, channel_uses: int | Sequence[int]) -> torch.Tensor:
        """Symbols before quantisation: (batch, channels, h, w) -> (batch, K), mean power 1 per image.

        Args:
            latents: (batch, channels, h, w).
            channel_uses: symbols for every image or for each; shorter rows end in zeros, and K is the largest
                number.

        Raises:
            InvalidInputError: a number is not within 1..max_channel_uses, or there is not one for each image.
        """
        most = self.max_channel_uses((latents.shape[1], latents.shape[2], latents.shape[3]))
        counts = [channel_uses] if isinstance(channel_uses, int) else list(channel_uses)
        for count in counts:
            if not 1 <= count <= most:
                raise InvalidInputError("channel_uses", f"between 1 and {most}", count)
        if not isinstance(channel_uses, int) and len(counts) != len(latents):
            raise InvalidInputError("channel_uses", f"one for each of {len(latents)} images", len(counts))
        values = self.encoder(F.pixel_unshuffle(latents, FOLD)).float()
        batch, channels, height, width = values.shape
        pairs = values.reshape(batch, channels // 2, 2, height * width).transpose(2, 3)
        symbols = torch.view_as_complex(pairs.contiguous()).flatten(1)
        if isinstance(channel_uses, int):
            return unit_power(symbols[:, :channel_uses])
        return padded_unit_power(symbols[:, : max(counts, default=0)], counts)

    def quantize(
        self,
        features: torch.Tensor,
        *,
        channel_uses: Sequence[int] | None = None,
        modulation: Modulation | None = None,
    ) -> torch.Tensor:
        """Quantise features (batch, K) to constellation points, then scale each image to mean power 1.

        To the receiver, the scale is part of the channel gain.

        Args:
            features: result of `features`.
            channel_uses: number of symbols of each row, if it differs from K.
            modulation: the constellation; default: that of the codec's training. "unquantised" leaves the
                features unchanged.

        Raises:
            InvalidInputError: there is no such modulation.
        """
        if modulation == "unquantised":
            return features
        if modulation is not None and modulation not in BITS_PER_SYMBOL:
            raise InvalidInputError("modulation", f"one of {', '.join(MODULATIONS)}", modulation)
        bits = int(self.config.bits_per_symbol) if modulation is None else BITS_PER_SYMBOL[modulation]
        quantized = quantize_to_qam(features, bits)
        return unit_power(quantized) if channel_uses is None else padded_unit_power(quantized, channel_uses)

    def encode(
        self,
        latents: torch.Tensor,
        channel_uses: int | Sequence[int],
        *,
        modulation: Modulation | None = None,
    ) -> torch.Tensor:
        """Latents (batch, channels, h, w) float32 -> symbols (batch, K) complex64, mean power 1 per image.

        With a number of channel uses for each image, shorter rows end in zeros and K is the largest number.

        Raises:
            InvalidInputError: `channel_uses` is not within 1..max_channel_uses, or there is no such
                modulation.
        """
        features = self.features(latents, channel_uses)
        counts = None if isinstance(channel_uses, int) else channel_uses
        return self.quantize(features, channel_uses=counts, modulation=modulation)

    def decode(self, symbols: torch.Tensor, latent_shape: tuple[int, int, int]) -> torch.Tensor:
        """Equalised symbols (batch, K) complex64 -> latents (batch, channels, h, w) float32.

        Symbols that a row did not send must be zero.
        """
        _, height, width = latent_shape
        height, width = height // FOLD, width // FOLD
        missing = self.max_channel_uses(latent_shape) - symbols.shape[1]
        pairs = torch.view_as_real(F.pad(symbols, (0, missing)).contiguous())
        grid = pairs.view(len(symbols), -1, height * width, 2).transpose(2, 3)
        values = grid.reshape(len(symbols), -1, height, width)
        return F.pixel_shuffle(self.decoder(values).float(), FOLD)


CODECS: dict[str, type[LatentCodec]] = {JsccCodec.name: JsccCodec}
"""By name; plug-ins are added."""
