"""The faults: what is done to the chain, how it ends, and what must work all the while."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from services.cloud.settings import CloudSettings
from tests.faults.load import DELIVERIES, TOPIC
from tests.faults.stack import SERVICES, Stack, order, wait_for

ALL = frozenset(DELIVERIES)
EDGE_ALONE = frozenset({"semantic", "semantic-unaligned"})  # what needs no cloud
NOTHING: frozenset[str] = frozenset()
RESTART_S = 60.0  # that the engine may take to start a container again
JOB_S = 480.0  # the smaller forms of an update are trained, too
_REDIS_LINKS = [f"{name}-redis" for name in ("gateway", "user", "edge", "cloud", "distiller")]
Do = Callable[[Stack], None]


def _nothing(_: Stack) -> None:
    pass


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        name: what goes wrong.
        inject: makes it so.
        end: makes it good again, or waits until something else has.
        hold_s: between the two, s.
        works: deliveries that must go on without an error.
        gateway: whether connections to the gateway may fail, as it is what is hit.
        prepare: before the fault.
        check: afterwards; AssertionError if something is not as it must be.
    """

    name: str
    inject: Do
    end: Do = _nothing
    hold_s: float = 4.0
    works: frozenset[str] = NOTHING
    gateway: bool = False
    prepare: Do = _nothing
    check: Do = _nothing
    pair: bool = field(default=False, kw_only=True)


def kill(service: str, works: frozenset[str] = NOTHING) -> Fault:
    """kill -9 of everything in the container. Over when the engine has started it again."""
    before: dict[str, str] = {}

    def inject(stack: Stack) -> None:
        before["started"], _ = stack.started(service)
        stack.signal(service, "KILL")

    def again(stack: Stack) -> bool:
        started, runs = stack.started(service)
        return runs and started != before["started"]

    def end(stack: Stack) -> None:
        wait_for(lambda: again(stack), RESTART_S, f"{service} is started again")

    return Fault(f"kill {service}", inject, end, 0.0, works, service == "gateway")


def pause(service: str, works: frozenset[str] = NOTHING) -> Fault:
    """SIGSTOP of everything in the container, then SIGCONT."""
    return Fault(
        f"pause {service}",
        lambda stack: stack.signal(service, "STOP"),
        lambda stack: stack.signal(service, "CONT"),
        works=works,
        gateway=service == "gateway",
    )


def link(name: str, mode: str, works: frozenset[str] = NOTHING) -> Fault:
    """A link in a mode of ``relay.py``'s."""
    words = {"refuse": "cut", "stall": "black hole on", "lose": "connections forgotten on"}
    key = name.replace("-", "_")
    return Fault(
        f"{words.get(mode, 'delay')} {name}",
        lambda stack: stack.set_links(**{key: mode}),
        lambda stack: stack.set_links(**{key: "ok"}),
        works=works,
    )


def clock(service: str) -> Fault:
    """The clock of one service is an hour fast, then an hour slow, then right again."""

    def inject(stack: Stack) -> None:
        stack.set_clock(service, 3600)
        time.sleep(3)
        stack.set_clock(service, -3600)

    return Fault(
        f"clock of {service} wrong by an hour", inject, lambda stack: stack.set_clock(service, 0), 3.0, ALL
    )


def pair(first: Fault, second: Fault, works: frozenset[str] | None = None, apart_s: float = 0.5) -> Fault:
    """Both at once; the second comes a little later, and the first ends first."""

    def inject(stack: Stack) -> None:
        first.inject(stack)
        time.sleep(apart_s)
        second.inject(stack)

    def both(what: Callable[[Fault], Do]) -> Do:
        def do(stack: Stack) -> None:
            what(first)(stack)
            what(second)(stack)

        return do

    return Fault(
        f"{first.name} + {second.name}",
        inject,
        both(lambda fault: fault.end),
        max(first.hold_s, second.hold_s),
        first.works & second.works if works is None else works,
        first.gateway or second.gateway,
        both(lambda fault: fault.prepare),
        both(lambda fault: fault.check),
        pair=True,
    )


# Redis


def _full(stack: Stack) -> None:
    """Fills Redis with what must not be evicted until it takes no more."""
    script = "for i=1,1000 do redis.call('SET', ARGV[1]..i, string.rep('x', 100000)) end"
    for number in range(10):
        stack.run("redis", "sh", "-c", f'redis-cli EVAL "{script}" 0 junk:{number}: || true')
    used = stack.redis("INFO", "memory")
    assert "OOM" in stack.redis("SET", "one-more", "x" * 1000), used


def _roomy(stack: Stack) -> None:
    stack.run("redis", "sh", "-c", "redis-cli --scan --pattern 'junk:*' | xargs -n 500 redis-cli UNLINK")


def _restart_redis(stack: Stack) -> None:
    stack.container("redis").restart(timeout=1)


def _flush(stack: Stack) -> None:
    assert stack.redis("FLUSHALL") == "OK"


STOP_REDIS = Fault(
    "stop redis", lambda stack: stack.stop("redis"), lambda stack: stack.start("redis"), 6.0, ALL
)
RESTART_REDIS = Fault("restart redis", _restart_redis, hold_s=0.0, works=ALL)
WIPE_REDIS = Fault("wipe redis", _flush, hold_s=0.0, works=ALL)
FILL_REDIS = Fault("fill redis", _full, _roomy, 5.0, ALL)
SLOW_REDIS = Fault(
    "delay all links to redis",
    lambda stack: stack.set_links(**dict.fromkeys(_REDIS_LINKS, "delay:0.1")),
    lambda stack: stack.set_links(**dict.fromkeys(_REDIS_LINKS, "ok")),
    works=ALL,
)


# damage


_FLIP = """
import pathlib, sys
path = next(p for p in sorted(pathlib.Path(sys.argv[1]).rglob("*.safetensors")))
data = bytearray(path.read_bytes()); data[len(data) // 2] ^= 1; path.write_bytes(data)
print(path)
"""
_WHOLE = """
import pathlib, sys
from dekag.makd.update import KnowledgeUpdate
files = {p.name: p.read_bytes() for p in pathlib.Path(sys.argv[1]).iterdir()}
print(KnowledgeUpdate.from_files(files).content_hash)
"""
_FLIP_IN_REDIS = """
import os, sys, redis
client, key = redis.Redis.from_url(os.environ["DEKAG_REDIS_URL"]), "dekag:update:" + sys.argv[1]
name = next(n for n in sorted(client.hkeys(key)) if n.endswith(b".safetensors"))
data = bytearray(client.hget(key, name)); data[len(data) // 2] ^= 1; client.hset(key, name, bytes(data))
"""
_WHOLE_IN_REDIS = """
import os, sys, redis
from dekag.makd.update import KnowledgeUpdate
client = redis.Redis.from_url(os.environ["DEKAG_REDIS_URL"])
files = {n.decode(): d for n, d in client.hgetall("dekag:update:" + sys.argv[1]).items()}
print(KnowledgeUpdate.from_files(files).content_hash)
"""


def _says(stack: Stack, script: str, argument: str, wanted: str) -> bool:
    try:
        return stack.python("cloud", script, argument).strip() == wanted
    except AssertionError:
        return False


def _damage_disk(stack: Stack) -> None:
    version, _ = stack.knowledge()[TOPIC]
    stack.python("cloud", _FLIP, f"/data/knowledge/{TOPIC}/{version}/files")


def _disk_is_whole(stack: Stack) -> None:
    version, content_hash = stack.knowledge()[TOPIC]
    folder = f"/data/knowledge/{TOPIC}/{version}/files"
    wait_for(lambda: _says(stack, _WHOLE, folder, content_hash), 30, "the damaged file is restored")


def _damage_redis(stack: Stack) -> None:
    _, content_hash = stack.knowledge()[TOPIC]
    stack.python("cloud", _FLIP_IN_REDIS, content_hash)


def _redis_is_whole(stack: Stack) -> None:
    _, content_hash = stack.knowledge()[TOPIC]
    wait_for(
        lambda: _says(stack, _WHOLE_IN_REDIS, content_hash, content_hash),
        2 * CloudSettings.model_fields["verify_every_s"].default,
        "Redis's copy is whole again",
    )


DAMAGE_DISK = Fault("damage knowledge on the disk", _damage_disk, hold_s=3.0, works=ALL, check=_disk_is_whole)
DAMAGE_REDIS = Fault("damage knowledge in redis", _damage_redis, hold_s=1.0, works=ALL, check=_redis_is_whole)
# an edge that has the update in memory reads no copy; one that starts does
DAMAGE_REDIS_READ = pair(
    Fault("damage knowledge in redis", _damage_redis, check=_redis_is_whole, hold_s=0.0), kill("edge")
)


# jobs


class Job:
    """A small distillation that goes on while something else goes wrong.

    Args:
        topic: of its own, so that whoever publishes a version is known.
        config: of the job.
    """

    def __init__(self, topic: str, **config: int) -> None:
        self._order, self._topic = order(topic, **config), topic
        self._path, self._before = "", 0

    def begin(self, stack: Stack) -> None:
        """Starts it and waits until a distiller has taken it up."""
        self._before = stack.knowledge().get(self._topic, (0, ""))[0]
        started = stack.insist("POST", "/v1/knowledge", json=self._order)
        assert started.status_code == 202, started.text
        self._path = started.headers["location"]
        wait_for(lambda: self.state(stack)["status"] == "running", JOB_S, "a distiller takes up the job")

    def state(self, stack: Stack) -> dict[str, object]:
        """The job as the gateway shows it."""
        answer = stack.insist("GET", self._path)
        assert answer.status_code == 200, f"the job is not known any more: {answer.text}"
        return dict(answer.json())

    def finished_once(self, stack: Stack) -> None:
        """Waits until it is finished; exactly one version of its topic must have come of it."""
        state: dict[str, object] = {}

        def over() -> bool:
            state.update(self.state(stack))
            return state["status"] not in ("queued", "running")

        wait_for(over, JOB_S, f"the job ends; last {state}")
        assert state["status"] == "finished", state
        topic = stack.insist("GET", f"/v1/knowledge/{self._topic}").json()
        made = [version for version in topic["versions"] if version > self._before]
        assert made == [self._before + 1] == [state["version"]], (state, topic)


def during_job(fault: Fault, topic: str, after_s: float, **config: int) -> Fault:
    """The fault, so many seconds after a distiller has taken up a job; the job must be finished once."""
    job = Job(topic, **config)

    def prepare(stack: Stack) -> None:
        job.begin(stack)
        time.sleep(after_s)
        fault.prepare(stack)

    def check(stack: Stack) -> None:
        fault.check(stack)
        job.finished_once(stack)

    return Fault(
        f"{fault.name} during a distillation, after {after_s:.1f} s",
        fault.inject, fault.end, fault.hold_s, fault.works, fault.gateway, prepare, check, pair=fault.pair,
    )  # fmt: skip


def resumed() -> Fault:
    """The distiller dies after it has trained for a while; the next one must go on from the checkpoint."""
    job, done = Job("watercolour", steps=600), {"before": 0, "after": 0}
    killing = kill("distiller", ALL)

    def trained(stack: Stack) -> int:
        state = job.state(stack)
        return int(str(state["done"])) if state["stage"] == "train" else 0

    def prepare(stack: Stack) -> None:
        job.begin(stack)
        wait_for(lambda: trained(stack) > 0, JOB_S, "training begins")
        time.sleep(15)  # a checkpoint is written every 10 s
        done["before"] = trained(stack)

    def check(stack: Stack) -> None:
        def goes_on() -> bool:
            done["after"] = trained(stack)
            return done["after"] not in (0, done["before"])  # 0: the next one looks at its pictures first

        wait_for(goes_on, JOB_S, f"training goes on after step {done['before']}")
        assert done["after"] > done["before"] / 5, done  # not from the first step
        job.finished_once(stack)

    return Fault(
        "kill distiller after 15 s of training", killing.inject, killing.end, 0.0, ALL,
        prepare=prepare, check=check,
    )  # fmt: skip


def singles() -> Sequence[Fault]:
    """One thing at a time."""
    moments = random.Random(8)
    links = {
        "gateway-user": NOTHING,
        "user-channel": NOTHING,
        "channel-edge": NOTHING,
        "edge-cloud": EDGE_ALONE,
        "gateway-cloud": ALL,
    }
    beyond = {"cloud": EDGE_ALONE, "distiller": ALL, "redis": ALL}
    return [
        *(kill(name, beyond.get(name, NOTHING)) for name in (*SERVICES, "redis")),
        STOP_REDIS,
        RESTART_REDIS,
        WIPE_REDIS,
        FILL_REDIS,
        *(pause(name, beyond.get(name, NOTHING)) for name in (*SERVICES, "redis")),
        *(link(name, "refuse", works) for name, works in links.items()),
        *(link(name, "stall", works) for name, works in links.items()),
        *(link(name, "lose", works) for name, works in links.items()),
        *(link(name, "delay:0.3", ALL) for name in links),
        *(link(name, mode, ALL) for name in _REDIS_LINKS for mode in ("refuse", "stall")),
        SLOW_REDIS,
        DAMAGE_REDIS,
        DAMAGE_DISK,
        *(clock(name) for name in SERVICES),
        *(
            during_job(kill("distiller", ALL), topic, moments.uniform(0, 20))
            for topic in ("thermal", "vaporwave", "snail", "rocket")
        ),
        resumed(),
        during_job(WIPE_REDIS, "jewels", 6.0),
        during_job(clock("distiller"), "poetic", 3.0),
        during_job(clock("cloud"), "thermal", 3.0),
    ]


def pairs() -> Sequence[Fault]:
    """Two at once that share something."""
    return [
        pair(STOP_REDIS, kill("edge")),
        pair(STOP_REDIS, kill("user")),
        pair(STOP_REDIS, kill("cloud"), EDGE_ALONE),
        pair(pause("channel"), kill("cloud")),
        pair(link("channel-edge", "delay:0.3", ALL), WIPE_REDIS),
        pair(kill("cloud"), WIPE_REDIS, EDGE_ALONE),
        pair(link("edge-cloud", "stall"), link("edge-redis", "stall"), EDGE_ALONE),
        pair(FILL_REDIS, kill("edge")),
        pair(kill("gateway"), kill("user")),
        pair(DAMAGE_DISK, kill("cloud"), EDGE_ALONE),
        DAMAGE_REDIS_READ,
        during_job(pair(kill("distiller", ALL), RESTART_REDIS), "vaporwave", 8.0),
        during_job(pair(kill("distiller", ALL), kill("cloud", EDGE_ALONE)), "snail", 12.0),
    ]
