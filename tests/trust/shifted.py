"""A shifted clock for what is stored, and how full each store is.

A store keeps things for a time, which it measures as the difference between now and a stamp: the time a file
was changed, or the time left of a key in Redis. To shift the clock, every stamp is moved into the past. The
processes keep their clocks, so heartbeats, locks and time limits mean what they mean on any other day.
"""

from __future__ import annotations

import contextlib
import os
import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from redis import Redis

from services.cloud.settings import CloudSettings
from services.cloud.version_store import folders_in
from services.launcher.stack import LOG_BYTES, LOG_FILES

MIB = 2**20
_DATED_BY_CONTENT = ("knowledge", "transmission")
"""Folders whose files are dated by their manifests, and are verified when they change."""
_LOCKS = re.compile(rb"dekag:lock:.*|saq:distill:(?!job:).*")
"""Keys that processes hold for seconds while they work."""
_STORE = re.compile(r'^dekag_store_(items|limit)\{store="(\w+)"\} (\S+)$', re.MULTILINE)


def shift(data: Path, redis: Redis, seconds: float) -> None:
    """Makes what is stored in the data folder and in Redis older by so many seconds."""
    for top in data.iterdir():
        for path in () if top.name in _DATED_BY_CONTENT else _inside(top):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                stat, nanoseconds = path.stat(), round(seconds * 1e9)
                os.utime(path, ns=(stat.st_atime_ns - nanoseconds, stat.st_mtime_ns - nanoseconds))
    keys = [key for key in redis.scan_iter(count=1000) if not _LOCKS.fullmatch(key)]
    reading = redis.pipeline(transaction=False)
    for key in keys:
        reading.pttl(key)
    writing = redis.pipeline(transaction=False)
    for key, left_ms in zip(keys, reading.execute(), strict=True):
        if left_ms > 0:  # else it is kept for good, or gone
            writing.pexpire(key, max(1, round(left_ms - 1000 * seconds)))
    writing.execute()


def _inside(top: Path) -> list[Path]:
    """A path and all below it; what is deleted meanwhile may be among them."""
    return [top, *(Path(folder, name) for folder, *names in os.walk(top) for name in chain(*names))]


@dataclass(frozen=True)
class Level:
    """How full a store is, and the most that it may hold."""

    held: float
    quota: float


def levels(
    metrics_port: int, redis: Redis, data: Path, logs: Path, settings: CloudSettings
) -> Mapping[str, Level]:
    """How full each store is, by its name with its unit.

    Args:
        metrics_port: of the cloud, which says how full its own stores are.
        redis: a client.
        data: the data folder.
        logs: the folder of all logs.
        settings: those that the cloud runs with.
    """
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as answer:
        found = {(what, store): float(value) for what, store, value in _STORE.findall(answer.read().decode())}
    stores = {
        store.replace("_mib", ", MiB").replace("_", " "): Level(held, found["limit", store])
        for (what, store), held in found.items()
        if what == "items"
    }
    versions = [len(folders_in(topic)) for topic in folders_in(data / "knowledge")]
    memory = redis.info("memory")
    names = {re.sub(r"\.log.*", "", log.name) for log in logs.glob("*.log*")}
    return stores | {
        "versions of a topic": Level(max(versions, default=0), settings.keep_versions),
        "versions of adapters": Level(len(folders_in(data / "transmission")), settings.keep_versions),
        "folders of jobs": Level(len(folders_in(data / "jobs")), settings.max_jobs),
        "Redis, MiB": Level(memory["used_memory"] / MIB, memory["maxmemory"] / MIB),
        "logs, MiB": Level(
            sum(log.stat().st_size for log in logs.glob("*.log*")) / MIB,
            len(names) * LOG_FILES * LOG_BYTES / MIB,
        ),
    }
