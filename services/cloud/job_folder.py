"""Jobs on the cloud's disk: specification, claim and checkpoints of each, and how ended jobs ended.

::

    <data>/jobs/<id>/         order.json, texts.json, lock and the checkpoints of an unfinished job
    <data>/ended/<id>.json    order.json, the decision about the job, and its result

An order may have megabytes of prompts and triggers, its texts. They are only in ``texts.json``, and
``order.json`` has the hash of this file. So what is read often, queued in Redis, or kept of an ended job, is
small.

A job exists as long as its specification does, whatever Redis says. What ``JobFolders.decide`` wrote first
is the decision, for good. The cloud and the distillers share the data folder; none of them caches its
content in memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import structlog

from dekag.documents import DocumentError, parse_json
from dekag.errors import MismatchError, NotFoundError
from services.cloud.synced_files import sync_folder, write_synced
from services.cloud.version_store import folders_in

Decision = Literal["cancelled", "published", "failed"]
"""What becomes of a job; "published" also if its update is kept aside as no better."""
_SPEC, _LOCK = "order.json", "lock"
_TEXTS = "texts.json"
_DAMAGED = f"damaged-{_SPEC}"
_PREVIEW = "preview.png"  # the name in dekag.training.distill, which imports torch
_log = structlog.get_logger()


class JobFolders:
    """The folders of all jobs.

    Args:
        data_dir: created on the first write.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._root, self._ended = data_dir / "jobs", data_dir / "ended"

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

        A claim ends with its process. The folder is created if missing.
        """
        while True:
            self.work(job).mkdir(parents=True, exist_ok=True)
            try:
                lock = (self.work(job) / _LOCK).open("w")
            except FileNotFoundError:  # the folder was deleted in between
                continue
            with lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield False
                    return
                if _is_at(lock.fileno(), self.work(job) / _LOCK):  # else it was deleted in between
                    yield True
                    return

    def is_claimed(self, job: str) -> bool:
        """Whether a process has claimed ``job``."""
        try:
            lock = (self.work(job) / _LOCK).open("rb")
        except FileNotFoundError:
            return False
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def save_spec(self, job: str, spec: str, texts: bytes = b"") -> None:
        """Saves the specification of a job until the job has ended; the job exists from then on.

        Args:
            job: id of the job.
            spec: JSON.
            texts: the file of the order's texts, see `split_order`.
        """
        while True:
            with self.claimed(job) as claimed:  # so that `tidy` does not take the folder for an ended job's
                if not claimed:  # by `tidy`, for a moment
                    time.sleep(0.01)
                    continue
                if texts:
                    write_synced(self.work(job) / _TEXTS, texts)
                new = self.work(job) / f".{_SPEC}"
                write_synced(new, spec.encode())
                new.rename(self.work(job) / _SPEC)
                sync_folder(self.work(job))
            break
        sync_folder(self._root)

    def spec(self, job: str) -> bytes | None:
        """The specification of a job; None if the job has ended or never existed."""
        try:
            return (self.work(job) / _SPEC).read_bytes()
        except FileNotFoundError:
            return None

    def texts(self, job: str, texts_hash: str) -> dict[str, Any]:
        """The prompts and triggers of an unfinished job.

        Raises:
            MismatchError: they are missing, or do not have this hash.
        """
        try:
            data = (self.work(job) / _TEXTS).read_bytes()
        except FileNotFoundError:
            data = b""
        if hashlib.sha256(data).hexdigest() != texts_hash:
            raise MismatchError(
                f"the prompts of job {job} on the disk are missing or damaged; start it again"
            )
        texts: dict[str, Any] = parse_json(data, f"prompts of job {job}")
        return texts

    def order_bytes(self, job: str) -> int:
        """Bytes that the order of an unfinished job takes on the disk."""
        size = 0
        for name in (_SPEC, _TEXTS):
            with contextlib.suppress(FileNotFoundError):
                size += (self.work(job) / name).stat().st_size
        return size

    def specs(self) -> dict[str, bytes]:
        """The readable specifications of jobs that have not ended, sorted by job id."""
        specs = {}
        for folder in sorted(folders_in(self._root)):
            try:
                spec = self.spec(folder.name)
            except OSError as error:
                _log.warning("cannot read the specification of a job", job=folder.name[:64], error=str(error))
                continue
            if spec is not None:
                specs[folder.name] = spec
        return specs

    def exists(self, job: str) -> bool:
        """Whether there is an unfinished job of that id; raises OSError if the disk cannot be read."""
        return self.spec(job) is not None and not is_final(self.record(job))

    def quarantine_spec(self, job: str) -> None:
        """Renames a damaged specification, so that it can be inspected until the folder is purged."""
        with contextlib.suppress(OSError):
            (self.work(job) / _SPEC).rename(self.work(job) / _DAMAGED)

    def decide(self, job: str, decision: Decision) -> bool:
        """Decides about a job if it is undecided; returns whether ``decision`` is the decision.

        It is on disk when this returns, and no later call changes it. False for a job that does not exist.
        """
        with self._deciding():
            if (record := self.record(job)) is None:
                if (spec := self._read_spec(job)) is None:
                    return False
                record = {**spec, "decision": decision, "ended": time.time()}
                if isinstance(spec.get("order"), dict):  # an earlier release saved texts in the order
                    record["order"], _ = split_order(spec["order"])
                self._write_record(job, record)
            return bool(record["decision"] == decision)

    def end(self, job: str, result: Mapping[str, Any]) -> None:
        """Adds the result to the record of a job that is decided, and deletes the job's folder.

        The caller holds the claim, or nobody does.
        """
        with self._deciding():
            if (record := self.record(job)) is not None and record["decision"] != "cancelled":
                self._write_record(job, {**record, "result": dict(result), "ended": time.time()})
        self.delete(job)

    def record(self, job: str) -> dict[str, Any] | None:
        """What is known of a job that is decided: its specification, ``decision``, ``ended`` and ``result``.

        None if it is undecided or its record has expired. Without a result it is about to end, unless it was
        cancelled.
        """
        try:
            record = parse_json(self._record_file(job).read_bytes(), f"record of job {job}")
        except FileNotFoundError:
            return None
        except DocumentError as error:
            _log.warning("invalid record of a job", job=job, error=str(error)[:200])
            return None
        return record if isinstance(record, dict) and "decision" in record else None

    def ended(self) -> list[str]:
        """Ids of the jobs that have a record, latest first."""
        try:
            with os.scandir(self._ended) as entries:
                files = [(entry.stat().st_mtime_ns, entry.name) for entry in entries if entry.name[0] != "."]
        except FileNotFoundError:
            return []
        return [name.removesuffix(".json") for _, name in sorted(files, reverse=True)]

    def delete(self, job: str) -> None:
        """Deletes the folder of a job that has ended, its specification first."""
        with contextlib.suppress(FileNotFoundError):
            (self.work(job) / _SPEC).unlink()
        shutil.rmtree(self.work(job), ignore_errors=True)

    def tidy(self, *, keep_s: float, keep: int) -> None:
        """Deletes what ended jobs left behind, and the records of jobs that ended long ago.

        A job that waits or runs is never touched, however old its order and whatever the clock says; nor is
        the record of a job whose order is still there, which says that the job must not run again.

        Args:
            keep_s: age at which records and damaged specifications are deleted, s.
            keep: number of records that are kept at most.
        """
        for folder in folders_in(self._root):
            with contextlib.suppress(OSError):  # the job has just ended, or the folder is unreadable
                self._tidy_folder(folder, keep_s)
        if not self._ended.is_dir():  # it could not be made on a full disk
            return
        with contextlib.suppress(FileNotFoundError), self._deciding():
            for unfinished in self._ended.glob(".*.json"):  # of a process that was killed
                unfinished.unlink()
            for position, job in enumerate(self.ended()):
                age_s = time.time() - self._record_file(job).stat().st_mtime
                if (position >= keep or age_s > keep_s) and not (self.work(job) / _SPEC).exists():
                    self._record_file(job).unlink()

    def _tidy_folder(self, folder: Path, keep_s: float) -> None:
        if self._is_unfinished(folder):
            return
        damaged = folder / _DAMAGED
        if damaged.exists() and time.time() - damaged.stat().st_mtime <= keep_s:
            return
        with self.claimed(folder.name) as claimed:
            if claimed and not self._is_unfinished(folder):  # its order may have been saved just now
                self.delete(folder.name)

    def _is_unfinished(self, folder: Path) -> bool:
        return (folder / _SPEC).exists() and not is_final(self.record(folder.name))

    @contextlib.contextmanager
    def _deciding(self) -> Iterator[None]:
        """Inside the context no other process decides about jobs."""
        self._ended.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._ended, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _read_spec(self, job: str) -> dict[str, Any] | None:
        text = self.spec(job)
        try:
            spec = None if text is None else parse_json(text, f"specification of job {job}")
        except DocumentError:
            return None
        return spec if isinstance(spec, dict) else None

    def _record_file(self, job: str) -> Path:
        return self._ended / f"{job}.json"

    def _write_record(self, job: str, record: Mapping[str, Any]) -> None:
        new = self._ended / f".{job}.json"
        write_synced(new, json.dumps(record).encode())
        new.rename(self._record_file(job))
        sync_folder(self._ended)


def split_order(order: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """An order with the hash of its texts in their place, and the file that holds them.

    Two orders are equal if they are equal after this. An order without texts, or that has their hash already,
    stays as it is, and the file is empty.
    """
    texts = {name: order.get(name, []) for name in ("prompts", "triggers")}
    if not any(texts.values()):
        return dict(order), b""
    file = json.dumps(texts, ensure_ascii=False).encode()
    return {**order, "prompts": [], "triggers": [], "texts_hash": hashlib.sha256(file).hexdigest()}, file


def is_final(record: Mapping[str, Any] | None) -> bool:
    """Whether nothing more is done for a job with this record."""
    return record is not None and (record["decision"] == "cancelled" or "result" in record)


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
