"""The Muon optimizer: orthogonal steps, and a problem it solves."""

from __future__ import annotations

import pytest
import torch

from dekag.training.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 16, 6), (2, 6, 16)])
def test_singular_values_end_near_one_and_directions_stay(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    out = orthogonalized(matrices)
    assert out.shape == matrices.shape
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.3
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    inside = u.mT @ out @ v.mT
    off_diagonal = inside - torch.diag_embed(inside.diagonal(dim1=1, dim2=2))
    assert off_diagonal.abs().max() < 1e-3


def test_solves_a_linear_problem() -> None:
    generator = torch.Generator().manual_seed(2)
    wanted = torch.randn(8, 12, generator=generator)
    weight = torch.nn.Parameter(torch.zeros(8, 12))
    inputs = torch.randn(64, 12, generator=generator)
    optimizer = Muon([weight], lr=0.3, weight_decay=0.0)
    losses = []
    for step in range(120):
        for group in optimizer.param_groups:
            group["lr"] = 0.3 * (1 - step / 120)
        loss = (inputs @ (weight - wanted).T).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]


def test_takes_matrices_alone() -> None:
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
