"""The Muon optimizer (Jordan et al. 2024) in float32.

`torch.optim.Muon` orthogonalises in bfloat16, which is fifty times slower than float32 on a CPU without
bfloat16 units.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch

# These coefficients raise small singular values fastest; in return, values end near one, not at one.
A, B, C = 3.4445, -4.775, 2.0315
ITERATIONS = 5


def orthogonalized(matrices: torch.Tensor, iterations: int = ITERATIONS) -> torch.Tensor:
    """Matrices (batch, m, n) with all singular values brought near 1 by Newton-Schulz iterations."""
    tall = matrices.shape[1] > matrices.shape[2]
    x: torch.Tensor = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    if x.shape[2] >= 2 * x.shape[1]:
        x = _iterated_on_gram(x, iterations)
    else:
        for _ in range(iterations):
            gram = x @ x.mT
            x = A * x + (B * gram + C * gram @ gram) @ x
    return x.mT if tall else x


def _iterated_on_gram(x: torch.Tensor, iterations: int) -> torch.Tensor:
    """The same iterations on the small Gram matrices of x: faster for wide x, such as convolutions."""
    gram = x @ x.mT
    product: torch.Tensor | None = None
    for _ in range(iterations):
        factor = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
        factor.diagonal(dim1=1, dim2=2).add_(A)
        gram = factor @ gram @ factor
        product = factor if product is None else factor @ product
    return x if product is None else product @ x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonalised steps, for matrices of transformers and for convolutions.

    Args:
        params: matrices, and convolutions (out, in, height, width), flattened to matrices with `out` rows.
        lr: learning rate; steps have the size of those of AdamW, so its learning rates can be used.
        momentum: decay of the moving average of gradients.
        weight_decay: decoupled weight decay.
        iterations: Newton-Schulz iterations; four are faster but leave singular values further from one.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        iterations: int = ITERATIONS,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        if any(p.ndim not in (2, 4) for group in self.param_groups for p in group["params"]):
            raise ValueError("Muon is for matrices and convolutions alone")
        self._iterations = iterations

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            alike = defaultdict(list)  # by shape: orthogonalising them together is faster
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for parameters in alike.values():
                directions = torch.stack(
                    [_as_stored(self._direction(p, group["momentum"])) for p in parameters]
                )
                matrices = directions.flatten(2)
                scale = 0.2 * max(matrices.shape[1:]) ** 0.5 * group["lr"]
                updates = orthogonalized(matrices, self._iterations).view_as(directions)
                for parameter, update in zip(parameters, updates, strict=True):
                    decayed = parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    _as_stored(decayed).sub_(update, alpha=scale)

    def _direction(self, parameter: torch.Tensor, momentum: float) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        gradient: torch.Tensor = parameter.grad  # type: ignore[assignment]
        state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum"], momentum)


def _as_stored(parameter: torch.Tensor) -> torch.Tensor:
    """A view with dimensions in memory order: copies are faster, and the order of columns is arbitrary."""
    if parameter.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
        return parameter.permute(0, 2, 3, 1)
    return parameter
