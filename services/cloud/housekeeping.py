"""Bounds what the cloud stores: quotas, retention, and the leftovers of killed processes.

Also measures each store for Prometheus, see ``STORE_ITEMS`` in ``services.common.metrics``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Collection
from pathlib import Path

import structlog

from dekag.documents import parse_json
from dekag.errors import ExhaustedError
from services.cloud.job_folder import JobFolders
from services.cloud.leases import NEW_ID
from services.cloud.owners import Owners
from services.cloud.settings import CloudSettings
from services.cloud.version_store import KnowledgeStore, TransmissionStore, folders_in
from services.common import metrics

_MIB = 2**20
_ASIDE = 100  # updates that were set aside, and damaged ones
_log = structlog.get_logger()


def check_quotas(
    settings: CloudSettings, topic: str | None, waiting: Collection[str] = (), owner: str = ""
) -> None:
    """Raises ExhaustedError unless there is room for another version.

    Args:
        settings: limits and data folder.
        topic: topic of the update; None for adapters.
        waiting: topics for which a distillation waits or runs.
        owner: name of the API key that publishes or distils; empty for admins and without keys, who have all
            the room that there is.
    """
    sizes = _topic_sizes(settings.data_dir)
    topics = {*sizes, *waiting}
    used = sum(sizes.values()) + _version_bytes(settings.data_dir / "transmission")
    _check_topics(settings, "max_topics", topics, topic)
    _check_bytes(settings, "max_knowledge_mib", "all knowledge", used)
    if owner:
        owners = Owners(settings.data_dir)
        own = {name for name in topics if owners.of(name) == owner}
        used = sum(size for name, size in sizes.items() if name in own)
        _check_topics(settings, "max_key_topics", own, topic, " of this API key")
        _check_bytes(settings, "max_key_mib", "all knowledge of this API key", used)


def _check_topics(
    settings: CloudSettings, limit: str, topics: Collection[str], new: str | None, whose: str = ""
) -> None:
    if new is not None and new not in topics and len(topics) >= getattr(settings, limit):
        raise ExhaustedError(
            f"there are {len(topics)} topics{whose}, which is the limit (DEKAG_{limit.upper()}); "
            "delete one first"
        )


def _check_bytes(settings: CloudSettings, limit: str, what: str, used: int) -> None:
    if used / _MIB >= (most := getattr(settings, limit)):
        raise ExhaustedError(
            f"{what} takes {used / _MIB:.0f} MiB, and the limit is {most} MiB (DEKAG_{limit.upper()}); "
            "delete a topic first"
        )


class Housekeeping:
    """Deletes what is no longer kept.

    Args:
        settings: limits and data folder.
    """

    def __init__(self, settings: CloudSettings) -> None:
        self._settings = settings
        self._store, self._folders = KnowledgeStore(settings.data_dir), JobFolders(settings.data_dir)
        self._transmission = TransmissionStore(settings.data_dir)

    def tidy(self) -> None:
        """Deletes leftovers and what exceeds the retention; then measures all stores.

        Raises:
            OSError: the disk cannot be used.
        """
        settings = self._settings
        keep_s = 2.0 * settings.job_keep_s
        self._folders.tidy(keep_s=keep_s, keep=settings.keep_jobs)
        self._store.tidy(keep=min(_ASIDE, settings.max_topics), keep_s=max(keep_s, 30 * 86_400))
        self._transmission.tidy()
        with contextlib.suppress(OSError):  # on a read-only disk, also if there is none
            (settings.data_dir / NEW_ID).unlink()
        self._store.owners.tidy(topics_in_use(settings.data_dir))
        kept = {"keep": settings.keep_versions, "keep_s": settings.keep_versions_s}
        for topic, versions in self._store.prune(**kept).items():
            _log.info("deleted earlier versions of knowledge", topic=topic, versions=versions)
        if adapters := self._transmission.prune(**kept):
            _log.info("deleted earlier versions of adapters", versions=adapters)
        self.measure()

    def measure(self) -> None:
        """Sets the metrics of all stores."""
        data, settings = self._settings.data_dir, self._settings
        sizes, adapters = _topic_sizes(data), _version_bytes(data / "transmission")
        stores = {
            "topics": (len(sizes), settings.max_topics),
            "knowledge_mib": ((sum(sizes.values()) + adapters) / _MIB, settings.max_knowledge_mib),
            "unfinished_jobs": (len(self._folders.specs()), settings.max_jobs),
            "owners": (self._store.owners.count(), settings.max_topics),
            "ended_jobs": (len(self._folders.ended()), 2 * settings.keep_jobs),
            "set_aside": (len(folders_in(data / "aside")), 2 * _ASIDE),
        }
        for store, (items, limit) in stores.items():
            metrics.STORE_ITEMS.labels(store).set(items)
            metrics.STORE_LIMIT.labels(store).set(limit)
        metrics.DISK_FREE_BYTES.labels("data").set(shutil.disk_usage(data).free)


def topics_in_use(data_dir: Path) -> set[str]:
    """Topics that have versions or an unfinished job."""
    waiting = waiting_topics(JobFolders(data_dir))  # first: one that ends meanwhile has published already
    return waiting | {folder.name for folder in folders_in(data_dir / "knowledge")}


def waiting_topics(folders: JobFolders) -> set[str]:
    """Topics for which a distillation waits or runs."""
    found = set()
    for name, text in folders.specs().items():
        with contextlib.suppress(ValueError, LookupError, TypeError):  # damaged
            found.add(str(parse_json(text, f"specification of job {name[:64]}")["order"]["topic"]))
    return found


def _topic_sizes(data_dir: Path) -> dict[str, int]:
    """Bytes of all versions of each topic."""
    return {folder.name: _version_bytes(folder) for folder in folders_in(data_dir / "knowledge")}


def _version_bytes(parent: Path) -> int:
    """Bytes of all versions in a folder."""
    total = 0
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(parent) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                found = entry.stat()
                total += _bytes_below(entry.path, found.st_ino, found.st_mtime_ns)
    return total


@functools.lru_cache(maxsize=2**16)
def _bytes_below(folder: str, inode: int, changed_ns: int) -> int:
    """Bytes of all files below the folder of a version, which are never changed once it is published.

    Args:
        folder: the folder.
        inode, changed_ns: tell it from another one that replaces it; not read.
    """
    total = 0
    for path in Path(folder).rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total
