"""Settings of the cloud service and of its distillers."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from services.common.settings import DAY_S, MANY, YEAR_S, GeneratorSettings, ServiceSettings


class KnowledgeSettings(ServiceSettings):
    """What the cloud and its distillers have in common."""

    data_dir: Path = Field(
        Path(".run/data"),
        description="Folder of the knowledge updates and of unfinished jobs; cloud and distillers share it.",
    )
    job_heartbeat_s: int = Field(
        10,
        ge=2,
        le=DAY_S,
        description="A job whose worker has said nothing for so long is given to another one, s.",
    )
    job_attempts: int = Field(
        5, ge=1, le=MANY, description="Workers that may die on a job before it is given up as failed."
    )
    job_keep_s: int = Field(
        DAY_S, ge=60, le=10 * YEAR_S, description="Time that a job can be looked up after its end, s."
    )
    queue_timeout_s: float = Field(
        5.0, gt=0, le=DAY_S, description="Longest wait for an answer of Redis where jobs are concerned, s."
    )


class CloudSettings(KnowledgeSettings, GeneratorSettings):
    """Read from the environment, prefix ``DEKAG_``."""

    port: int = Field(50054, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    job_poll_s: float = Field(
        0.25, gt=0, le=DAY_S, description="Time between two looks at a job that is watched, s."
    )
    mirror_every_s: float = Field(
        2.0, gt=0, le=DAY_S, description="Time between two looks at whether Redis still has all knowledge, s."
    )
    verify_every_s: float = Field(
        60.0,
        gt=0,
        le=DAY_S,
        description="Time between two checks of all knowledge, on the disk and in Redis, against its hashes, "
        "s; files that change are checked sooner.",
    )
    max_comparisons: int = Field(
        4,
        ge=1,
        le=MANY,
        description="Comparisons with received images that may wait or be made; they are made one at a time, "
        "and more are turned away as exhausted.",
    )
    drift_window: int = Field(
        30,
        ge=2,
        le=1000,
        description="Compared images of a version of a topic's knowledge whose consistency is averaged: its "
        "first so many beside its last so many. It is judged from twice as many on.",
    )
    drift_fall: float = Field(
        0.15,
        gt=0,
        le=2,
        description="Fall of that mean that flags a topic as drifting, until half of it is made good.",
    )


class DistillerSettings(KnowledgeSettings):
    """Read from the environment, prefix ``DEKAG_``."""

    distill_threads: int = Field(
        1,
        ge=0,
        le=1024,
        description="CPU threads of a distillation; 0 leaves it to torch. 1 is fastest for the small models.",
    )
    previews: int = Field(
        6, ge=0, le=100, description="Times during training that sample pictures are drawn to look at."
    )
    sweep_every_s: int = Field(
        2, ge=1, le=DAY_S, description="Time between two looks for jobs whose worker has died, s."
    )
    health_file: Path | None = Field(
        None, description="File that is touched every few seconds while this worker and Redis are well."
    )
