"""Distances between two sets of images by their features: what FID and KID compute of Inception's.

The features may be any encoder's. FID and KID proper are these distances of the features of one Inception
network, whose weights have to be downloaded; with the features of DINOv2 the first is known as FD-DINOv2.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dekag.errors import InvalidInputError

Features = npt.NDArray[np.floating]


def frechet_distance(features: Features, references: Features) -> float:
    """Fréchet distance of Gaussians fitted to two sets (Heusel et al., 2017).

    |m - r|^2 + tr(S + R - 2 (S R)^(1/2)), of means m, r and covariances S, R.

    Example:
        >>> import numpy as np
        >>> from dekag.metrics.sets import frechet_distance
        >>> features = np.random.default_rng(0).normal(size=(100, 4))
        >>> round(frechet_distance(features + 1, features), 6)
        4.0

    Args:
        features, references: (n, d) and (m, d), at least 2 rows each. With fewer rows than columns the
            estimate is far too high.

    Raises:
        InvalidInputError: the sets have other shapes.
    """
    ours, theirs = _checked(features, references)
    difference = ours.mean(axis=0) - theirs.mean(axis=0)
    first, second = (np.atleast_2d(np.cov(each, rowvar=False)) for each in (ours, theirs))
    # eigenvalues of S R are those of a positive semidefinite matrix; rounding makes some negative
    roots = np.sqrt(np.linalg.eigvals(first @ second).real.clip(min=0))
    return float(difference @ difference + np.trace(first) + np.trace(second) - 2 * roots.sum())


def kernel_distance(features: Features, references: Features) -> float:
    """Squared maximum mean discrepancy with the kernel (x y / d + 1)^3, unbiased (Binkowski et al., 2018).

    It uses all images at once, not subsets, so that it depends on no seed; it can be slightly negative.

    Args:
        features, references: (n, d) and (m, d), at least 2 rows each.

    Raises:
        InvalidInputError: the sets have other shapes.
    """
    ours, theirs = _checked(features, references)
    n, m = len(ours), len(theirs)
    first, second, both = (
        (x @ y.T / ours.shape[1] + 1) ** 3 for x, y in ((ours, ours), (theirs, theirs), (ours, theirs))
    )
    within = (first.sum() - np.trace(first)) / (n * (n - 1))
    within += (second.sum() - np.trace(second)) / (m * (m - 1))
    return float(within - 2 * both.mean())


def _checked(*sets: Features) -> tuple[npt.NDArray[np.float64], ...]:
    widths = {each.shape[1] for each in sets if each.ndim == 2 and len(each) >= 2}
    if len(widths) != 1 or any(each.ndim != 2 or len(each) < 2 for each in sets):
        shapes = " and ".join(str(each.shape) for each in sets)
        raise InvalidInputError("features", "(n, d) and (m, d) with at least 2 rows each", shapes)
    return tuple(each.astype(np.float64) for each in sets)
