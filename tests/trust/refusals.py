"""Tells answers of a system that is full, as it may be under attack, from those of one that is broken."""

from __future__ import annotations

FULL = (
    "there are too many connections; try again later",
    "the gateway cannot be reached, or has too many connections; try again later",
)
"""Details of the problems with status 503 by which the gateway and the proxy say that they are full.

Other answers with status 503 say that a service or Redis is away, even if they have a `Retry-After`. The
proxy says the same of a gateway that is full and of one that is away; health checks notice the latter."""


def is_broken(status: int, text: str) -> bool:
    """Whether an answer with that text is a fault of the system: a 5xx, unless the system is full."""
    return status >= 500 and not (status == 503 and any(f'"detail":"{detail}"' in text for detail in FULL))
