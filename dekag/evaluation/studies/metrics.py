"""`dekag experiment metrics`: each metric beside its reference implementation, on made images and features.

A metric is checked if its largest difference from the reference is at most 1e-3 on the same inputs. Metrics
whose weights have to be downloaded are listed as not checked; tests compare their arithmetic with the
formulas of their papers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dekag.evaluation.pages import Row, write_rows
from dekag.evaluation.registry import RESULTS, record
from dekag.metrics.features import ImageScorer
from dekag.metrics.image import METRICS, Pixels, as_torch
from dekag.metrics.sets import frechet_distance, kernel_distance

Array = npt.NDArray[np.float64]

COMMAND = "dekag experiment metrics"
FOLDER = "metrics"
TOLERANCE = 1e-3
SIDE, ODD_SIDE = 256, 201
IMAGES = 6


@dataclass(frozen=True)
class Check:
    """A metric and its reference.

    Attributes:
        metric: its name.
        reference: what it is compared with.
        measure: both values, (n,) each; None if there is nothing to compare with here.
        why_not: why it is not checked; empty if it is.
    """

    metric: str
    reference: str
    measure: Callable[[], tuple[Array, Array]] | None = None
    why_not: str = ""


def made_images(side: int, count: int = IMAGES, seed: int = 0) -> tuple[Pixels, Pixels]:
    """References and degraded images, (count, side, side, 3) uint8: waves, edges and noise that grows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    references, images = [], []
    for number in range(count):
        waves = np.stack([np.sin(20 * (a * x + b * y) + c) for a, b, c in rng.uniform(-3, 3, (3, 3))], axis=2)
        edges = 80.0 * ((x + rng.uniform() * y) % 0.3 > 0.15)[..., None]
        clean = (128 + 60 * waves + edges).clip(0, 255)
        noisy = clean + rng.normal(0, 4 * 2**number, clean.shape)
        references.append(clean.round().astype(np.uint8))
        images.append(noisy.clip(0, 255).round().astype(np.uint8))
    return np.stack(references), np.stack(images)


def made_features(seed: int = 0) -> tuple[Array, Array]:
    """Two sets of features, (300, 16) and (200, 16), with different means and covariances."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(16, 16)) / 4
    return rng.normal(size=(300, 16)), rng.normal(size=(200, 16)) @ mixing + 0.3


def _psnr() -> tuple[Array, Array]:
    from skimage.metrics import peak_signal_noise_ratio

    references, images = made_images(SIDE)
    theirs = [peak_signal_noise_ratio(*pair) for pair in zip(references, images, strict=True)]
    return METRICS["psnr_db"].score(images, references), np.array(theirs)


def _ssim() -> tuple[Array, Array]:
    from skimage.metrics import structural_similarity

    references, images = made_images(SIDE)
    usual = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    theirs = [
        structural_similarity(*pair, channel_axis=2, **usual) for pair in zip(references, images, strict=True)
    ]
    return METRICS["ssim"].score(images, references), np.array(theirs)


def _ssim_torch() -> tuple[Array, Array]:
    from pytorch_msssim import ssim

    references, images = made_images(SIDE)
    theirs = ssim(as_torch(images), as_torch(references), data_range=1.0, size_average=False)
    return METRICS["ssim"].score(images, references), theirs.double().numpy()


def _ms_ssim(side: int) -> tuple[Array, Array]:
    from pytorch_msssim import ms_ssim

    references, images = made_images(side)
    theirs = ms_ssim(as_torch(images), as_torch(references), data_range=1.0, size_average=False)
    return METRICS["ms_ssim"].score(images, references), theirs.double().numpy()


def _frechet() -> tuple[Array, Array]:
    from torchmetrics.image.fid import FrechetInceptionDistance

    features, references = made_features()
    judge = FrechetInceptionDistance(feature=_Given(16), normalize=True).set_dtype(torch.float64)
    judge.update(torch.from_numpy(references), real=True)
    judge.update(torch.from_numpy(features), real=False)
    return np.array([frechet_distance(features, references)]), np.array([judge.compute().item()])


def _kernel() -> tuple[Array, Array]:
    from torchmetrics.image.kid import poly_mmd

    features, references = made_features()
    size = 200  # the reference takes sets of one size
    theirs = poly_mmd(torch.from_numpy(references[:size]), torch.from_numpy(features[:size]))
    return np.array([kernel_distance(features[:size], references[:size])]), np.array([theirs.item()])


class _Given(torch.nn.Module):
    """In place of Inception: the features are given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The features themselves."""
        return features


def _clip() -> tuple[Array, Array]:
    ours, images, scorer = _encoded("clip")
    pixels = scorer.clip_pixels(images)
    with torch.inference_mode():
        theirs = scorer.clip.get_image_features(pixel_values=pixels)
    theirs = getattr(theirs, "pooler_output", theirs)
    return ours, _unit(theirs)


def _dino() -> tuple[Array, Array]:
    ours, images, scorer = _encoded("dino")
    with torch.inference_mode():
        hidden = scorer.dino(scorer.dino_pixels(images)).last_hidden_state
    return ours, _unit(hidden[:, 0])


def _encoded(name: str) -> tuple[Array, Pixels, ImageScorer]:
    from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    eyes = {**small, "image_size": 224, "patch_size": 32}
    clip = CLIPModel(CLIPConfig(text_config={**small, "vocab_size": 99}, vision_config=eyes))
    dino = Dinov2Model(
        Dinov2Config(
            hidden_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=224, patch_size=14
        )
    )
    scorer = ImageScorer(clip, dino)
    _, images = made_images(SIDE)
    return scorer.features(images)[name].double().numpy().ravel(), images, scorer


def _unit(features: torch.Tensor) -> Array:
    flat: Array = torch.nn.functional.normalize(features, dim=1).double().numpy().ravel()
    return flat


_NO_WEIGHTS = (
    "its network's weights have to be downloaded, which was not possible where this was measured; with "
    "random weights, tests compare it with the formula of its paper"
)
CHECKS = (
    Check("PSNR", "scikit-image, peak_signal_noise_ratio", _psnr),
    Check("SSIM", "scikit-image, structural_similarity", _ssim),
    Check("SSIM", "pytorch-msssim, ssim", _ssim_torch),
    Check("MS-SSIM", "pytorch-msssim, ms_ssim", lambda: _ms_ssim(SIDE)),
    Check("MS-SSIM", "pytorch-msssim, ms_ssim, odd sides", lambda: _ms_ssim(ODD_SIDE)),
    Check(
        "MS-SSIM, four scales", "pytorch-msssim, ms_ssim", why_not="it refuses sides of 160 pixels or less"
    ),
    Check("Fréchet distance (FID)", "torchmetrics, FrechetInceptionDistance on given features", _frechet),
    Check("kernel distance (KID)", "torchmetrics, poly_mmd on given features", _kernel),
    Check("CLIP features", "transformers, CLIPModel.get_image_features, random weights", _clip),
    Check("DINOv2 features", "transformers, class token of Dinov2Model, random weights", _dino),
    Check("LPIPS", "lpips", why_not=_NO_WEIGHTS),
    Check("DISTS", "DISTS-pytorch", why_not=_NO_WEIGHTS),
)


def run_metrics(results: Path = RESULTS) -> int:
    """Compare every metric with its reference; write results/metrics/checks.jsonl and the figure.

    Returns:
        How many metrics are equal to all of their references within 1e-3.

    Raises:
        ModuleNotFoundError: the extra `photos`, with the references, is not installed.
    """
    rows: list[Row] = []
    for check in CHECKS:
        row: Row = {"metric": check.metric, "reference": check.reference}
        if check.measure is None:
            rows.append({**row, "difference": None, "why_not": check.why_not})
            continue
        ours, theirs = check.measure()
        rows.append({**row, "difference": float(np.abs(ours - theirs).max()), "values": len(ours)})
    differs = {row["metric"] for row in rows if row["difference"] is None or row["difference"] > TOLERANCE}
    tried = {check.metric for check in CHECKS}
    write_rows(results / FOLDER / "checks.jsonl", rows)
    equal = len(tried - differs)
    record("metrics_checked", equal, "metrics", command=COMMAND, count=len(tried), results=results)
    return equal
