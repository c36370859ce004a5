"""Explains problems with Redis in plain words, and probes whether it can do what is needed."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    LockError,
    RedisError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

if TYPE_CHECKING:
    from redis.asyncio import Redis

REDIS_ERRORS = (RedisError, OSError, TimeoutError)
"""Errors that a call to Redis may raise."""
CHECK_INTERVAL_S = 1.0
"""Shortest time between two probes of the same Redis."""
_PROBE_TTL_S = 5  # expiry of the key of a probe, in case it may not be deleted
_MAX_MESSAGE_CHARS = 160  # of a message that is shown
# part of Redis's message -> explanation; the error code is not always the first word, as errors of scripts
# and transactions quote it
_EXPLANATIONS = {
    "maxmemory": "refuses to write, as its memory is full (maxmemory)",
    "OOM": "refuses to write, as its memory is full (maxmemory)",
    "MISCONF": "refuses to write, as it could not save to its disk (MISCONF)",
    "read only replica": "refuses to write, as it is a read-only replica (READONLY)",
    "READONLY": "refuses to write, as it is a read-only replica (READONLY)",
    "NOREPLICAS": "refuses to write, as it has too few replicas (NOREPLICAS)",
    "MASTERDOWN": "refuses to answer, as it is a replica without its master (MASTERDOWN)",
    "DB index is out of range": "does not have the database number in DEKAG_REDIS_URL",
    "max number of clients": "has reached its maximum number of clients",
}
_DENIED = ("no permissions", "NOPERM")


def explain(error: BaseException) -> str:
    """Explains an error of a call to Redis, as a phrase after "Redis" or "which"."""
    message = " ".join(str(error).split())[:_MAX_MESSAGE_CHARS]
    if explanation := next((text for sign, text in _EXPLANATIONS.items() if sign in message), None):
        return explanation
    if any(sign in message for sign in _DENIED):
        return f"denies its user this operation ({message})"
    if isinstance(error, AuthenticationError):
        return "rejects the user or the password, or requires one"
    if isinstance(error, BusyLoadingError):
        return "is still loading its data"
    if isinstance(error, InvalidResponse):
        return "does not answer at DEKAG_REDIS_URL; something else answers there"
    if isinstance(error, LockError):
        return "is locked by another request; try again"
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return "does not answer in time"
    if isinstance(error, RedisConnectionError | OSError):
        tls = "SSL" in message or "certificate" in message.lower()
        return "cannot be reached, as the TLS handshake failed" if tls else "cannot be reached"
    return f"answers: {message}"


class RedisProbe:
    """Probes whether Redis can write, read and delete, at most once a second.

    Args:
        redis: client to probe.
        prefix: prefix of keys that the service's user may access.
        deletes: whether the service deletes keys; the key of the probe expires in any case.
        scripts: whether the service runs scripts.
    """

    def __init__(self, redis: Redis, prefix: str, *, deletes: bool = True, scripts: bool = False) -> None:
        self._redis, self._deletes, self._scripts = redis, deletes, scripts
        self._key = f"{prefix}trial-{uuid.uuid4().hex}"
        self._lock, self._tried, self._problem = asyncio.Lock(), -CHECK_INTERVAL_S, ""

    async def problem(self) -> str:
        """The problem as a phrase, see ``explain``; empty if there is none."""
        async with self._lock:
            if time.monotonic() - self._tried >= CHECK_INTERVAL_S:
                self._problem = await self._try()
                self._tried = time.monotonic()
            return self._problem

    async def _try(self) -> str:
        value = uuid.uuid4().hex.encode()
        try:
            await self._redis.set(self._key, value, ex=_PROBE_TTL_S)
            if await self._redis.get(self._key) != value:
                return "does not store what is written to it"
            if self._scripts:
                await self._redis.eval("return 1", 0)  # type: ignore[misc]  # typed for both clients at once
            if self._deletes:
                await self._redis.delete(self._key)
        except REDIS_ERRORS as error:
            return explain(error)
        return ""
