"""Settings of the cloud service and of its distillers."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from services.common.settings import DAY_S, MANY, YEAR_S, GeneratorSettings, ServiceSettings


class KnowledgeSettings(ServiceSettings):
    """Settings shared by the cloud and its distillers."""

    data_dir: Path = Field(
        Path(".run/data"),
        description="Folder of all knowledge and of unfinished jobs, shared by the cloud and its distillers.",
    )
    job_heartbeat_s: int = Field(
        10,
        ge=2,
        le=DAY_S,
        description="Time without a heartbeat after which a job is given to another distiller, s.",
    )
    job_attempts: int = Field(
        5, ge=1, le=MANY, description="Attempts at a job whose distiller dies before the job fails."
    )
    job_keep_s: int = Field(
        DAY_S, ge=60, le=10 * YEAR_S, description="Time that a job remains available after its end, s."
    )
    queue_timeout_s: float = Field(
        5.0, gt=0, le=DAY_S, description="Timeout of Redis operations on jobs and knowledge, s."
    )


class CloudSettings(KnowledgeSettings, GeneratorSettings):
    """Read from the environment, prefix ``DEKAG_``."""

    port: int = Field(50054, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    job_poll_s: float = Field(
        0.25, gt=0, le=DAY_S, description="Polling interval for jobs that a client follows, s."
    )
    mirror_every_s: float = Field(
        2.0, gt=0, le=DAY_S, description="Interval at which knowledge is synced from disk to Redis, s."
    )
    verify_every_s: float = Field(
        60.0,
        gt=0,
        le=DAY_S,
        description="Interval at which all knowledge on disk and in Redis is checked against its hashes, s; "
        "changed files are checked sooner.",
    )
    max_comparisons: int = Field(
        4,
        ge=1,
        le=MANY,
        description="Comparisons of received images that may run or wait, one at a time; further ones are "
        "rejected as exhausted.",
    )
    drift_window: int = Field(
        30,
        ge=2,
        le=1000,
        description="Window of the drift watch: the mean consistency of a version's first images is compared "
        "with that of its last ones, this many each, once there are twice as many.",
    )
    drift_fall: float = Field(
        0.15,
        gt=0,
        le=2,
        description="Fall of that mean above which a topic is flagged as drifting, until half of it has "
        "recovered.",
    )


class DistillerSettings(KnowledgeSettings):
    """Read from the environment, prefix ``DEKAG_``."""

    distill_threads: int = Field(
        1,
        ge=0,
        le=1024,
        description="CPU threads of a distillation; 0 uses torch's default. 1 is fastest for small models.",
    )
    previews: int = Field(
        6, ge=0, le=100, description="Number of previews, images that are generated during a training."
    )
    sweep_every_s: int = Field(
        2, ge=1, le=DAY_S, description="Interval at which jobs of dead distillers are queued again, s."
    )
    health_file: Path | None = Field(
        None, description="File that is touched every two seconds while this distiller and Redis work."
    )
