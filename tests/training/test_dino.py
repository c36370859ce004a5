"""The parts of DINO's training that keep it from collapsing."""

from __future__ import annotations

import pytest
import torch

from dekag.training.encoders import balanced, crowding, random_views


def test_targets_are_shares_and_use_all_prototypes_alike() -> None:
    generator = torch.Generator().manual_seed(1)
    # every picture likes prototype 0 best
    cosines = 0.2 * torch.rand(64, 16, generator=generator)
    cosines[:, 0] += 0.7
    targets = balanced(cosines)
    torch.testing.assert_close(targets.sum(1), torch.ones(64))
    used = targets.sum(0)
    assert used.max() < 2 * used.min()


def test_targets_keep_a_clear_choice() -> None:
    targets = balanced(torch.eye(8))
    torch.testing.assert_close(targets, torch.eye(8), atol=1e-3, rtol=0)


def test_crowded_features_cost_more() -> None:
    apart = torch.eye(6)
    together = torch.ones(6, 6) + 0.01 * torch.eye(6)
    assert crowding(together) > crowding(apart) + 1
    moved = together.clone().requires_grad_()
    crowding(moved).backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(moved.grad).all()  # type: ignore[arg-type]


def test_views_are_crops_of_their_own_picture() -> None:
    levels = torch.linspace(-0.9, 0.9, 6)
    images = levels[:, None, None, None].expand(6, 3, 128, 128)
    views = random_views(images, torch.Generator().manual_seed(2))
    assert views.shape == (6, 3, 64, 64)
    assert views.mean(dim=(1, 2, 3)).tolist() == pytest.approx(levels.tolist(), abs=0.01)
    ramp = torch.linspace(-1, 1, 128).expand(4, 3, 128, 128)
    crops = random_views(ramp, torch.Generator().manual_seed(3))
    spans = crops.mean(dim=(1, 2))[:, -1] - crops.mean(dim=(1, 2))[:, 0]
    assert ((spans > 0.8) & (spans < 2.1)).all()
    assert spans.std() > 0.01
