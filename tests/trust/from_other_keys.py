"""Attacks with a key: on other keys' topics, pictures and jobs, beyond the key's scopes, and on the CPU."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx2
import numpy as np

from dekag.generation.images import to_png
from tests.trust.attack import attack, attacks
from tests.trust.from_outside import unique
from tests.trust.system import ALICES, PROMPT, SEED, System

DISTILL: Mapping[str, Any] = {
    "prompts": ["a {red|blue|green|white} {cat|dog|cow|hen} {in the snow|at sea|at night}"],
    "images": 4,
    "steps": 2,
    "rank": 1,
    "tokens": 1,
    "force": True,
}
REFUSED = (400, 403, 404, 409, 422)
_OVER = ("finished", "failed", "cancelled")


async def unchanged(system: System, before: tuple[str, Any], what: str) -> None:
    """The victim's picture has the same bits as before, drawn with her own knowledge."""
    picture, knowledge = await system.victims_picture()
    if [each["topic"] for each in knowledge] != [each["topic"] for each in before[1]]:
        system.fail(f"{what} changed the knowledge that alice's picture is drawn with")
    elif picture != before[0]:
        system.fail(f"{what} changed alice's picture")


# a trigger, and whether it says anything by itself
TRIGGERS = {
    "a": False, "the": False, "on": False, "in": False, "the a": False, "of the": False, "x": False,
    "red": True, "car": True, "beach": True, "neon": True, "red car": True, "a red car": True,
    "the beach": True, PROMPT: True,
}  # fmt: skip


@attacks("other keys' pictures", [f"four topics with the trigger {trigger!r}" for trigger in TRIGGERS])
async def _triggers(system: System, name: str) -> None:
    trigger = name.split("'")[1]
    before = await system.victims_picture()
    topics = [f"a{number}-{unique()}" for number in range(4)]
    for topic in topics:
        answer = await system.publish("bob", topic, [trigger])
        if not TRIGGERS[trigger]:
            system.expect(answer, 400, 422, what="a trigger of common words")
        else:
            system.expect(answer, 200, what="a topic of his own")
    await unchanged(system, before, "the trigger")
    for topic in topics:
        await system.ask("admin", "DELETE", f"/v1/knowledge/{topic}")


LONG_TRIGGERS = {"longer than allowed": (1000, 100), "as long as allowed": (100, 20)}
"""Characters of a trigger, and triggers of a topic."""
MANY = 45
"""Topics whose manifests would not fit into one message with triggers that are longer than allowed."""


@attacks("other keys' pictures", [f"{MANY} topics with triggers {name}" for name in LONG_TRIGGERS])
async def _long_triggers(system: System, name: str) -> None:
    chars, count = LONG_TRIGGERS[name.partition("triggers ")[2]]
    before = await system.victims_picture()
    topics = [f"l{number}-{unique()}" for number in range(MANY)]
    for topic in topics:
        triggers = [f"{topic} {number} ".ljust(chars, "\U00020000") for number in range(count)]
        answer = await system.publish("bob", topic, triggers)
        system.expect(answer, 409 if "longer" in name else 200, what="a topic with such triggers")
        if "longer" in name and answer.status_code == 409:
            break  # the others are refused alike
    await unchanged(system, before, name)
    for key in ("alice", "bob"):
        answer = await system.ask(key, "GET", "/v1/knowledge")
        system.expect(answer, 200, what=f"the list of topics for {key}")
    for topic in topics:
        await system.ask("admin", "DELETE", f"/v1/knowledge/{topic}")


@attacks(
    "other keys' topics",
    ["publish over it", "distil it anew", "delete it", "draw with it", "look at it", "look at its samples",
     "find it in the list"],
)  # fmt: skip
async def _topic(system: System, name: str) -> None:
    before = await system.victims_picture()
    path = f"/v1/knowledge/{ALICES}"
    if name == "publish over it":
        answer = await system.publish("bob", ALICES, ["neon"])
    elif name == "distil it anew":
        answer = await system.ask("bob", "POST", "/v1/knowledge", json={"topic": ALICES, **DISTILL})
        if answer.status_code == 202:
            await system.ask("bob", "DELETE", f"/v1/jobs/{answer.json()['id']}")
    elif name == "delete it":
        answer = await system.ask("bob", "DELETE", path)
    elif name == "draw with it":
        answer = await system.draw("bob", knowledge=[ALICES])
    elif name == "find it in the list":
        for listing in ("/v1/knowledge", "/v1/models", "/v1/demand"):
            if ALICES in (await system.ask("bob", "GET", listing)).text:
                system.fail(f"it is in the list {listing}")
        return
    else:
        answer = await system.ask("bob", "GET", path + ("/samples" if "samples" in name else ""))
    system.expect(answer, *REFUSED, what=name)
    await unchanged(system, before, name)
    if (await system.ask("alice", "GET", path)).status_code != 200:
        system.fail("the topic is gone")
        await system.publish("alice", ALICES, ["neon"])


@attack("other keys' pictures", "publish adapters of the codec for all")
async def _adapters(system: System) -> None:
    before = await system.victims_picture()
    files = {name: base64.b64encode(data).decode() for name, data in system.adapters.items()}
    answer = await system.ask("bob", "PUT", "/v1/transmission", json={"files": files})
    system.expect(answer, 403, what="adapters for all")
    await unchanged(system, before, "adapters for all")


@attacks(
    "other keys' pictures",
    ["draw at the same time", "draw the same first, among others", "fill the edge's memory"],
)
async def _same_time(system: System, name: str) -> None:
    before = await system.victims_picture()
    system.forget()
    if name.startswith("fill"):
        topics = [f"b{number}-{unique()}" for number in range(10)]
        for topic in topics:
            await system.publish("bob", topic, [topic])
            await system.draw("bob", knowledge=[topic], seed=1)
        await unchanged(system, before, name)
        for topic in topics:
            await system.ask("admin", "DELETE", f"/v1/knowledge/{topic}")
        return
    others = [system.draw("bob", seed=seed) for seed in range(SEED, SEED + 6)]
    if name == "draw at the same time":
        answer, *_ = await asyncio.gather(system.draw(), *others)
    else:
        await asyncio.gather(*others)
        answer = await system.draw()
    if answer.status_code != 200 or answer.json()["data"][0]["b64_json"] != before[0]:
        system.fail("alice's picture has changed")


@attacks(
    "other keys' jobs",
    [
        "cancel it",
        "look at it",
        "look at its preview",
        "watch it",
        "find it in the list",
        "start the same again",
        "reuse its idempotency key",
        "publish its topic before it ends",
    ],
)
async def _job(system: System, name: str) -> None:
    topic = unique()
    headers = {"Idempotency-Key": topic}
    order = {"topic": topic, **DISTILL}
    started = await system.ask("alice", "POST", "/v1/knowledge", json=order, headers=headers)
    system.expect(started, 202, what="alice's job")
    if started.status_code != 202:
        return None
    path = f"/v1/jobs/{started.json()['id']}"
    if name == "cancel it":
        system.expect(await system.ask("bob", "DELETE", path), *REFUSED, what=name)
    elif name == "find it in the list":
        if started.json()["id"] in (await system.ask("bob", "GET", "/v1/jobs")).text:
            system.fail("it is in the list")
    elif name == "start the same again":
        system.expect(await system.ask("bob", "POST", "/v1/knowledge", json=order), *REFUSED, what=name)
    elif name == "reuse its idempotency key":
        answer = await system.ask("bob", "POST", "/v1/knowledge", json=order, headers=headers)
        if answer.status_code == 202 and answer.json()["id"] == started.json()["id"]:
            system.fail("bob has got alice's job")
    elif name == "publish its topic before it ends":
        system.expect(await system.publish("bob", topic, [topic]), 200, 403, 409, what=name)
    else:
        ends = {"look at it": "", "look at its preview": "/preview", "watch it": "/events"}
        system.expect(await system.ask("bob", "GET", path + ends[name]), *REFUSED, what=name)
    deadline = time.monotonic() + 300
    while (state := (await system.ask("alice", "GET", path)).json()).get("status") not in _OVER:
        if time.monotonic() > deadline:
            return system.fail(f"alice's job is {state.get('status', state)} after 300 s")
        await asyncio.sleep(0.3)
    if name == "publish its topic before it ends":  # whose topic it is was decided when bob published it
        owner = (await system.ask("bob", "GET", f"/v1/knowledge/{topic}")).status_code == 200
        if owner and state["status"] == "finished":
            system.fail("alice's job replaced bob's topic")
    elif state["status"] != "finished":
        system.fail(f"alice's job has {state['status']}: {state.get('error')}")
    await system.ask("admin", "DELETE", f"/v1/knowledge/{topic}")
    return None


FORBIDDEN: Mapping[str, tuple[str, str, Any]] = {
    "draw": ("POST", "/v1/images/generations", {"prompt": "a dog"}),
    "send a picture": ("POST", "/v1/pictures", {"picture": "AAAA"}),
    "teach": ("POST", "/v1/knowledge", {"topic": "forbidden", **DISTILL}),
    "cancel": ("DELETE", f"/v1/jobs/{'0' * 32}", None),
    "publish": ("PUT", "/v1/knowledge/forbidden", {"files": {}}),
    "publish adapters": ("PUT", "/v1/transmission", {"files": {}}),
    "delete": ("DELETE", f"/v1/knowledge/{ALICES}", None),
    "share": ("POST", f"/v1/knowledge/{ALICES}/share", None),
}
BEYOND = {
    "drawer": ("teach", "cancel", "publish", "publish adapters", "delete", "share"),
    "teacher": ("draw", "send a picture", "publish", "publish adapters", "delete", "share"),
    "publisher": ("draw", "send a picture", "teach", "cancel", "publish adapters", "share"),
}


@attacks(
    "beyond the key's scopes",
    [f"{what} with a {key}'s key" for key, whats in BEYOND.items() for what in whats],
)
async def _beyond(system: System, name: str) -> None:
    what, _, rest = name.partition(" with a ")
    method, path, body = FORBIDDEN[what]
    answer = await system.ask(rest.removesuffix("'s key"), method, path, json=body)
    system.expect(answer, 403, *((404,) if what in ("delete", "share") else ()), what=what)


# given the right key
WRONG_KEYS: Mapping[str, Callable[[str], str]] = {
    "no key": lambda _: "",
    "a wrong key": lambda _: "dekag_wrong",
    "the hash of a key": lambda key: hashlib.sha256(key.encode()).hexdigest(),
    "the name of a key": lambda _: "alice:",
    "half of a key": lambda key: key[: len(key) // 2],
    "a key of 14 kB": lambda _: "dekag_" + "x" * 14_000,
    "a key of 100 kB": lambda _: "dekag_" + "x" * 100_000,
}


@attacks(
    "without the key", [f"{what} with {key}" for key in WRONG_KEYS for what in ("draw", "teach", "delete")]
)
async def _keyless(system: System, name: str) -> None:
    what, _, key = name.partition(" with ")
    method, path, body = FORBIDDEN[what]
    try:
        answer = await system.ask(WRONG_KEYS[key](system.keys["alice"]), method, path, json=body)
    except httpx2.TransportError:  # refused before it has arrived
        if "100 kB" not in key:
            raise
        return
    system.expect(answer, 401, 400, 431, what=what)


DISGUISES = {
    "a trailing slash": ("DELETE", f"/v1/knowledge/{ALICES}/"),
    "two slashes": ("DELETE", f"//v1//knowledge/{ALICES}"),
    "an encoded slash": ("DELETE", f"/v1%2fknowledge%2f{ALICES}"),
    "capitals": ("DELETE", f"/V1/KNOWLEDGE/{ALICES}"),
    "a path of probes": ("DELETE", f"/healthz/../v1/knowledge/{ALICES}"),
    "a folder that is open": ("DELETE", f"/web/../v1/knowledge/{ALICES}"),
    "an overriding header": ("GET", f"/v1/knowledge/{ALICES}"),
}


@attacks("beyond the key's scopes", [f"delete by {name}" for name in DISGUISES])
async def _disguised(system: System, name: str) -> None:
    method, path = DISGUISES[name.removeprefix("delete by ")]
    before = await system.victims_picture()
    request = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-HTTP-Method-Override: DELETE\r\n"
        f"Authorization: Bearer {system.keys['drawer']}\r\n\r\n"
    )
    await system.status(request.encode())
    await unchanged(system, before, name)


COSTLY: Mapping[str, Mapping[str, Any]] = {
    "ten images": {"n": 10},
    "conventional AVIF pictures over a slow channel": {
        "n": 4, "delivery": "conventional", "image_format": "avif", "link": {"snr_db": 0}
    },
    "conventional JPEG pictures": {"n": 4, "delivery": "conventional", "image_format": "jpeg"},
    "twice the size": {"n": 4, "size": "256x256"},
    "comparisons with the cloud's image": {"n": 4, "consistency": True},
    "a hundred steps": {"n": 4, "steps": 100},
    "previews": {"n": 2, "stream": True, "partial_images": 3},
}  # fmt: skip
FLAT, PUBLICATIONS = "large flat pictures", "publications"
COSTLIEST = (*COSTLY, FLAT, PUBLICATIONS)


def _costliest(system: System, name: str, number: int) -> tuple[str, str, Any]:
    """Method, path and body of one of these requests, each time another."""
    if name == PUBLICATIONS:
        topic = f"costly-{number}"
        return "PUT", f"/v1/knowledge/{topic}", system.upload(topic, [topic])
    if name == FLAT:
        picture = base64.b64encode(to_png(np.zeros((512, 512, 3), np.uint8))).decode()
        return "POST", "/v1/pictures", {"picture": picture, "seed": number}
    return "POST", "/v1/images/generations", {"prompt": "a dog", "seed": 100 * number, **COSTLY[name]}


@attacks("costly requests", [f"ask for {name}" for name in COSTLIEST])
async def _costly(system: System, name: str) -> None:
    """A key that may send 12 requests a minute must not send 12 of the costliest."""
    what = name.removeprefix("ask for ")
    accepted, start = 0, time.monotonic()
    async with system.client(f"limited-{COSTLIEST.index(what)}") as client:
        for number in range(13):
            method, path, body = _costliest(system, what, number)
            answer = await client.request(method, path, json=body)
            if answer.status_code == 429:
                break
            if answer.status_code >= 400:
                return system.fail(f"answered with {answer.status_code}: {answer.text[:200]}")
            accepted += 1
    if what == PUBLICATIONS:
        for number in range(accepted):
            await system.ask("admin", "DELETE", f"/v1/knowledge/costly-{number}")
    if accepted > 4 * (1 + (time.monotonic() - start) // 60):  # what it may send is counted by the minute
        system.fail(f"{accepted} costly requests were accepted like cheap ones")
    return None


@attacks("costly requests", ["refused distillations", "refused publications", "requests for nothing"])
async def _refused(system: System, name: str) -> None:
    async def one() -> None:
        if name == "refused distillations":
            answer = await system.ask(
                "bob", "POST", "/v1/knowledge", json={"topic": "x", "prompts": ["one"] * 500}
            )
        elif name == "refused publications":
            answer = await system.ask("bob", "PUT", "/v1/knowledge/x", json={"files": {"a": "AAAA" * 10_000}})
        else:
            answer = await system.ask("bob", "POST", "/v1/images/generations", json={"prompt": ""})
        system.expect(answer, 400, 409, 422, 429, what=name)

    for _ in range(4):
        await asyncio.gather(*(one() for _ in range(8)))
