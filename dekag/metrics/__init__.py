"""Scores of received images, and `Metric`, from which one's own derive."""

from dekag.metrics.image import Metric

__all__ = ["Metric"]
