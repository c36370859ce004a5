"""The joint source-channel codec: latents to constellation symbols and back."""

from dekag.codec.jscc import JsccCodec

__all__ = ["JsccCodec"]
