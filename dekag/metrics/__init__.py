"""Metrics of received images, and `Metric`, the base class of plug-in metrics."""

from dekag.metrics.image import Metric

__all__ = ["Metric"]
