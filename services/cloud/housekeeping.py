"""Bounds what the cloud stores: quotas, retention, and the leftovers of killed processes.

Also measures each store for Prometheus, see ``STORE_ITEMS`` in ``services.common.metrics``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import Collection
from pathlib import Path

import structlog

from dekag.documents import parse_json
from dekag.errors import ExhaustedError
from services.cloud.job_folder import JobFolders
from services.cloud.settings import CloudSettings
from services.cloud.version_store import KnowledgeStore, TransmissionStore, folders_in
from services.common import metrics
from services.common.errors import SettingError

_LOCK = "cloud.lock"
_UNFINISHED = ".new-cloud.id"  # of a cloud that was killed while it named the folder
_MIB = 2**20
_ASIDE = 100  # updates that were set aside, and damaged ones
_log = structlog.get_logger()


class Lease:
    """The right of one cloud to use a data folder; it ends with its process.

    Args:
        data_dir: created if missing.

    Raises:
        SettingError: another cloud uses the folder; the message names its process.
        OSError: the folder cannot be written.
    """

    def __init__(self, data_dir: Path) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self._file = (data_dir / _LOCK).open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read(200).strip() or "another process"
            self._file.close()
            raise SettingError(
                f"another cloud ({holder}) uses DEKAG_DATA_DIR {data_dir}: stop it, or give each cloud a "
                "folder of its own"
            ) from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def close(self) -> None:
        """Gives the folder back."""
        self._file.close()


def check_quotas(settings: CloudSettings, topic: str | None, waiting: Collection[str] = ()) -> None:
    """Raises ExhaustedError unless there is room for another version.

    Args:
        settings: limits and data folder.
        topic: topic of the update; None for adapters.
        waiting: topics for which a distillation waits or runs.
    """
    topics = {folder.name for folder in folders_in(settings.data_dir / "knowledge")} | set(waiting)
    if topic is not None and topic not in topics and len(topics) >= settings.max_topics:
        raise ExhaustedError(
            f"there are {len(topics)} topics, which is the limit (DEKAG_MAX_TOPICS); delete one first"
        )
    used_mib = _bytes_in(settings.data_dir / "knowledge", settings.data_dir / "transmission") / _MIB
    if used_mib >= settings.max_knowledge_mib:
        raise ExhaustedError(
            f"all knowledge takes {used_mib:.0f} MiB, and the limit is {settings.max_knowledge_mib} MiB "
            "(DEKAG_MAX_KNOWLEDGE_MIB); delete a topic first"
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
        (settings.data_dir / _UNFINISHED).unlink(missing_ok=True)
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
        knowledge, transmission = data / "knowledge", data / "transmission"
        stores = {
            "topics": (len(folders_in(knowledge)), settings.max_topics),
            "knowledge_mib": (_bytes_in(knowledge, transmission) / _MIB, settings.max_knowledge_mib),
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


def _bytes_in(*folders: Path) -> int:
    """Bytes of all files below these folders."""
    total = 0
    for folder in folders:
        for path in folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size if path.is_file() else 0
    return total
