"""Random values derived from the Idempotency-Key, so that a repeated request has the same effect.

Nothing is stored: an image follows from its seed, and a job is identified by its id.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated

from fastapi import Header

from dekag.api import limits

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=limits.pattern(limits.IDEMPOTENCY_KEY),
        description="A repeated request with the same key has no additional effect: images have the same "
        "seed, and a distillation returns the original job.",
        examples=["0b8f6c1e-3f5d-4b62-9a31-5f0f3a7f2f51"],
    ),
]


def seed_for(client: str, key: str | None, below: int) -> int:
    """A seed of at least 0 and less than ``below``; each client's keys are its own."""
    return secrets.randbelow(below) if key is None else int(_digest(client, key), 16) % below


def job_id_for(client: str, key: str | None) -> str:
    """The id of the job that the request starts; empty to let the cloud choose one."""
    return "" if key is None else _digest(client, key)[:32]


def _digest(client: str, key: str) -> str:
    return hashlib.sha256(f"{client}\0{key}".encode()).hexdigest()
