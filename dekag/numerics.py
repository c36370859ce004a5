"""Numbers that are not finite are caught where they arise, and told by seed, model and stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dekag.errors import NumericalError


def check_finite(
    values: torch.Tensor, stage: str, *, seeds: Sequence[int] | None = None, model_hash: str = ""
) -> None:
    """Says which row holds a NaN or an infinity; never what was asked for, only by which seed.

    Args:
        values: (n, ...) real or complex.
        stage: what made them: "generate", "encode", "transmit", "receive", "equalize", "decode" or "render".
        seeds: of the rows; left out, a row is called by its number.
        model_hash: of the model that made them; empty if none did.

    Raises:
        NumericalError: a value is not finite.
    """
    finite = torch.isfinite(torch.view_as_real(values) if values.is_complex() else values)
    if finite.all():
        return
    row = int(finite.flatten(1).all(1).int().argmin())
    of = f"row {row}" if seeds is None else f"seed {seeds[row]}"
    by = f" with model {model_hash[:12]}" if model_hash else ""
    raise NumericalError(f"{stage} gave a value that is not finite for {of}{by}")
