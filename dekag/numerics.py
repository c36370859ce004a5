"""Detects values that are not finite where they arise."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dekag.errors import NumericalError


def check_finite(
    values: torch.Tensor, stage: str, *, seeds: Sequence[int] | None = None, model_hash: str = ""
) -> None:
    """Check that all values are finite.

    Args:
        values: (n, ...) real or complex.
        stage: stage that computed them: "generate", "encode", "transmit", "receive", "equalize", "decode" or
            "render".
        seeds: seeds of the rows, for the message; left out, rows are numbered.
        model_hash: hash of the model that computed them; empty if none did.

    Raises:
        NumericalError: a value is not finite; names seed, model and stage, but never the prompt.
    """
    finite = torch.isfinite(torch.view_as_real(values) if values.is_complex() else values)
    if finite.all():
        return
    row = int(finite.flatten(1).all(1).int().argmin())
    item = f"row {row}" if seeds is None else f"seed {seeds[row]}"
    model = f" with model {model_hash[:12]}" if model_hash else ""
    raise NumericalError(f"{stage} gave a value that is not finite for {item}{model}")
