"""Codecs of pixels whose encoder and decoder are modules that you fetched: DeepJSCC, ADJSCC, SwinJSCC.

Each class shows how one architecture is called. Put what you fetched on PYTHONPATH, complete `load`, and
write a folder with the weights and a config.json of one line, {"_class_name": "DeepJscc"}, which a
profile.json names as its `pixel_codec`:

    dekag --plugin my_pixel_codec.py:DeepJscc link photo.png --profile my-profile --delivery pixels --cbr 1/12
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import nn

from dekag.pixel_modules import PixelModules


def to_complex(values: torch.Tensor) -> torch.Tensor:
    """Real values of any shape -> complex symbols (1, n), two values each; an odd last one goes with 0."""
    flat = values.flatten()
    pairs = torch.cat([flat, flat.new_zeros(flat.numel() % 2)]).view(2, -1)
    return torch.complex(pairs[0], pairs[1])[None]


def to_real(symbols: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The inverse of `to_complex`."""
    return torch.cat([symbols.real, symbols.imag], dim=1).flatten()[: shape.numel()].view(shape)


class DeepJscc(PixelModules):
    """DeepJSCC: encoder(image) -> values, decoder(values) -> image; one rate, one SNR of training.

    Its own channel layer, between the two, is left out: the link is the channel.
    """

    name = "deepjscc"
    step = 4  # two layers with stride 2
    scale = math.sqrt(2)  # its real values have mean power 1, pairs of them 2; 1 if pairs have mean power 1

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self._shapes: dict[tuple[int, int], torch.Size] = {}

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The model with the weights in `folder`."""
        from deepjscc_model import DeepJSCC  # what you fetched

        model = DeepJSCC(c=8)
        model.load_state_dict(torch.load(folder / "weights.pt", map_location="cpu", weights_only=True))
        return cls(model.encoder, model.decoder)

    def encoded(self, image: torch.Tensor, snr_db: float) -> torch.Tensor:
        """What the encoder makes of an image (1, 3, h, w): real values."""
        return self.encoder(image)

    def decoded(self, values: torch.Tensor, snr_db: float) -> torch.Tensor:
        """What the decoder makes of received values."""
        return self.decoder(values)

    def shape(self, height: int, width: int) -> torch.Size:
        """The shape of the encoder's values of such an image; a trial says so, as padding differs."""
        if (known := self._shapes.get((height, width))) is not None:
            return known
        with torch.inference_mode():
            shape = self.encoded(torch.zeros(1, 3, height, width), 10.0).shape
        if len(self._shapes) >= 64:  # sizes of pictures are endless
            self._shapes.clear()
        self._shapes[height, width] = shape
        return shape

    def symbol_counts(self, height: int, width: int) -> Sequence[int]:
        """One: the rate is that of the architecture."""
        return [-(-self.shape(height, width).numel() // 2)]

    def to_symbols(self, image: torch.Tensor, count: int, snr_db: float) -> torch.Tensor:
        """The encoder's values as symbols."""
        return to_complex(self.encoded(image, snr_db))

    def to_image(self, symbols: torch.Tensor, height: int, width: int, snr_db: float) -> torch.Tensor:
        """What the decoder makes of them."""
        values = to_real(symbols * self.scale, self.shape(height, width))
        return self.decoded(values if values.ndim == 4 else values[None], snr_db)


class AdJscc(DeepJscc):
    """ADJSCC: as DeepJSCC, and both modules take the SNR in dB, (1, 1)."""

    name = "adjscc"

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The model with the weights in `folder`."""
        from adjscc_model import ADJSCC  # what you fetched

        model = ADJSCC()
        model.load_state_dict(torch.load(folder / "weights.pt", map_location="cpu", weights_only=True))
        return cls(model.encoder, model.decoder)

    def encoded(self, image: torch.Tensor, snr_db: float) -> torch.Tensor:
        """What the encoder makes of an image (1, 3, h, w) at an SNR: real values."""
        return self.encoder(image, torch.tensor([[snr_db]]))

    def decoded(self, values: torch.Tensor, snr_db: float) -> torch.Tensor:
        """What the decoder makes of received values at an SNR."""
        return self.decoder(values, torch.tensor([[snr_db]]))


class SwinJscc(PixelModules):
    """SwinJSCC with SNR and rate adaptation: encoder(image, snr, rate, kind) -> values, mask (1, n, C).

    The encoder keeps `rate` of C values at each of n positions, those of the mask, which is the same at all
    positions. The decoder gets all C, with zeros where nothing was sent, and at the scale of the encoder.
    Published code gives mask and scale to the receiver for nothing. Here they are sent ahead of the values,
    as bits of BPSK that are repeated, and count as channel uses.
    """

    name = "swinjscc"
    step = 128  # four halvings, and windows of 8
    rates = (32, 64, 96, 128, 192)
    channels = 320  # C
    positions = 16**2  # pixels for each of them
    kind = "SwinJSCC_w/_SAandRA"
    repeats = 8
    scale_bits = 8

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._size: tuple[int, int] | None = None

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The model with the weights in `folder`."""
        from swinjscc_model import SwinJSCC, args, config  # what you fetched, and its settings

        model = SwinJSCC(args, config)
        weights = torch.load(folder / "weights.pt", map_location="cpu", weights_only=True)
        # masks of windows depend on the size of the training's pictures; `_resize` makes them anew
        kept = {name: each for name, each in weights.items() if not name.endswith("attn_mask")}
        missing, unexpected = model.load_state_dict(kept, strict=False)
        wrong = [*(name for name in missing if not name.endswith("attn_mask")), *unexpected]
        if wrong:
            raise ValueError(f"weights.pt is of another model: {', '.join(wrong[:3])} missing or too many")
        return cls(model)

    @property
    def header(self) -> int:
        """Symbols of mask and scale."""
        return (self.channels + self.scale_bits) * self.repeats // 2

    def symbol_counts(self, height: int, width: int) -> Sequence[int]:
        """One for each of its rates."""
        return [self.header + rate * (height * width // self.positions) // 2 for rate in self.rates]

    def to_symbols(self, image: torch.Tensor, count: int, snr_db: float) -> torch.Tensor:
        """Mask and scale, then the values that the mask keeps, at mean power 1."""
        height, width = image.shape[2:]
        self._resize(height, width)
        rate = self.rates[self.symbol_counts(height, width).index(count)]
        values, mask = self.model.encoder(image, snr_db, rate, self.kind)
        kept = mask[0, 0] > 0
        sent = to_complex(values[0, :, kept])
        power = sent.abs().square().mean().clamp_min(1e-9)
        level = min(max(round(float(16 * power.log2())) + self._middle, 0), 2**self.scale_bits - 1)
        bits = [*kept.tolist(), *(level >> place & 1 for place in range(self.scale_bits))]
        header = to_complex(2 * torch.tensor(bits).float().repeat_interleave(self.repeats) - 1) / math.sqrt(2)
        return torch.cat([header, sent / power.sqrt()], dim=1)

    def to_image(self, symbols: torch.Tensor, height: int, width: int, snr_db: float) -> torch.Tensor:
        """What the decoder makes of the values at the places that the mask says."""
        self._resize(height, width)
        rate = self.rates[self.symbol_counts(height, width).index(symbols.shape[1])]
        heard = to_real(
            symbols[:, : self.header], torch.Size([self.channels + self.scale_bits, self.repeats])
        )
        soft = heard.clamp(-1, 1).sum(dim=1)  # zero forcing enlarges the noise of faded repeats
        kept = soft[: self.channels].topk(rate).indices.sort().values
        level = sum(int(bit > 0) << place for place, bit in enumerate(soft[self.channels :]))
        count = height * width // self.positions
        values = torch.zeros(1, count, self.channels)
        received = to_real(symbols[:, self.header :], torch.Size([count, rate]))
        values[0, :, kept] = received * self._scale(level)
        return self.model.decoder(values, snr_db, self.kind)

    @property
    def _middle(self) -> int:
        """The level of a mean power of 1; a level is a sixteenth of an octave."""
        return 2 ** (self.scale_bits - 1)

    def _scale(self, level: int) -> float:
        """The scale of the values."""
        return 2 ** ((level - self._middle) / 32)

    def _resize(self, height: int, width: int) -> None:
        """Its windows depend on the size."""
        if self._size != (height, width):
            self.model.encoder.update_resolution(height, width)
            self.model.decoder.update_resolution(height // 16, width // 16)
            self._size = height, width
