"""LPIPS and DISTS beside the formulas of their papers, with random weights in AlexNet and VGG-16.

Neither torchvision nor published weights of these networks are needed: a stand-in for torchvision gives the
layers, and the formulas are written out here. The small weights that turn features into a distance are the
published ones, which torchmetrics brings.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dekag.errors import InvalidInputError
from dekag.evaluation.studies.metrics import made_images
from dekag.metrics.perceptual import Dists, Lpips

lpips = pytest.importorskip("torchmetrics.functional.image.lpips")
dists = pytest.importorskip("torchmetrics.functional.image.dists")

MEAN, DEVIATION = (
    torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)
"""Of ImageNet's colours in [0, 1]."""

ALEXNET = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
"""Channels, side, stride and padding of the convolutions (Krizhevsky, 2014)."""
VGG = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
"""Channels of the convolutions between two poolings (Simonyan and Zisserman, 2015)."""


def convolutions(shapes: Any) -> list[nn.Conv2d]:
    """Convolutions with random weights, which keep the size of the features."""
    torch.manual_seed(0)
    made = []
    for (before, *_), (channels, side, stride, padding) in pairwise([(3,), *shapes]):
        layer = nn.Conv2d(before, channels, side, stride=stride, padding=padding)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(layer.bias, std=0.1)
        made.append(layer.eval().requires_grad_(False))
    return made


def stand_in(monkeypatch: pytest.MonkeyPatch, **networks: Any) -> None:
    """A torchvision whose networks, by name, have these features and ask for no weights."""
    module = ModuleType("torchvision")
    module.__spec__ = ModuleSpec("torchvision", None)
    module.models = SimpleNamespace(  # type: ignore[attr-defined]
        AlexNet_Weights=SimpleNamespace(DEFAULT="published"),
        **{
            name: lambda weights, features=features: SimpleNamespace(features=features)
            for name, features in networks.items()
        },
    )
    monkeypatch.setitem(sys.modules, "torchvision", module)
    for user in (lpips, dists):
        monkeypatch.setattr(user, "_TORCHVISION_AVAILABLE", True)


def alexnet(monkeypatch: pytest.MonkeyPatch) -> list[nn.Conv2d]:
    """The convolutions of an AlexNet with random weights, which LPIPS uses from now on."""
    layers = convolutions(ALEXNET)
    features: list[nn.Module] = []
    for number, layer in enumerate(layers):
        features += [layer, nn.ReLU(), *([nn.MaxPool2d(3, 2)] if number in (0, 1, 4) else [])]
    stand_in(monkeypatch, alexnet=nn.Sequential(*features))
    return layers


def normalised(pixels: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - MEAN) / DEVIATION


def test_lpips_is_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = alexnet(monkeypatch)
    references, images = made_images(64, count=4)
    ours = Lpips().score(images, references)

    learnt = torch.load(
        Path(lpips.__file__).parent / "lpips_models" / "alex.pth", map_location="cpu", weights_only=True
    )
    ends = [normalised(images), normalised(references)]
    expected = torch.zeros(4)
    for number, layer in enumerate(layers):
        # each position has a vector of unit length; weighted squares of differences, averaged over positions
        ends = [
            F.relu(F.conv2d(each, layer.weight, layer.bias, layer.stride, layer.padding)) for each in ends
        ]
        first, second = (each / each.norm(dim=1, keepdim=True).clamp_min(1e-8) for each in ends)
        weights = learnt[f"lin{number}.model.1.weight"]
        expected += (weights * (first - second) ** 2).sum(dim=1).mean(dim=(1, 2))
        if number < 2:
            ends = [F.max_pool2d(each, 3, 2) for each in ends]
    assert np.ptp(ours) > 0.01, "the inputs differ"
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)


def test_dists_is_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, features = [], []
    flat = convolutions([(channels, 3, 1, 1) for block in VGG for channels in block])
    for block in VGG:
        blocks.append([flat.pop(0) for _ in block])
        features += [each for layer in blocks[-1] for each in (layer, nn.ReLU())] + [nn.MaxPool2d(2)]
    stand_in(monkeypatch)
    network = SimpleNamespace(features=nn.Sequential(*features))
    monkeypatch.setattr(dists, "VGG16_Weights", SimpleNamespace(DEFAULT="published"), raising=False)
    monkeypatch.setattr(dists, "vgg16", lambda weights: network, raising=False)

    references, images = made_images(48, count=4)
    ours = Dists().score(images, references)

    window = torch.outer(*[torch.tensor([0.25, 0.5, 0.25])] * 2)  # of Hanning, for the L2 pooling
    pairs = [[torch.from_numpy(each).permute(0, 3, 1, 2).float() / 255 for each in (images, references)]]
    ends = [normalised(images), normalised(references)]
    for number, block in enumerate(blocks):
        if number:
            kernel = window.expand(ends[0].shape[1], 1, 3, 3)
            ends = [
                F.conv2d(each**2, kernel, stride=2, padding=1, groups=len(kernel)).sqrt() for each in ends
            ]
        for layer in block:
            ends = [F.relu(F.conv2d(each, layer.weight, layer.bias, padding=1)) for each in ends]
        pairs.append(ends)
    learnt = torch.load(
        Path(dists.__file__).parent / "dists_models" / "weights.pt", map_location="cpu", weights_only=True
    )
    total = learnt["alpha"].sum() + learnt["beta"].sum()
    widths = [pair[0].shape[1] for pair in pairs]
    textures, structures = ((learnt[name].flatten() / total).split(widths) for name in ("alpha", "beta"))
    expected = torch.ones(4)
    for (x, y), texture, structure in zip(pairs, textures, structures, strict=True):
        x, y = x.flatten(2).double(), y.flatten(2).double()
        mean_x, mean_y = x.mean(dim=2), y.mean(dim=2)
        covariance = ((x - mean_x[..., None]) * (y - mean_y[..., None])).mean(dim=2)
        variances = x.var(dim=2, correction=0) + y.var(dim=2, correction=0)
        expected -= (texture * (2 * mean_x * mean_y + 1e-6) / (mean_x**2 + mean_y**2 + 1e-6)).sum(dim=1)
        expected -= (structure * (2 * covariance + 1e-6) / (variances + 1e-6)).sum(dim=1)
    assert np.ptp(ours) > 0.01, "the inputs differ"
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-4)


def test_the_smallest_side_of_lpips_is_the_smallest_that_its_network_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alexnet(monkeypatch)
    _, images = made_images(Lpips.smallest_side, count=1)
    assert Lpips().score(images, images) == pytest.approx([0])
    with pytest.raises(InvalidInputError, match="at least 31 pixels a side for lpips; got '31x30'"):
        Lpips().score(images[:, :-1], images[:, :-1])
    monkeypatch.setattr(Lpips, "smallest_side", 1)
    with pytest.raises(RuntimeError, match="too small"):
        Lpips().score(images[:, :-1], images[:, :-1])
