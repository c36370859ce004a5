"""The catalogue of knowledge in Redis, kept equal to the store on disk.

=====================================  =======================================================
``dekag:knowledge``                    hash: topic -> JSON of the current version's manifest
``dekag:update:{content_hash}``        hash: name -> bytes of each file of the update
``dekag:lock:knowledge``               held by who makes Redis equal to the disk
=====================================  =======================================================
"""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from dekag.errors import NotFoundError
from services.cloud.store import KnowledgeStore
from services.common.knowledge import CATALOGUE_KEY, Manifest, update_key

LOCK_KEY = "dekag:lock:knowledge"
LOCK_S = 5.0  # that a process which died with it holds up the others
REPLACED_TTL_S = 3600  # an edge may have read the manifest just before it was replaced


async def mirror(store: KnowledgeStore, redis: Redis) -> list[str]:
    """Makes Redis hold what the disk holds; returns the topics that it did not hold like that.

    Every change of the disk is followed by a call, and the cloud calls every few seconds besides, so that a
    Redis that lost something gets it back. The lock orders the calls: none writes what is outdated.

    Raises:
        redis.exceptions.RedisError: Redis does not answer.
    """
    async with redis.lock(LOCK_KEY, timeout=LOCK_S, blocking_timeout=LOCK_S):
        texts = await redis.hgetall(CATALOGUE_KEY)  # type: ignore[misc]  # typed for both clients at once
        held = {name.decode(): Manifest.parse(text) for name, text in texts.items()}
        wanted = await asyncio.to_thread(store.topics)
        there = [await redis.exists(update_key(manifest.content_hash)) for manifest in wanted.values()]
        changed = [
            name
            for (name, manifest), exists in zip(wanted.items(), there, strict=True)
            if not exists or held.get(name) != manifest
        ]
        changed += [name for name in held if name not in wanted]
        for name in changed:
            await _replace(store, redis, name, wanted.get(name), held.get(name))
        return changed


async def _replace(
    store: KnowledgeStore, redis: Redis, topic: str, new: Manifest | None, old: Manifest | None
) -> None:
    try:
        files = {} if new is None else await asyncio.to_thread(store.files, new)
    except NotFoundError:
        return  # being deleted, and whoever does so calls next
    async with redis.pipeline(transaction=True) as together:  # a manifest never points at nothing
        if old is not None and (new is None or old.content_hash != new.content_hash):
            together.expire(update_key(old.content_hash), REPLACED_TTL_S)
        if new is None:
            together.hdel(CATALOGUE_KEY, topic)
        else:
            key = update_key(new.content_hash)
            together.delete(key)
            together.hset(key, mapping=files)
            together.hset(CATALOGUE_KEY, topic, new.model_dump_json())
        await together.execute()
