"""The stages of a request: where each is over, its time goes to link report, trace and metrics at once."""

from __future__ import annotations

from services.common import metrics, tracing
from services.proto.downlink_pb2 import StageTime


def stage_time(stage: str, seconds: float) -> StageTime:
    """What the link report says of a stage that took ``seconds`` and is over now."""
    tracing.record_stage(stage, seconds)
    metrics.STAGE_SECONDS.labels(stage).observe(seconds)
    return StageTime(stage=stage, seconds=seconds)
