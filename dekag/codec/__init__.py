"""The joint source-channel codec: latents to constellation symbols and back."""

from dekag.codec.jscc import MODULATIONS, JsccCodec, Modulation

__all__ = ["MODULATIONS", "JsccCodec", "Modulation"]
