"""The Python client under its documented name; the code is in `dekag.api`."""

from __future__ import annotations

from dekag.api.client import (
    API_KEY,
    CA_FILE,
    DEFAULT_URL,
    Client,
    DistillOptions,
    Image,
    UnauthorizedError,
    UnreachableError,
    authorization,
    gateway_url,
    trusting,
)
from dekag.api.schemas import (
    Consistency,
    Constellation,
    HopTraffic,
    Job,
    KnowledgeUse,
    LinkReport,
    ModulationAndCoding,
    PromptRead,
    RunningConsistency,
    StageTime,
    Transmission,
)
from dekag.api.schemas import KnowledgeManifest as Knowledge

__all__ = [
    "API_KEY",
    "CA_FILE",
    "DEFAULT_URL",
    "Client",
    "Consistency",
    "Constellation",
    "DistillOptions",
    "HopTraffic",
    "Image",
    "Job",
    "Knowledge",
    "KnowledgeUse",
    "LinkReport",
    "ModulationAndCoding",
    "PromptRead",
    "RunningConsistency",
    "StageTime",
    "Transmission",
    "UnauthorizedError",
    "UnreachableError",
    "authorization",
    "gateway_url",
    "trusting",
]
