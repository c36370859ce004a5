"""Smaller forms of a trained update, and which of them does the job.

What a training makes is the full form. A smaller one has no LoRA at all, or only the strongest components of
each layer (a truncated singular value decomposition of B @ A, made after training), or fewer bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Form:
    """A form of an update.

    Attributes:
        rank: components of each layer that are kept at most; 0: no LoRA.
        bits: as in `DistillConfig`.
    """

    rank: int
    bits: int

    def __str__(self) -> str:
        return f"rank {self.rank}, {self.bits} bits" if self.rank else "metaword alone"


METAWORD_ALONE = Form(0, 16)
SMALLER = (Form(1, 2), Form(1, 3), Form(2, 2), Form(2, 3), Form(3, 3))
"""Forms that are tried, where the full one has as high a rank and as many bits, or more."""


def smaller_forms(rank: int, bits: int, *, metaword: bool) -> tuple[Form, ...]:
    """The forms smaller than the full one of that rank and so many bits.

    Example:
        >>> from dekag.makd.ladder import smaller_forms
        >>> [str(form) for form in smaller_forms(2, 4, metaword=True)]
        ['metaword alone', 'rank 1, 2 bits', 'rank 1, 3 bits', 'rank 2, 2 bits', 'rank 2, 3 bits']

    Args:
        rank: of the trained LoRA.
        bits: of the full form.
        metaword: whether the update has a metaword, and is still something without its LoRA.
    """
    full = Form(rank, bits)
    fitting = [form for form in (*SMALLER, Form(rank, 2), Form(rank, 3)) if form.rank <= rank]
    found = [form for form in fitting if form.rank and form.bits <= bits and form != full]
    return tuple(dict.fromkeys([METAWORD_ALONE, *found] if metaword else found))


def truncated(lora: Mapping[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """The factors of at most that rank whose products are closest to those of `lora`; none at a rank of 0.

    Example:
        >>> import torch
        >>> from dekag.makd.ladder import truncated
        >>> lora = {"a.lora_A.weight": torch.randn(5, 8), "a.lora_B.weight": torch.randn(6, 5)}
        >>> truncated(lora, 1)["a.lora_B.weight"].shape
        torch.Size([6, 1])

    Args:
        lora: "<layer>.lora_A.weight" (rank, in) or (rank, in, k, k), "<layer>.lora_B.weight" (out, rank) or
            (out, rank, 1, 1).
        rank: components to keep.
    """
    found: dict[str, torch.Tensor] = {}
    for name, a in lora.items():
        if not rank or not name.endswith(".lora_A.weight"):
            continue
        other = name.replace(".lora_A.", ".lora_B.")
        b = lora[other]
        # of the small factors: the product may have millions of numbers, but has no higher rank
        left, left_inner = torch.linalg.qr(b.double().flatten(1))
        right, right_inner = torch.linalg.qr(a.double().flatten(1).T)
        inner_left, strengths, inner_right = torch.linalg.svd(left_inner @ right_inner.T)
        kept = min(rank, len(strengths))
        roots = strengths[:kept].sqrt()
        found[name] = (roots[:, None] * (inner_right[:kept] @ right.T)).reshape(kept, *a.shape[1:]).float()
        found[other] = (left @ inner_left[:, :kept] * roots).reshape(b.shape[0], kept, *b.shape[2:]).float()
    return found


@dataclass(frozen=True)
class Rung:
    """A form of an update and what it costs and gives.

    Attributes:
        form: which.
        size_bytes: of the update.
        gain: in consistency on held-out prompts, over the edge without an update.
    """

    form: Form
    size_bytes: int
    gain: float


def smallest_enough(rungs: Sequence[Rung], full: Rung, keep: float) -> Rung:
    """The smallest rung that gains at least `keep` times what the best of them does.

    Example:
        >>> from dekag.makd.ladder import Form, Rung, smallest_enough
        >>> small, full = Rung(Form(1, 2), 17_000, 0.48), Rung(Form(5, 4), 140_000, 0.5)
        >>> smallest_enough([small, full], full, keep=0.95).form
        Form(rank=1, bits=2)

    Args:
        rungs: to choose from, at least one.
        full: the full form, which is chosen if none gains anything.
        keep: above 0 and up to 1.
    """
    best = max(rung.gain for rung in rungs)
    enough = [rung for rung in rungs if rung.gain >= keep * best]
    return min(enough, key=lambda rung: rung.size_bytes) if best > 0 else full
