"""Jobs on the cloud's disk: what each is to do, who works at it, and what it has so far.

::

    <data>/jobs/<id>/    order.json, and what an unfinished job has so far

The cloud and the distillers share the data folder; none of them keeps anything of it in memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from dekag.errors import NotFoundError
from services.cloud.version_store import folders_in, sync_folder, write_synced

_ORDER, _LOCK = "order.json", "lock"
_PREVIEW = "preview.png"  # as dekag.training.distill, which imports torch, names it
_log = structlog.get_logger()


class JobFolders:
    """The folders of all jobs.

    Args:
        data_dir: is made when something is first written.
    """

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir / "jobs"

    def work(self, job: str) -> Path:
        """The folder in which a job keeps what it has so far."""
        return self._root / job

    def preview(self, job: str) -> bytes:
        """PNG of what the edge draws so far as a job goes on; NotFoundError while there is none."""
        try:
            return (self.work(job) / _PREVIEW).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"there are no pictures of job {job} yet, or no more") from None

    @contextlib.contextmanager
    def claimed(self, job: str) -> Iterator[bool]:
        """Whether this process alone works at ``job`` while inside; a claim ends with its process."""
        self.work(job).mkdir(parents=True, exist_ok=True)
        with (self.work(job) / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def is_claimed(self, job: str) -> bool:
        """Whether a process works at ``job``."""
        with self.claimed(job) as mine:
            return not mine

    def keep_order(self, job: str, order: str) -> None:
        """Keeps what a job is to do until it is over, as JSON."""
        self.work(job).mkdir(parents=True, exist_ok=True)
        new = self.work(job) / f".{_ORDER}"
        write_synced(new, order.encode())
        new.rename(self.work(job) / _ORDER)
        sync_folder(self.work(job))

    def orders(self) -> dict[str, bytes]:
        """The orders of jobs that are not over, sorted by the job's id; not those that cannot be read."""
        found = {}
        for folder in sorted(folders_in(self._root)):
            try:
                found[folder.name] = (folder / _ORDER).read_bytes()
            except FileNotFoundError:  # its job is over
                continue
            except OSError as error:
                _log.warning("an order cannot be read", job=folder.name[:64], error=str(error))
        return found

    def drop_order(self, job: str) -> None:
        """Forgets what a job was to do, as it is over."""
        (self.work(job) / _ORDER).unlink(missing_ok=True)

    def quarantine_order(self, job: str) -> None:
        """Takes a damaged order away, for people to look at until the job's folder is tidied away."""
        with contextlib.suppress(OSError):
            (self.work(job) / _ORDER).rename(self.work(job) / f"damaged-{_ORDER}")

    def delete(self, job: str) -> None:
        """Deletes what a job that is over has left."""
        shutil.rmtree(self.work(job), ignore_errors=True)

    def purge_stale(self, older_than_s: float) -> None:
        """Forgets jobs whose folders nobody has touched for so long, s: Redis knows them no more."""
        for folder in folders_in(self._root):
            with contextlib.suppress(OSError):  # its job has just ended, or it cannot be read: it may stay
                touched = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
                if time.time() - touched > older_than_s:
                    self.delete(folder.name)
