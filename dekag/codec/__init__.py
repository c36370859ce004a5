"""The joint source-channel codec: latents to constellation symbols and back."""

from dekag.codec.jscc import MODULATIONS, JsccCodec, LatentCodec, Modulation

__all__ = ["MODULATIONS", "JsccCodec", "LatentCodec", "Modulation"]
