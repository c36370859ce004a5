"""Redis holds anything under any key that a service reads; what is asked for is served all the same."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from services.proto import cloud_pb2, downlink_pb2
from tests.hostile.artifacts import jsons
from tests.hostile.budgets import examples
from tests.hostile.calls import DEADLINE_S, picture
from tests.hostile.peers import code_of
from tests.hostile.tally import Tally

pytestmark = pytest.mark.asyncio(loop_scope="session")
CLEAR = downlink_pb2.LinkConditions(snr_db=30, fading=downlink_pb2.FADING_AWGN)
ASKED = {
    "semantic": picture(prompt="a neon boat", link=CLEAR),
    "conventional": picture(delivery=downlink_pb2.DELIVERY_CONVENTIONAL, link=CLEAR),
}
JOBS = ("saq:",)
"""Keys without which there are no distillations; pictures need none of them."""


@dataclass
class Store:
    """Redis, and a job and a report that it holds."""

    redis: Redis
    job: str


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def store(chain: Any, client: httpx2.AsyncClient, redis_url: str) -> AsyncIterator[Store]:
    async with Redis.from_url(redis_url) as redis:
        await redis.flushdb()
        job = await chain.cloud.Distill(cloud_pb2.DistillRequest(topic="snail", images=4, steps=2))
        yield Store(redis, job.id)
        await redis.flushdb()


async def serve(chain: Any, client: httpx2.AsyncClient, job: str) -> Mapping[str, StatusCode | int]:
    """Asks for everything that involves Redis; how each request ended."""
    codes: dict[str, StatusCode | int] = {
        name: await code_of(chain.user.Receive(asked, timeout=DEADLINE_S)) for name, asked in ASKED.items()
    }
    body = {"prompt": "a boat", "seed": 3, "size": "64x64"}
    made = await client.post("/v1/images/generations", json=body)
    codes["rest"] = made.status_code
    codes["report"] = (await client.get(f"/v1/reports/{made.headers['x-request-id']}")).status_code
    for name, call in {
        "ListJobs": chain.cloud.ListJobs(cloud_pb2.ListJobsRequest(), timeout=DEADLINE_S),
        "GetJob": chain.cloud.GetJob(cloud_pb2.JobId(id=job), timeout=DEADLINE_S),
        "Distill": chain.cloud.Distill(cloud_pb2.DistillRequest(topic="snail"), timeout=DEADLINE_S),
    }.items():
        codes[name] = await code_of(call)
    return codes


@dataclass(frozen=True)
class Garbage:
    """What is done to a key.

    Attributes:
        at: which key, as a number that says so however many there are.
        kind: the type that it gets; "alike" leaves it its own.
        values: what it gets then.
        names: of hash fields and members.
        seed: of where what is there is changed, if it is to stay alike.
    """

    at: int
    kind: str
    values: list[bytes]
    names: list[bytes]
    seed: int


def garbage() -> st.SearchStrategy[Garbage]:
    """Values of every type that Redis has, often much like what is there."""
    value = st.binary(max_size=50) | jsons().map(lambda each: json.dumps(each).encode())
    name = st.sampled_from([b"neon", b"\xff\xfe", b"../../x", b"knowledge.json"]) | st.binary(max_size=10)
    return st.builds(
        Garbage,
        at=st.integers(0, 10**6),
        kind=st.sampled_from(["alike"] * 5 + ["string", "hash", "list", "set", "zset"]),
        values=st.lists(value, min_size=3, max_size=3),
        names=st.lists(name, min_size=3, max_size=3, unique=True),
        seed=st.integers(0, 2**32),
    )


def alike(held: bytes, value: bytes, rng: random.Random) -> bytes:
    """JSON with one entry replaced by ``value``, or other bytes cut off or with one changed."""
    try:
        content = json.loads(held)
        place = content
        while True:
            key = rng.choice(sorted(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.5:
                break
            place = place[key]
        place[key] = json.loads(value)
        return json.dumps(content).encode()
    except (ValueError, TypeError, LookupError):
        changed = bytearray(held[: rng.randint(0, len(held))] if rng.random() < 0.5 else held)
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)


async def spoil(redis: Redis, key: bytes, garbage: Garbage) -> None:
    """Does to ``key`` what ``garbage`` says."""
    rng, (value, *_) = random.Random(garbage.seed), garbage.values
    kind = garbage.kind.encode() if garbage.kind != "alike" else await redis.type(key)
    if garbage.kind == "alike" and kind == b"string":
        await redis.set(key, alike(await redis.get(key) or b"", value, rng))
    elif garbage.kind == "alike" and kind == b"hash":
        fields = await redis.hgetall(key)  # type: ignore[misc]
        name = rng.choice(sorted(fields))
        await redis.hset(key, name, alike(fields[name], value, rng))  # type: ignore[misc]
    elif garbage.kind == "alike":  # of a list or a set: more members
        await _add(redis, key, kind, garbage)
    else:
        await redis.delete(key)
        await _add(redis, key, kind, garbage)


async def _add(redis: Redis, key: bytes, kind: bytes, garbage: Garbage) -> None:
    if kind == b"string":
        await redis.set(key, garbage.values[0])
    elif kind == b"hash":
        await redis.hset(key, mapping=dict(zip(garbage.names, garbage.values, strict=True)))  # type: ignore[misc]
    elif kind == b"zset":
        await redis.zadd(key, {name: 1e9 * i for i, name in enumerate(garbage.names)})
    elif kind == b"list":
        await redis.rpush(key, *garbage.values)  # type: ignore[misc]
    elif kind == b"set":
        await redis.sadd(key, *garbage.values)  # type: ignore[misc]


@examples(quick=5, thorough=200)
@given(garbage=garbage())
async def test_requests_are_served_whatever_redis_holds(
    chain: Any, client: httpx2.AsyncClient, store: Store, tally: Tally, garbage: Garbage
) -> None:
    await serve(chain, client, store.job)
    keys = sorted(key for key in await store.redis.keys("*") if b":lock:" not in key)
    key = keys[garbage.at % len(keys)]
    before = await store.redis.dump(key)
    await spoil(store.redis, key, garbage)
    codes = await serve(chain, client, store.job)
    await store.redis.restore(key, 0, before, replace=True)
    tally.note("redis", "served")
    assert [codes[name] for name in ASKED] == [StatusCode.OK] * len(ASKED)
    assert codes["rest"] == 200
    assert codes["report"] in (200, 404)
    fine = {StatusCode.OK, StatusCode.NOT_FOUND, StatusCode.ABORTED}
    if key.decode(errors="replace").startswith(JOBS):  # which may be of another type than it should be
        fine.add(StatusCode.UNAVAILABLE)
    assert {codes[name] for name in ("ListJobs", "GetJob", "Distill")} <= fine
