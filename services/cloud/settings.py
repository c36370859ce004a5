"""Settings of the cloud service and of its distillers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from dekag.api.limits import check_topic
from dekag.errors import InvalidInputError
from dekag.generation.machine import TrainingMachine
from services.common.addresses import listed
from services.common.settings import DAY_S, MANY, YEAR_S, GeneratorSettings, ServiceSettings


def _topics(text: str) -> str:
    """Names of topics separated by commas."""
    for name in listed(text):
        try:
            check_topic(name)
        except InvalidInputError as error:
            raise ValueError(f"each topic must be {error.allowed}; {name!r} is not") from None
    return text


class KnowledgeSettings(ServiceSettings):
    """What the cloud and its distillers have in common."""

    data_dir: Path = Field(
        Path(".run/data"),
        description="Folder for knowledge updates and unfinished jobs, shared by cloud and distillers.",
    )
    job_heartbeat_s: int = Field(
        10,
        ge=2,
        le=DAY_S,
        description="Time without a heartbeat after which a job that nobody has claimed is queued again, s.",
    )
    job_attempts: int = Field(
        5, ge=1, le=MANY, description="Number of distillers that may crash during a job before it fails."
    )
    job_keep_s: int = Field(
        DAY_S, ge=60, le=10 * YEAR_S, description="Time that a job remains available after its end, s."
    )
    signing_key_file: Path | None = Field(
        None,
        description="File with the key that signs knowledge, as created by `dekag credentials`; read again "
        "when it changes.",
    )
    mirror_mib: int = Field(
        64,
        ge=0,
        le=2**20,
        description="Upper limit of the knowledge updates that are copied to Redis, MiB: those of the topics "
        "that changed last. Edges fetch the others from the cloud.",
    )
    queue_timeout_s: float = Field(
        5.0, gt=0, le=DAY_S, description="Time limit for responses of Redis to job operations, s."
    )


class CloudSettings(KnowledgeSettings, GeneratorSettings):
    """Read from the environment, prefix ``DEKAG_``."""

    port: int = Field(50054, ge=0, le=65535, description="Port to listen on; 0 selects a free port.")
    start_topics: Annotated[str, AfterValidator(_topics)] = Field(
        "",
        description="Topics, separated by commas, for which the cloud publishes at its start the knowledge "
        "updates that come with the profile, unless a topic has an update already. `dekag up` and "
        "`docker-compose.yml` set `flamingo`, the example of the web page, with the profile `stickers`.",
    )
    job_poll_s: float = Field(
        0.25, gt=0, le=DAY_S, description="Interval between two checks of a watched job, s."
    )
    max_jobs: int = Field(
        100,
        ge=1,
        le=MANY,
        description="Upper limit of distillations that wait or run; further ones get status 429.",
    )
    max_client_jobs: int = Field(
        10, ge=1, le=MANY, description="The same for each client: an API key, or an address without keys."
    )
    max_jobs_mib: int = Field(
        32,
        ge=8,
        le=2**20,
        description="Upper limit of the orders of all distillations that wait or run, MiB; further ones get "
        "status 429. One order with all prompts and triggers that are allowed takes up to 7 MiB.",
    )
    max_client_jobs_mib: int = Field(8, ge=8, le=2**20, description="The same for each client.")
    keep_jobs: int = Field(
        1000, ge=1, le=MANY, description="Upper limit of ended jobs that remain available; the latest stay."
    )
    max_topics: int = Field(
        200,
        ge=1,
        le=MANY,
        description="Upper limit of topics with knowledge; a distillation or publication of a further one "
        "gets status 429.",
    )
    max_knowledge_mib: int = Field(
        4096,
        ge=1,
        le=2**30,
        description="Upper limit of all versions of all knowledge on the disk, MiB; above it, distillations "
        "and publications get status 429.",
    )
    max_key_topics: int = Field(
        50,
        ge=1,
        le=MANY,
        description="As DEKAG_MAX_TOPICS, for the topics of each API key that is no admin's.",
    )
    max_key_mib: int = Field(
        1024,
        ge=1,
        le=2**30,
        description="As DEKAG_MAX_KNOWLEDGE_MIB, for the topics of each API key that is no admin's.",
    )
    keep_versions: int = Field(
        20,
        ge=2,
        le=MANY,
        description="Upper limit of versions that are kept of a topic's knowledge and of a codec's adapters; "
        "the earliest are deleted first.",
    )
    keep_versions_s: int = Field(
        0,
        ge=0,
        le=10 * YEAR_S,
        description="Age at which versions that are not current are deleted, s; 0 keeps them.",
    )
    mirror_every_s: float = Field(
        2.0, gt=0, le=DAY_S, description="Interval between two synchronisations of all knowledge to Redis, s."
    )
    verify_every_s: float = Field(
        60.0,
        gt=0,
        le=DAY_S,
        description="Interval between two verifications of all knowledge, on disk and in Redis, against its "
        "hashes, s. Changed files are verified sooner.",
    )
    max_comparisons: int = Field(
        4,
        ge=1,
        le=MANY,
        description="Upper limit of image comparisons in progress or queued. They run one at a time; "
        "further ones are refused.",
    )
    drift_window: int = Field(
        30,
        ge=2,
        le=1000,
        description="Number of images in each mean of the drift watch: the first and the last images of a "
        "topic's current version. A verdict requires twice as many images.",
    )
    drift_fall: float = Field(
        0.15,
        gt=0,
        le=2,
        description="Fall of the mean consistency at which a topic counts as drifting; the flag clears "
        "after half of it is recovered.",
    )
    demand_budget_bytes: int = Field(
        0,
        ge=0,
        le=2**50,
        description="Upper limit of the bytes that DEKAG_DEMAND_POLICY may spend from cloud to edge in a "
        "period, files and updates together. Beyond it, the edge draws without an update. 0: no limit.",
    )
    demand_period_s: float = Field(
        3600.0, ge=1, le=YEAR_S, description="Length of a period of DEKAG_DEMAND_BUDGET_BYTES, s."
    )
    demand_update_bytes: int = Field(
        20_000,
        ge=1,
        le=2**40,
        description="Expected bytes of a topic's update, as long as there is no update to learn it from.",
    )
    demand_file_bytes: int = Field(
        2_500,
        ge=1,
        le=2**40,
        description="Expected bytes of an image's file, as long as none has been sent.",
    )


class DistillerSettings(TrainingMachine, KnowledgeSettings):
    """Read from the environment, prefix ``DEKAG_``."""

    distill_threads: int = Field(
        1,
        ge=0,
        le=1024,
        description="CPU threads of a distillation; 0 uses PyTorch's default. 1 leaves the other cores to "
        "the services. A small model draws a batch of images in each thread, and learns from a part of each "
        "batch.",
    )
    job_max_s: int = Field(
        3600,
        ge=1,
        le=YEAR_S,
        description="Longest duration of a distillation from its start, s; a longer one fails. An attempt "
        "after a crash has as long again.",
    )
    previews: int = Field(
        6,
        ge=0,
        le=100,
        description="About how many previews are made while the full form is trained; 0: none.",
    )
    sweep_every_s: int = Field(
        2, ge=1, le=DAY_S, description="Interval between two checks for jobs of crashed distillers, s."
    )
    health_file: Path | None = Field(
        None, description="File that is touched every few seconds while the distiller and Redis are healthy."
    )
