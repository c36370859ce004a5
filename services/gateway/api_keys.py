"""API keys: who may use the gateway, with limits on the rate and on concurrent requests.

The file of keys has one line a key, ``NAME:SHA256[:REQUESTS_PER_MINUTE[:CONCURRENCY[:SCOPE+SCOPE]]]``; blank
lines and lines that start with ``#`` are ignored. A key without scopes has all but `admin`. A key has 256
random bits, so its hash needs no salt.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from dekag.errors import ExhaustedError, FileError, InvalidInputError
from dekag.files import read_lines
from services.common import metrics
from services.common.errors import SettingError
from services.common.settings import MANY
from services.common.watched_file import WatchedFile
from services.gateway.settings import GatewaySettings

PREFIX = "dekag_"  # lets a scan for secrets recognise a key
MAX_NAME_CHARS = 32
_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_NAME_CHARS}}}")
_LIMIT = rf"[1-9][0-9]{{0,{len(str(MANY)) - 1}}}"
_LINE = re.compile(rf"({_NAME.pattern}):([0-9a-f]{{64}})(?::({_LIMIT})?(?::({_LIMIT})?(?::([a-z+]+))?)?)?")
SCOPES = ("draw", "teach", "publish", "admin")
"""What keys may do: request images; start and cancel jobs; publish knowledge; everything, to all topics."""
_DEFAULT_SCOPES = SCOPES[:3]
_MINUTE_S = 60.0
_BUSY_S = 1  # Retry-After when the concurrency limit is reached


def new_key(
    name: str,
    *,
    requests_per_minute: int | None = None,
    concurrency: int | None = None,
    scopes: Sequence[str] = (),
) -> tuple[str, str]:
    """A random key, and its line for the file of keys.

    Args:
        name: of its owner, for the logs.
        requests_per_minute, concurrency: limits of this key, up to MANY; those of the settings if left out.
        scopes: what it may do, of SCOPES; all but `admin` if left out.

    Raises:
        InvalidInputError: the name, a limit or a scope is invalid.
    """
    if _NAME.fullmatch(name) is None:
        raise InvalidInputError("name", f"1 to {MAX_NAME_CHARS} letters, digits, '.', '_' and '-'", name)
    for limit, value in (("requests_per_minute", requests_per_minute), ("concurrency", concurrency)):
        if value is not None and not 1 <= value <= MANY:
            raise InvalidInputError(limit, f"between 1 and {MANY}", value)
    for scope in scopes:
        if scope not in SCOPES:
            raise InvalidInputError("scope", f"one of {', '.join(SCOPES)}", scope)
    key = PREFIX + secrets.token_urlsafe(32)
    parts = [name, _hash(key).hex(), str(requests_per_minute or ""), str(concurrency or "")]
    parts.append("+".join(scopes))
    return key, ":".join(parts).rstrip(":")


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


@dataclass(frozen=True)
class Key:
    """A key as the gateway stores it: its hash and its limits."""

    name: str
    hash: bytes
    requests_per_minute: int
    concurrency: int
    scopes: frozenset[str] = frozenset(_DEFAULT_SCOPES)

    def may(self, scope: str) -> bool:
        """Whether the key has a scope; every key has the empty one, and an admin's has all."""
        return not scope or scope in self.scopes or "admin" in self.scopes


def scopes_of(method: str, path: str) -> Sequence[str]:
    """Scopes of which a request needs one; the empty one if it only reads.

    Below /v1/knowledge and for PUT, PATCH and DELETE, what is not listed needs an admin's key, and so do the
    adapters of the codec, which change all images.
    """
    if method in ("GET", "HEAD", "OPTIONS"):
        return ("",)
    if method == "POST":
        if path.startswith("/v1/knowledge/"):
            return ("admin",)
        return ("teach",) if path == "/v1/knowledge" else ("draw",)
    if path.startswith("/v1/knowledge/"):
        return {"PUT": ("publish",), "DELETE": ("teach", "publish")}.get(method, ("admin",))
    return ("teach",) if method == "DELETE" and path.startswith("/v1/jobs/") else ("admin",)


class ApiKeys:
    """The accepted keys and their current use, counted in this process only.

    Args:
        keys: the keys.
        clock: seconds; monotonic, so that a clock that is set back locks no key out.
    """

    def __init__(self, keys: Sequence[Key], clock: Callable[[], float] = time.monotonic) -> None:
        self._current: Callable[[], Sequence[Key]] = lambda: keys
        self._clock = clock
        self._used: defaultdict[str, deque[float]] = defaultdict(deque)  # times within the last minute
        self._running: Counter[str] = Counter()

    @classmethod
    def read(cls, file: Path, settings: GatewaySettings) -> Self:
        """The keys in ``file``, which is read again when it changes; while it is invalid, nothing changes.

        Raises:
            SettingError: the file cannot be read, holds no key, or has an invalid line.
        """
        keys = cls(())
        keys._current = WatchedFile(file, partial(cls._in, settings=settings)).get
        return keys

    @staticmethod
    def _in(file: Path, settings: GatewaySettings) -> tuple[Key, ...]:
        keys: dict[str, Key] = {}
        try:
            lines = read_lines(file)
        except FileError as error:
            raise SettingError(f"DEKAG_API_KEYS_FILE: {error}. `dekag key NAME` prints its lines") from error
        for number, line in lines:
            if line.startswith("#"):
                continue
            found = _LINE.fullmatch(line)
            scopes = ((found and found[5]) or "+".join(_DEFAULT_SCOPES)).split("+")
            if unknown := set(scopes) - set(SCOPES):
                raise SettingError(
                    f"line {number} of {file} names an unknown scope, {min(unknown)!r}: there are "
                    f"{', '.join(SCOPES)}"
                )
            if found and max(int(found[3] or 1), int(found[4] or 1)) > MANY:
                raise SettingError(
                    f"line {number} of {file} has a limit above {MANY}; `dekag key NAME` prints such lines"
                )
            if found is None or found[1] in keys:  # not shown: it may hold a key
                why = "repeats the name of another key" if found else "does not describe a key"
                raise SettingError(f"line {number} of {file} {why}; `dekag key NAME` prints such lines")
            keys[found[1]] = Key(
                found[1],
                bytes.fromhex(found[2]),
                int(found[3] or settings.key_requests_per_minute),
                int(found[4] or settings.key_concurrency),
                frozenset(scopes),
            )
        if not keys:
            raise SettingError(f"{file} holds no API key; `dekag key NAME` prints a line for it")
        return tuple(keys.values())

    def find(self, authorization: str | None) -> Key | None:
        """The key in an ``Authorization`` header; None if it is missing or unknown.

        Takes the same time for every key, right or wrong.
        """
        scheme, _, shown = (authorization or "").partition(" ")
        shown_hash, found = _hash(shown.strip()), None
        for key in self._current():
            if hmac.compare_digest(key.hash, shown_hash):
                found = key
        return found if scheme.lower() == "bearer" else None

    def accepts(self, key: Key) -> bool:
        """Whether a key that was found is still as it was; what it started ends otherwise."""
        return key in self._current()

    @asynccontextmanager
    async def in_flight(self, key: Key) -> AsyncIterator[None]:
        """Counts a request of ``key`` while inside; ExhaustedError if the key has reached a limit."""
        with metrics.REFUSED.labels("key").count_exceptions(ExhaustedError):
            self._check(key)
        self._running[key.name] += 1
        try:
            yield
        finally:
            self._running[key.name] -= 1

    def charge(self, key: Key, cost: int) -> None:
        """Counts a request that is in flight as ``cost`` requests, at most as those of a minute.

        Raises:
            ExhaustedError: fewer are left of this minute.
        """
        if (times := min(cost, key.requests_per_minute)) <= 1:  # counted when the request came
            return
        if used := self._used[key.name]:
            used.pop()  # counted below instead, or not at all: a refused request must not delay the next one
        with metrics.REFUSED.labels("key").count_exceptions(ExhaustedError):
            self._use(key, times, f"this request counts as {times}, and ")

    def _check(self, key: Key) -> None:
        if self._running[key.name] >= key.concurrency:
            raise ExhaustedError(
                f"this API key has {key.concurrency} requests in flight, which is its limit",
                retry_after_s=_BUSY_S,
            )
        self._use(key, 1)

    def _use(self, key: Key, times: int, why: str = "") -> None:
        used, now = self._used[key.name], self._clock()
        while used and now - used[0] >= _MINUTE_S:
            used.popleft()
        if (over := len(used) + times - key.requests_per_minute) > 0:
            # as many uses must be older than a minute
            wait_s = max(1, math.ceil(used[min(over, len(used)) - 1] + _MINUTE_S - now))
            raise ExhaustedError(
                f"{why}this API key may be used {key.requests_per_minute} times a minute; "
                f"try again in {wait_s} s",
                retry_after_s=wait_s,
            )
        used.extend([now] * times)
