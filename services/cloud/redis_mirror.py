"""The catalogue of knowledge in Redis, kept equal to the store on disk.

=====================================  =======================================================
``dekag:knowledge``                    hash: topic -> JSON of the current version's manifest
``dekag:transmission``                 hash: codec's hash -> JSON of its current adapters' manifest
``dekag:update:{content_hash}``        hash: name -> bytes of each file of the update or adapters
``dekag:lock:knowledge``               held by who makes Redis equal to the disk
=====================================  =======================================================
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeVar

from redis.asyncio import Redis

from dekag.errors import NotFoundError
from services.cloud.version_store import KnowledgeStore, TransmissionStore
from services.common.knowledge import CATALOGUE_KEY, Manifest, update_key
from services.common.transmission import TRANSMISSION_KEY, TransmissionManifest

LOCK_KEY = "dekag:lock:knowledge"
LOCK_S = 5.0  # that a process which died with it holds up the others
REPLACED_TTL_S = 3600  # an edge may have read the manifest just before it was replaced
_Manifest = TypeVar("_Manifest", Manifest, TransmissionManifest)


async def mirror(store: KnowledgeStore, redis: Redis) -> list[str]:
    """Makes Redis hold the updates that the disk holds; returns the topics that it did not hold like that.

    Every change of the disk is followed by a call, and the cloud calls every few seconds besides, so that a
    Redis that lost something gets it back. The lock orders the calls: none writes what is outdated.

    Raises:
        redis.exceptions.RedisError: Redis does not answer.
    """
    return await _mirror(redis, CATALOGUE_KEY, Manifest.parse, store.topics, store.files)


async def mirror_transmission(store: TransmissionStore, redis: Redis) -> list[str]:
    """The same for the adapters; returns the hashes of the codecs whose current ones Redis did not hold."""
    return await _mirror(redis, TRANSMISSION_KEY, TransmissionManifest.parse, store.current, store.files)


async def _mirror(
    redis: Redis,
    catalogue: str,
    parse: Callable[[bytes], _Manifest | None],
    current: Callable[[], Mapping[str, _Manifest]],
    files_of: Callable[[_Manifest], Mapping[str, bytes]],
) -> list[str]:
    async with redis.lock(LOCK_KEY, timeout=LOCK_S, blocking_timeout=LOCK_S):
        if await redis.type(catalogue) not in (b"hash", b"none"):
            await redis.delete(catalogue)  # somebody else's
        texts = await redis.hgetall(catalogue)  # type: ignore[misc]  # typed for both clients at once
        held = {name: parse(text) for name, text in texts.items()}  # names may be any bytes
        wanted = {name.encode(): manifest for name, manifest in (await asyncio.to_thread(current)).items()}
        there = [await redis.exists(update_key(manifest.content_hash)) for manifest in wanted.values()]
        changed = [
            name
            for (name, manifest), exists in zip(wanted.items(), there, strict=True)
            if not exists or held.get(name) != manifest
        ]
        changed += [name for name in held if name not in wanted]
        for name in changed:
            new, old = wanted.get(name), held.get(name)
            try:
                files = {} if new is None else await asyncio.to_thread(files_of, new)
            except NotFoundError:
                continue  # being deleted, and whoever does so calls next
            await _replace(redis, catalogue, name, new, old, files)
        return [name.decode(errors="replace") for name in changed]


async def _replace(
    redis: Redis,
    catalogue: str,
    name: bytes,
    new: _Manifest | None,
    old: _Manifest | None,
    files: Mapping[str, bytes],
) -> None:
    async with redis.pipeline(transaction=True) as together:  # a manifest never points at nothing
        if old is not None and (new is None or old.content_hash != new.content_hash):
            together.expire(update_key(old.content_hash), REPLACED_TTL_S)
        if new is None:
            together.hdel(catalogue, name)  # type: ignore[arg-type]  # bytes are as good
        else:
            key = update_key(new.content_hash)
            together.delete(key)
            together.hset(key, mapping=dict(files))
            together.hset(catalogue, name, new.model_dump_json())  # type: ignore[arg-type]
        await together.execute()
