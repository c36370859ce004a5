"""Mirrors the knowledge on disk to Redis.

=====================================  =======================================================
``dekag:knowledge``                    hash: topic -> JSON of the current version's manifest
``dekag:transmission``                 hash: codec's hash -> JSON of its current adapters' manifest
``dekag:update:{content_hash}``        hash: name -> bytes of each file of the update or adapters
``dekag:lock:knowledge``               held during a sync
=====================================  =======================================================
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

from redis.asyncio import Redis

from dekag.errors import NotFoundError
from services.cloud.version_store import KnowledgeStore, TransmissionStore
from services.common.knowledge import CATALOGUE_KEY, Manifest, update_key
from services.common.signing import Signer
from services.common.transmission import TRANSMISSION_KEY, TransmissionManifest

LOCK_KEY = "dekag:lock:knowledge"
LOCK_S = 5.0  # longest time that a dead process blocks the others
REPLACED_TTL_S = 3600  # an edge may have read the manifest just before it was replaced
_Manifest = TypeVar("_Manifest", Manifest, TransmissionManifest)


async def sync_knowledge(
    store: KnowledgeStore, redis: Redis, most_mib: int | None = None, signer: Signer | None = None
) -> list[str]:
    """Syncs the knowledge updates from disk to Redis; returns the topics that changed in Redis.

    The catalogue has all topics; files are only those of the latest updates that fit into ``most_mib``
    MiB, or all.

    Every write to the disk is followed by a sync; the cloud also syncs every few seconds, so that a Redis
    that lost data recovers. The lock serialises syncs, so that none writes outdated data.

    Raises:
        redis.exceptions.RedisError: Redis does not answer.
    """
    most = sys.maxsize if most_mib is None else most_mib * 2**20
    return await _sync(redis, CATALOGUE_KEY, Manifest.parse, store.topics, store.files, most, signer)


async def sync_adapters(store: TransmissionStore, redis: Redis, signer: Signer | None = None) -> list[str]:
    """Syncs the adapters from disk to Redis; returns the hashes of the codecs whose entry changed."""
    most = sys.maxsize  # each codec has one, and a user cannot do without
    parse = TransmissionManifest.parse
    return await _sync(redis, TRANSMISSION_KEY, parse, store.current, store.files, most, signer)


async def _sync(
    redis: Redis,
    catalogue: str,
    parse: Callable[[bytes], _Manifest | None],
    current: Callable[[], Mapping[str, _Manifest]],
    files_of: Callable[[_Manifest], Mapping[str, bytes]],
    most: int,
    signer: Signer | None,
) -> list[str]:
    async with redis.lock(LOCK_KEY, timeout=LOCK_S, blocking_timeout=LOCK_S):
        if await redis.type(catalogue) not in (b"hash", b"none"):
            await redis.delete(catalogue)  # not written by this project
        texts = await redis.hgetall(catalogue)  # type: ignore[misc]  # typed for both clients at once
        in_redis = {name: parse(text) for name, text in texts.items()}  # names may be any bytes
        on_disk = {
            name.encode(): manifest if signer is None else signer.signed(manifest)
            for name, manifest in (await asyncio.to_thread(current)).items()
        }
        copied = _latest(on_disk, most)
        exist = {
            name: bool(await redis.exists(update_key(manifest.content_hash)))
            for name, manifest in on_disk.items()
        }
        changed = [
            name
            for name, manifest in on_disk.items()
            if exist[name] != (name in copied) or in_redis.get(name) != manifest
        ]
        changed += [name for name in in_redis if name not in on_disk]
        for name in changed:
            new, old = on_disk.get(name), in_redis.get(name)
            try:
                files = await asyncio.to_thread(files_of, new) if new is not None and name in copied else {}
            except NotFoundError:
                continue  # being deleted; the deletion is followed by a sync of its own
            await _replace(redis, catalogue, name, new, old, files)
        return [name.decode(errors="replace") for name in changed]


def _latest(manifests: Mapping[bytes, _Manifest], most: int) -> set[bytes]:
    """Names of the latest of these whose files together have at most ``most`` bytes."""
    names, total = set(), 0
    for name, manifest in sorted(manifests.items(), key=lambda item: item[1].created, reverse=True):
        total += manifest.size_bytes
        if total > most:
            break
        names.add(name)
    return names


async def _replace(
    redis: Redis,
    catalogue: str,
    name: bytes,
    new: _Manifest | None,
    old: _Manifest | None,
    files: Mapping[str, bytes],
) -> None:
    async with redis.pipeline(
        transaction=True
    ) as transaction:  # files that are copied precede their manifest
        if old is not None and (new is None or old.content_hash != new.content_hash):
            transaction.expire(update_key(old.content_hash), REPLACED_TTL_S)
        if new is None:
            transaction.hdel(catalogue, name)  # type: ignore[arg-type]  # bytes work, too
        else:
            key = update_key(new.content_hash)
            transaction.delete(key)
            if files:
                transaction.hset(key, mapping=dict(files))
            transaction.hset(catalogue, name, new.model_dump_json())  # type: ignore[arg-type]
        await transaction.execute()
