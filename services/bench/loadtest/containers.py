"""What containers' network counters say a run carried, beside what the services counted. No Locust in here.

Both are brought to the same measure, bytes that TCP carried:

- **Counters**: bytes that each container received and sent, less what they do without load, less 66 bytes of
  headers for each packet. Summed over all containers but Redis they hold what went to and from Redis once; so
  do the counters of Redis, which are taken away.
- **Interceptors**: bytes of the gRPC messages that the services logged, once for the service that was called
  and once for its caller, and the bodies of HTTP between load generator and gateway.

`counters_gap_percent` is the fraction of the former that is not in the latter: the framing of gRPC and HTTP/2
and the headers of HTTP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import docker
from requests import RequestException

if TYPE_CHECKING:
    from docker.models.containers import Container

HEADER_BYTES = 14 + 20 + 20 + 12  # of one packet: Ethernet, IPv4, TCP, timestamps of TCP
CALLERS = {"user": "gateway", "channel": "user", "edge": "channel", "cloud": "edge"}
REDIS = "redis"
DIRECTIONS = {"received": "rx", "sent": "tx"}  # and what the engine calls them
_COUNTED = ("rx_bytes", "rx_packets", "tx_bytes", "tx_packets")
_LABEL = "com.docker.compose."

ENGINE_ERRORS = (docker.errors.DockerException, RequestException)


@dataclass(frozen=True)
class Snapshot:
    """Network counters of containers at one time.

    Attributes:
        at_s: when the engine read the first of them, s since the epoch by the engine's clock.
        counters: `rx_bytes`, `rx_packets`, `tx_bytes` and `tx_packets` since the container's start, over all
            its interfaces; by service and by what tells its containers and their starts apart.
    """

    at_s: float
    counters: Mapping[tuple[str, str], Counter[str]]

    @classmethod
    def of(cls, statistics: Mapping[tuple[str, str], Mapping[str, Any]]) -> Snapshot:
        """Of what the engine's API says of each container (``GET /containers/{id}/stats``).

        Raises:
            ValueError: a container does not run or has no network, or there is none.
        """
        if not statistics:
            raise ValueError("there are no running containers")
        counters = {}
        for key, found in statistics.items():
            if not found.get("networks"):
                raise ValueError(f"container of {key[0]} has no network counters; does it run?")
            totals = Counter[str]()
            for interface in found["networks"].values():
                totals.update({name: interface[name] for name in _COUNTED})
            counters[key] = totals
        return cls(min(_seconds(found["read"]) for found in statistics.values()), counters)

    def since(self, earlier: Snapshot) -> dict[str, Counter[str]]:
        """What each service's containers counted since then.

        Raises:
            ValueError: a container was started, restarted or removed meanwhile.
        """
        changed = self.counters.keys() ^ earlier.counters.keys()
        if changed:
            names = ", ".join(sorted({service for service, _ in changed}))
            raise ValueError(f"containers were started or stopped meanwhile: {names}")
        found: dict[str, Counter[str]] = {}
        for key, counters in self.counters.items():
            own = found.setdefault(key[0], Counter())
            own.update({name: counters[name] - earlier.counters[key][name] for name in _COUNTED})
        return found


class ComposeProject:
    """The containers of a Compose project, on the engine that ``DOCKER_HOST`` names or the local one.

    Args:
        name: of the project.

    Raises:
        DockerException: the engine does not answer.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._engine = docker.from_env()

    def snapshot(self) -> Snapshot:
        """The counters now.

        Raises:
            ENGINE_ERRORS: the engine does not answer, or a container is gone by now.
            ValueError: no container runs.
        """
        statistics = {}
        for each in self._containers():
            start = f"{each.id} {each.attrs['State']['StartedAt']}"
            found = each.stats(stream=False, one_shot=True)
            statistics[each.labels[f"{_LABEL}service"], start] = cast(dict[str, Any], found)
        try:
            return Snapshot.of(statistics)
        except ValueError as error:
            raise ValueError(f"Compose project {self._name!r}: {error}") from error

    def log(self, since_s: float) -> list[str]:
        """Lines that the containers have logged to stderr since then.

        Args:
            since_s: s since the epoch by the engine's clock.

        Raises:
            ENGINE_ERRORS: the engine does not answer, or keeps no logs that can be read.
        """
        lines: list[str] = []
        for each in self._containers():
            lines += each.logs(stdout=False, stderr=True, since=since_s).decode(errors="replace").splitlines()
        return lines

    def _containers(self) -> Sequence[Container]:
        return self._engine.containers.list(filters={"label": f"{_LABEL}project={self._name}"})


def compare(
    before: Snapshot,
    after: Snapshot,
    idle: Snapshot,
    calls: Iterable[Mapping[str, Any]],
    *,
    http_received_bytes: int,
    http_sent_bytes: int,
) -> dict[str, Any]:
    """The containers' counters beside what the services logged in the same time.

    Args:
        before: the run.
        after: the run, when everything was answered.
        idle: some seconds after that, without load.
        calls: `service`, `received_bytes` and `sent_bytes` of all calls between the first two.
        http_received_bytes: bodies that the gateway got.
        http_sent_bytes: bodies that the gateway sent.

    Returns:
        `counters_gap_percent` with the two sums that it compares; `raw_gap_percent`, the same with `idle` and
        `headers` left in; and `rows`, what each counter is made of, in bytes: `counted` is `idle`, `headers`,
        `messages` and `rest`. `messages` are gRPC's and the bodies of HTTP, `rest` is Redis and the framing
        of gRPC and HTTP.

    Raises:
        ValueError: containers came or went meanwhile, or the services logged nothing.
    """
    run_s, idle_s = after.at_s - before.at_s, idle.at_s - after.at_s
    counted, at_rest = after.since(before), idle.since(after)
    messages = Counter[tuple[str, str]]()
    for call in calls:
        caller = CALLERS[call["service"]]
        messages[call["service"], "received"] += call["received_bytes"]
        messages[call["service"], "sent"] += call["sent_bytes"]
        messages[caller, "received"] += call["sent_bytes"]
        messages[caller, "sent"] += call["received_bytes"]
    if not messages:
        raise ValueError("the services logged no calls; is their level of logging info?")
    messages["gateway", "received"] += http_received_bytes
    messages["gateway", "sent"] += http_sent_bytes

    rows: list[dict[str, Any]] = []
    raw, carried = Counter[bool](), Counter[bool]()  # by whether it is Redis
    for service in sorted(counted):
        for direction, prefix in DIRECTIONS.items():
            in_all, idle_bytes = (each[service][f"{prefix}_bytes"] for each in (counted, at_rest))
            packets, idle_packets = (each[service][f"{prefix}_packets"] for each in (counted, at_rest))
            row = {
                "counted_bytes": in_all,
                "idle_bytes": round(idle_bytes * run_s / idle_s),
                "headers_bytes": round(HEADER_BYTES * (packets - idle_packets * run_s / idle_s)),
                "messages_bytes": messages[service, direction],
            }
            payload = in_all - row["idle_bytes"] - row["headers_bytes"]
            raw[service == REDIS] += in_all
            carried[service == REDIS] += payload
            row["rest_bytes"] = payload - row["messages_bytes"]
            rows.append({"service": service, "direction": direction, **row})
    counters_bytes, interceptors_bytes = carried[False] - carried[True], messages.total()
    raw_bytes = raw[False] - raw[True]
    if min(counters_bytes, raw_bytes) <= 0:
        raise ValueError("the counters hold no traffic beside what there is at rest: the run was too short")
    return {
        "run_s": run_s,
        "idle_s": idle_s,
        "counters_bytes": counters_bytes,
        "redis_bytes": carried[True],
        "interceptors_bytes": interceptors_bytes,
        "counters_gap_percent": 100 * (1 - interceptors_bytes / counters_bytes),
        "raw_gap_percent": 100 * (1 - interceptors_bytes / raw_bytes),
        "rows": rows,
    }


def _seconds(moment: str) -> float:
    """Of the engine's time, which has nanoseconds, s since the epoch."""
    return datetime.fromisoformat(moment).timestamp()
