"""Records the time of a stage in link report, trace and metrics at once."""

from __future__ import annotations

from services.common import metrics, tracing
from services.proto.downlink_pb2 import StageTime

MEASURE = "user.measure"
"""Comparing the received image with the one as sent."""


def stage_time(stage: str, seconds: float) -> StageTime:
    """Records a stage that took ``seconds`` and has just ended; returns its entry for the link report."""
    tracing.record_stage(stage, seconds)
    metrics.STAGE_SECONDS.labels(stage).observe(seconds)
    return StageTime(stage=stage, seconds=seconds)
