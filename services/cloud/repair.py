"""Detects damaged knowledge by its hash, and repairs it.

An update on the cloud's disk is restored from its copy in Redis. If that fails, it is quarantined, so that
the previous version becomes current again; nothing on disk is deleted. A damaged copy in Redis is deleted,
and the next sync writes it again from disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import structlog
from redis.asyncio import Redis

from dekag.errors import DekagError
from services.cloud.version_store import KnowledgeStore, TransmissionStore
from services.common.knowledge import CATALOGUE_KEY, Manifest, VersionManifest, update_key
from services.common.redis_state import REDIS_ERRORS
from services.common.signing import Signer

_log = structlog.get_logger()
_Signature = tuple[tuple[str, int, int], ...]
_UNSIGNED = Signer(None)


class Repair:
    """Checks and repairs the versions on disk and their copies in Redis.

    Args:
        store: the updates on disk.
        transmission: the adapters on disk.
        redis: holds a copy of each current version; None without Redis.
        signer: signed the manifests in Redis; others are not taken for those of damaged versions.
    """

    def __init__(
        self,
        store: KnowledgeStore,
        transmission: TransmissionStore,
        redis: Redis | None,
        signer: Signer = _UNSIGNED,
    ) -> None:
        self._store, self._transmission, self._redis, self._signer = store, transmission, redis, signer
        self._whole: dict[Path, _Signature] = {}

    async def check(self) -> None:
        """Checks every version whose files have changed since the last check, and repairs damaged ones."""
        for topic, version, folder in await asyncio.to_thread(self._store.folders):
            if not (reason := await asyncio.to_thread(self._damage, folder)):
                continue
            manifest, files = await self._copy(topic, version, await asyncio.to_thread(_manifest, folder))
            if manifest is not None and files is not None:
                await asyncio.to_thread(self._store.restore, manifest, files)
                _log.warning("damaged knowledge restored", topic=topic, version=version, why=reason)
            else:
                await asyncio.to_thread(self._store.quarantine, topic, version)
                _log.error("damaged knowledge quarantined", topic=topic, version=version, why=reason)

    async def verify(self) -> None:
        """Checks everything, including files that look unchanged: a failing disk may return wrong data.

        Raises:
            redis.exceptions.RedisError: Redis does not answer.
        """
        self._whole.clear()
        await self.check()
        if self._redis is None:
            return
        updates = await asyncio.to_thread(self._store.topics)
        adapters = await asyncio.to_thread(self._transmission.current)
        for manifest in (*updates.values(), *adapters.values()):
            key = update_key(manifest.content_hash)
            if await self._redis.type(key) == b"hash":
                files = _files(await self._redis.hgetall(key))  # type: ignore[misc]  # typed for both
                if not await asyncio.to_thread(difference, files, manifest):
                    continue
            elif not await self._redis.exists(key):  # detected by the next sync
                continue
            await self._redis.delete(key)
            _log.warning("damaged copy of knowledge deleted", content_hash=manifest.content_hash)

    def _damage(self, folder: Path) -> str:
        """What is wrong with a version; empty if it is whole, or was deleted in the meantime."""
        try:
            signature = _signature(folder)
            if self._whole.get(folder) == signature:
                return ""
            manifest = _manifest(folder)
            reason = (
                difference(self._store.files(manifest), manifest)
                if manifest
                else "its manifest cannot be read"
            )
            if not reason:
                self._whole[folder] = signature
        except (FileNotFoundError, DekagError) as error:
            reason = str(error)
        return reason if folder.exists() else ""

    async def _copy(
        self, topic: str, version: int, manifest: Manifest | None
    ) -> tuple[Manifest | None, Mapping[str, bytes] | None]:
        """The intact manifest and files of a version in Redis; None for what is missing or damaged."""
        if self._redis is None:
            return manifest, None
        try:
            if manifest is None:
                text = await self._redis.hget(CATALOGUE_KEY, topic)  # type: ignore[misc]  # typed for both
                manifest = None if text is None else Manifest.parse(text)
                if manifest is not None and self._signer.signed(manifest) != manifest:
                    return None, None  # not the cloud's, or from before its key was replaced
            if manifest is None or (manifest.topic, manifest.version) != (topic, version):
                return None, None
            fields = await self._redis.hgetall(update_key(manifest.content_hash))  # type: ignore[misc]
        except REDIS_ERRORS as error:
            _log.warning("cannot read the copy of damaged knowledge", topic=topic, error=str(error))
            return manifest, None
        files = _files(fields)
        return manifest, None if await asyncio.to_thread(difference, files, manifest) else files


def difference(files: Mapping[str, bytes], manifest: VersionManifest) -> str:
    """Why ``files`` are not the intact update or adapters that the manifest describes; empty if they are."""
    from dekag.cala.artifact import TransmissionKnowledge
    from dekag.makd.update import KnowledgeUpdate

    kind = KnowledgeUpdate if isinstance(manifest, Manifest) else TransmissionKnowledge
    try:
        kind.from_files(files, announced=manifest.content_hash)
    except DekagError as error:
        return str(error)
    return ""


def _files(fields: Mapping[bytes, bytes]) -> dict[str, bytes]:
    return {name.decode(errors="replace"): data for name, data in fields.items()}


def _manifest(folder: Path) -> Manifest | None:
    try:
        return KnowledgeStore.manifest_in(folder)
    except FileNotFoundError:
        return None


def _signature(folder: Path) -> _Signature:
    """Name, modification time and size of each file."""
    files = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return tuple((path.name, stat.st_mtime_ns, stat.st_size) for path, stat in files)
