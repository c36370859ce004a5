"""The joint source-channel codec f_JE: Z -> C^K, f_JD: C^K -> Z (layers and sizes are our choice).

A residual convolutional network over the folded latent, for latents whose sides are multiples of the fold.
Its output channels are ordered: symbols are sent channel by channel, so any prefix of K symbols is a valid
transmission and the receiver fills what was not sent with zeros. A codec with a text width also reads the
prompt, at both ends.
"""

from __future__ import annotations

import copy
import math
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
from dekag.arguments import check_sides
from dekag.codec.batch_invariance import Conv2d
from dekag.codec.constellation import padded_unit_power, quantize_to_qam, to_maps, to_symbols, unit_power
from dekag.codec.text_attention import TextAttention
from dekag.errors import InvalidInputError, MismatchError, NotFoundError, described

Modulation = Literal["qam4", "qam16", "qam64", "qam256", "unquantised"]
MODULATIONS: tuple[Modulation, ...] = get_args(Modulation)
BITS_PER_SYMBOL: dict[Modulation, int] = {"qam4": 2, "qam16": 4, "qam64": 6, "qam256": 8}


MODULATION_FROM_DB: tuple[tuple[float, Modulation], ...] = (
    (10.0, "qam256"), (0.0, "qam64"), (-math.inf, "qam16"),
)  # fmt: skip


def modulation_for(snr_db: float) -> Modulation:
    """The constellation for a mean SNR in dB: finer ones gain nothing where noise hides their points.

    Example:
        >>> from dekag.codec.jscc import modulation_for
        >>> [modulation_for(snr_db) for snr_db in (-5, 5, 15)]
        ['qam16', 'qam64', 'qam256']
    """
    return next(modulation for from_db, modulation in MODULATION_FROM_DB if snr_db >= from_db)


class PromptedLayer(nn.Module):
    """A layer of a `Stack` whose forward takes features and the prompts' states, which may be None."""


class ResidualBlock(PromptedLayer):
    """Two 3x3 convolutions around a GELU, added to the input; (batch, width, h, w) both ways.

    With a text width, half as many maps as channels are read from the prompt and added as well.
    """

    def __init__(self, width: int, text_width: int = 0) -> None:
        super().__init__()
        self.first = Conv2d(width, width, 3, padding=1)
        self.second = Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        self.attention = TextAttention(width, text_width, width // 2) if text_width else None
        if text_width:
            self.spoken = Conv2d(width // 2, width, 1, bias=False)
            nn.init.zeros_(self.spoken.weight)

    def forward(self, x: torch.Tensor, text: torch.Tensor | None = None) -> torch.Tensor:
        """Refine the features, for prompts' states (batch, tokens, text_width) if they are given."""
        if self.attention is not None and text is not None:
            x = x + self.spoken(self.attention(x, text))
        out: torch.Tensor = x + self.second(F.gelu(self.first(F.gelu(x))))
        return out


class Stack(nn.Sequential):
    """Encoder or decoder: a convolution in, residual blocks, a convolution out.

    Args:
        inputs, outputs: channels of the folded maps at both ends.
        width: channels in between.
        blocks: number of residual blocks.
        text_width: width of a prompt's states, which every second block reads; 0: none does.
    """

    def __init__(self, inputs: int, width: int, blocks: int, outputs: int, text_width: int = 0) -> None:
        super().__init__(
            Conv2d(inputs, width, 3, padding=1),
            *(ResidualBlock(width, 0 if number % 2 else text_width) for number in range(blocks)),
            nn.GELU(),
            Conv2d(width, outputs, 3, padding=1),
        )

    def forward(self, x: torch.Tensor, text: torch.Tensor | None = None) -> torch.Tensor:
        """Maps (batch, inputs, h, w), and states (batch, tokens, text_width) -> (batch, outputs, h, w)."""
        for layer in self:
            x = layer(x, text) if isinstance(layer, PromptedLayer) else layer(x)
        return x


class LatentCodec(ModelMixin, ConfigMixin, ABC):  # type: ignore[misc]
    """Interface of codecs between latents and complex symbols.

    A plug-in codec is a diffusers model with `latent_channels` in its config, the number of channels of its
    latents. `save_pretrained` creates the folder that a profile names.

    Attributes:
        name: name of the kind of codec: lower-case letters, digits, - and _.
        text_width: width of the states of a prompt that it reads; 0 if it reads none. If it is above 0,
            `encode` and `decode` also take `text`, (batch, tokens, text_width) or None.
        modulation: constellation of its training, which is used where none is asked for.
        interleaved: whether its symbols are sent in the order of `dekag.link.interleaver`, which spreads a
            fade over the whole image.
    """

    name: ClassVar[str]
    text_width: int = 0
    modulation: Modulation = "qam64"
    interleaved: bool = False

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

    def modulation_at(self, snr_db: float) -> Modulation:
        """The constellation that is used where none is asked for, at a reported SNR in dB."""
        return self.modulation

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
        symbol_channels: complex symbols for each 2x2 positions of the latent (8 for 512 symbols of a 4x16x16
            latent).
        width: channels of the hidden layers.
        blocks: residual blocks in the encoder and in the decoder.
        bits_per_symbol: 6 is 64-QAM.
        fold: side of the squares of latent positions that become channels, 2 or 4. Latents' sides must be
            multiples of it. With 4, the layers run at a quarter of the positions.
        text_width: width of a prompt's states; 0 if prompts are not read.
        interleaved: whether symbols are sent interleaved.
        adaptive_modulation: whether the constellation follows the reported SNR, by `modulation_for`.
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
        fold: int = 2,
        text_width: int = 0,
        interleaved: bool = False,
        adaptive_modulation: bool = False,
    ) -> None:
        super().__init__()
        self.text_width, self.interleaved = text_width, interleaved
        self.modulation = next(name for name, bits in BITS_PER_SYMBOL.items() if bits == bits_per_symbol)
        self._symbols_a_position = symbol_channels * (fold // 2) ** 2  # after folding
        folded, symbols = latent_channels * fold**2, 2 * self._symbols_a_position
        self.encoder = Stack(folded, width, blocks, symbols, text_width)
        self.decoder = Stack(symbols, width, blocks, folded, text_width)

    def modulation_at(self, snr_db: float) -> Modulation:
        """The constellation that is used where none is asked for, at a reported SNR in dB."""
        return modulation_for(snr_db) if self.config.adaptive_modulation else self.modulation

    def max_channel_uses(self, latent_shape: tuple[int, int, int]) -> int:
        """The most symbols that a latent of (channels, height, width) can be sent with."""
        _, height, width = latent_shape
        fold = int(self.config.fold)
        return int(self._symbols_a_position) * (height // fold) * (width // fold)

    def features(
        self, latents: torch.Tensor, channel_uses: int | Sequence[int], *, text: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Symbols before quantisation: (batch, channels, h, w) -> (batch, K), mean power 1 per image.

        Args:
            latents: (batch, channels, h, w).
            channel_uses: symbols for every image or for each; shorter rows end in zeros, and K is the largest
                number.
            text: states of the prompts, (batch, tokens, text_width); None where no prompt is read.

        Raises:
            InvalidInputError: a number is not within 1..max_channel_uses, or there is not one for each image;
                or the latents have another shape.
        """
        channels = int(self.config.latent_channels)
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise InvalidInputError("latents", f"(batch, {channels}, h, w)", described(latents))
        check_sides(latents.shape[2], latents.shape[3], int(self.config.fold), field="latents")
        most = self.max_channel_uses((latents.shape[1], latents.shape[2], latents.shape[3]))
        counts = [channel_uses] if isinstance(channel_uses, int) else list(channel_uses)
        for count in counts:
            if not 1 <= count <= most:
                raise InvalidInputError("channel_uses", f"between 1 and {most}", count)
        if not isinstance(channel_uses, int) and len(counts) != len(latents):
            raise InvalidInputError("channel_uses", f"one for each of {len(latents)} images", len(counts))
        values = self.encoder(F.pixel_unshuffle(latents, self.config.fold), text).float()
        symbols = to_symbols(values)
        if isinstance(channel_uses, int):
            return unit_power(symbols[:, :channel_uses])
        return padded_unit_power(symbols[:, : max(counts, default=0)], counts)

    def quantize(
        self,
        features: torch.Tensor,
        *,
        channel_uses: Sequence[int] | None = None,
        modulation: Modulation | Sequence[Modulation] | None = None,
    ) -> torch.Tensor:
        """Quantise features (batch, K) to constellation points, then scale each image to mean power 1.

        To the receiver, the scale is part of the channel gain.

        Args:
            features: result of `features`.
            channel_uses: number of symbols of each row, if it differs from K.
            modulation: the constellation of all images or of each; default: that of the codec's training.
                "unquantised" leaves the features unchanged.

        Raises:
            InvalidInputError: there is no such modulation.
        """
        if not isinstance(modulation, str | None):
            if len(set(modulation)) == 1:
                modulation = modulation[0]
            else:
                counts = channel_uses or [features.shape[1]] * len(features)
                return torch.cat(
                    [
                        self.quantize(features[i : i + 1], channel_uses=counts[i : i + 1], modulation=each)
                        for i, each in enumerate(modulation)
                    ]
                )
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
        modulation: Modulation | Sequence[Modulation] | None = None,
        text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Latents (batch, channels, h, w) float32 -> symbols (batch, K) complex64, mean power 1 per image.

        With a number of channel uses for each image, shorter rows end in zeros and K is the largest number.

        Raises:
            InvalidInputError: `channel_uses` is not within 1..max_channel_uses, or there is no such
                modulation.
        """
        features = self.features(latents, channel_uses, text=text)
        counts = None if isinstance(channel_uses, int) else channel_uses
        return self.quantize(features, channel_uses=counts, modulation=modulation)

    def decode(
        self,
        symbols: torch.Tensor,
        latent_shape: tuple[int, int, int],
        *,
        text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Equalised symbols (batch, K) complex64 -> latents (batch, channels, h, w) float32.

        Symbols that a row did not send must be zero.

        Raises:
            InvalidInputError: there are more symbols than `max_channel_uses`, or latents have another shape.
        """
        channels = int(self.config.latent_channels)
        if len(latent_shape) != 3 or latent_shape[0] != channels:
            raise InvalidInputError("latent_shape", f"({channels}, h, w)", latent_shape)
        check_sides(latent_shape[1], latent_shape[2], int(self.config.fold), field="latent_shape")
        if symbols.ndim != 2 or symbols.shape[1] > self.max_channel_uses(latent_shape):
            allowed = f"(batch, K), K at most {self.max_channel_uses(latent_shape)}"
            raise InvalidInputError("symbols", allowed, described(symbols))
        _, height, width = latent_shape
        height, width = height // self.config.fold, width // self.config.fold
        missing = self.max_channel_uses(latent_shape) - symbols.shape[1]
        values = to_maps(F.pad(symbols, (0, missing)), height, width)
        return F.pixel_shuffle(self.decoder(values, text).float(), self.config.fold)


def with_text(codec: JsccCodec, text_width: int) -> JsccCodec:
    """A copy of a codec that also reads prompts, and at first gives the same results.

    Args:
        codec: a codec; one that reads prompts already is only copied.
        text_width: width of the prompts' states.
    """
    if codec.text_width:
        return copy.deepcopy(codec)
    own = {name: value for name, value in codec.config.items() if not name.startswith("_")}
    reading: JsccCodec = JsccCodec(**{**own, "text_width": text_width})
    reading.load_state_dict(codec.state_dict(), strict=False)
    return reading


def without_text(codec: JsccCodec) -> JsccCodec:
    """A copy of a codec that reads no prompts: it does what the codec does where they are withheld."""
    own = {name: value for name, value in codec.config.items() if not name.startswith("_")}
    deaf: JsccCodec = JsccCodec(**{**own, "text_width": 0})
    deaf.load_state_dict({name: codec.state_dict()[name] for name in deaf.state_dict()})
    return deaf


CODECS: dict[str, type[LatentCodec]] = {JsccCodec.name: JsccCodec}
"""By name; plug-ins are added."""
