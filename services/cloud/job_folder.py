"""Jobs on the cloud's disk: specification, claim and checkpoints of each.

::

    <data>/jobs/<id>/    order.json and the checkpoints of an unfinished job

The cloud and the distillers share the data folder; none of them caches its content in memory.
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

_SPEC, _LOCK = "order.json", "lock"
_PREVIEW = "preview.png"  # the name in dekag.training.distill, which imports torch
_log = structlog.get_logger()


class JobFolders:
    """The folders of all jobs.

    Args:
        data_dir: created on the first write.
    """

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir / "jobs"

    def work(self, job: str) -> Path:
        """The folder of a job's checkpoints."""
        return self._root / job

    def preview(self, job: str) -> bytes:
        """PNG with the latest preview images of a job; NotFoundError while there is none."""
        try:
            return (self.work(job) / _PREVIEW).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"job {job} has no preview images, or no longer has any") from None

    @contextlib.contextmanager
    def claimed(self, job: str) -> Iterator[bool]:
        """Claims ``job`` inside the context; yields False if another process holds the claim.

        A claim ends with its process.
        """
        self.work(job).mkdir(parents=True, exist_ok=True)
        with (self.work(job) / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def is_claimed(self, job: str) -> bool:
        """Whether a process has claimed ``job``."""
        with self.claimed(job) as claimed:
            return not claimed

    def save_spec(self, job: str, spec: str) -> None:
        """Saves the specification of a job, JSON, until the job has ended."""
        self.work(job).mkdir(parents=True, exist_ok=True)
        new = self.work(job) / f".{_SPEC}"
        write_synced(new, spec.encode())
        new.rename(self.work(job) / _SPEC)
        sync_folder(self.work(job))

    def specs(self) -> dict[str, bytes]:
        """The readable specifications of jobs that have not ended, sorted by job id."""
        specs = {}
        for folder in sorted(folders_in(self._root)):
            try:
                specs[folder.name] = (folder / _SPEC).read_bytes()
            except FileNotFoundError:  # the job has ended
                continue
            except OSError as error:
                _log.warning("cannot read the specification of a job", job=folder.name[:64], error=str(error))
        return specs

    def delete_spec(self, job: str) -> None:
        """Deletes the specification of a job that has ended."""
        (self.work(job) / _SPEC).unlink(missing_ok=True)

    def quarantine_spec(self, job: str) -> None:
        """Renames a damaged specification, so that it can be inspected until the folder is purged."""
        with contextlib.suppress(OSError):
            (self.work(job) / _SPEC).rename(self.work(job) / f"damaged-{_SPEC}")

    def delete(self, job: str) -> None:
        """Deletes the folder of a job that has ended."""
        shutil.rmtree(self.work(job), ignore_errors=True)

    def purge_stale(self, older_than_s: float) -> None:
        """Deletes what ended jobs left behind and what was last modified more than so many seconds ago.

        A job that waits or runs is never touched, however old its order and whatever the clock says.
        """
        for folder in folders_in(self._root):
            with contextlib.suppress(OSError):  # the job has just ended, or the folder is unreadable
                touched = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
                if (folder / _SPEC).exists() or time.time() - touched <= older_than_s:
                    continue
                with self.claimed(folder.name) as claimed:
                    if claimed:
                        self.delete(folder.name)
