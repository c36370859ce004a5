"""What is wrong with Redis, in plain words: what it really answered, and whether it does what is needed."""

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
"""What a call to Redis may raise."""
CHECK_INTERVAL_S = 1.0
"""Least time between two trials of a Redis."""
_KEPT_S = 5  # that what a trial writes stays where it may not be deleted
_SAID = 160  # characters of an answer that is shown
# what Redis's answer holds -> what that means; an answer's code is not always its first word, as a script's
# and a transaction's errors quote it
_ANSWERS = {
    "maxmemory": "refuses to write, as its memory is full (maxmemory)",
    "OOM": "refuses to write, as its memory is full (maxmemory)",
    "MISCONF": "refuses to write, as it could not save to its disk (MISCONF)",
    "read only replica": "refuses to write, as it is a read-only replica (READONLY)",
    "READONLY": "refuses to write, as it is a read-only replica (READONLY)",
    "NOREPLICAS": "refuses to write, as too few of its replicas are there (NOREPLICAS)",
    "MASTERDOWN": "refuses to answer, as it is a replica without its master (MASTERDOWN)",
    "DB index is out of range": "has no database of the number that DEKAG_REDIS_URL names",
    "max number of clients": "has as many clients as it takes",
}
_DENIED = ("no permissions", "NOPERM")


def explain(error: BaseException) -> str:
    """What is wrong with Redis by what a call to it raised; goes on from "Redis" or "which"."""
    said = " ".join(str(error).split())[:_SAID]
    if found := next((meaning for sign, meaning in _ANSWERS.items() if sign in said), None):
        return found
    if any(sign in said for sign in _DENIED):
        return f"does not let its user do that ({said})"
    if isinstance(error, AuthenticationError):
        return "refuses the user or the password that it is given, or wants one"
    if isinstance(error, BusyLoadingError):
        return "is still loading its data"
    if isinstance(error, InvalidResponse):
        return "is none: something else answers at DEKAG_REDIS_URL"
    if isinstance(error, LockError):
        return "is held up by another request; try again"
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return "does not answer in time"
    if isinstance(error, RedisConnectionError | OSError):
        tls = "SSL" in said or "certificate" in said.lower()
        return "does not agree on TLS with this service" if tls else "cannot be reached"
    return f"answers: {said}"


class RedisProbe:
    """Whether Redis writes, reads and deletes; tried at most once a second, however often it is asked.

    Args:
        redis: to try.
        prefix: what keys of this service begin with, as its user may have no others.
        deletes: whether the service deletes keys; what is written expires in any case.
        scripts: whether it runs scripts.
    """

    def __init__(self, redis: Redis, prefix: str, *, deletes: bool = True, scripts: bool = False) -> None:
        self._redis, self._deletes, self._scripts = redis, deletes, scripts
        self._key = f"{prefix}trial-{uuid.uuid4().hex}"
        self._lock, self._tried, self._problem = asyncio.Lock(), -CHECK_INTERVAL_S, ""

    async def problem(self) -> str:
        """What is wrong, see ``why``; empty if nothing is."""
        async with self._lock:
            if time.monotonic() - self._tried >= CHECK_INTERVAL_S:
                self._problem = await self._try()
                self._tried = time.monotonic()
            return self._problem

    async def _try(self) -> str:
        value = uuid.uuid4().hex.encode()
        try:
            await self._redis.set(self._key, value, ex=_KEPT_S)
            if await self._redis.get(self._key) != value:
                return "does not keep what is written to it"
            if self._scripts:
                await self._redis.eval("return 1", 0)  # type: ignore[misc]  # typed for both clients at once
            if self._deletes:
                await self._redis.delete(self._key)
        except REDIS_ERRORS as error:
            return explain(error)
        return ""
