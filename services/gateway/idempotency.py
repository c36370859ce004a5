"""What a request draws at random, drawn from its Idempotency-Key instead: a repetition draws the same.

Nothing is kept for it: a picture follows from its seed, and a job is known by its id.
"""

from __future__ import annotations

import hashlib
import secrets


def seed_for(client: str, key: str | None, below: int) -> int:
    """A seed of at least 0 and less than ``below``; each client's keys are its own."""
    return secrets.randbelow(below) if key is None else int(_digest(client, key), 16) % below


def job_id_for(client: str, key: str | None) -> str:
    """The id of the job that the request starts; empty if the cloud is to choose one."""
    return "" if key is None else _digest(client, key)[:32]


def _digest(client: str, key: str) -> str:
    return hashlib.sha256(f"{client}\0{key}".encode()).hexdigest()
