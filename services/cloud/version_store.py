"""Knowledge on the cloud's disk: the durable copy, of which everything else is a mirror.

::

    <data>/knowledge/<topic>/<version>/   manifest.json, samples.png, files/ with the files of the update
    <data>/transmission/<version>/        manifest.json, files/ with the files of the adapters
    <data>/aside/<topic>/                 the same of the latest update that was not published

Folders appear and go by one rename, so that whoever reads finds all of a version or nothing. The cloud and
the distillers share the data folder; none of them keeps anything of it in memory. No torch in here.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dekag.documents import read_json
from dekag.errors import InvalidInputError, NotFoundError
from services.common.knowledge import Manifest, VersionManifest
from services.common.transmission import TransmissionManifest

if TYPE_CHECKING:
    from dekag.cala.artifact import TransmissionKnowledge

_MANIFEST, _FILES, _SAMPLES = "manifest.json", "files", "samples.png"
_OVERTAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT)  # by who took this version, or deleted the topic
_AnyManifest = TypeVar("_AnyManifest", bound=VersionManifest)


class _Versions(Generic[_AnyManifest]):
    """The versions in one folder, each in a folder of its own called by its number.

    Args:
        root: is made when something is first written.
        kind: of manifest.
        new_in: where a version is written before it appears; on the same disk.
    """

    def __init__(self, root: Path, kind: type[_AnyManifest], new_in: Path | None = None) -> None:
        self.root, self._kind, self._new_in = root, kind, new_in or root

    def folder(self, version: int) -> Path:
        """The folder of a version."""
        return self.root / str(version)

    def next(self) -> int:
        """The number of the next version; places of folders that hold no version are taken, too."""
        return max(self._numbers(), default=0) + 1

    def manifests(self) -> dict[int, _AnyManifest]:
        """By version, ascending; not those that cannot be read or are of another number."""
        found = {}
        for number in self._numbers():
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed, or none of ours
                manifest = self._kind.parse((self.folder(number) / _MANIFEST).read_bytes())
                if manifest is not None and manifest.version == number:
                    found[number] = manifest
        return found

    def files(self, version: int) -> dict[str, bytes]:
        """The files of a version by name; FileNotFoundError if it is not there."""
        return {path.name: path.read_bytes() for path in (self.folder(version) / _FILES).iterdir()}

    def write(self, manifest: _AnyManifest, files: Mapping[str, bytes], samples: bytes | None = None) -> Path:
        """Writes a version aside, where nobody reads it, for `appear`."""
        new = self._new_in / f".new-{uuid.uuid4().hex}"
        (new / _FILES).mkdir(parents=True)
        write_synced(new / _MANIFEST, manifest.model_dump_json(indent=1).encode())
        for name, data in files.items():
            write_synced(new / _FILES / name, data)
        if samples is not None:
            write_synced(new / _SAMPLES, samples)
        return new

    def appear(self, new: Path, version: int) -> bool:
        """Renames what was written to its place; False, and it is gone, if somebody took that version."""
        target = self.folder(version)
        try:
            new.rename(target)
        except OSError as error:
            shutil.rmtree(new)
            if error.errno not in _OVERTAKEN:
                raise
            return False
        sync_folder(target.parent)
        return True

    def _numbers(self) -> list[int]:
        return sorted(
            int(path.name) for path in folders_in(self.root) if re.fullmatch("[1-9][0-9]{0,8}", path.name)
        )


MIN_FREE_MIB = 64
"""Room on the disk below which no distillation is started."""


def trouble(data_dir: Path) -> str:
    """What is wrong with the data folder now, for people; empty if files can be written there.

    Args:
        data_dir: is made if it is missing.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data_dir) as file:
            file.write(b"trial")
        free_mib = shutil.disk_usage(data_dir).free / 2**20
    except OSError as error:
        return f"DEKAG_DATA_DIR {data_dir} cannot be written: {error.strerror or error}"
    if free_mib < MIN_FREE_MIB:
        return f"the disk of DEKAG_DATA_DIR {data_dir} is full: {free_mib:.0f} MiB are free"
    return ""


class KnowledgeStore:
    """The versions of each topic's knowledge update in the data folder.

    Args:
        data_dir: is made when something is first written.
    """

    def __init__(self, data_dir: Path) -> None:
        self._root, self._aside = data_dir / "knowledge", data_dir / "aside"

    def topics(self) -> dict[str, Manifest]:
        """The current manifest of each topic, by name in alphabetical order."""
        names = sorted(folder.name for folder in folders_in(self._root))
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
            return self._of(manifest.topic).files(manifest.version)
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
        versions = self._of(topic)
        while True:
            if (earlier := self.made_by(topic, job)) is not None:
                return earlier
            manifest = Manifest(
                topic=topic,
                version=versions.next(),
                content_hash=content_hash,
                base_hash=info["base_hash"],
                triggers=tuple(info["triggers"]),
                size_bytes=sum(map(len, files.values())),
                scores=figures(info.get("scores")),
                created=time.time(),
                job=job,
            )
            new = versions.write(manifest, files, samples)
            versions.root.mkdir(exist_ok=True)
            if versions.appear(new, manifest.version):
                return manifest

    def keep_aside(self, job: str, files: Mapping[str, bytes], samples: bytes, topic: str) -> Path:
        """Keeps an update that is not to be published, in place of an earlier one of its topic.

        Args:
            job: id of the job that made it.
            files: of the update by name.
            samples: PNG.
            topic: its name.

        Returns:
            The folder of its files, which may be published by hand.
        """
        new, place = self._aside / f".new-{uuid.uuid4().hex}", self._aside / topic
        (new / _FILES).mkdir(parents=True)
        write_synced(new / _MANIFEST, json.dumps({"topic": topic, "job": job}).encode())
        write_synced(new / _SAMPLES, samples)
        for name, data in files.items():
            write_synced(new / _FILES / name, data)
        gone = self._aside / f".gone-{uuid.uuid4().hex}"
        with contextlib.suppress(FileNotFoundError):
            place.rename(gone)
        new.rename(place)  # one job of a topic runs at a time
        sync_folder(self._aside)
        shutil.rmtree(gone, ignore_errors=True)
        return place / _FILES

    def aside_samples(self, job: str) -> bytes | None:
        """PNG of what ``job`` made, if that was kept aside and is still there."""
        for folder in folders_in(self._aside):
            with contextlib.suppress(OSError, InvalidInputError, LookupError, TypeError):
                if read_json(folder / _MANIFEST)["job"] == job:
                    return (folder / _SAMPLES).read_bytes()
        return None

    def delete(self, topic: str) -> None:
        """Deletes all versions of ``topic``; NotFoundError if there is none."""
        self.versions(topic)
        gone = self._root / f".gone-{uuid.uuid4().hex}"
        with contextlib.suppress(FileNotFoundError):  # somebody else just deleted it
            (self._root / topic).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def folders(self) -> list[tuple[str, int, Path]]:
        """Topic, version and folder of all versions, also of those that cannot be read."""
        return [
            (topic.name, int(version.name), version)
            for topic in sorted(folders_in(self._root))
            for version in sorted(folders_in(topic))
            if version.name.isdigit()
        ]

    @staticmethod
    def manifest_in(folder: Path) -> Manifest | None:
        """The manifest of a version in its folder, None if it cannot be read; FileNotFoundError."""
        return Manifest.parse((folder / _MANIFEST).read_bytes())

    def quarantine(self, topic: str, version: int) -> None:
        """Takes a version that is damaged away from the others, for people to look at."""
        folder = self._root / topic / str(version)
        with contextlib.suppress(FileNotFoundError):  # somebody else just deleted it
            folder.rename(folder.with_name(f".damaged-{version}-{uuid.uuid4().hex}"))

    def restore(self, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        """Puts undamaged files in the place of a version's; its samples stay if they can be read.

        A topic that was deleted meanwhile stays so.
        """
        versions, samples = self._of(manifest.topic), None
        with contextlib.suppress(OSError):
            samples = (self._folder(manifest) / _SAMPLES).read_bytes()
        new = versions.write(manifest, files, samples)
        self.quarantine(manifest.topic, manifest.version)
        versions.appear(new, manifest.version)

    def _known(self) -> str:
        return f"there is {', '.join(self.topics()) or 'none yet'}"

    def _of(self, topic: str) -> _Versions[Manifest]:
        return _Versions(self._root / topic, Manifest, new_in=self._root)

    def _folder(self, manifest: Manifest) -> Path:
        return self._of(manifest.topic).folder(manifest.version)

    def _versions(self, topic: str) -> dict[int, Manifest]:
        """Those whose manifest is what it should be, of this topic; others are not ours."""
        found = self._of(topic).manifests()
        return {number: manifest for number, manifest in found.items() if manifest.topic == topic}


class TransmissionStore:
    """The versions of the codec's adapters in the data folder.

    Versions count up over all codecs; the highest one that fits a codec is that codec's current one.

    Args:
        data_dir: is made when something is first written.
    """

    def __init__(self, data_dir: Path) -> None:
        self._versions = _Versions(data_dir / "transmission", TransmissionManifest)

    def versions(self, base_hash: str) -> dict[int, TransmissionManifest]:
        """The manifests that fit a codec by version, ascending; none if there are none.

        Args:
            base_hash: of the codec.
        """
        return {
            number: found
            for number, found in self._versions.manifests().items()
            if found.base_hash == base_hash
        }

    def current(self) -> dict[str, TransmissionManifest]:
        """The current manifest of each codec, by the codec's hash."""
        return {manifest.base_hash: manifest for manifest in self._versions.manifests().values()}

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
        return self._versions.files(manifest.version)

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
                version=self._versions.next(),
                content_hash=knowledge.content_hash,
                base_hash=knowledge.base_hash,
                size_bytes=sum(map(len, files.values())),
                scores=figures(knowledge.info.get("scores")),
                created=time.time(),
            )
            if self._versions.appear(self._versions.write(manifest, files), manifest.version):
                return manifest


def figures(scores: Any) -> dict[str, float]:
    """The plain finite numbers among ``scores``, whatever it is."""
    found = scores if isinstance(scores, dict) else {}
    return {
        str(name): float(each)
        for name, each in found.items()
        if isinstance(each, int | float) and abs(each) <= sys.float_info.max
    }


def folders_in(parent: Path) -> list[Path]:
    """The folders in ``parent`` but those being written or deleted; none if it is not there."""
    try:
        return [path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def write_synced(path: Path, data: bytes) -> None:
    """Writes a file so that it lasts through a power cut once its name does."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes a rename in ``folder`` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
