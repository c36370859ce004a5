"""Knowledge on the cloud's disk, the authoritative copy.

::

    <data>/knowledge/<topic>/<version>/   manifest.json, samples.png, files/ with the files of the update,
                                          history.json with how it was made, which no edge receives
    <data>/transmission/<version>/        manifest.json, files/ with the files of the adapters
    <data>/aside/<topic>/                 manifest.json, samples.png and all files of the latest update that
                                          was not published, history.json among them

Folders are created and deleted with a single rename, so that a reader sees a complete version or none. The
cloud and the distillers share the data folder; none of them caches its content in memory. Imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dekag.artifacts import HISTORY
from dekag.documents import DocumentError, parse_json, read_json
from dekag.errors import ConflictError, InvalidInputError, NotFoundError, UnavailableError
from services.cloud.owners import Owners
from services.cloud.synced_files import sync_folder, write_synced
from services.common.knowledge import Manifest, VersionManifest
from services.common.transmission import TransmissionManifest

if TYPE_CHECKING:
    from dekag.cala.artifact import TransmissionKnowledge

_MANIFEST, _FILES, _SAMPLES = "manifest.json", "files", "samples.png"
_MAX_SCORES, _MAX_SCORE_CHARS = 32, 64
_LOST_RACE = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT)  # version taken, or topic deleted, concurrently
_AnyManifest = TypeVar("_AnyManifest", bound=VersionManifest)


class _Versions(Generic[_AnyManifest]):
    """Versions in subfolders that are named by version number.

    Args:
        root: created on the first write.
        kind: class of the manifests.
        new_in: staging folder for new versions, on the same disk; ``root`` if left out.
    """

    def __init__(self, root: Path, kind: type[_AnyManifest], new_in: Path | None = None) -> None:
        self.root, self._kind, self._new_in = root, kind, new_in or root

    def folder(self, version: int) -> Path:
        """The folder of a version."""
        return self.root / str(version)

    def next(self) -> int:
        """The next version number; any folder with a number counts, even without a valid version."""
        return max(self._numbers(), default=0) + 1

    def manifests(self) -> dict[int, _AnyManifest]:
        """Valid manifests by version, ascending."""
        return {manifest.version: manifest for manifest in reversed(list(self.latest_first()))}

    def latest_first(self) -> Iterator[_AnyManifest]:
        """Valid manifests, the highest version first; each is read when it is asked for."""
        for number in reversed(self._numbers()):
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed, or not a version
                manifest = self._kind.parse((self.folder(number) / _MANIFEST).read_bytes())
                if manifest is not None and manifest.version == number:
                    yield manifest

    def files(self, version: int) -> dict[str, bytes]:
        """The files of a version by name; FileNotFoundError if it does not exist."""
        return {path.name: path.read_bytes() for path in (self.folder(version) / _FILES).iterdir()}

    @contextlib.contextmanager
    def staged(
        self, manifest: _AnyManifest, files: Mapping[str, bytes], beside: Mapping[str, bytes] | None = None
    ) -> Iterator[Path]:
        """A folder with a new version, for `commit`; `beside` its files what they do not contain."""
        with _staging(self._new_in) as new:
            (new / _FILES).mkdir()
            write_synced(new / _MANIFEST, manifest.model_dump_json(indent=1).encode())
            for name, data in files.items():
                write_synced(new / _FILES / name, data)
            for name, data in (beside or {}).items():
                write_synced(new / name, data)
            sync_folder(new / _FILES)
            sync_folder(new)
            yield new

    def commit(self, new: Path, version: int) -> bool:
        """Renames a staging folder to its version; returns False if the version is taken."""
        target = self.folder(version)
        try:
            new.rename(target)
        except OSError as error:
            if error.errno not in _LOST_RACE:
                raise
            return False
        sync_folder(target.parent)
        return True

    def prune(self, manifests: Mapping[int, _AnyManifest], *, keep: int, keep_s: float) -> list[int]:
        """Deletes earlier versions among ``manifests``, never the current one; returns which.

        Args:
            manifests: by version.
            keep: number of versions that are kept at most.
            keep_s: age at which earlier versions are deleted, s; 0 keeps them.
        """
        latest = sorted(manifests, reverse=True)
        old = [
            version
            for position, version in enumerate(latest)
            if position >= keep
            or (position > 0 and keep_s and time.time() - manifests[version].created > keep_s)
        ]
        for version in old:
            _delete_folder(self.folder(version), self._new_in)
        return old

    def _numbers(self) -> list[int]:
        return sorted(
            int(path.name) for path in folders_in(self.root) if re.fullmatch("[1-9][0-9]{0,8}", path.name)
        )


DISK_UNUSABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of a disk that is full or read-only."""
MIN_FREE_MIB = 64
"""Free disk space below which no distillation starts."""


def problem(data_dir: Path) -> str:
    """Why the data folder cannot be used, in plain words; empty if files can be written.

    Args:
        data_dir: created if missing.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data_dir) as file:
            file.write(b"trial")
        free_mib = shutil.disk_usage(data_dir).free / 2**20
    except OSError as error:
        return f"DEKAG_DATA_DIR {data_dir} cannot be written: {error.strerror or error}"
    if free_mib < MIN_FREE_MIB:
        return f"the disk of DEKAG_DATA_DIR {data_dir} is nearly full: {free_mib:.0f} MiB are free"
    return ""


@contextlib.contextmanager
def disk_errors(data_dir: Path) -> Iterator[None]:
    """Turns errors of the disk inside the context into an UnavailableError that names the data folder."""
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            problem(data_dir) or f"DEKAG_DATA_DIR {data_dir} cannot be used: {error.strerror or error}"
        ) from error


class KnowledgeStore:
    """The versions of each topic's knowledge update in the data folder.

    Args:
        data_dir: created on the first write.
    """

    def __init__(self, data_dir: Path) -> None:
        self._root, self._aside = data_dir / "knowledge", data_dir / "aside"
        self.owners = Owners(data_dir)

    def topics(self) -> dict[str, Manifest]:
        """The current manifest of each topic, sorted by topic."""
        topics = {name: self.current(name) for name in self._names()}
        return {name: manifest for name, manifest in topics.items() if manifest is not None}

    def versions(self, topic: str) -> dict[int, Manifest]:
        """The manifests of ``topic`` by version, ascending; NotFoundError if there is none."""
        if not (versions := self._versions(topic)):
            # without their manifests, since somebody may ask for unknown topics again and again
            known = [name for name in self._names() if self._of(name).next() > 1]
            named = ", ".join(known) or "none yet"
            raise NotFoundError(f"there is no knowledge of topic {topic!r}; there is {named}")
        return versions

    def current(self, topic: str) -> Manifest | None:
        """The manifest of ``topic`` with the highest version, if any; no other is read."""
        return next(self._latest_first(topic), None)

    def find(self, topic: str, content_hash: str = "") -> Manifest:
        """The manifest of the version with that hash; of the current version without a hash.

        Raises:
            NotFoundError: there is no such topic or version.
        """
        versions = self.versions(topic)
        if not content_hash:
            return versions[max(versions)]
        for manifest in versions.values():
            if manifest.content_hash == content_hash:
                return manifest
        raise NotFoundError(f"no version of topic {topic!r} has content hash {content_hash[:12]!r}")

    def files(self, manifest: Manifest) -> dict[str, bytes]:
        """The files of the update that an edge needs, by name; NotFoundError if it was deleted meanwhile."""
        try:
            return self._of(manifest.topic).files(manifest.version)
        except FileNotFoundError:
            raise NotFoundError(f"the knowledge of topic {manifest.topic!r} was deleted") from None

    def history(self, manifest: Manifest) -> dict[str, bytes]:
        """The file of its history by name; empty if there is none."""
        return self._beside(manifest, HISTORY)

    def samples(self, manifest: Manifest) -> bytes:
        """PNG with rows cloud, edge before and edge after; NotFoundError if there is none."""
        try:
            return (self._folder(manifest) / _SAMPLES).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"there are no samples of topic {manifest.topic!r}") from None

    def made_by(self, topic: str, job: str) -> Manifest | None:
        """The version of ``topic`` that ``job`` published, if any."""
        return next((manifest for manifest in self._versions(topic).values() if manifest.job == job), None)

    def publish(
        self,
        job: str,
        info: Mapping[str, Any],
        content_hash: str,
        files: Mapping[str, bytes],
        samples: bytes,
        *,
        after: int | None = None,
    ) -> Manifest:
        """Publishes the update of ``job`` as the current version of its topic; once for each job.

        Args:
            job: id of the job.
            info: the update's own description: topic, base_hash, triggers.
            content_hash: SHA-256 (hex) of the update's content.
            files: by name; the history among them, which says the scores, is kept apart.
            samples: PNG.
            after: the version that must still be current, 0 for none; whatever is current if left out.

        Raises:
            ConflictError: another version is current.
        """
        topic = str(info["topic"])
        versions = self._of(topic)
        sent = {name: data for name, data in files.items() if name != HISTORY}
        beside = {_SAMPLES: samples} | {name: data for name, data in files.items() if name == HISTORY}
        while True:
            if (earlier := self.made_by(topic, job)) is not None:
                return earlier
            number = versions.next()  # first: a version that is published from now on takes this number
            if after is not None and self.current_version(topic) != after:
                raise ConflictError(f"version {after} of topic {topic!r} is no longer current")
            manifest = Manifest(
                topic=topic,
                version=number,
                content_hash=content_hash,
                base_hash=info["base_hash"],
                triggers=tuple(info["triggers"]),
                size_bytes=sum(map(len, sent.values())),
                scores=_scores(beside),
                created=max(time.time(), self._created(topic) + 1e-3),  # also after the clock was set back
                job=job,
            )
            with versions.staged(manifest, sent, beside) as new:
                versions.root.mkdir(exist_ok=True)
                if versions.commit(new, manifest.version):
                    return manifest

    def current_version(self, topic: str) -> int:
        """The current version of ``topic``; 0 if there is none."""
        current = self.current(topic)
        return 0 if current is None else current.version

    def _created(self, topic: str) -> float:
        """When the latest version of ``topic`` was made, Unix time, s; 0 if there is none."""
        return max((manifest.created for manifest in self._versions(topic).values()), default=0.0)

    def keep_aside(self, job: str, files: Mapping[str, bytes], samples: bytes, topic: str) -> Path:
        """Stores an update that is not published; replaces an earlier one of its topic.

        Args:
            job: id of the job that made it.
            files: files of the update by name, its history among them.
            samples: PNG.
            topic: name of the topic.

        Returns:
            The folder of the files, which can be published by hand.
        """
        target = self._aside / topic
        with _staging(self._aside) as new:
            (new / _FILES).mkdir()
            write_synced(new / _MANIFEST, json.dumps({"topic": topic, "job": job}).encode())
            write_synced(new / _SAMPLES, samples)
            for name, data in files.items():
                write_synced(new / _FILES / name, data)
            _delete_folder(target, self._aside)
            new.rename(target)  # only one job of a topic runs at a time
        sync_folder(self._aside)
        return target / _FILES

    def aside_samples(self, job: str) -> bytes | None:
        """PNG of the update that ``job`` kept aside, if it still exists."""
        for folder in folders_in(self._aside):
            with contextlib.suppress(OSError, InvalidInputError, LookupError, TypeError):
                if read_json(folder / _MANIFEST)["job"] == job:
                    return (folder / _SAMPLES).read_bytes()
        return None

    def delete(self, topic: str) -> None:
        """Deletes all versions of ``topic``; NotFoundError if there is none."""
        self.versions(topic)
        _delete_folder(self._root / topic, self._root)

    def prune(self, *, keep: int, keep_s: float) -> dict[str, list[int]]:
        """Deletes earlier versions, see `_Versions.prune`; returns which, by topic."""
        pruned = {
            name: self._of(name).prune(self._versions(name), keep=keep, keep_s=keep_s)
            for name in self._names()
        }
        return {name: versions for name, versions in pruned.items() if versions}

    def tidy(self, *, keep: int, keep_s: float) -> None:
        """Deletes what killed processes left behind, and old updates that were set aside or quarantined.

        Args:
            keep: number of each that are kept at most.
            keep_s: age at which they are deleted, s.
        """
        _sweep_staging(self._root)
        _sweep_staging(self._aside)
        damaged = [path for topic in folders_in(self._root) for path in topic.glob(".damaged-*")]
        for folders, home in ((damaged, self._root), (folders_in(self._aside), self._aside)):
            for folder in _expired(folders, keep=keep, keep_s=keep_s):
                _delete_folder(folder, home)
        for topic in folders_in(self._root):
            with contextlib.suppress(OSError):  # it is not empty; who publishes now makes the folder again
                topic.rmdir()

    def folders(self) -> list[tuple[str, int, Path]]:
        """Topic, version and folder of all versions, including unreadable ones."""
        return [
            (topic.name, int(version.name), version)
            for topic in sorted(folders_in(self._root))
            for version in sorted(folders_in(topic))
            if version.name.isdigit()
        ]

    @staticmethod
    def manifest_in(folder: Path) -> Manifest | None:
        """The manifest in the folder of a version, None if it is invalid; raises FileNotFoundError."""
        return Manifest.parse((folder / _MANIFEST).read_bytes())

    def quarantine(self, topic: str, version: int) -> None:
        """Renames the folder of a damaged version, so that it is ignored but can be inspected."""
        folder = self._root / topic / str(version)
        with contextlib.suppress(FileNotFoundError):  # deleted concurrently
            folder.rename(folder.with_name(f".damaged-{version}-{uuid.uuid4().hex}"))

    def restore(self, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        """Replaces the files of a version with intact ones; keeps samples and history if they are readable.

        A topic that was deleted in the meantime stays deleted.
        """
        versions = self._of(manifest.topic)
        beside = self._beside(manifest, _SAMPLES) | self._beside(manifest, HISTORY)
        with versions.staged(manifest, files, beside) as new:
            self.quarantine(manifest.topic, manifest.version)
            versions.commit(new, manifest.version)

    def _names(self) -> list[str]:
        """Names of the folders of topics, sorted; a folder may have no valid version."""
        return sorted(folder.name for folder in folders_in(self._root))

    def _of(self, topic: str) -> _Versions[Manifest]:
        return _Versions(self._root / topic, Manifest, new_in=self._root)

    def _folder(self, manifest: Manifest) -> Path:
        return self._of(manifest.topic).folder(manifest.version)

    def _beside(self, manifest: Manifest, name: str) -> dict[str, bytes]:
        """The file of that name in the version's folder, by name; empty if it cannot be read."""
        with contextlib.suppress(OSError):
            return {name: (self._folder(manifest) / name).read_bytes()}
        return {}

    def _versions(self, topic: str) -> dict[int, Manifest]:
        """Valid manifests of this topic by version."""
        return {manifest.version: manifest for manifest in reversed(list(self._latest_first(topic)))}

    def _latest_first(self, topic: str) -> Iterator[Manifest]:
        owner = self.owners.of(topic)
        for manifest in self._of(topic).latest_first():
            if manifest.topic == topic:
                yield manifest.model_copy(update={"owner": owner})


class TransmissionStore:
    """The versions of the codec's adapters in the data folder.

    Version numbers are shared by all codecs; the highest one that fits a codec is its current version.

    Args:
        data_dir: created on the first write.
    """

    def __init__(self, data_dir: Path) -> None:
        self._versions = _Versions(data_dir / "transmission", TransmissionManifest)

    def versions(self, base_hash: str) -> dict[int, TransmissionManifest]:
        """The manifests that fit the codec with that hash, by version, ascending; may be empty."""
        manifests = self._versions.manifests().items()
        return {number: manifest for number, manifest in manifests if manifest.base_hash == base_hash}

    def current(self) -> dict[str, TransmissionManifest]:
        """The current manifest of each codec, by the codec's hash."""
        return {manifest.base_hash: manifest for manifest in self._versions.manifests().values()}

    def find(self, base_hash: str, content_hash: str = "") -> TransmissionManifest:
        """The manifest with that hash; the current one without a hash.

        Args:
            base_hash: hash of the codec that it must fit.
            content_hash: SHA-256 of its content.

        Raises:
            NotFoundError: there is no such version.
        """
        for manifest in reversed(self.versions(base_hash).values()):
            if content_hash in ("", manifest.content_hash):
                return manifest
        what = f"with content hash {content_hash[:12]!r} " if content_hash else ""
        raise NotFoundError(f"there is no transmission knowledge {what}for the codec {base_hash[:12]!r}")

    def files(self, manifest: TransmissionManifest) -> dict[str, bytes]:
        """The files by name."""
        return self._versions.files(manifest.version)

    def publish(self, knowledge: TransmissionKnowledge, *, if_new: bool = False) -> TransmissionManifest:
        """Publishes ``knowledge`` as the current version for its codec, unless it is current already.

        An earlier version may be published again; it gets a new version number.

        Args:
            knowledge: adapters with checked hashes.
            if_new: publish only if no version has this content; else return the latest that has.
        """
        while True:
            versions = self.versions(knowledge.base_hash)
            same = [old for old in versions.values() if old.content_hash == knowledge.content_hash]
            if same and (if_new or same[-1].version == max(versions)):
                return same[-1]
            files = knowledge.to_files()
            manifest = TransmissionManifest(
                version=self._versions.next(),
                content_hash=knowledge.content_hash,
                base_hash=knowledge.base_hash,
                size_bytes=sum(map(len, files.values())),
                scores=figures(knowledge.info.get("scores")),
                created=time.time(),
            )
            with self._versions.staged(manifest, files) as new:
                if self._versions.commit(new, manifest.version):
                    return manifest

    def prune(self, *, keep: int, keep_s: float) -> list[int]:
        """Deletes earlier versions of each codec's adapters, see `_Versions.prune`; returns which."""
        codecs = list(self.current())
        pruned = [self._versions.prune(self.versions(codec), keep=keep, keep_s=keep_s) for codec in codecs]
        return [version for versions in pruned for version in versions]

    def tidy(self) -> None:
        """Deletes what killed processes left behind."""
        _sweep_staging(self._versions.root)


def _scores(files: Mapping[str, bytes]) -> dict[str, float]:
    """The scores in the history; empty if there is none."""
    with contextlib.suppress(DocumentError):
        history = parse_json(files.get(HISTORY, b"{}"), HISTORY)
        return figures(history.get("scores") if isinstance(history, dict) else None)
    return {}


def figures(scores: Any) -> dict[str, float]:
    """The finite numbers in ``scores``; empty if it is no mapping.

    At most the first 32, with names of up to 64 characters: they are in every list of topics.
    """
    found = {
        str(name): float(score)
        for name, score in (scores.items() if isinstance(scores, dict) else ())
        if len(str(name)) <= _MAX_SCORE_CHARS
        and isinstance(score, int | float)
        and abs(score) <= sys.float_info.max
    }
    return dict(itertools.islice(found.items(), _MAX_SCORES))


def folders_in(parent: Path) -> list[Path]:
    """The subfolders of ``parent`` except hidden ones; empty if it does not exist."""
    try:
        return [path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextlib.contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    """A new folder whose content no reader sees; deleted at the end, unless it was renamed.

    It is locked as long as its process lives, so that `_sweep_staging` knows which were left behind.
    """
    new = parent / f".new-{uuid.uuid4().hex}"
    while True:
        new.mkdir(parents=True, exist_ok=True)
        handle = os.open(new, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if new.exists():
            break
        os.close(handle)  # swept before it was locked
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)
        os.close(handle)


def _sweep_staging(parent: Path) -> None:
    """Deletes folders that killed processes left behind while they made or deleted a version."""
    for folder in parent.glob(".new-*"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)
    for folder in parent.glob(".gone-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _delete_folder(folder: Path, parent: Path) -> None:
    """Deletes a folder, if it exists, so that no reader sees a part of it.

    Args:
        folder: what to delete.
        parent: a folder on the same disk that `_sweep_staging` sweeps.
    """
    gone = parent / f".gone-{uuid.uuid4().hex}"
    with contextlib.suppress(FileNotFoundError):  # deleted concurrently
        folder.rename(gone)
        sync_folder(folder.parent)
    shutil.rmtree(gone, ignore_errors=True)


def _expired(folders: Sequence[Path], *, keep: int, keep_s: float) -> list[Path]:
    """The folders beyond the latest ``keep``, and those that were last changed more than so many s ago."""
    changed = {}
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            changed[folder] = folder.stat().st_mtime
    latest = sorted(changed, key=lambda folder: changed[folder], reverse=True)
    return [
        folder
        for position, folder in enumerate(latest)
        if position >= keep or time.time() - changed[folder] > keep_s
    ]
