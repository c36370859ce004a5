"""Checks of what callers give to the two ends of a link, before a model reads it."""

from __future__ import annotations

from collections.abc import Sized
from operator import index
from typing import Any

import torch

from dekag.errors import InvalidInputError, described


def check_latents(latents: Any) -> None:
    """Raises InvalidInputError("latents") unless they are (B, channels, h, w) float32, none of them 0."""
    whole = isinstance(latents, torch.Tensor) and latents.ndim == 4 and latents.numel()
    if not whole or latents.dtype != torch.float32:
        allowed = "(B, channels, h, w) float32, a batch of latents, at least 1"
        raise InvalidInputError("latents", allowed, described(latents))


def check_latent_shape(shape: Any) -> None:
    """Raises InvalidInputError("latent_shape") unless it is (channels, h, w), each at least 1."""
    try:
        whole = [index(each) for each in shape]
    except TypeError:
        whole = []
    if len(whole) != 3 or min(whole) < 1:
        raise InvalidInputError("latent_shape", "(channels, h, w), three integers of at least 1", shape)


def check_each(count: int, what: str, **given: Sized | None) -> None:
    """Raises InvalidInputError, which names the argument, unless each has `count` items; None has any.

    Args:
        count: of the batch.
        what: the items of the batch are, such as "latents".
        given: the arguments, by name.
    """
    for name, items in given.items():
        if items is not None and len(items) != count:
            raise InvalidInputError(name, f"one for each of {count} {what}", len(items))


def check_whole(least: int = 1, **numbers: object) -> None:
    """Raises InvalidInputError, which names the argument, unless each is an integer of at least `least`."""
    for name, number in numbers.items():
        if not is_whole(number, least):
            raise InvalidInputError(name, f"an integer of at least {least}", number)


def is_whole(number: object, least: int = 1, most: int | None = None) -> bool:
    """Whether it is an integer within these bounds."""
    try:
        value = index(number)  # type: ignore[arg-type]
    except TypeError:
        return False
    return value >= least and (most is None or value <= most)


def check_states(text: Any, width: int) -> None:
    """Raises InvalidInputError("text") unless each is None or (tokens, width) of real numbers."""
    for each in text or ():
        if each is None:
            continue
        whole = isinstance(each, torch.Tensor) and each.ndim == 2 and not each.is_complex()
        if not whole or each.shape[1] != width:
            allowed = f"None or the states (tokens, {width}) of a prompt, for each latent"
            raise InvalidInputError("text", allowed, described(each))


def check_sides(height: int, width: int, step: int, most: int | None = None, *, field: str) -> None:
    """Raises InvalidInputError unless both sides are multiples of `step`, of at most `most`.

    Args:
        height, width: the sides.
        step: what they must be multiples of.
        most: the longest side that is allowed; None: any.
        field: the argument that has these sides.
    """
    for side in (height, width):
        if side < 1 or side % step or (most is not None and side > most):
            longest = "" if most is None else f", of at most {most}"
            allowed = f"of sides that are multiples of {step}{longest}"
            raise InvalidInputError(field, allowed, f"{width}x{height}")


def check_symbols(symbols: Any, most: int | None = None, *, field: str = "symbols") -> None:
    """Raises InvalidInputError unless they are one item's symbols (1, K) complex64, K at most `most`."""
    whole = isinstance(symbols, torch.Tensor) and symbols.ndim == 2 and symbols.dtype == torch.complex64
    if not whole or symbols.shape[0] != 1 or not is_whole(symbols.shape[1], 1, most):
        bound = "" if most is None else f", K between 1 and {most}"
        raise InvalidInputError(field, f"of symbols (1, K) complex64{bound}", described(symbols))
