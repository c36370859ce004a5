"""Complex symbols as bytes: little-endian float32, interleaved I Q I Q ..."""

from __future__ import annotations

import numpy as np
import torch

from dekag.errors import InvalidInputError

BYTES_PER_SYMBOL = 8


def evenly_spaced(symbols: torch.Tensor, most: int) -> torch.Tensor:
    """At most `most` of `symbols` (..., K): every n-th, starting with the first."""
    return symbols[..., :: -(-symbols.shape[-1] // most)]


def iq_to_bytes(symbols: torch.Tensor, *, field: str = "iq") -> bytes:
    """Serialise `symbols` (any shape, complex64) in row-major order, 8 bytes each.

    Raises:
        InvalidInputError: a symbol is not finite; names `field`.
    """
    values = symbols.detach().cpu().resolve_conj().to(torch.complex64).numpy()
    if not np.isfinite(values).all():
        raise InvalidInputError(field, "finite complex numbers", "NaN or infinity")
    return values.astype("<c8", copy=False).tobytes()


def bytes_to_iq(data: bytes, *, count: int | None = None, field: str = "iq") -> torch.Tensor:
    """Inverse of `iq_to_bytes`: complex64 of shape (len(data) / 8,).

    Args:
        data: whole symbols of 8 bytes.
        count: required number of symbols, if known.
        field: name of the data in errors.

    Raises:
        InvalidInputError: the length is wrong or a value is not finite; names `field`.
    """
    if len(data) % BYTES_PER_SYMBOL:
        raise InvalidInputError(field, "a multiple of 8 bytes long", f"{len(data)} bytes")
    values = np.frombuffer(data, dtype="<c8").astype(np.complex64)
    if count is not None and values.size != count:
        raise InvalidInputError(field, f"{count} complex numbers", f"{values.size}")
    if not np.isfinite(values).all():
        raise InvalidInputError(field, "finite complex numbers", "NaN or infinity")
    return torch.from_numpy(values)
