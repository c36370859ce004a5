"""Knowledge on the cloud's disk: the durable copy, of which everything else is a mirror.

::

    <data>/knowledge/<topic>/<version>/   manifest.json, samples.png, files/ with the files of the update
    <data>/transmission/<version>/        manifest.json, files/ with the files of the adapters
    <data>/jobs/<id>/                     order.json, and what an unfinished job has so far

Folders appear and go by one rename, so that whoever reads finds all of a version or nothing. The cloud and
the distillers share the data folder; none of them keeps anything of it in memory. No torch in here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from dekag.errors import NotFoundError
from services.common.knowledge import Manifest
from services.common.transmission import TransmissionManifest

if TYPE_CHECKING:
    from dekag.cala.artifact import TransmissionKnowledge

_MANIFEST, _FILES, _SAMPLES, _LOCK = "manifest.json", "files", "samples.png", "lock"
_ORDER = "order.json"
_PREVIEW = "preview.png"  # as dekag.makd.distill, which imports torch, names it
_log = structlog.get_logger()
_OVERTAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT)  # by who took this version, or deleted the topic


class KnowledgeStore:
    """The data folder.

    Args:
        data_dir: is made when something is first written.
    """

    def __init__(self, data_dir: Path) -> None:
        self._knowledge, self._jobs = data_dir / "knowledge", data_dir / "jobs"

    def topics(self) -> dict[str, Manifest]:
        """The current manifest of each topic, by name in alphabetical order."""
        names = sorted(folder.name for folder in _folders(self._knowledge))
        versions = {name: self._versions(name) for name in names}
        return {name: found[max(found)] for name, found in versions.items() if found}

    def versions(self, topic: str) -> dict[int, Manifest]:
        """The manifests of ``topic`` by version, ascending; NotFoundError if there is none."""
        if not (found := self._versions(topic)):
            raise NotFoundError(f"there is no knowledge of topic {topic!r}; {self._known()}")
        return found

    def find(self, topic: str, content_hash: str = "") -> Manifest:
        """The manifest of the version with that hash, of the current one without a hash.

        Raises:
            NotFoundError: there is no such topic or no such version of it.
        """
        found = self.versions(topic)
        if not content_hash:
            return found[max(found)]
        for manifest in found.values():
            if manifest.content_hash == content_hash:
                return manifest
        raise NotFoundError(f"no version of topic {topic!r} has content hash {content_hash[:12]!r}")

    def files(self, manifest: Manifest) -> dict[str, bytes]:
        """The files of the update by name; NotFoundError if it was deleted meanwhile."""
        try:
            return {path.name: path.read_bytes() for path in (self._folder(manifest) / _FILES).iterdir()}
        except FileNotFoundError:
            raise NotFoundError(f"there is no knowledge of topic {manifest.topic!r} any more") from None

    def samples(self, manifest: Manifest) -> bytes:
        """PNG with rows cloud, edge before and edge after; NotFoundError if there is none."""
        try:
            return (self._folder(manifest) / _SAMPLES).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"there are no samples of topic {manifest.topic!r}") from None

    def made_by(self, topic: str, job: str) -> Manifest | None:
        """The version of ``topic`` that ``job`` published, if it has."""
        return next((found for found in self._versions(topic).values() if found.job == job), None)

    def publish(
        self, job: str, info: Mapping[str, Any], content_hash: str, files: Mapping[str, bytes], samples: bytes
    ) -> Manifest:
        """Makes the update that ``job`` made the current version of its topic; once for each job.

        Args:
            job: id of the job.
            info: what the update says of itself: topic, base_hash, triggers, scores.
            content_hash: sha256 (hex) over everything in the update.
            files: by name.
            samples: PNG.
        """
        topic = str(info["topic"])
        while True:
            if (earlier := self.made_by(topic, job)) is not None:
                return earlier
            manifest = Manifest(
                topic=topic,
                version=max(_numbers(self._knowledge / topic), default=0) + 1,
                content_hash=content_hash,
                base_hash=info["base_hash"],
                triggers=tuple(info["triggers"]),
                size_bytes=sum(map(len, files.values())),
                scores=_figures(info.get("scores")),
                created=time.time(),
                job=job,
            )
            new = self._knowledge / f".new-{uuid.uuid4().hex}"
            _write_version(new, manifest.model_dump_json(indent=1), files)
            _write(new / _SAMPLES, samples)
            target = self._folder(manifest)
            target.parent.mkdir(exist_ok=True)
            if _appear(new, target):
                return manifest

    def delete(self, topic: str) -> None:
        """Deletes all versions of ``topic``; NotFoundError if there is none."""
        self.versions(topic)
        gone = self._knowledge / f".gone-{uuid.uuid4().hex}"
        with contextlib.suppress(FileNotFoundError):  # somebody else just deleted it
            (self._knowledge / topic).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def folders(self) -> list[tuple[str, int, Path]]:
        """Topic, version and folder of all versions, also of those that cannot be read."""
        return [
            (topic.name, int(version.name), version)
            for topic in sorted(_folders(self._knowledge))
            for version in sorted(_folders(topic))
            if version.name.isdigit()
        ]

    @staticmethod
    def manifest_in(folder: Path) -> Manifest | None:
        """The manifest of a version in its folder, None if it cannot be read; FileNotFoundError."""
        return Manifest.parse((folder / _MANIFEST).read_bytes())

    def put_aside(self, topic: str, version: int) -> None:
        """Takes a version that is damaged away from the others, for people to look at."""
        folder = self._knowledge / topic / str(version)
        with contextlib.suppress(FileNotFoundError):  # somebody else just deleted it
            folder.rename(folder.with_name(f".damaged-{version}-{uuid.uuid4().hex}"))

    def restore(self, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        """Puts undamaged files in the place of a version's; its samples stay if they can be read.

        A topic that was deleted meanwhile stays so.
        """
        folder = self._folder(manifest)
        new = self._knowledge / f".new-{uuid.uuid4().hex}"
        _write_version(new, manifest.model_dump_json(indent=1), files)
        with contextlib.suppress(OSError):
            _write(new / _SAMPLES, (folder / _SAMPLES).read_bytes())
        self.put_aside(manifest.topic, manifest.version)
        _appear(new, folder)

    def work(self, job: str) -> Path:
        """The folder in which a job keeps what it has so far."""
        return self._jobs / job

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
        _write(new, order.encode())
        new.rename(self.work(job) / _ORDER)
        _sync(self.work(job))

    def orders(self) -> dict[str, bytes]:
        """The orders of jobs that are not over, sorted by the job's id; not those that cannot be read."""
        found = {}
        for folder in sorted(_folders(self._jobs)):
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

    def put_order_aside(self, job: str) -> None:
        """Takes a damaged order away, for people to look at until the job's folder is tidied away."""
        with contextlib.suppress(OSError):
            (self.work(job) / _ORDER).rename(self.work(job) / f"damaged-{_ORDER}")

    def forget(self, job: str) -> None:
        """Deletes what a job that is over has left."""
        shutil.rmtree(self.work(job), ignore_errors=True)

    def tidy(self, older_than_s: float) -> None:
        """Forgets jobs whose folders nobody has touched for so long, s: Redis knows them no more."""
        for folder in _folders(self._jobs):
            with contextlib.suppress(OSError):  # its job has just ended, or it cannot be read: it may stay
                touched = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
                if time.time() - touched > older_than_s:
                    self.forget(folder.name)

    def _known(self) -> str:
        return f"there is {', '.join(self.topics()) or 'none yet'}"

    def _folder(self, manifest: Manifest) -> Path:
        return self._knowledge / manifest.topic / str(manifest.version)

    def _versions(self, topic: str) -> dict[int, Manifest]:
        """Those whose manifest is what it should be, of this topic and number; others are not ours."""
        found = {}
        for number in _numbers(self._knowledge / topic):
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                path = self._knowledge / topic / str(number) / _MANIFEST
                manifest = Manifest.parse(path.read_bytes())
                if manifest is not None and (manifest.topic, manifest.version) == (topic, number):
                    found[number] = manifest
        return found


class TransmissionStore:
    """The versions of the codec's adapters in the data folder.

    Versions count up over all codecs; the highest one that fits a codec is that codec's current one.

    Args:
        data_dir: is made when something is first written.
    """

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir / "transmission"

    def versions(self, base_hash: str) -> dict[int, TransmissionManifest]:
        """The manifests that fit a codec by version, ascending; none if there are none.

        Args:
            base_hash: of the codec.
        """
        return {number: found for number, found in self._all().items() if found.base_hash == base_hash}

    def current(self) -> dict[str, TransmissionManifest]:
        """The current manifest of each codec, by the codec's hash."""
        return {manifest.base_hash: manifest for manifest in self._all().values()}

    def find(self, base_hash: str, content_hash: str = "") -> TransmissionManifest:
        """The manifest with that content, the current one without a hash.

        Args:
            base_hash: of the codec that it must fit.
            content_hash: sha256 over everything in it.

        Raises:
            NotFoundError: there is none.
        """
        for manifest in reversed(self.versions(base_hash).values()):
            if content_hash in ("", manifest.content_hash):
                return manifest
        what = f"with content hash {content_hash[:12]!r} " if content_hash else ""
        raise NotFoundError(f"there is no transmission knowledge {what}for the codec {base_hash[:12]!r}")

    def files(self, manifest: TransmissionManifest) -> dict[str, bytes]:
        """The files by name."""
        folder = self._root / str(manifest.version) / _FILES
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def publish(self, knowledge: TransmissionKnowledge, *, if_new: bool = False) -> TransmissionManifest:
        """Makes ``knowledge`` the current version for its codec, unless it is that already.

        What was current once may be published again: it becomes a version of its own.

        Args:
            knowledge: whose hashes have been checked.
            if_new: only if no version has had this content; returns the latest that has.
        """
        while True:
            found = self.versions(knowledge.base_hash)
            same = [each for each in found.values() if each.content_hash == knowledge.content_hash]
            if same and (if_new or same[-1].version == max(found)):
                return same[-1]
            files = knowledge.to_files()
            manifest = TransmissionManifest(
                version=max(_numbers(self._root), default=0) + 1,
                content_hash=knowledge.content_hash,
                base_hash=knowledge.base_hash,
                size_bytes=sum(map(len, files.values())),
                scores=_figures(knowledge.info.get("scores")),
                created=time.time(),
            )
            new = self._root / f".new-{uuid.uuid4().hex}"
            _write_version(new, manifest.model_dump_json(indent=1), files)
            if _appear(new, self._root / str(manifest.version)):
                return manifest

    def _all(self) -> dict[int, TransmissionManifest]:
        found = {}
        for number in _numbers(self._root):
            with contextlib.suppress(FileNotFoundError):  # not of this program's making
                text = (self._root / str(number) / _MANIFEST).read_bytes()
                manifest = TransmissionManifest.parse(text)
                if manifest is not None and manifest.version == number:
                    found[number] = manifest
        return found


def _numbers(folder: Path) -> list[int]:
    """Of the versions in ``folder``, ascending; of folders that hold none too: their places are taken."""
    return sorted(int(path.name) for path in _folders(folder) if re.fullmatch("[1-9][0-9]{0,8}", path.name))


def _figures(scores: Any) -> dict[str, float]:
    """The plain finite numbers among ``scores``, whatever it is."""
    found = scores if isinstance(scores, dict) else {}
    return {
        str(name): float(each)
        for name, each in found.items()
        if isinstance(each, int | float) and abs(each) <= sys.float_info.max
    }


def _write_version(new: Path, manifest: str, files: Mapping[str, bytes]) -> None:
    """Writes what every version has into the folder ``new``, which is to appear by a rename."""
    (new / _FILES).mkdir(parents=True)
    _write(new / _MANIFEST, manifest.encode())
    for name, data in files.items():
        _write(new / _FILES / name, data)


def _appear(new: Path, target: Path) -> bool:
    """Renames ``new`` to ``target``; False, and ``new`` is gone, if somebody else's is there already."""
    try:
        new.rename(target)
    except OSError as error:
        shutil.rmtree(new)
        if error.errno not in _OVERTAKEN:
            raise
        return False
    _sync(target.parent)
    return True


def _folders(parent: Path) -> list[Path]:
    """The folders in ``parent`` but those being written or deleted; none if it is not there."""
    try:
        return [path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Makes a rename in ``folder`` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
