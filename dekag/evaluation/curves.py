"""Curves of quality against rate, in the JSON shape that CompressAI publishes its results in.

A file holds one curve: ``{"name": ..., "description": ..., "results": {"bpp": [...], "psnr": [...], ...}}``,
lists of equal length. `bpp` is the rate of a source codec, bits per pixel; curves over a channel have `cbr`,
channel uses per value, or `snr_db` instead. `source` says where published points were read; curves that were
measured here have none. The folder published/ holds published points, which `read_curve` knows by name, such
as ``kodak/vtm``.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dekag.documents import read_json
from dekag.errors import FileError, InvalidInputError

Array = npt.NDArray[np.float64]

AXES = {"bpp": "bits per pixel", "cbr": "channel uses per value", "snr_db": "SNR, dB"}
"""What may be on the horizontal axis, in the order in which it is looked for."""
METRICS = {"psnr": "PSNR, dB", "ms-ssim": "MS-SSIM, dB"}
"""What may be compared. MS-SSIM is compared as -10 log10(1 - MS-SSIM), as usual."""
PUBLISHED = Path(__file__).with_name("published")
MAX_POINTS = 10_000

_OTHER_NAMES = {"psnr-rgb": "psnr", "ms-ssim-rgb": "ms-ssim"}  # in older files of CompressAI
_LEAST_POINTS = 3


@dataclass(frozen=True)
class Curve:
    """A curve.

    Attributes:
        name: what readers see.
        description: where it comes from.
        results: lists of equal length by name, of AXES, METRICS or others.
        source: where published points were read; empty if measured here.
    """

    name: str
    description: str
    results: Mapping[str, Sequence[float]]
    source: str = ""

    @property
    def axis(self) -> str:
        """The first of AXES that it has."""
        return next(axis for axis in AXES if axis in self.results)

    def points(self, metric: str) -> tuple[Array, Array]:
        """Rates (n,), ascending, and the values (n,) of one of METRICS, in dB.

        Points that another one of no higher rate reaches are left out: there are none on a useful curve.

        Raises:
            InvalidInputError: the curve lacks the metric, or too few points are left.
        """
        if metric not in self.results:
            raise InvalidInputError("metric", f"one that {self.name!r} has", metric)
        values = np.array(self.results[metric], dtype=float)
        if metric == "ms-ssim":
            values = -10 * np.log10(np.maximum(1 - values, 1e-10))
        order = np.argsort(self.results[self.axis], kind="stable")
        rates, values = np.array(self.results[self.axis], dtype=float)[order], values[order]
        rising = values > np.concatenate([[-math.inf], np.maximum.accumulate(values)[:-1]])
        rising &= np.concatenate([[True], np.diff(rates) > 0])
        if rising.sum() < _LEAST_POINTS:
            allowed = (
                f"curves with at least {_LEAST_POINTS} points that rise; {self.name!r} has {rising.sum()}"
            )
            raise InvalidInputError(metric, allowed, f"{len(rates)} points")
        return rates[rising], values[rising]

    def write(self, folder: Path) -> Path:
        """Write it as a file named after it; returns the path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / (re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-") + ".json")
        document: dict[str, Any] = {"name": self.name, "description": self.description}
        if self.source:
            document["source"] = self.source
        path.write_text(json.dumps({**document, "results": dict(self.results)}, indent=2) + "\n")
        return path


@dataclass(frozen=True)
class Comparison:
    """How a curve compares with another, over the values or rates that both cover (Bjontegaard, 2001).

    Attributes:
        metric: of METRICS.
        rate_percent: mean change of the rate at equal quality; None over SNRs, or without common qualities.
        snr_db: the same over SNRs, dB; None over rates, or without common qualities.
        quality_db: mean change of quality at equal rate or SNR, dB; None without common ones.
        overlap: fraction of both curves' range of qualities that they share.
    """

    metric: str
    rate_percent: float | None
    snr_db: float | None
    quality_db: float | None
    overlap: float


def published_names() -> list[str]:
    """Names of the published curves, such as "kodak/vtm"."""
    return sorted(str(path.relative_to(PUBLISHED).with_suffix("")) for path in PUBLISHED.rglob("*.json"))


def read_curve(name: str) -> Curve:
    """The curve of a file, or a published one by its name.

    Raises:
        InvalidInputError: there is neither a file nor a published curve of that name.
        DocumentError: the file is not JSON.
        FileError: it does not hold a curve; the message says what is wrong.
    """
    if name in published_names():
        return _parsed(PUBLISHED / f"{name}.json", name)
    path = Path(name)
    if not path.is_file():
        raise InvalidInputError("curve", f"a JSON file, or one of {', '.join(published_names())}", name)
    return _parsed(path, name)


def _parsed(path: Path, shown: str) -> Curve:
    document = read_json(path)
    results = document.get("results") if isinstance(document, dict) else None
    if not isinstance(results, dict):
        raise FileError(shown, 'has no object "results" with lists such as "bpp" and "psnr"')
    lists: dict[str, list[float]] = {}
    for key, values in results.items():
        if not isinstance(values, list):
            continue  # other tools add remarks
        if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in values):
            raise FileError(shown, f'has something else than numbers in "results.{key}"')
        lists[_OTHER_NAMES.get(key) or key] = [float(each) for each in values]
    axis = next((each for each in AXES if each in lists), None)
    if axis is None:
        raise FileError(shown, f'has no rate in "results": one of {", ".join(AXES)} is needed')
    count = len(lists[axis])
    if not 1 <= count <= MAX_POINTS:
        raise FileError(shown, f"has {count} points; 1 to {MAX_POINTS} are allowed")
    for key, values in lists.items():
        if len(values) != count and key in METRICS:
            raise FileError(shown, f'has {len(values)} values of "{key}" for {count} of "{axis}"')
    if axis != "snr_db" and min(lists[axis]) <= 0:
        raise FileError(shown, f'has a rate in "{axis}" that is not above 0')
    if not any(metric in lists for metric in METRICS):
        raise FileError(shown, f"has none of {', '.join(METRICS)}")
    if not all(0 <= each <= 1 for each in lists.get("ms-ssim", [])):
        raise FileError(shown, 'has values of "ms-ssim" outside 0 to 1')
    texts = {key: str(document.get(key) or "") for key in ("name", "description", "source")}
    return Curve(texts["name"] or Path(shown).stem, texts["description"], lists, texts["source"])


def compare(ours: Curve, theirs: Curve, metric: str) -> Comparison:
    """BD-rate and BD-PSNR of our curve against theirs, with piecewise cubic interpolation (PCHIP).

    Over SNRs, in dB, the abscissa is linear; over rates it is their logarithm.

    Raises:
        InvalidInputError: the curves have different axes, lack the metric, or have too few points.
    """
    import bjontegaard

    if ours.axis != theirs.axis:
        raise InvalidInputError("curve", f"over {ours.axis}, as {ours.name!r} is", f"over {theirs.axis}")
    (x, y), (their_x, their_y) = ours.points(metric), theirs.points(metric)
    if ours.axis == "snr_db":
        x, their_x = 10 ** (x / 10), 10 ** (their_x / 10)
    span = max(y[-1], their_y[-1]) - min(y[0], their_y[0])
    overlap = max(0.0, min(y[-1], their_y[-1]) - max(y[0], their_y[0])) / span
    known = {"method": "pchip", "require_matching_points": False, "min_overlap": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without overlap the result is NaN, which `_finite` reports
        rate = _finite(bjontegaard.bd_rate(their_x, their_y, x, y, **known))
        quality = _finite(bjontegaard.bd_psnr(their_x, their_y, x, y, **known))
    if ours.axis != "snr_db":
        return Comparison(metric, rate, None, quality, overlap)
    snr_db = None if rate is None else 10 * math.log10(1 + rate / 100)
    return Comparison(metric, None, snr_db, quality, overlap)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def plot(curves: Sequence[Curve], metric: str) -> Any:
    """A figure of pyplot with all curves; published points are dashed."""
    from dekag.evaluation import plots

    figure, axes = plots.panels(height_in=4.6)
    axis = axes[0, 0]
    for number, curve in enumerate(curves):
        x, y = curve.points(metric)
        style = "--" if curve.source else "-"
        color, marker = plots.LOOKS[number % len(plots.LOOKS)]
        plots.line(axis, x, y, curve.name, color, style=style, marker=marker)
    if curves[0].axis != "snr_db":
        plots.log_rates(axis)
    axis.set_xlabel(AXES[curves[0].axis])
    axis.set_ylabel(METRICS[metric])
    plots.legend_below(figure, axes)
    return figure
